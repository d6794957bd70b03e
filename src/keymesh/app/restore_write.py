"""Where a restored log goes, and what becomes of all that rested on the lost one.

A log that is a file takes the lost one's place in one step, at the end.  In etcd it is written under a prefix of its
own, which nothing reads until a Registry is told of it: so a restore that stopped half way leaves nothing that could be
taken for a log, and what is left of the lost one stays beside, as evidence.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from keymesh.adapters.files import set_aside
from keymesh.adapters.sql_projection import SqlProjection
from keymesh.adapters.sqlite_log import SqliteControlLog
from keymesh.adapters.sqlite_records import SqliteRecords
from keymesh.app.config import RegistryConfig
from keymesh.app.config_database import database_urls
from keymesh.app.config_log import LogConfig
from keymesh.app.control_logs import is_shared, make_log
from keymesh.control.log import Conflict, ControlLog, UnknownOutcome
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable
from keymesh.model.ids import Digest
from keymesh.orbital.wire import Codec
from keymesh.registry.records import RECORD_TYPES, AnyRecord, commit_name, still_true
from keymesh.registry.restore import Base

_RESTORED: Final = re.compile(r"@[0-9]+/$")


@dataclass(frozen=True, slots=True)
class Written:
    """``set_aside``: replica -> under which name the lost history's records stay in its directory, "" where there
    were none.  ``log_prefix``: under which etcd has the new log; "" for a file.  ``log_set_aside``: under which name a
    file that could not be read as a log stays."""

    set_aside: dict[str, str]
    log_prefix: str = ""
    log_set_aside: str = ""


# --- before ----------------------------------------------------------------------------------------------------------


def check_replicas(replicas: Sequence[RegistryConfig]) -> None:
    """They are one Registry's, each with a directory of its own.  Raises Refused."""
    first = replicas[0]
    for one in replicas[1:]:
        if one.mesh != first.mesh or not is_shared(one.log) or _place(one.log) != _place(first.log):
            raise Refused("bad-field", f"{one.node} and {first.node} do not share one log", field="config")
    if len({str(Path(one.data_dir).resolve()) for one in replicas}) < len(replicas):
        raise Refused("bad-field", "two of the replicas have one data_dir", field="config")


def _place(log: LogConfig | None) -> object:
    return None if log is None else (log.kind, log.prefix, sorted(endpoint.url for endpoint in log.endpoints))


async def check_lost(config: RegistryConfig) -> None:
    """There is no log that could be read.

    Raises Refused ``log-exists`` where there is one, Unavailable where etcd does not answer: it is also what the new
    one is written to.
    """
    if not is_shared(config.log):
        path = Path(config.data_dir) / "log.db"
        if path.exists() and _entries_in(path) > 0:
            raise Refused("log-exists", f"there is a log in {path}: move it away first, and keep it", field="dir")
        return
    control = make_log(config.log, mesh=config.mesh, directory=Path(config.data_dir))
    try:
        index, _ = await control.read(0, 1)
    except Integrity:
        return  # what is damaged stays where it is
    except Refused as refused:
        if refused.code != "not-founded":
            raise
        return
    finally:
        await control.close()
    if index > 0:
        assert config.log is not None
        where = f"under {config.log.prefix} in etcd"
        raise Refused("log-exists", f"there is a log {where}, and it is whole: nothing is to be restored", field="log")


def _entries_in(path: Path) -> int:
    """0 in a file that is no log, or is damaged.  Raises Unavailable where it can't be looked at now."""
    try:
        database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            return int(database.execute("SELECT count(*) FROM entries").fetchone()[0])
        finally:
            database.close()
    except sqlite3.OperationalError as bad:
        if bad.sqlite_errorcode == sqlite3.SQLITE_ERROR:  # no such table: it was never a log
            return 0
        hint = "end what uses it, or move it away and keep it"
        raise Unavailable("storage", f"{path} cannot be read ({bad}): {hint}") from bad
    except sqlite3.DatabaseError:
        return 0


# --- after -----------------------------------------------------------------------------------------------------------


async def write(replicas: Sequence[RegistryConfig], base: Base) -> Written:
    """The log last; before it the replicas' records, and no projection, which follows from the log.

    The lost log's records are another history's: they stay, under the name that is returned, and only what holds of
    this log as well is taken over.  Stopped anywhere, a repeated restore finds all that it needs.  Raises Unavailable,
    before anything is written, where records are in use or can't be read.
    """
    hashes = {signed.hash for group in base.commits for signed in group}
    kept = {one.node: old_records(Path(one.data_dir) / "records.db", hashes) for one in replicas}
    first, *_ = replicas
    if not is_shared(first.log):
        made = Path(first.data_dir) / "log.db.restored"
        _unlink(made)
        await _fill(SqliteControlLog(made, mesh=first.mesh), base)
        records = {first.node: _write_records(first, kept[first.node], base)}
        path = Path(first.data_dir) / "log.db"
        log_set_aside = set_aside(path, f"{path.name}.before-epoch-{base.epoch}")
        made.replace(path)
        _unlink(made)
        return Written(records, log_set_aside=log_set_aside)
    assert first.log is not None
    prefix = prefix_of(first.log.prefix, base.epoch)
    log = replace(first.log, prefix=prefix)
    await _fill(make_log(log, mesh=first.mesh, directory=Path(first.data_dir), may_found=True), base)
    records = {one.node: _write_records(one, kept[one.node], base) for one in replicas}
    return Written(records, prefix)


def prefix_of(prefix: str, epoch: int) -> str:
    """Where the log of ``epoch`` goes beside the one under ``prefix``, which it does not lie within."""
    return f"{_RESTORED.sub('/', prefix)[:-1]}@{epoch}/"


async def _fill(log: ControlLog, base: Base) -> None:
    """Raises Refused where something else stands there."""
    try:
        for group in base.commits:
            await log.append(group)
    except Conflict as conflict:
        raise Refused("log-exists", "another restore is writing the same epoch: try again", field="log") from conflict
    except UnknownOutcome as lost:
        raise Unavailable("unknown-outcome", f"{lost.message}; repeat the restore") from lost
    finally:
        await log.close()


def _write_records(config: RegistryConfig, kept: dict[str, AnyRecord], base: Base) -> str:
    directory = Path(config.data_dir)
    path, made = directory / "records.db", directory / "records.db.restored"
    _unlink(made)
    records = SqliteRecords(made, Codec(RECORD_TYPES))
    try:
        proofs = {commit_name(proof.namespace, proof.seq): proof for proof in base.proofs}
        records.write((kept | proofs).items())
    finally:
        records.close()
    forget_projection(config)
    aside = set_aside(path, f"{path.name}.before-epoch-{base.epoch}")
    made.replace(path)
    return aside


def forget_projection(config: RegistryConfig) -> None:
    """A shared one that is away, or that we have no way into, is found to be wrong when it is verified."""
    _unlink(Path(config.data_dir) / "projection.db")
    if config.database is None or config.database.kind == "sqlite":
        return
    with suppress(KeymeshError):
        projection = SqlProjection(*database_urls(config.database, Path(config.data_dir)), mesh=config.mesh)
        try:
            projection.discard()
        finally:
            projection.close()


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


def _unlink(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
