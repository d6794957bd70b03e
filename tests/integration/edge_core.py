"""A Core as an Edge sees it: a real mTLS server of the project's own modules, with levers for every misbehaviour."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keymesh.access.identity import CoreIdentity, EdgeIdentity, parse_identity
from keymesh.adapters import key_files, pki
from keymesh.adapters.http_messages import Request, Response, Route, Stream
from keymesh.adapters.http_server import HttpServer, serve
from keymesh.adapters.tls import Credentials, MeshTls
from keymesh.control.entry import ENTRY_PAYLOAD_TYPE, Body, Entry, encode_entry
from keymesh.control.rows import ServiceRow
from keymesh.control.signing import DsseSuite
from keymesh.crypto.blob import L4_BLOB_BYTES, blob_kid, open_l4, seal_l4
from keymesh.crypto.dsse import Ed25519Signer, key_id
from keymesh.crypto.kid import kid_of
from keymesh.crypto.xaes import XaesKey
from keymesh.edge.client import EdgeTrust
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, Unavailable
from keymesh.model.ids import ZERO_DIGEST, Digest, MeshName
from keymesh.model.time import Instant
from keymesh.orbital import edge_wire as wire
from keymesh.orbital.edge_messages import (
    EdgeAck,
    EdgeAckMessage,
    LeasedVersion,
    LeaseGrant,
    LeaseReady,
    LeaseRefused,
    LeaseRequest,
    LeaseReturned,
    LeaseReturnedMessage,
    Revocation,
    UsageRecorded,
    UsageReport,
)
from keymesh.orbital.messages import Hello
from keymesh.orbital.wire import MESSAGES

MESH = MeshName("test-dev")
REGION = "eu"


def now() -> Instant:
    return Instant(time.time_ns() // 1_000_000)


@dataclass
class Pki:
    """A mesh root, the CAs of two regions, and identity files on demand."""

    root: pki.Authority = field(default_factory=lambda: pki.create_root(MESH, now=now()))

    def __post_init__(self) -> None:
        self.regions = {region: pki.create_intermediate(self.root, region, now=now()) for region in ("eu", "us")}
        self.root_pem = pki.certificates_pem([self.root.certificate])

    def identity_file(self, path: Path, uri: str) -> Path:
        identity = parse_identity(uri, MESH)
        authority = self.regions[identity.domain.partition(".")[0]]
        key = pki.new_tls_key()
        leaf = pki.issue_leaf(authority, identity=identity, public_key=key.public_key(), now=now())
        key_files.write_identity(path, key, [leaf, authority.certificate])
        return path

    def edge_file(self, directory: Path, *, tenant: str = "acme", service: str = "files", region: str = REGION) -> Path:
        uri = f"spiffe://{region}.{MESH}/tenant/{tenant}/edge/{service}/e1"
        return self.identity_file(directory / f"{tenant}-{service}-{region}.pem", uri)

    def ca_file(self, directory: Path) -> Path:
        path = directory / "ca.pem"
        path.write_bytes(self.root_pem)
        return path


@dataclass
class L3:
    version: int
    key: bytes = field(default_factory=lambda: os.urandom(32))

    @property
    def kid(self) -> bytes:
        return kid_of(self.key)


class TestCore:
    """Grants what its fields say.  ``trust`` is what an Edge needs to believe its policies."""

    __test__ = False

    def __init__(self, directory: Path, mesh: Pki, *, node: str = "n1", region: str = REGION) -> None:
        self.mesh = mesh
        identity = mesh.identity_file(directory / f"core-{node}-{region}.pem", f"spiffe://{region}.{MESH}/core/{node}")
        self.tls = MeshTls(Credentials(identity), MESH, mesh.root_pem).server(lambda i: isinstance(i, EdgeIdentity))
        self.registry = Ed25519Signer(Ed25519PrivateKey.generate())
        self.trust = EdgeTrust(mesh=MESH, registry_keys={self.registry.key_id: self.registry.public_key.hex()})
        self.suite = DsseSuite(self.registry)
        self.versions = [L3(1), L3(2)]
        self.policy = ServiceRow(version=1, custody="leased", edge_ttl_ms=60_000)
        self.ttl_ms = 60_000
        self.refuse: str | None = None
        self.retry_after_ms = 100
        self.unreachable = False
        self.delay_s = 0.0
        self.answer_late_s = 0.0
        self.swap_keys = False
        self.replay: bytes | None = None
        self.last_grant: bytes | None = None
        self.leases: dict[str, LeaseRequest] = {}
        self.acks: dict[tuple[str, str], EdgeAck] = {}
        self.acked = asyncio.Event()
        self.returned: set[str] = set()
        self.usage: dict[str, UsageReport] = {}
        self.usage_answers = True
        self.seen: Counter[str] = Counter()
        self.streams: list[asyncio.Queue[bytes]] = []
        self._server: HttpServer | None = None
        self.port = 0

    # --- life ------------------------------------------------------------------

    async def start(self) -> None:
        routes = [
            Route(method="POST", path=wire.MESSAGES_PATH, handler=self._messages),
            Route(method="GET", path=wire.STREAM_PATH, handler=self._stream),
            Route(
                method="POST",
                path=wire.CREATE_PATH,
                handler=self._create,
                body_max_bytes=wire.BATCH_BODY_MAX_BYTES,
            ),
            Route(method="POST", path=wire.OPEN_PATH, handler=self._open, body_max_bytes=wire.BATCH_BODY_MAX_BYTES),
            Route(method="POST", path=wire.RENEW_PATH, handler=self._renew),
        ]
        self._server = await serve(routes, tls=self.tls, port=self.port)
        self.port = self._server.port

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.close()
            self._server = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    # --- what a test does --------------------------------------------------------

    def blob(self, plaintext: bytes, version: L3) -> bytes:
        """What another Edge of the service made under that version."""
        return seal_l4(XaesKey(version.key), version.kid, "acme", {}, plaintext, os.urandom(24))

    def revoke(self, *lease_ids: str, revocation_id: str = "r1") -> None:
        """Push to every open stream."""
        named = lease_ids or tuple(self.leases)
        message = Revocation(
            revocation_id=revocation_id,
            lease_ids=named,
            tenant="acme",
            service="files",
            epoch=1,
            seq=9,
            correlation_id="corr-1",
        )
        for queue in self.streams:
            queue.put_nowait(MESSAGES.encode(message))

    def announce(self) -> None:
        """Tell every open stream that a lease can be had."""
        for queue in self.streams:
            queue.put_nowait(MESSAGES.encode(LeaseReady(tenant="acme", service="files")))

    async def until_acked(self, *lease_ids: str, revocation_id: str = "r1") -> None:
        async with asyncio.timeout(5):
            while not all((lease_id, revocation_id) in self.acks for lease_id in lease_ids):
                self.acked.clear()
                await self.acked.wait()

    async def until(self, name: str, count: int = 1) -> None:
        """Until ``count`` messages of that type have come."""
        await eventually(lambda: self.seen[name] >= count)

    def policy_entry(self) -> Any:
        entry = Entry(
            mesh=MESH,
            epoch=1,
            namespace="acme",
            seq=2,
            prev=ZERO_DIGEST,
            mesh_seq=1,
            kind="service.set",
            body=Body(args={"service": "files", "row": msgspec.to_builtins(self.policy)}),
            state=Digest("1" * 64),
            actor="operator",
            correlation_id="c1",
            command_id="c1",
            issued_at=0,
        )
        return self.registry.sign(encode_entry(entry), ENTRY_PAYLOAD_TYPE)

    # --- routes ------------------------------------------------------------------

    async def _messages(self, request: Request) -> Response:
        message = MESSAGES.decode(request.body, max_bytes=wire.MESSAGE_MAX_BYTES)
        self.seen[type(message).__name__] += 1
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.unreachable:
            raise Unavailable("closed", "this Core is closed")
        match message:
            case LeaseRequest():
                granted = self._lease(message)
                await asyncio.sleep(self.answer_late_s)
                return granted
            case EdgeAckMessage():
                self._ack(message)
            case LeaseReturnedMessage():
                self._returned(message)
            case UsageReport():
                if not self.usage_answers:
                    raise Unavailable("receipts", "not recorded")
                self.usage[message.report_id] = message
                return Response(body=MESSAGES.encode(UsageRecorded(report_id=message.report_id)))
            case Hello():
                pass
            case _:
                raise AssertionError(type(message).__name__)
        return Response(status=204)

    def _lease(self, request: LeaseRequest) -> Response:
        if self.refuse is not None:
            refused = LeaseRefused(nonce=request.nonce, code=self.refuse, retry_after_ms=self.retry_after_ms)
            return Response(body=MESSAGES.encode(refused))
        if self.replay is not None:
            return Response(body=self.replay, content_type=wire.GRANT_TYPE)
        lease_id = f"lease-{len(self.leases) + 1}"
        self.leases[lease_id] = request
        leased = self.versions if self.policy.custody == "leased" else []
        grant = LeaseGrant(
            lease_id=lease_id,
            nonce=request.nonce,
            tenant=request.tenant,
            service=request.service,
            ttl_ms=self.ttl_ms,
            versions=tuple(
                LeasedVersion(kid=l3.kid.hex(), version=l3.version, may_wrap=l3 is self.versions[-1]) for l3 in leased
            ),
            policy=self.policy,
            policy_entry=self.policy_entry(),
        )
        keys = [memoryview(l3.key) for l3 in leased]
        body = bytes(wire.encode_grant(grant, keys[::-1] if self.swap_keys else keys))
        self.last_grant = body
        return Response(body=body, content_type=wire.GRANT_TYPE)

    def _ack(self, message: EdgeAckMessage) -> None:
        """Only the key that took a lease settles it."""
        for lease_id, request in self.leases.items():
            key = bytes.fromhex(request.signing_key)
            try:
                ack = self.suite.unseal(message.ack, EdgeAck, {key_id(key): request.signing_key})
            except Integrity:
                continue
            if ack.lease_id == lease_id and ack.dropped:
                self.acks[(lease_id, ack.revocation_id)] = ack
                self.acked.set()

    def _returned(self, message: LeaseReturnedMessage) -> None:
        """Only the key that took a lease gives it back."""
        for lease_id, request in self.leases.items():
            key = bytes.fromhex(request.signing_key)
            try:
                word = self.suite.unseal(message.returned, LeaseReturned, {key_id(key): request.signing_key})
            except Integrity:
                continue
            if word.lease_id == lease_id:
                self.returned.add(lease_id)

    async def _stream(self, request: Request) -> Stream:
        queue: asyncio.Queue[bytes] = asyncio.Queue()

        async def lines() -> AsyncIterator[bytes]:
            self.streams.append(queue)
            try:
                yield b""
                while True:
                    try:
                        async with asyncio.timeout(1.0):
                            yield await queue.get()
                    except TimeoutError:
                        yield b""
            finally:
                self.streams.remove(queue)

        return Stream(lines())

    async def _create(self, request: Request) -> Response:
        self.seen["create"] += 1
        asked = wire.decode_create(request.body)
        l3 = self.versions[-1]
        made = []
        for _ in range(asked.count):
            l4 = os.urandom(32)
            blob = seal_l4(XaesKey(l3.key), l3.kid, "acme", asked.context, l4, os.urandom(24))
            made.append(
                wire.Created(blob=wire.to_base64(blob), plaintext=wire.to_base64(l4) if asked.plaintext else None)
            )
        return Response(body=strict_json.dumps(wire.CreateAnswer(keys=tuple(made))))

    async def _open(self, request: Request) -> Response:
        self.seen["open"] += 1
        blobs, context = wire.decode_open(request.body, blob_bytes=L4_BLOB_BYTES)
        by_kid = {l3.kid: l3 for l3 in self.versions}
        opened = []
        for blob in blobs:
            l3 = by_kid[blob_kid(blob)]
            opened.append(wire.to_base64(open_l4(XaesKey(l3.key), l3.kid, "acme", context, blob)))
        return Response(body=strict_json.dumps(wire.OpenAnswer(plaintexts=tuple(opened))))

    async def _renew(self, request: Request) -> Response:
        self.seen["renew"] += 1
        identity = request.identity
        assert isinstance(identity, EdgeIdentity)
        csr = strict_json.decode(request.body, wire.RenewRequest, max_bytes=wire.MESSAGE_MAX_BYTES).csr
        authority = self.mesh.regions[identity.region]
        leaf = pki.issue_from_csr(authority, csr.encode(), identity=identity, now=now())
        chain = pki.certificates_pem([leaf, authority.certificate]).decode()
        return Response(body=strict_json.dumps(wire.RenewAnswer(chain=chain)))


async def eventually(true: Callable[[], object], *, within_s: float = 8.0) -> None:
    """Until ``true()``, looked at often.  Raises TimeoutError."""
    deadline = time.monotonic() + within_s
    while not true():
        if time.monotonic() >= deadline:
            raise TimeoutError("it did not happen in time")
        await asyncio.sleep(0.01)


def connect_options(core: TestCore, directory: Path, *others: TestCore, **changes: Any) -> dict[str, Any]:
    """Arguments for ``Edge.connect``."""
    cores: Sequence[TestCore] = (core, *others)
    return {
        "identity": core.mesh.edge_file(directory),
        "ca": core.mesh.ca_file(directory),
        "cores": [c.url for c in cores],
        "trust": core.trust,
        "timeout_s": 5.0,
        "allow_unlocked_memory": True,
    } | changes


__all__ = ["L3", "MESH", "CoreIdentity", "Pki", "TestCore", "connect_options", "eventually"]
