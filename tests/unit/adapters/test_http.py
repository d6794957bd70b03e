"""The HTTP server and client against each other and against raw bytes, over real mutual TLS on loopback."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.adapters.pki_world import N1, N2, REGISTRY, World

from keymesh.access.identity import CoreIdentity
from keymesh.adapters import pki
from keymesh.adapters.http_client import PeerClient
from keymesh.adapters.http_messages import Request, Response, Route, Router, Stream, json_response
from keymesh.adapters.http_server import HttpServer, Limits, serve
from keymesh.adapters.tls import MeshTls
from keymesh.model.errors import Integrity, Refused, Unavailable

SECRET = "canary-5f1d"


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    ttl_ms: int


@dataclass
class App:
    """The routes under test and what became of their handlers."""

    started: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    ended: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    bugs: list[Exception] = field(default_factory=list)
    seen: list[Request] = field(default_factory=list)

    def routes(self) -> list[Route]:
        def get(path: str, handler: Callable[[Request], Awaitable[Response | Stream]], **more: Any) -> Route:
            return Route(method="GET", path=path, handler=handler, **more)

        return [
            Route(method="POST", path="/echo", handler=self.echo),
            Route(method="POST", path="/small", handler=self.echo, body_max_bytes=10),
            Route(method="POST", path="/work", handler=self.work),
            get("/things/{tenant}/{name}", self.who),
            get("/error/{kind}", self.error),
            get("/n2-only", self.who, allow=lambda request: str(request.identity) == N2),
            get("/poll", self.poll),
            get("/stream", self.stream),
            get("/big", self.big),
            get("/broken-stream", self.broken_stream),
        ]

    async def echo(self, request: Request) -> Response:
        self.seen.append(request)
        return json_response(request.json(Body))

    async def who(self, request: Request) -> Response:
        self.seen.append(request)
        return json_response({"identity": str(request.identity), "params": dict(request.params)})

    async def error(self, request: Request) -> Response:
        match request.params["kind"]:
            case "bug":
                raise KeyError(SECRET)
            case "integrity":
                raise Integrity("bad-tag", f"tag of {SECRET}", field="blob")
            case "unavailable":
                raise Unavailable("closed", "no lease", retry_after_ms=2_500)
            case "bad-field":
                raise Refused.bad_field("name", "too long")
            case code:
                raise Refused(code, "no", field="f")

    async def work(self, request: Request) -> Response:
        self.started.set()
        await self.release.wait()
        self.ended.append("work done")
        return json_response({})

    async def poll(self, request: Request) -> Response:
        self.started.set()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            self.ended.append("poll cancelled")
            raise
        return json_response({})

    async def stream(self, request: Request) -> Stream:
        async def lines() -> AsyncIterator[bytes]:
            try:
                for number in range(3):
                    yield b'{"n":%d}' % number
                self.started.set()
                await self.release.wait()
                yield b'{"n":3}'
            finally:
                self.ended.append("stream closed")

        return Stream(lines())

    async def broken_stream(self, request: Request) -> Stream:
        async def lines() -> AsyncIterator[bytes]:
            yield b"{}"
            raise KeyError(SECRET)

        return Stream(lines())

    async def big(self, request: Request) -> Response:
        return Response(body=b"x" * 100_000)


@dataclass
class Bed:
    app: App
    server: HttpServer
    server_tls: MeshTls
    client_tls: MeshTls

    def client(self, tls: MeshTls | None = None, **more: Any) -> PeerClient:
        context = (tls or self.client_tls).client(lambda peer: str(peer) == REGISTRY)
        return PeerClient(f"https://127.0.0.1:{self.server.port}", context, **more)

    async def raw(self, data: bytes, *, pause_s: float = 0) -> bytes:
        """The server's bytes in answer to ``data``, until it closes."""
        context = self.client_tls.client(lambda peer: True)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port, ssl=context)
        with suppress(ConnectionError):
            writer.write(data)
            await asyncio.sleep(pause_s)
            return await asyncio.wait_for(reader.read(), 5)
        writer.close()
        return b""


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture
def bed(world: World, tmp_path: Path) -> Callable[..., Any]:
    @asynccontextmanager
    async def up(**limits: Any) -> AsyncIterator[Bed]:
        app = App()
        server_tls = world.tls(tmp_path / "server", REGISTRY)
        server = await serve(
            app.routes(),
            tls=server_tls.server(),
            readiness=lambda: app.reasons,
            warnings=lambda: app.warnings,
            limits=Limits(**({"close_s": 1.0} | limits)),
            on_bug=app.bugs.append,
        )
        try:
            yield Bed(app, server, server_tls, world.tls(tmp_path / "client", N1))
        finally:
            app.release.set()
            await server.close()

    return up


