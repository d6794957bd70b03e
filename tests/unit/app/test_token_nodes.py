"""A Core's own token: over real TLS to a listener that knows the enrolled keys; stolen, stale, and made by others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.unit.adapters.pki_world import MESH, N1, REGISTRY, US, World

from keymesh.access import token_nodes
from keymesh.access.identity import CoreIdentity, RegistryIdentity
from keymesh.access.token_nodes import RENEW_AFTER_MS, make_node_token
from keymesh.access.tokens import Channel, connection_claim
from keymesh.adapters.http_client import PeerClient
from keymesh.adapters.http_messages import Request, Response, Route, json_response
from keymesh.adapters.http_server import HttpServer, serve
from keymesh.adapters.tls import Credentials, MeshTls, PeerSSLObject
from keymesh.app.token_door import Nodes, TokenDoor
from keymesh.app.token_parts import NodeLogin
from keymesh.control.rows import NodeRow, encode
from keymesh.crypto.dsse import Ed25519Signer
from keymesh.crypto.jws import make_jws
from keymesh.model.errors import KeymeshError, Refused, Unavailable
from keymesh.model.ids import NodeId, RegionId
from keymesh.model.time import Instant

START = Instant(1_800_000_000_000)
S = START // 1000
FINISHED = b"finished of one connection"
HERE = Channel(None, FINISHED)
EU = CoreIdentity(mesh=MESH, region=RegionId("eu"), node=NodeId("n1"))
US_NODE = CoreIdentity(mesh=MESH, region=RegionId("us"), node=NodeId("n1"))
NO = "unauthenticated"


@dataclass
class Mesh:
    """Two enrolled nodes, and the Registry's door for them."""

    now: Instant = START
    eu: Ed25519Signer = field(default_factory=lambda: Ed25519Signer(Ed25519PrivateKey.generate()))
    us: Ed25519Signer = field(default_factory=lambda: Ed25519Signer(Ed25519PrivateKey.generate()))
    rows: dict[str, bytes] | None = None

    def __post_init__(self) -> None:
        self.rows = {}
        self.enrol("eu/n1", self.eu.public_key)
        self.enrol("us/n1", self.us.public_key)
        registry = RegistryIdentity(mesh=MESH, node=NodeId("r1"))
        self.door = TokenDoor(MESH, [], now=lambda: self.now, nodes=Nodes(registry, lambda: self.rows))

    def enrol(self, name: str, public_key: bytes) -> None:
        assert self.rows is not None
        self.rows[f"node/{name}"] = encode(NodeRow(signing_key=public_key.hex()))

    def token(self, node: CoreIdentity | None = None, signer: Ed25519Signer | None = None, **more: Any) -> str:
        signer = signer or self.eu
        asked: dict[str, Any] = {"audience": REGISTRY, "finished": FINISHED, "token_id": "j1", "now": self.now, **more}
        return make_node_token(node or EU, public_key=signer.public_key, sign=signer.sign_raw, **asked)

    def odd(self, *, header: dict[str, str] | None = None, **changed: Any) -> str:
        """A node's token that is wrong in whatever ``changed`` says; None takes a claim away."""
        claims: dict[str, Any] = {
            "iss": N1, "sub": N1, "aud": REGISTRY, "iat": S, "exp": S + 60, "jti": "j1",
            "cnf": {"tls-finished": connection_claim(FINISHED)}, **changed,
        }  # fmt: skip
        head = {"alg": "EdDSA", "kid": self.eu.key_id, "typ": "keymesh-node+jwt", **(header or {})}
        return make_jws(head, {k: v for k, v in claims.items() if v is not None}, sign=self.eu.sign_raw)

    async def who(self, token: str, channel: Channel = HERE) -> str:
        try:
            return str((await self.door.accept(token, channel)).identity)
        except KeymeshError as no:
            return no.code


