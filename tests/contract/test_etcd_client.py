"""What the etcd client makes of a member that does not do what it should: which outcomes are open, which are not."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.servers.etcd import TestCA

from keymesh.adapters import etcd_client, etcd_wire
from keymesh.adapters.etcd_client import Compacted, EtcdClient, client_context
from keymesh.control.log import UnknownOutcome
from keymesh.model.errors import Integrity, Refused, Unavailable

PUT = etcd_wire.txn([etcd_wire.put(b"k", b"v")])
GET = etcd_wire.txn([etcd_wire.get(b"k")])
DONE = b'{"header":{"cluster_id":"7","revision":"3"},"succeeded":true}'
Play = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]
"""What a member does about a transaction, given its body."""


def say(status: int, body: bytes) -> Play:
    async def play(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))

    return play


def fail(code: int, message: str, status: int = 503) -> Play:
    return say(status, json.dumps({"error": message, "message": message, "code": code}).encode())


async def hang_up(_: bytes, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def break_off(_: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{")
    await writer.drain()
    writer.close()


async def say_nothing(_: bytes, writer: asyncio.StreamWriter) -> None:
    """The client's patience ends first."""


class Members:
    """Makes members that are real TLS servers, and clients of them."""

    def __init__(self, directory: Path) -> None:
        self.ca = TestCA("members")
        self._server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._server.load_cert_chain(self.ca.leaf(directory / "server.pem"))
        self._server.load_verify_locations(cadata=self.ca.pem.decode())
        self._server.verify_mode = ssl.CERT_REQUIRED
        self.context = client_context(trust_pem=self.ca.pem, identity_file=self.ca.leaf(directory / "client.pem"))
        self.seen: list[str] = []
        self.connections = 0

    @asynccontextmanager
    async def member(self, play: Play, *, name: str = "m", cluster: int = 7, leader: int = 1) -> AsyncIterator[str]:
        status = json.dumps({"header": {"cluster_id": str(cluster)}, "leader": str(leader)}).encode()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            try:
                while True:
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
                    body = await reader.readexactly(length)
                    if etcd_wire.STATUS.encode() in head:
                        await say(200, status)(body, writer)
                    else:
                        self.seen.append(name)
                        await play(body, writer)
            except (EOFError, OSError):
                pass
            finally:
                writer.transport.abort()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=self._server)
        try:
            yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()

    def client(self, *urls: str, timeout_s: float = 0.5, connections: int = 16) -> EtcdClient:
        return EtcdClient(urls, tls=self.context, timeout_s=timeout_s, connect_s=5.0, connections=connections)


@pytest.fixture
def members(tmp_path: Path) -> Members:
    return Members(tmp_path)


@pytest.mark.parametrize(
    "play",
    [
        hang_up,
        break_off,
        say_nothing,
        say(200, b"{}"),
        say(200, b"\xff"),
        say(200, b"[]"),
        say(502, b"<html>"),
        say(404, b""),
        fail(14, "etcdserver: request timed out"),
        fail(14, "etcdserver: request timed out, possibly due to previous leader failure"),
        fail(14, "etcdserver: leader changed"),
        fail(4, "context deadline exceeded"),
        fail(13, "internal"),
        fail(2, "unknown"),
        fail(1, "cancelled"),
    ],
)
async def test_a_write_without_an_answer_is_open_and_is_not_sent_again(members: Members, play: Play) -> None:
    async with members.member(play, name="bad") as bad, members.member(say(200, DONE), name="good") as good:
        client = members.client(bad, good)
        with pytest.raises(UnknownOutcome):
            await client.write(PUT)
        assert members.seen == ["bad"]
        assert (await client.write(PUT)).succeeded, "the next one goes elsewhere"
        assert members.seen == ["bad", "good"]
        client.close()


@pytest.mark.parametrize(
    ("play", "error", "code"),
    [
        (fail(8, "etcdserver: mvcc: database space exceeded"), Unavailable, "disk-full"),
        (fail(8, "etcdserver: too many requests"), Unavailable, "busy"),
        (fail(8, "grpc: trying to send message larger than max (2000 vs. 1000)"), Refused, "etcd-limit"),
        (fail(3, "etcdserver: request is too large", 400), Refused, "etcd-limit"),
        (fail(3, "etcdserver: too many operations in txn request", 400), Refused, "etcd-limit"),
        (fail(7, "etcdserver: permission denied", 403), Unavailable, "etcd-refused"),
        (fail(16, "etcdserver: invalid auth token", 401), Unavailable, "etcd-refused"),
    ],
)
async def test_a_write_that_was_turned_away_is_settled(
    members: Members, play: Play, error: type[Exception], code: str
) -> None:
    async with members.member(play) as url:
        client = members.client(url)
        for _ in range(2):
            with pytest.raises(error) as caught:
                await client.write(PUT)
            assert getattr(caught.value, "code", None) == code
        assert members.connections == 1, "the connection is as good as before"
        client.close()


