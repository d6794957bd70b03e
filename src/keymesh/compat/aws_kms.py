"""AWS KMS's JSON API (``TrentService``) over a ring: who asks, for what, and the uses of keys.

A key of AWS is a service of a tenant, an account is a tenant; what a key is used for needs no network call.  What makes
and restricts keys is ``aws_manage``'s.  Source: AWS KMS's API reference, JSON protocol 1.1.

A request: 1. its claim is for us and of now; 2. its signature is right; 3. the operation is one that the credential's
roles allow; 4. its members are well formed; 5. its key is the tenant's, and one that the credential names.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from keymesh.compat import aws_shapes as shapes
from keymesh.compat.aws_blob import key_named, open_, seal
from keymesh.compat.aws_credentials import ADMIN, USE, Credential
from keymesh.compat.aws_errors import NO_SUCH_CIPHERTEXT_KEY, AwsError, denied, translated, validation
from keymesh.compat.aws_keys import AwsKeys
from keymesh.compat.aws_manage import Management
from keymesh.compat.aws_names import Place, key_bytes_of
from keymesh.compat.aws_records import Records
from keymesh.compat.aws_sigv4 import check_signature, read_claim
from keymesh.compat.face import FaceAnswer, FaceRequest
from keymesh.compat.ring import Ring
from keymesh.model.errors import KeymeshError, Refused

TARGET: Final = "TrentService."
CONTENT_TYPE: Final = "application/x-amz-json-1.1"
SYMMETRIC: Final = "SYMMETRIC_DEFAULT"
NAME_LOGGED_MAX: Final = 256
USES_MAX: Final = 256
"""Of one tenant under way; they wait only for a Core."""
MANAGING_MAX: Final = 16
DATA_KEY_BYTES: Final = {"AES_256": 32, "AES_128": 16}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who was authenticated, and the names that are valid for them."""

    credential: Credential
    place: Place


Answer = Mapping[str, Any]
Do = Callable[[Caller, Any], Awaitable[Answer]]


class AtOnce:
    """How many requests of one tenant may be under way: one that makes them wait takes no room from the others."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._under_way: dict[str, int] = {}

    @contextmanager
    def turn(self, tenant: str) -> Iterator[None]:
        """Raises AwsError."""
        count = self._under_way.get(tenant, 0)
        if count >= self._most:
            raise AwsError("ThrottlingException", f"at most {self._most} such requests of one account at a time")
        self._under_way[tenant] = count + 1
        try:
            yield
        finally:
            left = self._under_way.pop(tenant) - 1
            if left:
                self._under_way[tenant] = left


@dataclass(frozen=True, slots=True)
class Operation:
    """``roles``: any of them suffices.  ``notable``: a use goes into the Edge's usage report, the rest into the log."""

    shape: type[shapes.Asked]
    do: Do
    roles: frozenset[str]
    at_once: AtOnce
    notable: bool = True