BedUp = Callable[..., Any]


@pytest.mark.parametrize("run", [asyncio.run], ids=["asyncio"])
def test_request_and_answer_on_both_loops(bed: BedUp, run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def body() -> None:
        async with bed() as up, up.client() as client:
            status, content = await client.request(
                "POST", "/echo", b'{"name":"a","ttl_ms":5}', correlation_id="cid-1", idempotency_key="idem-1"
            )
            assert (status, json.loads(content)) == (200, {"name": "a", "ttl_ms": 5})
            request = up.app.seen[0]
            assert isinstance(request.identity, CoreIdentity)
            assert (request.correlation_id, request.idempotency_key) == ("cid-1", "idem-1")
            _, content = await client.request("GET", "/things/acme/files", query={"at": "3"})
            assert json.loads(content)["params"] == {"tenant": "acme", "name": "files"}
            assert dict(up.app.seen[1].query) == {"at": "3"}

    run(body())


ERRORS: list[tuple[str, type[Exception], str, str | None]] = [
    ("bad-field", Refused, "bad-field", "name"),
    ("not-found", Refused, "not-found", "f"),
    ("conflict", Refused, "conflict", "f"),
    ("denied", Refused, "denied", "f"),
    ("disabled", Refused, "disabled", "f"),
    ("something-else", Refused, "something-else", "f"),
    ("unavailable", Unavailable, "closed", None),
    ("integrity", Integrity, "integrity", None),
    ("bug", Unavailable, "internal", None),
]


@pytest.mark.parametrize(("kind", "expected", "code", "field_name"), ERRORS)
async def test_errors_arrive_as_what_they_were(
    bed: BedUp, kind: str, expected: type[Exception], code: str, field_name: str | None
) -> None:
    async with bed() as up, up.client() as client:
        with pytest.raises(expected) as raised:
            await client.request("GET", f"/error/{kind}")
        error = raised.value
        assert (error.code, error.field) == (code, field_name)  # type: ignore[attr-defined]
        assert SECRET not in str(error)
        if kind == "unavailable":
            assert error.retry_after_ms == 2_500  # type: ignore[attr-defined]
        assert [type(bug) for bug in up.app.bugs] == ([KeyError] if kind == "bug" else [])


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("bad-field", 400),
        ("denied", 403),
        ("disabled", 403),
        ("not-found", 404),
        ("conflict", 409),
        ("other", 422),
        ("integrity", 422),
        ("unavailable", 503),
        ("bug", 500),
    ],
)
async def test_statuses_and_no_traceback(bed: BedUp, kind: str, status: int) -> None:
    async with bed() as up:
        answer = await up.raw(
            f"GET /error/{kind} HTTP/1.1\r\nHost: x\r\nX-Correlation-Id: c-9\r\nConnection: close\r\n\r\n".encode()
        )
        head, _, content = answer.partition(b"\r\n\r\n")
        assert int(head.split()[1]) == status
        problem = json.loads(content)
        assert problem["correlation_id"] == "c-9"
        assert set(problem) == {"error", "correlation_id"}
        assert b"X-Correlation-Id: c-9" in head
        assert SECRET.encode() not in answer
        assert b"Traceback" not in answer
        assert (b"Retry-After: 3" in head) == (kind == "unavailable")


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "a\tb", "é"])
async def test_malformed_correlation_ids_are_replaced(bed: BedUp, given: str) -> None:
    async with bed() as up:
        head = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Correlation-Id: "
        answer = await up.raw(head + given.encode() + b"\r\n\r\n")
        echoed = next(line for line in answer.split(b"\r\n") if line.lower().startswith(b"x-correlation-id"))
        assert len(echoed.split(b": ")[1]) == 32


def request_bytes(path: str = "/echo", *, method: str = "POST", headers: str = "", body: bytes = b"") -> bytes:
    length = "" if "Transfer-Encoding" in headers else f"Content-Length: {len(body)}\r\n"
    kind = "" if "Content-Type" in headers else "Content-Type: application/json\r\n"
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{kind}{length}{headers}\r\n".encode() + body