async def test_an_enrolled_node_is_itself() -> None:
    mesh = Mesh()
    assert await mesh.who(mesh.token()) == N1
    assert await mesh.who(mesh.odd(jti="j2")) == N1
    assert await mesh.who(mesh.token(US_NODE, mesh.us)) == US


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("another node's name", {"iss": US, "sub": US}),
        ("another subject", {"sub": US}),
        ("no node", {"iss": REGISTRY, "sub": REGISTRY}),
        ("an administrator", {"iss": "spiffe://test-dev/admin/ann", "sub": "spiffe://test-dev/admin/ann"}),
        ("a node that is not enrolled", {"iss": "spiffe://eu.test-dev/core/n2", "sub": "spiffe://eu.test-dev/core/n2"}),
        ("another mesh's node", {"iss": "spiffe://eu.other-dev/core/n1", "sub": "spiffe://eu.other-dev/core/n1"}),
        ("another spelling", {"iss": N1 + "/", "sub": N1 + "/"}),
        ("for another replica", {"aud": "spiffe://test-dev/registry/r2"}),
        ("for the mesh at large", {"aud": "spiffe://test-dev/registry"}),
        ("for two replicas", {"aud": [REGISTRY, "spiffe://test-dev/registry/r2"]}),
        ("of another connection", {"cnf": {"tls-finished": connection_claim(b"another")}}),
        ("of no connection", {"cnf": None}),
        ("bound to a certificate instead", {"cnf": {"x5t#S256": "x"}}),
        ("too long a life", {"exp": S + 61}),
        ("expired", {"iat": S - 361, "exp": S - 301}),
        ("of the future", {"iat": S + 301, "exp": S + 320}),
        ("without an id", {"jti": None}),
        ("another kind", {"header": {"typ": "JWT"}}),
        ("another algorithm", {"header": {"alg": "ES256"}}),
        ("another key id", {"header": {"kid": "0" * 64}}),
        ("a header more", {"header": {"jku": "https://evil.example"}}),
    ],
)
async def test_what_is_no_nodes_token(name: str, changed: dict[str, Any]) -> None:
    mesh = Mesh()
    assert await mesh.who(mesh.odd(**changed)) == NO
    assert await mesh.who(mesh.odd()) == N1


async def test_another_enrolled_nodes_key_does_not_sign_for_this_one() -> None:
    mesh = Mesh()
    assert await mesh.who(mesh.token(EU, mesh.us)) == NO
    forged = make_node_token(
        EU, audience=REGISTRY, finished=FINISHED, token_id="j", now=START,
        public_key=mesh.eu.public_key, sign=mesh.us.sign_raw,
    )  # fmt: skip
    assert await mesh.who(forged) == NO


async def test_a_token_serves_once() -> None:
    mesh = Mesh()
    token = mesh.token()
    assert await mesh.who(token) == N1
    assert await mesh.who(token) == NO
    assert await mesh.who(mesh.token(US_NODE, mesh.us)) == US  # its own ids


async def test_a_node_that_fills_its_book_keeps_no_other_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_nodes, "SPENT_EACH_MAX", 8)
    monkeypatch.setattr(token_nodes, "SPENT_MAX", 16)  # so two that are full would have filled one book
    mesh = Mesh()
    answers = [await mesh.who(mesh.token(token_id=f"bad-{n}")) for n in range(40)]
    filled = answers.count(N1)
    assert 1 < filled <= 8
    assert answers == [N1] * filled + [NO] * (40 - filled)
    for n in range(4):
        assert await mesh.who(mesh.token(US_NODE, mesh.us, token_id=f"j-{n}")) == US
    mesh.now = Instant(START + 360_000)
    assert await mesh.who(mesh.token(token_id="later")) == N1  # the first ones are dead


async def test_only_enrolled_nodes_are_in_the_book() -> None:
    mesh = Mesh()
    for n in range(20):
        node = CoreIdentity(mesh=MESH, region=RegionId("eu"), node=NodeId(f"x{n}"))
        assert await mesh.who(mesh.token(node, mesh.eu, token_id=f"j{n}")) == NO
        assert await mesh.who(mesh.token(EU, mesh.us, token_id=f"j{n}")) == NO
    assert len(mesh.door._spent_by_nodes) == 0
    assert await mesh.who(mesh.token()) == N1
    assert mesh.door._spent_by_nodes.parties == 1


async def test_a_key_that_is_enrolled_no_more_ends_what_it_vouched_for() -> None:
    mesh = Mesh()
    accepted = await mesh.door.accept(mesh.token(), HERE)
    assert mesh.door.still_accepts(accepted)
    mesh.enrol("eu/n1", mesh.us.public_key)
    assert not mesh.door.still_accepts(accepted)
    assert await mesh.who(mesh.token(token_id="j2")) == NO
    mesh.rows = {}
    assert not mesh.door.still_accepts(accepted)
    assert await mesh.who(mesh.token(token_id="j3")) == NO


async def test_an_enrolled_key_that_is_none_vouches_for_nothing() -> None:
    mesh = Mesh()
    assert mesh.rows is not None
    for text in ("zz", "00", "01" + "00" * 31):
        mesh.rows["node/eu/n1"] = encode(NodeRow(signing_key=text))
        assert await mesh.who(mesh.token()) == NO


