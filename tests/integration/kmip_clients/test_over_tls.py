"""What is true of the engine by itself is true over TLS: the key table, many idle peers, half requests."""

from __future__ import annotations

import asyncio
import resource
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.kmip_clients.served import ANSWER_S, Served, answer
from tests.unit.kmip.support import Answer, aes, batch_item, message, new_key, parsed, vendors
from tests.unit.kmip.test_states import ASKS, BECOMES, COMPROMISE, MATRIX, OTHER

from keymesh.kmip.enums import Operation, ResultStatus, State
from keymesh.kmip.items import make
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import Item, ItemType

IDLE = 2_000
AT_ONCE = 50
DESCRIPTORS = 3 * IDLE
SMALL_MB = 300
VERSION = (2, 1)
QUERY = message(VERSION, batch_item(Operation.Query, make(Tag.QueryFunction, 1)))


def ask(peer: ssl.SSLSocket, operation: Operation, *payload: Item) -> Answer:
    peer.sendall(message(VERSION, batch_item(operation, *payload)))
    version, answers = parsed(answer(peer))
    assert version == VERSION and len(answers) == 1
    return answers[0]


def state_of(peer: ssl.SSLSocket, uid: str) -> object:
    reference = Item(Tag.AttributeReference, ItemType.ENUMERATION, Tag.State)
    return ask(peer, Operation.GetAttributes, make(Tag.UniqueIdentifier, uid), reference).value(Tag.State)


def in_state(peer: ssl.SSLSocket, state: State) -> str:
    active = [make(Tag.ActivationDate, 1)] if state in (State.Active, State.Deactivated) else []
    uid = ask(peer, Operation.Create, *new_key(*aes(), vendors("there", "1"), *active)).uid
    which = make(Tag.UniqueIdentifier, uid)
    if state is State.Deactivated:
        ask(peer, Operation.Revoke, which, OTHER)
    if state in (State.Compromised, State.DestroyedCompromised):
        ask(peer, Operation.Revoke, which, COMPROMISE)
    if state in (State.Destroyed, State.DestroyedCompromised):
        ask(peer, Operation.Destroy, which)
    assert state_of(peer, uid) == state
    return uid


def test_every_state_and_every_operation_of_the_key_table(served: Served) -> None:
    with served.connected() as peer:
        for state in State:
            for name, (operation, payload) in ASKS.items():
                uid = in_state(peer, state)
                found = ask(peer, operation, make(Tag.UniqueIdentifier, uid), *payload)
                allowed = name in MATRIX[state]
                assert (found.status is ResultStatus.Success) is allowed, (state.name, name, found.reason)
                compromised = State.Compromised if name == "Revoke, compromise" else state
                after = BECOMES.get((state, name), compromised) if allowed else state
                assert state_of(peer, uid) == after, (state.name, name)


def test_requests_in_pieces_and_in_one(served: Served) -> None:
    with served.connected() as peer:
        for cut in (1, 7, 8, 9, len(QUERY) - 1):
            peer.sendall(QUERY[:cut])
            peer.sendall(QUERY[cut:] + QUERY + QUERY[:cut])
            peer.sendall(QUERY[cut:])
            for _ in range(3):
                assert parsed(answer(peer))[1][0].status is ResultStatus.Success


@contextmanager
def descriptors(wanted: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(wanted, before[0]), before[1]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


class Idle(asyncio.Protocol):
    """A peer that has finished its handshake and says nothing, without asyncio's TLS (which keeps 256 KiB for each)."""

    def __init__(self, tls: ssl.SSLContext, host: str) -> None:
        self._from, self._to = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = tls.wrap_bio(self._from, self._to, server_hostname=host)
        self.is_up = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.data_received(b"")

    def data_received(self, data: bytes) -> None:
        self._from.write(data)
        try:
            self._tls.do_handshake()
            if not self.is_up.done():
                self.is_up.set_result(None)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as failed:
            self.is_up.set_exception(failed)
        if self._to.pending:
            self.transport.write(self._to.read())


async def _idle_beside(served: Served) -> float:
    """Megabytes that both ends of all idle connections take."""
    loop = asyncio.get_running_loop()
    tls = served.context()
    before = resident_mb()
    idle: list[Idle] = []

    async def one() -> None:
        _, peer = await loop.create_connection(lambda: Idle(tls, served.host), served.host, served.port)
        idle.append(peer)
        async with asyncio.timeout(ANSWER_S):
            await peer.is_up

    try:
        for _ in range(IDLE // AT_ONCE):
            await asyncio.gather(*(one() for _ in range(AT_ONCE)))
        grown = resident_mb() - before
        await asyncio.to_thread(_is_served, served)
        assert len(idle) == IDLE and not any(peer.transport.is_closing() for peer in idle)
        return grown
    finally:
        for peer in idle:
            peer.transport.abort()


def _is_served(served: Served) -> None:
    with served.connected() as peer:
        for _ in range(50):
            peer.sendall(QUERY)
            assert parsed(answer(peer))[1][0].status is ResultStatus.Success


def test_two_thousand_idle_connections_beside_one_that_is_served(served: Served) -> None:
    """They cost little, too: asyncio's own TLS would take 500 MB for our ends of them."""
    with descriptors(DESCRIPTORS):
        assert asyncio.run(_idle_beside(served)) < SMALL_MB
