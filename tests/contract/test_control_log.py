"""One contract for every control log."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.servers import etcd
from tests.unit.control.world import MESH, Mesh, resigned

from keymesh.adapters.etcd_log import EtcdControlLog
from keymesh.adapters.memory_log import MemoryControlLog
from keymesh.adapters.sqlite_log import SqliteControlLog
from keymesh.control import build
from keymesh.control.entry import SignedEntry, leaf_of
from keymesh.control.log import Conflict, ControlLog, UnknownOutcome
from keymesh.control.state import NamespaceState
from keymesh.crypto.dsse import envelope_to_json
from keymesh.model.errors import Integrity, Refused, Unavailable

Open = Callable[[], ControlLog]


PREFIXES = (f"test-{n}/" for n in itertools.count())


@pytest.fixture(scope="module")
def etcd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[etcd.EtcdCluster]:
    with etcd.running(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture(params=["memory", "sqlite", "etcd"])
def open_log(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    if request.param == "memory":
        return lambda: MemoryControlLog(MESH)
    if request.param == "etcd":
        cluster: etcd.EtcdCluster = request.getfixturevalue("etcd_server")
        prefix = next(PREFIXES)
        return lambda: EtcdControlLog(cluster.client(timeout_s=10.0), mesh=MESH, prefix=prefix)
    return lambda: SqliteControlLog(tmp_path / "log.db", mesh=MESH)


@pytest.fixture
def mesh() -> Mesh:
    return Mesh(real=True)


async def filled(log: ControlLog, mesh: Mesh) -> list[SignedEntry]:
    """Genesis and a furnished tenant, one commit each."""
    mesh.furnished()
    entries = [mesh.mesh.head, *(s.head for s in mesh.history["acme"])]
    for n, signed in enumerate(entries, 1):
        assert await log.append([signed]) == n
    return entries


def labels(mesh: Mesh, tenant: str = "acme", **fields: Any) -> NamespaceState:
    return mesh.plan(tenant, "tenant.labels", {"labels": {}}, **fields)


async def test_what_is_appended_is_read_found_and_leads(open_log: Open, mesh: Mesh) -> None:
    log = open_log()
    assert await log.read(0) == (0, [])
    assert await log.heads() == (0, {})
    entries = await filled(log, mesh)
    index, rows = await log.read(0)
    assert (index, rows) == (len(entries), list(enumerate(entries, 1)))
    assert [s.envelope for _, s in rows] == [s.envelope for s in entries]
    assert await log.heads() == (index, {"mesh": leaf_of(entries[0]), "acme": leaf_of(entries[-1])})
    assert await log.find("acme", entries[3].entry.command_id) == (4, entries[3])
    assert await log.find("mesh", entries[3].entry.command_id) is None
    assert await log.find("acme", "nothing") is None
    assert await log.read(index) == (index, [])
    assert await log.read(index + 9) == (index, [])
    await log.close()


async def test_reads_are_in_pieces_of_whole_commits(open_log: Open, mesh: Mesh) -> None:
    log = open_log()
    mesh.furnished()
    entries = [s.head for s in mesh.history["acme"]]
    await log.append([mesh.mesh.head])
    await log.append(entries[:3])
    await log.append(entries[3:])
    for limit in (1, 2, 3, 100):
        seen: list[tuple[int, SignedEntry]] = []
        while True:
            index, rows = await log.read(seen[-1][0] if seen else 0, limit)
            seen += rows
            if not rows or rows[-1][0] == index:
                break
        assert seen == [(1, mesh.mesh.head), *((2, e) for e in entries[:3]), *((3, e) for e in entries[3:])]
    await log.close()


async def test_entries_of_one_commit_are_ordered_by_namespace_and_seq(open_log: Open, mesh: Mesh) -> None:
    log = open_log()
    await log.append([mesh.mesh.head])
    mesh.tenant("zeta")
    mesh.tenant("acme")
    mesh.service("zeta")
    group = [*(s.head for s in mesh.history["zeta"]), *(s.head for s in mesh.history["acme"])]
    assert await log.append(group) == 2
    _, rows = await log.read(1)
    assert [(s.entry.namespace, s.entry.seq) for _, s in rows] == [("acme", 1), ("zeta", 1), ("zeta", 2)]
    await log.close()


async def test_the_compare(open_log: Open, mesh: Mesh) -> None:
    log = open_log()
    entries = await filled(log, mesh)
    before = await log.read(0)
    good = labels(mesh)
    stale = build.sign_entry(msgspec.structs.replace(entries[-1].entry, command_id="other"), mesh.registry)
    for head in (
        entries[-1],
        stale,
        resigned(good, mesh.registry, prev="00" * 32).head,
        resigned(good, mesh.registry, seq=good.head.entry.seq + 1).head,
        resigned(good, mesh.registry, mesh_seq=0).head,
        resigned(good, mesh.registry, mesh_seq=2).head,
        resigned(good, mesh.registry, epoch=0).head,
        resigned(good, mesh.registry, command_id=entries[2].entry.command_id).head,
    ):
        with pytest.raises(Conflict):
            await log.append([head])
    assert await log.read(0) == before
    assert await log.append([good.head]) == len(entries) + 1
    await log.close()


async def test_a_signer_just_removed_cannot_append(open_log: Open, mesh: Mesh) -> None:
    log = open_log()
    entries = await filled(log, mesh)
    late = labels(mesh)
    await log.append([mesh.do("mesh", "region.rotate-ivk", {"region": "us-east", "generation": 2}).head])
    with pytest.raises(Conflict):
        await log.append([late.head])
    again = labels(mesh)
    assert again.head.entry.mesh_seq == 2
    assert await log.append([again.head]) == len(entries) + 2
    await log.close()


async def test_a_group_is_all_or_nothing(open_log: Open, mesh: Mesh) -> None:
    log = open_log()
    await filled(log, mesh)
    before = (await log.read(0), await log.heads())
    first = labels(mesh)
    broken = resigned(labels(mesh, held=first), mesh.registry, prev="00" * 32).head
    with pytest.raises(Conflict):
        await log.append([first.head, broken])
    assert (await log.read(0), await log.heads()) == before
    assert await log.find("acme", first.head.entry.command_id) is None
    await log.close()


async def test_limits_and_what_no_log_takes(open_log: Open, mesh: Mesh) -> None:
    log = open_log()
    await filled(log, mesh)
    chain, held = [], mesh.states["acme"]
    for _ in range(33):
        held = labels(mesh, held=held)
        chain.append(held.head)
    with pytest.raises(Refused):
        await log.append([])
    with pytest.raises(Refused):
        await log.append(chain)
    big = {f"k{n}": "x" * 250 for n in range(64)}
    heavy, held = [], mesh.states["acme"]
    for _ in range(32):
        body = msgspec.structs.replace(held.head.entry.body, args={"labels": big, "pad": "y" * 30_000})
        made = resigned(labels(mesh, held=held), mesh.registry, body=body)
        heavy.append(made.head)
        held = made
    with pytest.raises(Refused):
        await log.append(heavy)
    one = labels(mesh)
    with pytest.raises(Refused):
        await log.append(
            [one.head, resigned(labels(mesh, held=one), mesh.registry, command_id=one.head.entry.command_id).head]
        )
    foreign = Mesh(real=True, name="m2")
    with pytest.raises(Integrity):
        await log.append([foreign.mesh.head])
    later = msgspec.structs.replace(one.head.entry, seq=one.head.entry.seq)
    forged = SignedEntry(
        entry=msgspec.structs.replace(later, actor="x"), hash=one.head.hash, envelope=one.head.envelope
    )
    with pytest.raises(Integrity):
        await log.append([forged])
    assert await log.append(chain[:32]) == len(mesh.history["acme"]) + 2
    await log.close()


async def test_writers_that_race_for_one_place_have_one_winner(open_log: Open, mesh: Mesh) -> None:
    log = open_log()
    await filled(log, mesh)
    rivals = [labels(mesh).head for _ in range(8)]
    results = await asyncio.gather(*(log.append([r]) for r in rivals), return_exceptions=True)
    assert sorted(type(r).__name__ for r in results) == ["Conflict"] * 7 + ["int"]
    rows = (await log.read(0))[1]
    assert [s for s in rivals if s in [r for _, r in rows]] == [rows[-1][1]]
    await log.close()


async def test_other_namespaces_do_not_wait_for_each_other(open_log: Open, mesh: Mesh) -> None:
    log = open_log()
    await log.append([mesh.mesh.head])
    heads = [mesh.tenant(f"t{n}").head for n in range(6)]
    results = await asyncio.gather(*(log.append([h]) for h in heads))
    assert sorted(results) == list(range(2, 8))
    await log.close()


# --- SQLite alone ----------------------------------------------------------------------------------------------------


def db(path: Path) -> contextlib.closing[sqlite3.Connection]:
    return contextlib.closing(sqlite3.connect(path, isolation_level=None))


async def sqlite_filled(path: Path, mesh: Mesh) -> list[SignedEntry]:
    log = SqliteControlLog(path, mesh=MESH)
    entries = await filled(log, mesh)
    await log.close()
    return entries


async def test_a_reopened_log_is_the_same_and_only_its_owner_reads_it(tmp_path: Path, mesh: Mesh) -> None:
    path = tmp_path / "log.db"
    entries = await sqlite_filled(path, mesh)
    assert path.stat().st_mode & 0o777 == 0o600
    log = SqliteControlLog(path, mesh=MESH)
    assert (await log.read(0))[1] == list(enumerate(entries, 1))
    assert await log.append([labels(mesh).head]) == len(entries) + 1
    await log.close()


async def test_two_openings_see_each_other_at_once(tmp_path: Path, mesh: Mesh) -> None:
    one = SqliteControlLog(tmp_path / "log.db", mesh=MESH)
    await filled(one, mesh)
    two = SqliteControlLog(tmp_path / "log.db", mesh=MESH)
    left, right = labels(mesh), labels(mesh)
    index = await one.append([left.head])
    assert (await two.read(0))[0] == index
    with pytest.raises(Conflict):
        await two.append([right.head])
    await one.close()
    await two.close()


async def test_what_was_acknowledged_survives_a_connection_that_is_never_closed(tmp_path: Path, mesh: Mesh) -> None:
    path = tmp_path / "log.db"
    log = SqliteControlLog(path, mesh=MESH)
    entries = await filled(log, mesh)
    copy = tmp_path / "copy.db"
    for suffix in ("", "-wal"):  # what a crash leaves, without a checkpoint
        source = path.with_name(path.name + suffix)
        copy.with_name(copy.name + suffix).write_bytes(source.read_bytes())
    again = SqliteControlLog(copy, mesh=MESH)
    assert (await again.read(0))[1] == list(enumerate(entries, 1))
    await again.close()
    await log.close()


async def test_the_log_of_another_mesh_is_refused_at_open(tmp_path: Path, mesh: Mesh) -> None:
    await sqlite_filled(tmp_path / "log.db", mesh)
    with pytest.raises(Integrity) as caught:
        SqliteControlLog(tmp_path / "log.db", mesh="m2")
    assert caught.value.code == "foreign-mesh"


TAMPERING = {
    "an entry gone": "DELETE FROM entries WHERE idx = 3",
    "the newest gone": "DELETE FROM entries WHERE idx = (SELECT MAX(idx) FROM entries)",
    "a place renamed": "UPDATE entries SET seq = 99 WHERE idx = 3",
    "an index moved": "UPDATE entries SET idx = 99 WHERE idx = 3",
    "a head moved on": "UPDATE heads SET leaf = CAST(replace(leaf, '\"seq\":', '\"seq\":1') AS BLOB)"
    " WHERE namespace = 'acme'",
    "a head gone": "DELETE FROM heads WHERE namespace = 'mesh'",
    "a command gone": "DELETE FROM cmd WHERE idx = 3",
    "a command moved": "UPDATE cmd SET seq = 1 WHERE idx = 4",
    "another format": "UPDATE meta SET value = '9' WHERE name = 'format'",
}


@pytest.mark.parametrize("what", TAMPERING)
async def test_tampering_is_found_at_open(tmp_path: Path, mesh: Mesh, what: str) -> None:
    path = tmp_path / "log.db"
    await sqlite_filled(path, mesh)
    with db(path) as raw:
        assert raw.execute(TAMPERING[what]).rowcount == 1
    with pytest.raises((Integrity, Refused)):
        SqliteControlLog(path, mesh=MESH)


async def test_an_altered_or_forked_entry_is_found_at_open(tmp_path: Path, mesh: Mesh) -> None:
    path = tmp_path / "log.db"
    entries = await sqlite_filled(path, mesh)
    other = build.sign_entry(msgspec.structs.replace(entries[2].entry, actor="mallory"), mesh.registry)
    for raw_entry in (envelope_to_json(other.envelope), envelope_to_json(entries[3].envelope), b"{}", b"\xff"):
        with db(path) as raw:
            raw.execute("UPDATE entries SET envelope = ? WHERE idx = 3", (raw_entry,))
        with pytest.raises(Integrity) as caught:
            SqliteControlLog(path, mesh=MESH)
        assert caught.value.code == "broken-log"


@pytest.mark.parametrize("junk", [b"not a database at all, but long enough to look like one" * 40, b"\0" * 8_192])
def test_a_file_that_is_no_log(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "log.db"
    path.write_bytes(junk)
    with pytest.raises((Integrity, Unavailable)):
        SqliteControlLog(path, mesh=MESH)


def test_a_place_that_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "no" / "log.db", tmp_path):
        with pytest.raises(Unavailable):
            SqliteControlLog(path, mesh=MESH)


async def test_a_full_disk_refuses_and_recovers_without_a_restart(tmp_path: Path, mesh: Mesh) -> None:
    log = SqliteControlLog(tmp_path / "log.db", mesh=MESH)
    entries = await filled(log, mesh)
    assert log._db is not None
    pages = log._db.execute("PRAGMA page_count").fetchone()[0]
    log._db.execute(f"PRAGMA max_page_count = {pages}")
    held, heads = mesh.states["acme"], []
    for _ in range(32):
        held = labels(mesh, held=held)
        heads.append(held.head)
    with pytest.raises(Unavailable) as caught:
        await log.append(heads)
    assert caught.value.code == "disk-full"
    assert (await log.read(0))[0] == len(entries), "reads go on"
    log._db.execute("PRAGMA max_page_count = 1000000")
    assert await log.append(heads) == len(entries) + 1
    await log.close()


async def test_a_writer_that_holds_the_file_makes_others_wait_or_leave(tmp_path: Path, mesh: Mesh) -> None:
    path = tmp_path / "log.db"
    log = SqliteControlLog(path, mesh=MESH)
    entries = await filled(log, mesh)
    assert log._db is not None
    log._db.execute("PRAGMA busy_timeout = 50")
    with db(path) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable):
            await log.append([labels(mesh).head])
        assert (await log.read(0))[0] == len(entries), "readers do not wait"
        other.execute("ROLLBACK")
    assert await log.append([labels(mesh).head]) == len(entries) + 1
    await log.close()


async def test_a_commit_with_an_open_end_is_unknown_and_then_found_out(tmp_path: Path, mesh: Mesh) -> None:
    path = tmp_path / "log.db"
    log = SqliteControlLog(path, mesh=MESH)
    entries = await filled(log, mesh)
    assert log._db is not None
    failing = _CommitFails(log._db)
    log._db = failing  # type: ignore[assignment]
    head = labels(mesh).head
    with pytest.raises(UnknownOutcome):
        await log.append([head])
    found = await log.find("acme", head.entry.command_id)
    assert found == (len(entries) + 1, head), "it was committed after all"
    await log.close()


class _CommitFails:
    """A connection whose COMMIT is carried out and then answered by an I/O error."""

    def __init__(self, real: sqlite3.Connection) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def execute(self, sql: str, *args: Any) -> Any:
        result = self._real.execute(sql, *args)
        if sql == "COMMIT":
            failure = sqlite3.OperationalError("disk I/O error")
            failure.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise failure
        return result
