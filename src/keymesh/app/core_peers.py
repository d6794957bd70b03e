"""What Cores of different regions say to each other: requests for a standby lease, grants, entries behind a head.

Carries messages and decides nothing: who sent one is what mTLS proved, and the machines judge the rest.  Each region
has its own bound, so that one which stands still delays nobody; what is lost is asked for again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING, Final

from keymesh.access.identity import CoreIdentity
from keymesh.adapters.http_messages import Request, Response, Route
from keymesh.app.core_broker import applied_row
from keymesh.control.messages import StandbyGrantMessage, StandbyRefused, StandbyRequest, StateRequest
from keymesh.model.errors import KeymeshError, Refused
from keymesh.model.limits import HTTP_BODY_MAX_BYTES
from keymesh.model.machine import Address, Received, node_address
from keymesh.orbital.messages import Task
from keymesh.orbital.wire import MESSAGES

if TYPE_CHECKING:
    from typing import Any

    from keymesh.app.core_app import CoreProcess

log = logging.getLogger("keymesh.core")

PATH: Final = "/v1/peer-messages"
IN_FLIGHT_MAX: Final = 32
POST_S: Final = 5.0
PEER_MESSAGES: Final = (StandbyRequest, StandbyGrantMessage, StandbyRefused, StateRequest, Task)


class PeerDoor:
    """Both ways: ``send`` to a node, and the route by which others send here."""

    def __init__(self, core: CoreProcess) -> None:
        self._core = core
        self._out: Counter[str] = Counter()

    def send(self, to: str, message: Any) -> None:
        """Hand ``message`` to node ``to``: at most once, unordered, may be lost."""
        region = to.removeprefix("node:").partition("/")[0]
        if region == self._core.region:
            if to == node_address(region, self._core.node):
                asyncio.get_running_loop().call_soon(self._take, Address(to), message)
        elif self._out[region] < IN_FLIGHT_MAX:
            self._out[region] += 1
            self._core.spawn(self._post(region, MESSAGES.encode(message)))

    async def _post(self, region: str, raw: bytes) -> None:
        try:
            await self._core.peer(region).request("POST", PATH, raw, timeout_s=POST_S)
        except KeymeshError as lost:
            log.debug("peer not reached", extra={"fields": {"region": region, "reason": lost.code}})
        finally:
            self._out[region] -= 1

    def routes(self) -> list[Route]:
        def is_core(request: Request) -> bool:
            return isinstance(request.identity, CoreIdentity)

        return [Route(method="POST", path=PATH, handler=self._received, allow=is_core, quiet=True)]

    async def _received(self, request: Request) -> Response:
        identity = request.identity
        assert isinstance(identity, CoreIdentity)
        message = MESSAGES.decode(request.body, max_bytes=HTTP_BODY_MAX_BYTES)
        if not isinstance(message, PEER_MESSAGES):
            raise Refused.bad_field("t", "no message for another region")
        self._take(node_address(identity.region, identity.node), message)
        return Response(status=204)

    def _take(self, sender: Address, message: Any) -> None:
        core = self._core
        target = core.voter if isinstance(message, StandbyRequest) else core.shell
        target.feed(Received(sender=sender, message=message))
        core.word.pass_on()
        if isinstance(message, Task):
            core.applied.append(applied_row(message, "peer"))
            core.history.applied(message.namespace)
