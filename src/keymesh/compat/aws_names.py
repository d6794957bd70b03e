"""How AWS names a tenant's services: account, key id, ARN, alias.

All follow from the tenant's and the service's names, so that every face of a mesh says the same: the account is twelve
digits of the tenant's hash, the key id ``mrk-`` and 32 hex digits of the service's (a key is in every region that its
tenant allows, under one id, as AWS's multi-region keys are), and ``alias/<service>`` stands for it everywhere.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from keymesh.compat.aws_errors import AwsError, validation
from keymesh.crypto.aad import lp

KEY_ID_BYTES: Final = 16
KEY_REFERENCE_MAX: Final = 2_048
ALIAS_MAX: Final = 256
ALIAS: Final = re.compile(r"alias/[a-zA-Z0-9/_-]+", re.ASCII)

_ACCOUNT: Final = b"keymesh/aws-account/1"
_KEY: Final = b"keymesh/aws-key/1"
_ARN: Final = re.compile(r"arn:aws:kms:([a-z0-9-]+):([0-9]{12}):(key/[A-Za-z0-9-]+|alias/[a-zA-Z0-9/_-]+)", re.ASCII)


@lru_cache(maxsize=1_024)
def account_of(tenant: str) -> str:
    number = int.from_bytes(hashlib.sha256(_ACCOUNT + lp(tenant.encode())).digest()[:8], "big")
    return f"{number % 10**12:012d}"


@lru_cache(maxsize=4_096)
def key_bytes_of(tenant: str, service: str) -> bytes:
    """What ciphertexts carry of a key's name."""
    return hashlib.sha256(_KEY + lp(tenant.encode()) + lp(service.encode())).digest()[:KEY_ID_BYTES]


def key_id_of(tenant: str, service: str) -> str:
    return f"mrk-{key_bytes_of(tenant, service).hex()}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where names are valid: one tenant, in one region as AWS's clients call it."""

    tenant: str
    region: str

    @property
    def account(self) -> str:
        return account_of(self.tenant)

    def key_arn(self, service: str, region: str | None = None) -> str:
        return f"arn:aws:kms:{region or self.region}:{self.account}:key/{key_id_of(self.tenant, service)}"

    def alias_arn(self, alias: str) -> str:
        return f"arn:aws:kms:{self.region}:{self.account}:{alias}"

    def reference(self, given: str) -> str:
        """``given`` as a key id or ``alias/...``; an ARN must be of this account and region.

        Raises AwsError, for another account's as for what does not exist.
        """
        if not 0 < len(given) <= KEY_REFERENCE_MAX:
            raise validation(f"KeyId has 1 to {KEY_REFERENCE_MAX} characters")
        if not given.startswith("arn:"):
            return given
        found = _ARN.fullmatch(given)
        if found is None:
            raise AwsError("InvalidArnException", "KeyId is not the ARN of a key or an alias")
        region, account, resource = found.groups()
        if region != self.region or account != self.account:
            raise no_such_key(given)
        return resource.removeprefix("key/")


def no_such_key(given: str) -> AwsError:
    return AwsError("NotFoundException", f"key {given[:KEY_REFERENCE_MAX]!r} does not exist")


def check_alias(given: str) -> str:
    """The name of an alias that clients may make.  Raises AwsError."""
    if len(given) > ALIAS_MAX or not ALIAS.fullmatch(given):
        raise AwsError("InvalidAliasNameException", f"alias/ and letters, digits, / _ -, at most {ALIAS_MAX} in all")
    if given.startswith("alias/aws/"):
        raise AwsError("InvalidAliasNameException", "alias/aws/ is reserved")
    return given
