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
from collections.abc import AsyncIterator, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from keymesh.access.identity import EdgeIdentity
from keymesh.adapters.http_messages import Request, Response, Route, Stream
from keymesh.core import context
from keymesh.crypto import blob as l4
from keymesh.crypto.kid import kid_bytes
from keymesh.ledger.receipts import Outcome, Receipt
from keymesh.model.errors import Integrity, Refused, Unavailable
from keymesh.model.ids import CorrelationId, Namespace, check_token
from keymesh.model.machine import Address, Received, edge_address
from keymesh.model.states import Operation
from keymesh.orbital import edge_wire as wire
from keymesh.orbital.edge_messages import (
    EdgeAckMessage,
    LeaseGrant,
    LeaseRefused,
    LeaseRequest,
    LeaseReturnedMessage,
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
        self.minted = self.opened = 0

    def routes(self) -> list[Route]:
        """For Edges of this region only."""

        def is_edge(request: Request) -> bool:
            return isinstance(request.identity, EdgeIdentity) and request.identity.region == self._core.region

        return [
            Route(method="POST", path=wire.MESSAGES_PATH, handler=self._messages, allow=is_edge, quiet=True),
            Route(method="GET", path=wire.STREAM_PATH, handler=self._stream, allow=is_edge, quiet=True),
            Route(
                method="POST",
                path=wire.CREATE_PATH,
                handler=self._create,
                allow=is_edge,
                quiet=True,
                body_max_bytes=wire.BATCH_BODY_MAX_BYTES,
            ),
            Route(
                method="POST",
                path=wire.OPEN_PATH,
                handler=self._open,
                allow=is_edge,
                quiet=True,
                body_max_bytes=wire.BATCH_BODY_MAX_BYTES,
            ),
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
            case EdgeAckMessage() | LeaseReturnedMessage() | Hello():
                self._core.shell.feed(Received(sender=address, message=message))
                return Response(status=204)
            case _:
                raise Refused.bad_field("t", "a lease request or return, an acknowledgement, a usage report or a Hello")

    async def _lease(self, identity: EdgeIdentity, address: Address, message: LeaseRequest) -> Response:
        if (message.tenant, message.service) != (identity.tenant, identity.service):
            raise Refused("denied", "the certificate is for another tenant or service")
        self._want(identity)
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

    def _want(self, identity: EdgeIdentity) -> None:
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
            self._receipt(str(identity), "key-use", report.tenant, usage_subject(report))
            self._reports[name] = None
            if len(self._reports) > REPORTS_REMEMBERED:
                self._reports.popitem(last=False)
            self.minted += report.minted
            self.opened += report.opened
        return Response(body=MESSAGES.encode(UsageRecorded(report_id=report.report_id)))

    def _receipt(self, actor: str, action: str, tenant: str, subject: str) -> None:
        receipts = self._core.receipts
        receipts.append(
            Receipt(
                id=os.urandom(12).hex(),
                at=self._core.shell.now(),
                actor=actor,
                action=action,
                namespace=Namespace(tenant),
                outcome=Outcome.DONE,
                correlation_id=CorrelationId(os.urandom(8).hex()),
                lamport=receipts.lamport + 1,
                subject=subject,
            )
        )

    # --- core-held custody -----------------------------------------------------------------------------------------

    def _check(self, identity: EdgeIdentity, version: int, operation: Operation) -> None:
        verdict = context.may_use(
            self._core.shell.state, self._core.shell.now(), identity.tenant, identity.service, version, operation
        )
        if not verdict.allowed:
            raise Unavailable(verdict.reason, "this key may not be used here now")

    async def _create(self, request: Request) -> Response:
        identity = request.identity
        assert isinstance(identity, EdgeIdentity)
        self._want(identity)
        asked = wire.decode_create(request.body)
        view = self._core.view(identity.tenant)
        version = view.wrapping.get(f"l3/{identity.service}")
        if version is None:
            raise Unavailable("not-loaded", "the service has no active key yet")
        self._check(identity, version, Operation.WRAP)
        held = self._core.keyring.need(view.keys[(f"l3/{identity.service}", version)].kid)
        self._receipt(str(identity), "core-held-create", identity.tenant, f"{identity.service}:{asked.count}")
        made = []
        for _ in range(asked.count):
            key = os.urandom(l4.L4_BYTES)
            blob = l4.seal_l4(held.cipher, kid_bytes(held.kid), identity.tenant, asked.context, key, self._nonce())
            made.append(
                wire.Created(blob=wire.to_base64(blob), plaintext=wire.to_base64(key) if asked.plaintext else None)
            )
        self._check(identity, version, Operation.WRAP)
        return _json(wire.CreateAnswer(keys=tuple(made)))

    async def _open(self, request: Request) -> Response:
        identity = request.identity
        assert isinstance(identity, EdgeIdentity)
        self._want(identity)
        blobs, given = wire.decode_open(request.body, blob_bytes=l4.L4_BLOB_BYTES)
        view = self._core.view(identity.tenant)
        versions = {row.kid: version for (key, version), row in view.keys.items() if key == f"l3/{identity.service}"}
        self._receipt(str(identity), "core-held-open", identity.tenant, f"{identity.service}:{len(blobs)}")
        plaintexts = [self._open_one(identity, blob, given, versions) for blob in blobs]
        for version in {versions[l4.blob_kid(blob).hex()] for blob in blobs}:
            self._check(identity, version, Operation.UNWRAP)
        return _json(wire.OpenAnswer(plaintexts=tuple(wire.to_base64(p) for p in plaintexts)))

    def _open_one(
        self, identity: EdgeIdentity, blob: bytes, given: Mapping[str, str], versions: Mapping[str, int]
    ) -> bytes:
        version = versions.get(l4.blob_kid(blob).hex())
        if version is None:
            raise Integrity.opaque()
        self._check(identity, version, Operation.UNWRAP)
        held = self._core.keyring.need(l4.blob_kid(blob).hex())
        return l4.open_l4(held.cipher, kid_bytes(held.kid), identity.tenant, given, blob)

    def _nonce(self) -> bytes:
        return self._core.keyring.nonce()


def edge_address_of(identity: EdgeIdentity) -> Address:
    return edge_address(identity.region, identity.tenant, identity.service, identity.instance)


def usage_subject(report: UsageReport) -> str:
    return f"{report.service} minted:{report.minted} opened:{report.opened} refused:{report.refused}"


def _json(value: Any) -> Response:
    from keymesh.model import strict_json

    return Response(body=strict_json.dumps(value))
