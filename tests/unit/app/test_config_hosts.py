"""The ceremony for hosts of their own: what each directory holds, what its configuration says, what checks find."""

from __future__ import annotations

import shutil
import time
import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.app.founded import TIMING
from tests.unit.app.spread import PLAN, REGIONS, copy_of_hosts

from keymesh.adapters import key_files, pki
from keymesh.adapters.files import write_file
from keymesh.adapters.http_client import PeerClient
from keymesh.adapters.sqlite_log import SqliteControlLog
from keymesh.app import cli
from keymesh.app.config import CoreConfig, EdgeConfig, RegistryConfig
from keymesh.app.config_faults import BadConfig
from keymesh.app.config_file import load_config
from keymesh.app.config_identity import load_checked, observe_identity
from keymesh.app.config_init import init_hosts, parse_hosts, spread_plan
from keymesh.app.config_parts import Listen
from keymesh.app.config_paths import resolve_paths
from keymesh.app.config_shape import expected, shaped
from keymesh.app.config_toml import to_toml
from keymesh.app.layout import Layout, load_plan
from keymesh.app.peer_link import PeerLink
from keymesh.model.errors import Refused, Unavailable
from keymesh.model.ids import MeshName
from keymesh.model.time import Instant


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    return copy_of_hosts(tmp_path / "mesh")


def names(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


# --- the ceremony ----------------------------------------------------------------------------------------------------

TRUST = {"ca.pem", "trust.json"}


def test_each_directory_holds_what_its_role_needs_and_nothing_else(hosts: Path) -> None:
    assert {path.name for path in hosts.iterdir()} == {
        "admin",
        "ceremony",
        "customer-kms",
        "registry",
        *(f"{role}-{region}" for role in ("core", "edge") for region in REGIONS),
    }
    own = {"tls.pem", "signing.pem"}
    assert names(hosts / "registry") == {"registry.toml", *own, *TRUST, "mesh-ca.pem", "data/log.db"}
    for region in REGIONS:
        assert names(hosts / f"core-{region}") == {"core.toml", *own, *TRUST, "region-ca.pem"}
        assert names(hosts / f"edge-{region}") == {"edge.toml", *TRUST}
    assert {"root-ca.pem", "root-1.pem", "root-2.pem", "root-3.pem"} < names(hosts / "ceremony")
    assert not any("root" in name or "region-ca" in name for name in names(hosts / "admin"))


def test_no_private_key_lies_in_two_roles_directories(hosts: Path) -> None:
    """But the CA that issues for both the Registry and the operator."""
    seen: dict[bytes, set[str]] = {}
    for path in hosts.rglob("*.pem"):
        if b"PRIVATE KEY" in path.read_bytes():
            seen.setdefault(path.read_bytes(), set()).add(str(path.relative_to(hosts)))
            assert path.stat().st_mode & 0o077 == 0, path
    shared = [paths for paths in seen.values() if len(paths) > 1]
    assert shared == [{"registry/mesh-ca.pem", "admin/pki/mesh-ca.pem"}]


def test_the_configurations_name_one_another(hosts: Path) -> None:
    registry = load_checked(hosts / "registry" / "registry.toml", "registry").config
    assert isinstance(registry, RegistryConfig)
    assert registry.listen == Listen(port=7600, host="0.0.0.0")
    core = load_checked(hosts / "core-us-west" / "core.toml", "core").config
    assert isinstance(core, CoreConfig)
    assert core.registries == ("https://r.example:7600",)
    assert core.peers == {"us-east": ("https://10.0.0.2:7601",)}
    assert core.listen == Listen(port=7602, host="127.0.0.1")
    assert core.timing.heartbeat_ms == TIMING.heartbeat_ms
    assert core.allow_unlocked_memory
    edge = load_checked(hosts / "edge-us-east" / "edge.toml", "edge").config
    assert isinstance(edge, EdgeConfig)
    assert edge.cores == ("https://10.0.0.2:7601",)
    plan = load_plan(Layout(hosts / "admin"))
    assert [plan.address(name) for name in ("registry", *REGIONS)] == [
        "https://r.example:7600",
        "https://10.0.0.2:7601",
        "https://127.0.0.1:7602",
    ]


def test_several_registries_share_what_the_ceremony_was_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["config", "init", "--out", str(tmp_path / "m"), "--regions", "eu", "--replicas", "3"]
    words += ["--etcd", "https://e1:2379, https://e2:2379", "--postgresql", "postgresql://db1/x,postgresql://db2/x"]
    words += ["--host", "registry=10.0.0.1,registry-r2=::2,eu=localhost", "--json"]
    assert cli.main(words) == 0
    said = msgspec.json.decode(capsys.readouterr().out)
    addresses = {"registry": "https://10.0.0.1:7600", "registry-r2": "https://[::2]:7603"}
    assert said["addresses"] == addresses | {"registry-r3": "https://127.0.0.1:7604", "eu": "https://localhost:7601"}
    for node, home in (("r1", "registry"), ("r2", "registry-r2"), ("r3", "registry-r3")):
        directory = tmp_path / "m" / home
        assert "genesis.json" in names(directory) and not any("log.db" in name for name in names(directory))
        assert cli.main(["config", "check", str(directory / "registry.toml"), "--json"]) == 1
        missing = {error["field"] for error in msgspec.json.decode(capsys.readouterr().out)["errors"]}
        assert "log.endpoints[1].cert_file" in missing and "database.endpoints[0].password_file" in missing
        for name in ("etcd-ca.pem", "etcd.pem", "postgresql-ca.pem", "postgresql.password"):
            (directory / name).write_bytes(b"x")
        registry = load_checked(directory / "registry.toml", "registry").config
        assert isinstance(registry, RegistryConfig) and registry.log and registry.database
        assert (registry.node, registry.log.kind, len(registry.log.endpoints)) == (node, "etcd", 2)
        assert [endpoint.url for endpoint in registry.database.endpoints] == [
            "postgresql://db1/x",
            "postgresql://db2/x",
        ]
        assert registry.listen.host == {"r1": "0.0.0.0", "r2": "::", "r3": "127.0.0.1"}[node]
    signing = [(tmp_path / "m" / home / "signing.pem").read_bytes() for home in ("registry", "registry-r2")]
    assert signing[0] != signing[1]
    core = load_checked(tmp_path / "m" / "core-eu" / "core.toml", "core").config
    assert isinstance(core, CoreConfig)
    assert core.registries == ("https://10.0.0.1:7600", "https://[::2]:7603", "https://127.0.0.1:7604")
    assert core.listen.host == "localhost"
    assert load_plan(Layout(tmp_path / "m" / "admin")).registry_addresses == core.registries


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["--replicas", "2"], "etcd"),
        (["--replicas", "0"], "replicas"),
        (["--replicas", "8", "--etcd", "https://e:2379"], "replicas"),
        (["--etcd", "http://e:2379"], "etcd"),
        (["--etcd", "https://e:2379,https://e:2379"], "etcd"),
        (["--postgresql", "mysql://x/y"], "postgresql"),
        (["--host", "registry-r2=h"], "host"),
    ],
)
def test_replicas_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], field: str
) -> None:
    assert cli.main(["config", "init", "--out", str(tmp_path / "m"), "--json", *words]) == 1
    assert msgspec.json.decode(capsys.readouterr().out)["error"]["field"] == field
    assert not (tmp_path / "m").exists()


