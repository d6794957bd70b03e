"""A small HTTP/1.1 server on aiohttp: limits before parsing, typed requests, one error form, nothing secret in logs.

Decides how a request becomes a ``Request`` and an answer or error becomes bytes; not what any route does.  Every
server carries /healthz, /readyz and /metrics, for any peer that passed the handshake.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import prometheus_client as prometheus
from aiohttp import web

from keymesh.adapters.correlation import current_correlation_id
from keymesh.adapters.http_bearer import Caller, Connections, TokenCheck
from keymesh.adapters.http_messages import (
    CORRELATION_HEADER,
    IDEMPOTENCY_HEADER,
    NDJSON,
    UNAUTHENTICATED,
    Request,
    Response,
    Route,
    Router,
    Stream,
    bug_response,
    problem_response,
)
from keymesh.adapters.http_parts import Limits as Limits
from keymesh.adapters.http_parts import (
    check_body_headers,
    correlation_id_of,
    headers_of,
    health_routes,
    known_method,
    new_id,
    query_of,
    to_web,
)
from keymesh.adapters.tls import PeerContext, PeerSSLObject
from keymesh.edge.sidecar_bind import bind_unix
from keymesh.model.errors import KeymeshError, Refused
from keymesh.model.ids import CorrelationId, check_token

log = logging.getLogger("keymesh.http")


class HttpMetrics:
    """Counters for one process; all its servers may share one."""

    def __init__(self, registry: prometheus.CollectorRegistry | None = None) -> None:
        self.registry: Final = prometheus.CollectorRegistry() if registry is None else registry
        self.requests: Final = prometheus.Counter(
            "keymesh_http_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds: Final = prometheus.Histogram(
            "keymesh_http_request_seconds", "Time from header to answer.", ["route"], registry=self.registry
        )


class _Protocol(web.RequestHandler):
    """aiohttp's connection, with a limit on their number and our error form for what it cannot parse."""

    __slots__ = ("owner",)

    def __init__(self, owner: HttpServer, manager: web.Server, **options: Any) -> None:
        super().__init__(manager, **options)
        self.owner = owner

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not self.owner.admits_connection(transport):
            log.warning("connection refused", extra={"fields": {"reason": "too many connections"}})
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        correlation_id = new_id()
        if request.writer.output_size > 0:
            raise ConnectionResetError("the answer was cut short")
        fields = {"status": status, "error": type(exc).__name__}
        log.warning("malformed request", extra={"correlation_id": correlation_id, "fields": fields})
        malformed = Refused.bad_field("http", "malformed request")
        said = bug_response(correlation_id) if status >= 500 else problem_response(malformed, correlation_id)
        answer = to_web(said, correlation_id)
        answer.force_close()
        return answer


class _Manager(web.Server):
    def __init__(self, owner: HttpServer, options: dict[str, Any]) -> None:
        super().__init__(owner.dispatch, handler_cancellation=True)
        self._owner = owner
        self._options = options

    def __call__(self) -> web.RequestHandler:
        return _Protocol(self._owner, self, loop=asyncio.get_running_loop(), **self._options)