class AwsKms:
    """The face.  ``credential_of`` an access key id; ``now_ms`` the wall clock; ``random`` fresh bytes."""

    name: Final = "aws-kms"
    body_max: Final = shapes.BODY_MAX

    def __init__(
        self,
        ring: Ring,
        records: Records,
        *,
        credential_of: Callable[[str], Credential | None],
        region: str,
        now_ms: Callable[[], int],
        random: Callable[[int], bytes],
    ) -> None:
        self._keys = AwsKeys(ring, records)
        self._credential_of = credential_of
        self._region = region
        self._now_ms = now_ms
        self._random = random
        use, either = frozenset({USE}), frozenset({USE, ADMIN})
        uses, managing = AtOnce(USES_MAX), AtOnce(MANAGING_MAX)
        self._operations: Final[dict[str, Operation]] = {
            name: Operation(shape, do, roles, uses, notable=False)
            for name, shape, do, roles in (
                ("Encrypt", shapes.Encrypt, self._encrypt, use),
                ("Decrypt", shapes.Decrypt, self._decrypt, use),
                ("ReEncrypt", shapes.ReEncrypt, self._re_encrypt, use),
                ("GenerateDataKey", shapes.GenerateDataKey, self._data_key, use),
                ("GenerateDataKeyWithoutPlaintext", shapes.GenerateDataKey, self._data_key_sealed, use),
                ("GenerateRandom", shapes.GenerateRandom, self._generate_random, either),
            )
        }
        management = Management(ring, self._keys, records, now_ms=now_ms, random=random)
        for name, (shape, do, is_read) in management.operations().items():
            roles = either if is_read else frozenset({ADMIN})
            self._operations[name] = Operation(shape, _with_caller(do), roles, managing, notable=not is_read)

    @property
    def operations(self) -> tuple[str, ...]:
        return tuple(self._operations)

    async def answer(self, request: FaceRequest) -> FaceAnswer:
        """Raises nothing but bugs."""
        name, said = "", dict[str, str]()
        notable = True
        try:
            name, operation = self._operation(request)
            caller = self._caller(request)
            said = {"access_key_id": caller.credential.access_key_id, "tenant": caller.credential.tenant}
            notable = operation.notable
            if not operation.roles & caller.credential.roles:
                raise denied(f"this access key may not call {name}")
            try:
                asked = shapes.read(request.body, operation.shape)
                said |= _named_in(asked)
                with operation.at_once.turn(caller.place.tenant):
                    found = await operation.do(caller, asked)
            except KeymeshError as error:
                raise translated(error) from error
            if arn := found.get("KeyId") or found.get("KeyMetadata", {}).get("Arn"):
                said["key"] = str(arn)
        except AwsError as error:
            return self._failed(error, request.correlation_id, name, said)
        return FaceAnswer(
            status=200,
            body=encoded(found),
            content_type=CONTENT_TYPE,
            headers=(("x-amzn-RequestId", request.correlation_id),),
            operation=name,
            said=said,
            notable=notable,
        )

    def refuse(self, status: int, code: str, message: str) -> FaceAnswer:
        name = {429: "ThrottlingException", 500: "KMSInternalException", 503: "ServiceUnavailableException"}
        body = encoded({"__type": name.get(status, "SerializationException"), "message": message})
        return FaceAnswer(status=status, body=body, content_type=CONTENT_TYPE)

    def _failed(self, error: AwsError, request_id: str, name: str, said: dict[str, str]) -> FaceAnswer:
        return FaceAnswer(
            status=error.status,
            body=encoded({"__type": error.name, "message": error.message}),
            content_type=CONTENT_TYPE,
            headers=(("x-amzn-RequestId", request_id), ("x-amzn-ErrorType", error.name)),
            operation=name,
            said={**said, "error": error.name},
        )

    # --- who asks for what -----------------------------------------------------------------------------------------

    def _operation(self, request: FaceRequest) -> tuple[str, Operation]:
        unknown = AwsError("UnknownOperationException", "POST / with X-Amz-Target: TrentService.<operation>")
        try:
            target = request.header("x-amz-target")
        except Refused as twice:
            raise unknown from twice
        if request.method != "POST" or request.path != "/" or request.query or target is None:
            raise unknown
        name = target.removeprefix(TARGET)
        if not target.startswith(TARGET) or name not in self._operations:
            raise unknown
        return name, self._operations[name]

    def _caller(self, request: FaceRequest) -> Caller:
        """One answer for an access key that does not exist and for a wrong secret."""
        claim = read_claim(request, now_ms=self._now_ms(), region=self._region, service="kms")
        credential = self._credential_of(claim.access_key_id)
        if not check_signature(request, claim, None if credential is None else credential.secret):
            raise AwsError(
                "InvalidSignatureException",
                "the request signature does not match: check the access key id, the secret, and how it was signed",
            )
        assert credential is not None
        return Caller(credential, Place(credential.tenant, self._region))

    # --- uses ------------------------------------------------------------------------------------------------------

    async def _named(self, caller: Caller, given: str) -> str:
        return await self._keys.named(caller.credential, caller.place, given)

    async def _seal(self, caller: Caller, service: str, context: Mapping[str, str], plaintext: bytes) -> bytes:
        key = key_bytes_of(caller.place.tenant, service)
        with self._keys.use(caller.place, service) as keys:
            return await seal(keys, key, context, plaintext, self._random)

    async def _open(
        self, caller: Caller, blob: bytes, context: Mapping[str, str], named: str | None, *, dry_run: bool
    ) -> tuple[str, bytes]:
        """(service, plaintext).  A key that is not the caller's to use looks like one that does not exist."""
        key = key_named(blob)
        meant = None if named is None else await self._named(caller, named)
        service = await self._keys.by_bytes(caller.place.tenant, key)
        if service is None or not caller.credential.may_see(service):
            raise denied(NO_SUCH_CIPHERTEXT_KEY)
        if meant is not None and meant != service:
            raise AwsError("IncorrectKeyException", "the ciphertext was not made under that key")
        if dry_run:
            raise AwsError("DryRunOperationException", "the request would have succeeded, but DryRun is set")
        with self._keys.use(caller.place, service) as keys:
            return service, await open_(keys, key, context, blob)

    async def _encrypt(self, caller: Caller, asked: shapes.Encrypt) -> Answer:
        _check_algorithms(asked.encryption_algorithm)
        service = await self._named(caller, asked.key_id)
        _check_dry_run(asked.dry_run)
        blob = await self._seal(caller, service, asked.encryption_context, asked.plaintext)
        return {"CiphertextBlob": blob, "KeyId": caller.place.key_arn(service), "EncryptionAlgorithm": SYMMETRIC}

    async def _decrypt(self, caller: Caller, asked: shapes.Decrypt) -> Answer:
        _check_algorithms(asked.encryption_algorithm)
        service, plaintext = await self._open(
            caller, asked.ciphertext_blob, asked.encryption_context, asked.key_id, dry_run=asked.dry_run
        )
        return {"Plaintext": plaintext, "KeyId": caller.place.key_arn(service), "EncryptionAlgorithm": SYMMETRIC}

    async def _re_encrypt(self, caller: Caller, asked: shapes.ReEncrypt) -> Answer:
        _check_algorithms(asked.source_encryption_algorithm, asked.destination_encryption_algorithm)
        after = await self._named(caller, asked.destination_key_id)
        before, plaintext = await self._open(
            caller, asked.ciphertext_blob, asked.source_encryption_context, asked.source_key_id, dry_run=asked.dry_run
        )
        blob = await self._seal(caller, after, asked.destination_encryption_context, plaintext)
        return {
            "CiphertextBlob": blob,
            "SourceKeyId": caller.place.key_arn(before),
            "KeyId": caller.place.key_arn(after),
            "SourceEncryptionAlgorithm": SYMMETRIC,
            "DestinationEncryptionAlgorithm": SYMMETRIC,
        }

    async def _data_key(self, caller: Caller, asked: shapes.GenerateDataKey) -> Answer:
        if (asked.key_spec is None) == (asked.number_of_bytes is None):
            raise validation("give one of KeySpec and NumberOfBytes")
        if asked.key_spec is not None and asked.key_spec not in DATA_KEY_BYTES:
            raise validation(f"KeySpec is one of {', '.join(DATA_KEY_BYTES)}")
        service = await self._named(caller, asked.key_id)
        _check_dry_run(asked.dry_run)
        size = DATA_KEY_BYTES[asked.key_spec] if asked.key_spec is not None else asked.number_of_bytes or 0
        plaintext = self._random(size)
        blob = await self._seal(caller, service, asked.encryption_context, plaintext)
        return {"CiphertextBlob": blob, "Plaintext": plaintext, "KeyId": caller.place.key_arn(service)}

    async def _data_key_sealed(self, caller: Caller, asked: shapes.GenerateDataKey) -> Answer:
        made = dict(await self._data_key(caller, asked))
        del made["Plaintext"]
        return made

    async def _generate_random(self, caller: Caller, asked: shapes.GenerateRandom) -> Answer:
        return {"Plaintext": self._random(asked.number_of_bytes)}


def _named_in(asked: shapes.Asked) -> dict[str, str]:
    """The names in a request, for the log."""
    given = ((name, getattr(asked, name, None)) for name in ("key_id", "target_key_id", "alias_name"))
    return {name: value[:NAME_LOGGED_MAX] for name, value in given if value is not None}


def _with_caller(do: Callable[[Credential, Place, Any], Awaitable[Answer]]) -> Do:
    async def call(caller: Caller, asked: Any) -> Answer:
        return await do(caller.credential, caller.place, asked)

    return call


def _check_algorithms(*given: str) -> None:
    if any(algorithm != SYMMETRIC for algorithm in given):
        raise AwsError("InvalidKeyUsageException", f"only {SYMMETRIC} is served")


def _check_dry_run(asked: bool) -> None:
    if asked:
        raise AwsError("DryRunOperationException", "the request would have succeeded, but DryRun is set")


def encoded(answer: Answer) -> bytes:
    """JSON with bytes in base64."""

    def text(value: Any) -> str:
        assert isinstance(value, bytes)
        return base64.b64encode(value).decode("ascii")

    return json.dumps(answer, default=text, separators=(",", ":")).encode()