def test_certificates_of_an_administrators_directory(hosts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The roles' are elsewhere."""
    assert cli.main(["pki", "show", "--dir", str(hosts / "admin"), "--json"]) == 0
    shown = msgspec.json.decode(capsys.readouterr().out)["certificates"]
    assert [one["role"] for one in shown] == ["root", "operator"]


def test_a_registry_without_a_database_migrates_none(hosts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["registry", "migrate", "--config", str(hosts / "registry" / "registry.toml")]) == 1
    assert "database" in capsys.readouterr().err


async def test_the_log_is_founded(hosts: Path) -> None:
    log = SqliteControlLog(hosts / "registry" / "data" / "log.db", mesh="dev")
    try:
        assert (await log.heads())[0] == 1
    finally:
        await log.close()


def test_a_ceremony_is_held_once(hosts: Path) -> None:
    before = (hosts / "registry" / "signing.pem").read_bytes()
    with pytest.raises(Refused, match="not empty"):
        init_hosts(hosts, PLAN)
    assert (hosts / "registry" / "signing.pem").read_bytes() == before


def test_an_administrators_directory_is_no_embedded_mesh(hosts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["up", "--dir", str(hosts / "admin")]) == 1
    assert "hosts of their own" in capsys.readouterr().err
    assert cli.main(["status", "--dir", str(hosts / "admin"), "--json"]) == 3, "asked, and not reached"
    assert '"reachable": false' in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", ["x=1", "registry=", "registry=a,registry=b", "registry=a/b", "us-east=a,mars=b", "a b", "h:/", "=h"]
)
def test_hosts_that_cannot_be(text: str) -> None:
    with pytest.raises(Refused) as bad:
        parse_hosts(text, REGIONS)
    assert bad.value.field == "host"


