"""``keymesh registry restore``: a new epoch from a backup and from the regions, on an embedded mesh."""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import time
from contextlib import suppress
from dataclasses import asdict
from itertools import count, groupby
from pathlib import Path
from typing import Any, Final

from keymesh.adapters.backup_directory import DirectoryStore
from keymesh.adapters.sqlite_log import SqliteControlLog
from keymesh.adapters.sqlite_records import SqliteRecords
from keymesh.app.admin_client import AUTHORITY_LIFETIME_MS, AdminClient, new_command_id, run_with_client
from keymesh.app.backup_files import load_recovery_key
from keymesh.app.backup_read import open_chunks, read_lines, read_marker
from keymesh.app.backup_verify import Opener, check_at_least, verify_registry
from keymesh.app.cli_common import emit, facts, table
from keymesh.app.cli_errors import BadUsage
from keymesh.app.layout import Layout
from keymesh.app.restore_regions import Gathered, gather, highest_epoch
from keymesh.app.signing_keys import load_signer
from keymesh.app.supervisor_client import ask_supervisor
from keymesh.app.trust_file import load_trust
from keymesh.control.backup_manifest import LOG, REGISTRY_ORIGIN
from keymesh.control.entry import SignedEntry, parse_entry
from keymesh.control.kinds import KINDS, OPEN_EPOCH
from keymesh.control.messages import EpochOffer
from keymesh.control.signing import DsseSuite, to_plain
from keymesh.control.trust import Pins, make_authority, quorum_for, verify_authority
from keymesh.crypto.dsse import envelope_from_json
from keymesh.model.errors import Integrity, Refused, Unavailable
from keymesh.model.ids import MESH_NAMESPACE, Digest, KeyId
from keymesh.model.time import Instant
from keymesh.orbital.wire import Codec
from keymesh.registry.records import RECORD_TYPES, AnyRecord, commit_name, still_true
from keymesh.registry.regrow import Regrown
from keymesh.registry.restore import Base, plan_base

PROCESS: Final = "registry"
START_WAIT_S: Final = 60.0


def run_restore(args: argparse.Namespace) -> int:
    """Everything is read and planned before a file is written; the new log takes its place in one step."""
    shown = run_with_client(args.dir, lambda client: restore(client, args))
    emit(args, shown, lambda: _show(shown))
    return 0


async def restore(client: AdminClient, args: argparse.Namespace) -> dict[str, Any]:
    layout = client.layout
    check_may_restore(client)
    log = backed_up(layout, args)
    epoch = max(log.epoch, await highest_epoch(client)) + 1
    offer = offer_for(client, epoch, [Path(f) for f in args.approve_key])
    by_backup = refusal_of(log, offer)
    is_supervised = await _hold(layout)
    try:
        found = await gather(client, offer)
        check_heard(found, by_backup)
        now = Instant(_wall_ms())
        base = plan_base(log, offer=offer, words=found.words, handed=found.handed, now=now)
        set_aside = await write(layout, base, mesh=client.plan.mesh)
    finally:
        if is_supervised:
            ask_supervisor(layout, {"do": "release", "name": PROCESS})
    if is_supervised:
        await client.until(lambda: _serves(client), what="the Registry serving", timeout_s=START_WAIT_S)
    return report(base, found, set_aside=set_aside, is_serving=is_supervised)


def report(base: Base, found: Gathered, *, set_aside: str, is_serving: bool) -> dict[str, Any]:
    return {
        "ok": True,
        "epoch": base.epoch,
        "index": len(base.commits),
        "from_backup": base.from_backup,
        "from_regions": base.from_regions,
        "refused": [asdict(one) for one in (*found.refused, *base.refused)],
        "voters": len(found.words),
        "set_aside": set_aside,
        "serving": is_serving,
    }


