"""boto3 and AWS's Encryption SDK, unmodified, against a face on the running mesh, over TLS."""

from __future__ import annotations

import asyncio
import io
import json
import os
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import aws_encryption_sdk
import botocore.session
import pytest
from aws_encryption_sdk.exceptions import AWSEncryptionSDKClientError
from aws_encryption_sdk.identifiers import CommitmentPolicy
from botocore.config import Config
from botocore.exceptions import ClientError, SSLError
from tests.integration.mesh.aws import REGION, Face, face_process, free_port
from tests.integration.mesh.live import EU, FILES, HOME, MAIL, US, VAULT, LiveMesh, keymesh, until

from keymesh.app.layout import Layout
from keymesh.compat.aws_names import Place
from keymesh.model.errors import Unavailable

PLAIN = b"attack at dawn"
CONTEXT = {"table": "orders", "row": "17"}
HEALTH = free_port()


@pytest.fixture(scope="module")
def face(mesh_layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Face]:
    where = tmp_path_factory.mktemp("aws")
    Face(mesh_layout, where, 0).credential(US, "--role", "use", "--role", "admin")
    with face_process(mesh_layout, where, "--health", f"127.0.0.1:{HEALTH}") as running:
        yield running


@pytest.fixture(scope="module")
def kms(face: Face) -> Any:
    return of_tenant(face, US)


def of_tenant(face: Face, tenant: str, *words: str) -> Any:
    made = face.credential(tenant, *(words or ("--role", "use", "--role", "admin")))
    return settled(face.client(made))


def settled(client: Any) -> Any:
    """The client, once the face has read its access key."""
    for _ in range(100):
        try:
            client.generate_random(NumberOfBytes=1)
            return client
        except ClientError as not_yet:
            assert error(not_yet) == "InvalidSignatureException"
    raise AssertionError("the face never read the new access key")


def error(raised: ClientError) -> str:
    return str(raised.response["Error"]["Code"])


def refusal(work: Callable[..., Any], **members: Any) -> str:
    with pytest.raises(ClientError) as raised:
        work(**members)
    return error(raised.value)


async def test_what_boto3_seals_it_opens(mesh: LiveMesh, kms: Any) -> None:
    for name in (f"alias/{FILES}", Place(US, REGION).key_arn(FILES), f"alias/{VAULT}"):  # the vault's key is core-held
        sealed = kms.encrypt(KeyId=name, Plaintext=PLAIN, EncryptionContext=CONTEXT)
        opened = kms.decrypt(CiphertextBlob=sealed["CiphertextBlob"], EncryptionContext=CONTEXT)
        assert (opened["Plaintext"], opened["KeyId"]) == (PLAIN, sealed["KeyId"])
        blob = sealed["CiphertextBlob"]
        wrong = {"CiphertextBlob": blob, "EncryptionContext": {**CONTEXT, "row": "18"}}
        assert refusal(kms.decrypt, **wrong) == "InvalidCiphertextException"
        changed = blob[:-1] + bytes((blob[-1] ^ 1,))
        assert refusal(kms.decrypt, CiphertextBlob=changed, EncryptionContext=CONTEXT) == "InvalidCiphertextException"
    made = kms.generate_data_key(KeyId=f"alias/{FILES}", KeySpec="AES_256")
    assert len(made["Plaintext"]) == 32
    assert kms.decrypt(CiphertextBlob=made["CiphertextBlob"])["Plaintext"] == made["Plaintext"]
    moved = kms.re_encrypt(CiphertextBlob=made["CiphertextBlob"], DestinationKeyId=f"alias/{MAIL}")
    assert kms.decrypt(CiphertextBlob=moved["CiphertextBlob"])["KeyId"] == Place(US, REGION).key_arn(MAIL)


async def test_sizes_at_their_limits(mesh: LiveMesh, kms: Any) -> None:
    name, most = f"alias/{FILES}", os.urandom(4_096)
    sealed = kms.encrypt(KeyId=name, Plaintext=most)["CiphertextBlob"]
    assert kms.decrypt(CiphertextBlob=sealed)["Plaintext"] == most
    assert refusal(kms.encrypt, KeyId=name, Plaintext=most + b"x") == "ValidationException"
    assert len(kms.generate_random(NumberOfBytes=1_024)["Plaintext"]) == 1_024
    assert refusal(kms.generate_random, NumberOfBytes=1_025) == "ValidationException"
    huge = {f"k{n}": "v" * 1_000 for n in range(60)}
    assert refusal(kms.encrypt, KeyId=name, Plaintext=b"x", EncryptionContext=huge) == "ValidationException"