class HttpServer:
    """One listener.  Made by ``serve``; ``close`` lets running work finish for ``limits.close_s``."""

    def __init__(
        self,
        routes: Sequence[Route],
        *,
        context: PeerContext | None,
        metrics: HttpMetrics,
        limits: Limits,
        on_bug: Callable[[Exception], None] | None,
        tokens: TokenCheck | None,
    ) -> None:
        self._context = context
        self._connections = None if tokens is None else Connections(tokens)
        self._metrics = metrics
        self._limits = limits
        self._on_bug = on_bug
        self._router = Router(list(routes))
        self._manager = _Manager(
            self,
            {
                "keepalive_timeout": limits.idle_s,
                "max_line_size": limits.header_line_bytes,
                "max_field_size": limits.header_line_bytes,
                "max_headers": limits.headers,
                "lingering_time": 1.0,
                "auto_decompress": False,
                "access_log": None,
            },
        )
        self._listener: asyncio.Server | None = None
        self._uncancelled: set[asyncio.Task[Response | Stream]] = set()
        self._cancelled_on_close: set[asyncio.Task[Any]] = set()
        self.port = 0

    async def listen(self, *, unix_socket: Path | None, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        try:
            if unix_socket is not None:
                bound = bind_unix(unix_socket)
                self._listener = await loop.create_unix_server(self._manager, sock=bound)
            else:
                self._listener = await loop.create_server(
                    self._manager, host, port, ssl=self._context, ssl_handshake_timeout=self._limits.handshake_s
                )
                self.port = self._listener.sockets[0].getsockname()[1]
        except OSError as failed:
            where = unix_socket or f"{host}:{port}"
            raise Refused("address-in-use", f"cannot listen on {where}: {failed.strerror}", field="port") from failed

    async def close(self) -> None:
        """Stop listening, end streams and long polls, let the rest finish for ``close_s``."""
        if self._listener is not None:
            self._listener.close()
        self._manager.pre_shutdown()
        for task in list(self._cancelled_on_close):
            task.cancel()
        if self._uncancelled:
            await asyncio.wait(set(self._uncancelled), timeout=self._limits.close_s)
        for work in list(self._uncancelled):
            work.cancel()
        await self._manager.shutdown(0.1)

    def admits_connection(self, transport: asyncio.BaseTransport) -> bool:
        """Who shows no certificate finds half of the places: strangers cannot take the other half from the mesh."""
        tls = transport.get_extra_info("ssl_object")
        share = 2 if isinstance(tls, PeerSSLObject) and tls.peer is None else 1
        return len(self._manager.connections) <= self._limits.connections // share

    # --- one request -------------------------------------------------------------------------------------------

    async def dispatch(self, request: web.BaseRequest) -> web.StreamResponse:
        """From header to answer: identify, route, admit, read, handle, write, log."""
        started = time.monotonic()
        correlation_id = correlation_id_of(request)
        current_correlation_id.set(correlation_id)
        template, caller, level = "-", Caller(None, None), logging.INFO
        try:
            caller = await self._caller(request)
            route, params = self._router.find(request.method, request.raw_path.partition("?")[0])
            template, level = route.path, logging.DEBUG if route.quiet else logging.INFO
            answer = await self._answer(request, route, params, caller, correlation_id)
        except KeymeshError as error:
            answer = problem_response(error, correlation_id)
            if answer.status == UNAUTHENTICATED:  # one try for each handshake
                request.protocol.close()
        except Exception as bug:
            self._report(bug)
            answer = bug_response(correlation_id)
        written, size = await self._write(request, answer, correlation_id, caller)
        seconds = time.monotonic() - started
        self._metrics.requests.labels(known_method(request.method), template, str(written.status)).inc()
        self._metrics.seconds.labels(template).observe(seconds)
        fields = {
            "method": request.method[:16],
            "route": template,
            "status": written.status,
            "ms": round(seconds * 1_000),
            "bytes_out": size,
            "peer": caller.name,
        }
        log.log(level if written.status < 400 else logging.INFO, "request", extra={"fields": fields})
        return written

    def _report(self, bug: Exception) -> None:
        log.error("bug", exc_info=bug)
        if self._on_bug is not None:
            self._on_bug(bug)

    async def _caller(self, request: web.BaseRequest) -> Caller:
        """Who is asking.  Raises Refused where that is nobody, or the connection has outlived its certificate."""
        if self._context is None:
            return Caller(None, None)
        tls = None if request.transport is None else request.transport.get_extra_info("ssl_object")
        if not isinstance(tls, PeerSSLObject) or (tls.peer is None and self._connections is None):
            raise Refused("unauthenticated", "no certificate")
        if tls.peer is not None and not self._context.still_accepts(tls.peer):
            raise Refused("unauthenticated", "the certificate has expired or is refused")
        if self._connections is None:
            return Caller(tls.peer, None)
        return await self._connections.caller(tls, request.headers.getall("Authorization", []))

    async def _answer(
        self, request: web.BaseRequest, route: Route, params: Mapping[str, str], caller: Caller, correlation_id: str
    ) -> Response | Stream:
        bearer = caller.bearer_on(route)
        headers = headers_of(request)
        check_body_headers(request, headers, route)
        key = headers.get(IDEMPOTENCY_HEADER.lower())
        asked = Request(
            method=route.method,
            path=request.raw_path.partition("?")[0],
            params=params,
            query=query_of(request),
            headers=headers,
            body=b"",
            peer=caller.peer,
            bearer=bearer,
            correlation_id=CorrelationId(correlation_id),
            idempotency_key=None if key is None else check_token(IDEMPOTENCY_HEADER.lower(), key),
        )
        if route.allow is not None and route.allow(asked) is not True:
            raise Refused("denied", "not allowed")
        asked = replace(asked, body=await self._read_body(request, route))
        if route.is_cancelled_with_client:
            return await self._cancellable(route.handler(asked))
        work: asyncio.Task[Response | Stream] = asyncio.ensure_future(route.handler(asked))
        self._uncancelled.add(work)
        work.add_done_callback(self._uncancelled.discard)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:  # the client has gone; the work runs on
            work.add_done_callback(self._collect)
            raise

    async def _cancellable(self, handling: Any) -> Response | Stream:
        task = asyncio.current_task()
        assert task is not None
        self._cancelled_on_close.add(task)
        try:
            answer: Response | Stream = await handling
            return answer
        finally:
            self._cancelled_on_close.discard(task)

    def _collect(self, work: asyncio.Task[Response | Stream]) -> None:
        """Nobody waits for this answer; a bug in it is still a bug."""
        failed = None if work.cancelled() else work.exception()
        if isinstance(failed, Exception) and not isinstance(failed, KeymeshError):
            self._report(failed)

    async def _read_body(self, request: web.BaseRequest, route: Route) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_s):
                async for chunk in request.content.iter_any():
                    body += chunk
                    if len(body) > route.body_max_bytes:
                        raise Refused("too-large", f"at most {route.body_max_bytes} bytes", field="body")
        except TimeoutError as late:
            request.protocol.close()
            raise Refused("request-timeout", "the body did not arrive in time", field="body") from late
        except ConnectionError as gone:
            raise Refused("client-gone", "the client closed the connection") from gone
        except web.RequestPayloadError as bad:
            request.protocol.close()
            raise Refused.bad_field("body", "malformed transfer coding") from bad
        return bytes(body)

    async def _write(
        self, request: web.BaseRequest, answer: Response | Stream, correlation_id: str, caller: Caller
    ) -> tuple[web.StreamResponse, int]:
        if isinstance(answer, Response):
            response = to_web(answer, correlation_id)
            await self._in_time(request, response.prepare(request))
            await self._in_time(request, response.write_eof())
            return response, len(answer.body)
        stream = web.StreamResponse(headers={CORRELATION_HEADER: correlation_id, "Content-Type": NDJSON})
        stream.enable_chunked_encoding()
        task = asyncio.current_task()
        assert task is not None
        self._cancelled_on_close.add(task)
        sent = 0
        try:
            await self._in_time(request, stream.prepare(request))
            async for line in answer.lines:
                if not self._still_accepts(caller):
                    request.protocol.force_close()
                    break
                await self._in_time(request, stream.write(line + b"\n"))
                sent += len(line) + 1
            await self._in_time(request, stream.write_eof())
        except KeymeshError as error:
            log.warning("stream ended", extra={"fields": {"code": error.code}})
            raise ConnectionResetError("the stream ended early") from error
        except (OSError, asyncio.CancelledError):
            raise
        except Exception as bug:
            self._report(bug)
            raise ConnectionResetError("the stream ended early") from bug
        finally:
            self._cancelled_on_close.discard(task)
            closing = getattr(answer.lines, "aclose", None)
            if closing is not None:
                await closing()
        return stream, sent

    def _still_accepts(self, caller: Caller) -> bool:
        """Whether what the caller proved itself with has neither expired nor been refused since."""
        if caller.peer is not None and self._context is not None and not self._context.still_accepts(caller.peer):
            return False
        return self._connections is None or self._connections.still_accepts(caller)

    async def _in_time(self, request: web.BaseRequest, writing: Any) -> None:
        """A peer that does not read is cut off."""
        try:
            async with asyncio.timeout(self._limits.write_s):
                await writing
        except TimeoutError as stalled:
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the peer does not read") from stalled


