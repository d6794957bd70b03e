"""What the doctor makes of what it sees, and that it always comes to an end: no server of others is started here."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from tests.unit.app.founded import founded
from tests.unit.app.token_world import EC_KEY, RSA_KEY, jwk, jwks

from keymesh.app import cli, doctor, doctor_local, doctor_remote
from keymesh.app.config import CoreConfig, RegistryConfig
from keymesh.app.config_endpoint import Endpoint
from keymesh.app.config_log import LogConfig
from keymesh.app.config_of_plan import core_config_of, registry_config_of
from keymesh.app.config_tokens import CoreTokens, IssuerSection
from keymesh.app.doctor_rules import (
    Check,
    clock_offset_s,
    judge_certificate,
    judge_clock,
    judge_disk,
    judge_python,
    judge_seal,
)
from keymesh.app.servers.binaries import BAO, ETCD, FULL, RABBITMQ, Binary
from keymesh.app.servers.infra_ca import InfraCa
from keymesh.model.errors import Refused, Unavailable

pytestmark = pytest.mark.usefixtures("template")
NOW = datetime(2030, 1, 1, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


# --- rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("since", "until", "ok"),
    [
        (NOW - 11 * HOUR, NOW + 13 * HOUR, True),
        (NOW - 12 * HOUR, NOW + 12 * HOUR, True),  # due now: its process may be about to
        (NOW - 12.5 * HOUR, NOW + 11.5 * HOUR, False),  # past half of its life, unrenewed
        (NOW - 24 * HOUR, NOW, False),  # dead at the end
        (NOW, NOW + 24 * HOUR, True),
        (NOW + HOUR, NOW + 25 * HOUR, False),  # not yet
        (NOW - 89 * DAY, NOW + DAY, False),
        (NOW - 83 * DAY, NOW + 7 * DAY, True),
        (NOW - 84 * DAY, NOW + 7 * DAY - timedelta(seconds=1), False),
        (NOW - 3_650 * DAY, NOW - DAY, False),
    ],
)
def test_certificates(since: datetime, until: datetime, ok: bool) -> None:
    check = judge_certificate("c", since=since, until=until, now=NOW)
    assert (check.ok, bool(check.fix)) == (ok, not ok)


@pytest.mark.parametrize(
    ("theirs", "offset_s"),
    [
        (1_000.0, 0.0),  # said between sending (1000.2) and receiving (1000.4), told in whole seconds
        (999.0, -0.2),
        (990.0, -9.2),
        (1_001.0, 0.6),
        (1_100.0, 99.6),
    ],
)
def test_clocks_are_off_by_no_more_than_they_must_be(theirs: float, offset_s: float) -> None:
    found = clock_offset_s(sent=1_000.2, received=1_000.4, theirs=theirs, resolution_s=1.0)
    assert found == pytest.approx(offset_s)
    assert judge_clock("c", found).ok is (abs(offset_s) <= 2.0)


def test_a_seal_that_has_died_is_told_before_it_is_needed() -> None:
    states = ("opens", "untried", "waits-for-shares", "unreachable", "denied", "broken", "something new")
    found = {state: judge_seal("s", state=state, reason="") for state in states}
    assert [state for state, check in found.items() if check.ok] == ["opens", "untried", "waits-for-shares"]
    assert all(bool(check.fix) is not check.ok for check in found.values())
    assert judge_seal("s", state="denied", reason="no-such-key").detail == "denied: no-such-key"


async def test_the_seals_of_a_region_are_its_cores_word() -> None:
    class Client:
        """Answers for a Core."""

        def __init__(self, answer: Any) -> None:
            self.answer = answer

        async def call(self, *words: str, **more: Any) -> Any:
            if isinstance(self.answer, Exception):
                raise self.answer
            return {"seals": self.answer}

    async def asked_of(answer: Any) -> list[tuple[str, bool]]:
        checks = await doctor.seal_checks(Client(answer), "us-east")  # type: ignore[arg-type]
        return [(check.name, check.ok) for check in checks]

    two = [{"id": "a-1", "state": "opens", "reason": None}, {"id": "b-2", "state": "denied", "reason": "x"}]
    assert await asked_of(two) == [("core us-east seal a-1", True), ("core us-east seal b-2", False)]
    assert await asked_of([]) == [("core us-east seals", False)]
    assert await asked_of(Unavailable("unreachable", "away")) == [("core us-east seals", False)]


def test_disks_and_pythons() -> None:
    gb = 1 << 30
    assert judge_disk("d", free_bytes=10 * gb, total_bytes=100 * gb).ok
    assert not judge_disk("d", free_bytes=gb - 1, total_bytes=10 * gb).ok
    assert not judge_disk("d", free_bytes=4 * gb, total_bytes=100 * gb).ok
    assert judge_disk("d", free_bytes=60 << 20, total_bytes=100 << 20).ok  # a small one that is mostly free
    assert [judge_python((3, minor, 0)).ok for minor in (10, 11, 12, 13, 14)] == [False, True, True, True, False]
    assert not judge_python((4, 0, 0)).ok


# --- this host -------------------------------------------------------------------------------------------------------


async def test_a_missing_program_counts_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Binary("gone", lambda: None, "apt-get install -y gone")
    assert await doctor_local.check_binary(gone, needed=True) == Check(
        "binary gone", False, "missing", "apt-get install -y gone"
    )
    spare = await doctor_local.check_binary(gone, needed=False)
    assert spare.ok and spare.fix == "apt-get install -y gone"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    lacking = doctor_local.check_extras(needed=True)
    assert not lacking.ok and "psycopg" in lacking.detail and lacking.fix.startswith("python -m pip install")
    assert doctor_local.check_extras(needed=False).ok


async def test_versions_of_what_is_installed() -> None:
    for binary, version in ((ETCD, "3."), (RABBITMQ, "3."), (BAO, "2.")):
        check = await doctor_local.check_binary(binary, needed=True)
        assert check.ok and check.detail.startswith(version), check


async def test_a_program_that_does_not_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "stuck"
    script.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    script.chmod(0o755)
    stuck = Binary("stuck", lambda: script, "no way")
    monkeypatch.setattr(doctor, "CHECK_S", 1.0)
    found = await doctor._timed("binary stuck", doctor._one(doctor_local.check_binary(stuck, needed=True)))
    assert [(c.ok, c.detail) for c in found] == [(False, "no answer within 1 s")]
    pid = (tmp_path / "pid").read_text().strip()
    deadline = time.monotonic() + 10
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it is gone
        while Path(f"/proc/{pid}/stat").read_text().split()[2] not in "ZX":
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)


def test_memory_that_cannot_be_locked_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keymesh.crypto.pages._mlock", lambda memory: False)
    check = doctor_local.check_memory()
    assert not check.ok and "--allow-unlocked-memory" in check.fix


def test_certificate_files(tmp_path: Path) -> None:
    good = InfraCa.make("ca").issue(tmp_path / "good.pem", "x")
    assert doctor_local.check_certificate_file("c", good).ok
    (tmp_path / "not.pem").write_text("no certificate")
    (tmp_path / "large.pem").write_bytes(bytes(2 << 20))
    for name, said in (
        ("not.pem", "no certificate"),
        ("none.pem", "No such file"),
        ("large.pem", "too large"),
        (".", "directory"),
    ):
        check = doctor_local.check_certificate_file("c", tmp_path / name)
        assert not check.ok and said in check.detail and check.fix, name


def test_a_disk_is_measured_where_its_directory_will_be(tmp_path: Path) -> None:
    assert "GB free" in doctor_local.check_disk("d", tmp_path / "not" / "yet").detail


async def test_a_dead_disk_delays_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CHECK_S", 0.2)
    began = time.monotonic()

    def dead() -> Check:
        time.sleep(3)
        return Check("disk", True, "")

    def gone() -> Check:
        Path("/nowhere/at/all").stat()
        return Check("disk", True, "")

    found = await doctor._local("disk", dead)
    assert not found[0].ok and time.monotonic() - began < 2
    failed = await doctor._local("disk", gone)
    assert failed[0].detail == "no file /nowhere/at/all"


# --- dependencies ----------------------------------------------------------------------------------------------------

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def served(
    ca: InfraCa, directory: Path, talk: Talk, *, newest: ssl.TLSVersion | None = None
) -> AsyncIterator[int]:
    """A TLS server that does as ``talk`` says; its port."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(ca.issue(directory / "server.pem", "server", server=True))
    if newest is not None:
        tls.maximum_version = newest

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(once, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def answering(status: int, body: Any, *, date: str = "") -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"POST"):
            await reader.readexactly(2)
        line = f"Date: {date}\r\n" if date else ""
        content = body if isinstance(body, str) else json.dumps(body)
        writer.write(f"HTTP/1.1 {status} X\r\n{line}\r\n{content}".encode())
        await writer.drain()

    return talk


