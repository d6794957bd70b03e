"""An identity provider in memory: honest and dishonest tokens, key sets that change, a clock that is moved by hand."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms

from keymesh.access.role import Role
from keymesh.access.token_keys import IssuerKeys
from keymesh.access.token_people import PeopleRules
from keymesh.access.tokens import Channel, TokenRules
from keymesh.app.token_door import Issuer, Nodes, TokenDoor
from keymesh.model.errors import KeymeshError, Unavailable
from keymesh.model.ids import MeshName, TenantId
from keymesh.model.time import Instant

MESH = MeshName("example")
ISSUER, AUDIENCE = "https://id.example/realm", "keymesh"
START = Instant(1_800_000_000_000)
CHANNEL = Channel(None, b"finished of one connection")

RSA_KEY = rsa.generate_private_key(65_537, 2_048)
OTHER_RSA = rsa.generate_private_key(65_537, 2_048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
KEYS: dict[str, Any] = {"RS256": RSA_KEY, "PS256": RSA_KEY, "ES256": EC_KEY, "EdDSA": ED_KEY}


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def jwk(key: Any, kid: str, algorithm: str, **more: Any) -> dict[str, Any]:
    public = get_default_algorithms()[algorithm].to_jwk(key.public_key(), as_dict=True)
    return {**public, "kid": kid, "alg": algorithm, "use": "sig", **more}


def jwks(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()


def claims(**changed: Any) -> dict[str, Any]:
    """Of an honest token issued now; None takes a claim away."""
    made: dict[str, Any] = {
        "iss": ISSUER, "aud": AUDIENCE, "sub": "u-1", "iat": START // 1000, "exp": START // 1000 + 600,
        "jti": "j-1", "groups": ["mesh-ops"],
    }  # fmt: skip
    return {name: value for name, value in (made | changed).items() if value is not None}


def sign(
    body: dict[str, Any] | str, *, algorithm: str = "RS256", key: Any = None, header: dict[str, Any] | str | None = None
) -> str:
    """A token with that body; header and body may be raw JSON texts."""
    head = {"alg": algorithm, "kid": "k1"} if header is None else header
    texts = [part if isinstance(part, str) else json.dumps(part) for part in (head, body)]
    signed = ".".join(b64(text.encode()) for text in texts)
    signature = get_default_algorithms()[algorithm].sign(signed.encode(), KEYS[algorithm] if key is None else key)
    return f"{signed}.{b64(signature)}"


@dataclass
class Source:
    """Where the keys are; ``down``: nobody answers there."""

    raw: bytes
    down: bool = False
    asked: int = 0

    async def load(self) -> bytes:
        self.asked += 1
        if self.down:
            raise Unavailable("unreachable", "no connection")
        return self.raw


def people(**changed: Any) -> PeopleRules:
    rules = {"issuer": "corp", "names": {"u-1": "ann"}, **changed}
    tokens = {"issuer": ISSUER, "audience": AUDIENCE, "algorithm": "RS256", **rules.pop("tokens", {})}
    return PeopleRules(tokens=TokenRules(**tokens), **rules)


def by_roles(**changed: Any) -> PeopleRules:
    roles = {"mesh-ops": frozenset({Role.OPERATOR}), "acme-admins": frozenset({Role.TENANT_ADMIN})}
    return people(names={}, roles_claim="groups", roles=roles, **changed)


@dataclass
class World:
    """A door with one issuer, RS256 unless ``rules`` say otherwise."""

    rules: PeopleRules = field(default_factory=people)
    nodes: Nodes | None = None
    now: Instant = START
    max_age_ms: int = 3_600_000

    def __post_init__(self) -> None:
        algorithm = self.rules.tokens.algorithm
        self.source = Source(jwks(jwk(KEYS[algorithm], "k1", algorithm)))
        self.issuer = Issuer(self.rules, self.source, IssuerKeys(max_age_ms=self.max_age_ms), 300)
        self.door = TokenDoor(MESH, [self.issuer], now=lambda: self.now, nodes=self.nodes)

    def pass_ms(self, ms: int) -> None:
        self.now = Instant(self.now + ms)

    async def who(self, token: str, channel: Channel = CHANNEL) -> str:
        """Whom the door sees in ``token``; the code of its refusal where that is nobody."""
        try:
            return str((await self.door.accept(token, channel)).identity)
        except KeymeshError as no:
            assert (type(no).__name__, no.code, no.message, no.field) == (
                "Refused", "unauthenticated", "the token is not accepted", None,
            ), no  # fmt: skip
            assert no.__cause__ is None
            return no.code


ANN = "spiffe://example/admin/ann"
NO = "unauthenticated"
ACME = TenantId("acme")
