"""The Registry's line: what it holds, how it goes on, and every way in which a store may not be what was written."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from tests.unit.app.backup_world import (
    NOW,
    OFFICER,
    STRANGER,
    World,
    forge,
    manifest_of,
    raw_backup,
    replace_object,
    signer_of,
)
from tests.unit.control.world import MESH

from keymesh.adapters.backup_directory import DirectoryStore
from keymesh.adapters.receipt_file import FileReceiptLog
from keymesh.app.backup_verify import check_at_least
from keymesh.control import backup_manifest as bm
from keymesh.control.backup_chunks import Item
from keymesh.control.entry import leaf_of
from keymesh.control.heads import heads_root
from keymesh.crypto.dsse import envelope_to_json
from keymesh.ledger.receipts import Outcome, Receipt
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable
from keymesh.model.ids import CorrelationId, Namespace
from keymesh.model.time import Instant
from keymesh.registry.records import KillRecord


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    yield made
    await made.close()


async def backed_up(world: World) -> Path:
    """Three manifests: a full one, an incremental one with a suspension, another with a resume and a tenant."""
    keeper = world.registry()
    world.mesh.furnished()
    await world.sync()
    await keeper.once()
    world.mesh.restrict("suspend", "tenant:acme")
    await world.sync()
    await keeper.once()
    world.mesh.restrict("resume", "tenant:acme")
    world.mesh.furnished("beta")
    await world.sync()
    await keeper.once()
    return world.root / "registry"


# --- what it holds ---------------------------------------------------------------------------------------------------


async def test_what_was_written_verifies_and_is_the_log(world: World) -> None:
    await backed_up(world)
    index, rows = await world.log.read(0)
    (report,), replayed = world.verify()
    newest = report.lines["registry"]
    assert (newest.seq, newest.base, newest.full, newest.epoch) == (3, 1, False, 1)
    assert (newest.index, newest.entries, newest.namespaces) == (index, len(rows), 3)
    assert (replayed.index, replayed.entries) == (index, len(rows))
    assert replayed.rows["acme"] == world.mesh.states["acme"].rows
    check_at_least(replayed, index)
    with pytest.raises(Integrity, match="ends at index"):
        check_at_least(replayed, index + 1)


async def test_incremental_ones_hold_only_what_is_new_and_nothing_new_writes_nothing(world: World) -> None:
    store = await backed_up(world)
    counts = [sum(c.items for c in manifest_of(store, seq).chunks if c.kind == bm.LOG) for seq in (1, 2, 3)]
    assert sum(counts) == (await world.log.read(0))[0]
    assert counts[1] == 1
    keeper = world.registry()
    keeper._current_at -= 1_000
    position = await keeper.once()
    assert position.manifest.seq == 3
    assert keeper.written == 0
    assert keeper.age_s < 1_000  # the store was looked at: what it holds is what there is


async def test_nothing_is_backed_up_that_the_machine_has_not_verified(world: World) -> None:
    world.mesh.furnished()
    await world.sync()
    world.verified = 3
    assert (await world.registry().once()).manifest.index == 3
    world.verified = 4
    assert (await world.registry().once()).manifest.index == 4
    world.verify()


async def test_a_full_one_is_written_when_due_when_asked_and_after_a_clock_that_was_wrong(world: World) -> None:
    store = await backed_up(world)
    await world.registry().once(full=True)
    assert manifest_of(store, 4).full
    world.now += 3_599_000
    assert (await world.registry().once()).manifest.seq == 4
    world.now += 1_000
    await world.registry().once()
    assert manifest_of(store, 5).full
    world.now -= 24 * 3600_000
    await world.registry().once()
    assert manifest_of(store, 6).full
    world.now += 24 * 3600_000
    world.verify()


async def test_a_later_life_and_another_replica_go_on_where_the_last_one_stopped(world: World) -> None:
    store = await backed_up(world)
    world.mesh.service("acme", "mail")
    await world.sync()
    await world.registry(memory="another-replica").once()
    assert not manifest_of(store, 4).full
    world.mesh.service("acme", "more")
    await world.sync()
    await world.registry().once()
    assert manifest_of(store, 5).after_index == manifest_of(store, 4).index
    world.verify()


async def test_two_replicas_at_once_lose_nothing_and_fork_nothing(world: World) -> None:
    await backed_up(world)
    keepers = [world.registry(memory=f"replica-{n}") for n in range(3)]
    for n in range(3):
        world.mesh.service("acme", f"s{n}")
        await world.sync()
        await asyncio.gather(*(keeper.once(full=n == 1) for keeper in keepers))
    (report,), _ = world.verify()
    assert report.lines["registry"].index == (await world.log.heads())[0]
    assert report.manifests >= 3 + 1 + 3 + 1


async def test_kill_records_and_receipts_are_in_it(world: World) -> None:
    world.mesh.furnished()
    state = world.mesh.restrict("suspend", "tenant:acme")
    await world.sync()
    entry = state.head.entry
    record = KillRecord(
        command_id=entry.command_id,
        correlation_id="c",
        namespace="acme",
        seq=entry.seq,
        entry_hash=state.head.hash,
        scope="tenant:acme",
        action="suspend",
    )
    world.kills.append(record)
    signer = signer_of("registry")
    receipts = FileReceiptLog(
        world.root / "receipts.jsonl",
        origin=f"{MESH}/registry/r1",
        signer=signer,
        keys={signer.key_id: signer.public_key},
    )
    receipts.append_all([_receipt(1), _receipt(2)])
    keeper = world.registry()
    await keeper.once()
    receipts.append(_receipt(3))
    world.kills[0] = structs.replace(record, status="revoking")
    await keeper.once()
    await world.registry().once(full=True)
    receipts.close()
    world.verified = entry.seq - 1  # a record made while the log was read: its entry comes with the next backup
    ahead = World(world.root / "ahead")
    ahead.root.mkdir()
    ahead.log, ahead.kills, ahead.verified = world.log, world.kills, entry.seq
    await ahead.registry().once()
    assert bm.RECORDS not in [c.kind for c in manifest_of(ahead.root / "registry", 1).chunks]
    world.verified = ahead.verified = 2**62
    await ahead.registry().once()
    assert bm.RECORDS in [c.kind for c in manifest_of(ahead.root / "registry", 2).chunks]
    store = world.root / "registry"
    found = [[(c.kind, c.items) for c in manifest_of(store, n).chunks] for n in (1, 2, 3)]
    assert found[0][1:] == [(bm.RECORDS, 1), (bm.RECEIPTS, 2)]
    assert found[1] == [(bm.RECORDS, 1), (bm.RECEIPTS, 1)]
    assert found[2][1:] == [(bm.RECORDS, 1), (bm.RECEIPTS, 3)]
    world.verify()
    world.kills[0] = structs.replace(record, seq=1)  # about another entry than it says
    await world.registry().once(full=True)
    with pytest.raises(Integrity, match="about no entry"):
        world.verify()


def _receipt(n: int) -> Receipt:
    return Receipt(
        id=f"r{n}",
        at=Instant(n),
        actor="a",
        action="b",
        namespace=Namespace("acme"),
        outcome=Outcome.DONE,
        correlation_id=CorrelationId("c"),
        lamport=n,
    )


async def test_nothing_in_a_store_names_a_tenant_and_no_key_but_an_officers_opens_it(world: World) -> None:
    store = await backed_up(world)
    for path in store.rglob("*"):
        assert b"acme" not in str(path).encode()
        assert not path.is_file() or b"acme" not in path.read_bytes()
    answers = []
    for break_it in (lambda: STRANGER, lambda: _damage_stanza(store)):
        with pytest.raises(Integrity) as failed:
            world.verify(private=break_it() or OFFICER)
        answers.append((failed.value.code, failed.value.message, failed.value.field))
    assert answers[0] == answers[1] == ("integrity", "could not be opened", None)


def _damage_stanza(store: Path) -> None:
    stanza = manifest_of(store, 1).recipients[0]
    forge(store, 1, recipients=(structs.replace(stanza, sealed=stanza.sealed[:-1] + bytes([stanza.sealed[-1] ^ 1])),))
    forge(store, 2, prev=_hash(store, 1))
    forge(store, 3, prev=_hash(store, 2))


def _hash(store: Path, seq: int) -> str:
    return bm.manifest_hash(bm.parse_manifest((store / bm.manifest_name("registry", seq)).read_bytes())[1])


# --- what a store may not be -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sabotage:
    code: str
    do: Callable[[Path], Any]


def _chunk(store: Path, seq: int, n: int = 0) -> Path:
    return store / bm.chunk_name(manifest_of(store, seq).chunks[n].sha256)


def _manifest(store: Path, seq: int) -> Path:
    return store / bm.manifest_name("registry", seq)


def _flip(path: Path, at: int | None = None) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 if at is None else at] ^= 1
    replace_object(path, bytes(raw))


def _swap_chunks(store: Path) -> None:
    """Both whole and well named, each in the other's manifest."""
    one, two = manifest_of(store, 1), manifest_of(store, 2)
    forge(store, 1, chunks=two.chunks)
    forge(store, 2, chunks=one.chunks, prev=_hash(store, 1))
    forge(store, 3, prev=_hash(store, 2))


