"""Compact JWS (RFC 7515): the signed form that tokens travel in, read under narrower rules than the RFC's.

Decides which texts are a token at all; whose signature counts is the caller's to verify, over ``signed`` as it came,
and what the claims must say is ``access.tokens``'.  Only these header fields are known, so that nothing in a token
can choose how it is verified (``jwk``, ``jku``, ``x5u``, ``x5c``), change what is signed (``b64``), ask for what we do
not do (``crit``) or cost more than its size (``zip``, ``p2c``): ``alg``, ``kid``, ``typ``, and ``x5t`` and
``x5t#S256``, which say nothing here.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from keymesh.model import strict_json
from keymesh.model.errors import Refused

JWS_MAX_CHARS: Final = 7_936
KID_MAX_CHARS: Final = 255

_PART: Final = re.compile(r"[A-Za-z0-9_-]+")
_PRINTABLE: Final = re.compile(r"[!-~]+")
_KNOWN_HEADERS: Final = frozenset({"alg", "kid", "typ", "x5t", "x5t#S256"})


@dataclass(frozen=True, slots=True)
class Jws:
    """A token whose signature nobody has verified yet.  ``kid`` and ``typ`` are None where the header has none."""

    algorithm: str
    kid: str | None
    typ: str | None
    claims: Mapping[str, Any] = field(repr=False)
    signed: bytes = field(repr=False)
    signature: bytes = field(repr=False)


def parse_jws(token: str) -> Jws:
    """The parts of ``token``.  Raises Refused naming ``token`` and the limit.

    1. ASCII, and short enough to be worth reading.  2. Three parts, base64url without padding, each in its one form.
    3. Header and claims are strict JSON objects: no duplicate names, no floats.  4. The header has known fields only.
    """
    if len(token) > JWS_MAX_CHARS:
        raise Refused.bad_field("token", f"at most {JWS_MAX_CHARS} characters")
    parts = token.split(".")
    if len(parts) != 3:
        raise Refused.bad_field("token", "three parts between dots")
    header = _object(parts[0])
    if not header.keys() <= _KNOWN_HEADERS:
        raise Refused.bad_field("token", "a header field that is not accepted")
    return Jws(
        algorithm=_text(header, "alg") or "",
        kid=_text(header, "kid"),
        typ=_text(header, "typ"),
        claims=_object(parts[1]),
        signed=f"{parts[0]}.{parts[1]}".encode("ascii"),
        signature=from_base64url(parts[2]),
    )


def make_jws(header: Mapping[str, str], claims: Mapping[str, Any], *, sign: Callable[[bytes], bytes]) -> str:
    """The compact form, signed by ``sign``."""
    signed = f"{to_base64url(strict_json.dumps(header))}.{to_base64url(strict_json.dumps(claims))}"
    return f"{signed}.{to_base64url(sign(signed.encode('ascii')))}"


def to_base64url(raw: bytes) -> str:
    """Without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def from_base64url(text: str) -> bytes:
    """Raises Refused for anything but the one unpadded form of some bytes, or none at all."""
    if not _PART.fullmatch(text) or len(text) % 4 == 1:
        raise Refused.bad_field("token", "base64url without padding, not empty")
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if to_base64url(raw) != text:
        raise Refused.bad_field("token", "base64url in its one form")
    return raw


def _object(part: str) -> dict[str, Any]:
    value = strict_json.loads(from_base64url(part), max_bytes=JWS_MAX_CHARS)
    if not isinstance(value, dict):
        raise Refused.bad_field("token", "header and claims are JSON objects")
    return value


def _text(header: Mapping[str, Any], name: str) -> str | None:
    value = header.get(name)
    if name not in header:
        return None
    if not isinstance(value, str) or len(value) > KID_MAX_CHARS or not _PRINTABLE.fullmatch(value):
        raise Refused.bad_field("token", f"{name}: 1 to {KID_MAX_CHARS} printable characters")
    return value
