"""The KMIP listener on loopback: order, limits judged before the body, slow and foreign peers, drain."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from keymesh.adapters.kmip_listener import Limits, Listener, server_context
from keymesh.app.servers.infra_ca import InfraCa
from keymesh.kmip.ttlv import Limits as MessageLimits
from keymesh.model.errors import Refused

WAIT_S = 60.0
FEW = Limits(connections=3, message=MessageLimits(message_bytes=4_096))


def message(body: bytes) -> bytes:
    return bytes.fromhex("42007801") + len(body).to_bytes(4, "big") + body


class Bed:
    """A listener whose answers are the requests themselves, in turn; ``held`` ones wait."""

    def __init__(self, directory: Path) -> None:
        self.ca = InfraCa.make("test")
        self.directory = directory
        self.tls = server_context(self.ca.issue(directory / "server.pem", "server", server=True), self.ca.pem)
        self.asked: list[bytes] = []
        self.going_on = asyncio.Event()
        self.going_on.set()
        self.admitted = True
        self.name = "client"
        self.port = 0
        self.listener: Listener[str] | None = None

    async def start(self, limits: Limits = FEW) -> None:
        self.listener = Listener(self.handle, tls=self.tls, peer_of=self.peer_of, limits=limits)
        bound = socket.create_server(("127.0.0.1", 0))
        self.port = bound.getsockname()[1]
        await self.listener.open(bound)

    @property
    def connections(self) -> int:
        assert self.listener is not None
        return self.listener.connections

    def peer_of(self, tls: ssl.SSLObject) -> str | None:
        shown = tls.getpeercert()
        assert shown is not None
        return self.name if self.admitted else None

    async def handle(self, request: bytes, peer: str) -> bytes:
        self.asked.append(request)
        await self.going_on.wait()
        return request + peer.encode()

    def context(self, *, ca: InfraCa | None = None, shown: bool = True) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=self.ca.pem.decode())
        if shown:
            context.load_cert_chain((ca or self.ca).issue(self.directory / "client.pem", "client"))
        return context

    async def connect(self, context: ssl.SSLContext | None = None) -> Peer:
        return Peer(*await asyncio.open_connection("127.0.0.1", self.port, ssl=context or self.context()))


class Peer:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, raw: bytes) -> None:
        self.writer.write(raw)

    async def got(self, expected: bytes) -> None:
        async with asyncio.timeout(WAIT_S):
            assert await self.reader.readexactly(len(expected)) == expected

    async def ended(self) -> bytes:
        """What came before the end."""
        async with asyncio.timeout(WAIT_S):
            try:
                return await self.reader.read()
            except (ConnectionError, ssl.SSLError):
                return b""


@pytest.fixture
async def bed(tmp_path: Path) -> AsyncIterator[Bed]:
    bed = Bed(tmp_path)
    yield bed
    bed.going_on.set()
    if bed.listener is not None:
        await bed.listener.close()


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not what():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_requests_are_answered_in_their_order_whole_cut_and_pipelined(bed: Bed) -> None:
    await bed.start()
    peer = await bed.connect()
    first, second, third = message(b"1" * 8), message(b""), message(b"3" * 4_000)
    peer.send(first[:5])
    await asyncio.sleep(0.05)
    peer.send(first[5:] + second + third[:100])
    await peer.got(first + b"client" + second + b"client")
    peer.send(third[100:])
    await peer.got(third + b"client")
    assert bed.asked == [first, second, third]


async def test_a_request_that_is_answered_slowly_holds_up_its_own_connection_alone(bed: Bed) -> None:
    await bed.start()
    slow, other = await bed.connect(), await bed.connect()
    bed.going_on.clear()
    slow.send(message(b"a" * 8) + message(b"b" * 8))
    await until(lambda: len(bed.asked) == 1)
    other.send(message(b"c" * 8))
    await until(lambda: len(bed.asked) == 2)
    assert bed.asked == [message(b"a" * 8), message(b"c" * 8)], "one at a time of each connection"
    bed.going_on.set()
    await slow.got(message(b"a" * 8) + b"client" + message(b"b" * 8) + b"client")
    await other.got(message(b"c" * 8) + b"client")


@pytest.mark.parametrize(
    "head",
    [
        bytes.fromhex("42007801ffffffff"),
        bytes.fromhex("4200780180000000"),
        bytes.fromhex("4200780100001000"),  # with its header 8 more than the limit
        bytes.fromhex("4200780200000004"),
        b"GET / HT",
    ],
)
async def test_a_bad_header_is_answered_without_its_body_and_ends_the_connection(bed: Bed, head: bytes) -> None:
    await bed.start()
    peer = await bed.connect()
    peer.send(head)
    assert await peer.ended() == head + b"client"
    assert bed.asked == [head]


async def test_what_takes_too_long_is_ended(bed: Bed) -> None:
    await bed.start(Limits(idle_s=0.3, request_s=0.3))
    silent, halting = await bed.connect(), await bed.connect()
    halting.send(message(b"12345678")[:12])
    assert await silent.ended() == b""
    assert await halting.ended() == b""
    assert bed.asked == []


async def test_one_byte_now_and_then_is_not_enough(bed: Bed) -> None:
    await bed.start(Limits(idle_s=60.0, request_s=0.5))
    peer = await bed.connect()
    raw = message(b"x" * 4_000)
    for byte in raw[:200]:
        peer.send(bytes((byte,)))
        await asyncio.sleep(0.02)
        if peer.reader.at_eof():
            break
    assert await peer.ended() == b""
    assert bed.asked == []


async def test_who_dribbles_is_ended_at_the_deadline_of_the_whole_request_and_others_are_served(bed: Bed) -> None:
    await bed.start(Limits(idle_s=60.0, request_s=1.0))
    slow, other = await bed.connect(), await bed.connect()
    began = asyncio.get_running_loop().time()
    served = 0
    for byte in message(b"x" * 4_000):
        slow.send(bytes((byte,)))  # never silent for long: only a deadline for the whole ends it
        other.send(message(b""))
        await other.got(message(b"") + b"client")
        served += 1
        await asyncio.sleep(0.02)
        if slow.reader.at_eof():
            break
    assert await slow.ended() == b""
    assert asyncio.get_running_loop().time() - began >= 1.0
    assert bed.asked == [message(b"")] * served


async def test_who_takes_no_answers_is_read_no_further_and_ended(bed: Bed) -> None:
    await bed.start(Limits(answer_s=1.0))
    greedy, other = await bed.connect(), await bed.connect()
    greedy.writer.transport.pause_reading()  # type: ignore[attr-defined]
    large = message(bytes(1_000_000))
    for _ in range(40):
        greedy.send(large)
    await until(lambda: bed.connections == 1)
    assert len(bed.asked) < 40
    other.send(message(b""))
    await other.got(message(b"") + b"client")


async def test_who_asks_faster_than_answers_are_made_waits(bed: Bed) -> None:
    await bed.start()
    peer = await bed.connect()
    bed.going_on.clear()
    for _ in range(4_000):
        peer.send(message(bytes(4_000)))
    await until(lambda: len(bed.asked) == 1)
    await asyncio.sleep(0.2)
    assert peer.writer.transport.get_write_buffer_size() > 1_000_000, "what is not read stays with the peer"
    bed.going_on.set()
    for _ in range(20):
        await peer.got(message(bytes(4_000)) + b"client")


async def test_who_says_that_no_more_will_come_still_gets_the_answers(bed: Bed) -> None:
    await bed.start()
    raw = socket.create_connection(("127.0.0.1", bed.port))
    context = bed.context()

    def work() -> bytes:
        with context.wrap_socket(raw, server_hostname="127.0.0.1") as peer:
            peer.sendall(message(b"1") + message(b"2"))
            socket.socket.shutdown(peer, socket.SHUT_WR)
            got = b""
            while more := peer.recv(1_024):
                got += more
            return got

    assert await asyncio.to_thread(work) == message(b"1") + b"client" + message(b"2") + b"client"


@pytest.mark.integration  # it wants the openssl command, which `make servers` installs
async def test_renegotiation_is_refused_and_disturbs_nobody(bed: Bed) -> None:
    await bed.start()
    program = shutil.which("openssl")
    assert program is not None, "no openssl command: make servers installs it"
    bed.context()  # writes client.pem
    (bed.directory / "ca.pem").write_bytes(bed.ca.pem)
    words = ["s_client", "-connect", f"127.0.0.1:{bed.port}", "-tls1_2", "-CAfile", str(bed.directory / "ca.pem")]
    words += ["-cert", str(bed.directory / "client.pem"), "-key", str(bed.directory / "client.pem")]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(program, *words, stdin=pipe, stdout=pipe, stderr=pipe)
    assert process.stdin is not None and process.stdout is not None
    async with asyncio.timeout(WAIT_S):
        await process.stdout.readuntil(b"Verify return code: 0 (ok)")
        process.stdin.write(b"R\n")
        _, told = await process.communicate()
    assert b"no renegotiation" in told
    assert bed.asked == []
    peer = await bed.connect()
    peer.send(message(b""))
    await peer.got(message(b"") + b"client")


async def test_a_handshake_that_is_never_finished_is_ended_and_counts(bed: Bed) -> None:
    await bed.start(Limits(connections=2, handshake_s=1.0))
    assert bed.listener is not None
    raw = [await asyncio.open_connection("127.0.0.1", bed.port) for _ in range(2)]
    await until(lambda: bed.connections == 2)
    with pytest.raises((OSError, EOFError)):  # no third one while they last
        await bed.connect()
    for reader, writer in raw:
        async with asyncio.timeout(WAIT_S):
            with pytest.raises((ConnectionError, EOFError)):
                await reader.readexactly(1)
        writer.close()
    await until(lambda: bed.connections == 0)
    peer = await bed.connect()
    peer.send(message(b""))
    await peer.got(message(b"") + b"client")


async def test_no_stranger_is_heard(bed: Bed) -> None:
    await bed.start()
    for context in (bed.context(shown=False), bed.context(ca=InfraCa.make("another"))):
        try:
            peer = await bed.connect(context)
            peer.send(message(b""))
            assert await peer.ended() == b""
        except (OSError, EOFError):
            pass
    assert bed.asked == []


async def test_who_is_admitted_no_longer_is_not_heard_again(bed: Bed) -> None:
    await bed.start()
    peer = await bed.connect()
    peer.send(message(b""))
    await peer.got(message(b"") + b"client")
    bed.admitted = False
    peer.send(message(b""))
    assert await peer.ended() == b""
    assert len(bed.asked) == 1


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_tls_1_2_and_1_3_with_forward_secrecy(bed: Bed, version: ssl.TLSVersion) -> None:
    await bed.start()
    context = bed.context()
    context.minimum_version = context.maximum_version = version
    peer = await bed.connect(context)
    peer.send(message(b""))
    await peer.got(message(b"") + b"client")
    assert peer.writer.get_extra_info("cipher")[0].startswith(("ECDHE-", "TLS_"))


async def test_a_cipher_without_forward_secrecy_is_none(bed: Bed) -> None:
    await bed.start()
    context = bed.context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AES256-GCM-SHA384")
    with pytest.raises((OSError, EOFError)):
        await bed.connect(context)


async def test_a_drain_answers_what_has_come_and_takes_nothing_more(bed: Bed) -> None:
    await bed.start()
    busy, idle = await bed.connect(), await bed.connect()
    busy.send(message(b"a" * 8))
    bed.going_on.clear()
    await until(lambda: len(bed.asked) == 1)
    assert bed.listener is not None
    closing = asyncio.create_task(bed.listener.close(WAIT_S))
    assert await idle.ended() == b""
    bed.going_on.set()
    assert await busy.ended() == message(b"a" * 8) + b"client"
    await closing
    assert bed.listener.connections == 0
    with pytest.raises(OSError):
        await bed.connect()


async def test_a_fault_of_ours_ends_the_connection_and_no_other(bed: Bed, caplog: pytest.LogCaptureFixture) -> None:
    await bed.start()
    peer, other = await bed.connect(), await bed.connect()
    secret = b"s3cret-material!"

    async def broken(request: bytes, _: str) -> bytes:
        raise KeyError("planted")

    assert bed.listener is not None
    bed.listener._handle, handle = broken, bed.listener._handle
    peer.send(message(secret))
    assert await peer.ended() == b""
    bed.listener._handle = handle
    other.send(message(b""))
    await other.got(message(b"") + b"client")
    assert "a fault of ours" in caplog.text
    assert secret.decode() not in caplog.text


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    ca = InfraCa.make("test")
    ca.issue(tmp_path / "server.pem", "server", server=True)
    with pytest.raises(Refused):
        server_context(tmp_path / "server.pem", b"no certificate")
    (tmp_path / "empty.pem").write_bytes(b"")
    with pytest.raises(Refused):
        server_context(tmp_path / "empty.pem", ca.pem)


async def test_one_peer_has_so_many_connections_and_others_still_come(bed: Bed) -> None:
    await bed.start(Limits(connections=10, connections_of_one=2))
    peers = [await bed.connect() for _ in range(2)]
    for peer in peers:
        peer.send(message(b"1"))
        await peer.got(message(b"1") + b"client")
    late = await bed.connect()
    await late.ended()
    bed.name = "other"
    other = await bed.connect()
    other.send(message(b"2"))
    await other.got(message(b"2") + b"other")
    bed.name = "client"
    peers[0].writer.close()

    async def room() -> bool:
        again = await bed.connect()
        again.send(message(b"3"))
        try:
            async with asyncio.timeout(WAIT_S):
                return await again.reader.read(1) != b""
        except OSError:
            return False

    async with asyncio.timeout(WAIT_S):
        while not await room():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