async def test_while_the_log_is_read_nobody_is_known_to_be_absent() -> None:
    mesh = Mesh()
    accepted = await mesh.door.accept(mesh.token(), HERE)
    mesh.rows = None
    with pytest.raises(Unavailable, match="still being read"):
        await mesh.door.accept(mesh.token(token_id="j2"), HERE)
    assert not mesh.door.still_accepts(accepted)


async def test_where_nodes_show_no_tokens_theirs_are_nobodys() -> None:
    mesh = Mesh()
    mesh.door = TokenDoor(MESH, [], now=lambda: mesh.now)
    assert await mesh.who(mesh.token()) == NO


# --- over TLS -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@asynccontextmanager
async def served(world: World, directory: Path, mesh: Mesh, seen: list[str]) -> AsyncIterator[HttpServer]:
    async def who(request: Request) -> Response:
        seen.append(request.headers["authorization"])
        return json_response({"who": str(request.identity)})

    async def bye(request: Request) -> Response:
        return Response(headers=(("Connection", "close"),))

    routes = [Route(method="GET", path="/who", handler=who, takes_tokens=True)]
    routes.append(Route(method="GET", path="/bye", handler=bye, takes_tokens=True))
    context = world.tls(directory / "registry.pem", REGISTRY).server(required=False)
    server = await serve(routes, tls=context, tokens=mesh.door)
    try:
        yield server
    finally:
        await server.close()


def client(world: World, directory: Path, server: HttpServer, authorize: Any) -> PeerClient:
    tls = MeshTls(Credentials(world.write(directory / "n1.pem", N1)), MESH, world.root_pem)
    context = tls.client(lambda identity: isinstance(identity, RegistryIdentity), anonymous=True)
    return PeerClient(f"https://127.0.0.1:{server.port}", context, connections=1, authorize=authorize)


async def test_each_connection_has_a_token_of_its_own(world: World, tmp_path: Path) -> None:
    mesh, seen = Mesh(), list[str]()
    login = NodeLogin(EU, mesh.eu)
    mesh.now, _ = login._watch.observe()
    async with (
        served(world, tmp_path, mesh, seen) as server,
        client(world, tmp_path, server, login.authorization) as it,
    ):
        for _ in range(3):
            assert (await it.request("GET", "/who"))[1] == f'{{"who":"{N1}"}}'.encode()
        await it.request("GET", "/bye")
        assert (await it.request("GET", "/who"))[1] == f'{{"who":"{N1}"}}'.encode()
    assert len(set(seen)) == 2
    assert seen[0] == seen[1] == seen[2] != seen[3]


async def test_a_stolen_token_is_worth_nothing_on_another_connection(world: World, tmp_path: Path) -> None:
    """Not even unspent: it was made for a connection that the thief does not have."""
    mesh, seen = Mesh(), list[str]()
    login = NodeLogin(EU, mesh.eu)
    mesh.now, _ = login._watch.observe()
    kept: list[str] = []

    def keep_to_oneself(tls: PeerSSLObject) -> str:
        kept.append(login.authorization(tls))
        return "Bearer x"

    async with served(world, tmp_path, mesh, seen) as server:
        async with client(world, tmp_path, server, keep_to_oneself) as owner:
            with pytest.raises(Refused):
                await owner.request("GET", "/who")
        async with client(world, tmp_path, server, lambda tls: kept[0]) as thief:
            with pytest.raises(Refused, match="not accepted"):
                await thief.request("GET", "/who")
    assert seen == []


async def test_a_token_is_renewed_before_it_ends(world: World, tmp_path: Path) -> None:
    mesh, seen = Mesh(), list[str]()
    login = NodeLogin(EU, mesh.eu)

    class Watch:
        now = START

        def observe(self) -> tuple[Instant, bool]:
            return self.now, False

    watch = Watch()
    login._watch = watch  # type: ignore[assignment]
    async with (
        served(world, tmp_path, mesh, seen) as server,
        client(world, tmp_path, server, login.authorization) as it,
    ):
        for passed in (0, RENEW_AFTER_MS - 1, 1, RENEW_AFTER_MS):
            watch.now = mesh.now = Instant(watch.now + passed)
            await it.request("GET", "/who")
    assert [seen.index(token) for token in seen] == [0, 0, 2, 3]


def test_a_connection_without_a_known_registry_gets_no_token() -> None:
    mesh = Mesh()
    login = NodeLogin(EU, mesh.eu)
    tls = PeerSSLObject.__new__(PeerSSLObject)
    with pytest.raises(Unavailable, match="certificate"):
        login.authorization(tls)