async def test_another_tenants_keys_look_like_absent_ones(mesh: LiveMesh, face: Face, kms: Any) -> None:
    """EU's tenant is not allowed in the face's region either: its credential finds no key here."""
    blob = kms.encrypt(KeyId=f"alias/{FILES}", Plaintext=PLAIN)["CiphertextBlob"]
    theirs = of_tenant(face, EU)
    assert HOME[EU] != REGION
    for name in (Place(US, REGION).key_arn(FILES), f"alias/{MAIL}", Place(EU, REGION).key_arn("nothing")):
        assert refusal(theirs.encrypt, KeyId=name, Plaintext=b"x") == "NotFoundException"
        assert refusal(theirs.describe_key, KeyId=name) == "NotFoundException"
    assert refusal(theirs.decrypt, CiphertextBlob=blob) == "AccessDeniedException"
    assert refusal(theirs.disable_key, KeyId=Place(US, REGION).key_arn(FILES)) == "NotFoundException"
    assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == PLAIN


async def test_who_asks_is_really_checked(mesh: LiveMesh, face: Face, kms: Any) -> None:
    made = face.credential(US)
    good = settled(face.client(made))
    asked = {"KeyId": f"alias/{FILES}", "Plaintext": b"x"}
    assert good.encrypt(**asked)
    assert refusal(face.client(made, secret="x" * 40).encrypt, **asked) == "InvalidSignatureException"
    unknown = {**made, "access_key_id": "KMNOBODY"}
    assert refusal(face.client(unknown).encrypt, **asked) == "InvalidSignatureException"
    assert refusal(face.client(made, region="eu-west").encrypt, **asked) == "InvalidSignatureException"
    for off in (timedelta(minutes=6), timedelta(minutes=-6)):
        with patch("botocore.auth.get_current_datetime", lambda *_, off=off: datetime.now(UTC) + off):
            assert refusal(face.client(made, retries=1).encrypt, **asked) == "InvalidSignatureException"
    with patch("botocore.auth.get_current_datetime", lambda *_: datetime.now(UTC) - timedelta(minutes=4)):
        assert face.client(made).encrypt(**asked)
    assert refusal(good.disable_key, KeyId=asked["KeyId"]) == "AccessDeniedException"  # a user is no administrator
    stranger = botocore.session.get_session().create_client(
        "kms", endpoint_url=face.url, region_name=REGION, aws_access_key_id="A", aws_secret_access_key="B",
        config=Config(retries={"total_max_attempts": 1, "mode": "standard"}),
    )  # fmt: skip
    with pytest.raises(SSLError):  # the face's certificate is of its own CA, which a client must be given
        stranger.list_keys()


async def test_a_credential_for_one_service(mesh: LiveMesh, face: Face, kms: Any) -> None:
    narrow = of_tenant(face, US, "--service", FILES)
    others = kms.encrypt(KeyId=f"alias/{MAIL}", Plaintext=PLAIN)
    own = narrow.encrypt(KeyId=f"alias/{FILES}", Plaintext=PLAIN)
    assert narrow.decrypt(CiphertextBlob=own["CiphertextBlob"])["Plaintext"] == PLAIN
    assert refusal(narrow.encrypt, KeyId=f"alias/{MAIL}", Plaintext=b"x") == "AccessDeniedException"
    assert refusal(narrow.decrypt, CiphertextBlob=others["CiphertextBlob"]) == "AccessDeniedException"
    assert [key["KeyArn"] for key in narrow.list_keys()["Keys"]] == [Place(US, REGION).key_arn(FILES)]


async def test_a_removed_credential_ends(mesh: LiveMesh, face: Face, kms: Any) -> None:
    made = face.credential(US)
    client = settled(face.client(made))
    words = ("edge", "aws-credential", "remove", made["access_key_id"], "--file", str(face.where / "credentials.json"))
    assert keymesh(*words).returncode == 0

    async def ended() -> bool:
        try:
            client.generate_random(NumberOfBytes=1)
        except ClientError as no:
            return error(no) == "InvalidSignatureException"
        return False

    await until(ended, "the access key ending")
    assert kms.generate_random(NumberOfBytes=1)  # the others go on