def test_hosts() -> None:
    assert set(parse_hosts(None, REGIONS).values()) == {"127.0.0.1"}
    assert set(parse_hosts("h.example", REGIONS).values()) == {"h.example"}
    some = parse_hosts("us-east=a, customer-kms=b", REGIONS)
    assert some == {"registry": "127.0.0.1", "customer-kms": "b", "us-east": "a", "us-west": "127.0.0.1"}
    for port in (0, 65_535):
        with pytest.raises(Refused) as bad:
            spread_plan(REGIONS, some, port, TIMING, allow_unlocked_memory=False)
        assert bad.value.field == "first-port"


def test_init_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["config", "init", "--out", str(tmp_path / "m"), "--regions", "eu", "--ttl", "10s", "--heartbeat", "500ms"]
    assert cli.main([*words, "--json"]) == 0
    said = msgspec.json.decode(capsys.readouterr().out)
    assert said["addresses"] == {"registry": "https://127.0.0.1:7600", "eu": "https://127.0.0.1:7601"}
    assert "core-eu" in said["directories"]
    for name in ("registry/registry", "core-eu/core", "edge-eu/edge"):
        assert cli.main(["config", "check", str(tmp_path / "m" / f"{name}.toml")]) == 0
    assert cli.main(words) == 1
    assert cli.main([*words[:3], str(tmp_path / "n"), "--regions", "a,a"]) == 1
    assert not (tmp_path / "n").exists(), "refused before anything is made"
    assert cli.main([*words[:3], str(tmp_path / "h"), "--regions", "a"]) == 0
    assert "ceremony" in capsys.readouterr().out


# --- written and read again ------------------------------------------------------------------------------------------

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)


