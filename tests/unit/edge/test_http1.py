"""The sidecar's HTTP/1.1: order, limits, slow and greedy peers, drain.  Each test speaks raw bytes."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from keymesh.edge import http1, http1_server
from keymesh.edge.http1 import Later, Request
from keymesh.edge.http1_server import Server
from keymesh.edge.http_answers import JSON, Answer, Heads
from keymesh.edge.sidecar_door import EdgesThread

BODY_MAX = 4_096


class Bed:
    """A server whose answers say what was asked; ``/later`` waits for ``release``, ``/big`` is big."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heads = Heads()
        self.release = asyncio.Event()
        self.asked: list[Request] = []
        self.big = 20_000
        self.server = Server(self.handle, self.refuse, heads=self.heads, body_max=BODY_MAX)
        self.peer_of: Callable[[Any], Any] = lambda transport: "owner"

    def ok(self, body: bytes) -> Answer:
        return self.heads.ok(JSON, len(body)) + body

    def handle(self, asked: Request) -> Answer | Later:
        self.asked.append(asked)
        if asked.path.startswith(b"/later"):
            return self.later(asked.path)
        if asked.path == b"/big":
            return self.ok(b"x" * self.big)
        return self.ok(asked.path + b" " + asked.body)

    async def later(self, path: bytes) -> Answer:
        await self.release.wait()
        return self.ok(path)

    def refuse(self, status: int, code: str, message: str) -> Answer:
        body = code.encode()
        return self.heads.head(status, JSON, len(body)) + body

    async def start(self) -> None:
        bound = socket.socket(socket.AF_UNIX)
        bound.bind(str(self.path))
        await self.server.listen(bound, peer_of=lambda transport: self.peer_of(transport))

    async def connect(self) -> Peer:
        return Peer(*await asyncio.open_unix_connection(str(self.path)))


class Peer:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, raw: bytes) -> None:
        self.writer.write(raw)

    async def answer(self, *, has_body: bool = True) -> tuple[int, bytes, bytes]:
        """(status, head, body) of the next one."""
        async with asyncio.timeout(5):
            head = await self.reader.readuntil(b"\r\n\r\n")
            found = re.search(rb"Content-Length: (\d+)", head)
            body = await self.reader.readexactly(int(found[1])) if found and has_body else b""
        assert head.startswith(b"HTTP/1.1 "), "nothing is left of the answer before"
        return int(head.split(b" ")[1]), head, body

    async def ended(self) -> bytes:
        """What came before the end."""
        async with asyncio.timeout(5):
            return await self.reader.read()


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: e\r\n\r\n".encode()


@pytest.fixture
async def bed(tmp_path: Path) -> AsyncIterator[Bed]:
    bed = Bed(tmp_path / "s")
    await bed.start()
    yield bed
    bed.release.set()
    await bed.server.close(1.0)


async def test_requests_of_one_connection_are_answered_in_their_order(bed: Bed) -> None:
    peer = await bed.connect()
    peer.send(get("/a") + get("/later") + get("/b") + b"POST /c HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi" + get("/d"))
    assert (await peer.answer())[2] == b"/a "
    await asyncio.sleep(0.05)
    bed.release.set()
    assert [(await peer.answer())[2] for _ in range(4)] == [b"/later", b"/b ", b"/c hi", b"/d "]
    peer.send(get("/e"))
    assert (await peer.answer())[2] == b"/e "


async def test_bytes_may_come_one_by_one(bed: Bed) -> None:
    peer = await bed.connect()
    for byte in b"POST /slow HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 3\r\n\r\nabc" + get("/x"):
        peer.send(bytes([byte]))
        await asyncio.sleep(0)
    assert (await peer.answer())[2] == b"/slow abc"
    assert bed.asked[0].content_type == b"application/json"
    assert (await peer.answer())[2] == b"/x "
    assert bed.asked[1].content_type == b"", "nothing is left of the request before"


