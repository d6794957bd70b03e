"""A Core and the voter in its process: what the node tells it, and what it shows to people.

The voter hears which mesh state its node applied, and when the Registry answered it; operators read its seat, what it
has stored (by blinds) and whether the Registry is silent to it.  With
the officers' word for another set it seals its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keymesh.access.admit import Action, admit
from keymesh.adapters.http_messages import Request, Response, Route, json_response
from keymesh.app.core_epoch import officers_of
from keymesh.app.layout import ASSIGNED
from keymesh.control import voter, voter_state
from keymesh.control.kinds import CHANGE_VOTERS
from keymesh.control.messages import SetOffer
from keymesh.control.rows import PastVotersRow, RootRow, get
from keymesh.control.voter_seal import args_of

if TYPE_CHECKING:
    from keymesh.app.core_app import CoreProcess
    from keymesh.control.state import NamespaceState
    from keymesh.model.time import Instant

PATH = "/v1/voter"
SEAL_PATH = "/v1/voter/seal"


class VoterWord:
    """``pass_on`` after every event of the node's."""

    def __init__(self, core: CoreProcess) -> None:
        self._core = core
        self._applied: NamespaceState | None = None
        self._heard: Instant | None = None

    def pass_on(self) -> None:
        """Tell what has changed since."""
        core, node = self._core, self._core.shell.state
        applied, heard = node.mesh.applied, node.answered_sent_at
        if heard is not None and heard != self._heard:
            self._heard = heard
            core.voter.feed(voter.RegistryHeard(heard))
        if applied is not None and applied is not self._applied:
            self._applied = applied
            seat = voter.seat_of(applied, core.region, epoch=applied.head.entry.epoch)
            core.voter.feed(voter.MeshApplied(seat))

    def routes(self) -> list[Route]:
        def is_operator(request: Request) -> bool:
            return admit(None, Action.MESH_READ, identity=request.identity, assigned=ASSIGNED).allowed

        return [
            Route(method="GET", path=PATH, handler=self._show, allow=is_operator),
            Route(method="POST", path=SEAL_PATH, handler=self._seal, allow=is_operator),
        ]

    async def _seal(self, request: Request) -> Response:
        """What this region's voter says once it has sealed its set; ``sealed`` is null where it has not."""
        core, offer = self._core, request.json(SetOffer)
        officers = officers_of(core, CHANGE_VOTERS, args_of(offer))
        answer = await core.epochs.ask(lambda token: voter.SetOffered(token, offer, officers))
        return json_response({"region": core.region, "sealed": answer.stored, "refused": answer.refused})

    async def _show(self, request: Request) -> Response:
        """The seat and what is stored; ``voters`` as this region's applied mesh names them."""
        core = self._core
        state, now, mesh = core.voter.state, core.voter.now(), core.shell.state.mesh_view
        seat, voters = state.seat, mesh.voters
        shown: dict[str, Any] = {
            "region": core.region,
            "voters": None if voters is None else {"set_id": voters.set_id, "regions": list(voters.regions)},
            "earlier": self._earlier(),
            "sealed": state.sealed,
            "seated": seat is not None and seat.seated,
            "set_id": None if seat is None else seat.set_id,
            "epoch": None if seat is None else state.epoch,
            "reads_log": state.recalling is not None,
            "registry_silent": seat is not None and voter.has_missed(state, now),
            "serial": state.serial,
            "heads": {
                head.blind: f"{head.epoch}:{head.seq}"
                for head in sorted(voter_state.stored_heads(state), key=lambda head: head.blind)
            },
            "liars": sorted(core.shell.state.liars),
            "trust_version": self._trust_version(),
        }
        return json_response(shown)

    def _trust_version(self) -> int | None:
        """Of the root and officers that this region judges by."""
        applied = self._core.shell.state.mesh.applied
        root = None if applied is None else get(applied.rows, "root", RootRow)
        return None if root is None else root.version

    def _earlier(self) -> list[dict[str, Any]]:
        """Sets that were replaced, as this region's applied mesh keeps them, the newest first."""
        applied, voters = self._core.shell.state.mesh.applied, self._core.shell.state.mesh_view.voters
        found = []
        for set_id in range(0 if applied is None or voters is None else voters.set_id - 1, 0, -1):
            row = None if applied is None else get(applied.rows, f"voters/{set_id}", PastVotersRow)
            if row is not None:
                found.append({"set_id": set_id, "regions": list(row.regions), "until": row.until})
        return found