def _link(path: Path) -> None:
    target = path.with_name("0" * len(path.name))
    path.rename(target)
    path.symlink_to(target.name)


def _make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _empty(store: Path) -> None:
    shutil.rmtree(store)
    store.mkdir()


SABOTAGE = {
    "a chunk changed": Sabotage("chunk-hash", lambda s: _flip(_chunk(s, 2))),
    "a chunk gone": Sabotage("missing-object", lambda s: _chunk(s, 1).unlink()),
    "a chunk emptied": Sabotage("chunk-hash", lambda s: replace_object(_chunk(s, 1), b"")),
    "a chunk grown": Sabotage("too-large", lambda s: replace_object(_chunk(s, 1), bytes(bm.CHUNK_MAX_BYTES + 1))),
    "a chunk made writable": Sabotage("changed-object", lambda s: _chunk(s, 1).chmod(0o600)),
    "a chunk that is a link": Sabotage("foreign-object", lambda s: _link(_chunk(s, 1))),
    "a chunk that is a directory": Sabotage("foreign-object", lambda s: _make_directory(_chunk(s, 1))),
    "chunks swapped": Sabotage("integrity", _swap_chunks),
    "a manifest changed": Sabotage("manifest", lambda s: _flip(_manifest(s, 2), 0)),
    "a manifest gone": Sabotage("manifest-gap", lambda s: _manifest(s, 2).unlink()),
    "the first gone": Sabotage("manifest-gap", lambda s: _manifest(s, 1).unlink()),
    "a manifest emptied": Sabotage("manifest", lambda s: replace_object(_manifest(s, 3), b"")),
    "a manifest twice": Sabotage(
        "manifest-order", lambda s: shutil.copy(_manifest(s, 3), s / bm.manifest_name("registry", 4))
    ),
    "a manifest that is a link": Sabotage("foreign-object", lambda s: _link(_manifest(s, 2))),
    "manifests that are a link": Sabotage(
        "foreign-object",
        lambda s: _link(s / "manifests"),
    ),
    "a foreign name": Sabotage("foreign-object", lambda s: (s / "manifests" / "registry" / "..000").touch()),
    "a foreign line": Sabotage(
        "foreign-object", lambda s: shutil.copytree(s / "manifests" / "registry", s / "manifests" / "Registry")
    ),
    "signed by a stranger": Sabotage("bad-signature", lambda s: forge(s, 3, signer="stranger")),
    "signed by a node": Sabotage("bad-signature", lambda s: forge(s, 3, signer="node-us-east")),
    "another mesh": Sabotage("foreign-mesh", lambda s: forge(s, 3, mesh="other")),
    "another domain's": Sabotage("manifest", lambda s: replace_object(_manifest(s, 3), _unsigned(s, domain="us"))),
    "another epoch": Sabotage("incomplete", lambda s: forge(s, 3, epoch=2)),
    "an epoch that falls": Sabotage("manifest-order", lambda s: forge(s, 3, epoch=0)),
    "a fork": Sabotage("manifest-fork", lambda s: forge(s, 2, created_at=NOW - 1)),
    "a gap in the log": Sabotage("manifest-gap", lambda s: forge(s, 3, after_index=manifest_of(s, 3).after_index + 1)),
    "from the future": Sabotage("future", lambda s: forge(s, 3, created_at=NOW + bm.FUTURE_MAX_MS + 1)),
    "fewer entries than said": Sabotage("incomplete", lambda s: forge(s, 3, entries=manifest_of(s, 3).entries + 1)),
    "other heads": Sabotage("incomplete", lambda s: forge(s, 3, heads_root="ab" * 32)),
    "a chunk left out": Sabotage("incomplete", lambda s: forge(s, 3, chunks=())),
    "an unknown format": Sabotage(
        "manifest", lambda s: replace_object(_manifest(s, 3), _unsigned(s, format="keymesh/backup/2"))
    ),
    "an emptied store": Sabotage("no-backup", _empty),
    "no manifests": Sabotage("foreign-object", lambda s: shutil.rmtree(s / "manifests")),
    "another mesh's marker": Sabotage(
        "foreign-mesh",
        lambda s: replace_object(s / bm.MARKER_NAME, b'{"domain":"","format":"keymesh/backup/1","mesh":"other"}'),
    ),
    "a marker of another format": Sabotage(
        "foreign-store",
        lambda s: replace_object(s / bm.MARKER_NAME, b'{"domain":"","format":"keymesh/backup/9","mesh":"m1"}'),
    ),
    "a marker that is none": Sabotage("foreign-store", lambda s: replace_object(s / bm.MARKER_NAME, b"{}")),
}


