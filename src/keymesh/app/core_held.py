"""Core-held custody: an Edge has the Core make and open data keys, up to 1 000 in one call, all or none.

1. The certificate names tenant and service; nothing in the body does.  2. Restrictions and leases allow it.
3. The budget is charged, durably.  4. The keys are made or opened in memory.  5. The receipt is durable (one sync for
all calls that wait for one).  6. Restrictions and leases still allow it: only now is anything released.

Who cannot be served counts as served: what was charged and not released stays spent.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from keymesh.access.identity import EdgeIdentity
from keymesh.adapters.http_messages import Request, Response, Route
from keymesh.core import context
from keymesh.core.events import BudgetReply, UseBudget
from keymesh.crypto import blob as l4
from keymesh.crypto.kid import kid_bytes
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, Unavailable
from keymesh.model.states import Operation
from keymesh.orbital import edge_wire as wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keymesh.app.core_app import CoreProcess
    from keymesh.app.core_edges import EdgeDoor

CALLS_MAX: Final = 64
"""At the same time, of all Edges."""
TURN: Final = 100
"""So many keys before others have their turn."""


class HeldDoor:
    """The two routes; ``edges`` counts what was opened."""

    def __init__(self, core: CoreProcess, edges: EdgeDoor) -> None:
        self._core = core
        self._edges = edges
        self._calls = 0
        self._asked = 0
        self._replies: dict[str, BudgetReply] = {}
        self.made = self.opened = self.spent = 0

    def routes(self, allow: Callable[[Request], bool]) -> list[Route]:
        """``create`` and ``open``, for whom ``allow`` lets in."""
        most = wire.BATCH_BODY_MAX_BYTES
        return [
            Route(method="POST", path=path, handler=handler, allow=allow, quiet=True, body_max_bytes=most)
            for path, handler in ((wire.CREATE_PATH, self._create), (wire.OPEN_PATH, self._open))
        ]

    def reply(self, effect: BudgetReply) -> None:
        """What the machine says to ``UseBudget``, before ``feed`` returns."""
        self._replies[effect.token] = effect

    # --- what stands before every release ----------------------------------------------------------------------------

    @contextmanager
    def _one_call(self) -> Iterator[None]:
        if self._calls >= CALLS_MAX:
            raise Unavailable("busy", f"at most {CALLS_MAX} calls at a time")
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    def _check(self, identity: EdgeIdentity, version: int, operation: Operation) -> None:
        state, now = self._core.shell.state, self._core.shell.now()
        verdict = context.may_use(state, now, identity.tenant, identity.service, version, operation)
        if not verdict.allowed:
            raise Unavailable(verdict.reason, "this key may not be used here now")

    def _charge(self, identity: EdgeIdentity, ops: int) -> None:
        """Raises Unavailable ``budget-spent`` until the period ends, or where it could not be recorded."""
        self._asked += 1
        token = f"use/{self._asked}"
        self._core.shell.feed(UseBudget(token, identity.tenant, identity.service, ops))
        said = self._replies.pop(token, BudgetReply(token, False, "stopping", 1_000))
        if not said.allowed:
            self.spent += said.reason == "budget-spent"
            words = "the budget of this period is spent" if said.reason == "budget-spent" else "not recorded here now"
            raise Unavailable(said.reason, words, retry_after_ms=said.retry_after_ms)

    # --- the two calls -----------------------------------------------------------------------------------------------

    async def _create(self, request: Request) -> Response:
        identity = request.identity
        assert isinstance(identity, EdgeIdentity)
        self._edges.want(identity)
        asked = wire.decode_create(request.body)
        with self._one_call():
            view = self._core.view(identity.tenant)
            version = view.wrapping.get(f"l3/{identity.service}")
            if version is None:
                raise Unavailable("not-loaded", "the service has no active key yet")
            self._check(identity, version, Operation.WRAP)
            held = self._core.keyring.need(view.keys[(f"l3/{identity.service}", version)].kid)
            self._charge(identity, asked.count)
            made = []
            for index in range(asked.count):
                key = os.urandom(l4.L4_BYTES)
                nonce = self._core.keyring.nonce()
                blob = l4.seal_l4(held.cipher, kid_bytes(held.kid), identity.tenant, asked.context, key, nonce)
                shown = wire.to_base64(key) if asked.plaintext else None
                made.append(wire.Created(blob=wire.to_base64(blob), plaintext=shown))
                await _turn(index)
            await self._record(identity, "core-held-create", asked.count)
            self._check(identity, version, Operation.WRAP)
            self.made += asked.count
            return _json(wire.CreateAnswer(keys=tuple(made)))

    async def _open(self, request: Request) -> Response:
        identity = request.identity
        assert isinstance(identity, EdgeIdentity)
        self._edges.want(identity)
        blobs, given = wire.decode_open(request.body, blob_bytes=l4.L4_BLOB_BYTES)
        with self._one_call():
            versions = self._versions(identity, blobs)
            for version in versions.values():
                self._check(identity, version, Operation.UNWRAP)
            self._charge(identity, len(blobs))
            plaintexts = []
            for index, blob in enumerate(blobs):
                plaintexts.append(wire.to_base64(self._open_one(identity, blob, given)))
                await _turn(index)
            await self._record(identity, "core-held-open", len(blobs))
            self._edges.count_opened(identity.tenant, identity.service, len(blobs))
            for version in versions.values():
                self._check(identity, version, Operation.UNWRAP)
            self.opened += len(blobs)
            return _json(wire.OpenAnswer(plaintexts=tuple(plaintexts)))

    def _versions(self, identity: EdgeIdentity, blobs: tuple[bytes, ...]) -> dict[str, int]:
        """Version by kid, of the blobs.  Another service's blob, and another tenant's, is none that opens here."""
        view = self._core.view(identity.tenant)
        own = {row.kid: version for (key, version), row in view.keys.items() if key == f"l3/{identity.service}"}
        kids = {l4.blob_kid(blob).hex() for blob in blobs}
        if not kids <= own.keys():
            raise Integrity.opaque()
        return {kid: own[kid] for kid in sorted(kids)}

    def _open_one(self, identity: EdgeIdentity, blob: bytes, given: Mapping[str, str]) -> bytes:
        held = self._core.keyring.need(l4.blob_kid(blob).hex())
        return l4.open_l4(held.cipher, kid_bytes(held.kid), identity.tenant, given, blob)

    async def _record(self, identity: EdgeIdentity, action: str, keys: int) -> None:
        await self._edges.receipts.append(str(identity), action, identity.tenant, f"{identity.service}:{keys}")


async def _turn(index: int) -> None:
    if index % TURN == TURN - 1:
        await asyncio.sleep(0)


def _json(value: Any) -> Response:
    return Response(body=strict_json.dumps(value))
