"""Clients that are slow on purpose, many at once, beside one that is served all the while; memory is looked at."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.integration.edge_core import Pki, TestCore
from tests.integration.test_edge_process import Host, free_port, shown_by

from keymesh.edge import http1_accept, http1_server

PATIENCE_S = 150.0
EACH = 40
CREATE = b"POST /v1/acme/files/create-key HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
CREATE_MANY = CREATE.replace(b"create-key", b"create-keys")
IDLE = 10_000
GROWTH_MAX_MB = 96.0


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    core = TestCore(tmp_path, Pki())
    await core.start()
    yield Host(tmp_path, core)
    await core.stop()


@asynccontextmanager
async def serving(host: Host, *more: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await host.start(*more)
    try:
        yield process
    finally:
        process.terminate()
        _, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert b"Traceback" not in err, err.decode()


@asynccontextmanager
async def served(host: Host) -> AsyncIterator[Callable[[], int]]:
    """A client that asks again and again over one connection and is answered each time; how often it was."""
    reader, writer = await asyncio.open_unix_connection(str(host.socket))
    count = 0

    async def ask() -> None:
        nonlocal count
        while True:
            writer.write(CREATE % (2, b"{}"))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), head
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            assert "blob" in json.loads(await reader.readexactly(length))
            count += 1
            await asyncio.sleep(0.05)

    asking = asyncio.create_task(ask())
    try:
        yield lambda: count
        assert not asking.done(), asking
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        writer.close()


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What came before the server hung up."""
    got = bytearray()
    async with asyncio.timeout(PATIENCE_S):
        try:
            while more := await reader.read(65_536):
                got += more
        except ConnectionError:
            pass
    return bytes(got)


async def drip(writer: asyncio.StreamWriter, raw: bytes) -> None:
    """A byte at a time, for longer than anybody waits."""
    with pytest.raises(ConnectionError):
        for at in range(10_000):
            writer.write(raw[at : at + 1] or b"x")
            await writer.drain()
            await asyncio.sleep(0.5)


async def slow_request(connect: Callable[[], object], raw: bytes) -> None:
    """Is told that it took too long, and closed."""
    reader, writer = await connect()  # type: ignore[misc]
    dripping = asyncio.create_task(drip(writer, raw))
    try:
        said = await ended(reader)
        assert said.startswith(b"HTTP/1.1 408 "), said
    finally:
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)
        writer.close()


