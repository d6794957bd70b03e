"""What a restore writes: the new log, and of the lost one's records what is about exactly an entry of the new one."""

from __future__ import annotations

import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from tests.unit.control.world import MESH, Mesh
from tests.unit.registry.test_restore import backed_up, restored

from keymesh.adapters.sqlite_log import SqliteControlLog
from keymesh.adapters.sqlite_records import SqliteRecords
from keymesh.app.cli_restore import comes_up
from keymesh.app.config import RegistryConfig
from keymesh.app.config_database import DatabaseConfig
from keymesh.app.config_endpoint import Endpoint
from keymesh.app.config_log import LogConfig
from keymesh.app.config_parts import IdentityFiles, Listen
from keymesh.app.layout import Layout
from keymesh.app.restore_write import check_lost, check_replicas, forget_projection, prefix_of, write
from keymesh.control.standby import StandbyLie, lie_name
from keymesh.model.errors import Refused, Unavailable
from keymesh.orbital.wire import Codec
from keymesh.registry.records import (
    RECORD_TYPES,
    CommitRecord,
    EvidenceRecord,
    HoldersRecord,
    KillRecord,
    ParkedRecord,
    WaitRecord,
    commit_name,
    evidence_name,
    holders_name,
    kill_name,
    parked_name,
    wait_name,
)
from keymesh.registry.restore import Base

LOST = "0" * 64
CODEC = Codec(RECORD_TYPES)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path)
    made.registry.mkdir(parents=True)
    return made


@pytest.fixture(scope="module")
def base() -> Base:
    mesh = Mesh(real=True)
    mesh.furnished()
    return restored(mesh, backed_up(mesh, len(mesh.history["acme"])))


def acme(base: Base) -> list[Any]:
    return [signed for group in base.commits for signed in group if signed.entry.namespace == "acme"]


def kill(command_id: str, entry_hash: str, certificate: Any) -> tuple[str, KillRecord]:
    made = KillRecord(
        command_id=command_id, correlation_id="c", namespace="acme", seq=2, entry_hash=entry_hash, scope="tenant:acme",
        action="suspend", status="revoking", mesh_seq=9, holders=("node:us-east/n1",), certificate=certificate,
    )  # fmt: skip
    return kill_name(command_id, "acme"), made


def commit(seq: int, entry_hash: str) -> tuple[str, CommitRecord]:
    made = CommitRecord(namespace="acme", seq=seq, entry_hash=entry_hash, countersignatures=(), committed_at=5)
    return commit_name("acme", seq), made


def wait(entry_hash: str) -> tuple[str, WaitRecord]:
    return wait_name("acme"), WaitRecord(namespace="acme", seq=3, waited_ms=7, entry_hash=entry_hash)


def word(entry_hash: str) -> tuple[str, EvidenceRecord]:
    made = EvidenceRecord(
        command_id="s1", namespace="acme", node="n", ack=None, received_at=1, edge_leases_end_in_ms=0,
        open_edge_leases=0, entry_hash=entry_hash,
    )  # fmt: skip
    return evidence_name("s1", "acme", "n"), made


def records_of(path: Path) -> dict[str, Any]:
    records = SqliteRecords(path, CODEC)
    try:
        return records.read_all()
    finally:
        records.close()


def lost_records(layout: Layout, *kept: tuple[str, Any]) -> None:
    records = SqliteRecords(layout.registry / "records.db", CODEC)
    records.write(kept)
    records.close()


async def entries_in(layout: Layout) -> int:
    log = SqliteControlLog(layout.registry / "log.db", mesh=MESH)
    try:
        return len((await log.read(0))[1])
    finally:
        await log.close()


def registry(layout: Layout, node: str = "r1", **changed: Any) -> RegistryConfig:
    files = IdentityFiles(tls_file="t", signing_key_file="s", ca_file="c", trust_file="t")
    changed = {"data_dir": str(layout.registry_of(node)), **changed}
    return RegistryConfig(mesh=MESH, node=node, listen=Listen(port=1), identity=files, **changed)


async def written(layout: Layout, base: Base) -> str:
    """Under which name the lost records are kept."""
    done = await write([registry(layout)], base)
    assert done.log_prefix == ""
    return done.set_aside["r1"]


async def test_only_what_is_about_an_entry_of_the_new_log_is_taken_over(layout: Layout, base: Base) -> None:
    here = [signed.hash for signed in acme(base)]
    lie = StandbyLie(voter="us-west", blind="b", grant=None, earlier=None)
    holds = [commit(1, here[0]), kill("done", here[1], "sealed"), wait(here[2]), (lie_name("us-west"), lie)]
    lost = [
        commit(9, LOST),
        kill("lost", LOST, "sealed"),
        kill("open", here[1], None),
        word(here[1]),
        (
            holders_name("acme", "l2", 1),
            HoldersRecord(namespace="acme", key="l2", version=1, regions=("us-east",)),
        ),
        (parked_name("n", "acme"), ParkedRecord(node="n", namespace="acme", seq=2, reason="poison", at=1)),
    ]
    lost_records(layout, *holds, *lost)
    name = await written(layout, base)
    proofs = {commit_name(p.namespace, p.seq): p for p in base.proofs}
    assert records_of(layout.registry / "records.db") == dict(holds) | proofs
    assert name == f"records.db.before-epoch-{base.epoch}"
    assert records_of(layout.registry / name) == dict([*holds, *lost])
    assert await entries_in(layout) == sum(len(group) for group in base.commits)


async def test_a_wait_of_another_destruction_is_not_taken_over(layout: Layout, base: Base) -> None:
    lost_records(layout, wait(LOST))
    await written(layout, base)
    assert wait_name("acme") not in records_of(layout.registry / "records.db")