GOOD = b'{"name":"a","ttl_ms":5}'
BAD: dict[str, tuple[bytes, int]] = {
    "malformed JSON": (request_bytes(body=b'{"name":'), 400),
    "unknown field": (request_bytes(body=b'{"name":"a","ttl_ms":5,"tenant_id":"x"}'), 400),
    "duplicate key": (request_bytes(body=b'{"name":"a","name":"b","ttl_ms":5}'), 400),
    "a float": (request_bytes(body=b'{"name":"a","ttl_ms":5.0}'), 400),
    "NaN": (request_bytes(body=b'{"name":"a","ttl_ms":NaN}'), 400),
    "beyond 64 bits": (request_bytes(body=b'{"name":"a","ttl_ms":9223372036854775808}'), 400),
    "lone surrogate": (request_bytes(body=rb'{"name":"\ud800","ttl_ms":5}'), 400),
    "BOM": (request_bytes(body=b"\xef\xbb\xbf" + GOOD), 400),
    "not UTF-8": (request_bytes(body=b'{"name":"\xff","ttl_ms":5}'), 400),
    "deep": (request_bytes(body=b"[" * 100_000), 400),
    "no body": (request_bytes(), 400),
    "other content type": (request_bytes(headers="Content-Type: text/plain\r\n", body=GOOD), 415),
    "gzip": (request_bytes(headers="Content-Encoding: gzip\r\n", body=GOOD), 415),
    "expectation": (request_bytes(headers="Expect: 100-continue\r\n", body=GOOD), 415),
    "oversized body": (request_bytes("/small", body=GOOD), 413),
    "oversized chunked": (
        request_bytes("/small", headers="Transfer-Encoding: chunked\r\n", body=b"17\r\n" + GOOD + b"\r\n0\r\n\r\n"),
        413,
    ),
    "CL and TE": (
        request_bytes(
            headers="Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", body=b"17\r\n" + GOOD + b"\r\n0\r\n\r\n"
        ),
        400,
    ),
    "two lengths": (request_bytes(headers="Content-Length: 1\r\n", body=GOOD), 400),
    "bad chunk": (request_bytes(headers="Transfer-Encoding: chunked\r\n", body=b"zz\r\n" + GOOD), 400),
    "huge header": (request_bytes(headers=f"X-Big: {'x' * 20_000}\r\n", body=GOOD), 400),
    "many headers": (request_bytes(headers="".join(f"X-{n}: 1\r\n" for n in range(500)), body=GOOD), 400),
    "bad idempotency key": (request_bytes(headers="Idempotency-Key: a b\r\n", body=GOOD), 400),
    "two idempotency keys": (request_bytes(headers="Idempotency-Key: a\r\nIdempotency-Key: b\r\n", body=GOOD), 400),
    "not HTTP": (b"\x00\x01\x02\x03\r\n\r\n", 400),
    "percent path": (request_bytes("/%65cho", body=GOOD), 404),
    "dot path": (request_bytes("/x/../echo", body=GOOD), 404),
    "double slash": (request_bytes("//echo", body=GOOD), 404),
    "trailing slash": (request_bytes("/echo/", body=GOOD), 404),
    "absolute form": (request_bytes("https://evil/echo", body=GOOD), 404),
    "wrong method": (request_bytes(method="GET"), 405),
    "method override": (request_bytes(method="GET", headers="X-HTTP-Method-Override: POST\r\n"), 405),
    "duplicate query": (request_bytes("/things/a/b?x=1&x=2", method="GET"), 400),
    "endless query": (request_bytes("/things/a/b?" + "&".join(f"x{n}=1" for n in range(99)), method="GET"), 400),
    "encoded segment": (request_bytes("/things/a/%2e%2e", method="GET"), 404),
}


@pytest.mark.parametrize("fault", sorted(BAD))
async def test_bad_input_gets_a_clear_answer(bed: BedUp, fault: str) -> None:
    async with bed() as up:
        data, status = BAD[fault]
        answer = await up.raw(data)
        head, _, content = answer.partition(b"\r\n\r\n")
        assert int(head.split()[1]) == status, answer
        assert json.loads(content)["error"]["code"]
        assert up.app.bugs == []
        assert json.loads((await up.raw(request_bytes(body=GOOD))).partition(b"\r\n\r\n")[2])["name"] == "a"


@pytest.mark.parametrize("data", [b"", b"POST /echo HTT", b"POST /echo HTTP/1.1\r\nHost: x\r\nX-A: "])
async def test_slow_headers_are_cut_off(bed: BedUp, data: bytes) -> None:
    async with bed(idle_s=0.2) as up:
        assert await up.raw(data) == b""


