"""Shamir's secret sharing over GF(2^8), for the MasterKey's custodians.

Decides the form of a share and when shares belong together; who holds them is not its business.  Field: AES's,
x^8 + x^4 + x^3 + x + 1.  What is shared is the secret and a tag over it, so that a share that someone made up is
noticed although its checksum is right.  Multiplication has no table and no branch on its operands; Python's integers
promise no more.

A share: ``0x01 || set id 16 || threshold 1 || x 1 || y (secret + 16) || checksum 8``; the checksum is the start of
``SHA-256("keymesh/share/1" || all before it)``, the tag that of ``HMAC-SHA256(secret, "keymesh/shamir/1" || set id)``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from keymesh.crypto.xaes import Octets
from keymesh.model.errors import Integrity, Refused

SHARES_MAX: Final = 255
SECRET_MAX_BYTES: Final = 1_024
TEXT_MAX_CHARS: Final = 2_048

_VERSION: Final = 1
_SET_ID_BYTES: Final = 16
_TAG_BYTES: Final = 16
_CHECKSUM_BYTES: Final = 8
_HEAD_BYTES: Final = 1 + _SET_ID_BYTES + 2
_TEXT_PREFIX: Final = "keymesh-share-"


@dataclass(frozen=True, slots=True)
class Share:
    """One point of the polynomials; ``y`` is secret and not shown."""

    set_id: bytes
    threshold: int
    x: int
    y: bytes = field(repr=False)

    def pack(self) -> bytes:
        body = b"".join((bytes((_VERSION,)), self.set_id, bytes((self.threshold, self.x)), self.y))
        return body + _checksum(body)

    def to_text(self) -> str:
        """Lower-case base32 without padding, to be written down or pasted."""
        return _TEXT_PREFIX + base64.b32encode(self.pack()).decode().rstrip("=").lower()


def parse_share(raw: Octets) -> Share:
    """Raises Refused naming ``share`` where length, version, checksum or numbers are wrong."""
    data = bytes(raw)
    least = _HEAD_BYTES + 1 + _TAG_BYTES + _CHECKSUM_BYTES
    if not least <= len(data) < least + SECRET_MAX_BYTES:
        raise Refused.bad_field("share", f"{least} bytes or more, got {len(data)}")
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if body[0] != _VERSION:
        raise Refused.bad_field("share.version", f"only {_VERSION} is known, got {body[0]}")
    if not hmac.compare_digest(_checksum(body), checksum):
        raise Refused.bad_field("share", "the checksum does not match: a part of it is wrong or missing")
    threshold, x = body[_HEAD_BYTES - 2], body[_HEAD_BYTES - 1]
    if threshold < 2 or x == 0:
        raise Refused.bad_field("share", "a threshold of 2 or more, and an x of 1 or more")
    return Share(body[1 : 1 + _SET_ID_BYTES], threshold, x, body[_HEAD_BYTES:])


def share_from_text(text: str) -> Share:
    """The share that ``to_text`` wrote; upper case and blanks at the ends do no harm."""
    plain = text.strip().lower()
    if len(plain) > TEXT_MAX_CHARS or not plain.startswith(_TEXT_PREFIX):
        raise Refused.bad_field("share", f"starts with {_TEXT_PREFIX}, at most {TEXT_MAX_CHARS} characters")
    body = plain.removeprefix(_TEXT_PREFIX).upper()
    try:
        raw = base64.b32decode(body + "=" * (-len(body) % 8))
    except (binascii.Error, ValueError):
        raise Refused.bad_field("share", "base32") from None
    return parse_share(raw)


def split(secret: Octets, threshold: int, n_shares: int, rng: Callable[[int], bytes]) -> tuple[Share, ...]:
    """``n_shares`` shares of which any ``threshold`` give ``secret`` back.

    ``rng(n)`` returns n uniformly random bytes.  Raises Refused for a threshold under 2 or over ``n_shares``.
    """
    if not 2 <= threshold <= n_shares <= SHARES_MAX:
        raise Refused.bad_field("threshold", f"2 to the number of shares, which is at most {SHARES_MAX}")
    if not 0 < len(secret) <= SECRET_MAX_BYTES:
        raise Refused.bad_field("secret", f"1 to {SECRET_MAX_BYTES} bytes, got {len(secret)}")
    set_id = rng(_SET_ID_BYTES)
    constants = bytes(secret) + _tag(secret, set_id)
    coefficients = [constants, *(rng(len(constants)) for _ in range(threshold - 1))]
    return tuple(Share(set_id, threshold, x, _evaluate(coefficients, x)) for x in range(1, n_shares + 1))


def combine(shares: Sequence[Share]) -> bytearray:
    """The secret; its owner moves it to a key page and so wipes it.

    Raises Refused for shares of several sets, an x given twice or too few shares; Integrity (opaque) where the
    shares do not belong together although they say so.
    """
    if not shares:
        raise Refused.bad_field("shares", "none given")
    first = shares[0]
    if any((s.set_id, s.threshold, len(s.y)) != (first.set_id, first.threshold, len(first.y)) for s in shares):
        raise Refused.bad_field("shares", "not all of one set")
    xs = [share.x for share in shares]
    if len(set(xs)) != len(xs):
        raise Refused.bad_field("shares", "one share is given twice")
    if len(xs) < first.threshold:
        raise Refused.bad_field("shares", f"{first.threshold} needed, got {len(xs)}")
    joined = bytearray(len(first.y))
    for share in shares:
        weight = _weight(share.x, xs)
        for i, y in enumerate(share.y):
            joined[i] ^= gf_mul(weight, y)
    secret, tag = joined[:-_TAG_BYTES], bytes(joined[-_TAG_BYTES:])
    joined[:] = bytes(len(joined))
    if not hmac.compare_digest(_tag(secret, first.set_id), tag):
        secret[:] = bytes(len(secret))
        raise Integrity.opaque()
    return secret


def gf_mul(a: int, b: int) -> int:
    """The product of two bytes in AES's field: eight masked steps, whatever the operands."""
    product = 0
    for _ in range(8):
        product ^= a & -(b & 1)
        b >>= 1
        a = (a << 1) ^ (0x11B & -(a >> 7))
    return product


def gf_inverse(a: int) -> int:
    """a^254, which is 1/a for every a but 0."""
    result = a
    for _ in range(6):
        result = gf_mul(gf_mul(result, result), a)
    return gf_mul(result, result)


def _weight(x: int, xs: Sequence[int]) -> int:
    """Lagrange's factor of the point at ``x`` for the value at 0."""
    above = below = 1
    for other in xs:
        if other != x:
            above = gf_mul(above, other)
            below = gf_mul(below, other ^ x)
    return gf_mul(above, gf_inverse(below))


def _evaluate(coefficients: Sequence[bytes], x: int) -> bytes:
    value = bytearray(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        for i, c in enumerate(coefficient):
            value[i] = gf_mul(value[i], x) ^ c
    return bytes(value)


def _tag(secret: Octets, set_id: bytes) -> bytes:
    return hmac.new(bytes(secret), b"keymesh/shamir/1" + set_id, hashlib.sha256).digest()[:_TAG_BYTES]


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(b"keymesh/share/1" + body).digest()[:_CHECKSUM_BYTES]