async def test_the_life_of_a_key(mesh: LiveMesh, kms: Any) -> None:
    """Made, named, rotated, disabled, scheduled for deletion, and back; what it sealed opens through all of that."""
    made = kms.create_key(Description="orders", Tags=[{"TagKey": "team", "TagValue": "a"}])["KeyMetadata"]
    key = made["KeyId"]
    assert (made["KeyState"], made["MultiRegion"], made["Description"]) == ("Enabled", True, "orders")
    assert key in [one["KeyId"] for page in kms.get_paginator("list_keys").paginate() for one in page["Keys"]]
    kms.create_alias(AliasName="alias/app/orders", TargetKeyId=key)
    assert "alias/app/orders" in [alias["AliasName"] for alias in kms.list_aliases(KeyId=key)["Aliases"]]
    assert kms.list_resource_tags(KeyId=key)["Tags"] == [{"TagKey": "team", "TagValue": "a"}]
    assert kms.get_key_rotation_status(KeyId=key)["KeyRotationEnabled"] is False
    before = kms.encrypt(KeyId="alias/app/orders", Plaintext=PLAIN)["CiphertextBlob"]
    kms.rotate_key_on_demand(KeyId=key)
    after = kms.encrypt(KeyId=key, Plaintext=PLAIN)["CiphertextBlob"]

    def opens() -> bool:
        return all(kms.decrypt(CiphertextBlob=blob)["Plaintext"] == PLAIN for blob in (before, after))

    assert opens()
    kms.disable_key(KeyId=key)
    assert refusal(kms.decrypt, CiphertextBlob=before) == "DisabledException"
    assert kms.describe_key(KeyId=key)["KeyMetadata"]["KeyState"] == "Disabled"
    kms.enable_key(KeyId=key)
    assert opens()
    told = kms.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
    assert told["KeyState"] == "PendingDeletion"
    assert refusal(kms.decrypt, CiphertextBlob=before) == "KMSInvalidStateException"
    assert refusal(kms.enable_key, KeyId=key) == "KMSInvalidStateException"
    kms.cancel_key_deletion(KeyId=key)
    assert kms.describe_key(KeyId=key)["KeyMetadata"]["KeyState"] == "Disabled"
    kms.enable_key(KeyId=key)
    assert opens()
    replica = kms.replicate_key(KeyId=key, ReplicaRegion="us-west")["ReplicaKeyMetadata"]
    assert replica["Arn"] == made["Arn"].replace("us-east", "us-west")
    assert refusal(kms.replicate_key, KeyId=key, ReplicaRegion="eu-west") == "UnsupportedOperationException"


async def test_a_key_that_was_made_elsewhere_is_found(mesh: LiveMesh, kms: Any) -> None:
    await mesh.cli("service", "create", f"{US}/madeelsewhere")

    async def found() -> bool:
        try:
            return bool(kms.encrypt(KeyId="alias/madeelsewhere", Plaintext=b"x"))
        except ClientError as not_yet:
            assert error(not_yet) == "NotFoundException"
            return False

    await until(found, "the face holding the new service")


@pytest.mark.parametrize("scope", [f"tenant:{US}", f"region:{REGION}"])
async def test_the_kill_switch_in_the_middle_of_use(mesh: LiveMesh, kms: Any, scope: str) -> None:
    """Clients use a key while its tenant, or the region, is suspended: nothing is served from then on, until the
    resume."""
    approve = ("--approve-key", mesh.layout.keys / "officer-2.pem") if scope.startswith("region") else ()
    blob = kms.encrypt(KeyId=f"alias/{FILES}", Plaintext=PLAIN)["CiphertextBlob"]
    stop, said = asyncio.Event(), list[str]()

    def use() -> str:
        try:
            assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == PLAIN
        except ClientError as no:
            return error(no)
        return "opened"

    async def client() -> None:
        while not stop.is_set():
            said.append(await asyncio.to_thread(use))

    clients = [asyncio.create_task(client()) for _ in range(4)]
    await until(lambda: _true(said.count("opened") > 20), "clients at work")
    await mesh.cli("suspend", scope, *approve, "-o", mesh.layout.root.parent / "aws-suspend.json")
    at = len(said)  # certified: what began after this is refused
    await until(lambda: _true(len(said) > at + 20), "clients going on")
    stop.set()
    await asyncio.gather(*clients)
    late = said[at + len(clients) :]
    assert set(late) == {"DisabledException"}, set(late)
    assert set(said) <= {"opened", "DisabledException"}, set(said)
    await mesh.cli("resume", scope, *approve)
    await until(lambda: _true(use() == "opened"), "the key serving again")


async def _true(value: bool) -> bool:
    return value


async def test_a_cut_off_registry_keeps_no_key_from_use(mesh: LiveMesh, face: Face, kms: Any) -> None:
    made = face.credential(US)
    settled(face.client(made))
    impatient = face.client(made, retries=1)
    blob = kms.encrypt(KeyId=f"alias/{FILES}", Plaintext=PLAIN)["CiphertextBlob"]
    await mesh.hold("registry")
    assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == PLAIN
    assert kms.generate_data_key(KeyId=f"alias/{FILES}", KeySpec="AES_256")
    assert refusal(impatient.describe_key, KeyId=f"alias/{FILES}") == "KeyUnavailableException"
    mesh.release("registry")

    async def back() -> bool:
        try:
            return bool(await mesh.client.call("GET", "/v1/status", timeout_s=3))
        except Unavailable:
            return False

    await until(back, "the Registry answering again", within_s=120)


