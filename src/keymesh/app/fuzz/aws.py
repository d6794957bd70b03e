"""Fuzz target ``aws``: the AWS face, fed requests that are signed as they should be, then spoilt, or spoilt and signed.

What comes back must be JSON of a documented status and error; what opens must be what was sealed.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import Mapping
from typing import Any, Final

from keymesh.app.fuzz.bytes import spoil
from keymesh.app.fuzz.ring import MemoryRing
from keymesh.app.fuzz.target import Fault
from keymesh.compat.aws_credentials import Credential
from keymesh.compat.aws_kms import AwsKms
from keymesh.compat.aws_names import Place, key_id_of
from keymesh.compat.aws_records import KeyRecord
from keymesh.compat.aws_sigv4 import ALGORITHM, Claim, sign
from keymesh.compat.face import FaceRequest

NOW_MS: Final = 1_796_000_000_000
DATE: Final = "20261130T005320Z"  # the same instant
REGION: Final = "us-east"
TENANT: Final = "acme"
SECRET: Final = "s" * 40
PLAIN: Final = b"attack at dawn"
CONTEXT: Final = {"table": "orders"}
SERVICES_MAX: Final = 40
"""Then a new bed: what a client may make is not what grows here."""
_STATUSES: Final = (200, 400, 412)
_NO_SUCH_VERSION: Final = "KeyUnavailableException"


class MemoryRecords:
    """``compat.aws_records.Records``, gone with the process."""

    def __init__(self) -> None:
        self._keys: dict[tuple[str, str], KeyRecord] = {}
        self._aliases: dict[str, dict[str, str]] = {}

    def key(self, tenant: str, service: str) -> KeyRecord:
        return self._keys.get((tenant, service), KeyRecord())

    def aliases(self, tenant: str) -> Mapping[str, str]:
        return self._aliases.get(tenant, {})

    async def put_key(self, tenant: str, service: str, record: KeyRecord) -> None:
        self._keys[tenant, service] = record

    async def put_alias(self, tenant: str, alias: str, service: str | None) -> None:
        names = self._aliases.setdefault(tenant, {})
        names.pop(alias, None)
        if service is not None:
            names[alias] = service


class AwsTarget:
    """Each input is one request: a line of method and target, header lines, an empty line, the body."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._random = random.Random(0)
        self._begin()
        self._sealed = self._seal()
        files = key_id_of(TENANT, "files")
        blob = base64.b64encode(self._sealed).decode()
        key = {"KeyId": files}
        self._bodies: Final[dict[str, dict[str, Any]]] = {name: dict(key) for name in self._face.operations} | {
            "Encrypt": {**key, "Plaintext": "aGVsbG8=", "EncryptionContext": CONTEXT},
            "Decrypt": {"CiphertextBlob": blob, "EncryptionContext": CONTEXT},
            "ReEncrypt": {
                "CiphertextBlob": blob,
                "SourceEncryptionContext": CONTEXT,
                "DestinationKeyId": "alias/mail",
            },
            "GenerateDataKey": {**key, "KeySpec": "AES_256", "GrantTokens": ["t"]},
            "GenerateDataKeyWithoutPlaintext": {"KeyId": Place(TENANT, REGION).key_arn("files"), "NumberOfBytes": 64},
            "GenerateRandom": {"NumberOfBytes": 32},
            "CreateKey": {"Description": "d", "Tags": [{"TagKey": "a", "TagValue": "b"}]},
            "ListKeys": {"Limit": 2, "Marker": "m"},
            "ListAliases": {"Limit": 10},
            "CreateAlias": {"AliasName": "alias/app", "TargetKeyId": files},
            "UpdateAlias": {"AliasName": "alias/app", "TargetKeyId": "alias/mail"},
            "DeleteAlias": {"AliasName": "alias/app"},
            "ScheduleKeyDeletion": {**key, "PendingWindowInDays": 7},
            "ReplicateKey": {**key, "ReplicaRegion": "us-west"},
            "TagResource": {**key, "Tags": [{"TagKey": "a", "TagValue": "b"}]},
            "UntagResource": {**key, "TagKeys": ["a"]},
        }

    def _begin(self) -> None:
        self._ring = MemoryRing((TENANT, "files"), (TENANT, "mail"), ("zebra", "ledger"))
        known = Credential(
            access_key_id="KM", secret=SECRET, tenant=TENANT, services=None, roles=frozenset({"use", "admin"})
        )
        self._face = AwsKms(
            self._ring,
            MemoryRecords(),
            credential_of={"KM": known}.get,
            region=REGION,
            now_ms=lambda: NOW_MS,
            random=self._random.randbytes,
        )

    def _seal(self) -> bytes:
        asked = {"KeyId": "alias/files", "Plaintext": base64.b64encode(PLAIN).decode(), "EncryptionContext": CONTEXT}
        answer = self._answer(request_of(signed("Encrypt", json.dumps(asked).encode())))
        return base64.b64decode(json.loads(answer)["CiphertextBlob"])

    # --- what is fed -----------------------------------------------------------------------------------------------

    def make(self, rng: random.Random) -> bytes:
        name = rng.choice(sorted(self._bodies))
        body = json.dumps(self._bodies[name]).encode()
        match rng.randrange(8):
            case 0:
                return signed(name, body)
            case 1:  # spoilt on the way
                return spoil(rng, signed(name, body))
            case 2:  # another operation's body
                return signed(name, json.dumps(self._bodies[rng.choice(sorted(self._bodies))]).encode())
            case 3 | 4:  # by a client that signs nonsense
                return signed(name, spoil(rng, body))
            case 5:
                return signed(name, json.dumps(_changed(rng, self._bodies[name])).encode())
            case 6:  # a ciphertext that was changed
                blob = base64.b64encode(spoil(rng, self._sealed)).decode()
                return signed("Decrypt", json.dumps({"CiphertextBlob": blob, "EncryptionContext": CONTEXT}).encode())
            case _:
                return signed(spoil(rng, name.encode()).decode("latin-1"), body, rng.choice((DATE, "2026", "é", "")))

    # --- what it is fed to -----------------------------------------------------------------------------------------

    def run(self, data: bytes) -> None:
        if len(self._ring.services(TENANT)) > SERVICES_MAX:
            self._begin()
        for keys in self._ring.held.values():
            keys.why = None
        request = request_of(data)
        said = json.loads(self._answer(request))
        if "Plaintext" in said and "EncryptionAlgorithm" in said and said["Plaintext"] != _PLAIN_TEXT:
            raise Fault("a ciphertext opened to something that nobody sealed")

    def _answer(self, request: FaceRequest) -> bytes:
        answer = self._loop.run_until_complete(self._face.answer(request))
        error = answer.said.get("error", "")
        if answer.status not in _STATUSES and error != _NO_SUCH_VERSION:
            raise Fault(f"status {answer.status} {error}")
        if not isinstance(json.loads(answer.body), dict):
            raise Fault("an answer that is no JSON object")
        if SECRET.encode() in answer.body or SECRET in str(answer.said):
            raise Fault("an answer with the secret in it")
        return answer.body


