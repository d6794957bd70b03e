"""What every sealed blob is bound to, to the byte (DESIGN section 1).

``lp(x) = u32be(len(x)) || x``

* L4:    ``"keymesh/l4/1" || lp(tenant) || kid(L3) || context``
* wraps: ``"keymesh/wrap/1" || lp(level) || lp(tenant) || lp(domain) || lp(parent) || lp(key) || u32be(version) || kid``
* context: ``u32be(n) || n x (lp(k) || lp(v))``, sorted by the UTF-8 bytes of the keys, no key twice

Does not judge names: tenants and services are checked where they enter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Final

from keymesh.model.errors import Refused
from keymesh.model.limits import CONTEXT_MAX_BYTES, CONTEXT_MAX_PAIRS

KID_BYTES: Final = 16
VERSION_MAX: Final = 2**32 - 1

_L4_LABEL: Final = b"keymesh/l4/1"
_WRAP_LABEL: Final = b"keymesh/wrap/1"
_LENGTHS: Final = [n.to_bytes(4, "big") for n in range(CONTEXT_MAX_BYTES + 1)]  # minting is the Edge's inner loop


class Level(Enum):
    """What kind of key a wrap holds."""

    L2 = "l2"
    L3 = "l3"
    IVK = "ivk"
    MASTER = "master"


@dataclass(frozen=True, slots=True)
class Subject:
    """The key version that a wrap holds.

    ``tenant`` is ``cluster/region`` and ``domain`` empty for IVK and MasterKey; ``key`` is the service's name for
    L3, else the level's word; ``kid`` is the wrapped key's own, 16 bytes.
    """

    level: Level
    tenant: str
    domain: str
    key: str
    version: int
    kid: bytes


def lp(value: bytes) -> bytes:
    """``value`` behind its length as a big-endian 32-bit number."""
    return len(value).to_bytes(4, "big") + value


def utf8(field: str, value: str) -> bytes:
    """Raises Refused naming ``field`` where ``value`` holds a lone surrogate."""
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise Refused.bad_field(field, "must be valid Unicode") from None


def encode_pairs(pairs: Iterable[tuple[str, str]]) -> bytes:
    """The context's bytes.  Raises Refused for a key given twice, too many pairs, or more than 8 KiB of them."""
    ordered = sorted(pairs)  # code points sort as their UTF-8 bytes do
    if len(ordered) > CONTEXT_MAX_PAIRS:
        raise Refused.bad_field("context", f"at most {CONTEXT_MAX_PAIRS} pairs, got {len(ordered)}")
    out = [len(ordered).to_bytes(4, "big")]
    previous: str | None = None
    try:
        for key, value in ordered:
            if key == previous:
                raise Refused.bad_field("context", "a key is given twice")
            previous = key
            key_bytes, value_bytes = key.encode(), value.encode()
            out += (_LENGTHS[len(key_bytes)], key_bytes, _LENGTHS[len(value_bytes)], value_bytes)
    except UnicodeEncodeError:
        raise Refused.bad_field("context", "must be valid Unicode") from None
    except IndexError:
        raise Refused.bad_field("context", f"at most {CONTEXT_MAX_BYTES} bytes") from None
    packed = b"".join(out)
    if len(packed) - 4 > CONTEXT_MAX_BYTES:
        raise Refused.bad_field("context", f"at most {CONTEXT_MAX_BYTES} bytes, got {len(packed) - 4}")
    return packed


def encode_context(context: Mapping[str, str]) -> bytes:
    """``encode_pairs`` of a mapping."""
    return encode_pairs(context.items()) if context else b"\0\0\0\0"


def l4_aad(tenant: str, kid: bytes, context: Mapping[str, str]) -> bytes:
    """What an L4 blob is bound to; ``kid`` is the L3's."""
    return _l4_aad(tenant, kid, encode_context(context))


def l4_aad_pairs(tenant: str, kid: bytes, pairs: Iterable[tuple[str, str]]) -> bytes:
    """``l4_aad`` for a context that came as pairs: a key given twice is refused instead of overwritten."""
    return _l4_aad(tenant, kid, encode_pairs(pairs))


def _l4_aad(tenant: str, kid: bytes, context: bytes) -> bytes:
    return _l4_head(tenant, bytes(kid)) + context


@lru_cache(maxsize=1_024)
def _l4_head(tenant: str, kid: bytes) -> bytes:
    if len(kid) != KID_BYTES:
        raise Refused.bad_field("kid", f"exactly {KID_BYTES} bytes")
    return b"".join((_L4_LABEL, lp(utf8("tenant", tenant)), kid))


def wrap_aad(subject: Subject, parent: bytes | str) -> bytes:
    """What a wrap is bound to.  ``parent`` is the parent's kid (16 bytes), or the binding id under an L1 or a seal."""
    if isinstance(parent, str):
        parent_bytes = utf8("binding_id", parent)
    elif len(parent) == KID_BYTES:
        parent_bytes = parent
    else:
        raise Refused.bad_field("parent_kid", f"exactly {KID_BYTES} bytes")
    if len(subject.kid) != KID_BYTES:
        raise Refused.bad_field("kid", f"exactly {KID_BYTES} bytes")
    if not 0 < subject.version <= VERSION_MAX:
        raise Refused.bad_field("version", f"1 to {VERSION_MAX}")
    if subject.level in (Level.IVK, Level.MASTER) and subject.domain:
        raise Refused.bad_field("domain", f"empty for level {subject.level.value}")
    if subject.level is not Level.L3 and subject.key != subject.level.value:
        raise Refused.bad_field("key", f"{subject.level.value!r} for this level")
    return b"".join(
        (
            _WRAP_LABEL,
            lp(subject.level.value.encode()),
            lp(utf8("tenant", subject.tenant)),
            lp(utf8("domain", subject.domain)),
            lp(parent_bytes),
            lp(utf8("key", subject.key)),
            subject.version.to_bytes(4, "big"),
            subject.kid,
        )
    )