async def asked(
    ca: InfraCa, directory: Path, field: str, port: int, scheme: str = "https", trust: InfraCa | None = None
) -> list[Check]:
    (directory / "ca.pem").write_bytes((trust or ca).pem)
    ca.issue(directory / "client.pem", "client")
    endpoint = Endpoint(
        url=f"{scheme}://127.0.0.1:{port}/x",
        ca_file=str(directory / "ca.pem"),
        cert_file=str(directory / "client.pem"),
    )
    return await doctor._timed("e", doctor._endpoint("e", field, endpoint))


DATE = "Tue, 01 Jan 2030 00:00:00 GMT"


@pytest.mark.parametrize(
    ("field", "status", "body", "ok", "said"),
    [
        ("log.endpoints[0]", 200, {"version": "3.4.23", "leader": "7"}, True, "version 3.4.23"),
        ("log.endpoints[0]", 200, {"version": "3.4.23"}, False, "knows no leader"),
        ("log.endpoints[0]", 500, {}, False, "answered 500"),
        ("log.endpoints[0]", 200, "[[[", False, "answered 200"),
        ("keystore.endpoints[1]", 200, {"version": "2.7.2"}, True, "version 2.7.2"),
        ("keystore.endpoints[1]", 429, {"version": "2.7.2"}, True, "version 2.7.2, stands by"),
        ("seals[0].endpoints[0]", 503, {"version": "2.7.2"}, False, "sealed"),
        ("keystore.endpoints[0]", 501, {}, False, "not initialised"),
        ("keystore.endpoints[0]", 418, {}, False, "answered 418"),
        ("tokens.issuers[0].jwks", 200, {}, True, "answers"),
    ],
)
async def test_answers(tmp_path: Path, field: str, status: int, body: Any, ok: bool, said: str) -> None:
    ca = InfraCa.make("ca")
    async with served(ca, tmp_path, answering(status, body)) as port:
        first, certificate = await asked(ca, tmp_path, field, port)
        assert first.ok is ok and said in first.detail and bool(first.fix) is not ok
        assert certificate.name == "e certificate" and certificate.ok


