"""What a token must say to be believed for anything at all: kind, issuer, audience, times, binding.

Pure, and asked before and after the signature is verified; whose keys those are is ``access.token_keys``', who the
subject then is ``access.token_people``'s and ``access.token_nodes``'.  Every failure is a Refused that names what
was wrong, for our log alone: whoever presented the token hears ``refusal()``, one answer for all of them.  Times in a
token are whole seconds since 1970; ours are ms.  Source: DESIGN section 6, RFC 7519, RFC 7800, RFC 8705, RFC 8725.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from keymesh.crypto.jws import Jws, to_base64url
from keymesh.model.errors import Refused
from keymesh.model.time import Instant, is_live

ALGORITHMS: Final = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
"""What an issuer may be configured to sign with: public keys only, so that no verifier can make tokens."""

LEEWAY_MAX_MS: Final = 300_000
TEXT_MAX_CHARS: Final = 255
CERTIFICATE: Final = "x5t#S256"
CONNECTION: Final = "tls-finished"
"""Our own confirmation method: the hash of the TLS 1.3 client Finished of the one connection that the token is for."""

_PRINTABLE: Final = re.compile(r"[!-~]+")
_LATEST_S: Final = 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """What is asked of one issuer's tokens.

    ``audience``: ours, which must be the token's only one.  ``algorithm``: the only one; what the header says can but
    agree.  ``typ``: the header's; None accepts ``JWT`` and none at all.  ``lifetime_max_ms``: from ``iat`` to ``exp``.
    ``once``: a token serves one connection, and needs a ``jti``.  ``confirm``: the confirmation method (RFC 7800) that
    a token must carry; None: where it carries one, it counts all the same.
    """

    issuer: str
    audience: str
    algorithm: str
    typ: str | None = None
    leeway_ms: int = 60_000
    lifetime_max_ms: int = 3_600_000
    once: bool = False
    confirm: str | None = None


@dataclass(frozen=True, slots=True)
class Channel:
    """The connection that a token came on.

    ``certificate``: SHA-256 of the client's certificate, None where it showed none.  ``finished``: the client Finished
    of its handshake.
    """

    certificate: bytes | None
    finished: bytes

    def confirms(self, method: str, value: str) -> bool:
        """Whether ``value`` is what a token for this connection has under ``method``; of others nothing is known."""
        if method == CERTIFICATE:
            return self.certificate is not None and to_base64url(self.certificate) == value
        return method == CONNECTION and connection_claim(self.finished) == value


@dataclass(frozen=True, slots=True)
class Sound:
    """What is left to know of a token whose common claims are in order.  ``expires_at``: without any leeway."""

    subject: str
    token_id: str | None
    issued_at: Instant
    expires_at: Instant


def refusal() -> Refused:
    """The single answer to every token that is not accepted."""
    return Refused("unauthenticated", "the token is not accepted")


def connection_claim(finished: bytes) -> str:
    """The value of the confirmation method ``tls-finished``."""
    return to_base64url(hashlib.sha256(finished).digest())


def issuer_of(token: Jws) -> str:
    """Who the token says it is from, which nothing has proven.  Raises Refused."""
    return _text(token.claims, "iss")


def check_header(rules: TokenRules, token: Jws) -> str:
    """The key id, once the header agrees with what is configured for the issuer.  Raises Refused.

    1. The algorithm is the issuer's only one, to the letter.  2. The kind of token is the expected one.
    3. It names its key.
    """
    if token.algorithm != rules.algorithm:
        raise Refused.bad_field("alg", "not the issuer's algorithm")
    if not _is_expected_type(rules.typ, token.typ):
        raise Refused.bad_field("typ", "not the kind of token expected here")
    if token.kid is None:
        raise Refused.bad_field("kid", "required")
    return token.kid


def _is_expected_type(expected: str | None, typ: str | None) -> bool:
    short = None if typ is None else typ.lower().removeprefix("application/")
    return short in (None, "jwt") if expected is None else short == expected.lower()


def check_claims(rules: TokenRules, claims: Mapping[str, Any], *, channel: Channel, now: Instant) -> Sound:
    """The common claims of a token whose signature verifies.  Raises Refused.

    1. The issuer, whole.  2. We are its only audience: a token for others too could be theirs to replay.  3. Times.
    4. A subject, and an id where tokens serve once.  5. It is bound to this connection, where it is bound or must be.
    """
    if claims.get("iss") != rules.issuer:
        raise Refused.bad_field("iss", "not this issuer")
    if claims.get("aud") not in (rules.audience, [rules.audience]):
        raise Refused.bad_field("aud", "not for us alone")
    issued_at, expires_at = _check_times(rules, claims, now)
    token_id = _text(claims, "jti") if "jti" in claims or rules.once else None
    subject = _text(claims, "sub")
    _check_confirmation(rules, claims, channel)
    return Sound(subject, token_id, issued_at, expires_at)


def _check_times(rules: TokenRules, claims: Mapping[str, Any], now: Instant) -> tuple[Instant, Instant]:
    """(iat, exp).  A token is dead at ``exp`` + leeway, and not alive before ``nbf`` and ``iat`` - leeway."""
    issued_at, expires_at = _seconds(claims, "iat"), _seconds(claims, "exp")
    not_before = _seconds(claims, "nbf") if "nbf" in claims else issued_at
    if max(issued_at, not_before) > now + rules.leeway_ms:
        raise Refused.bad_field("nbf" if not_before > issued_at else "iat", "in the future")
    if not issued_at < expires_at <= issued_at + rules.lifetime_max_ms or not_before >= expires_at:
        raise Refused.bad_field("exp", f"after iat and nbf, at most {rules.lifetime_max_ms} ms after iat")
    if not is_live(Instant(expires_at + rules.leeway_ms), now):
        raise Refused.bad_field("exp", "has passed")
    return issued_at, expires_at


def _check_confirmation(rules: TokenRules, claims: Mapping[str, Any], channel: Channel) -> None:
    if "cnf" not in claims:
        if rules.confirm is not None:
            raise Refused.bad_field("cnf", f"must be bound by {rules.confirm}")
        return
    confirmation = claims["cnf"]
    if not isinstance(confirmation, dict) or len(confirmation) != 1:
        raise Refused.bad_field("cnf", "one confirmation method")
    ((method, value),) = confirmation.items()
    if rules.confirm not in (None, method) or not isinstance(value, str) or not channel.confirms(method, value):
        raise Refused.bad_field("cnf", "not bound to this connection")


def _seconds(claims: Mapping[str, Any], name: str) -> Instant:
    value = claims.get(name)
    if type(value) is not int or not 0 < value < _LATEST_S:  # bool is an int to Python
        raise Refused.bad_field(name, "required: whole seconds since 1970")
    return Instant(value * 1_000)


def _text(claims: Mapping[str, Any], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or len(value) > TEXT_MAX_CHARS or not _PRINTABLE.fullmatch(value):
        raise Refused.bad_field(name, f"required: 1 to {TEXT_MAX_CHARS} printable characters")
    return value
