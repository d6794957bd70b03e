"""The method LIST on the wire: told as it came, in one piece or in many, and nothing else is changed by it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from keymesh.adapters.face_http import FaceServer
from keymesh.adapters.vault_http import VaultConnection
from keymesh.compat.face import FaceAnswer, FaceRequest


class Echo:
    name = "echo"
    body_max = 1_000

    async def answer(self, request: FaceRequest) -> FaceAnswer:
        return FaceAnswer(status=200, body=f"{request.method} {request.path}".encode(), operation="echo")

    def refuse(self, status: int, code: str, message: str) -> FaceAnswer:
        return FaceAnswer(status=status, body=code.encode())


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    server = FaceServer(Echo(), connection=VaultConnection)
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(str(tmp_path / "s"))
    await server.listen(bound, None)
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
    yield reader, writer
    writer.close()
    await server.close(0.1)


async def body(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        return await reader.readexactly(int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0]))


async def test_list_is_told_as_it_came(peer: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    reader, writer = peer
    for method in (b"LIST", b"GET", b"LIST", b"LINK", b"POST"):
        writer.write(method + b" /v1/LIST HTTP/1.1\r\nHost: v\r\nContent-Length: 5\r\n\r\nLIST ")
        assert await body(reader) == method + b" /v1/LIST"


async def test_list_a_byte_at_a_time(peer: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    reader, writer = peer
    for at in b"LIST /v1/transit/keys HTTP/1.1\r\nHost: v\r\n\r\n":
        writer.write(bytes((at,)))
        await asyncio.sleep(0)
        await writer.drain()
        await asyncio.sleep(0.002)
    assert await body(reader) == b"LIST /v1/transit/keys"


@pytest.mark.parametrize("start", [b"LISTEN /x", b"LIS /x", b"list /x", b"\0"])
async def test_what_is_no_method_is_refused(
    peer: tuple[asyncio.StreamReader, asyncio.StreamWriter], start: bytes
) -> None:
    reader, writer = peer
    writer.write(start + b" HTTP/1.1\r\nHost: v\r\n\r\n")
    assert await body(reader) == b"bad-field"