async def test_a_server_that_a_role_would_not_speak_to_is_told(tmp_path: Path) -> None:
    ca = InfraCa.make("ca")
    async with served(ca, tmp_path, answering(200, {"leader": "1"}), newest=ssl.TLSVersion.TLSv1_2) as port:
        (only,) = await asked(ca, tmp_path, "log.endpoints[0]", port)
        assert not only.ok and "TLS" in only.detail  # by an alert, or by a reset
        assert (await asked(ca, tmp_path, "backup.s3.endpoints[0]", port))[0].ok


async def test_a_clock_that_is_off_is_told(tmp_path: Path) -> None:
    ca = InfraCa.make("ca")
    async with served(ca, tmp_path, answering(200, {"leader": "1"}, date=DATE)) as port:
        clock = (await asked(ca, tmp_path, "log.endpoints[0]", port))[2]
        assert clock.name == "e clock" and not clock.ok and "ours" in clock.detail and "time servers" in clock.fix


async def test_no_answer_of_a_hostile_server_does_harm(tmp_path: Path) -> None:
    ca = InfraCa.make("ca")

    async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x00" * 1_000)

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(64):
            writer.write(b"x" * 65_536)
            await writer.drain()
            await asyncio.sleep(0)

    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        return

    for talk, said in ((garbage, "not HTTP"), (endless, "too long"), (nothing, "without an answer")):
        async with served(ca, tmp_path, talk) as port:
            (only,) = await asked(ca, tmp_path, "log.endpoints[0]", port)
            assert not only.ok and said in only.detail


