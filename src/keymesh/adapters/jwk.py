"""An issuer's key set (JWKS, RFC 7517) and its signatures, by PyJWT, which sees nothing of a token but bytes to verify.

Decides which keys of a set can verify the one algorithm that is configured for the issuer; when a set counts is
``access.token_keys``'.  A key that does not fit is passed over, as sets hold keys for other uses; a set that is not
one, or that names two keys alike, is refused whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import get_algorithm_by_name
from jwt.exceptions import PyJWTError

from keymesh.crypto.dsse import check_public_key
from keymesh.crypto.jws import KID_MAX_CHARS, from_base64url
from keymesh.model import strict_json
from keymesh.model.errors import Refused

JWKS_MAX_BYTES: Final = 64 * 1024
JWKS_MAX_KEYS: Final = 64
RSA_MIN_BITS: Final = 2_048
RSA_MAX_BITS: Final = 8_192
RSA_MIN_EXPONENT: Final = 65_537
RSA_MAX_EXPONENT: Final = 2**32

_CURVES: Final = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519"}
_SECRET_MEMBERS: Final = frozenset({"d", "k", "p", "q", "dp", "dq", "qi", "oth"})


@dataclass(frozen=True, slots=True)
class VerifyKey:
    """A public key that verifies one algorithm and no other."""

    algorithm: str
    key: Any = field(repr=False)

    def verifies(self, signed: bytes, signature: bytes) -> bool:
        return get_algorithm_by_name(self.algorithm).verify(signed, self.key, signature)


def parse_jwks(raw: bytes, algorithm: str) -> dict[str, VerifyKey]:
    """Key id -> key, of those that can verify ``algorithm``; none is an answer too.  Raises Refused naming ``jwks``."""
    plain = strict_json.loads(raw, max_bytes=JWKS_MAX_BYTES)
    keys = plain.get("keys") if isinstance(plain, dict) else None
    if not isinstance(keys, list) or len(keys) > JWKS_MAX_KEYS or not all(isinstance(key, dict) for key in keys):
        raise Refused.bad_field("jwks", f"an object with at most {JWKS_MAX_KEYS} keys")
    found: dict[str, VerifyKey] = {}
    for jwk in keys:
        kid = jwk.get("kid")
        if not isinstance(kid, str) or not 0 < len(kid) <= KID_MAX_CHARS or not _is_for(jwk, algorithm):
            continue
        if kid in found:
            raise Refused.bad_field("jwks", "two keys of one id")
        try:
            found[kid] = _key_of(jwk, algorithm)
        except (PyJWTError, Refused, ValueError, TypeError, KeyError):
            continue
    return found


def _is_for(jwk: Mapping[str, Any], algorithm: str) -> bool:
    """Public, and for signatures of that algorithm, as far as the key itself says."""
    operations = jwk.get("key_ops", ["verify"])
    return (
        _SECRET_MEMBERS.isdisjoint(jwk)
        and jwk.get("use", "sig") == "sig"
        and isinstance(operations, list)
        and "verify" in operations
        and jwk.get("alg", algorithm) == algorithm
    )


def _key_of(jwk: Mapping[str, Any], algorithm: str) -> VerifyKey:
    """Raises Refused, KeyError, or what PyJWT and cryptography raise, for a key that is none."""
    members: tuple[str, ...]
    curve = _CURVES.get(algorithm)
    if curve is None:
        kind, members = "RSA", ("n", "e")
    elif algorithm == "EdDSA":
        kind, members = "OKP", ("x",)
        check_public_key(from_base64url(jwk["x"]))
    else:
        kind, members = "EC", ("x", "y")
    if jwk.get("kty") != kind or (curve is not None and jwk.get("crv") != curve):
        raise Refused.bad_field("jwks", "a key of another kind")
    public = {"kty": kind, "crv": curve} | {name: jwk[name] for name in members}
    key = get_algorithm_by_name(algorithm).from_jwk(public)
    if isinstance(key, RSAPublicKey) and not _is_sound(key):
        raise Refused.bad_field("jwks", f"RSA of {RSA_MIN_BITS} to {RSA_MAX_BITS} bits, e from {RSA_MIN_EXPONENT}")
    return VerifyKey(algorithm, key)


def _is_sound(key: RSAPublicKey) -> bool:
    exponent = key.public_numbers().e
    return RSA_MIN_BITS <= key.key_size <= RSA_MAX_BITS and RSA_MIN_EXPONENT <= exponent <= RSA_MAX_EXPONENT
