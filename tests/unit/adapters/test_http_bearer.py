"""Bearer tokens at the HTTP server over real TLS: beside a certificate, in its place, and nothing without either."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.unit.adapters.pki_world import MESH, N1, N2, REGISTRY, US, World

from keymesh.access.identity import AdminIdentity, Identity, PersonIdentity, parse_identity
from keymesh.access.role import Role
from keymesh.access.tokens import Channel, refusal
from keymesh.adapters import pki
from keymesh.adapters.http_client import PeerClient
from keymesh.adapters.http_messages import Request, Response, Route, Stream, json_response
from keymesh.adapters.http_server import HttpServer, Limits, serve
from keymesh.adapters.tls import PeerContext, anonymous_context, mesh_check
from keymesh.model.errors import Refused, Unavailable
from keymesh.model.ids import TenantId

ANN = "spiffe://test-dev/admin/ann"
PEOPLE: dict[str, Identity] = {
    "ann": AdminIdentity(mesh=MESH, name="ann"),
    "n1": parse_identity(N1, MESH),
    "eve-of-acme": PersonIdentity(
        mesh=MESH, issuer="corp", name="eve", tenant=TenantId("acme"), roles=frozenset({Role.KEY_ADMIN})
    ),
}


@dataclass(frozen=True)
class Shown:
    identity: Identity


@dataclass
class Check:
    """Knows three tokens."""

    channels: list[Channel] = field(default_factory=list)
    ended: bool = False

    async def accept(self, token: str, channel: Channel) -> Shown:
        self.channels.append(channel)
        if token not in PEOPLE or self.ended:
            raise refusal()
        return Shown(PEOPLE[token])

    def still_accepts(self, accepted: Any) -> bool:
        return not self.ended


@dataclass
class App:
    release: asyncio.Event = field(default_factory=asyncio.Event)

    def routes(self) -> list[Route]:
        return [
            Route(method="GET", path="/who", handler=self.who, takes_tokens=True),
            Route(method="GET", path="/certificate-only", handler=self.who),
            Route(method="GET", path="/stream", handler=self.stream, takes_tokens=True),
        ]

    async def who(self, request: Request) -> Response:
        return json_response({"who": str(request.identity)})

    async def stream(self, request: Request) -> Stream:
        async def lines() -> AsyncIterator[bytes]:
            yield b"1"
            await self.release.wait()
            yield b"2"

        return Stream(lines())


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def files(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bearer")
    for name, uri in (("registry", REGISTRY), ("n1", N1), ("n2", N2), ("us", US), ("ann", ANN)):
        world.write(directory / f"{name}.pem", uri)
    world.write(directory / "client.pem", "spiffe://eu.test-dev/tenant/acme/client/app")
    world.write(directory / "foreign.pem", "spiffe://eu.test-dev/tenant/other/client/app")
    return directory


@asynccontextmanager
async def served(
    world: World, files: Path, check: Check, app: App | None = None, limits: Limits | None = None
) -> AsyncIterator[HttpServer]:
    listening = tls(world, files, "registry").server(required=False)
    server = await serve((app or App()).routes(), tls=listening, tokens=check, limits=limits)
    try:
        yield server
    finally:
        await server.close()


def tls(world: World, files: Path, name: str) -> Any:
    from keymesh.adapters.tls import Credentials, MeshTls

    return MeshTls(Credentials(files / f"{name}.pem"), MESH, world.root_pem)


def context(world: World, files: Path, name: str | None) -> PeerContext:
    """Of a client with that certificate, or none."""
    check = mesh_check(MESH, lambda identity: str(identity) == REGISTRY)
    if name is None:
        return anonymous_context(trust_pem=world.root_pem, check=check, refused=set())
    made: PeerContext = tls(world, files, name).client(lambda identity: str(identity) == REGISTRY)
    return made


async def ask(client: PeerClient, path: str, *headers: str) -> str:
    """Who the server says it is; the code of its refusal."""
    try:
        _, body = await client.request("GET", path, headers={"Authorization": headers[0]} if headers else {})
    except (Refused, Unavailable) as no:
        return no.code
    return body.decode()


def me(uri: str) -> str:
    return f'{{"who":"{uri}"}}'


NO = "unauthenticated"


async def test_without_a_certificate_a_token_says_who_it_is(world: World, files: Path) -> None:
    check = Check()
    async with served(world, files, check) as server:
        async with PeerClient(f"https://127.0.0.1:{server.port}", context(world, files, None)) as client:
            assert await ask(client, "/who", "Bearer ann") == me(ANN)
            assert await ask(client, "/who", "bearer  ann") == me(ANN)
            assert await ask(client, "/healthz", "Bearer ann") == '{"ok":true}'
    assert [c.certificate for c in check.channels] == [None]
    assert len(check.channels[0].finished) >= 32


@pytest.mark.parametrize("path", ["/who", "/certificate-only", "/healthz", "/metrics", "/nowhere", "/.."])
async def test_nobody_sees_nothing(world: World, files: Path, path: str) -> None:
    """Neither of the two: 401, also where there is no such path."""
    async with served(world, files, Check()) as server:
        async with PeerClient(f"https://127.0.0.1:{server.port}", context(world, files, None)) as client:
            assert await ask(client, path) == NO
            assert await ask(client, path, "Bearer mallory") == NO


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic YTpi", "Bearer a b", "Bearer ann,", "ann", "Bearer\tann", "Digest ann"]
)
async def test_a_header_that_is_no_token(world: World, files: Path, header: str) -> None:
    """Also beside a good certificate: who shows something is taken at it."""
    async with served(world, files, Check()) as server:
        for name in (None, "ann"):
            async with PeerClient(f"https://127.0.0.1:{server.port}", context(world, files, name)) as client:
                assert await ask(client, "/who", header) == NO


async def test_two_tokens_are_none(world: World, files: Path) -> None:
    async with served(world, files, Check()) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context(world, files, None))
        writer.write(b"GET /who HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ann\r\nAuthorization: Bearer ann\r\n\r\n")
        answer = (await reader.read(4096)).decode()
        writer.close()
    assert answer.startswith("HTTP/1.1 401 ")
    assert "WWW-Authenticate: Bearer" in answer


async def test_a_token_where_only_certificates_count(world: World, files: Path) -> None:
    async with served(world, files, Check()) as server:
        async with PeerClient(f"https://127.0.0.1:{server.port}", context(world, files, None)) as client:
            assert await ask(client, "/certificate-only", "Bearer ann") == NO
        async with PeerClient(f"https://127.0.0.1:{server.port}", context(world, files, "ann")) as client:
            assert await ask(client, "/certificate-only", "Bearer ann") == me(ANN)


@pytest.mark.parametrize(
    ("certificate", "token", "answer"),
    [
        ("ann", "ann", me(ANN)),
        ("n1", "n1", me(N1)),
        ("n2", "n1", NO),
        ("us", "n1", NO),
        ("n1", "ann", NO),
        ("ann", "n1", NO),
        ("ann", "eve-of-acme", NO),
        ("client", "eve-of-acme", me(str(PEOPLE["eve-of-acme"]))),
        ("foreign", "eve-of-acme", NO),  # the tenant of the token is not the certificate's
        ("client", "ann", NO),
        ("ann", "mallory", NO),
    ],
)
async def test_a_certificate_and_a_token_agree_or_are_refused(
    world: World, files: Path, certificate: str, token: str, answer: str
) -> None:
    check = Check()
    async with served(world, files, check) as server:
        async with PeerClient(f"https://127.0.0.1:{server.port}", context(world, files, certificate)) as client:
            assert await ask(client, "/who", f"Bearer {token}") == answer
    own = tls(world, files, certificate).credentials.certificate
    assert check.channels[0].certificate == bytes.fromhex(pki.fingerprint(own))


async def test_a_bad_certificate_is_not_mended_by_a_good_token(world: World, files: Path, tmp_path: Path) -> None:
    """Where none is required, one that is shown must still pass."""
    stranger = World()
    stranger.write(files / "stranger.pem", ANN)
    world.write_odd(tmp_path / "late.pem", start_s=-3600, end_s=-1)
    world.write_odd(tmp_path / "early.pem", start_s=600)
    async with served(world, files, Check()) as server:
        for path in (files / "stranger.pem", tmp_path / "late.pem", tmp_path / "early.pem"):
            bad = context(world, files, None)
            bad.load_cert_chain(path)
            async with PeerClient(f"https://127.0.0.1:{server.port}", bad) as client:
                assert await ask(client, "/who", "Bearer ann") in ("no-answer", "unreachable"), path


async def test_a_connection_that_showed_a_token_need_not_have_it_verified_again(world: World, files: Path) -> None:
    check = Check()
    async with served(world, files, check) as server:
        async with PeerClient(f"https://127.0.0.1:{server.port}", context(world, files, None), connections=1) as client:
            for token, seen in (("ann", 1), ("ann", 1), ("n1", 2), ("n1", 2), ("ann", 3)):
                assert await ask(client, "/who", f"Bearer {token}") != NO
                assert len(check.channels) == seen
            assert await ask(client, "/who") == NO  # each request shows it
            check.ended = True
            assert await ask(client, "/who", "Bearer ann") == NO
        check.ended = False
        async with PeerClient(f"https://127.0.0.1:{server.port}", context(world, files, None)) as other:
            assert await ask(other, "/who", "Bearer ann") == me(ANN)
    assert check.channels[0].finished != check.channels[-1].finished


async def test_a_stream_ends_with_its_token(world: World, files: Path) -> None:
    check, app = Check(), App()
    async with served(world, files, check, app) as server:
        async with PeerClient(f"https://127.0.0.1:{server.port}", context(world, files, None)) as client:
            lines: Any = client.stream_lines("/stream", headers={"Authorization": "Bearer ann"})
            async with aclosing(lines):
                assert await anext(lines) == b"1"
                check.ended = True
                app.release.set()
                with pytest.raises(Unavailable):
                    await anext(lines)


async def test_there_is_one_try_for_each_handshake(world: World, files: Path) -> None:
    async with served(world, files, Check()) as server:
        for name, header in (
            (None, b""),
            (None, b"Authorization: Bearer mallory\r\n"),
            ("ann", b"Authorization: x\r\n"),
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context(world, files, name))
            writer.write(2 * (b"GET /who HTTP/1.1\r\nHost: x\r\n" + header + b"\r\n"))
            writer.write(b"GET /who HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + header + b"\r\n")
            async with asyncio.timeout(5):
                answers = (await reader.read()).count(b"HTTP/1.1 401 ")
            writer.close()
            assert answers == 1


async def test_strangers_cannot_take_every_place(world: World, files: Path) -> None:
    """Four places: two for whoever comes, and all for those who show a certificate."""
    async with served(world, files, Check(), limits=Limits(connections=4)) as server:
        opened = []
        for _ in range(5):
            opened.append(await asyncio.open_connection("127.0.0.1", server.port, ssl=context(world, files, None)))
        async with asyncio.timeout(5):
            for reader, _ in opened[2:]:
                assert await reader.read() == b""
        async with PeerClient(f"https://127.0.0.1:{server.port}", context(world, files, "n1")) as client:
            assert await ask(client, "/who") == me(N1)
        for _, writer in opened:
            writer.close()


async def test_without_a_check_a_token_opens_nothing(world: World, files: Path) -> None:
    """A server that was not told to take tokens asks for a certificate in the handshake, and looks at no header."""
    server = await serve(App().routes(), tls=tls(world, files, "registry").server())
    try:
        async with PeerClient(f"https://127.0.0.1:{server.port}", context(world, files, None)) as client:
            assert await ask(client, "/who", "Bearer ann") in ("no-answer", "unreachable")
        async with PeerClient(f"https://127.0.0.1:{server.port}", context(world, files, "n1")) as client:
            assert await ask(client, "/who", "Bearer ann") == me(N1)
    finally:
        await server.close()