async def test_chunks_are_put_together(bed: Bed) -> None:
    peer = await bed.connect()
    peer.send(b"POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    assert (await peer.answer())[2] == b"/c abcde"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"GET /\x00 HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA : b\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 65 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * 20_000 + b"\r\n\r\n", 431),
        (b"POST / HTTP/1.1\r\nContent-Length: 4097\r\n\r\n" + b"x" * 4_097, 413),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1001\r\n" + b"x" * 4_097 + b"\r\n0\r\n\r\n", 413),
    ],
)
async def test_what_is_malformed_or_too_big_gets_one_answer_and_the_end(bed: Bed, raw: bytes, status: int) -> None:
    peer = await bed.connect()
    peer.send(get("/before") + raw)
    assert (await peer.answer())[2] == b"/before "
    answered, head, _ = await peer.answer()
    assert answered == status
    assert b"Connection: close" in head
    assert await peer.ended() == b""
    assert all(asked.path in (b"/before", b"/") for asked in bed.asked)


async def test_a_failure_waits_for_the_answers_before_it(bed: Bed) -> None:
    peer = await bed.connect()
    peer.send(get("/later") + b"nonsense\r\n\r\n")
    await asyncio.sleep(0.05)
    bed.release.set()
    assert (await peer.answer())[2] == b"/later"
    assert (await peer.answer())[0] == 400
    assert await peer.ended() == b""


async def test_nothing_is_taken_behind_a_last_answer_that_is_on_its_way(bed: Bed) -> None:
    peer = await bed.connect()
    peer.send(b"GET /later HTTP/1.0\r\n\r\n" + get("/behind"))
    await asyncio.sleep(0.05)
    peer.send(get("/later-still"))
    await asyncio.sleep(0.05)
    bed.release.set()
    assert (await peer.answer())[2] == b"/later"
    assert await peer.ended() == b""
    assert [asked.path for asked in bed.asked] == [b"/later"]


async def test_head_of_what_is_answered_later_has_no_body_either(bed: Bed) -> None:
    peer = await bed.connect()
    peer.send(b"HEAD /later HTTP/1.1\r\n\r\n" + get("/g"))
    await asyncio.sleep(0.05)
    bed.release.set()
    status, head, _ = await peer.answer(has_body=False)
    assert status == 200 and b"Content-Length: 6" in head
    assert (await peer.answer())[2] == b"/g "


async def test_head_has_no_body_and_old_clients_one_answer(bed: Bed) -> None:
    peer = await bed.connect()
    peer.send(b"HEAD /h HTTP/1.1\r\n\r\n" + get("/g"))
    status, head, _ = await peer.answer(has_body=False)
    assert status == 200 and b"Content-Length: 3" in head
    assert (await peer.answer())[2] == b"/g "
    peer.send(b"GET /old HTTP/1.0\r\n\r\n")
    _, head, body = await peer.answer()
    assert body == b"/old " and b"Connection: close" in head
    assert await peer.ended() == b""