async def test_strangers_and_the_silent_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca = InfraCa.make("ca")
    async with served(ca, tmp_path, answering(200, {"leader": "1"})) as port:
        (only,) = await asked(ca, tmp_path, "log.endpoints[0]", port, trust=InfraCa.make("another"))
        assert not only.ok and "not believed" in only.detail
    with socket.socket() as plain:
        plain.bind(("127.0.0.1", 0))
        (only,) = await asked(ca, tmp_path, "log.endpoints[0]", plain.getsockname()[1])
        assert only.detail == "nobody listens there"
        plain.listen()  # takes the connection, and never says a word
        monkeypatch.setattr(doctor, "CHECK_S", 0.3)
        (only,) = await asked(ca, tmp_path, "log.endpoints[0]", plain.getsockname()[1])
        assert only.detail.startswith("no answer within")
    only_endpoint = Endpoint(url="https://127.0.0.1:1", ca_file=str(tmp_path / "none.pem"))
    (only,) = await doctor._timed("e", doctor._endpoint("e", "log", only_endpoint))
    assert not only.ok and "file" in only.detail.lower()


async def test_the_brokers_greeting(tmp_path: Path) -> None:
    ca = InfraCa.make("ca")
    body = struct.pack(">HHBB", 10, 10, 0, 9) + b"\x07versionS" + struct.pack(">I", 6) + b"3.10.8"

    def greeting(kind: int, size: int) -> Talk:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.readexactly(8) == b"AMQP\x00\x00\x09\x01"
            writer.write(struct.pack(">BHI", kind, 0, size) + body + b"\xce")

        return talk

    async with served(ca, tmp_path, greeting(1, len(body))) as port:
        assert (await asked(ca, tmp_path, "broker.endpoints[0]", port, "amqps"))[0].detail == "version 3.10.8"
    for wrong in (greeting(8, len(body)), greeting(1, 1 << 31)):
        async with served(ca, tmp_path, wrong) as port:
            assert "not AMQP" in (await asked(ca, tmp_path, "broker.endpoints[0]", port, "amqps"))[0].detail
    async with served(ca, tmp_path, greeting(1, len(body) + 100)) as port:
        assert "closed" in (await asked(ca, tmp_path, "broker.endpoints[0]", port, "amqps"))[0].detail


async def test_a_greeting_that_is_cut_short_is_only_a_greeting(tmp_path: Path) -> None:
    ca = InfraCa.make("ca")
    for body in (b"\x07versionS", b"\x07versionS\x00\x00", b"\x07versionS" + b"\xff" * 4):

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes = body) -> None:
            await reader.readexactly(8)
            writer.write(struct.pack(">BHI", 1, 0, len(body)) + body)

        async with served(ca, tmp_path, talk) as port:
            first = (await asked(ca, tmp_path, "broker.endpoints[0]", port, "amqps"))[0]
            assert (first.ok, first.detail) == (True, "answers")


async def test_a_package_that_is_missing_is_told() -> None:
    async def needs() -> list[Check]:
        raise ModuleNotFoundError("No module named 'psycopg'", name="psycopg")

    (only,) = await doctor._timed("e", needs())
    assert not only.ok and "psycopg" in only.detail and only.fix.startswith("python -m pip install")


# --- issuers of tokens -----------------------------------------------------------------------------------------------


def key_site(status: int, body: bytes) -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET /keys?v=1 ")
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body)
        await writer.drain()

    return talk