async def half_a_handshake(port: int, raw: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(raw)
    await ended(reader)
    writer.close()


def rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


async def test_slow_clients_are_closed_and_others_served_meanwhile(host: Host, tmp_path: Path) -> None:
    """Headers and bodies a byte at a time, over the Unix socket and TLS, and handshakes that are never finished."""
    port = free_port()
    tls = shown_by(host.core.mesh.edge_file(tmp_path), host.ca)
    headers, body = CREATE % (2, b"{}"), CREATE % (5_000, b"")
    async with serving(host, "--tcp", f"127.0.0.1:{port}") as process, served(host) as count:
        before = rss_mb(process.pid)

        async def unix() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            return await asyncio.open_unix_connection(str(host.socket))

        async def tcp() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            return await asyncio.open_connection("127.0.0.1", port, ssl=tls)

        async def after_head(connect: Callable[[], object]) -> None:
            reader, writer = await connect()  # type: ignore[misc]
            writer.write(body)
            await slow_request(lambda: _there(reader, writer), b"")

        hello = b"\x16\x03\x01\x02\x00\x01\x00\x01"
        async with asyncio.TaskGroup() as group:
            for _ in range(EACH):
                for connect in (unix, tcp):
                    group.create_task(slow_request(connect, headers))
                    group.create_task(after_head(connect))
                group.create_task(half_a_handshake(port, b""))
                group.create_task(half_a_handshake(port, hello))
        assert count() > 10
        print(
            f"{6 * EACH} slow clients, {count()} answers to the one beside them, +{rss_mb(process.pid) - before:.0f} MB"
        )
        assert rss_mb(process.pid) - before < GROWTH_MAX_MB


async def _there(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return reader, writer


@pytest.mark.parametrize("over", ["unix", "tls"])
async def test_who_never_reads_its_answers_is_cut_off_and_costs_little(host: Host, tmp_path: Path, over: str) -> None:
    """Big batches asked for in a row, and none of them read."""
    port = free_port()
    tls = shown_by(host.core.mesh.edge_file(tmp_path), host.ca)
    async with serving(host, "--tcp", f"127.0.0.1:{port}") as process, served(host) as count:
        before, held = rss_mb(process.pid), descriptors_of(process.pid)
        greedy = [_socket(host, port, tls if over == "tls" else None) for _ in range(4)]
        body = b'{"count":10000}'
        for one in greedy:
            one.setblocking(True)
            one.sendall(CREATE_MANY % (len(body), body) * 100)
        most, deadline, at_first, peak = before, time.monotonic() + PATIENCE_S, count(), held
        while peak < held + len(greedy) or descriptors_of(process.pid) > peak + 1 - len(greedy):
            peak = max(peak, descriptors_of(process.pid))
            assert time.monotonic() < deadline, "they are still there"
            most = max(most, rss_mb(process.pid))
            await asyncio.sleep(0.2)
        assert count() > at_first
        print(f"{over}: four clients left 400 answers of 1.5 MB unread, at most +{most - before:.0f} MB")
        assert most - before < GROWTH_MAX_MB
        for one in greedy:
            one.close()


def descriptors_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _socket(host: Host, port: int, tls: ssl.SSLContext | None) -> socket.socket:
    if tls is None:
        plain = socket.socket(socket.AF_UNIX)
        plain.connect(str(host.socket))
        return plain
    return tls.wrap_socket(socket.create_connection(("127.0.0.1", port)))


async def test_ten_thousand_idle_connections_and_one_that_is_served(host: Host, tmp_path: Path) -> None:
    """Beyond the maximum each is told so, and none that is there is harmed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = IDLE + 600
    able = min(hard, wanted) if hard != resource.RLIM_INFINITY else wanted
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, able), hard))
    number = min(IDLE, able - 600)
    try:
        async with serving(host, "--connections", str(number + 2)) as process, served(host) as count:
            before = rss_mb(process.pid)
            idle = [await _connect(host) for _ in range(number)]
            at_first = count()
            grown = rss_mb(process.pid) - before
            print(f"{number} idle connections: +{grown:.0f} MB, {grown * 1e3 / number:.1f} kB each")
            assert grown < GROWTH_MAX_MB * 2
            assert (await host.use())["blob"]  # the last place
            more = await _connect(host)
            async with asyncio.timeout(PATIENCE_S):
                idle.append(more)
                while not (said := await _read(idle[-1])).startswith(b"HTTP/1.1 503 "):
                    assert not said
                    idle.append(await _connect(host))
            assert f"at most {number + 2} connections".encode() in said
            await asyncio.sleep(1.0)
            assert count() > at_first
            for one in idle:
                one.close()
            assert (await host.use())["blob"]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def _connect(host: Host) -> socket.socket:
    """Waits where the listener's queue is full."""
    one = socket.socket(socket.AF_UNIX)
    one.setblocking(False)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                one.connect(str(host.socket))
                return one
            except BlockingIOError:
                await asyncio.sleep(0.01)


async def _read(one: socket.socket) -> bytes:
    """What it is told at once; nothing where it is let in."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(2.0):
            return await loop.sock_recv(one, 4_096)
    except TimeoutError:
        return b""


async def test_a_flood_of_handshakes_takes_no_descriptor_from_others(host: Host, tmp_path: Path) -> None:
    """With few descriptors, and more half-open handshakes than those: the Unix socket and TLS both go on."""
    port = free_port()
    tls = shown_by(host.core.mesh.edge_file(tmp_path), host.ca)
    flood = http1_accept.HANDSHAKES_MAX * 2
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, flood + 1_000)), hard))
    try:
        async with serving(host, "--tcp", f"127.0.0.1:{port}") as process:
            few = http1_accept.HANDSHAKES_MAX + http1_server.DESCRIPTORS_KEPT
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (few, few))
            half_open = [socket.create_connection(("127.0.0.1", port)) for _ in range(flood)]
            assert (await host.use())["blob"]
            async with asyncio.timeout(PATIENCE_S):
                _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
            writer.close()
            for one in half_open:
                one.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
