"""The read model in SQL, through SQLAlchemy Core: one schema (``sql_schema``) for SQLite and PostgreSQL.

What the tables hold at an index follows from the log alone.  So replicas need no agreement about *what* to write, only
about *when*, and the row of ``projection_index`` settles that:

1. Every write begins by locking that row (FOR UPDATE; BEGIN IMMEDIATE on SQLite), so writes happen one after another.
2. It names the writer: a fencing token that only rises, and the holder's own random name.  A write whose pair is not
   the one in the row is refused (``Fenced``) and leaves nothing.  The name is there because an asynchronous standby
   that is promoted may have lost the newest token, and would give it out again.
3. It holds the index.  A commit at or below it is compared with what was taken and changes nothing, whoever offers
   it; the next one is taken, with its index, in the same transaction; one further on is refused.

So a commit takes effect once and in order, though its transaction may have ended unheard.  After a crash, or on a
standby that lags, the log is read on from ``index()``; a former primary that still takes writes only makes itself a
stale copy, and a reader who has seen a higher index refuses it.  The place is for order, never for safety: nothing
that a region may do depends on it.

A projection that does not follow from the log (``verify``, ``sample``) is marked in the same row; from then on every
replica refuses to answer from it until ``rebuild`` has made it anew and verified it.

Outbox lines are *claimed*, by any replica: rows locked by another's claim are skipped (SKIP LOCKED; SQLite has one
replica, and no claims to keep apart), and are gone when the claim ends well.  A replica that dies with a claim leaves
them to the next, so each is delivered at least once.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from keymesh.adapters.sql_check import Held, held_of, wipe, wrong_in_entries, wrong_in_namespace
from keymesh.adapters.sql_engine import Database
from keymesh.adapters.sql_migrate import require_schema
from keymesh.adapters.sql_rows import LineKey, check_same, forget, heads_of, make_place, place_of, rows_of, write
from keymesh.adapters.sql_schema import META, OUTBOX, PLACE
from keymesh.control.entry import Leaf, SignedEntry, leaf_of
from keymesh.control.log import in_order
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable
from keymesh.model.ids import ZERO_DIGEST
from keymesh.registry.projection import Change, Commit, Fenced, LogRead, Put, project
from keymesh.registry.records import KillRecord

NAMESPACES_CACHED: Final = 4_096
COMMITS_AT_ONCE: Final = 64


@dataclass(frozen=True, slots=True)
class Read:
    """Rows as they were at ``index``."""

    index: int
    rows: tuple[dict[str, Any], ...]


class SqlProjection:
    """``urls``: where the database is, see ``sql_engine``.  Connects when first used.  Not thread-safe, but for
    ``claimed`` and ``interrupt_if_stuck``."""

    def __init__(self, *urls: str, mesh: str) -> None:
        self._db = Database(urls)
        self._mesh = mesh
        self._holder = secrets.token_hex(16)
        self._token = 0
        self._checked = False
        self._unsaid: str | None = None  # a doubt that the database could not be told
        self._rows: dict[str, dict[str, bytes]] = {}
        self._rows_at = -1

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        self._opened()
        try:
            with self._db.reading() as db:
                yield db
        except KeymeshError:
            self._checked = False  # what answers next may be another server
            raise

    @contextmanager
    def _writing(self) -> Iterator[tuple[sa.Connection, Any]]:
        """One transaction, and the row of the place as it is, locked.  Nothing is kept of one that fails."""
        self._opened()
        try:
            with self._db.writing() as db:
                yield db, place_of(db, lock=True)
        except BaseException as failed:
            self._rows.clear()
            if isinstance(failed, KeymeshError):
                self._checked = False
            raise

    def _opened(self) -> None:
        """Once for each server: the schema is looked at, and there is a place.  Raises Refused for another mesh's."""
        if not self._checked:
            require_schema(self._db)
            with self._db.writing() as db:
                make_place(db)
                self._same_mesh(place_of(db))
            self._checked = True

    def interrupt_if_stuck(self) -> None:
        """Any thread: what waits for a server that stands still raises Unavailable."""
        self._db.interrupt_if_stuck()

    def close(self) -> None:
        self._db.close()

    # --- the place -----------------------------------------------------------------------------------------------

    def take_place(self) -> int:
        """Become the one that writes; the fencing token."""
        with self._writing() as (db, place):
            self._same_mesh(place)
            token = max(int(place.token), self._token) + 1
            db.execute(sa.update(PLACE).values(token=token, holder=self._holder, mesh=self._mesh))
        self._token = token
        return token

    def _same_mesh(self, place: Any) -> None:
        if place.mesh not in ("", self._mesh):
            raise Refused("foreign-mesh", f"the database is that of mesh {place.mesh[:64]!r}", field="database")

    def _own(self, place: Any) -> None:
        if (place.token, place.holder) != (self._token, self._holder):
            raise Fenced("fenced", f"the writer's place went to token {place.token}", field="token")

    # --- writing -------------------------------------------------------------------------------------------------

    def index(self) -> int:
        with self._reading() as db:
            return int(place_of(db).idx)

    def apply(self, index: int, entries: Sequence[SignedEntry]) -> None:
        """Take the commit at ``index``.

        Raises Fenced where another has the place, Integrity where it skips commits, or where the projection holds
        something else at its place.
        """
        self._apply([(index, entries)])

    def apply_all(self, commits: Sequence[Commit]) -> None:
        """As ``apply``, of several commits in order, some at a time."""
        for start in range(0, len(commits), COMMITS_AT_ONCE):
            self._apply(commits[start : start + COMMITS_AT_ONCE])

    def catch_up(self, read: LogRead) -> None:
        """Take the commits of a read of the log after ``index()``, in order, some at a time."""
        commits: dict[int, list[SignedEntry]] = {}
        for index, signed in read[1]:
            commits.setdefault(index, []).append(signed)
        self.apply_all(sorted(commits.items()))

    def _apply(self, commits: Sequence[Commit]) -> None:
        """``commits`` in order, in one transaction: all of them, or none."""
        with self._writing() as (db, place):
            at = int(place.idx)
            changes: list[Change] = []
            heads = heads_of(db, {s.entry.namespace for index, entries in commits if index > at for s in entries})
            if self._rows_at != at or len(self._rows) > NAMESPACES_CACHED:
                self._rows.clear()
            for index, entries in commits:
                if index <= place.idx:
                    check_same(db, index, entries)
                    continue
                self._own(place)
                if index != at + 1:
                    raise Integrity("projection-skip", f"commit {index} after {at}", field="index")
                for signed in in_order(entries):
                    changes.extend(self._take(db, index, signed, heads))
                self._rows_at = at = index
            if changes:
                write(db, changes)
                db.execute(sa.update(PLACE).values(idx=at))

    def _take(
        self, db: sa.Connection, index: int, signed: SignedEntry, heads: dict[str, tuple[int, str]]
    ) -> tuple[Change, ...]:
        """What one entry changes, after those before it in this transaction (``heads`` as they left them)."""
        entry = signed.entry
        if (entry.seq - 1, entry.prev) != heads.get(entry.namespace, (0, ZERO_DIGEST)):
            raise Integrity("projection-chain", f"{entry.namespace}:{entry.seq} does not follow", field="prev")
        heads[entry.namespace] = (entry.seq, signed.hash)
        before = self._rows.get(entry.namespace)
        if before is None:
            before = rows_of(db, entry.namespace)
        after, changes = project(index, signed, before)
        self._rows[entry.namespace] = after
        return changes

    def put_kill(self, record: KillRecord) -> None:
        """Show a kill-switch record as it now stands.  Raises Fenced."""
        values = (
            ("scope", record.scope),
            ("action", record.action),
            ("status", record.status),
            ("seq", record.seq),
            ("committed_at", record.committed_at),
            ("t", record.t),
            ("certified_at", record.certified_at),
            ("holders", strict_json.dumps(record.holders).decode()),
        )
        with self._writing() as (db, place):
            self._own(place)
            key = (("namespace", record.namespace), ("command_id", record.command_id))
            write(db, [Put("kill_records", key, values)])

    def undelivered(self) -> list[tuple[str, str, int]]:
        """(region, namespace, oldest seq) of everything that is in the outbox.  Raises Unavailable."""
        columns = (OUTBOX.c.region, OUTBOX.c.namespace)
        with self._reading() as db:
            found = db.execute(sa.select(*columns, sa.func.min(OUTBOX.c.seq)).group_by(*columns).order_by(*columns))
            return [(region, namespace, int(seq)) for region, namespace, seq in found]

    def delivered(self, region: str, namespace: str, seq: int) -> None:
        """Forget outbox lines that ``region`` has acknowledged, up to ``seq``.  Raises Fenced."""
        with self._writing() as (db, place):
            self._own(place)
            db.execute(
                sa.delete(OUTBOX).where(OUTBOX.c.region == region, OUTBOX.c.namespace == namespace, OUTBOX.c.seq <= seq)
            )

    @contextmanager
    def claimed(
        self,
        *regions: str,
        lane: int,
        limit: int = 50,
        after: tuple[int, str, int, str] | None = None,
        kept: Collection[LineKey] = (),
    ) -> Iterator[tuple[dict[str, Any], ...]]:
        """Outbox lines of ``regions`` that nobody else has, oldest first; forgotten if the block ends well, all but
        those in ``kept`` by then; all kept if it raises.  ``after``: (idx, namespace, seq, region) of a line passed by.

        Any thread and any replica may claim.  Be quick: on PostgreSQL a session that idles 10 s loses its claim, and
        leaving the block then raises Unavailable.  On SQLite, which is one replica's alone, claims do not exclude each
        other.
        """
        place = (OUTBOX.c.idx, OUTBOX.c.namespace, OUTBOX.c.seq, OUTBOX.c.region)
        query = (
            sa.select(OUTBOX)
            .where(OUTBOX.c.region.in_(regions), OUTBOX.c.lane == lane)
            .order_by(*place)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        if after is not None:
            query = query.where(sa.tuple_(*place) > sa.tuple_(*(sa.literal(value) for value in after)))
        if self._db.dialect != "postgresql":  # nobody shares the file: nothing is held while the block runs
            with self._db.reading() as db:
                lines = tuple(dict(row._mapping) for row in db.execute(query))
            yield lines
            with self._db.writing() as db:
                forget(db, lines, kept)
            return
        with self._db.writing() as db:
            lines = tuple(dict(row._mapping) for row in db.execute(query))
            yield lines
            forget(db, lines, kept)

    # --- right or wrong ------------------------------------------------------------------------------------------

    def doubt(self) -> str | None:
        """Why nobody is answered; None where they are."""
        if self._unsaid is not None:
            self._record_doubt(self._unsaid)
        with self._reading() as db:
            found: str | None = place_of(db).doubt
        return found

    def verify(self, read: LogRead) -> bool:
        """Whether everything follows from ``read``, the whole log; False where the projection is beyond it by now.

        Raises Integrity and refuses to answer from now on where it does not.
        """
        log_index, entries = read
        with self._reading() as db:
            index = int(place_of(db).idx)
            if index > log_index:
                return False
            heads: dict[str, Leaf] = {}
            for at, signed in entries:
                if at <= index:
                    heads[signed.entry.namespace] = leaf_of(signed)
            wrong = wrong_in_entries(db, index, entries)
            held = held_of(db)
        for name in sorted(heads.keys() | held.keys()):
            wrong = wrong or wrong_in_namespace(held.get(name, Held()), name, heads.get(name), exact=True)
        self._condemn(wrong)
        return True

    def sample(self, log_index: int, heads: Mapping[str, Leaf], namespace: str) -> bool:
        """As ``verify``, of one namespace, against the log's ``heads`` at ``log_index``."""
        with self._reading() as db:
            index = int(place_of(db).idx)
            if index > log_index:
                return False
            held = held_of(db, namespace).get(namespace, Held())
        wrong = wrong_in_namespace(held, namespace, heads.get(namespace), exact=index == log_index)
        self._condemn(wrong)
        return True

    def _condemn(self, wrong: str | None) -> None:
        """Raises Integrity, and lets no replica answer any more, where something is ``wrong``."""
        if wrong is None:
            return
        with suppress(Unavailable):
            self._record_doubt(wrong)
        raise Integrity("projection-wrong", f"the read model does not follow from the log: {wrong}", field=wrong)

    def _record_doubt(self, wrong: str) -> None:
        """Anybody may doubt, whoever has the place."""
        self._unsaid = wrong
        with self._writing() as (db, _):
            db.execute(sa.update(PLACE).values(doubt=wrong))
        self._unsaid = None

    def rebuild(self, read: LogRead) -> None:
        """Make it anew from ``read``, the whole log; it answers again once it is verified.  Raises as ``apply``."""
        self.discard()
        self.catch_up(read)
        if not self.verify(read):
            raise Fenced("fenced", "another replica went on while it was made anew", field="token")
        with self._writing() as (db, place):
            self._own(place)
            db.execute(sa.update(PLACE).values(doubt=None))
        self._unsaid = None

    def discard(self) -> None:
        """Become the one that writes, and empty it: nothing is answered until it is made anew."""
        try:
            self.take_place()
        except Integrity:
            self._discard_file()
            self.take_place()
        try:
            self._wipe()
        except Integrity:
            self._wipe(unread=self._db.dialect == "postgresql")

    def _wipe(self, *, unread: bool = False) -> None:
        with self._writing() as (db, place):
            self._own(place)
            wipe(db, keep=PLACE, unread=unread)
            db.execute(sa.update(PLACE).values(idx=0, doubt="it is being made anew"))

    def _discard_file(self) -> None:
        """A file that SQLite itself cannot read is nothing to keep.  Raises Integrity where it is no file."""
        name = self._db.engine.url.database
        if self._db.dialect != "sqlite" or not name:
            raise Integrity("projection-damaged", "the read model's database holds what it cannot hold")
        self._db.close()
        for suffix in ("", "-wal", "-shm"):
            Path(name + suffix).unlink(missing_ok=True)
        self._checked = False

    # --- reading -------------------------------------------------------------------------------------------------

    def read(
        self, table: str, *, at_least: int = 0, limit: int = 1_000, after: dict[str, Any] | None = None, **equal: Any
    ) -> Read:
        """Rows of ``table`` where the columns in ``equal`` have these values, in order of the primary key.

        ``at_least``: an index that the caller has seen; ``after``: primary-key values of the last row of the page
        before.  Raises Unavailable where the projection is still behind it (``behind``), or does not follow from the
        log (``doubted``).
        """
        found = META.tables[table]
        query = sa.select(found).order_by(*found.primary_key.columns).limit(limit)
        for name, value in sorted(equal.items()):
            query = query.where(found.c[name] == value)
        if after is not None:
            columns = list(found.primary_key.columns)
            query = query.where(sa.tuple_(*columns) > sa.tuple_(*(sa.literal(after[c.name]) for c in columns)))
        with self._reading() as db:
            place = place_of(db)
            if (place.doubt or self._unsaid) is not None:
                raise Unavailable("doubted", "the read model does not follow from the log and is to be made anew")
            if place.idx < at_least:
                raise Unavailable(
                    "behind", f"the projection is at {place.idx}, not yet at {at_least}", retry_after_ms=50
                )
            return Read(int(place.idx), tuple(dict(row._mapping) for row in db.execute(query)))
