"""The Registry's sections ``log`` and ``database``: what they refuse, and what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.control.world import MESH, Mesh

from keymesh.adapters import pki
from keymesh.adapters.memory_log import MemoryControlLog
from keymesh.adapters.sqlite_log import SqliteControlLog
from keymesh.app.config_database import DatabaseConfig, database_urls
from keymesh.app.config_endpoint import Endpoint
from keymesh.app.config_log import LogConfig
from keymesh.app.control_logs import check_founded, found, is_shared, make_log
from keymesh.control.entry import SignedEntry
from keymesh.control.log import Conflict, UnknownOutcome
from keymesh.model.errors import Integrity, Refused, Unavailable
from keymesh.model.ids import MeshName
from keymesh.model.time import Instant


def member(**changes: Any) -> Endpoint:
    given = {"url": "https://10.0.0.1:2379", "ca_file": "ca.pem", "cert_file": "client.pem", **changes}
    return Endpoint(**given)


def server(**changes: Any) -> Endpoint:
    given = {"url": "postgresql://db:5432/keymesh", "ca_file": "ca.pem", "username": "u", "password_file": "p"}
    return Endpoint(**{**given, **changes})


def refused_field(config: LogConfig | DatabaseConfig) -> str:
    with pytest.raises(Refused) as refused:
        config.check()
    assert refused.value.code == "bad-field"
    return str(refused.value.field)


# --- log -------------------------------------------------------------------------------------------------------------


def test_a_log_section_that_is_well_formed() -> None:
    LogConfig().check()
    LogConfig(kind="etcd", endpoints=(member(), member(url="https://[::1]:2379"))).check()
    LogConfig(kind="etcd", endpoints=(member(),), cluster_id="cdf818194e3a8c32", prefix="a/b/").check()
    assert [is_shared(c) for c in (None, LogConfig(), LogConfig(kind="etcd"))] == [False, False, True]


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("endpoints", {"endpoints": ()}),
        ("endpoints", {"endpoints": tuple(member(url=f"https://h:{n}") for n in range(1, 11))}),
        ("endpoints", {"kind": "sqlite"}),
        ("endpoints[0].url", {"endpoints": (member(url="http://10.0.0.1:2379"),)}),
        ("endpoints[0].url", {"endpoints": (member(url="https://10.0.0.1"),)}),
        ("endpoints[0].url", {"endpoints": (member(url="https://10.0.0.1:0"),)}),
        ("endpoints[0].url", {"endpoints": (member(url="https://10.0.0.1:70000"),)}),
        ("endpoints[0].url", {"endpoints": (member(url="https://u:p@10.0.0.1:2379"),)}),
        ("endpoints[0].ca_file", {"endpoints": (member(ca_file=None),)}),
        ("endpoints[0].cert_file", {"endpoints": (member(cert_file=None),)}),
        ("endpoints[0].username", {"endpoints": (member(username="root"),)}),
        ("endpoints[0].username", {"endpoints": (member(password_file="p"),)}),
        ("endpoints[1].url", {"endpoints": (member(), member(url="https://10.0.0.1:2379/"))}),
        ("prefix", {"prefix": "keymesh"}),
        ("prefix", {"prefix": "/"}),
        ("prefix", {"prefix": "x y/"}),
        ("prefix", {"prefix": "k" * 256 + "/"}),
        ("cluster_id", {"cluster_id": "xyz"}),
        ("cluster_id", {"cluster_id": "0" * 17}),
        ("connections", {"connections": 0}),
        ("timeout_ms", {"timeout_ms": 99}),
        ("follow_ms", {"follow_ms": 5_001}),
    ],
)
def test_a_log_section_that_is_not(field: str, changes: dict[str, Any]) -> None:
    good: dict[str, Any] = {"kind": "etcd", "endpoints": (member(),)}
    assert refused_field(LogConfig(**{**good, **changes})) == field


def test_an_unknown_kind_is_no_section() -> None:
    for bad in ({"kind": "consul"}, {"kind": "etcd", "password": "x"}, {"kind": "etcd", "endpoints": [{"uri": "x"}]}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(bad, LogConfig)


async def test_a_log_is_made_of_its_section(tmp_path: Path) -> None:
    root = pki.create_root(MeshName("m"), now=Instant(0))
    pem = tmp_path / "ca.pem"
    pem.write_bytes(pki.certificates_pem([root.certificate]))
    for config in (None, LogConfig()):
        log = make_log(config, mesh="m", directory=tmp_path)
        assert isinstance(log, SqliteControlLog)
        await log.close()
    etcd = LogConfig(kind="etcd", endpoints=(member(ca_file=str(pem), cert_file=str(tmp_path / "none.pem")),))
    with pytest.raises(Unavailable):
        make_log(etcd, mesh="m", directory=tmp_path)
    for ca in (tmp_path / "none.pem", tmp_path):
        with pytest.raises(Refused) as bad:
            make_log(
                LogConfig(kind="etcd", endpoints=(member(ca_file=str(ca), cert_file=str(pem)),)),
                mesh="m",
                directory=tmp_path,
            )
        assert bad.value.field == "log.endpoints[0].ca_file"
    with pytest.raises(Refused):
        make_log(
            LogConfig(kind="etcd", endpoints=(member(ca_file=str(pem), cert_file=str(pem)),)),
            mesh="m",
            directory=tmp_path,
        )


# --- founding --------------------------------------------------------------------------------------------------------


class Rival(MemoryControlLog):
    """Somebody else is always a moment earlier, or the answer is lost."""

    def __init__(self, first: SignedEntry | None) -> None:
        super().__init__(MESH)
        self.first = first

    async def append(self, entries: Sequence[SignedEntry]) -> int:
        await super().append((self.first,) if self.first is not None else entries)
        if self.first is None:
            raise UnknownOutcome("unknown-outcome", "no answer")
        raise Conflict("conflict", "somebody was first")


async def test_a_log_is_founded_once_however_often_it_is_asked_for() -> None:
    genesis = Mesh(real=True).mesh.head
    log = MemoryControlLog(MESH)
    with pytest.raises(Refused) as empty:
        await check_founded(log, genesis.hash)
    assert empty.value.code == "not-founded"
    assert await found(log, genesis)
    assert not await found(log, genesis)
    await check_founded(log, genesis.hash)


async def test_a_log_of_another_mesh_of_that_name_is_refused_and_left_alone() -> None:
    mine, other = Mesh(real=True), Mesh(real=True, voters=("us-east",))
    log = MemoryControlLog(MESH)
    await found(log, other.mesh.head)
    for again in (found(log, mine.mesh.head), check_founded(log, mine.mesh.head.hash)):
        with pytest.raises(Integrity) as foreign:
            await again
        assert foreign.value.code == "foreign-mesh"
    assert (await log.read(0))[0] == 1


async def test_two_who_found_at_once_found_one_mesh() -> None:
    mine, other = Mesh(real=True).mesh.head, Mesh(real=True, voters=("us-east",)).mesh.head
    assert not await found(Rival(mine), mine)
    with pytest.raises(Integrity):
        await found(Rival(other), mine)


async def test_a_founding_without_an_answer_is_founded_again() -> None:
    genesis = Mesh(real=True).mesh.head
    log = Rival(None)
    with pytest.raises(Unavailable):
        await found(log, genesis)
    assert not await found(log, genesis)


# --- database --------------------------------------------------------------------------------------------------------


def test_a_database_section_that_is_well_formed() -> None:
    DatabaseConfig().check()
    DatabaseConfig(kind="postgresql", endpoints=(server(), server(url="postgresql://[::1]/keymesh"))).check()
    DatabaseConfig(kind="postgresql", endpoints=(server(password_file=None, cert_file="c.pem"),)).check()


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("endpoints", {"endpoints": ()}),
        ("endpoints", {"kind": "sqlite"}),
        ("endpoints", {"endpoints": tuple(server(url=f"postgresql://h:{n}/d") for n in range(1, 18))}),
        ("endpoints[0].url", {"endpoints": (server(url="mysql://db/keymesh"),)}),
        ("endpoints[0].url", {"endpoints": (server(url="postgresql://db:5432/"),)}),
        ("endpoints[0].url", {"endpoints": (server(url="postgresql:///keymesh"),)}),
        ("endpoints[0].url", {"endpoints": (server(url="postgresql://u@db/keymesh"),)}),
        ("endpoints[0].url", {"endpoints": (server(url="postgresql://u:secret@db/keymesh"),)}),
        ("endpoints[0].url", {"endpoints": (server(url="postgresql://db/keymesh?sslmode=disable"),)}),
        ("endpoints[0].url", {"endpoints": (server(url="postgresql://db:99999/keymesh"),)}),
        ("endpoints[0].url", {"endpoints": (server(url="postgresql://[db/keymesh"),)}),
        ("endpoints[0].ca_file", {"endpoints": (server(ca_file=None),)}),
        ("endpoints[0].username", {"endpoints": (server(username=None),)}),
        ("endpoints[0].password_file", {"endpoints": (server(password_file=None),)}),
        ("endpoints[1].url", {"endpoints": (server(), server())}),
    ],
)
def test_a_database_section_that_is_not(field: str, changes: dict[str, Any]) -> None:
    good: dict[str, Any] = {"kind": "postgresql", "endpoints": (server(),)}
    assert refused_field(DatabaseConfig(**{**good, **changes})) == field


def test_a_database_is_asked_by_urls(tmp_path: Path) -> None:
    for config in (None, DatabaseConfig()):
        assert database_urls(config, tmp_path) == (f"sqlite:///{tmp_path / 'projection.db'}",)
    secret = tmp_path / "password"
    secret.write_text("a b/c@d\n")
    secret.chmod(0o600)
    config = DatabaseConfig(
        kind="postgresql",
        endpoints=(
            server(password_file=str(secret), username="key mesh"),
            server(url="postgresql://[::1]/k", password_file=None, cert_file="c.pem"),
            server(url="postgresql://db:1/k", password_file=None, cert_file="c.pem", key_file="k.pem"),
        ),
    )
    assert database_urls(config, tmp_path) == (
        "postgresql://key%20mesh:a%20b%2Fc%40d@db:5432/keymesh?sslrootcert=ca.pem",
        "postgresql://u@[::1]:5432/k?sslrootcert=ca.pem&sslcert=c.pem&sslkey=c.pem",
        "postgresql://u@db:1/k?sslrootcert=ca.pem&sslcert=c.pem&sslkey=k.pem",
    )


@pytest.mark.parametrize(
    ("content", "mode"), [(b"secret", 0o644), (b"", 0o600), (b"\n", 0o600), (b"\xff", 0o600), (b"x" * 1_025, 0o600)]
)
def test_a_password_that_others_may_read_or_that_is_none(tmp_path: Path, content: bytes, mode: int) -> None:
    secret = tmp_path / "password"
    secret.write_bytes(content)
    secret.chmod(mode)
    for path in (secret, tmp_path / "absent"):
        with pytest.raises(Refused) as bad:
            database_urls(DatabaseConfig(kind="postgresql", endpoints=(server(password_file=str(path)),)), tmp_path)
        assert bad.value.field == "endpoints[0].password_file"
        assert "secret" not in bad.value.message