async def serve(
    routes: Sequence[Route],
    *,
    tls: PeerContext | None = None,
    unix_socket: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    readiness: Callable[[], Sequence[str]] = tuple,
    metrics: HttpMetrics | None = None,
    limits: Limits | None = None,
    on_bug: Callable[[Exception], None] | None = None,
    tokens: TokenCheck | None = None,
    warnings: Callable[[], Sequence[str]] = tuple,
) -> HttpServer:
    """Listen with mutual TLS on ``host``:``port`` (0: any; see ``.port``), or on a Unix socket for its owner alone.

    ``readiness`` gives the reasons for not being ready, ``warnings`` what somebody should look at all the same.
    ``on_bug`` hears of exceptions that are no KeymeshError.
    ``tokens``: checks bearer tokens, on the routes that take them; the TLS context says whether they replace a
    certificate.  Raises Refused ``address-in-use``.
    """
    if (tls is None) == (unix_socket is None):
        raise ValueError("give a TLS context or a Unix socket")
    metrics = metrics or HttpMetrics()
    server = HttpServer(
        [*routes, *health_routes(readiness, metrics.registry, warnings)],
        context=tls,
        metrics=metrics,
        limits=limits or Limits(),
        on_bug=on_bug,
        tokens=tokens,
    )
    await server.listen(unix_socket=unix_socket, host=host, port=port)
    return server