def _unsigned(store: Path, **fields: str) -> bytes:
    """A manifest that no honest writer could make, in a well-formed envelope."""
    from keymesh.model import strict_json

    payload = strict_json.dumps(structs.replace(manifest_of(store, 3), **fields))
    return envelope_to_json(signer_of("registry").sign(payload, bm.MANIFEST_TYPE))


@pytest.mark.parametrize("name", SABOTAGE)
async def test_sabotage_is_found_and_named(world: World, name: str) -> None:
    store = await backed_up(world)
    SABOTAGE[name].do(store)
    with pytest.raises(KeymeshError) as failed:
        world.verify()
    assert failed.value.code == SABOTAGE[name].code, failed.value.message
    assert isinstance(failed.value, Refused if failed.value.code == "no-backup" else Integrity)


async def test_a_manifest_or_chunk_torn_at_any_4_kib_is_found(world: World) -> None:
    store = await backed_up(world)
    for path in (_manifest(store, 1), _chunk(store, 1)):
        whole = path.read_bytes()
        assert len(whole) > 4096 or path == _manifest(store, 1)
        for size in {*range(0, len(whole), 4096), len(whole) - 1}:
            replace_object(path, whole[:size])
            with pytest.raises(Integrity):
                world.verify()
            replace_object(path, whole + bytes(4096))
            with pytest.raises(Integrity):
                world.verify()
        replace_object(path, whole)
    world.verify()