class Inner(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    text: str
    number: int = 7
    key_file: str | None = None


class Outer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    words: tuple[str, ...]
    one: Inner
    many: tuple[Inner, ...] = ()
    named: dict[str, tuple[str, ...]] = {}
    flag: bool = False
    ratio: float = 0.5
    role: str = "outer"


INNERS = st.builds(Inner, text=WORDS, number=st.integers(-9, 9), key_file=st.none() | st.just("/base/x/k.pem"))


@given(
    st.builds(
        Outer,
        words=st.lists(WORDS, max_size=3).map(tuple),
        one=INNERS,
        many=st.lists(INNERS, max_size=2).map(tuple),
        named=st.dictionaries(WORDS, st.lists(WORDS, max_size=2).map(tuple), max_size=2),
        flag=st.booleans(),
        ratio=st.floats(0, 1),
    )
)
def test_what_is_written_reads_as_it_was(config: Outer) -> None:
    faults: list[str] = []
    text = to_toml(config, Path("/base"), comment="a\nb")
    plain = tomllib.loads(text)
    assert plain["role"] == "outer" and "/base" not in text
    read = shaped(resolve_paths(plain, Path("/base")), Outer, lambda field, reason: faults.append(f"{field} {reason}"))
    if not any("password" in fault for fault in faults):
        assert (read, faults) == (config, [])


class Limited(msgspec.Struct, frozen=True, kw_only=True):
    count: Annotated[int, msgspec.Meta(ge=1, le=3)] | None = None
    name: Annotated[str, msgspec.Meta(max_length=3)] = "a"


def test_limits_that_types_tell() -> None:
    found: dict[str, str] = {}
    assert shaped({"count": 4, "name": "secret"}, Limited, found.__setitem__) is None
    assert found == {"count": "expected a whole number <= 3", "name": "expected text of length <= 3"}
    assert shaped({"count": 3}, Limited, found.__setitem__) == Limited(count=3)
    assert shaped({"count": "x"}, Limited, found.__setitem__) is None
    assert found["count"] == "expected a whole number, got text"
    assert expected(Annotated[int, msgspec.Meta(ge=1)]) == "a whole number"


# --- files that do not belong together -------------------------------------------------------------------------------


def found_faults(path: Path, role: str) -> dict[str, str]:
    with pytest.raises(BadConfig) as bad:
        load_checked(path, role)
    assert all(fault.line is not None for fault in bad.value.faults), bad.value.faults
    return {fault.field: fault.reason for fault in bad.value.faults}


def test_anothers_certificate_and_key(hosts: Path) -> None:
    core = hosts / "core-us-east"
    for other in (hosts / "core-us-west", hosts / "registry"):
        shutil.copy(other / "tls.pem", core / "tls.pem")
        assert found_faults(core / "core.toml", "core") == {
            "identity.tls_file": "the certificate is not that of spiffe://us-east.dev/core/n1"
        }
    text = (hosts / "registry" / "registry.toml").read_text()
    (hosts / "registry" / "registry.toml").write_text(text.replace('mesh = "dev"', 'mesh = "dev"\nnode = "r2"'))
    assert (
        "spiffe://dev/registry/r2"
        in found_faults(hosts / "registry" / "registry.toml", "registry")["identity.tls_file"]
    )


def test_another_mesh(hosts: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    init_hosts(other, msgspec.structs.replace(PLAN, mesh="test"))
    for role, directory in (("core", "core-us-east"), ("registry", "registry"), ("edge", "edge-us-east")):
        for name in ("ca.pem", "trust.json"):
            shutil.copy(other / directory / name, hosts / directory / name)
        prefix = "" if role == "edge" else "identity."
        found = found_faults(hosts / directory / f"{role}.toml", role)
        assert found == {f"{prefix}ca_file": "is of another mesh", f"{prefix}trust_file": "is of another mesh"}
    shutil.copy(other / "core-us-west" / "region-ca.pem", hosts / "core-us-west" / "region-ca.pem")
    assert "not a CA of the mesh" in found_faults(hosts / "core-us-west" / "core.toml", "core")["identity.issuer_file"]


def test_a_certificate_of_another_root_with_the_same_name(hosts: Path, tmp_path: Path) -> None:
    """As after a second ceremony: all names are right and every handshake would fail."""
    init_hosts(tmp_path / "again", PLAN)
    shutil.copy(tmp_path / "again" / "core-us-east" / "tls.pem", hosts / "core-us-east" / "tls.pem")
    assert found_faults(hosts / "core-us-east" / "core.toml", "core") == {
        "identity.tls_file": "the certificate does not come from ca_file's root"
    }


def test_an_expired_certificate_counts_where_nobody_renews_it(hosts: Path) -> None:
    path = hosts / "core-us-east" / "core.toml"
    core = load_config(path, "core").config
    assert isinstance(core, CoreConfig)
    leaf = pki.parse_certificates(key_files.read_private(Path(core.identity.tls_file)))[0]
    end = pki.validity_ms(leaf)[1]
    alone = msgspec.structs.replace(core, identity=msgspec.structs.replace(core.identity, issuer_file=None))
    for config, now_ms, wanted in (
        (core, end + 1, {}),
        (alone, end - 1, {}),
        (alone, end, {"identity.tls_file": "the certificate has expired"}),
    ):
        found: dict[str, str] = {}
        observe_identity(config, found.__setitem__, now_ms=now_ms)
        assert found == wanted


def test_files_that_others_may_read_or_that_hold_something_else(hosts: Path) -> None:
    core = hosts / "core-us-east"
    (core / "tls.pem").chmod(0o644)
    (core / "signing.pem").write_bytes((core / "region-ca.pem").read_bytes())
    (core / "trust.json").write_bytes(b"{}")
    (core / "ca.pem").write_bytes(b"\xff")
    (core / "region-ca.pem").write_bytes((core / "tls.pem").read_bytes())
    found = found_faults(core / "core.toml", "core")
    assert set(found) == {f"identity.{name}_file" for name in ("tls", "signing_key", "trust", "ca", "issuer")}
    assert "its mode must be 0600" in found["identity.tls_file"]
    assert "Ed25519" in found["identity.signing_key_file"]
    edge = hosts / "edge-us-east"
    (edge / "trust.json").write_bytes(b"[]")
    (edge / "ca.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\n????\n-----END CERTIFICATE-----\n")
    assert set(found_faults(edge / "edge.toml", "edge")) == {"trust_file", "ca_file"}


def test_a_file_that_goes_while_it_is_looked_at(hosts: Path) -> None:
    core = load_config(hosts / "core-us-east" / "core.toml", "core").config
    for name in ("ca.pem", "trust.json", "tls.pem", "signing.pem", "region-ca.pem"):
        (hosts / "core-us-east" / name).unlink()
    found: dict[str, str] = {}
    observe_identity(core, found.__setitem__, now_ms=0)
    assert set(found) == {f"identity.{name}_file" for name in ("tls", "signing_key", "trust", "ca", "issuer")}
    assert found["identity.ca_file"] == "cannot be read: FileNotFoundError"


def test_a_chain_that_is_not_one(hosts: Path) -> None:
    core, west = hosts / "core-us-east", hosts / "core-us-west"
    leaf = key_files.read_private(core / "tls.pem").split(b"-----BEGIN CERTIFICATE-----")
    issuer = (west / "region-ca.pem").read_bytes().partition(b"-----BEGIN CERTIFICATE-----")[2]
    write_file(core / "tls.pem", b"-----BEGIN CERTIFICATE-----".join([leaf[0], leaf[1], issuer]))
    assert "ca_file's root" in found_faults(core / "core.toml", "core")["identity.tls_file"]


def test_an_identity_that_is_renewed_elsewhere_is_accepted(hosts: Path) -> None:
    core = hosts / "core-us-east"
    authority = key_files.load_authority(core / "region-ca.pem", mesh=MeshName("dev"))
    key = pki.new_tls_key()
    old = pki.parse_certificates(key_files.read_private(core / "tls.pem"))[0]
    now = Instant(time.time_ns() // 1_000_000)
    identity = pki.identity_of(old, MeshName("dev"))
    leaf = pki.issue_leaf(authority, identity=identity, public_key=key.public_key(), now=now)
    key_files.write_identity(core / "tls.pem", key, [leaf, authority.certificate])
    (core / "region-ca.pem").unlink()
    (core / "core.toml").write_text((core / "core.toml").read_text().replace('issuer_file = "region-ca.pem"\n', ""))
    load_checked(core / "core.toml", "core")


# --- several addresses of one region ---------------------------------------------------------------------------------


class Address(PeerClient):
    """One address that answers ``outcomes`` in turn, the last for ever."""

    def __init__(self, *outcomes: str) -> None:
        self.outcomes = list(outcomes)
        self.asked = 0
        self.closed = False

    async def request(self, method: str, path: str, body: bytes | None = None, **more: Any) -> tuple[int, bytes]:
        self.asked += 1
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if outcome != "ok":
            raise Refused(outcome, "no") if outcome == "denied" else Unavailable(outcome, "no")
        return 200, f"{method} {path} {body!r} {more}".encode()

    async def close(self) -> None:
        self.closed = True


async def test_an_address_that_is_not_reached_gives_way_and_the_next_is_kept_to() -> None:
    first, second, third = Address("unreachable"), Address("ok", "unreachable", "ok"), Address("ok")
    link = PeerLink([first, second, third])
    assert (await link.request("GET", "/x", timeout_s=5))[1] == b"GET /x None {'timeout_s': 5}"
    assert (first.asked, second.asked, third.asked) == (1, 1, 0)
    await link.request("GET", "/x")
    assert (first.asked, second.asked, third.asked) == (1, 2, 1)
    await link.request("GET", "/x")
    assert (first.asked, second.asked, third.asked) == (1, 2, 2)
    await link.close()
    assert first.closed and second.closed and third.closed


@pytest.mark.parametrize("outcome", ["no-answer", "timeout", "denied"])
async def test_what_may_have_been_done_is_not_sent_elsewhere(outcome: str) -> None:
    first, second = Address(outcome), Address("ok")
    with pytest.raises((Unavailable, Refused)) as failed:
        await PeerLink([first, second]).request("PUT", "/x", b"y")
    assert (failed.value.code, second.asked) == (outcome, 0)


async def test_no_address_is_reached() -> None:
    addresses = [Address("unreachable"), Address("unreachable")]
    link = PeerLink(addresses)
    for tries in (1, 2):
        with pytest.raises(Unavailable):
            await link.request("GET", "/x")
        assert [address.asked for address in addresses] == [tries, tries]


def test_a_socket_that_nobody_serves_is_unavailable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").write_bytes(b"x")
    words = ["--tenant", "acme", "--service", "files", "--socket", str(tmp_path / "no.sock")]
    assert cli.main(["seal", str(tmp_path / "a"), *words]) == 3
    assert "unreachable" in capsys.readouterr().err
    assert not (tmp_path / "a.sealed").exists()
