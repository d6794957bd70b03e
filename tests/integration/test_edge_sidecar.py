"""The Edge host over its Unix socket: identities by request and certificate, keys, renewal, restarts, bad input."""

from __future__ import annotations

import asyncio
import base64
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from cryptography import x509
from tests.integration.edge_core import MESH, Pki, TestCore, eventually, now

from keymesh.access.identity import parse_identity
from keymesh.adapters import pki
from keymesh.edge.sidecar import Sidecar
from keymesh.edge.sidecar_door import Door
from keymesh.edge.sidecar_process import regions_and_urls
from keymesh.model.errors import Refused

URL = "http://edge"


@pytest.fixture(scope="module")
def mesh() -> Pki:
    return Pki()


@pytest.fixture
async def core(tmp_path: Path, mesh: Pki) -> AsyncIterator[TestCore]:
    core = TestCore(tmp_path, mesh)
    await core.start()
    yield core
    await core.stop()


def make_sidecar(core: TestCore, tmp_path: Path) -> Sidecar:
    return Sidecar(
        tmp_path / "edge",
        mesh=MESH,
        region="eu",
        core_urls=[core.url],
        ca_file=core.mesh.ca_file(tmp_path),
        trust=core.trust,
        allow_unlocked_memory=True,
    )


class Client:
    def __init__(self, socket: Path) -> None:
        self.session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket)))

    async def __call__(self, method: str, path: str, body: Any = None, **options: Any) -> tuple[int, Any]:
        if body is not None:
            options["json"] = body
        async with self.session.request(method, URL + path, **options) as answer:
            return answer.status, await answer.json(content_type=None)


@pytest.fixture
def sidecar(core: TestCore, tmp_path: Path) -> Sidecar:
    (tmp_path / "edge").mkdir()
    return make_sidecar(core, tmp_path)


@pytest.fixture
async def door(sidecar: Sidecar, tmp_path: Path) -> AsyncIterator[Door]:
    door = Door(sidecar)
    await door.open_unix(tmp_path / "s")
    yield door
    await door.close()


@pytest.fixture
async def client(door: Door, tmp_path: Path) -> AsyncIterator[Client]:
    client = Client(tmp_path / "s")
    yield client
    await client.session.close()


def certify(core: TestCore, csr: str, uri: str, *, lifetime_ms: int = pki.LEAF_LIFETIME_MS, region: str = "eu") -> str:
    authority = core.mesh.regions[region]
    identity = parse_identity(uri, MESH)
    leaf = pki.issue_from_csr(authority, csr.encode(), identity=identity, now=now(), lifetime_ms=lifetime_ms)
    return pki.certificates_pem([leaf, authority.certificate]).decode()


async def enrol(client: Client, core: TestCore, service: str = "files", **options: Any) -> None:
    status, asked = await client("POST", "/v1/identities", {"tenant": "acme", "service": service})
    assert status == 200
    chain = certify(core, asked["csr"], asked["uri"], **options)
    status, _ = await client("PUT", f"/v1/identities/acme/{service}", {"chain": chain})
    assert status == 200


async def test_from_nothing_to_keys(client: Client, core: TestCore, tmp_path: Path) -> None:
    assert (await client("GET", "/v1/identities"))[1] == {"identities": []}
    assert (await client("POST", "/v1/acme/files/create-key", {}))[0] == 404
    status, asked = await client("POST", "/v1/identities", {"tenant": "acme", "service": "files"})
    assert status == 200
    assert asked["uri"].startswith("spiffe://eu.test-dev/tenant/acme/edge/files/e")
    assert "PRIVATE" not in str(asked)
    status, problem = await client("POST", "/v1/acme/files/create-key", {})
    assert (status, problem["error"]["code"]) == (503, "no-certificate")
    await enrol(client, core)
    context = {"table": "orders"}
    status, made = await client("POST", "/v1/acme/files/create-key", {"context": context, "plaintext": True})
    assert status == 200
    status, opened = await client("POST", "/v1/acme/files/decrypt-key", {"blob": made["blob"], "context": context})
    assert opened == {"plaintext": made["plaintext"]}
    assert len(base64.b64decode(made["blob"])) == 90
    status, many = await client("POST", "/v1/acme/files/create-keys", {"count": 5})
    assert [set(key) for key in many["keys"]] == [{"blob"}] * 5
    blobs = [key["blob"] for key in many["keys"]]
    status, opened = await client("POST", "/v1/acme/files/decrypt-keys", {"blobs": blobs})
    assert len(opened["plaintexts"]) == 5
    status, problem = await client("POST", "/v1/acme/files/decrypt-key", {"blob": made["blob"]})
    assert (status, problem["error"]["code"]) == (422, "integrity")
    status, listed = await client("GET", "/v1/identities")
    assert listed["identities"][0]["edge"]["ready"]
    assert (await client("GET", "/healthz"))[0] == 200
    assert (await client("GET", "/readyz"))[0] == 200