def _show(shown: dict[str, Any]) -> None:
    facts("restored", {k: shown[k] for k in ("epoch", "index", "voters", "serving")} | shown["from_backup"])
    rows = ((region, *got.values()) for region, got in sorted(shown["from_regions"].items()))
    table("from regions", ("region", "entries", "restrictions", "key versions"), rows)
    if shown["refused"]:
        columns = ("region", "namespace", "what", "reason")
        table("refused", columns, ([one[c] for c in columns] for one in shown["refused"]))


# --- before ----------------------------------------------------------------------------------------------------------


def check_may_restore(client: AdminClient) -> None:
    """An embedded Registry whose log is gone.  Raises Refused."""
    if client.plan.full is not None or client.plan.replicas:
        raise Refused("not-embedded", "this mesh's log is not the Registry's own file", field="dir")
    path = client.layout.registry / "log.db"
    if path.exists() and _log_index(path, client.plan.mesh) > 0:
        raise Refused("log-exists", f"there is a log in {path}: move it away first, and keep it", field="dir")


def _log_index(path: Path, mesh: str) -> int:
    with suppress(sqlite3.Error):
        database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            return int(database.execute("SELECT count(*) FROM entries").fetchone()[0])
        finally:
            database.close()
    return 0


def backed_up(layout: Layout, args: argparse.Namespace) -> Regrown:
    """The log in the store ``--from``, opened and verified whole; nothing of a store that does not hold is used."""
    trust = load_trust(layout.trust)
    pins = Pins(trust.mesh, {KeyId(k): v for k, v in trust.root.keys.items()}, trust.root.threshold)
    private = load_recovery_key(Path(args.key) if args.key else layout.recovery_key)
    suite = DsseSuite(load_signer(layout.registry / "signing.pem").signer)
    opener = Opener(pins, suite, private, _wall_ms())
    store = DirectoryStore(Path(args.source).absolute())
    try:
        _, replayed = verify_registry(store, opener)
        check_at_least(replayed, args.at_least)
        log = Regrown(pins, suite)
        for _, group in groupby(_entries(store, opener), key=lambda item: item[0]):
            log.take([signed for _, signed in group])
    finally:
        store.close()
    return log


def _entries(store: DirectoryStore, opener: Opener) -> list[tuple[int, SignedEntry]]:
    """(index, entry) of the newest set of the Registry's line, in order."""
    lines = read_lines(store, read_marker(store, mesh=opener.pins.mesh), now_ms=opener.now_ms, newest=True)
    return [
        (int.from_bytes(item[0], "big"), parse_entry(envelope_from_json(item[1])))
        for stored in lines[REGISTRY_ORIGIN]
        for kind, items in open_chunks(store, stored.manifest, opener.private)
        if kind == LOG
        for item in items
    ]


def offer_for(client: AdminClient, epoch: int, approve: list[Path]) -> EpochOffer:
    """The recovery officers' word for ``epoch``, good for ten minutes."""
    if not approve:
        raise BadUsage(
            "usage",
            "--approve-key FILE, once for each recovery officer of the threshold "
            f"(here: {client.layout.keys / 'officer-1.pem'} and another)",
            field="approve-key",
        )
    command_id = f"epoch-{epoch}-{new_command_id()}"
    envelope = make_authority(
        mesh=client.plan.mesh,
        namespace=MESH_NAMESPACE,
        command_id=command_id,
        kind=OPEN_EPOCH,
        args={"epoch": epoch},
        not_after=_wall_ms() + AUTHORITY_LIFETIME_MS,
        signers=[load_signer(path).signer for path in approve],
    )
    return EpochOffer(mesh=client.plan.mesh, epoch=epoch, command_id=command_id, authority=(to_plain(envelope),))


def refusal_of(log: Regrown, offer: EpochOffer) -> Refused | None:
    """Why the officers that the backup knows have not signed ``offer``; regions may know others since."""
    args, kind = {"epoch": offer.epoch}, KINDS[OPEN_EPOCH]
    try:
        officers = quorum_for(kind, args, mesh_rows=log.mesh.rows, tenant_signers=None)
        assert officers is not None
        verify_authority(
            mesh=offer.mesh,
            namespace=MESH_NAMESPACE,
            command_id=offer.command_id,
            kind=OPEN_EPOCH,
            args=args,
            authority=offer.authority,
            quorum=officers,
            suite=log.suite,
        )
    except Refused as refused:
        return refused
    return None