def issuer(**keys: Any) -> IssuerSection:
    return IssuerSection(
        name="corp", issuer="https://id.example", audience="keymesh", algorithm="ES256", names={"u-1": "ann"}, **keys
    )


GOOD_SET, OTHER_SET = jwks(jwk(EC_KEY, "k1", "ES256")), jwks(jwk(RSA_KEY, "k1", "RS256"))


@pytest.mark.parametrize(
    ("status", "body", "ok", "said"),
    [
        (200, GOOD_SET, True, "1 key for ES256"),
        (200, OTHER_SET, False, "no key for ES256"),
        (200, b"<html>log in</html>", False, "no key set"),
        (404, GOOD_SET, False, "answered 404"),
        (302, b"", False, "answered 302"),
    ],
)
async def test_an_issuers_key_set_is_had_as_a_role_has_it(
    tmp_path: Path, status: int, body: bytes, ok: bool, said: str
) -> None:
    ca = InfraCa.make("issuer ca")
    (tmp_path / "ca.pem").write_bytes(ca.pem)
    async with served(ca, tmp_path, key_site(status, body)) as port:
        section = issuer(jwks_url=f"https://127.0.0.1:{port}/keys?v=1", ca_file=str(tmp_path / "ca.pem"))
        first, *more = await doctor._timed("i", doctor._issuer("i", section))
        assert first.ok is ok and said in first.detail and bool(first.fix) is not ok
        assert [(check.name, check.ok) for check in more] == [("i certificate", True)]
        (tmp_path / "ca.pem").write_bytes(InfraCa.make("another").pem)
        (only,) = await doctor._timed("i", doctor._issuer("i", section))
        assert not only.ok and "not believed" in only.detail
    (only,) = await doctor._timed("i", doctor._issuer("i", section))
    assert only.detail == "nobody listens there"


async def test_an_issuers_certificate_that_ends_soon_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca = InfraCa.make("issuer ca")
    (tmp_path / "ca.pem").write_bytes(ca.pem)
    ends = []

    def judge(name: str, *, since: datetime, until: datetime, now: datetime) -> Check:
        ends.append(until)
        return judge_certificate(name, since=since, until=until, now=until - DAY)

    monkeypatch.setattr(doctor, "judge_certificate", judge)
    async with served(ca, tmp_path, key_site(200, GOOD_SET)) as port:
        section = issuer(jwks_url=f"https://127.0.0.1:{port}/keys?v=1", ca_file=str(tmp_path / "ca.pem"))
        first, certificate = await doctor._timed("i", doctor._issuer("i", section))
    shown = x509.load_pem_x509_certificate((tmp_path / "server.pem").read_bytes())
    assert first.ok and not certificate.ok and ends == [shown.not_valid_after_utc]


