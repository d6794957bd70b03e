"""A Core's door for Edges: leases with their key bytes, the stream of revocations and hints, usage reports, core-held
custody.

The machine decides; key bytes go from locked page to socket buffer here and nowhere else, and only after the lease
is durably recorded (``Persist`` comes before the grant).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import OrderedDict
from collections.abc import AsyncIterator
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from keymesh.access.identity import EdgeIdentity
from keymesh.adapters.http_messages import Request, Response, Route, Stream
from keymesh.app.core_held import HeldDoor
from keymesh.app.receipt_group import ReceiptGroup
from keymesh.core.events import LocalRestrict
from keymesh.core.open_rate import OpenRates
from keymesh.model.errors import Refused, Unavailable
from keymesh.model.ids import check_token
from keymesh.model.machine import Address, Received, edge_address
from keymesh.orbital import edge_wire as wire
from keymesh.orbital.edge_messages import (
    EdgeAckMessage,
    LeaseGrant,
    LeaseRefused,
    LeaseRequest,
    LeaseReturnedMessage,
    SliceReturnedMessage,
    UsageRecorded,
    UsageReport,
)
from keymesh.orbital.messages import Hello
from keymesh.orbital.wire import MESSAGES

if TYPE_CHECKING:
    from keymesh.app.core_app import CoreProcess

log = logging.getLogger("keymesh.core.edges")

ANSWER_WAIT_S: Final = 4.0
REPORTS_REMEMBERED: Final = 65_536
NOBODY: Final = "stream"
"""The mailbox of an Edge that has no stream open."""
STREAMS_MAX: Final = 64
"""Of one Edge; a new one takes the place of the oldest."""


class EdgeDoor:
    """Routes for Edges, and the way back to them."""

    def __init__(self, core: CoreProcess) -> None:
        self._core = core
        self._reports: OrderedDict[str, None] = OrderedDict()
        self._streams: dict[str, list[str]] = {}
        self._numbers = count()
        self.minted = self.opened = self.alarms = 0
        self.rates = OpenRates()
        self.receipts = ReceiptGroup(core.receipts, core.shell.now)
        self.held = HeldDoor(core, self)

    def routes(self) -> list[Route]:
        """For Edges of this region only."""

        def is_edge(request: Request) -> bool:
            return isinstance(request.identity, EdgeIdentity) and request.identity.region == self._core.region

        return [
            Route(method="POST", path=wire.MESSAGES_PATH, handler=self._messages, allow=is_edge, quiet=True),
            Route(method="GET", path=wire.STREAM_PATH, handler=self._stream, allow=is_edge, quiet=True),
            *self.held.routes(is_edge),
        ]

    # --- from the machine ------------------------------------------------------------------------------------------

    def send(self, to: str, message: Any) -> None:
        """Answers go to the request that waits for them, everything else down each of the Edge's streams.

        An Edge has as many as it has workers, of which each holds leases of its own.
        """
        if isinstance(message, LeaseGrant | LeaseRefused):
            waiter = self._core.replies.pop(f"{to}/{message.nonce}", None)
            if waiter is not None and not waiter.done():
                waiter.set_result(message)
        else:
            for channel in self._streams.get(to) or (NOBODY,):
                self._core.mailboxes.of(to, channel).put(message)

    # --- leases ----------------------------------------------------------------------------------------------------

    async def _messages(self, request: Request) -> Response:
        identity = request.identity
        assert isinstance(identity, EdgeIdentity)
        address = edge_address_of(identity)
        message = MESSAGES.decode(request.body, max_bytes=wire.MESSAGE_MAX_BYTES)
        match message:
            case LeaseRequest():
                return await self._lease(identity, address, message)
            case UsageReport():
                return self._usage(identity, address, message)
            case EdgeAckMessage() | LeaseReturnedMessage() | SliceReturnedMessage() | Hello():
                self._core.shell.feed(Received(sender=address, message=message))
                return Response(status=204)
            case _:
                raise Refused.bad_field("t", "a lease request or return, an acknowledgement, a usage report or a Hello")

    async def _lease(self, identity: EdgeIdentity, address: Address, message: LeaseRequest) -> Response:
        if (message.tenant, message.service) != (identity.tenant, identity.service):
            raise Refused("denied", "the certificate is for another tenant or service")
        self.want(identity)
        key = f"{address}/{message.nonce}"
        waiter = self._core.replies[key] = asyncio.get_running_loop().create_future()
        self._core.shell.feed(Received(sender=address, message=message))
        try:
            answer = await asyncio.wait_for(waiter, ANSWER_WAIT_S)
        except TimeoutError as late:
            raise Unavailable("no-answer", "the Core cannot decide now") from late
        finally:
            self._core.replies.pop(key, None)
        if isinstance(answer, LeaseRefused):
            return Response(body=MESSAGES.encode(answer))
        keys = [self._core.keyring.need(version.kid).secret.reveal() for version in answer.versions]
        body = wire.encode_grant(answer, keys)
        return Response(body=bytes(body), content_type=wire.GRANT_TYPE)

    async def _stream(self, request: Request) -> Stream:
        identity = request.identity
        assert isinstance(identity, EdgeIdentity)
        return Stream(self._lines(str(edge_address_of(identity))))

    async def _lines(self, address: str) -> AsyncIterator[bytes]:
        """What was put while nobody listened goes to the first that does."""
        channel = f"stream/{next(self._numbers)}"
        channels = self._streams.setdefault(address, [])
        channels.append(channel)
        del channels[:-STREAMS_MAX]
        try:
            yield b""
            for message in await self._core.mailboxes.of(address, NOBODY).take(timeout_s=0):
                yield MESSAGES.encode(message)
            while channel in channels:
                mailbox = self._core.mailboxes.of(address, channel)
                messages = await mailbox.take(timeout_s=wire.STREAM_ALIVE_MS / 1000 / 2)
                for message in messages:
                    yield MESSAGES.encode(message)
                if not messages:
                    yield b""
        finally:
            if channel in channels:
                channels.remove(channel)
            if not channels and self._streams.get(address) is channels:
                del self._streams[address]

    def want(self, identity: EdgeIdentity) -> None:
        """Its tenant's keys are needed here now: they are loaded before those that nobody asks for."""
        holding = self._core.shell.state.tenants.get(identity.tenant)
        if holding is not None and not holding.steady:
            self._core.loads.want(identity.tenant)

    # --- usage -----------------------------------------------------------------------------------------------------

    def _usage(self, identity: EdgeIdentity, address: Address, report: UsageReport) -> Response:
        """Counted once by its id, and receipted in aggregate before it is acknowledged."""
        if (report.tenant, report.service) != (identity.tenant, identity.service):
            raise Refused("denied", "the certificate is for another tenant or service")
        if min(report.minted, report.opened, report.refused) < 0:
            raise Refused.bad_field("minted, opened, refused", "counts from 0")
        name = f"{address}/{check_token('report_id', report.report_id)}"
        if name not in self._reports:
            self.receipts.append_now(str(identity), "key-use", report.tenant, usage_subject(report))
            self._reports[name] = None
            if len(self._reports) > REPORTS_REMEMBERED:
                self._reports.popitem(last=False)
            self.minted += report.minted
            self.opened += report.opened
            self.count_opened(report.tenant, report.service, report.opened)
        return Response(body=MESSAGES.encode(UsageRecorded(report_id=report.report_id)))

    # --- alarms ------------------------------------------------------------------------------------------------------

    def count_opened(self, tenant: str, service: str, opens: int) -> None:
        """Opens of a service; where they are abnormally many, say so, and suspend where its budget says that too."""
        holding = self._core.shell.state.tenants.get(tenant)
        row = None if holding is None else holding.view.budgets.get(service)
        now, limit = self._core.shell.now(), None if row is None else row.alarm_opens
        if row is None or not self.rates.opened(now, tenant, service, opens, limit):
            return
        rate = self.rates.per_minute(now, tenant, service)
        scope = f"service:{tenant}/{service}"
        self.alarms += 1
        fields = {"scope": scope, "opens_per_minute": rate, "limit": limit, "suspends": row.auto_suspend}
        log.error("abnormal open rate", extra={"fields": fields})
        actor = f"alarm:open-rate@{self._core.region}"
        if row.auto_suspend:
            reason = f"{rate} keys opened in a minute, the limit is {limit}"
            self._core.shell.feed(
                LocalRestrict(
                    command_id=f"alarm-{os.urandom(12).hex()}",
                    scope=scope,
                    action="suspend",
                    actor=actor,
                    correlation_id=os.urandom(8).hex(),
                    authority=(),
                    options={"reason": reason},
                )
            )
        self.receipts.append_now(actor, "open-rate-alarm", tenant, f"{service} opens:{rate} limit:{limit}")


def edge_address_of(identity: EdgeIdentity) -> Address:
    return edge_address(identity.region, identity.tenant, identity.service, identity.instance)


def usage_subject(report: UsageReport) -> str:
    return f"{report.service} minted:{report.minted} opened:{report.opened} refused:{report.refused}"
