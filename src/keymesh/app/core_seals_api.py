"""A Core's HTTP API for its seals: auditors see them, the operator alone uses and changes them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec

from keymesh.access.admit import Action, admit
from keymesh.adapters.http_messages import Request, Response, Route, json_response
from keymesh.app.core_seals import RegionSeals
from keymesh.app.layout import ASSIGNED
from keymesh.core.seals import Kind, Seal
from keymesh.model.errors import Refused

if TYPE_CHECKING:
    from keymesh.app.core_app import CoreProcess

SHARES_MAX: Final = 16
OPENING_WAIT_S: Final = 5.0  # for the key store, which may be away: the region then opens when it is back


class SharesBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """None: by the seals that open by themselves."""

    shares: tuple[str, ...] = ()


class AddBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``parameters`` and ``make_key`` of a kind that opens by itself; ``threshold`` and ``shares`` of ``shamir``."""

    kind: Kind
    parameters: dict[str, Any] = {}
    make_key: bool = False
    threshold: int = 0
    shares: int = 0


class ConfirmBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    seal: str
    shares: tuple[str, ...]


class RemoveBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    seal: str


class SealsApi:
    """Routes around one Core's ``RegionSeals``."""

    def __init__(self, core: CoreProcess) -> None:
        self._core = core

    @property
    def _seals(self) -> RegionSeals:
        return self._core.seals

    def routes(self) -> list[Route]:
        """All of them."""

        def may_see(request: Request) -> bool:
            return admit(None, Action.MESH_READ, identity=request.identity, assigned=ASSIGNED).allowed

        def is_operator(request: Request) -> bool:
            return admit(None, Action.REGION_SEALS, identity=request.identity, assigned=ASSIGNED).allowed

        return [
            Route(method="GET", path="/v1/seals", handler=self._list, allow=may_see),
            Route(method="POST", path="/v1/seals", handler=self._add, allow=is_operator),
            Route(method="POST", path="/v1/seals/confirm", handler=self._confirm, allow=is_operator),
            Route(method="POST", path="/v1/seals/remove", handler=self._remove, allow=is_operator),
            Route(method="POST", path="/v1/unseal", handler=self._unseal, allow=is_operator),
            Route(method="POST", path="/v1/seal", handler=self._seal, allow=is_operator),
        ]

    async def _list(self, request: Request) -> Response:
        """Each seal, and what its last try showed."""
        return self._answer()

    async def _add(self, request: Request) -> Response:
        """A seal; of ``shamir`` the shares, which count once they are confirmed."""
        body = request.json(AddBody)
        if body.kind is Kind.SHAMIR:
            if not 2 <= body.threshold <= body.shares <= SHARES_MAX:
                raise Refused.bad_field("shares", f"2 <= threshold <= shares <= {SHARES_MAX}")
            if body.parameters or body.make_key:
                raise Refused.bad_field("parameters", "none for shares")
            seal, shares = self._seals.changes.begin_shares(body.threshold, body.shares)
            return json_response({"region": self._core.region, "seal": seal.id, "shares": list(shares)})
        if body.threshold or body.shares:
            raise Refused.bad_field("shares", "for the kind shamir only")
        if body.kind is Kind.FILE and body.parameters:
            raise Refused.bad_field("parameters", "none for a file")
        seal = await self._seals.changes.add(
            body.kind,
            body.parameters,
            make_key=body.make_key,
            actor=str(request.identity),
            cause=request.correlation_id,
        )
        return self._answer(seal)

    async def _confirm(self, request: Request) -> Response:
        """Record shares that were made just now, shown enough of them."""
        body = request.json(ConfirmBody)
        seal = await self._seals.changes.confirm_shares(
            body.seal, _counted(body.shares), actor=str(request.identity), cause=request.correlation_id
        )
        return self._answer(seal)

    async def _remove(self, request: Request) -> Response:
        """Take a seal out of the list; never the last one."""
        body = request.json(RemoveBody)
        await self._seals.changes.remove(body.seal, actor=str(request.identity), cause=request.correlation_id)
        return self._answer()

    async def _seal(self, request: Request) -> Response:
        """Wipe every key, the MasterKey included; nothing is served until it is unsealed."""
        self._seals.seal(actor=str(request.identity), cause=request.correlation_id)
        return json_response({"region": self._core.region, "sealed": True})

    async def _unseal(self, request: Request) -> Response:
        """The MasterKey, from enough shares or from the seals that open by themselves."""
        body = request.json(SharesBody)
        shares = _counted(body.shares)
        await self._seals.unseal(shares, actor=str(request.identity), cause=request.correlation_id)
        if self._core.opening is not None:
            await asyncio.wait({self._core.opening}, timeout=OPENING_WAIT_S)
        return json_response({"region": self._core.region, "sealed": self._core.shell.state.sealed})

    def _answer(self, seal: Seal | None = None) -> Response:
        named = {} if seal is None else {"seal": seal.id}
        sealed = self._core.shell.state.sealed
        return json_response({"region": self._core.region, "sealed": sealed, "seals": self._seals.show(), **named})


def _counted(shares: tuple[str, ...]) -> tuple[str, ...]:
    if len(shares) > SHARES_MAX:
        raise Refused.bad_field("shares", f"at most {SHARES_MAX}")
    return shares