async def test_trickled_headers_do_not_extend_the_deadline(bed: BedUp) -> None:
    async with bed(idle_s=0.3) as up:
        context = up.client_tls.client(lambda peer: True)
        reader, writer = await asyncio.open_connection("127.0.0.1", up.server.port, ssl=context)
        with suppress(ConnectionError):
            for byte in b"POST /echo HTTP/1.1\r\nHost: " + b"x" * 50:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.02)
                if reader.at_eof():
                    break
        assert reader.at_eof()
        writer.close()


async def test_a_slow_body_is_refused(bed: BedUp) -> None:
    async with bed(body_s=0.2) as up:
        answer = await up.raw(request_bytes(body=GOOD)[:-5])
        assert b" 408 " in answer.partition(b"\r\n")[0]


async def test_connections_are_limited(bed: BedUp) -> None:
    async with bed(connections=2) as up:
        context = up.client_tls.client(lambda peer: True)
        held = [await asyncio.open_connection("127.0.0.1", up.server.port, ssl=context) for _ in range(2)]
        assert await up.raw(request_bytes(body=GOOD)) == b""
        for _, writer in held:
            writer.close()
        await asyncio.sleep(0.05)
        assert b" 200 " in await up.raw(request_bytes(body=GOOD))


async def test_roles_are_checked_before_the_body_and_not_for_health(bed: BedUp, world: World, tmp_path: Path) -> None:
    async with bed() as up, up.client() as client:
        with pytest.raises(Refused) as raised:
            await client.request("GET", "/n2-only")
        assert raised.value.code == "denied"
        async with up.client(world.tls(tmp_path / "n2", N2)) as other:
            assert (await other.request("GET", "/n2-only"))[0] == 200
        assert (await client.request("GET", "/healthz"))[0] == 200
        assert b"keymesh_http_requests_total" in (await client.request("GET", "/metrics"))[1]
        assert json.loads((await client.request("GET", "/readyz"))[1]) == {"ready": True, "reasons": []}
        up.app.warnings.append("backups fail: store-away")
        told = json.loads((await client.request("GET", "/readyz"))[1])
        assert told == {"ready": True, "reasons": [], "warnings": ["backups fail: store-away"]}
        up.app.reasons.append("sealed")
        with pytest.raises(Unavailable):
            await client.request("GET", "/readyz")


async def test_an_open_connection_ends_when_its_certificate_is_refused(bed: BedUp) -> None:
    async with bed() as up, up.client(connections=1) as client:
        assert (await client.request("GET", "/healthz"))[0] == 200
        up.server_tls.credentials.refused.add(pki.fingerprint(up.client_tls.credentials.certificate))
        with pytest.raises(Refused) as raised:
            await client.request("GET", "/healthz")
        assert raised.value.code == "unauthenticated"
        with pytest.raises(Unavailable):
            await client.request("GET", "/healthz")


async def test_a_long_poll_is_cancelled_with_its_client_and_work_is_not(bed: BedUp) -> None:
    async with bed() as up, up.client() as client:
        with pytest.raises(Unavailable) as raised:
            await client.request("GET", "/poll", timeout_s=0.1)
        assert raised.value.code == "timeout"
        await asyncio.sleep(0.05)
        assert up.app.ended == ["poll cancelled"]
        with pytest.raises(Unavailable):
            await client.request("POST", "/work", b"{}", timeout_s=0.1)
        up.app.release.set()
        await asyncio.sleep(0.05)
        assert up.app.ended == ["poll cancelled", "work done"]


async def test_streams_deliver_lines_as_they_come_and_close_with_their_reader(bed: BedUp) -> None:
    async with bed() as up, up.client() as client:
        async with aclosing(client.stream_lines("/stream")) as lines:
            got = [await anext(lines) for _ in range(3)]
        assert got == [b'{"n":0}', b'{"n":1}', b'{"n":2}']
        await asyncio.sleep(0.05)
        assert up.app.ended == ["stream closed"]
        up.app.release.set()
        assert len([line async for line in client.stream_lines("/stream")]) == 4


async def test_a_stream_ends_when_its_readers_certificate_is_refused(bed: BedUp) -> None:
    async with bed() as up, up.client() as client:
        with pytest.raises(Unavailable):
            async for line in client.stream_lines("/stream"):
                if line == b'{"n":2}':
                    up.server_tls.credentials.refused.add(pki.fingerprint(up.client_tls.credentials.certificate))
                    up.app.release.set()
                assert line != b'{"n":3}'