def check_heard(found: Gathered, by_backup: Refused | None) -> None:
    """Somebody took the officers' word: a region by those that it knows, or the backup by its own.  Raises Refused."""
    if found.handed:
        return
    if by_backup is not None:
        raise by_backup
    if any(one.reason == "not-signed" for one in found.refused):
        raise Refused(
            "not-signed",
            "regions judge by other officers than the backup's: their keys were rotated",
            field="approve-key",
        )


async def _hold(layout: Layout) -> bool:
    """Whether a supervisor runs here; the Registry's process is then ended until the log is there."""
    if ask_supervisor(layout, {"do": "status"}) is None:
        return False
    ask_supervisor(layout, {"do": "hold", "name": PROCESS})
    deadline = time.monotonic() + START_WAIT_S
    while time.monotonic() < deadline:
        status = ask_supervisor(layout, {"do": "status"}) or {"children": {}}
        if status["children"].get(PROCESS, {}).get("pid") is None:
            return True
        await asyncio.sleep(0.1)
    raise Unavailable("still-running", "the Registry's process did not end")


# --- after -----------------------------------------------------------------------------------------------------------


async def write(layout: Layout, base: Base, *, mesh: str) -> str:
    """The log, made beside and put in place whole, and last; its records; no projection, which follows from it.

    The lost log's records are another history's: they stay, under the name that is returned ("" where there were
    none), and only what holds of this log as well is taken over.  Stopped anywhere, a repeated restore finds all that
    it needs.  Raises Unavailable, before anything is written, where the records are in use or can't be read.
    """
    directory = layout.registry
    path, made, made_records = (directory / name for name in ("records.db", "log.db.restored", "records.db.restored"))
    kept = old_records(path, {signed.hash for group in base.commits for signed in group})
    for beside in (made, made_records):
        _unlink(beside)
    log = SqliteControlLog(made, mesh=mesh)
    try:
        for group in base.commits:
            await log.append(group)
    finally:
        await log.close()
    records = SqliteRecords(made_records, Codec(RECORD_TYPES))
    try:
        proofs = {commit_name(proof.namespace, proof.seq): proof for proof in base.proofs}
        records.write((kept | proofs).items())
    finally:
        records.close()
    for name in ("log.db", "projection.db"):
        _unlink(directory / name)
    set_aside = _set_aside(path, f"{path.name}.before-epoch-{base.epoch}")
    made_records.replace(path)
    made.rename(directory / "log.db")
    _unlink(made)
    return set_aside


def old_records(path: Path, hashes: set[Digest]) -> dict[str, AnyRecord]:
    """What is still true of the records in ``path``; nothing of a file that is damaged.  Raises Unavailable."""
    if not path.exists():
        return {}
    try:
        records = SqliteRecords(path, Codec(RECORD_TYPES))
        try:
            return still_true(records.read_all(), hashes)
        finally:
            records.close()
    except (Integrity, Refused):
        return {}


def _set_aside(path: Path, name: str) -> str:
    """``path`` under ``name`` as well, so that it is never gone; what a damaged file has beside it moves."""
    if not path.exists():
        return ""
    free = next(tried for n in count(1) if not path.with_name(tried := name if n == 1 else f"{name}.{n}").exists())
    for suffix in ("-wal", "-shm"):
        beside = path.with_name(path.name + suffix)
        if beside.exists():
            beside.rename(path.with_name(free + suffix))
    path.with_name(free).hardlink_to(path)
    return free


def _unlink(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


async def _serves(client: AdminClient) -> bool | None:
    with suppress(Unavailable, Refused):
        await client.call("GET", "/v1/status", timeout_s=5.0)
        return True
    return None


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
