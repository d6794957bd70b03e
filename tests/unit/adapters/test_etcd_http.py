"""Answers as a parser must take them: whole, in bounds, or not at all."""

from __future__ import annotations

import asyncio
import socket

import pytest

from keymesh.adapters import etcd_http
from keymesh.adapters.etcd_http import Broken, JsonConnection

OK = b"HTTP/1.1 200 OK\r\n"


async def answered(raw: bytes, *, pieces: int | None = None, end: bool = True) -> tuple[tuple[int, bytes], bool, bytes]:
    """(what came of ``raw`` as an answer, whether the connection is of more use, what was sent)."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours, limit=etcd_http.HEAD_MAX_BYTES)
    connection = JsonConnection("h:1", reader, writer)
    far_reader, far = await asyncio.open_connection(sock=theirs)

    async def play() -> bytes:
        sent = await far_reader.readuntil(b"\r\n\r\n") + await far_reader.readexactly(2)
        for at in range(0, len(raw), pieces or len(raw) or 1):
            far.write(raw[at : at + (pieces or len(raw))])
            await far.drain()
            await asyncio.sleep(0)
        if end:
            far.write_eof()
        return sent

    player = asyncio.create_task(play())
    try:
        async with asyncio.timeout(5):
            answer = await connection.post("/v3/kv/txn", b"{}")
        sent = await player
        return answer, connection.usable, sent
    finally:
        player.cancel()
        connection.close()
        far.transport.abort()


@pytest.mark.parametrize("pieces", [None, 1, 7])
@pytest.mark.parametrize(
    ("raw", "status", "body"),
    [
        (OK + b"Content-Length: 5\r\n\r\nhello", 200, b"hello"),
        (OK + b"content-length:0\r\n\r\n", 200, b""),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 200, b"hello"),
        (
            OK + b"Transfer-Encoding: Chunked\r\n\r\n2;x=y\r\nhe\r\nA\r\nllo, world\r\n0\r\nGrpc: x\r\n\r\n",
            200,
            b"hello, world",
        ),
        (b"HTTP/1.1 503 \r\nContent-Length: 2\r\n\r\n{}", 503, b"{}"),
        (b"HTTP/1.1 400\r\nContent-Length: 2\r\n\r\n{}", 400, b"{}"),
    ],
)
async def test_whole_answers(raw: bytes, status: int, body: bytes, pieces: int | None) -> None:
    answer, usable, sent = await answered(raw, pieces=pieces, end=False)
    assert answer == (status, body)
    assert usable
    assert sent == (
        b"POST /v3/kv/txn HTTP/1.1\r\nHost: h:1\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    )


async def test_a_connection_that_ends_is_not_used_again() -> None:
    _, usable, _ = await answered(OK + b"Connection: Close\r\nContent-Length: 0\r\n\r\n", end=False)
    assert not usable


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1 200 OK",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\nContent-Length: 0\r\n\r\n",
        b"ETCD\r\n\r\n",
        OK + b"\r\n",
        OK + b"Content-Length: 5\r\n\r\nhell",
        OK + b"Content-Length: -1\r\n\r\n",
        OK + b"Content-Length: 1_0\r\n\r\n0123456789",
        OK + b"Content-Length: \r\n\r\n",
        OK + b"Content-Length: 999999999\r\n\r\n",
        OK + b"Content-Length: 99999999999999\r\n\r\n",
        OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nhe",
        OK + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: gzip\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\nx\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello!\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n7fffffff\r\nhello\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: b\r\n" * 40 + b"\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 2_000 + b"\r\n\r\n",
        OK + b"A b\r\nContent-Length: 0\r\n\r\n",
        OK + b"Content-Length : 0\r\n\r\n",
        OK + b"X: " + b"y" * 20_000 + b"\r\nContent-Length: 0\r\n\r\n",
        b"\0" * 40_000,
    ],
)
async def test_anything_else_is_broken(raw: bytes) -> None:
    with pytest.raises(Broken):
        await answered(raw)


async def test_chunks_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_http, "ANSWER_MAX_BYTES", 8)
    chunks = OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
    assert (await answered(chunks + b"3\r\n, w\r\n0\r\n\r\n", end=False))[0] == (200, b"hello, w")
    with pytest.raises(Broken):
        await answered(chunks + b"4\r\n, wo\r\n0\r\n\r\n", end=False)
