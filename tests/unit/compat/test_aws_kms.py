"""AWS's operations over a ring in memory: round trips, who may do what, errors by their names, limits."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keymesh.app.fuzz.ring import MemoryKeys
from keymesh.compat.aws_blob import BLOB_OVERHEAD
from keymesh.compat.aws_kms import USES_MAX
from keymesh.compat.aws_names import Place, account_of, key_id_of
from keymesh.compat.ring import KeyFacts
from keymesh.edge.hot_lease import CreatedKey
from keymesh.model.errors import KeymeshError, Refused, Unavailable
from tests.unit.compat.aws import ACME, NOW_MS, OTHER, REGION, Bed, signed

FILES = key_id_of(ACME, "files")
ARN = Place(ACME, REGION).key_arn("files")


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


@pytest.fixture
def bed() -> Bed:
    return Bed()


@pytest.mark.parametrize("name", [FILES, ARN, "alias/files", Place(ACME, REGION).alias_arn("alias/files")])
async def test_a_key_has_four_names(bed: Bed, name: str) -> None:
    sealed = await bed.call("Encrypt", KeyId=name, Plaintext=b64(b"hello"))
    assert sealed["KeyId"] == ARN
    opened = await bed.call("Decrypt", CiphertextBlob=sealed["CiphertextBlob"], KeyId=name)
    assert opened == {"Plaintext": b64(b"hello"), "KeyId": ARN, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}


@given(plaintext=st.binary(min_size=1, max_size=200), context=st.dictionaries(st.text(max_size=8), st.text(max_size=8)))
async def test_what_is_sealed_opens_under_the_same_context_only(plaintext: bytes, context: dict[str, str]) -> None:
    bed = Bed()
    sealed = await bed.call("Encrypt", KeyId=FILES, Plaintext=b64(plaintext), EncryptionContext=context)
    blob = sealed["CiphertextBlob"]
    assert (await bed.call("Decrypt", CiphertextBlob=blob, EncryptionContext=context))["Plaintext"] == b64(plaintext)
    for other in ({**context, "more": "x"}, {k: v + "x" for k, v in context.items()}, {}):
        if other != context:
            said = await bed.error("Decrypt", CiphertextBlob=blob, EncryptionContext=other)
            assert said == "InvalidCiphertextException"


async def test_every_changed_byte_closes_a_ciphertext(bed: Bed) -> None:
    blob = base64.b64decode((await bed.call("Encrypt", KeyId=FILES, Plaintext=b64(b"hi")))["CiphertextBlob"])
    assert len(blob) == BLOB_OVERHEAD + 2
    said = set()
    for at in range(len(blob)):
        changed = blob[:at] + bytes((blob[at] ^ 1,)) + blob[at + 1 :]
        said.add(await bed.error("Decrypt", CiphertextBlob=b64(changed)))
    for cut in (blob[:-1], blob[:20], blob + b"x", b"x"):
        said.add(await bed.error("Decrypt", CiphertextBlob=b64(cut)))
    # the key's name changed: no such key; the kid changed: a version that may come; else one answer
    assert said == {"InvalidCiphertextException", "AccessDeniedException", "KeyUnavailableException"}


async def test_a_ciphertext_under_anothers_name_does_not_open(bed: Bed) -> None:
    """The key's name in a blob is bound: with the name of another key of the tenant it is not opened by that one."""
    blob = base64.b64decode((await bed.call("Encrypt", KeyId=FILES, Plaintext=b64(b"hi")))["CiphertextBlob"])
    mail = bytes.fromhex(key_id_of(ACME, "mail").removeprefix("mrk-"))
    bed.ring.held[ACME, "mail"] = bed.ring.held[ACME, "files"]
    moved = blob[:1] + mail + blob[17:]
    assert await bed.error("Decrypt", CiphertextBlob=b64(moved)) == "InvalidCiphertextException"