async def test_a_stream_that_breaks_says_so(bed: BedUp) -> None:
    async with bed() as up, up.client() as client:
        with pytest.raises(Unavailable):
            async for line in client.stream_lines("/broken-stream"):
                assert line == b"{}"
        assert [type(bug) for bug in up.app.bugs] == [KeyError]
        with pytest.raises(Refused):
            async for _ in client.stream_lines("/error/denied"):
                pass
        with pytest.raises(Unavailable) as raised:
            async for _ in client.stream_lines("/stream", silence_s=0.1):
                pass
        assert raised.value.code == "timeout"


async def test_close_ends_streams_and_polls_and_waits_for_work(bed: BedUp) -> None:
    async with bed() as up, up.client() as client:
        poll = asyncio.create_task(client.request("GET", "/poll"))
        await up.app.started.wait()
        work = asyncio.create_task(client.request("POST", "/work", b"{}"))
        await asyncio.sleep(0.1)
        asyncio.get_running_loop().call_later(0.1, up.app.release.set)
        await up.server.close()
        assert sorted(up.app.ended) == ["poll cancelled", "work done"]
        with pytest.raises(Unavailable):
            await poll
        with suppress(Unavailable):
            await work
        with pytest.raises(Unavailable) as raised:
            await client.request("GET", "/healthz")
        assert raised.value.code == "unreachable"


async def test_answers_are_bounded_and_wrong_peers_are_unreachable(bed: BedUp) -> None:
    async with bed() as up:
        async with up.client(answer_max_bytes=1_000) as small:
            with pytest.raises(Unavailable, match="more than"):
                await small.request("GET", "/big")
        context = up.client_tls.client(lambda peer: str(peer) == N2)
        async with PeerClient(f"https://127.0.0.1:{up.server.port}", context) as wrong:
            with pytest.raises(Unavailable) as raised:
                await wrong.request("POST", "/echo", GOOD)
            assert raised.value.code == "unreachable"
            assert up.app.seen == []


async def test_the_environment_is_not_followed(bed: BedUp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent")
    async with bed() as up, up.client() as client:
        assert (await client.request("GET", "/healthz"))[0] == 200


async def test_unix_socket_is_private_and_a_dead_ones_leftover_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    app = App()
    server = await serve(app.routes(), unix_socket=path)
    assert path.stat().st_mode & 0o777 == 0o600
    async with PeerClient("http://local", unix_socket=path) as client:
        _, content = await client.request("GET", "/things/a/b")
        assert json.loads(content)["identity"] == "None"
        with pytest.raises(Refused) as raised:
            await serve([], unix_socket=path)
        assert raised.value.code == "address-in-use"
    await server.close()
    if not path.exists():
        with suppress(OSError):
            import socket

            left = socket.socket(socket.AF_UNIX)
            left.bind(str(path))
            left.close()
    again = await serve([], unix_socket=path)
    await again.close()


async def test_a_taken_port_is_refused_by_name(bed: BedUp) -> None:
    async with bed() as up:
        with pytest.raises(Refused) as raised:
            await serve([], tls=up.server_tls.server(), port=up.server.port)
        assert raised.value.code == "address-in-use"


async def test_neither_or_both_transports_are_our_bug(bed: BedUp) -> None:
    with pytest.raises(ValueError, match="TLS context or a Unix socket"):
        await serve([])
    with pytest.raises(ValueError, match="TLS context or a Unix socket"):
        PeerClient("https://x")
    async with bed() as up:
        with pytest.raises(ValueError, match="https"):
            PeerClient("http://x", up.client_tls.client(lambda peer: True))


def test_two_routes_of_one_name_are_our_bug() -> None:
    async def handler(request: Request) -> Response:
        return Response()

    route = Route(method="GET", path="/a", handler=handler)
    with pytest.raises(ValueError, match="two routes"):
        Router([route, route])


async def test_logs_name_the_request_and_never_its_body(bed: BedUp, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="keymesh")
    async with bed() as up, up.client() as client:
        with suppress(Refused):
            await client.request("POST", "/echo", json.dumps({"name": SECRET}).encode(), correlation_id="c-7")
        record = next(record for record in caplog.records if record.getMessage() == "request")
        assert record.fields["status"] == 400  # type: ignore[attr-defined]
        assert record.fields["peer"] == N1  # type: ignore[attr-defined]
        assert SECRET not in repr([vars(record) for record in caplog.records])
        assert SECRET not in repr(up.app.seen)
