"""The requests that are served: AWS's members, with their limits.  A member that is not here is refused by name.

Source: AWS KMS's API reference.  ``DryRun`` is taken where AWS takes it; ``GrantTokens`` are taken and mean nothing, as
there are no grants.
"""

from __future__ import annotations

from typing import Annotated, Final, dataclass_transform

import msgspec
from msgspec import Meta, Struct

from keymesh.compat.aws_errors import AwsError, validation
from keymesh.model import strict_json
from keymesh.model.errors import Refused

BODY_MAX: Final = 64 * 1024
PLAINTEXT_MAX: Final = 4_096
RANDOM_MAX: Final = 1_024
TAGS_MAX: Final = 50
MESSAGE_MAX: Final = 256

KeyRef = Annotated[str, Meta(min_length=1, max_length=2_048)]
Plaintext = Annotated[bytes, Meta(min_length=1, max_length=PLAINTEXT_MAX)]
Ciphertext = Annotated[bytes, Meta(min_length=1, max_length=6_144)]
Context = dict[str, str]
Tokens = Annotated[list[Annotated[str, Meta(min_length=1, max_length=8_192)]], Meta(max_length=10)]
Alias = Annotated[str, Meta(min_length=1, max_length=256)]
Marker = Annotated[str, Meta(min_length=1, max_length=1_024)]
Limit = Annotated[int, Meta(ge=1, le=1_000)]
DataKeyBytes = Annotated[int, Meta(ge=1, le=RANDOM_MAX)]


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Asked(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="pascal"):
    """Base of all requests."""


class Tag(Asked, kw_only=True):
    tag_key: Annotated[str, Meta(min_length=1, max_length=128)]
    tag_value: Annotated[str, Meta(max_length=256)]


class Use(Asked, kw_only=True):
    """What every use of a key may carry."""

    grant_tokens: Tokens = []
    dry_run: bool = False
    encryption_context: Context = {}


class Encrypt(Use, kw_only=True):
    key_id: KeyRef
    plaintext: Plaintext
    encryption_algorithm: str = "SYMMETRIC_DEFAULT"


class Decrypt(Use, kw_only=True):
    ciphertext_blob: Ciphertext
    key_id: KeyRef | None = None
    encryption_algorithm: str = "SYMMETRIC_DEFAULT"


class ReEncrypt(Asked, kw_only=True):
    ciphertext_blob: Ciphertext
    destination_key_id: KeyRef
    source_key_id: KeyRef | None = None
    source_encryption_context: Context = {}
    destination_encryption_context: Context = {}
    source_encryption_algorithm: str = "SYMMETRIC_DEFAULT"
    destination_encryption_algorithm: str = "SYMMETRIC_DEFAULT"
    grant_tokens: Tokens = []
    dry_run: bool = False


class GenerateDataKey(Use, kw_only=True):
    """One of ``key_spec`` and ``number_of_bytes``."""

    key_id: KeyRef
    key_spec: str | None = None
    number_of_bytes: DataKeyBytes | None = None


class GenerateRandom(Asked, kw_only=True):
    number_of_bytes: DataKeyBytes


class OfKey(Asked, kw_only=True):
    """EnableKey, DisableKey, CancelKeyDeletion, GetKeyRotationStatus, EnableKeyRotation, RotateKeyOnDemand, ..."""

    key_id: KeyRef


class DescribeKey(OfKey, kw_only=True):
    grant_tokens: Tokens = []


class CreateKey(Asked, kw_only=True):
    """``policy`` is none of ours: who may use a key is said by credentials."""

    description: Annotated[str, Meta(max_length=8_192)] = ""
    key_usage: str = "ENCRYPT_DECRYPT"
    key_spec: str = "SYMMETRIC_DEFAULT"
    customer_master_key_spec: str = "SYMMETRIC_DEFAULT"
    origin: str = "AWS_KMS"
    multi_region: bool = False
    bypass_policy_lockout_safety_check: bool = False
    tags: Annotated[list[Tag], Meta(max_length=TAGS_MAX)] = []


class ListKeys(Asked, kw_only=True):
    limit: Limit = 100
    marker: Marker | None = None


class ListAliases(ListKeys, kw_only=True):
    limit: Limit = 50
    key_id: KeyRef | None = None


class ListTags(ListKeys, kw_only=True):
    limit: Limit = 50
    key_id: KeyRef


class ScheduleDeletion(OfKey, kw_only=True):
    pending_window_in_days: Annotated[int, Meta(ge=7, le=30)] = 30


class OfAlias(Asked, kw_only=True):
    alias_name: Alias


class AliasTarget(OfAlias, kw_only=True):
    target_key_id: KeyRef


class ReplicateKey(OfKey, kw_only=True):
    replica_region: Annotated[str, Meta(min_length=1, max_length=32)]
    description: Annotated[str, Meta(max_length=8_192)] = ""
    bypass_policy_lockout_safety_check: bool = False
    tags: Annotated[list[Tag], Meta(max_length=TAGS_MAX)] = []


class TagKey(OfKey, kw_only=True):
    tags: Annotated[list[Tag], Meta(max_length=TAGS_MAX)]


class UntagKey(OfKey, kw_only=True):
    tag_keys: Annotated[list[str], Meta(max_length=TAGS_MAX)]


class EnableRotation(OfKey, kw_only=True):
    rotation_period_in_days: Annotated[int, Meta(ge=90, le=2_560)] = 365


def read(body: bytes, shape: type[Asked]) -> Asked:
    """``body`` as a request.  Raises AwsError naming the member and its limit."""
    try:
        value = strict_json.loads(body, max_bytes=BODY_MAX)
    except Refused as bad:
        raise AwsError("SerializationException", bad.message) from bad
    try:
        return msgspec.convert(value, shape, strict=True)
    except msgspec.ValidationError as bad:
        raise validation(str(bad)[:MESSAGE_MAX]) from bad