async def test_data_keys_open_to_themselves(bed: Bed) -> None:
    for asked, size in (({"KeySpec": "AES_256"}, 32), ({"KeySpec": "AES_128"}, 16), ({"NumberOfBytes": 1024}, 1024)):
        made = await bed.call("GenerateDataKey", KeyId=FILES, EncryptionContext={"a": "b"}, **asked)
        assert len(base64.b64decode(made["Plaintext"])) == size
        blob = made["CiphertextBlob"]
        opened = await bed.call("Decrypt", CiphertextBlob=blob, EncryptionContext={"a": "b"})
        assert opened["Plaintext"] == made["Plaintext"]
        hidden = await bed.call("GenerateDataKeyWithoutPlaintext", KeyId=FILES, **asked)
        assert "Plaintext" not in hidden
    random = await bed.call("GenerateRandom", NumberOfBytes=1024)
    assert len(base64.b64decode(random["Plaintext"])) == 1024


@pytest.mark.parametrize(
    ("operation", "members"),
    [
        ("Encrypt", {"KeyId": FILES, "Plaintext": b64(bytes(4_097))}),
        ("Encrypt", {"KeyId": FILES, "Plaintext": ""}),
        ("Encrypt", {"KeyId": FILES}),
        ("Encrypt", {"KeyId": FILES, "Plaintext": "not base64!"}),
        ("Encrypt", {"KeyId": FILES, "Plaintext": b64(b"x"), "Surprise": 1}),
        ("Encrypt", {"KeyId": "", "Plaintext": b64(b"x")}),
        ("Encrypt", {"KeyId": FILES, "Plaintext": b64(b"x"), "EncryptionContext": {str(n): "" for n in range(65)}}),
        ("Encrypt", {"KeyId": FILES, "Plaintext": b64(b"x"), "EncryptionContext": {"a": "b" * 8_192}}),
        ("Encrypt", {"KeyId": FILES, "Plaintext": b64(b"x"), "EncryptionContext": {"a": 1}}),
        ("GenerateRandom", {"NumberOfBytes": 1_025}),
        ("GenerateRandom", {"NumberOfBytes": 0}),
        ("GenerateDataKey", {"KeyId": FILES}),
        ("GenerateDataKey", {"KeyId": FILES, "KeySpec": "AES_256", "NumberOfBytes": 32}),
        ("GenerateDataKey", {"KeyId": FILES, "KeySpec": "AES_512"}),
        ("ScheduleKeyDeletion", {"KeyId": FILES, "PendingWindowInDays": 6}),
        ("ListKeys", {"Limit": 0}),
    ],
)
async def test_members_beyond_their_limits_are_refused_by_name(
    bed: Bed, operation: str, members: dict[str, Any]
) -> None:
    assert await bed.error(operation, **members) == "ValidationException"