async def test_a_client_that_asks_first_is_told_to_go_on(bed: Bed) -> None:
    peer = await bed.connect()
    peer.send(b"POST /e HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    async with asyncio.timeout(5):
        assert await peer.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    peer.send(b"ok")
    assert (await peer.answer())[2] == b"/e ok"


async def test_too_many_waiting_answers_are_429(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "PENDING_MAX", 3)
    peer = await bed.connect()
    peer.send(get("/later") * 5)
    await asyncio.sleep(0.05)
    assert len(bed.server.pending) == 3
    bed.release.set()
    assert [(await peer.answer())[0] for _ in range(5)] == [200, 200, 200, 429, 429]
    peer.send(get("/later"))
    assert (await peer.answer())[0] == 200


async def test_nothing_more_is_read_while_many_answers_wait(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "PIPELINE_MAX", 4)
    peer = await bed.connect()
    peer.send(get("/later") * 4)
    await asyncio.sleep(0.05)
    peer.send(get("/later") * 4)
    await asyncio.sleep(0.05)
    assert len(bed.asked) == 4
    bed.release.set()
    assert [(await peer.answer())[0] for _ in range(8)] == [200] * 8


async def test_who_does_not_read_is_not_read(bed: Bed) -> None:
    peer = await bed.connect()
    peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
    for _ in range(200):
        peer.send(get("/big") * 10)
        await asyncio.sleep(0)
    await asyncio.sleep(0.1)
    done = len(bed.asked)
    assert done < 1_000, "one buffer of requests at most was answered into the paused transport"
    peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
    for _ in range(2_000):
        assert len((await peer.answer())[2]) == 20_000


async def test_a_request_that_does_not_come_and_an_idle_peer_are_ended(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http1, "REQUEST_TICKS", 2)
    monkeypatch.setattr(http1, "IDLE_TICKS", 5)
    slow, idle, waiting = [await bed.connect() for _ in range(3)]
    slow.send(b"POST / HTTP/1.1\r\nContent-Le")
    waiting.send(get("/later"))
    await asyncio.sleep(0.05)
    for tick in range(1, 10):
        for connection in list(bed.server.connections):
            connection.look(tick)
    assert (await slow.answer())[0] == 408
    assert await slow.ended() == await idle.ended() == b""
    bed.release.set()
    assert (await waiting.answer())[0] == 200, "who waits for us is not idle"


async def test_a_drain_finishes_what_has_come_and_hangs_up(bed: Bed) -> None:
    idle, waiting, middle = [await bed.connect() for _ in range(3)]
    waiting.send(get("/later"))
    middle.send(b"POST /m HTTP/1.1\r\nContent-Length: 4\r\n\r\nab")
    await asyncio.sleep(0.05)
    closing = asyncio.create_task(bed.server.close(5.0))
    assert await idle.ended() == b""
    middle.send(b"cd" + get("/too-late"))
    _, head, body = await middle.answer()
    assert body == b"/m abcd" and b"Connection: close" in head
    assert await middle.ended() == b""
    bed.release.set()
    _, head, body = await waiting.answer()
    assert body == b"/later" and b"Connection: close" in head
    async with asyncio.timeout(2):
        await closing
    with pytest.raises(OSError):
        await bed.connect()


async def test_a_drain_waits_no_longer_than_it_may(bed: Bed) -> None:
    peer = await bed.connect()
    peer.send(get("/later"))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(3):
        await bed.server.close(0.1)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await peer.answer()


async def test_too_many_and_unknown_callers_hear_one_answer(bed: Bed) -> None:
    bed.server.connections_max = 1
    first = await bed.connect()
    first.send(get("/a"))
    assert (await first.answer())[0] == 200
    second = await bed.connect()
    assert (await second.answer())[0] == 503
    assert await second.ended() == b""
    first.writer.close()
    await asyncio.sleep(0.05)
    bed.peer_of = lambda transport: None
    third = await bed.connect()
    third.send(get("/secret"))
    assert (await third.answer())[0] == 403
    assert [asked.path for asked in bed.asked] == [b"/a"]


def test_edges_are_clients_on_asyncios_own_loop() -> None:
    """uvloop aborts the process when a Core resets a TLS handshake (docs/adr/0003-aiohttp.md)."""
    with EdgesThread() as loop:
        assert type(loop).__module__.partition(".")[0] == "asyncio"
        asked = asyncio.run_coroutine_threadsafe(asyncio.sleep(0, threading.current_thread()), loop)
        where = asyncio.run_coroutine_threadsafe(_thread(), loop)
        assert where.result(5) is not asked.result(5)
    assert loop.is_closed()


async def _thread() -> threading.Thread:
    return threading.current_thread()


async def test_who_does_not_read_what_waits_for_it_is_cut_off(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it asks for more or has said that it is done; one that reads is left alone."""
    monkeypatch.setattr(http1, "ANSWER_TICKS", 3)
    reads, leaves, is_done = [await bed.connect() for _ in range(3)]
    for deaf in (leaves, is_done):
        deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]
    leaves.send(get("/big") * 40)
    is_done.send(get("/big") * 40 + b"GET /big HTTP/1.1\r\nConnection: close\r\n\r\n")
    reads.send(get("/a"))
    assert (await reads.answer())[0] == 200
    await asyncio.sleep(0.1)
    assert len(bed.server.connections) == 3
    for tick in range(1, 6):
        for connection in list(bed.server.connections):
            connection.look(tick)
        await asyncio.sleep(0)
    await asyncio.sleep(0.1)
    assert len(bed.server.connections) == 1
    reads.send(get("/b"))
    assert (await reads.answer())[0] == 200


async def test_nothing_is_worked_out_for_a_peer_that_does_not_read(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was not is dropped with the connection."""
    monkeypatch.setattr(http1, "WRITE_BYTES", 10_000)
    begun = 0

    async def big() -> Answer:
        nonlocal begun
        begun += 1
        return bed.ok(b"x" * 400_000)

    monkeypatch.setattr(bed.server, "handle", lambda asked: big())
    peer = await bed.connect()
    peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
    peer.send(get("/x") * 20)
    await asyncio.sleep(0.2)
    assert 0 < begun < 5
    (connection,) = bed.server.connections
    assert 0 < connection.unread_bytes() < 2_000_000
    peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
    for _ in range(20):
        assert len((await peer.answer())[2]) == 400_000
    begun = 0
    peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
    peer.send(get("/x") * 20)
    await asyncio.sleep(0.2)
    connection.abort()
    await asyncio.sleep(0.1)
    assert begun < 5 and not bed.server.pending and not bed.server.connections


async def test_few_answers_of_one_connection_are_worked_out_at_a_time(bed: Bed) -> None:
    peer, other = await bed.connect(), await bed.connect()
    at_a_time = most = 0

    async def later() -> Answer:
        nonlocal at_a_time, most
        at_a_time += 1
        most = max(most, at_a_time)
        await bed.release.wait()
        at_a_time -= 1
        return bed.ok(b"done")

    bed.server.handle = lambda asked: later()
    peer.send(get("/x") * (2 * http1.RUNNING_MAX))
    await asyncio.sleep(0.05)
    assert most == http1.RUNNING_MAX
    other.send(get("/x"))
    await asyncio.sleep(0.05)
    assert most == http1.RUNNING_MAX + 1
    bed.release.set()
    for _ in range(2 * http1.RUNNING_MAX):
        assert (await peer.answer())[2] == b"done"
    assert (await other.answer())[2] == b"done"


async def test_of_all_that_is_unread_the_most_is_given_up_first(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1_server, "UNREAD_MAX_BYTES", 3_000_000)
    monkeypatch.setattr(http1_server, "TICK_S", 0.02)
    bed.big = 100_000
    little, much = await bed.connect(), await bed.connect()
    for peer, count in ((little, 10), (much, 100)):
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        peer.send(get("/big") * count)
    for _ in range(500):
        if len(bed.server.connections) == 1:
            break
        await asyncio.sleep(0.02)
    little.writer.transport.resume_reading()  # type: ignore[attr-defined]
    for _ in range(10):
        assert len((await little.answer())[2]) == 100_000


async def test_a_last_answer_that_is_being_written_is_not_cut_off(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """However old its connection is."""
    monkeypatch.setattr(http1, "WRITE_BYTES", 1_000)
    bed.big = 1_000_000
    peer = await bed.connect()
    peer.send(get("/a"))
    await peer.answer()
    bed.server.ticks = http1.ANSWER_TICKS + 20
    peer.send(b"GET /big HTTP/1.1\r\nConnection: close\r\n\r\n")
    answering = asyncio.create_task(peer.answer())
    while not answering.done():
        for connection in list(bed.server.connections):
            connection.look(bed.server.ticks)
        await asyncio.sleep(0)
    assert len((await answering)[2]) == 1_000_000
    assert await peer.ended() == b""