async def test_no_bit_of_a_manifest_may_change(world: World) -> None:
    path = _manifest(await backed_up(world), 3)
    whole = path.read_bytes()
    for at in range(0, len(whole), 37):
        _flip(path, at)
        with pytest.raises(Integrity):
            world.verify()
        replace_object(path, whole)


async def test_an_older_store_verifies_but_ends_earlier_and_its_writer_raises_the_alarm(world: World) -> None:
    store = await backed_up(world)
    index = (await world.log.heads())[0]
    _manifest(store, 3).unlink()
    _, replayed = world.verify()  # validly signed, whole, and old
    with pytest.raises(Integrity) as old:
        check_at_least(replayed, index)
    assert old.value.code == "too-old"
    for keeper in (world.registry(), world.registry()):
        with pytest.raises(Integrity) as failed:
            await keeper.once()
        assert failed.value.code == keeper.failing == "rolled-back"
    assert not _manifest(store, 3).exists()  # nothing was written over what happened


async def test_a_running_writer_notices_that_its_store_went_back_forked_or_was_emptied(world: World) -> None:
    store = await backed_up(world)
    keeper = world.registry()
    await keeper.once()
    kept = world.root / "kept"
    shutil.copytree(store, kept)

    async def alarm() -> str:
        world.mesh.service("acme", f"s{world.mesh.n_commands}")
        await world.sync()
        with pytest.raises(Integrity) as failed:
            await keeper.once()
        return failed.value.code

    _manifest(store, 3).unlink()
    assert await alarm() == "rolled-back"
    shutil.rmtree(store)
    store.mkdir()
    assert await alarm() == "rolled-back"
    shutil.rmtree(store)
    shutil.copytree(kept, store)
    replace_object(_manifest(store, 4), _manifest(store, 3).read_bytes())
    assert await alarm() == "manifest-order"
    _manifest(store, 4).unlink()
    forge(store, 3, created_at=NOW - 1)
    with pytest.raises(Integrity) as failed:
        await world.registry().once()
    assert failed.value.code == "manifest-fork"