async def test_the_largest_plaintext_is_taken(bed: Bed) -> None:
    sealed = await bed.call("Encrypt", KeyId=FILES, Plaintext=b64(bytes(4_096)))
    assert (await bed.call("Decrypt", CiphertextBlob=sealed["CiphertextBlob"]))["Plaintext"] == b64(bytes(4_096))


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[1]", b'{"KeyId":"a","KeyId":"b"}', b"[" * 1_000, b"1.5"])
async def test_a_body_that_is_no_request_is_refused(bed: Bed, body: bytes) -> None:
    answer, said = await bed.raw(signed("Encrypt", body))
    assert answer.status == 400
    assert said["__type"] in ("SerializationException", "ValidationException")


async def test_another_tenants_names_look_like_absent_ones(bed: Bed) -> None:
    theirs = await bed.call("Encrypt", "KMOTHER", KeyId="alias/ledger", Plaintext=b64(b"hi"))
    absent = [Place(ACME, REGION).key_arn("nothing"), key_id_of(ACME, "nothing"), "alias/nothing"]
    others = [theirs["KeyId"], key_id_of(OTHER, "ledger"), "alias/ledger"]
    for name in (*absent, *others):
        assert await bed.error("Encrypt", KeyId=name, Plaintext=b64(b"x")) == "NotFoundException"
        assert await bed.error("DescribeKey", KeyId=name) == "NotFoundException"
        assert await bed.error("DisableKey", KeyId=name) == "NotFoundException"
    absent_blob = b64(bytes((1,)) + bytes(16) + base64.b64decode(theirs["CiphertextBlob"])[17:])
    for blob in (theirs["CiphertextBlob"], absent_blob):
        answer, said = await bed.raw(signed("Decrypt", {"CiphertextBlob": blob}))
        assert (answer.status, said["__type"]) == (400, "AccessDeniedException")
        assert "does not exist" in said["message"]
    assert await bed.error("Encrypt", KeyId=ARN.replace(account_of(ACME), account_of(OTHER)), Plaintext=b64(b"x")) == (
        "NotFoundException"
    )


async def test_a_credential_for_some_services_learns_of_no_others(bed: Bed) -> None:
    who = "KMFILES"
    mail = await bed.call("Encrypt", KeyId="alias/mail", Plaintext=b64(b"x"))
    assert await bed.call("Encrypt", who, KeyId="alias/files", Plaintext=b64(b"x"))
    for name in ("alias/mail", "alias/nothing", key_id_of(ACME, "mail"), mail["KeyId"]):
        assert await bed.error("Encrypt", who, KeyId=name, Plaintext=b64(b"x")) == "AccessDeniedException"
    assert await bed.error("Decrypt", who, CiphertextBlob=mail["CiphertextBlob"]) == "AccessDeniedException"
    assert await bed.error("CreateKey", who) == "AccessDeniedException"
    assert [key["KeyId"] for key in (await bed.call("ListKeys", who))["Keys"]] == [FILES]
    assert [a["AliasName"] for a in (await bed.call("ListAliases", who))["Aliases"]] == ["alias/files"]


async def test_roles_are_told_apart(bed: Bed) -> None:
    sealed = await bed.call("Encrypt", "KMUSER", KeyId=FILES, Plaintext=b64(b"x"))
    for operation in bed.face.operations:
        answer, said = await bed.raw(signed(operation, {}, "KMUSER"))
        is_admins = said.get("__type") == "AccessDeniedException"
        reads = ("Describe", "List", "Get")
        uses = ("Encrypt", "Decrypt", "ReEncrypt", "Generate")
        assert is_admins == (not operation.startswith((*reads, *uses))), operation
        assert answer.status in (200, 400)
    assert await bed.error("Decrypt", "KMADMIN", CiphertextBlob=sealed["CiphertextBlob"]) == "AccessDeniedException"
    assert await bed.call("DisableKey", "KMADMIN", KeyId=FILES) == {}


async def test_re_encryption_goes_from_key_to_key(bed: Bed) -> None:
    sealed = await bed.call("Encrypt", KeyId=FILES, Plaintext=b64(b"x"), EncryptionContext={"a": "1"})
    moved = await bed.call(
        "ReEncrypt",
        CiphertextBlob=sealed["CiphertextBlob"],
        SourceEncryptionContext={"a": "1"},
        DestinationKeyId="alias/mail",
        DestinationEncryptionContext={"b": "2"},
    )
    assert moved["SourceKeyId"] == ARN
    opened = await bed.call("Decrypt", CiphertextBlob=moved["CiphertextBlob"], EncryptionContext={"b": "2"})
    assert (opened["Plaintext"], opened["KeyId"]) == (b64(b"x"), moved["KeyId"])
    blob = moved["CiphertextBlob"]
    assert await bed.error("Decrypt", CiphertextBlob=blob, KeyId=FILES, EncryptionContext={"b": "2"}) == (
        "IncorrectKeyException"
    )


async def test_rotation_leaves_old_ciphertexts_open(bed: Bed) -> None:
    sealed = await bed.call("Encrypt", KeyId=FILES, Plaintext=b64(b"x"))
    assert (await bed.call("RotateKeyOnDemand", KeyId=FILES))["KeyId"] == ARN
    again = await bed.call("Encrypt", KeyId=FILES, Plaintext=b64(b"y"))
    for one, plain in ((sealed, b"x"), (again, b"y")):
        assert (await bed.call("Decrypt", CiphertextBlob=one["CiphertextBlob"]))["Plaintext"] == b64(plain)


async def test_states_and_what_each_allows(bed: Bed) -> None:
    """Enabled, Disabled, PendingDeletion, against what clients ask."""
    sealed = (await bed.call("Encrypt", KeyId=FILES, Plaintext=b64(b"x")))["CiphertextBlob"]

    async def state() -> str:
        return str((await bed.call("DescribeKey", KeyId=FILES))["KeyMetadata"]["KeyState"])

    async def uses() -> set[str]:
        said = {await bed.error("Decrypt", CiphertextBlob=sealed)}
        return said | {await bed.error("GenerateDataKey", KeyId=FILES, KeySpec="AES_256")}

    assert await state() == "Enabled"
    assert await bed.error("CancelKeyDeletion", KeyId=FILES) == "KMSInvalidStateException"
    assert await bed.call("EnableKey", KeyId=FILES) == {}
    for _ in range(2):
        assert await bed.call("DisableKey", KeyId=FILES) == {}
        assert (await state(), await uses()) == ("Disabled", {"DisabledException"})
    assert await bed.error("RotateKeyOnDemand", KeyId=FILES) == "DisabledException"
    told = await bed.call("ScheduleKeyDeletion", KeyId=FILES, PendingWindowInDays=7)
    assert told["DeletionDate"] == NOW_MS // 1_000 + 7 * 86_400
    assert (await state(), await uses()) == ("PendingDeletion", {"KMSInvalidStateException"})
    for operation in ("EnableKey", "DisableKey", "ScheduleKeyDeletion", "RotateKeyOnDemand"):
        assert await bed.error(operation, KeyId=FILES) == "KMSInvalidStateException"
    assert (await bed.call("CancelKeyDeletion", KeyId=FILES))["KeyId"] == ARN
    assert (await state(), await uses()) == ("Disabled", {"DisabledException"})
    assert await bed.call("EnableKey", KeyId=FILES) == {}
    assert (await bed.call("Decrypt", CiphertextBlob=sealed))["Plaintext"] == b64(b"x")


async def test_what_nothing_ends_is_said(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    revoked = replace(await bed.ring.find(ACME, "files"), state="revoked")

    async def find(tenant: str, service: str) -> KeyFacts:
        return revoked

    monkeypatch.setattr(bed.ring, "find", find)
    assert await bed.error("EnableKey", KeyId=FILES) == "KMSInvalidStateException"


async def test_a_deletion_that_was_ended_by_other_means_is_none(bed: Bed) -> None:
    await bed.call("ScheduleKeyDeletion", KeyId=FILES)
    await bed.ring.resume(ACME, "files", "by hand")
    assert (await bed.call("DescribeKey", KeyId=FILES))["KeyMetadata"]["KeyState"] == "Enabled"


async def test_keys_are_made_with_a_name_of_choice_or_one_that_is_drawn(bed: Bed) -> None:
    named = await bed.call("CreateKey", Description="d", Tags=[{"TagKey": "keymesh:service", "TagValue": "orders"}])
    assert named["KeyMetadata"]["KeyId"] == key_id_of(ACME, "orders")
    assert named["KeyMetadata"]["Description"] == "d"
    assert named["KeyMetadata"]["CreationDate"] == NOW_MS // 1_000
    drawn = await bed.call("CreateKey")
    assert await bed.call("Encrypt", KeyId=drawn["KeyMetadata"]["Arn"], Plaintext=b64(b"x"))
    again = [{"TagKey": "keymesh:service", "TagValue": "orders"}]
    assert await bed.error("CreateKey", Tags=again) == "AlreadyExistsException"
    bad = [{"TagKey": "keymesh:service", "TagValue": "Or/ders"}]
    assert await bed.error("CreateKey", Tags=bad) == "ValidationException"
    for members in ({"KeySpec": "RSA_2048"}, {"KeyUsage": "SIGN_VERIFY"}, {"Origin": "EXTERNAL"}):
        assert await bed.error("CreateKey", **members) == "UnsupportedOperationException"


async def test_aliases_are_made_moved_and_ended(bed: Bed) -> None:
    await bed.call("CreateAlias", AliasName="alias/app/main", TargetKeyId=FILES)
    assert await bed.error("CreateAlias", AliasName="alias/app/main", TargetKeyId=FILES) == "AlreadyExistsException"
    assert (await bed.call("Encrypt", KeyId="alias/app/main", Plaintext=b64(b"x")))["KeyId"] == ARN
    await bed.call("UpdateAlias", AliasName="alias/app/main", TargetKeyId="alias/mail")
    assert (await bed.call("Encrypt", KeyId="alias/app/main", Plaintext=b64(b"x")))["KeyId"] != ARN
    mail = key_id_of(ACME, "mail")
    shown = await bed.call("ListAliases", KeyId=mail)
    assert [alias["AliasName"] for alias in shown["Aliases"]] == ["alias/app/main", "alias/mail"]
    await bed.call("DeleteAlias", AliasName="alias/app/main")
    assert await bed.error("DeleteAlias", AliasName="alias/app/main") == "NotFoundException"
    assert await bed.error("Encrypt", KeyId="alias/app/main", Plaintext=b64(b"x")) == "NotFoundException"
    assert await bed.error("CreateAlias", AliasName="alias/files", TargetKeyId=mail) == "AlreadyExistsException"
    assert await bed.error("DeleteAlias", AliasName="alias/files") == "UnsupportedOperationException"
    for name in ("files", "alias/aws/mine", "alias/", "alias/ü", "alias/a b"):
        assert await bed.error("CreateAlias", AliasName=name, TargetKeyId=mail) == "InvalidAliasNameException"


async def test_lists_come_in_pages_that_lose_nothing(bed: Bed) -> None:
    for n in range(7):
        await bed.ring.create(ACME, f"more-{n}")
    found: list[str] = []
    asked: dict[str, Any] = {}
    while True:
        page = await bed.call("ListKeys", Limit=2, **asked)
        assert len(page["Keys"]) <= 2
        found += [key["KeyId"] for key in page["Keys"]]
        if not page["Truncated"]:
            break
        asked = {"Marker": page["NextMarker"]}
    assert found == sorted(key_id_of(ACME, service) for service in bed.ring.services(ACME))


async def test_tags_are_kept_and_taken_away(bed: Bed) -> None:
    await bed.call(
        "TagResource", KeyId=FILES, Tags=[{"TagKey": "b", "TagValue": "2"}, {"TagKey": "a", "TagValue": "1"}]
    )
    await bed.call("UntagResource", KeyId=FILES, TagKeys=["b"])
    assert (await bed.call("ListResourceTags", KeyId=FILES))["Tags"] == [{"TagKey": "a", "TagValue": "1"}]
    many = [{"TagKey": f"k{n}", "TagValue": ""} for n in range(50)]
    assert await bed.error("TagResource", KeyId=FILES, Tags=many) == "TagException"
    reserved = [{"TagKey": "aws:x", "TagValue": ""}]
    assert await bed.error("TagResource", KeyId=FILES, Tags=reserved) == "TagException"


async def test_replicas_are_where_the_tenant_is_allowed(bed: Bed) -> None:
    made = await bed.call("ReplicateKey", KeyId=FILES, ReplicaRegion="us-west")
    shown = made["ReplicaKeyMetadata"]
    assert shown["Arn"] == ARN.replace(REGION, "us-west")
    assert shown["MultiRegionConfiguration"]["MultiRegionKeyType"] == "REPLICA"
    assert await bed.error("ReplicateKey", KeyId=FILES, ReplicaRegion="eu-west") == "UnsupportedOperationException"


async def test_a_dry_run_does_nothing(bed: Bed) -> None:
    answer, said = await bed.raw(signed("Encrypt", {"KeyId": FILES, "Plaintext": b64(b"x"), "DryRun": True}))
    assert (answer.status, said["__type"]) == (412, "DryRunOperationException")
    assert await bed.error("Encrypt", KeyId="alias/nothing", Plaintext=b64(b"x"), DryRun=True) == "NotFoundException"


@pytest.mark.parametrize(
    ("why", "name", "status"),
    [
        (Unavailable("budget-spent", "spent"), "ThrottlingException", 400),
        (Unavailable("expired", "no lease"), "KeyUnavailableException", 500),
        (Unavailable("no-certificate", "none"), "KeyUnavailableException", 500),
        (Refused("restricted", "suspended"), "DisabledException", 400),
    ],
)
async def test_why_a_key_is_not_used_has_amazons_name(bed: Bed, why: KeymeshError, name: str, status: int) -> None:
    bed.ring.held[ACME, "files"].why = why
    answer, said = await bed.raw(signed("Encrypt", {"KeyId": FILES, "Plaintext": b64(b"x")}))
    assert (answer.status, said["__type"]) == (status, name)


async def test_who_is_not_known_and_who_has_a_wrong_secret_hear_the_same(bed: Bed) -> None:
    unknown = await bed.raw(signed("ListKeys", {}, "KMNOBODY"))
    wrong = await bed.raw(signed("ListKeys", {}, secret="t" * 40))
    assert unknown[1] == wrong[1]
    assert unknown[1]["__type"] == "InvalidSignatureException"
    assert unknown[0].said == wrong[0].said == {"error": "InvalidSignatureException"}


async def test_nothing_secret_is_in_what_is_logged(bed: Bed) -> None:
    answer, _ = await bed.raw(signed("Encrypt", {"KeyId": FILES, "Plaintext": b64(b"attack at dawn")}))
    assert dict(answer.said) == {"access_key_id": "KMACME", "tenant": ACME, "key": ARN, "key_id": FILES}
    disabled, _ = await bed.raw(signed("DisableKey", {"KeyId": FILES}))
    assert (disabled.notable, disabled.operation, disabled.said["key_id"]) == (True, "DisableKey", FILES)
    assert "attack" not in repr(answer) + repr(signed("Encrypt", b"attack"))


async def test_an_operation_that_is_not_served(bed: Bed) -> None:
    assert await bed.error("Sign", KeyId=FILES) == "UnknownOperationException"
    assert await bed.error("EnableKeyRotation", KeyId=FILES) == "UnsupportedOperationException"
    assert json.loads(bed.face.refuse(500, "internal", "oh").body)["__type"] == "KMSInternalException"


async def test_a_service_that_is_made_later_moves_no_alias(bed: Bed) -> None:
    await bed.call("CreateAlias", AliasName="alias/app", TargetKeyId=FILES)
    await bed.ring.create(ACME, "app")
    assert (await bed.call("Encrypt", KeyId="alias/app", Plaintext=b64(b"x")))["KeyId"] == ARN
    shown = {a["AliasName"]: a["TargetKeyId"] for a in (await bed.call("ListAliases"))["Aliases"]}
    assert shown["alias/app"] == FILES


async def test_a_tenant_that_waits_takes_no_room_from_another(bed: Bed) -> None:
    """As many as may be under way are; one more is throttled, another tenant is served, and in the end all are."""
    slow = bed.ring.held[ACME, "files"] = SlowKeys(ACME, "files")
    slow.rotate()
    calls = [asyncio.create_task(bed.call("Encrypt", KeyId=FILES, Plaintext=b64(b"x"))) for _ in range(USES_MAX)]
    await asyncio.sleep(0)
    assert await bed.error("Encrypt", KeyId=FILES, Plaintext=b64(b"x")) == "ThrottlingException"
    assert await bed.error("GenerateRandom", NumberOfBytes=1) == "ThrottlingException"
    assert await bed.call("ListKeys")
    assert await bed.call("Encrypt", "KMOTHER", KeyId="alias/ledger", Plaintext=b64(b"x"))
    slow.go_on.set()
    assert len(await asyncio.gather(*calls)) == USES_MAX
    assert await bed.call("GenerateRandom", NumberOfBytes=1)


class SlowKeys(MemoryKeys):
    """Keys that wait for a Core."""

    def __init__(self, tenant: str, service: str) -> None:
        super().__init__(tenant, service)
        self.go_on = asyncio.Event()

    async def create_key(self, context: Mapping[str, str] | None = None, *, plaintext: bool = False) -> CreatedKey:
        await self.go_on.wait()
        return await super().create_key(context, plaintext=plaintext)


async def test_a_key_that_is_still_being_made(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    making = replace(await bed.ring.find(ACME, "files"), wrapping=None)

    async def find(tenant: str, service: str) -> KeyFacts:
        return making

    monkeypatch.setattr(bed.ring, "find", find)
    shown = (await bed.call("DescribeKey", KeyId=FILES))["KeyMetadata"]
    assert (shown["KeyState"], shown["Enabled"]) == ("Creating", False)