async def test_messagepack_carries_bytes(client: Client, core: TestCore) -> None:
    await enrol(client, core)

    async def ask(use: str, body: Any) -> tuple[int, Any]:
        packed, kind = msgspec.msgpack.encode(body), {"Content-Type": "application/msgpack"}
        async with client.session.post(f"{URL}/v1/acme/files/{use}", data=packed, headers=kind) as answer:
            raw = await answer.read()
            is_json = answer.content_type == "application/json"
            return answer.status, msgspec.json.decode(raw) if is_json else msgspec.msgpack.decode(raw)

    context = {"table": "orders"}
    status, made = await ask("create-key", {"context": context, "plaintext": True})
    assert status == 200 and (len(made["blob"]), len(made["plaintext"])) == (90, 32)
    assert await ask("decrypt-key", {"blob": made["blob"], "context": context}) == (
        200,
        {"plaintext": made["plaintext"]},
    )
    _, many = await ask("create-keys", {"count": 3, "plaintext": True})
    opened = await ask("decrypt-keys", {"blobs": [key["blob"] for key in many["keys"]]})
    assert opened == (200, {"plaintexts": [key["plaintext"] for key in many["keys"]]})
    in_json = base64.b64encode(made["blob"]).decode()
    _, other = await client("POST", "/v1/acme/files/decrypt-key", {"blob": in_json, "context": context})
    assert base64.b64decode(other["plaintext"]) == made["plaintext"]
    for body, status in (({"blob": in_json}, 400), ({"blob": made["blob"], "more": 1}, 400), ({"blob": b"x"}, 400)):
        assert (await ask("decrypt-key", body))[0] == status
    assert (await ask("decrypt-key", {"blob": made["blob"]}))[1]["error"]["code"] == "integrity"


async def test_files_are_private_and_the_socket_is_its_owners(client: Client, core: TestCore, tmp_path: Path) -> None:
    await enrol(client, core)
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
    home = tmp_path / "edge" / "identities" / "acme" / "files"
    assert {p.name for p in home.iterdir()} == {"key.pem", "identity.pem"}
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o600 for p in home.iterdir())


async def test_metrics_name_what_was_used(client: Client, core: TestCore) -> None:
    await enrol(client, core)
    for _ in range(3):
        await client("POST", "/v1/acme/files/create-key", {})
    await asyncio.sleep(1.1)
    async with client.session.get(URL + "/metrics") as answer:
        text = await answer.text()
    assert 'keymesh_edge_keys_total{operation="minted",service="files",tenant="acme"} 3.0' in text


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/v1/identities", {"tenant": "ACME", "service": "files"}, 400, "bad-field"),
        ("POST", "/v1/identities", {"tenant": "..", "service": "files"}, 400, "bad-field"),
        ("POST", "/v1/identities", {"tenant": "mesh", "service": "files"}, 400, "bad-field"),
        ("POST", "/v1/identities", {"tenant": "acme"}, 400, "bad-field"),
        ("POST", "/v1/identities", [], 400, "bad-field"),
        ("PUT", "/v1/identities/acme/none", {"chain": ""}, 404, "not-found"),
        ("PUT", "/v1/identities/acme/files", {"chain": "junk"}, 400, "bad-field"),
        ("POST", "/v1/acme/files/create-key", {"context": {"k": 1}}, 400, "bad-field"),
        ("POST", "/v1/acme/files/create-key", {"more": 1}, 400, "bad-field"),
        ("POST", "/v1/acme/files/create-keys", {"count": 0}, 400, "bad-field"),
        ("POST", "/v1/acme/files/create-keys", {"count": 10_001}, 400, "bad-field"),
        ("POST", "/v1/acme/files/decrypt-key", {"blob": "*"}, 400, "bad-field"),
        ("POST", "/v1/acme/files/decrypt-key", {"blob": "AAAA"}, 400, "bad-field"),
        ("POST", "/v1/acme/files/decrypt-key", {"blob": "A" * 2_000_000}, 400, "bad-field"),
        ("POST", "/v1/acme/files/decrypt-keys", {"blobs": []}, 400, "bad-field"),
        ("POST", "/v1/acme/other/create-key", {}, 404, "not-found"),
        ("GET", "/v1/acme/files/create-key", None, 405, "method-not-allowed"),
        ("GET", "/v2", None, 404, "not-found"),
        ("POST", "/v1/acme/files/create-key", None, 415, "bad-content-type"),
    ],
)
async def test_bad_input_gets_one_error_form(
    client: Client, core: TestCore, method: str, path: str, body: Any, status: int, code: str
) -> None:
    await enrol(client, core)
    answered, problem = await client(method, path, body)
    assert (answered, problem["error"]["code"]) == (status, code)
    assert problem["correlation_id"]


async def test_a_body_over_the_limit_is_refused(client: Client, core: TestCore) -> None:
    await enrol(client, core)
    answered, problem = await client("POST", "/v1/acme/files/decrypt-key", {"blob": "A" * 5_000_000})
    assert (answered, problem["error"]["code"]) == (413, "too-large")


