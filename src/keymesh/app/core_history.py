"""A Core fetches the entries that it passed over and records them in seq order, after what they led to is applied.

Beside everything else and in nobody's way: a Registry that is away, a chain that does not fit or a full disk cost
evidence, never a lease.  It is tried again with the next task, and once a minute.  No task waits for its record:
those that come within ``GATHER_S`` are recorded together, and what a crash takes before is fetched.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from keymesh.access.admit import Action, admit
from keymesh.adapters.files import set_aside
from keymesh.adapters.http_messages import Request, Response, Route, json_response
from keymesh.adapters.sqlite_history import SqliteHistory
from keymesh.app.layout import ASSIGNED
from keymesh.control.entry import SignedEntry, parse_entry
from keymesh.core import history
from keymesh.core.history import Due
from keymesh.crypto.dsse import envelope_from_json
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable
from keymesh.model.ids import MESH_NAMESPACE, check_tenant

if TYPE_CHECKING:
    from keymesh.app.core_app import CoreProcess

log = logging.getLogger("keymesh.core.history")

FILE: Final = "history.db"
AGAIN_S: Final = 60.0
GATHER_S: Final = 0.05
PASSED_MAX: Final = 1_024
"""Applied heads of all namespaces that wait for their record; what comes beyond is fetched."""
PAGE_MAX: Final = 256
NAMED_MAX: Final = 8
FETCHED_MAX_BYTES: Final = 32 * 1024 * 1024
ANSWER_MAX_BYTES: Final = 4 * 1024 * 1024


class EntriesAnswer(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``entries``: DSSE envelopes (JSON, base64), in seq order."""

    entries: tuple[str, ...]


class CoreHistory:
    """``ask(path, query)`` asks whichever replica of the Registry answers."""

    def __init__(self, core: CoreProcess, ask: Callable[[str, dict[str, str]], Any]) -> None:
        self._core, self._ask = core, ask
        self.store = open_history(Path(core.directory) / FILE)
        self._dirty: dict[str, list[SignedEntry]] = {}
        self._passed = 0
        self._wake = asyncio.Event()

    def routes(self) -> list[Route]:
        """For operators."""

        def is_operator(request: Request) -> bool:
            return admit(None, Action.MESH_READ, identity=request.identity, assigned=ASSIGNED).allowed

        return [Route(method="GET", path="/v1/history/{namespace}", handler=self._show, allow=is_operator)]

    async def _show(self, request: Request) -> Response:
        """What was recorded after ``after``: seq, kind, hash, and the place that rises with each recording."""
        namespace, after = request.params["namespace"], request.query.get("after", "0")
        if namespace != MESH_NAMESPACE:
            check_tenant(namespace)
        if not after.isascii() or not after.isdigit() or len(after) > 15:
            raise Refused.bad_field("after", "a seq from 0")
        rows = self.store.read(namespace, after=int(after), most=PAGE_MAX)
        shown = [{"place": place, "seq": e.entry.seq, "kind": e.entry.kind, "hash": e.hash} for place, e in rows]
        return json_response({"namespace": namespace, "entries": shown})

    # --- recording ---------------------------------------------------------------------------------------------------

    def applied(self, namespace: str) -> None:
        """A task of that namespace was taken: there may be something to record, or to fetch."""
        passed = self._dirty.setdefault(namespace, [])
        head = self._head(namespace)
        if head is not None and self._passed < PASSED_MAX and (not passed or passed[-1].hash != head.hash):
            passed.append(head)
            self._passed += 1
        self._wake.set()

    def _head(self, namespace: str) -> SignedEntry | None:
        holding = self._core.shell.state.holding(namespace)
        return None if holding is None or holding.applied is None else holding.applied.head

    async def run(self) -> None:
        """For ever; everything is looked at once in a while."""
        while True:
            state = self._core.shell.state
            for namespace in (MESH_NAMESPACE, *state.tenants):
                self._dirty.setdefault(namespace, [])
            await self._catch_up_all()
            try:
                async with asyncio.timeout(AGAIN_S):
                    while True:
                        await self._wake.wait()
                        self._wake.clear()
                        await self._catch_up_all()
            except TimeoutError:
                continue

    async def _catch_up_all(self) -> None:
        while self._dirty:
            dirty, self._dirty, self._passed = self._dirty, {}, 0
            gaps = self._record_at_hand(dirty)
            for namespace, due in gaps.items():
                with _told(namespace):
                    self.store.append(await self._fetched(namespace, due))
            await asyncio.sleep(GATHER_S)

    def _record_at_hand(self, dirty: dict[str, list[SignedEntry]]) -> dict[str, Due]:
        """Records of all namespaces together what nothing need be fetched for; what is due of the others."""
        ready: list[SignedEntry] = []
        gaps: dict[str, Due] = {}
        for namespace, passed in dirty.items():
            with _told(namespace):
                head = self._head(namespace)
                due = None if head is None else history.plan(self.store.last(namespace), passed, head)
                if (due is not None and due.has_gap) or (
                    due is not None and history.is_fork(due.last, due.run[0], due.run[-1])
                ):
                    gaps[namespace] = due
                elif due is not None:
                    history.check_chain(due.last, due.run, due.run[-1])
                    ready += self.store.lacks(due.run) if due.is_beside else due.run
        if ready:
            with _told(*dirty):
                self.store.append(ready)
        return gaps

    async def _fetched(self, namespace: str, due: Due) -> list[SignedEntry]:
        """All that is due, checked as a whole."""
        head = due.run[-1]
        found = [*await self._fetch(namespace, due.first, due.run[0].entry.seq - 1), *due.run]
        if history.is_fork(due.last, found[0], head):
            found = [*await self._fetch(namespace, history.missing(None, head), due.first - 1), *found]
        history.check_chain(due.last, found, head)
        return self.store.lacks(found)

    async def _fetch(self, namespace: str, first: int, to: int) -> list[SignedEntry]:
        """Seq ``first`` to ``to``."""
        found: list[SignedEntry] = []
        size, after = 0, first - 1
        while after < to:
            query = {"after": str(after), "most": str(min(PAGE_MAX, to - after))}
            raw = await self._ask(f"/v1/entries/{namespace}", query)
            page = strict_json.decode(raw, EntriesAnswer, max_bytes=ANSWER_MAX_BYTES).entries
            size += len(raw)
            if not page or size > FETCHED_MAX_BYTES:
                raise Unavailable("history", "the Registry does not give the entries between")
            found += [parse_entry(envelope_from_json(base64.b64decode(one))) for one in page]
            after = found[-1].entry.seq
        return found


def open_history(path: Path) -> SqliteHistory:
    """A damaged file is set aside: it is evidence that is lost here, and no lease.  Raises Unavailable."""
    try:
        return SqliteHistory(path)
    except Integrity as bad:
        name = set_aside(path, f"{path.name}.damaged")
        log.error("history is damaged, and begun anew", extra={"fields": {"kept": name, "reason": bad.message}})
        path.unlink(missing_ok=True)
        return SqliteHistory(path)


@contextmanager
def _told(*namespaces: str) -> Iterator[None]:
    """What cannot be recorded now is said, and tried again later."""
    named = ", ".join(namespaces[:NAMED_MAX])
    try:
        yield
    except Integrity as bad:
        log.error("history does not fit", extra={"fields": {"namespace": named, "reason": bad.code}})
    except KeymeshError as away:
        log.info("history not recorded", extra={"fields": {"namespace": named, "reason": away.code}})
