"""A node's own token to the Registry, in place of a client certificate: signed by the key that the log enrolled.

Decides what such a token says, and whose it is: it lives a minute at most, is for one replica of the Registry, and
for the one TLS connection whose handshake it names, so that whoever else gets hold of it has nothing.  The key is the
``NodeRow``'s, so no key set has to be fetched; who is not enrolled is nobody, whatever its CA says.  A node's other
signatures are over DSSE's encoding, which begins ``DSSEv1 ``; a token's over base64url: neither passes for the other.
Source: DESIGN section 6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from keymesh.access.identity import CoreIdentity, RegistryIdentity, parse_identity
from keymesh.access.token_spent import Party
from keymesh.access.tokens import CONNECTION, LEEWAY_MAX_MS, TokenRules, connection_claim
from keymesh.control.rows import NodeRow, Rows, get
from keymesh.crypto.dsse import check_public_key, key_id
from keymesh.crypto.jws import Jws, make_jws
from keymesh.model.errors import Refused
from keymesh.model.ids import KeyId, MeshName, NodeId
from keymesh.model.time import Instant

ALGORITHM: Final = "EdDSA"
TYP: Final = "keymesh-node+jwt"
LIFETIME_MS: Final = 60_000
RENEW_AFTER_MS: Final = 40_000
SPENT_MAX: Final = 131_072
SPENT_EACH_MAX: Final = 2_048
"""Of one node: three new connections a second for as long as a token may live, with its clock five minutes ahead."""
_SCHEME: Final = "spiffe://"


def node_rules(node: CoreIdentity, *, audience: RegistryIdentity) -> TokenRules:
    """What a token of ``node`` must be, for that replica.

    Clocks may differ by five minutes: the token is good on its own connection alone, so its age is no danger.
    """
    return TokenRules(
        issuer=str(node),
        audience=str(audience),
        algorithm=ALGORITHM,
        typ=TYP,
        leeway_ms=LEEWAY_MAX_MS,
        lifetime_max_ms=LIFETIME_MS,
        once=True,
        confirm=CONNECTION,
    )


def make_node_token(
    node: CoreIdentity, *, audience: str, finished: bytes, token_id: str, now: Instant,
    public_key: bytes, sign: Callable[[bytes], bytes],
) -> str:  # fmt: skip
    """A token for the connection whose client Finished is ``finished``, to the Registry that its certificate names."""
    issued_s = now // 1_000
    claims = {
        "iss": str(node),
        "sub": str(node),
        "aud": audience,
        "iat": issued_s,
        "exp": issued_s + LIFETIME_MS // 1_000,
        "jti": token_id,
        "cnf": {CONNECTION: connection_claim(finished)},
    }
    return make_jws({"alg": ALGORITHM, "kid": key_id(public_key), "typ": TYP}, claims, sign=sign)


def is_node_issuer(issuer: str) -> bool:
    return issuer.startswith(_SCHEME)


def node_of(issuer: str, mesh: MeshName) -> CoreIdentity:
    """The node that a token names as its issuer.  Raises Refused for any other identity, or another mesh's."""
    identity = parse_identity(issuer, mesh)
    if not isinstance(identity, CoreIdentity):
        raise Refused.bad_field("iss", "not a Core's identity")
    return identity


def enrolled_key(rows: Rows, node: CoreIdentity) -> tuple[KeyId, bytes]:
    """(key id, raw public key) of an enrolled node, from the mesh's rows.  Raises Refused where there is none."""
    row = get(rows, f"node/{node.region}/{NodeId(node.node)}", NodeRow)
    if row is None:
        raise Refused.bad_field("iss", "not an enrolled node")
    try:
        public_key = check_public_key(bytes.fromhex(row.signing_key))
    except ValueError as bad:
        raise Refused.bad_field("iss", "the enrolled key is no key") from bad
    return key_id(public_key), public_key


def check_node_signature(token: Jws, public_key: bytes) -> None:
    """Raises Refused unless ``public_key`` signed it."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(token.signature, token.signed)
    except InvalidSignature as bad:
        raise Refused.bad_field("signature", "does not verify") from bad


def check_subject(token_subject: str, node: CoreIdentity) -> None:
    """Raises Refused where a node speaks of another than itself."""
    if token_subject != str(node):
        raise Refused.bad_field("sub", "a node speaks for itself alone")


def spenders(node: CoreIdentity) -> tuple[Party, ...]:
    """Whose share of the tokens that serve once a node's is: its own, which no other node touches."""
    return (Party(str(node), SPENT_EACH_MAX),)