async def test_where_no_records_were_left_nothing_is_set_aside(layout: Layout, base: Base) -> None:
    assert await written(layout, base) == ""
    assert not list(layout.registry.glob("records.db.*"))


async def test_records_that_are_damaged_are_kept_and_not_believed(layout: Layout, base: Base) -> None:
    (layout.registry / "records.db").write_bytes(b"no database" * 500)
    name = await written(layout, base)
    assert (layout.registry / name).read_bytes() == b"no database" * 500
    assert set(records_of(layout.registry / "records.db")) == {commit_name(p.namespace, p.seq) for p in base.proofs}


DAMAGED = b"\0" * 4096 + b"what was a log" * 500


@pytest.mark.parametrize(
    ("step", "nth"), [("hardlink_to", 1), ("replace", 1), ("rename", 1), ("hardlink_to", 2), ("replace", 2)]
)
async def test_a_restore_that_stopped_loses_nothing_and_is_repeated(
    layout: Layout, base: Base, step: str, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, lost = commit(1, acme(base)[0].hash), word(LOST)
    lost_records(layout, held, lost)
    (layout.registry / "log.db").write_bytes(DAMAGED)
    (layout.registry / "log.db-wal").write_bytes(b"its newest pages")
    real, calls = getattr(Path, step), iter(range(1, 10))

    def stop(*args: Any) -> Any:
        if next(calls) == nth:
            raise Unavailable("storage", "stopped")
        return real(*args)

    with monkeypatch.context() as stopped:
        stopped.setattr(Path, step, stop)
        with pytest.raises(Unavailable):
            await written(layout, base)
    assert (layout.registry / "log.db").read_bytes() == DAMAGED
    await check_lost(registry(layout))
    await written(layout, base)
    assert held[0] in records_of(layout.registry / "records.db")
    assert lost[0] not in records_of(layout.registry / "records.db")
    aside = sorted(layout.registry.glob("records.db.before-epoch-*"))
    assert lost[0] in records_of(aside[0])
    kept = {path.read_bytes() for path in layout.registry.glob("log.db.before-epoch-*")}
    assert {DAMAGED, b"its newest pages"} <= kept
    assert await entries_in(layout) == sum(len(group) for group in base.commits)


async def test_a_log_that_cannot_be_looked_at_now_is_no_lost_one(layout: Layout, base: Base) -> None:
    await written(layout, base)
    path = layout.registry / "log.db"
    other = sqlite3.connect(path)
    try:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises((Unavailable, Refused)):
            await check_lost(registry(layout))
    finally:
        other.close()
    path.unlink()
    path.mkdir()
    with pytest.raises(Unavailable, match="move it away and keep it"):
        await check_lost(registry(layout))


async def test_a_log_that_is_there_is_not_restored_over(layout: Layout, base: Base) -> None:
    await check_lost(registry(layout))
    await written(layout, base)
    with pytest.raises(Refused, match="there is a log in"):
        await check_lost(registry(layout))


@pytest.mark.parametrize(
    ("before", "after"),
    [("keymesh/", "keymesh@7/"), ("keymesh@6/", "keymesh@7/"), ("a/b/", "a/b@7/"), ("x@y/", "x@y@7/")],
)
def test_the_new_log_lies_beside_the_lost_one(before: str, after: str) -> None:
    assert prefix_of(before, 7) == after
    assert not after.startswith(before)


def shared(*urls: str, prefix: str = "keymesh/") -> LogConfig:
    ends = tuple(Endpoint(url=url, ca_file="c", cert_file="c") for url in urls)
    return LogConfig(kind="etcd", endpoints=ends, prefix=prefix)


def test_replicas_share_one_log_and_nothing_else(layout: Layout) -> None:
    one, two = "https://a:1", "https://b:1"
    first = registry(layout, log=shared(one, two))
    check_replicas([registry(layout)])
    check_replicas([first, registry(layout, "r2", log=shared(two, one))])
    for other in (
        registry(layout, "r2"),
        registry(layout, "r2", log=shared(one)),
        registry(layout, "r2", log=shared(one, two, prefix="other/")),
        registry(layout, "r2", log=shared(one, two), data_dir=first.data_dir),
    ):
        with pytest.raises(Refused):
            check_replicas([first, other])


@pytest.mark.parametrize("mode", [0o600, 0o644], ids=["away", "no-way-in"])
def test_a_shared_projection_that_is_away_keeps_nobody_from_restoring(layout: Layout, mode: int) -> None:
    """It is found to be wrong when it is verified."""
    (layout.registry / "projection.db").write_bytes(b"of the lost history")
    (layout.registry / "password").write_text("secret")
    (layout.registry / "password").chmod(mode)
    with socket.socket() as taken:  # bound and not listening: nobody else's, and it refuses
        taken.bind(("127.0.0.1", 0))
        ends = Endpoint(
            url=f"postgresql://localhost:{taken.getsockname()[1]}/keymesh",
            username="keymesh",
            password_file=str(layout.registry / "password"),
        )
        forget_projection(registry(layout, database=DatabaseConfig(kind="postgresql", endpoints=(ends,))))
    assert not (layout.registry / "projection.db").exists()


async def test_a_registry_that_reads_on_is_told_from_one_that_serves() -> None:
    class Client:
        def __init__(self, late: bool) -> None:
            self.late = late

        async def until(self, check: Any, *, what: str, timeout_s: float) -> None:
            if self.late:
                raise Unavailable("timeout", f"{what} did not happen in {timeout_s} s")

    for late in (True, False):
        client: Any = Client(late)
        assert await comes_up(client) is not late