@pytest.mark.parametrize("play", [hang_up, break_off, say_nothing, fail(14, "etcdserver: no leader"), say(200, b"")])
async def test_a_read_asks_the_next_member(members: Members, play: Play) -> None:
    async with members.member(play, name="bad") as bad, members.member(say(200, DONE), name="good") as good:
        client = members.client(bad, good)
        assert (await client.read(GET)).header.revision == 3
        assert (await client.read(GET)).header.revision == 3
        assert members.seen == ["bad", "good", "good"]
        client.close()
        alone = members.client(bad)
        with pytest.raises(Unavailable):
            await alone.read(GET)
        alone.close()


async def test_a_read_of_what_is_compacted_says_so(members: Members) -> None:
    async with members.member(fail(11, "etcdserver: mvcc: required revision has been compacted", 400)) as url:
        client = members.client(url)
        with pytest.raises(Compacted):
            await client.read(GET)
        client.close()


async def test_nothing_is_sent_to_a_member_without_a_leader_or_of_another_cluster(members: Members) -> None:
    async with (
        members.member(say(200, DONE), name="lost", leader=0) as lost,
        members.member(say(200, DONE), name="good") as good,
        members.member(say(200, DONE), name="foreign", cluster=8) as foreign,
    ):
        client = members.client(lost)
        with pytest.raises(Unavailable):
            await client.write(PUT)
        client.close()
        client = members.client(lost, good)
        assert (await client.write(PUT)).succeeded
        client.close()
        client = members.client(good, foreign)
        await client.write(PUT)
        client._put_last(client._order[0])
        with pytest.raises(Integrity) as caught:
            await client.write(PUT)
        assert caught.value.code == "foreign-cluster"
        assert "foreign" not in members.seen and "lost" not in members.seen
        client.close()


async def test_no_more_connections_than_allowed_and_no_queue_without_end(
    members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with members.member(say(200, DONE)) as url:
        client = members.client(url, connections=3, timeout_s=10.0)
        await asyncio.gather(*(client.write(PUT) for _ in range(60)))
        assert members.connections == 3
        monkeypatch.setattr(etcd_client, "WAITING_MAX", 5)
        results = await asyncio.gather(*(client.write(PUT) for _ in range(20)), return_exceptions=True)
        busy = [r for r in results if isinstance(r, Unavailable) and r.code == "busy"]
        assert busy and len(busy) + sum(isinstance(r, etcd_wire.TxnAnswer) for r in results) == 20
        client.close()
        with pytest.raises(Unavailable):
            await client.write(PUT)


async def test_a_turn_that_does_not_come_ends_and_a_cancelled_exchange_spoils_nothing(members: Members) -> None:
    async with members.member(say_nothing) as url:
        client = members.client(url, connections=1, timeout_s=0.3)
        first, second = asyncio.create_task(client.write(PUT)), asyncio.create_task(client.write(PUT))
        done = await asyncio.gather(first, second, return_exceptions=True)
        assert {type(d) for d in done} <= {UnknownOutcome, Unavailable}
        hanging = asyncio.create_task(client.write(PUT))
        await asyncio.sleep(0.05)
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        with pytest.raises(UnknownOutcome):
            await client.write(PUT)
        client.close()


async def test_a_connection_that_the_member_ended_meanwhile_is_not_written_to(members: Members) -> None:
    async def once(_: bytes, writer: asyncio.StreamWriter) -> None:
        await say(200, DONE)(b"", writer)
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.close()

    async with members.member(once) as url:
        client = members.client(url)
        for _ in range(3):
            assert (await client.write(PUT)).succeeded
            await asyncio.sleep(0.2)
        client.close()


def test_endpoints_and_contexts_that_are_none(members: Members, tmp_path: Path) -> None:
    for urls in ([], ["http://h:1"], ["https://h"], ["https://h:1/x"], ["h:1"], ["https://h:1"] * 10):
        with pytest.raises(Refused):
            members.client(*urls)
    with pytest.raises(Refused):
        EtcdClient(["https://h:1"], tls=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    with pytest.raises(Refused):
        client_context(trust_pem=b"no", identity_file=tmp_path / "client.pem")
    (tmp_path / "junk.pem").write_bytes(b"junk")
    with pytest.raises(Refused):
        client_context(trust_pem=members.ca.pem, identity_file=tmp_path / "junk.pem")
    with pytest.raises(Unavailable):
        client_context(trust_pem=members.ca.pem, identity_file=tmp_path / "none.pem")
