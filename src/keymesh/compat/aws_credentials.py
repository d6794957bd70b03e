"""Access keys: who may use which services' keys, in which role; and the form of the file that holds them.

The secret itself is kept, not a hash: a signature is a MAC under it.  So the file is as private as a key.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from msgspec import Struct

from keymesh.model import strict_json
from keymesh.model.errors import Refused
from keymesh.model.ids import check_service, check_tenant

CREDENTIALS_MAX: Final = 1_000
FILE_MAX_BYTES: Final = 1024 * 1024
USE: Final = "use"
ADMIN: Final = "admin"
ROLES: Final = (ADMIN, USE)
_ID_PREFIX: Final = "KM"
_ID_BYTES: Final = 11
_SECRET_BYTES: Final = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """``services``: None is all of the tenant's."""

    access_key_id: str
    secret: str = field(repr=False)
    tenant: str
    services: frozenset[str] | None
    roles: frozenset[str]

    def may_see(self, service: str) -> bool:
        return self.services is None or service in self.services


class CredentialRow(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    access_key_id: str
    secret: str
    tenant: str
    services: tuple[str, ...] | None
    roles: tuple[str, ...]


class CredentialFile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    version: int
    credentials: tuple[CredentialRow, ...]


def parse_credentials(raw: bytes) -> dict[str, Credential]:
    """By access key id.  Raises Refused naming what is wrong, never what stands there."""
    try:
        file = strict_json.decode(raw, CredentialFile, max_bytes=FILE_MAX_BYTES)
    except Refused as bad:
        raise Refused.bad_field(
            "credentials", f"not a file of `keymesh edge aws-credential add` ({bad.field})"
        ) from bad
    if file.version != 1:
        raise Refused.bad_field("credentials.version", "only 1 is known")
    if len(file.credentials) > CREDENTIALS_MAX:
        raise Refused.bad_field("credentials", f"at most {CREDENTIALS_MAX}")
    found: dict[str, Credential] = {}
    for row in file.credentials:
        if row.access_key_id in found or not row.access_key_id or len(row.secret) < _SECRET_BYTES:
            raise Refused.bad_field("credentials", "each access key id once, with a secret of 30 characters or more")
        if not row.roles or not set(row.roles) <= set(ROLES):
            raise Refused.bad_field("credentials.roles", f"of {', '.join(ROLES)}")
        found[row.access_key_id] = Credential(
            access_key_id=row.access_key_id,
            secret=row.secret,
            tenant=check_tenant(row.tenant),
            services=None if row.services is None else frozenset(map(check_service, row.services)),
            roles=frozenset(row.roles),
        )
    return found


def dump_credentials(credentials: Iterable[Credential]) -> bytes:
    rows = [
        CredentialRow(
            access_key_id=one.access_key_id,
            secret=one.secret,
            tenant=one.tenant,
            services=None if one.services is None else tuple(sorted(one.services)),
            roles=tuple(sorted(one.roles)),
        )
        for one in sorted(credentials, key=lambda one: one.access_key_id)
    ]
    return strict_json.dumps(CredentialFile(version=1, credentials=tuple(rows)))


def new_credential(
    tenant: str, services: Iterable[str], roles: Iterable[str], random: Callable[[int], bytes]
) -> Credential:
    """``services``: none named is all.  Raises Refused."""
    named = frozenset(map(check_service, services))
    number = base64.b32encode(random(_ID_BYTES)).decode("ascii").rstrip("=")
    return Credential(
        access_key_id=_ID_PREFIX + number,
        secret=base64.b64encode(random(_SECRET_BYTES)).decode("ascii"),
        tenant=check_tenant(tenant),
        services=named or None,
        roles=frozenset(roles) or frozenset({USE}),
    )
