"""A Core's side of a restore: its voter stores the new epoch, then the region hands in all that it holds.

Whoever brings the word of a threshold of recovery officers may read: it is the mesh's own log that is being restored.
A voter region hands nothing in before it has stored the epoch.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from keymesh.access.admit import Action, admit
from keymesh.adapters.http_messages import Request, Response, Route, json_response
from keymesh.app.backup_domain import STATES_CODEC
from keymesh.app.layout import ASSIGNED
from keymesh.control import trust, voter, voter_epoch
from keymesh.control.commit import voters_of
from keymesh.control.entry import SignedEntry
from keymesh.control.kinds import KINDS, OPEN_EPOCH
from keymesh.control.messages import EpochOffer, Sealed
from keymesh.control.voter_state import EpochReply
from keymesh.crypto.dsse import envelope_to_json
from keymesh.model.errors import KeymeshError, Refused, Unavailable
from keymesh.model.ids import MESH_NAMESPACE, check_tenant

if TYPE_CHECKING:
    from keymesh.app.core_app import CoreProcess

STORE_PATH: Final = "/v1/epoch"
HAND_IN_PATH: Final = "/v1/epoch/hand-in"
STORE_WAIT_S: Final = 10.0
PAGE_ENTRIES: Final = 64


class HandInBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``after``: seq of the last entry that came with the page before; 0 at first."""

    offer: EpochOffer
    namespace: str
    after: int = 0


class StoreAnswer(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``stored``: the voter's word, null where the region has none or refused.  ``namespaces``: what it can hand in."""

    region: str
    stored: Sealed | None
    refused: str
    namespaces: tuple[str, ...] = ()


class HandInAnswer(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """``states``: as applied, and tails of earlier epochs; ``entries``: DSSE envelopes in seq order; both base64.
    ``unread``: why recorded entries are not among them."""

    states: tuple[str, ...]
    entries: tuple[str, ...]
    more: bool
    unread: str = ""


class EpochDoor:
    """``reply`` takes the voter's effect."""

    def __init__(self, core: CoreProcess) -> None:
        self._core = core
        self._waiting: dict[str, asyncio.Future[EpochReply]] = {}

    def routes(self) -> list[Route]:
        def is_operator(request: Request) -> bool:
            return admit(None, Action.MESH_READ, identity=request.identity, assigned=ASSIGNED).allowed

        return [
            Route(method="POST", path=STORE_PATH, handler=self._store, allow=is_operator),
            Route(method="POST", path=HAND_IN_PATH, handler=self._hand_in, allow=is_operator),
        ]

    def reply(self, effect: EpochReply) -> None:
        waiter = self._waiting.pop(effect.token, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(effect)

    # --- storing -----------------------------------------------------------------------------------------------------

    async def _store(self, request: Request) -> Response:
        """What this region's voter says once it has stored the epoch; ``stored`` is null where it is none."""
        offer = request.json(EpochOffer)
        officers = self._officers(offer)
        stored, refused, held = None, "", set[str]()
        if self._is_voter():
            answer = await self.ask(lambda token: voter.EpochOffered(token, offer, officers))
            stored, refused = answer.stored, answer.refused
        elif not self._is_signed(offer):
            refused = "not-signed"
        if not refused:
            state = self._core.shell.state
            tenants = {name for name, holding in state.tenants.items() if holding.applied is not None}
            held = tenants | {MESH_NAMESPACE} | {name for name, _ in state.tails}
        return json_response(
            StoreAnswer(region=self._core.region, stored=stored, refused=refused, namespaces=tuple(sorted(held)))
        )

    async def ask(self, make: Callable[[str], object]) -> EpochReply:
        """The voter's answer to the event that ``make`` makes of a token.  Raises Unavailable where it is late."""
        token = os.urandom(12).hex()
        waiter = self._waiting[token] = asyncio.get_running_loop().create_future()
        self._core.voter.feed(make(token))
        try:
            return await asyncio.wait_for(waiter, STORE_WAIT_S)
        except TimeoutError as late:
            raise Unavailable("no-answer", "not recorded in time; ask again") from late
        finally:
            self._waiting.pop(token, None)

    def _officers(self, offer: EpochOffer) -> trust.Quorum | None:
        return officers_of(self._core, OPEN_EPOCH, {"epoch": offer.epoch})

    def _is_voter(self) -> bool:
        applied = self._core.shell.state.mesh.applied
        voters = None if applied is None else voters_of(applied.rows)
        return voters is not None and self._core.region in voters.regions

    def _is_signed(self, offer: EpochOffer) -> bool:
        core = self._core
        same_mesh = offer.mesh == core.config.mesh
        return same_mesh and voter_epoch.is_signed(offer, self._officers(offer), core.voter.state, core.voter.now())

    # --- handing in --------------------------------------------------------------------------------------------------

    async def _hand_in(self, request: Request) -> Response:
        """States and recorded entries of one namespace, a page at a time."""
        body = request.json(HandInBody)
        if not self._is_signed(body.offer):
            raise Refused("not-signed", "no threshold of recovery officers signed that", field="authority")
        if self._is_voter() and self._core.voter.state.promise != voter_epoch.promise_of(body.offer):
            raise Refused("not-stored", "this region's voter has not stored that epoch", field="epoch")
        namespace = body.namespace
        if namespace != MESH_NAMESPACE:
            check_tenant(namespace)
        rows, unread = self._recorded(namespace, max(0, body.after))
        states = self._states(namespace) if body.after <= 0 else []
        return json_response(
            HandInAnswer(
                states=tuple(_text(STATES_CODEC.encode(state)) for state in states),
                entries=tuple(_text(envelope_to_json(signed.envelope)) for _, signed in rows),
                more=len(rows) >= PAGE_ENTRIES,
                unread=unread,
            )
        )

    def _recorded(self, namespace: str, after: int) -> tuple[list[tuple[int, SignedEntry]], str]:
        """Entries, or why there are none: states are handed in all the same."""
        try:
            return self._core.history.store.read(namespace, after=after, most=PAGE_ENTRIES), ""
        except KeymeshError as bad:
            return [], bad.code

    def _states(self, namespace: str) -> list[Any]:
        state = self._core.shell.state
        holding = state.holding(namespace)
        held = [] if holding is None or holding.applied is None else [holding.applied]
        return held + [tail for (name, _), tail in sorted(state.tails.items()) if name == namespace]


def officers_of(core: CoreProcess, kind: str, args: dict[str, Any]) -> trust.Quorum | None:
    """Whose word a command of ``kind`` needs, as this region's applied mesh says; None where nobody can give it."""
    applied = core.shell.state.mesh.applied
    if applied is None:
        return None
    try:
        return trust.quorum_for(KINDS[kind], args, mesh_rows=applied.rows, tenant_signers=None)
    except KeymeshError:
        return None


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")