async def test_an_issuers_key_file(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    section = issuer(jwks_file=str(keys))
    for content, ok, said in (
        (None, False, "cannot be read"),
        (GOOD_SET, True, "1 key for ES256"),
        (OTHER_SET, False, "no key for ES256"),
        (b"[]", False, "no key set"),
    ):
        if content is not None:
            keys.write_bytes(content)
        (only,) = await doctor._timed("i", doctor._issuer("i", section))
        assert only.ok is ok and said in only.detail, content


async def test_every_issuer_of_a_role_is_asked(tmp_path: Path) -> None:
    with founded() as (layout, plan):
        plain = core_config_of(layout, plan, "us-east")
        assert isinstance(plain, CoreConfig)
        (tmp_path / "keys.json").write_bytes(GOOD_SET)
        issuers = (issuer(jwks_file=str(tmp_path / "keys.json")),)
        config = msgspec.structs.replace(plain, tokens=CoreTokens(issuers=issuers))
        checks = await doctor.examine([doctor.subject_of(config)], needed=(), extras=False)
        assert [c.ok for c in checks if c.name == "core us-east tokens.issuers[0] keys"] == [True]


async def test_a_database_that_speaks_no_tls(tmp_path: Path) -> None:
    async def no(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(8) == doctor_remote._PG_TLS
        writer.write(b"N")
        writer.close()

    server = await asyncio.start_server(no, "127.0.0.1", 0)
    ca = InfraCa.make("ca")
    (only,) = await asked(ca, tmp_path, "database.endpoints[0]", server.sockets[0].getsockname()[1], "postgresql")
    assert not only.ok and "TLS" in only.detail
    server.close()


# --- what is looked at -----------------------------------------------------------------------------------------------


def test_every_endpoint_of_a_configuration_is_found_wherever_it_stands() -> None:
    with founded() as (layout, plan):
        log = LogConfig(kind="etcd", endpoints=(Endpoint(url="https://a:1"), Endpoint(url="https://b:2")))
        plain = registry_config_of(layout, plan)
        config = RegistryConfig(
            mesh=plan.mesh, data_dir=plain.data_dir, listen=plain.listen, identity=plain.identity, log=log
        )
        found = [(field, value.url) for field, value in doctor.walk(config) if isinstance(value, Endpoint)]
        assert found == [("log.endpoints[0]", "https://a:1"), ("log.endpoints[1]", "https://b:2")]
        fields = [field for field, _ in doctor.walk(core_config_of(layout, plan, "us-east"))]
        assert {"identity.tls_file", "registries[0]", "peers.us-west[0]"} <= set(fields)


async def test_a_role_is_examined_by_its_own_certificate() -> None:
    """Nothing runs: everything that needs a peer says so, what lies here is looked at."""
    with founded() as (layout, plan):
        config = core_config_of(layout, plan, "us-east")
        assert isinstance(config, CoreConfig)
        checks = await doctor.examine([doctor.subject_of(config)], needed=(), extras=False)
        by_name = {check.name: check for check in checks}
        assert len(by_name) == len(checks)
        assert by_name["core us-east identity.tls_file"].ok and by_name["core us-east disk"].ok
        away = [check for name, check in by_name.items() if name.startswith(("registry at ", "core us-west at "))]
        assert len(away) == 2 and not any(check.ok for check in away)
        assert {check.detail for check in away} == {"nobody listens there"}


# --- the command -----------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    code = cli.main(["doctor", *words, "--json"])
    out = capsys.readouterr().out
    return code, json.loads(out) if out else None


def test_the_command_on_a_host_without_a_mesh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KEYMESH_DIR", raising=False)
    code, shown = run(capsys)
    assert set(shown) == {"ok", "checks"} and (code == 0) is shown["ok"]
    assert all(set(check) == {"name", "ok", "detail", "fix"} for check in shown["checks"])
    assert {f"binary {binary.name}" for binary in FULL} <= {check["name"] for check in shown["checks"]}
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(Path, "is_file", lambda self: False)
    monkeypatch.setattr("keymesh.app.servers.binaries._POSTGRES_ROOT", tmp_path)
    code, shown = run(capsys)
    lacking = {check["name"]: check["fix"] for check in shown["checks"] if not check["ok"]}
    assert code == 1 and lacking["binary etcd"] == "apt-get install -y etcd-server"
    assert cli.main(["doctor"]) == 1
    assert "apt-get install -y postgresql" in capsys.readouterr().out


def test_the_command_on_a_mesh_that_does_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    with founded() as (layout, _):
        code, shown = run(capsys, "--dir", str(layout.root))
        failed = {check["name"]: check for check in shown["checks"] if not check["ok"]}
        assert code == 1 and failed["supervisor"]["fix"].startswith("keymesh up --dir")
        assert not any(name.startswith("binary") for name in failed)


def test_no_mesh_and_no_role_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--dir", str(tmp_path)]) == 1
    assert "no mesh in" in capsys.readouterr().err
    assert cli.main(["doctor", "--config", str(tmp_path / "none.toml")]) == 1
    with pytest.raises(Refused):
        cli.build_parser().parse_args(["doctor", "--config", "x", "--role", "king"]).run.load()(
            cli.build_parser().parse_args(["doctor", "--config", "x", "--role", "king"])
        )
