"""Names and digests, and the one place that decides which names are well formed.

Every name that can become a host part of a SPIFFE URI is a lower-case DNS label (RFC 1123, 63 octets).
Digests and kids travel as lower-case hex so that they compare, sort and print alike everywhere; bytes stay in
``crypto``.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NewType

from keymesh.model.errors import Refused

MeshName = NewType("MeshName", str)
RegionId = NewType("RegionId", str)
NodeId = NewType("NodeId", str)  # unique in its region
TenantId = NewType("TenantId", str)
ServiceName = NewType("ServiceName", str)
Namespace = NewType("Namespace", str)  # a tenant, or "mesh"
Kid = NewType("Kid", str)  # 32 hex digits
Digest = NewType("Digest", str)  # 64 hex digits, SHA-256
KeyId = NewType("KeyId", str)  # hex SHA-256 of a raw Ed25519 public key
CommandId = NewType("CommandId", str)
CorrelationId = NewType("CorrelationId", str)
BindingId = NewType("BindingId", str)
LeaseId = NewType("LeaseId", str)

MESH_NAMESPACE: Final = Namespace("mesh")
ZERO_DIGEST: Final = Digest("0" * 64)
NAME_MAX_CHARS: Final = 63
TOKEN_MAX_CHARS: Final = 128

_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
_TOKEN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")
_HEX: Final = re.compile(r"[0-9a-f]*")
_RESERVED: Final = frozenset({"mesh"})


def check_label(field: str, value: str) -> str:
    """``value`` if it is a lower-case DNS label of at most 63 characters.

    Raises Refused naming ``field`` and the limit.
    """
    if len(value) > NAME_MAX_CHARS:
        raise Refused.bad_field(field, f"at most {NAME_MAX_CHARS} characters, got {len(value)}")
    if not _LABEL.fullmatch(value):
        raise Refused.bad_field(field, "lower-case letters, digits and inner hyphens only")
    return value


@lru_cache(maxsize=4_096)
def check_tenant(value: str) -> TenantId:
    """A tenant id: a label other than the reserved ``mesh``."""
    check_label("tenant", value)
    if value in _RESERVED:
        raise Refused.bad_field("tenant", f"{value!r} is reserved")
    return TenantId(value)


def check_service(value: str) -> ServiceName:
    return ServiceName(check_label("service", value))


def check_region(value: str) -> RegionId:
    return RegionId(check_label("region", value))


def check_token(field: str, value: str) -> str:
    """Opaque ids that callers choose (command and correlation ids): 1..128 of ``A-Za-z0-9._:-``."""
    if len(value) > TOKEN_MAX_CHARS:
        raise Refused.bad_field(field, f"at most {TOKEN_MAX_CHARS} characters, got {len(value)}")
    if not _TOKEN.fullmatch(value):
        raise Refused.bad_field(field, "letters, digits and . _ : - only, not empty")
    return value


def check_hex(field: str, value: str, *, hex_bytes: int) -> str:
    """``value`` if it is exactly ``hex_bytes`` bytes in lower-case hex."""
    if len(value) != 2 * hex_bytes or not _HEX.fullmatch(value):
        raise Refused.bad_field(field, f"exactly {2 * hex_bytes} lower-case hex digits")
    return value