_PLAIN_TEXT: Final = base64.b64encode(PLAIN).decode()


def signed(operation: str, body: bytes, date: str = DATE) -> bytes:
    """A request for ``operation`` with its signature, in the form of an input."""
    headers = {"host": "kms", "x-amz-date": date, "x-amz-target": f"TrentService.{operation}"}
    claim = Claim("KM", date[:8], REGION, "kms", tuple(sorted(headers)), "")
    unsigned = FaceRequest(
        method="POST", path="/", query="", headers=tuple(headers.items()), body=body, peer="", correlation_id="c"
    )
    signature = sign(unsigned, claim, SECRET)
    headers["authorization"] = (
        f"{ALGORITHM} Credential=KM/{claim.scope}, SignedHeaders={';'.join(claim.signed_headers)}, "
        f"Signature={signature}"
    )
    lines = "".join(f"{name}: {value}\n" for name, value in headers.items())
    return f"POST /\n{lines}\n".encode("latin-1", "replace") + body


def request_of(data: bytes) -> FaceRequest:
    """As the wire would bring it: whatever bytes, as text that cannot fail."""
    head, _, body = data.partition(b"\n\n")
    first, *lines = head.decode("latin-1").split("\n")
    method, _, target = first.partition(" ")
    path, _, query = target.partition("?")
    pairs = (line.partition(":") for line in lines)
    headers = tuple((name.strip().lower(), value.strip(" \t")) for name, _, value in pairs)
    return FaceRequest(method=method, path=path, query=query, headers=headers, body=body, peer="", correlation_id="c")


def _changed(rng: random.Random, members: Mapping[str, Any]) -> dict[str, Any]:
    """With one member taken away, added, or of another kind or size."""
    changed = dict(members)
    name = rng.choice(sorted(changed) or ["KeyId"])
    values: tuple[Any, ...] = (
        None,
        0,
        -1,
        2**63,
        "",
        "x" * 10_000,
        "alias/" + "a" * 300,
        [],
        {},
        [{}],
        True,
        {"a": {"b": "c"}},
        "\ud800",
    )
    match rng.randrange(3):
        case 0:
            changed.pop(name, None)
        case 1:
            changed[name] = rng.choice(values)
        case _:
            other = rng.choice(("KeyId", "DryRun", "Limit", "Marker", "NumberOfBytes", "Recipient", "Policy", "Tags"))
            changed[other] = rng.choice(values)
    return changed