async def test_a_writer_goes_on_from_nothing_that_a_stranger_signed(world: World) -> None:
    store = await backed_up(world)
    forge(store, 3, signer="stranger")
    with pytest.raises(Integrity) as failed:
        await world.registry(memory="new").once()
    assert failed.value.code == "bad-signature"


async def test_a_store_of_another_mesh_or_domain_is_not_written_to(world: World) -> None:
    await backed_up(world)
    cases: tuple[dict[str, Any], ...] = ({"mesh": "other"}, {"domain": "us", "origin": "us-east.n1"})
    for named in cases:
        with pytest.raises(Integrity) as failed:
            await world.registry(memory="new", **named).once()
        assert failed.value.code == "foreign-store"


async def test_a_log_that_lost_entries_or_is_another_one_is_not_backed_up_over(world: World) -> None:
    await backed_up(world)
    other = World(world.root / "..")
    other.root = world.root
    other.mesh.tenant()
    await other.sync()
    with pytest.raises(Integrity) as failed:
        await other.registry().once()
    assert failed.value.code == "log-behind-backup"
    for n in range(40):
        other.mesh.service("acme", f"s{n}")
    await other.sync()
    with pytest.raises(Integrity) as failed:
        await other.registry().once()
    assert failed.value.code == "fork"


async def test_a_crash_between_chunk_and_manifest_costs_nothing(world: World) -> None:
    store = await backed_up(world)
    chunks = len(list((store / "chunks").rglob("*")))

    class Dies(DirectoryStore):
        def put(self, name: str, content: bytes) -> bool:
            if name.startswith("manifests/"):
                raise Unavailable("store-away", "killed")
            return super().put(name, content)

    world.mesh.service("acme", "mail")
    await world.sync()
    keeper = world.registry(Dies(store))
    with pytest.raises(Unavailable):
        await keeper.once()
    assert keeper.failures == {"store-away": 1}
    assert len(list((store / "chunks").rglob("*"))) > chunks
    world.verify()
    await world.registry().once()
    (report,), _ = world.verify()
    assert report.lines["registry"].index == (await world.log.heads())[0]


async def test_a_manifest_whose_writing_was_not_confirmed_is_found_and_gone_on_from(world: World) -> None:
    store = await backed_up(world)

    class Mute(DirectoryStore):
        def put(self, name: str, content: bytes) -> bool:
            done = super().put(name, content)
            if name.startswith("manifests/") and self.mute:
                self.mute = False
                raise Unavailable("store-away", "the answer was lost")
            return done

        mute = True

    world.mesh.service("acme", "mail")
    await world.sync()
    keeper = world.registry(Mute(store))
    with pytest.raises(Unavailable):
        await keeper.once()
    world.mesh.service("acme", "more")
    await world.sync()
    assert (await keeper.once()).manifest.seq == 5
    world.verify()


# --- a log that does not hold ----------------------------------------------------------------------------------------


