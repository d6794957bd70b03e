"""A face's wire: TLS, whole requests however they arrive, every header, limits, bugs, drain."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from keymesh.adapters.face_http import FaceServer, HealthFace, server_context
from keymesh.app.logs import JsonFormatter
from keymesh.app.servers.infra_ca import InfraCa
from keymesh.compat.face import FaceAnswer, FaceRequest
from keymesh.edge.sidecar_bind import bind_tcp
from keymesh.model.errors import Refused

SECRET_WORD = b"attack at dawn"
PATIENCE_S = 30.0


class Echo:
    """Answers with what it was asked."""

    name = "echo"
    body_max = 100_000

    def __init__(self) -> None:
        self.asked: list[FaceRequest] = []
        self.came = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def answer(self, request: FaceRequest) -> FaceAnswer:
        self.asked.append(request)
        self.came.set()
        await self.go_on.wait()
        if request.path == "/bug":
            raise ZeroDivisionError(request.body)
        return FaceAnswer(status=200, body=request.body, operation="Echo", said={"who": "somebody"}, notable=True)

    def refuse(self, status: int, code: str, message: str) -> FaceAnswer:
        return FaceAnswer(status=status, body=json.dumps({"code": code, "message": message}).encode())


class Wire:
    def __init__(self, face: Echo, server: FaceServer, port: int, ca: Path) -> None:
        self.face, self.server, self.port, self.ca = face, server, port, ca

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        trust = ssl.create_default_context(cafile=str(self.ca))
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=trust)

    async def ask(self, *pieces: bytes) -> tuple[int, bytes]:
        """Status and body; each piece is a TLS record of its own."""
        reader, writer = await self.connect()
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        async with asyncio.timeout(PATIENCE_S):
            status, body = await read_answer(reader)
        writer.close()
        return status, body


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    size = next(int(line[16:]) for line in head.split("\r\n") if line.lower().startswith("content-length: "))
    return int(head.split()[1]), await reader.readexactly(size)


@pytest.fixture
async def wire(tmp_path: Path) -> AsyncIterator[Wire]:
    shown = InfraCa.in_directory(tmp_path, "test").issue(tmp_path / "server.pem", "test", server=True)
    face = Echo()
    server = FaceServer(face)
    bound = bind_tcp("127.0.0.1", 0)
    await server.listen(bound, server_context(shown))
    yield Wire(face, server, bound.getsockname()[1], tmp_path / "ca.pem")
    face.go_on.set()
    await server.close()


async def test_a_request_in_several_records_is_whole(wire: Wire) -> None:
    """Found with boto3: what came in a second record while the first was read was read as zeros."""
    body = bytes(range(256)) * 64
    head = b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    for pieces in ((head, body), (head + body,), (head, body[:1], body[1:9_000], body[9_000:])):
        assert await wire.ask(*pieces) == (200, body)
    assert {(asked.path, asked.query) for asked in wire.face.asked} == {("/a", "b=c")}


async def test_two_records_that_are_there_at_once_are_read_as_they_are(wire: Wire) -> None:
    reader, writer = await wire.connect()
    body = b"0123456789" * 10
    for _ in range(50):
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body))
        writer.write(body)  # a record of its own: the loop sees both at one read
        async with asyncio.timeout(PATIENCE_S):
            assert await read_answer(reader) == (200, body)
    writer.close()


async def test_headers_come_all_and_in_order_and_twice_is_refused_by_name(wire: Wire) -> None:
    await wire.ask(b"GET / HTTP/1.1\r\nHost: x\r\nX-One: 1\r\nx-one:  2 \r\nX-Two: a:b\r\n\r\n")
    asked = wire.face.asked[0]
    assert asked.headers == (("host", "x"), ("x-one", "1"), ("x-one", "2"), ("x-two", "a:b"))
    assert asked.header("x-two") == "a:b"
    assert asked.header("x-three") is None
    with pytest.raises(Refused, match="given twice"):
        asked.header("x-one")


async def test_a_header_after_the_body_is_refused(wire: Wire) -> None:
    chunked = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n"
    assert (await wire.ask(chunked + b"Authorization: mine\r\n\r\n"))[0] == 400
    assert await wire.ask(chunked + b"\r\n") == (200, b"hi")


async def test_too_much_is_refused_in_the_faces_own_form(wire: Wire) -> None:
    too_big = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100001\r\n\r\n" + bytes(100_001)
    status, body = await wire.ask(too_big)
    assert (status, json.loads(body)["code"]) == (413, "too-large")
    assert (await wire.ask(b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 65 + b"\r\n"))[0] == 431
    assert (await wire.ask(b"nonsense\r\n\r\n"))[0] == 400


async def test_a_bug_is_one_500_and_its_text_is_in_no_log(wire: Wire) -> None:
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    handler.setFormatter(JsonFormatter("face"))
    logger = logging.getLogger("keymesh.face")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        ask = b"POST %b HTTP/1.1\r\nHost: x\r\nX-Correlation-Id: c-17\r\nContent-Length: 14\r\n\r\n" + SECRET_WORD
        status, body = await wire.ask(ask % b"/bug")
        assert status == 500
        assert SECRET_WORD not in body
        assert (await wire.ask(ask % b"/"))[0] == 200
    finally:
        logger.removeHandler(handler)
    lines = [json.loads(line) for line in said.getvalue().splitlines()]
    assert any(line.get("exception") == "ZeroDivisionError" for line in lines)
    assert {line["correlation_id"] for line in lines} == {"c-17"}
    assert any(line["fields"].get("operation") == "Echo" for line in lines if "fields" in line)
    assert SECRET_WORD.decode() not in said.getvalue()


async def test_what_was_asked_is_answered_before_the_end(wire: Wire) -> None:
    wire.face.go_on.clear()
    reader, writer = await wire.connect()
    writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi")
    async with asyncio.timeout(PATIENCE_S):
        await wire.face.came.wait()
    closing = asyncio.create_task(wire.server.close())
    await asyncio.sleep(0)
    wire.face.go_on.set()
    async with asyncio.timeout(PATIENCE_S):
        assert await read_answer(reader) == (200, b"hi")
        await closing
    writer.close()


async def test_health_and_metrics_are_a_listener_of_their_own(wire: Wire) -> None:
    await wire.ask(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi")
    health = FaceServer(HealthFace(wire.server.metrics))
    bound = bind_tcp("127.0.0.1", 0)
    await health.listen(bound, None)
    try:
        for path, status, word in (
            ("/healthz", 200, b'"ok":true'),
            ("/metrics", 200, b'keymesh_face_requests_total{face="echo",operation="Echo",status="200"} 1.0'),
            ("/else", 404, b"false"),
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", bound.getsockname()[1])
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            async with asyncio.timeout(PATIENCE_S):
                found, body = await read_answer(reader)
            assert found == status
            assert word in body
            writer.close()
    finally:
        await health.close()
