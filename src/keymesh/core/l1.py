"""The port to a customer's own KMS, which holds L1 (DESIGN sections 1 and 3), and how its answers are told apart.

Decides nothing about leases: it only keeps *denied* (the customer says no: the tenant closes at once) apart from
*unreachable* (nobody said anything: the L1 lease runs out by itself).  Whatever is not a clear no of the KMS itself is
unreachable.  ``L1.wrap(x)`` is ``provider.wrap(E)`` with a one-time key E; see ``crypto.wrap``.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

import msgspec

from keymesh.model.errors import Refused, Unavailable
from keymesh.model.ids import check_label, check_region

KEYMESH_KMS: Final = "keymesh-kms"
OPENBAO: Final = "openbao"
PKCS11: Final = "pkcs11"
AWS_KMS: Final = "aws-kms"
WRAPPED_MAX_BYTES: Final = 256
PLAIN_MAX_BYTES: Final = 64
CA_PEM_MAX_CHARS: Final = 16 * 1024
REPLICAS_MAX: Final = 32
_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_URL: Final = re.compile(rf"https://(?:(?=.{{1,253}}:){_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:]{{2,39}}\]):[1-9][0-9]{{0,4}}")


class L1Denied(Refused):
    """The customer's KMS refused: the key is disabled, gone, or no longer ours to use."""


class L1Unreachable(Unavailable):
    """No answer of the KMS itself: network, timeout, throttling, its own failure."""


class L1Provider(Protocol):
    """One key in one replica of a customer's KMS.

    Both raise L1Denied or L1Unreachable; ``unwrap`` raises Integrity for bytes that this key did not wrap.
    """

    async def wrap(self, e: bytes) -> bytes:
        """``e`` (at most 64 bytes) under the customer's key; at most 256 bytes."""
        ...

    async def unwrap(self, wrapped: bytes) -> bytes: ...

    async def close(self) -> None: ...


def check_l1_url(field: str, url: str) -> str:
    """Raises Refused naming ``field``."""
    if not _URL.fullmatch(url):
        raise Refused.bad_field(field, "each an https://host:port")
    return url


class ProviderDescriptor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a tenant's L1 is: nothing in it is secret.  ``replicas``: region to URL; ``ca_pem``: the only trust."""

    provider: str
    key: str
    replicas: dict[str, str]
    ca_pem: str

    def check(self) -> None:
        """Raises Refused naming the field; URLs are https with host and port alone."""
        if self.provider != KEYMESH_KMS:
            raise Refused.bad_field("provider", f"one of {KEYMESH_KMS}")
        if not 0 < len(self.replicas) <= REPLICAS_MAX:
            raise Refused.bad_field("replicas", f"1..{REPLICAS_MAX}")
        if len(self.ca_pem) > CA_PEM_MAX_CHARS or not self.ca_pem.isascii():
            raise Refused.bad_field("ca_pem", f"at most {CA_PEM_MAX_CHARS} ASCII characters")
        for name, url in self.replicas.items():
            check_region(name)
            check_l1_url("replicas", url)
        check_label("key", self.key)

    def replica_for(self, region: str) -> str:
        """The replica that a region uses: its own where there is one, else the first by name."""
        return region if region in self.replicas else min(self.replicas)
