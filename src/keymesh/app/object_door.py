"""What other regions' Cores may ask of this one's sealed objects: who changed, what, and to keep or to change some.

Only between regions that the tenant's policy allows, as applied here at that moment; all else is answered as if the
tenant did not exist.  Who asks is what mTLS proved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keymesh.access.identity import CoreIdentity
from keymesh.adapters.http_messages import OCTETS, Request, Response, Route, json_response
from keymesh.model.errors import Integrity, Refused
from keymesh.model.ids import check_service, check_tenant, check_token
from keymesh.model.limits import OBJECT_COMMIT_MAX, OBJECT_HEADS_MAX
from keymesh.orbital.object_sync import (
    CHANGES_PATH,
    COMMIT_PATH,
    HEADS_PATH,
    OFFER_PATH,
    Cursor,
    ForwardAnswer,
    ForwardBody,
    HeadsAnswer,
    OfferAnswer,
    OfferBody,
    PageAnswer,
    changes_of,
    from_octets,
    read_from,
    readable,
    to_octets,
)
from keymesh.orbital.objects import object_to_bytes

if TYPE_CHECKING:
    from keymesh.app.core_objects import CoreObjects

_DIGITS_MAX: Final = 15


class ObjectDoor:
    """Routes for Cores."""

    def __init__(self, objects: CoreObjects) -> None:
        self._objects = objects

    def routes(self) -> list[Route]:
        """All of them."""

        def is_core(request: Request) -> bool:
            return isinstance(request.identity, CoreIdentity)

        octets = (OCTETS,)
        return [
            Route(method="GET", path=HEADS_PATH, handler=self._heads, allow=is_core, quiet=True),
            Route(method="GET", path=CHANGES_PATH, handler=self._changes, allow=is_core, quiet=True),
            Route(method="POST", path=OFFER_PATH, handler=self._offer, allow=is_core, quiet=True, content_types=octets),
            Route(method="POST", path=COMMIT_PATH, handler=self._commit, allow=is_core, content_types=octets),
        ]

    def _asked(self, request: Request) -> tuple[str, str]:
        """(tenant, the asking region), where the two may speak of it."""
        tenant, region = check_tenant(request.params["tenant"]), _region(request)
        if not self._objects.may_exchange(tenant, region):
            raise Refused("not-found", "no such tenant here", field="tenant")
        return tenant, region

    async def _heads(self, request: Request) -> Response:
        region, after = _region(request), _number(request, "after")
        store = self._objects.store
        seen = store.heads(after=after)
        heads = tuple(pair for pair in seen if self._objects.may_exchange(pair[0], region))
        upto, more = seen[-1][1] if seen else after, len(seen) == OBJECT_HEADS_MAX
        return json_response(HeadsAnswer(origin=store.origin, heads=heads, upto=upto, more=more))

    async def _changes(self, request: Request) -> Response:
        tenant, _ = self._asked(request)
        store, origin = self._objects.store, request.query.get("origin", "")
        asked = Cursor(origin, _number(request, "after"))
        page = store.changes(tenant, after=read_from(asked, origin=store.origin, head=store.head(tenant)))
        self._objects.saw_damage(tenant, page.damaged)
        objects = tuple(object_to_bytes(one) for one in page.objects)
        body = to_octets(PageAnswer(store.origin, page.upto, page.more, objects))
        return Response(body=body, content_type=OCTETS)

    async def _offer(self, request: Request) -> Response:
        """Keep what another region wants to be kept, durably."""
        tenant, region = self._asked(request)
        body = from_octets(request.body, OfferBody)
        if len(body.objects) > OBJECT_COMMIT_MAX:
            raise Refused.bad_field("objects", f"at most {OBJECT_COMMIT_MAX}")
        offered, bad = readable(body.objects, tenant)
        if bad:
            raise Refused.bad_field("objects", "one of them is none of this tenant")
        verdicts = await self._objects.receive(tenant, offered, source=region)
        return json_response(OfferAnswer(verdicts=tuple(verdict.value for verdict in verdicts)))

    async def _commit(self, request: Request) -> Response:
        """Do a commit of which this region is the writer."""
        tenant, _ = self._asked(request)
        service = check_service(request.params["service"])
        body = from_octets(request.body, ForwardBody)
        try:
            changes = changes_of(body)
        except Integrity as bad:
            raise Refused.bad_field("changes", "one of them is no object") from bad
        done = await self._objects.commit_for_another(tenant, service, changes, forward=check_token("id", body.id))
        answer = to_octets(ForwardAnswer(tuple(object_to_bytes(one) for one in done)))
        return Response(body=answer, content_type=OCTETS)


def _region(request: Request) -> str:
    identity = request.identity
    assert isinstance(identity, CoreIdentity)
    return identity.region


def _number(request: Request, name: str) -> int:
    text = request.query.get(name, "0")
    if not text.isascii() or not text.isdigit() or len(text) > _DIGITS_MAX:
        raise Refused.bad_field(name, "a whole number")
    return int(text)