async def test_only_the_right_certificate_is_accepted(client: Client, core: TestCore, mesh: Pki) -> None:
    _, asked = await client("POST", "/v1/identities", {"tenant": "acme", "service": "files"})
    _, other = await client("POST", "/v1/identities", {"tenant": "acme", "service": "other"})
    good = certify(core, asked["csr"], asked["uri"])
    stranger = Pki()
    foreign = certify(TestCoreStub(stranger), asked["csr"], asked["uri"])  # type: ignore[arg-type]
    leaf_only = good[: good.index("-----END CERTIFICATE-----") + 26]
    for bad in (certify(core, other["csr"], other["uri"]), foreign, leaf_only, good + good, ""):
        status, problem = await client("PUT", "/v1/identities/acme/files", {"chain": bad})
        assert (status, problem["error"]["code"]) == (400, "bad-field")
    assert (await client("PUT", "/v1/identities/acme/files", {"chain": good}))[0] == 200


class TestCoreStub:
    __test__ = False

    def __init__(self, mesh: Pki) -> None:
        self.mesh = mesh


async def test_a_restart_needs_nobody(
    client: Client, sidecar: Sidecar, door: Door, core: TestCore, tmp_path: Path
) -> None:
    await enrol(client, core)
    _, made = await client("POST", "/v1/acme/files/create-key", {"plaintext": True})
    await door.close()
    again = make_sidecar(core, tmp_path)
    assert again.store.instance == sidecar.store.instance
    door = Door(again)
    await door.open_unix(tmp_path / "s")
    fresh = Client(tmp_path / "s")
    try:
        _, opened = await fresh("POST", "/v1/acme/files/decrypt-key", {"blob": made["blob"]})
        assert opened["plaintext"] == made["plaintext"]
    finally:
        await fresh.session.close()
        await door.close()


async def test_a_second_host_on_the_same_socket_is_refused(door: Door, core: TestCore, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    with pytest.raises(Refused) as caught:
        await Door(make_sidecar(core, tmp_path)).open_unix(tmp_path / "s")
    assert caught.value.code == "address-in-use"


async def test_certificates_are_renewed_at_half_their_life(client: Client, core: TestCore, tmp_path: Path) -> None:
    await enrol(client, core, lifetime_ms=4_000)
    file = tmp_path / "edge" / "identities" / "acme" / "files" / "identity.pem"
    first = x509.load_pem_x509_certificates(file.read_bytes())[0]
    await eventually(lambda: core.seen["renew"] >= 1)
    await eventually(lambda: x509.load_pem_x509_certificates(file.read_bytes())[0] != first)
    renewed = x509.load_pem_x509_certificates(file.read_bytes())[0]
    assert renewed.public_key() == first.public_key()
    assert (await client("POST", "/v1/acme/files/create-key", {}))[0] == 200


async def test_a_half_made_identity_harms_no_other(client: Client, core: TestCore, tmp_path: Path) -> None:
    await enrol(client, core)
    broken = tmp_path / "edge" / "identities" / "acme" / "broken"
    broken.mkdir()
    (broken / "key.pem").touch(0o600)
    (broken / "identity.pem").write_bytes(b"junk")
    (broken / "identity.pem").chmod(0o600)
    again = make_sidecar(core, tmp_path)
    door = Door(again)
    await door.open_unix(tmp_path / "t")
    fresh = Client(tmp_path / "t")
    try:
        assert (await fresh("POST", "/v1/acme/files/create-key", {}))[0] == 200
        status, problem = await fresh("POST", "/v1/acme/broken/create-key", {})
        assert (status, problem["error"]["code"]) == (503, "no-certificate")
    finally:
        await fresh.session.close()
        await door.close()


async def test_identities_elsewhere_are_of_that_region_and_of_no_unknown_one(core: TestCore, tmp_path: Path) -> None:
    (tmp_path / "edge").mkdir()
    there = Sidecar(
        tmp_path / "edge",
        mesh=MESH,
        region="eu",
        core_urls=[core.url],
        ca_file=core.mesh.ca_file(tmp_path),
        trust=core.trust,
        elsewhere=regions_and_urls(["us=https://a.example:1", "us=https://b.example:1"]),
        allow_unlocked_memory=True,
    )
    door = Door(there)
    await door.open_unix(tmp_path / "s2")
    client = Client(tmp_path / "s2")
    try:
        wanted = {"tenant": "acme", "service": "files"}
        status, here = await client("POST", "/v1/identities", wanted)
        assert status == 200 and here["uri"].startswith(f"spiffe://eu.{MESH}/")
        status, asked = await client("POST", "/v1/identities", wanted | {"region": "us"})
        assert status == 200 and asked["uri"].startswith(f"spiffe://us.{MESH}/")
        status, answer = await client("POST", "/v1/identities", wanted | {"region": "xx"})
        assert (status, answer["error"]["field"]) == (400, "region")
        status, listed = await client("GET", "/v1/identities")
        assert listed["identities"][0]["elsewhere"] == {"us": False}
        status, answer = await client("PUT", "/v1/identities/acme/files", {"chain": "junk", "region": "us"})
        assert (status, answer["error"]["field"]) == (400, "certificate")
    finally:
        await client.session.close()
        await door.close()
    for bad in ("us", "U S=https://a"):
        with pytest.raises(Refused):
            regions_and_urls([bad])