async def test_many_at_once_get_each_their_own(mesh: LiveMesh, kms: Any) -> None:
    def work(n: int) -> bool:
        context = {"n": str(n)}
        sealed = kms.encrypt(KeyId=f"alias/{FILES}", Plaintext=str(n).encode(), EncryptionContext=context)
        opened = kms.decrypt(CiphertextBlob=sealed["CiphertextBlob"], EncryptionContext=context)
        return bool(opened["Plaintext"] == str(n).encode())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(64)))


async def test_the_encryption_sdk(mesh: LiveMesh, face: Face, kms: Any, tmp_path: Path) -> None:
    """AWS's own envelope format: a file sealed and opened under a keymesh key; a changed byte, another context."""
    made = face.credential(US)
    settled(face.client(made))
    environment = {
        "AWS_ENDPOINT_URL_KMS": face.url,
        "AWS_CA_BUNDLE": str(face.ca),
        "AWS_ACCESS_KEY_ID": made["access_key_id"],
        "AWS_SECRET_ACCESS_KEY": made["secret_access_key"],
        "AWS_DEFAULT_REGION": REGION,
    }
    sealed_file, plain = tmp_path / "report.sealed", os.urandom(300_000)
    with patch.dict(os.environ, environment):
        client = aws_encryption_sdk.EncryptionSDKClient(
            commitment_policy=CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT
        )
        keys = aws_encryption_sdk.StrictAwsKmsMasterKeyProvider(key_ids=[Place(US, REGION).key_arn(FILES)])
        with client.stream(
            mode="e", source=io.BytesIO(plain), key_provider=keys, encryption_context=CONTEXT
        ) as sealing, sealed_file.open("wb") as file:  # fmt: skip
            for chunk in sealing:
                file.write(chunk)
        sealed = sealed_file.read_bytes()
        opened, header = client.decrypt(source=sealed, key_provider=keys)
        assert opened == plain
        assert CONTEXT.items() <= header.encryption_context.items()
        discovering = aws_encryption_sdk.DiscoveryAwsKmsMasterKeyProvider()
        assert client.decrypt(source=sealed, key_provider=discovering)[0] == plain
        other = aws_encryption_sdk.StrictAwsKmsMasterKeyProvider(key_ids=[Place(US, REGION).key_arn(MAIL)])
        with pytest.raises(AWSEncryptionSDKClientError):
            client.decrypt(source=sealed, key_provider=other)
        for at in (len(sealed) // 2, len(sealed) - 1):
            changed = sealed[:at] + bytes((sealed[at] ^ 1,)) + sealed[at + 1 :]
            with pytest.raises(Exception, match=r".*"):
                client.decrypt(source=changed, key_provider=keys)


async def test_what_is_watched(mesh: LiveMesh, face: Face, kms: Any) -> None:
    """Health, counters by the face's own words, and a log in which no body stands."""
    kms.encrypt(KeyId=f"alias/{FILES}", Plaintext=PLAIN)
    refusal(kms.encrypt, KeyId="alias/nothing", Plaintext=PLAIN)

    def get(path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{HEALTH}{path}") as answer:
            return bytes(answer.read())

    assert json.loads(get("/healthz")) == {"ok": True}
    assert b'keymesh_face_requests_total{face="aws-kms",operation="Encrypt",status="200"}' in get("/metrics")
    log = (face.where / "face.log").read_text()
    assert PLAIN.decode() not in log
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    refused = [line for line in lines if line.get("fields", {}).get("error") == "NotFoundException"]
    assert refused
    assert all(line["correlation_id"] and line["fields"]["tenant"] for line in refused)


async def test_a_face_that_comes_again_has_its_keys_and_names(
    mesh: LiveMesh, tmp_path_factory: pytest.TempPathFactory
) -> None:
    where = tmp_path_factory.mktemp("aws-again")
    made = Face(mesh.layout, where, 0).credential(US, "--role", "use", "--role", "admin")
    with face_process(mesh.layout, where) as first:
        client = first.client(made)
        client.create_alias(AliasName="alias/again", TargetKeyId=f"alias/{FILES}")
        blob = client.encrypt(KeyId="alias/again", Plaintext=PLAIN)["CiphertextBlob"]
    with face_process(mesh.layout, where, "--no-admin") as second:
        client = second.client(made)
        assert client.decrypt(CiphertextBlob=blob, KeyId="alias/again")["Plaintext"] == PLAIN
        assert refusal(client.create_key) == "UnsupportedOperationException"
        assert [key["KeyArn"] for key in client.list_keys()["Keys"]].count(Place(US, REGION).key_arn(FILES)) == 1