async def lying_backup(world: World, edit: Callable[[list[tuple[int, Any]]], None]) -> None:
    """A backup of an edited log by the Registry itself: signed, and true to what it holds."""
    _, rows = await world.log.read(0)
    edited: list[tuple[int, Any]] = list(rows)
    edit(edited)
    items: list[Item] = [(index.to_bytes(8, "big"), envelope_to_json(s.envelope)) for index, s in edited]
    heads = {signed.entry.namespace: leaf_of(signed) for _, signed in edited}
    totals = {
        "epoch": 1,
        "index": edited[-1][0],
        "entries": len(edited),
        "namespaces": len(heads),
        "blobs": 0,
        "missing": 0,
        "heads_root": heads_root(heads),
    }
    await raw_backup(world.writer(world.store(), memory=f"liar-{world.now}"), [(bm.LOG, items)], totals)


def _without(n: int, renumber: bool) -> Callable[[list[tuple[int, Any]]], None]:
    def edit(rows: list[tuple[int, Any]]) -> None:
        del rows[n]
        if renumber:
            rows[:] = [(at, signed) for at, (_, signed) in enumerate(rows, 1)]

    return edit


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        pytest.param(_without(-2, False), "broken-log", id="a restriction is missing"),
        pytest.param(_without(-2, True), "broken-log", id="a restriction is missing, and the gap closed"),
        pytest.param(lambda rows: rows.insert(3, rows[2]), "broken-log", id="an entry twice"),
        pytest.param(lambda rows: rows.reverse(), "broken-log", id="backwards"),
        pytest.param(lambda rows: rows.__delitem__(slice(0, 1)), "broken-log", id="no genesis"),
    ],
)
async def test_a_log_with_a_hole_is_refused_whoever_signed_the_manifest(
    world: World, edit: Callable[[list[tuple[int, Any]]], None], code: str
) -> None:
    world.mesh.furnished()
    world.mesh.restrict("suspend", "tenant:acme")
    world.mesh.service("acme", "mail")
    await world.sync()
    await lying_backup(world, edit)
    with pytest.raises(Integrity) as failed:
        world.verify()
    assert failed.value.code == code


async def test_entries_that_the_root_does_not_vouch_for_are_refused(world: World) -> None:
    foreign = World(world.root)
    foreign.mesh.roots.reverse()
    forged = world.mesh.plan("acme", "tenant.create", world.mesh.tenant_args(), by=world.mesh.key("stranger"))
    world.mesh.furnished("beta")
    await world.sync()
    await lying_backup(world, lambda rows: rows.append((rows[-1][0] + 1, forged.head)))
    with pytest.raises(Integrity) as failed:
        world.verify()
    assert failed.value.code == "bad-signature"


async def test_a_later_full_backup_that_tells_another_history_is_a_fork(world: World) -> None:
    await backed_up(world)
    held = world.mesh.states["beta"]
    more = world.mesh.plan("beta", "tenant.labels", {"labels": {}})
    instead = world.mesh.plan("beta", "tenant.labels", {"labels": {"a": "b"}}, held=world.mesh.history["beta"][-2])
    assert (more.head.entry.seq, instead.head.entry.seq) == (held.head.entry.seq + 1, held.head.entry.seq)
    store, kept = world.root / "registry", world.root / "kept"
    shutil.copytree(store, kept)
    for edit in (
        lambda rows: rows.append((rows[-1][0], more.head)),  # into a commit that was whole before
        lambda rows: rows.__setitem__(-1, (rows[-1][0], instead.head)),
    ):
        await lying_backup(world, edit)
        with pytest.raises(Integrity) as failed:
            world.verify()
        assert failed.value.code == "fork"
        shutil.rmtree(store)
        shutil.copytree(kept, store)
        world.now += 1


async def test_a_later_backup_may_not_hold_less_than_an_earlier_one(world: World) -> None:
    await backed_up(world)
    await lying_backup(world, lambda rows: rows.__delitem__(-1))
    with pytest.raises(Integrity) as failed:
        world.verify()
    assert failed.value.code == "manifest-order"
