"""The handshake's refusals, on both event loops, and that nothing is said to a peer before it is known."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID as Eku
from tests.unit.adapters.pki_world import MESH, N1, N2, REGISTRY, US, World, now

from keymesh.access.identity import ClientIdentity, Identity
from keymesh.adapters import key_files, pki
from keymesh.adapters.files import write_file
from keymesh.adapters.tls import Credentials, MeshTls, PeerContext, PeerSSLObject, mesh_check
from keymesh.model.errors import Refused

Runner = Callable[[Coroutine[Any, Any, Any]], Any]
LOOPS = pytest.mark.parametrize("run", [asyncio.run], ids=["asyncio"])


@pytest.fixture(scope="module")
def world() -> World:
    return World()


class Tap:
    """A server behind a tap: what application bytes arrived, and what the client put on the wire."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.accepted = 0
        self.wire = bytearray()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        peer = writer.get_extra_info("ssl_object")
        assert isinstance(peer, PeerSSLObject)
        assert peer.peer is not None
        self.received.append(await reader.read(100))
        writer.write(peer.peer.uri.encode())
        await writer.drain()
        writer.close()

    def relay(self, port: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, copy: bytearray) -> None:
            try:
                while data := await reader.read(65536):
                    copy += data
                    writer.write(data)
                    await writer.drain()
            except ConnectionError:
                pass
            finally:
                writer.close()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(pump(reader, far_writer, self.wire), pump(far_reader, writer, bytearray()))

        return serve


async def talk(server: ssl.SSLContext, client: ssl.SSLContext, tap: Tap) -> bytes:
    """What the server answers to ``hello``; raises what the client's handshake or first read raises."""
    listener = await asyncio.start_server(tap.serve, "127.0.0.1", 0, ssl=server)
    relay = await asyncio.start_server(tap.relay(listener.sockets[0].getsockname()[1]), "127.0.0.1", 0)
    try:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", relay.sockets[0].getsockname()[1], ssl=client)
            try:
                writer.write(b"hello")
                await writer.drain()
                answer = await reader.read()
                if not answer:
                    raise ConnectionResetError("closed")
                return answer
            finally:
                writer.close()
    finally:
        await asyncio.sleep(0.01)
        relay.close()
        listener.close()


def records(wire: bytes) -> list[int]:
    """The content types of the TLS records in ``wire``: 22 handshake, 20 compatibility, 23 encrypted."""
    kinds = []
    while wire:
        kinds.append(wire[0])
        wire = wire[5 + int.from_bytes(wire[3:5]) :]
    return kinds


def anyone(identity: Identity) -> bool:
    return True


@LOOPS
def test_both_sides_know_each_other(world: World, tmp_path: Path, run: Runner) -> None:
    server = world.tls(tmp_path / "s", REGISTRY).server()
    client = world.tls(tmp_path / "c", N1).client(lambda peer: str(peer) == REGISTRY)
    tap = Tap()
    assert run(talk(server, client, tap)) == N1.encode()
    assert tap.received == [b"hello"]


@LOOPS
def test_an_unexpected_server_hears_nothing(world: World, tmp_path: Path, run: Runner) -> None:
    server = world.tls(tmp_path / "s", N2).server()
    client = world.tls(tmp_path / "c", N1).client(lambda peer: str(peer) == REGISTRY)
    tap = Tap()
    with pytest.raises(ssl.SSLCertVerificationError, match="not the peer expected"):
        run(talk(server, client, tap))
    assert (tap.accepted, tap.received) == (0, [])
    assert records(bytes(tap.wire)) == [22]  # the ClientHello and not one record more


@LOOPS
def test_an_unexpected_client_is_not_heard(world: World, tmp_path: Path, run: Runner) -> None:
    server = world.tls(tmp_path / "s", REGISTRY).server(lambda peer: str(peer) == N2)
    client = world.tls(tmp_path / "c", N1).client(anyone)
    tap = Tap()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        run(talk(server, client, tap))
    assert (tap.accepted, tap.received) == (0, [])


