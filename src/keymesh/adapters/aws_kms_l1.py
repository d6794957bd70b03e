"""The customer's root key in AWS KMS, through boto3: ``core.l1.L1Provider``.

Decides which of AWS's answers are a *no* of the customer (``L1Denied``: access denied, key disabled, deleted or
pending deletion, access key withdrawn) and that throttled, expired, unreachable or garbled ones are silence
(``L1Unreachable``).

``wrap(e)`` is ``0x01 || key id 16 || CiphertextBlob``.  The key id is SHA-256(``"keymesh/aws-l1/1" || lp(key)``)[:16],
with the part of the ARN that all replicas of a multi-region key share, so that one replica opens what another wrapped
and a wrap under another key is noticed here.  The encryption context names the tenant and the binding.

boto3 blocks, so it works in threads of its own.  ``e`` passes through its buffers on the way, which nobody wipes.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NoReturn

from keymesh.core.l1 import PLAIN_MAX_BYTES, WRAPPED_MAX_BYTES, L1Denied, L1Unreachable
from keymesh.crypto.aad import lp
from keymesh.model.errors import Integrity, Refused

WRAPPED_VERSION: Final = b"\x01"
KEY_ID_BYTES: Final = 16
THREADS: Final = 4
"""Calls at a time; the Core's budget keeps those that wait few."""
CONNECT_S, READ_S = 3, 5
THROTTLED: Final = "throttled"
MISSING: Final = "AWS KMS as a root key needs what `pip install 'keymesh[full]'` installs"

_LABEL: Final = b"keymesh/aws-l1/1"
_A_CLEAR_NO: Final = {
    "AccessDeniedException": "access-denied",
    "DisabledException": "key-disabled",
    "KMSInvalidStateException": "key-state",
    "NotFoundException": "no-key",
    "UnrecognizedClientException": "access-key",
}
_NOT_OPENED: Final = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})
_THROTTLED: Final = frozenset({"ThrottlingException", "LimitExceededException", "RequestLimitExceeded"})


class AwsKmsL1:
    """One key in one region.

    ``make`` gives boto3's client, in a thread: at the first use, and again once ``stamp`` gives something else, which
    says what the client was made from.
    """

    def __init__(
        self, make: Callable[[], Any], *, stamp: Callable[[], object], arn: str, tenant: str, binding: str
    ) -> None:
        self._make: Final = make
        self._stamp: Final = stamp
        self._made_from: object = None
        self._arn: Final = arn
        bound = _LABEL + lp(arn.rpartition("/")[2].encode())
        self._head: Final = WRAPPED_VERSION + hashlib.sha256(bound).digest()[:KEY_ID_BYTES]
        self._context: Final = {"keymesh": "l1", "tenant": tenant, "binding": binding}
        self._threads: Final = ThreadPoolExecutor(THREADS, thread_name_prefix="aws-kms")
        self._client: Any = None
        self._making: Final = asyncio.Lock()

    async def wrap(self, e: bytes) -> bytes:
        """See ``L1Provider``."""
        if not 0 < len(e) <= PLAIN_MAX_BYTES:
            raise Refused.bad_field("e", f"1..{PLAIN_MAX_BYTES} bytes")
        answer = await self._call("encrypt", KeyId=self._arn, Plaintext=e, EncryptionContext=self._context)
        blob = answer.get("CiphertextBlob")
        if not isinstance(blob, bytes) or not 0 < len(blob) <= WRAPPED_MAX_BYTES - len(self._head):
            raise _something_else()
        return self._head + blob

    async def unwrap(self, wrapped: bytes) -> bytes:
        """See ``L1Provider``."""
        head, blob = wrapped[: len(self._head)], wrapped[len(self._head) :]
        if len(wrapped) > WRAPPED_MAX_BYTES or not blob or not hmac.compare_digest(head, self._head):
            raise Integrity.opaque()
        answer = await self._call("decrypt", KeyId=self._arn, CiphertextBlob=blob, EncryptionContext=self._context)
        plain = answer.get("Plaintext")
        if not isinstance(plain, bytes) or not 0 < len(plain) <= PLAIN_MAX_BYTES:
            raise _something_else()
        return plain

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            self._client.close()

    async def _call(self, operation: str, **members: Any) -> dict[str, Any]:
        """Raises L1Denied, L1Unreachable, Integrity."""
        loop = asyncio.get_running_loop()
        async with self._making:
            if self._client is None or self._stamp() != self._made_from:
                self._made_from = self._stamp()
                before, self._client = self._client, None  # by what was taken away nobody goes on
                if before is not None:
                    before.close()
                self._client = await loop.run_in_executor(self._threads, _guarded, self._make)
        call = getattr(self._client, operation)
        answer: dict[str, Any] = await loop.run_in_executor(self._threads, _guarded, lambda: call(**members))
        return answer


def _guarded(work: Callable[[], Any]) -> Any:
    """What ``work`` gives; botocore's errors in the port's words."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return work()
    except ClientError as said:
        _raise_no(said)
    except (BotoCoreError, OSError, ValueError) as failed:  # no connection, answer, credentials; its text names files
        raise L1Unreachable("unreachable", f"AWS KMS was not reached ({type(failed).__name__})") from None


def _raise_no(said: Any) -> NoReturn:
    name = str(said.response.get("Error", {}).get("Code", ""))[:64]
    if name in _NOT_OPENED:
        raise Integrity.opaque() from None
    if name in _A_CLEAR_NO:
        raise L1Denied(_A_CLEAR_NO[name], f"AWS KMS: {name}") from None
    if name in _THROTTLED:
        raise L1Unreachable(THROTTLED, f"AWS KMS: {name}") from None
    raise L1Unreachable("kms-answer", f"AWS KMS: {name or 'no name'}") from None


def _something_else() -> L1Unreachable:
    return L1Unreachable("kms-answer", "AWS KMS answered something else")
