"""The wire of a face: HTTP/1.1 over TLS with every header kept, in ``edge.http1``'s limits; logs, metrics, drain.

Decides nothing that a face answers.  A log line never holds a body, a query or a header.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from pathlib import Path
from typing import Any, Final

import prometheus_client as prometheus

from keymesh.adapters.correlation import current_correlation_id
from keymesh.adapters.http_parts import new_id
from keymesh.compat.face import Face, FaceAnswer, FaceRequest
from keymesh.edge.http1 import BadRequest, Connection, Request
from keymesh.edge.http1_server import Server
from keymesh.edge.http_answers import Answer, Heads
from keymesh.model.errors import Refused
from keymesh.model.ids import check_token

log = logging.getLogger("keymesh.face")

DRAIN_S: Final = 5.0
BUG: Final = "an error of ours; it is in the log under this id"


class WholeRequest(Request):
    """With all its headers, as they came."""

    __slots__ = ("headers",)

    def __init__(self, plain: Request, headers: list[tuple[bytes, bytes]]) -> None:
        super().__init__(plain.method, plain.path, plain.content_type, plain.correlation_id, plain.body, plain.peer)
        self.headers = headers


class FaceConnection(Connection):
    """Keeps the headers of each request; one that comes after the body counts for nothing, and is refused."""

    def _reset(self) -> None:
        super()._reset()
        self._all: list[tuple[bytes, bytes]] = []
        self._head_is_over = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_is_over:
            raise BadRequest(400, "bad-field", "no header after the body")
        super().on_header(name, value)
        self._all.append((name, value))

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._head_is_over = True

    def _request(self) -> Request:
        return WholeRequest(super()._request(), self._all)


class FaceMetrics:
    """Counted by the face's own words."""

    def __init__(self) -> None:
        self.registry: Final = prometheus.CollectorRegistry()
        labels = ["face", "operation", "status"]
        self.requests: Final = prometheus.Counter(
            "keymesh_face_requests", "Requests answered.", labels, registry=self.registry
        )
        self.seconds: Final = prometheus.Histogram(
            "keymesh_face_request_seconds", "From the whole request to its answer.", labels[:2], registry=self.registry
        )


class FaceServer:
    """One face on one listener.  Made on the loop that serves."""

    def __init__(
        self, face: Face, *, metrics: FaceMetrics | None = None, connection: type[Connection] = FaceConnection
    ) -> None:
        self._face = face
        self._heads = Heads()
        self.metrics = metrics or FaceMetrics()
        self._server = Server(
            self._begin, self._refuse, heads=self._heads, body_max=face.body_max, connection=connection
        )

    async def listen(self, bound: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Without TLS only what holds no secret is served."""
        await self._server.listen(bound, tls=tls, peer_of=_peer_of)

    async def close(self, within_s: float = DRAIN_S) -> None:
        """Take no more connections, finish what has come."""
        await self._server.close(within_s)

    def _refuse(self, status: int, code: str, message: str) -> Answer:
        return self._bytes(self._face.refuse(status, code, message), new_id())

    def _begin(self, request: Request) -> Any:
        return self._answer(request)

    async def _answer(self, request: Request) -> Answer:
        correlation_id = _correlation_id(request.correlation_id)
        current_correlation_id.set(correlation_id)  # of this request's own task
        began = time.monotonic()
        try:
            answer = await self._face.answer(_whole(request, correlation_id))
        except Exception as bug:
            log.error("bug", exc_info=bug)
            answer = self._face.refuse(500, "internal", BUG)
        seconds = time.monotonic() - began
        operation = answer.operation or "none"
        self.metrics.requests.labels(self._face.name, operation, str(answer.status)).inc()
        self.metrics.seconds.labels(self._face.name, operation).observe(seconds)
        if answer.notable or answer.status >= 400:
            fields = {"operation": operation, "status": answer.status, "ms": round(seconds * 1_000)}
            fields |= {"face": self._face.name, "peer": request.peer.address, **answer.said}
            log.info("request", extra={"fields": fields})
        return self._bytes(answer, correlation_id)

    def _bytes(self, answer: FaceAnswer, correlation_id: str) -> Answer:
        more = [("X-Correlation-Id", correlation_id), *answer.headers]
        lines = b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in more)
        head = self._heads.head(answer.status, answer.content_type.encode("ascii"), len(answer.body), lines)
        return head + answer.body


class Peer:
    """Who is at the other end of a connection."""

    __slots__ = ("address", "certificate")

    def __init__(self, address: str, certificate: bytes | None) -> None:
        self.address = address
        self.certificate = certificate


def _peer_of(transport: asyncio.BaseTransport) -> Peer:
    name = transport.get_extra_info("peername")
    tls = transport.get_extra_info("ssl_object")
    address = str(name[0]) if isinstance(name, tuple) else ""
    return Peer(address, None if tls is None else tls.getpeercert(True))


def _whole(request: Request, correlation_id: str) -> FaceRequest:
    assert isinstance(request, WholeRequest)
    path, _, query = request.path.decode("latin-1").partition("?")
    return FaceRequest(
        method=request.method.decode("latin-1"),
        path=path,
        query=query,
        headers=tuple((n.decode("latin-1").lower(), v.decode("latin-1").strip(" \t")) for n, v in request.headers),
        body=request.body,
        peer=request.peer.address,
        certificate=request.peer.certificate,
        correlation_id=correlation_id,
    )


def _correlation_id(given: bytes) -> str:
    """The client's where it is one well-formed token, else a new one."""
    if given:
        try:
            return check_token("correlation id", given.decode("latin-1"))
        except Refused:
            pass
    return new_id()


def server_context(identity_file: Path, client_ca: bytes | None = None) -> ssl.SSLContext:
    """TLS 1.2 and 1.3 for clients of all kinds, showing the key and certificates in ``identity_file``.

    ``client_ca``: PEM; a client may then show a certificate of it, and no other.  Raises Refused.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    try:
        context.load_cert_chain(identity_file)
        if client_ca is not None:
            context.verify_mode = ssl.CERT_OPTIONAL
            context.verify_flags |= ssl.VERIFY_X509_STRICT
            context.load_verify_locations(cadata=client_ca.decode("ascii"))
    except (OSError, ssl.SSLError, ValueError) as bad:
        raise Refused.bad_field("tls", "key and certificates must be PEM, in one file, and belong together") from bad
    return context


class HealthFace:
    """``/healthz`` and ``/metrics`` on a listener of their own, for whoever watches the process."""

    name: Final = "health"
    body_max: Final = 0

    def __init__(self, metrics: FaceMetrics) -> None:
        self._metrics = metrics

    async def answer(self, request: FaceRequest) -> FaceAnswer:
        if request.method != "GET" or request.path not in ("/healthz", "/metrics"):
            return self.refuse(404, "not-found", "GET /healthz or /metrics")
        if request.path == "/healthz":
            return FaceAnswer(status=200, body=b'{"ok":true}')
        body = prometheus.generate_latest(self._metrics.registry)
        return FaceAnswer(status=200, body=body, content_type=prometheus.CONTENT_TYPE_LATEST)

    def refuse(self, status: int, code: str, message: str) -> FaceAnswer:
        return FaceAnswer(status=status, body=b'{"ok":false}')
