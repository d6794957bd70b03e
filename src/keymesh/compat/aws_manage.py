"""AWS KMS's operations that make, show and restrict keys: a service of the mesh, by way of the Registry.

DisableKey suspends the service and EnableKey resumes it.  ScheduleKeyDeletion suspends it and records the day: nothing
is destroyed on that day, as a mesh destroys whole tenants only; CancelKeyDeletion forgets the day and leaves the key
disabled, as AWS does.  Key material rotates when RotateKeyOnDemand says so, not by itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from msgspec.structs import replace

from keymesh.compat import aws_shapes as shapes
from keymesh.compat.aws_credentials import Credential
from keymesh.compat.aws_errors import AwsError, denied
from keymesh.compat.aws_keys import ALIAS, AwsKeys, pending_deletion
from keymesh.compat.aws_names import Place, check_alias, key_id_of
from keymesh.compat.aws_records import Deletion, KeyRecord, Records
from keymesh.compat.ring import KeyFacts, Ring
from keymesh.model.errors import Refused
from keymesh.model.ids import check_service

SERVICE_TAG: Final = "keymesh:service"
"""A tag of CreateKey that names the service; without it a name is drawn."""
DAY_MS: Final = 24 * 3_600_000
CREATING, ENABLED, DISABLED, PENDING_DELETION = "Creating", "Enabled", "Disabled", "PendingDeletion"

Answer = Mapping[str, Any]
Do = Callable[[Credential, Place, Any], Awaitable[Answer]]
T = TypeVar("T")


class Management:
    """The operations, each with its shape and whether it only reads."""

    def __init__(
        self,
        ring: Ring,
        keys: AwsKeys,
        records: Records,
        *,
        now_ms: Callable[[], int],
        random: Callable[[int], bytes],
    ) -> None:
        self._ring = ring
        self._keys = keys
        self._records = records
        self._now_ms = now_ms
        self._random = random

    def operations(self) -> dict[str, tuple[type[shapes.Asked], Do, bool]]:
        """Name -> (shape, what it does, whether it only reads)."""
        return {
            "DescribeKey": (shapes.DescribeKey, self._describe, True),
            "ListKeys": (shapes.ListKeys, self._list_keys, True),
            "ListAliases": (shapes.ListAliases, self._list_aliases, True),
            "ListResourceTags": (shapes.ListTags, self._list_tags, True),
            "GetKeyRotationStatus": (shapes.OfKey, self._rotation_status, True),
            "CreateKey": (shapes.CreateKey, self._create, False),
            "CreateAlias": (shapes.AliasTarget, self._create_alias, False),
            "UpdateAlias": (shapes.AliasTarget, self._update_alias, False),
            "DeleteAlias": (shapes.OfAlias, self._delete_alias, False),
            "EnableKey": (shapes.OfKey, self._enable, False),
            "DisableKey": (shapes.OfKey, self._disable, False),
            "ScheduleKeyDeletion": (shapes.ScheduleDeletion, self._schedule, False),
            "CancelKeyDeletion": (shapes.OfKey, self._cancel, False),
            "ReplicateKey": (shapes.ReplicateKey, self._replicate, False),
            "RotateKeyOnDemand": (shapes.OfKey, self._rotate, False),
            "EnableKeyRotation": (shapes.EnableRotation, self._enable_rotation, False),
            "DisableKeyRotation": (shapes.OfKey, self._disable_rotation, False),
            "TagResource": (shapes.TagKey, self._tag, False),
            "UntagResource": (shapes.UntagKey, self._untag, False),
        }

    # --- what there is ---------------------------------------------------------------------------------------------

    async def _facts(self, credential: Credential, place: Place, given: str) -> KeyFacts:
        return await self._ring.find(place.tenant, await self._keys.named(credential, place, given))

    async def _metadata(self, place: Place, facts: KeyFacts, region: str | None = None) -> dict[str, Any]:
        record, service = self._records.key(place.tenant, facts.service), facts.service
        state = state_of(facts, record)
        regions = await self._ring.regions(place.tenant)
        keys = [{"Arn": place.key_arn(service, r), "Region": r} for r in regions]
        shown: dict[str, Any] = {
            "AWSAccountId": place.account,
            "KeyId": key_id_of(place.tenant, service),
            "Arn": place.key_arn(service, region),
            "Enabled": state == ENABLED,
            "Description": record.description,
            "KeyUsage": "ENCRYPT_DECRYPT",
            "KeyState": state,
            "Origin": "AWS_KMS",
            "KeyManager": "CUSTOMER",
            "CustomerMasterKeySpec": "SYMMETRIC_DEFAULT",
            "KeySpec": "SYMMETRIC_DEFAULT",
            "EncryptionAlgorithms": ["SYMMETRIC_DEFAULT"],
            "MultiRegion": True,
            "MultiRegionConfiguration": {
                "MultiRegionKeyType": "PRIMARY" if (region or place.region) == regions[0] else "REPLICA",
                "PrimaryKey": keys[0],
                "ReplicaKeys": keys[1:],
            },
        }
        if record.created_ms is not None:
            shown["CreationDate"] = record.created_ms // 1_000
        if record.deletion is not None and state == PENDING_DELETION:
            shown["DeletionDate"] = record.deletion.at_ms // 1_000
        return shown

    async def _describe(self, credential: Credential, place: Place, asked: shapes.DescribeKey) -> Answer:
        return {"KeyMetadata": await self._metadata(place, await self._facts(credential, place, asked.key_id))}

    async def _seen(self, credential: Credential, place: Place) -> list[str]:
        try:
            names = [facts.service for facts in await self._ring.list(place.tenant)]
        except Refused as no:
            if no.code != "unsupported":
                raise
            names = list(self._ring.services(place.tenant))
        return [name for name in names if credential.may_see(name)]

    async def _list_keys(self, credential: Credential, place: Place, asked: shapes.ListKeys) -> Answer:
        arns = {key_id_of(place.tenant, s): place.key_arn(s) for s in await self._seen(credential, place)}
        keys = [{"KeyId": key_id, "KeyArn": arn} for key_id, arn in sorted(arns.items())]
        return _page("Keys", keys, asked, by="KeyId")

    async def _list_aliases(self, credential: Credential, place: Place, asked: shapes.ListAliases) -> Answer:
        seen = await self._seen(credential, place)
        if asked.key_id is not None:
            only = await self._keys.named(credential, place, asked.key_id)
            seen = [service for service in seen if service == only]
        aliases = {f"{ALIAS}{service}": service for service in seen} | dict(self._records.aliases(place.tenant))
        shown = [
            {"AliasName": a, "AliasArn": place.alias_arn(a), "TargetKeyId": key_id_of(place.tenant, s)}
            for a, s in sorted(aliases.items())
            if s in seen
        ]
        return _page("Aliases", shown, asked, by="AliasName")

    async def _list_tags(self, credential: Credential, place: Place, asked: shapes.ListTags) -> Answer:
        service = await self._keys.named(credential, place, asked.key_id)
        tags = self._records.key(place.tenant, service).tags
        return _page("Tags", [{"TagKey": k, "TagValue": v} for k, v in sorted(tags.items())], asked, by="TagKey")

    async def _rotation_status(self, credential: Credential, place: Place, asked: shapes.OfKey) -> Answer:
        service = await self._keys.named(credential, place, asked.key_id)
        return {"KeyId": place.key_arn(service), "KeyRotationEnabled": False}

    # --- keys ------------------------------------------------------------------------------------------------------

    async def _create(self, credential: Credential, place: Place, asked: shapes.CreateKey) -> Answer:
        if credential.services is not None:
            raise denied("this access key is for some services; it may not make others")
        if (asked.key_usage, asked.key_spec, asked.customer_master_key_spec, asked.origin) != (
            "ENCRYPT_DECRYPT",
            "SYMMETRIC_DEFAULT",
            "SYMMETRIC_DEFAULT",
            "AWS_KMS",
        ):
            raise AwsError("UnsupportedOperationException", "only SYMMETRIC_DEFAULT keys of our own making are served")
        tags = _tags(asked.tags)
        service = check_service(tags.get(SERVICE_TAG) or f"aws-{self._random(8).hex()}")
        facts = await self._ring.create(place.tenant, service)
        record = KeyRecord(created_ms=self._now_ms(), description=asked.description, tags=tags)
        await self._records.put_key(place.tenant, service, record)
        return {"KeyMetadata": await self._metadata(place, facts)}

    async def _disable(self, credential: Credential, place: Place, asked: shapes.OfKey) -> Answer:
        facts = await self._not_pending(credential, place, asked.key_id)
        if facts.state == "active":
            await self._ring.suspend(place.tenant, facts.service, "DisableKey")
        return {}

    async def _enable(self, credential: Credential, place: Place, asked: shapes.OfKey) -> Answer:
        facts = await self._not_pending(credential, place, asked.key_id)
        if facts.state == "suspended":
            await self._ring.resume(place.tenant, facts.service, "EnableKey")
            facts = await self._ring.find(place.tenant, facts.service)
        if facts.state != "active":
            what = "revoked, which nothing ends" if facts.state == "revoked" else "suspended with its tenant"
            raise AwsError("KMSInvalidStateException", f"{place.key_arn(facts.service)} is {what}")
        return {}

    async def _schedule(self, credential: Credential, place: Place, asked: shapes.ScheduleDeletion) -> Answer:
        """Suspended first: whatever happens between, the key is closed."""
        facts = await self._not_pending(credential, place, asked.key_id)
        if facts.state == "active":
            await self._ring.suspend(place.tenant, facts.service, "ScheduleKeyDeletion")
        days = asked.pending_window_in_days
        deletion = Deletion(at_ms=self._now_ms() + days * DAY_MS, days=days)
        record = self._records.key(place.tenant, facts.service)
        await self._records.put_key(place.tenant, facts.service, replace(record, deletion=deletion))
        return {
            "KeyId": place.key_arn(facts.service),
            "DeletionDate": deletion.at_ms // 1_000,
            "KeyState": PENDING_DELETION,
            "PendingWindowInDays": days,
        }

    async def _cancel(self, credential: Credential, place: Place, asked: shapes.OfKey) -> Answer:
        facts = await self._facts(credential, place, asked.key_id)
        record = self._records.key(place.tenant, facts.service)
        if state_of(facts, record) != PENDING_DELETION:
            raise AwsError("KMSInvalidStateException", f"{place.key_arn(facts.service)} is not pending deletion")
        await self._records.put_key(place.tenant, facts.service, replace(record, deletion=None))
        return {"KeyId": place.key_arn(facts.service)}

    async def _not_pending(self, credential: Credential, place: Place, given: str) -> KeyFacts:
        facts = await self._facts(credential, place, given)
        if state_of(facts, self._records.key(place.tenant, facts.service)) == PENDING_DELETION:
            raise pending_deletion(place.key_arn(facts.service))
        return facts

    async def _replicate(self, credential: Credential, place: Place, asked: shapes.ReplicateKey) -> Answer:
        """A key is in every region that its tenant allows, already; where it is not allowed is the tenant's to say."""
        facts = await self._not_pending(credential, place, asked.key_id)
        if asked.replica_region not in await self._ring.regions(place.tenant):
            raise AwsError(
                "UnsupportedOperationException", "keys are in the regions that the tenant's signers allow, and no other"
            )
        tags = self._records.key(place.tenant, facts.service).tags
        return {
            "ReplicaKeyMetadata": await self._metadata(place, facts, asked.replica_region),
            "ReplicaPolicy": "",
            "ReplicaTags": [{"TagKey": k, "TagValue": v} for k, v in sorted(tags.items())],
        }

    async def _rotate(self, credential: Credential, place: Place, asked: shapes.OfKey) -> Answer:
        facts = await self._not_pending(credential, place, asked.key_id)
        if facts.state != "active":
            raise AwsError("DisabledException", f"{place.key_arn(facts.service)} is disabled")
        await self._ring.rotate(place.tenant, facts.service)
        return {"KeyId": place.key_arn(facts.service)}

    async def _enable_rotation(self, credential: Credential, place: Place, asked: shapes.EnableRotation) -> Answer:
        await self._facts(credential, place, asked.key_id)
        raise AwsError("UnsupportedOperationException", "keys rotate by RotateKeyOnDemand or `keymesh key rotate`")

    async def _disable_rotation(self, credential: Credential, place: Place, asked: shapes.OfKey) -> Answer:
        await self._facts(credential, place, asked.key_id)
        return {}

    # --- names and tags --------------------------------------------------------------------------------------------

    async def _create_alias(self, credential: Credential, place: Place, asked: shapes.AliasTarget) -> Answer:
        alias = check_alias(asked.alias_name)
        service = await self._keys.named(credential, place, asked.target_key_id)
        if alias in self._records.aliases(place.tenant) or await self._is_own_name(place, alias):
            raise AwsError("AlreadyExistsException", f"{alias} exists")
        await self._records.put_alias(place.tenant, alias, service)
        return {}

    async def _update_alias(self, credential: Credential, place: Place, asked: shapes.AliasTarget) -> Answer:
        alias = await self._made_alias(credential, place, asked.alias_name)
        service = await self._keys.named(credential, place, asked.target_key_id)
        await self._records.put_alias(place.tenant, alias, service)
        return {}

    async def _delete_alias(self, credential: Credential, place: Place, asked: shapes.OfAlias) -> Answer:
        alias = await self._made_alias(credential, place, asked.alias_name)
        await self._records.put_alias(place.tenant, alias, None)
        return {}

    async def _made_alias(self, credential: Credential, place: Place, given: str) -> str:
        """An alias that a client made, of a key that this credential may name."""
        alias = check_alias(given)
        service = self._records.aliases(place.tenant).get(alias)
        if service is not None and credential.may_see(service):
            return alias
        if await self._is_own_name(place, alias):
            raise AwsError("UnsupportedOperationException", f"{alias} is the key's own name in the mesh")
        raise AwsError("NotFoundException", f"{alias} does not exist")

    async def _is_own_name(self, place: Place, alias: str) -> bool:
        return alias.removeprefix(ALIAS) in self._ring.services(place.tenant)

    async def _tag(self, credential: Credential, place: Place, asked: shapes.TagKey) -> Answer:
        service = await self._keys.named(credential, place, asked.key_id)
        record = self._records.key(place.tenant, service)
        tags = record.tags | _tags(asked.tags)
        if len(tags) > shapes.TAGS_MAX:
            raise AwsError("TagException", f"at most {shapes.TAGS_MAX} tags")
        await self._records.put_key(place.tenant, service, replace(record, tags=tags))
        return {}

    async def _untag(self, credential: Credential, place: Place, asked: shapes.UntagKey) -> Answer:
        service = await self._keys.named(credential, place, asked.key_id)
        record = self._records.key(place.tenant, service)
        tags = {key: value for key, value in record.tags.items() if key not in asked.tag_keys}
        await self._records.put_key(place.tenant, service, replace(record, tags=tags))
        return {}


def state_of(facts: KeyFacts, record: KeyRecord) -> str:
    """AWS's word.  A recorded deletion counts while the key is closed: who resumed it by other means has ended it."""
    if facts.state == "active":
        return CREATING if facts.wrapping is None else ENABLED
    return DISABLED if record.deletion is None else PENDING_DELETION


def _tags(given: Sequence[shapes.Tag]) -> dict[str, str]:
    tags = {tag.tag_key: tag.tag_value for tag in given}
    if len(tags) != len(given) or any(key.startswith("aws:") for key in tags):
        raise AwsError("TagException", "each key once, and none that begins with aws:")
    return tags


def _page(name: str, rows: Sequence[Mapping[str, Any]], asked: shapes.ListKeys, *, by: str) -> Answer:
    """At most ``asked.limit`` of sorted rows after the marker, which is the last row's own name."""
    after = [row for row in rows if asked.marker is None or row[by] > asked.marker]
    page = after[: asked.limit]
    answer: dict[str, Any] = {name: page, "Truncated": len(after) > len(page)}
    if len(after) > len(page):
        answer["NextMarker"] = page[-1][by]
    return answer