def uri(text: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(text)


ODD: dict[str, dict[str, Any]] = {
    "expired": {"start_s": -7200, "end_s": -1},
    "not yet valid": {"start_s": 3600, "end_s": 7200},
    "client use only": {"usages": [Eku.CLIENT_AUTH]},
    "server use only": {"usages": [Eku.SERVER_AUTH]},
    "code signing": {"usages": [Eku.CODE_SIGNING]},
    "no usage": {"usages": []},
    "CA:TRUE": {"ca": True},
    "no SAN": {"names": []},
    "two URIs": {"names": [uri(N1), uri(N2)]},
    "a URI and a DNS name": {"names": [uri(N1), x509.DNSName("localhost")]},
    "a DNS name": {"names": [x509.DNSName("eu.test-dev")]},
    "wildcard": {"names": [uri("spiffe://eu.test-dev/core/*")]},
    "another path": {"names": [uri("spiffe://eu.test-dev/admin/alice")]},
    "another mesh": {"names": [uri("spiffe://eu.other-dev/core/n1")]},
    "another region": {"names": [uri(US)]},
    "mesh-wide": {"names": [uri(REGISTRY)]},
    "trailing slash": {"names": [uri(N1 + "/")]},
}


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("fault", sorted(ODD))
def test_odd_leaves_are_refused_on_both_sides(world: World, tmp_path: Path, fault: str, side: str) -> None:
    odd = MeshTls(Credentials(world.write_odd(tmp_path / "odd", **ODD[fault])), MESH, world.root_pem)
    good = world.tls(tmp_path / "good", N2)
    contexts = (good.server(), odd.client(anyone)) if side == "client" else (odd.server(), good.client(anyone))
    tap = Tap()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        asyncio.run(talk(*contexts, tap))
    assert tap.received == []


def test_the_oddities_are_what_is_refused(world: World, tmp_path: Path) -> None:
    plain = MeshTls(Credentials(world.write_odd(tmp_path / "odd")), MESH, world.root_pem)
    good = world.tls(tmp_path / "good", N2)
    assert asyncio.run(talk(good.server(), plain.client(anyone), Tap())) == N1.encode()


def test_a_region_cannot_speak_for_another_even_with_its_ca_key(world: World, tmp_path: Path) -> None:
    stolen = world.cas["us.test-dev"]
    forged = Credentials(world.write_odd(tmp_path / "odd", issuer=stolen))
    good = world.tls(tmp_path / "good", N2)
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        asyncio.run(talk(MeshTls(forged, MESH, world.root_pem).server(), good.client(anyone), Tap()))
    tap = Tap()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        asyncio.run(talk(good.server(), MeshTls(forged, MESH, world.root_pem).client(anyone), tap))
    assert tap.received == []


@pytest.mark.parametrize(("name", "reason"), [("us", "path length constraint"), ("eu", "leaf, intermediate and root")])
def test_a_regional_ca_makes_no_further_ca(world: World, tmp_path: Path, name: str, reason: str) -> None:
    """``eu`` makes it self-issued, which RFC 5280 leaves out of the path length: ours to refuse."""
    good, eu = world.tls(tmp_path / "good", N2), world.cas["eu.test-dev"]
    sub = pki.create_intermediate(pki.Authority(eu.certificate, eu.key, MESH, "x", is_root=True), name, now=now())
    path = world.write_odd(tmp_path / "odd", issuer=sub)
    path.write_bytes(path.read_bytes() + pki.certificates_pem([eu.certificate]))
    forged = MeshTls(Credentials(path), MESH, world.root_pem)
    with pytest.raises(ssl.SSLCertVerificationError, match=reason):
        asyncio.run(talk(forged.server(), good.client(anyone), Tap()))


def test_a_foreign_ca_is_refused(world: World, tmp_path: Path) -> None:
    stranger = World()  # the same names, other keys
    good, foreign = world.tls(tmp_path / "good", N2), stranger.tls(tmp_path / "odd", N1)
    mixed = MeshTls(foreign.credentials, MESH, world.root_pem)
    for contexts in ((good.server(), mixed.client(anyone)), (mixed.server(), good.client(anyone))):
        tap = Tap()
        with pytest.raises((ssl.SSLError, ConnectionError)):
            asyncio.run(talk(*contexts, tap))
        assert tap.received == []


def test_no_client_certificate_and_older_tls_are_refused(world: World, tmp_path: Path) -> None:
    server = world.tls(tmp_path / "s", REGISTRY).server()
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.load_verify_locations(cadata=world.root_pem.decode())
    tap = Tap()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        asyncio.run(talk(server, bare, tap))
    bare.maximum_version = ssl.TLSVersion.TLSv1_2
    bare.load_cert_chain(world.write(tmp_path / "c", N1))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        asyncio.run(talk(server, bare, tap))
    assert tap.received == []
    bare.maximum_version = ssl.TLSVersion.TLSv1_3
    assert asyncio.run(talk(server, bare, tap)) == N1.encode()


def test_sessions_are_never_resumed(world: World, tmp_path: Path) -> None:
    server, client = world.tls(tmp_path / "s", REGISTRY).server(), world.tls(tmp_path / "c", N1).client(anyone)
    assert server.num_tickets == 0
    for _ in range(2):
        assert asyncio.run(talk(server, client, Tap())) == N1.encode()
    assert server.session_stats()["hits"] == 0


def test_a_refused_fingerprint_acts_at_once_also_for_a_whole_ca(world: World, tmp_path: Path) -> None:
    tls = world.tls(tmp_path / "s", REGISTRY)
    client = world.tls(tmp_path / "c", N1)
    context = tls.server()
    assert asyncio.run(talk(context, client.client(anyone), Tap())) == N1.encode()
    for condemned in (client.credentials.certificate, world.cas["eu.test-dev"].certificate):
        tls.credentials.refused.add(pki.fingerprint(condemned))
        tap = Tap()
        with pytest.raises((ssl.SSLError, ConnectionError)):
            asyncio.run(talk(context, client.client(anyone), tap))
        assert tap.received == []
        tls.credentials.refused.clear()
    assert asyncio.run(talk(context, client.client(anyone), Tap())) == N1.encode()


def test_a_live_connection_ends_with_its_chain(world: World, tmp_path: Path) -> None:
    tls = world.tls(tmp_path / "s", REGISTRY)
    context = tls.server()
    chain = [world.cas["eu.test-dev"].certificate, world.root.certificate]
    alive = world.tls(tmp_path / "c", N1).credentials.certificate
    peer = context.check_peer([alive, *chain])
    assert context.still_accepts(peer)
    dead = Credentials(world.write_odd(tmp_path / "d", start_s=-60, end_s=0)).certificate
    assert not context.still_accepts(context.check_peer([dead, *chain]))
    tls.credentials.refused.add(peer.chain[1])
    assert not context.still_accepts(peer)


def test_renewal_reaches_living_contexts(world: World, tmp_path: Path) -> None:
    tls = world.tls(tmp_path / "s", N1)
    client = world.tls(tmp_path / "c", REGISTRY)
    context, seen = tls.server(), []
    watching = client.credentials.client_context(
        trust_pem=world.root_pem, check=lambda leaf, root: seen.append(pki.fingerprint(leaf))
    )
    asyncio.run(talk(context, watching, Tap()))
    world.write(tmp_path / "s", N1)
    tls.credentials.reload()
    asyncio.run(talk(context, watching, Tap()))
    assert len(set(seen)) == 2
    assert seen[1] == pki.fingerprint(tls.credentials.certificate)


def test_a_bad_renewal_changes_nothing(world: World, tmp_path: Path) -> None:
    tls = world.tls(tmp_path / "s", N1)
    context = tls.server()
    before = pki.fingerprint(tls.credentials.certificate)
    key_files.write_identity(tmp_path / "s", pki.new_tls_key(), [tls.credentials.certificate])
    with pytest.raises(Refused):
        tls.credentials.reload()
    write_file(tmp_path / "s", b"torn")
    with pytest.raises(Refused):
        tls.credentials.reload()
    assert pki.fingerprint(tls.credentials.certificate) == before
    client = world.tls(tmp_path / "c", REGISTRY).client(anyone)
    assert asyncio.run(talk(context, client, Tap())) == REGISTRY.encode()


def test_blocking_sockets_are_refused(world: World, tmp_path: Path) -> None:
    context = world.tls(tmp_path / "s", N1).server()
    assert isinstance(context, PeerContext)
    with pytest.raises(TypeError):
        context.wrap_socket(None)
    with pytest.raises(Refused, match="leaf, intermediate and root"):
        context.check_peer([])


CLIENT = "spiffe://eu.test-dev/tenant/acme/client/app"


def tls12(world: World, tmp_path: Path, *, tls12: bool) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server that may be told to take TLS 1.2, and a client that nobody here wrote and that knows no more."""
    credentials = world.tls(tmp_path / "s", N1).credentials
    check = mesh_check(MESH, lambda identity: isinstance(identity, ClientIdentity))
    server = credentials.server_context(trust_pem=world.root_pem, check=check, tls12=tls12)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.load_verify_locations(cadata=world.root_pem.decode())
    client.load_cert_chain(world.write(tmp_path / "c", CLIENT))
    return server, client


def test_tls_1_2_is_taken_where_it_was_asked_for_and_the_peer_is_known(world: World, tmp_path: Path) -> None:
    tap = Tap()
    assert asyncio.run(talk(*tls12(world, tmp_path, tls12=True), tap)) == CLIENT.encode()
    tap = Tap()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        asyncio.run(talk(*tls12(world, tmp_path, tls12=False), tap))
    assert tap.received == []


@pytest.mark.parametrize("ciphers", ["AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA256"])
def test_of_tls_1_2_nothing_without_forward_secrecy_and_an_aead(world: World, tmp_path: Path, ciphers: str) -> None:
    server, client = tls12(world, tmp_path, tls12=True)
    client.set_ciphers(ciphers)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        asyncio.run(talk(server, client, Tap()))


def test_another_kind_is_not_heard_over_tls_1_2_either(world: World, tmp_path: Path) -> None:
    server, client = tls12(world, tmp_path, tls12=True)
    client.load_cert_chain(world.write(tmp_path / "other", N2))
    tap = Tap()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        asyncio.run(talk(server, client, tap))
    assert tap.received == []


def test_a_clients_certificate_is_no_servers(world: World, tmp_path: Path) -> None:
    """Neither to one of ours nor to one that looks at the chain alone."""
    posing = world.tls(tmp_path / "s", CLIENT).server()
    foreign = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    foreign.check_hostname = False
    foreign.load_verify_locations(cadata=world.root_pem.decode())
    foreign.load_cert_chain(world.write(tmp_path / "c", CLIENT))
    for client in (world.tls(tmp_path / "n", N2).client(anyone), foreign):
        with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
            asyncio.run(talk(posing, client, Tap()))
