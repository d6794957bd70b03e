"""The customer's root key as a transit key of their OpenBao: ``core.l1.L1Provider``.

Decides which of OpenBao's answers are a *no* of the customer (``L1Denied``: permission, login, key or key version
withdrawn) and that sealed, throttled, standing by or garbled ones are silence (``L1Unreachable``).

``wrap(e)`` is ``0x01 || key id 16 || transit ciphertext (ASCII)``.  The key id is SHA-256(``"keymesh/openbao-l1/1" ||
lp(key)``)[:16], so that a wrap under another key is noticed here; the label and name are the associated data too.

The token needs ``update`` on ``<mount>/encrypt/<key>`` and ``<mount>/decrypt/<key>`` and ``read`` on
``<mount>/keys/<key>``.  Not ``create``: with it, encrypting under a deleted key would make a new one; ``wrap`` looks
first, so that it does not happen even so.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from typing import Any, Final, NoReturn, TypeVar

import msgspec

from keymesh.adapters.openbao import BaoRefused, OpenBao, Why, check_mount, check_name, shaped
from keymesh.core.l1 import PLAIN_MAX_BYTES, WRAPPED_MAX_BYTES, L1Denied, L1Unreachable
from keymesh.crypto.aad import lp
from keymesh.model.errors import Integrity, Refused, Unavailable

WRAPPED_VERSION: Final = b"\x01"
KEY_ID_BYTES: Final = 16
AEAD_TYPES: Final = frozenset({"aes128-gcm96", "aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305"})
_LABEL: Final = b"keymesh/openbao-l1/1"
_CIPHERTEXT: Final = re.compile(rb"vault:v[1-9][0-9]{0,9}:[A-Za-z0-9+/]+={0,2}")
_A_CLEAR_NO: Final = frozenset(
    {Why.DENIED, Why.LOGIN, Why.NO_MOUNT, Why.NO_KEY, Why.KEY_DELETED, Why.VERSION_WITHDRAWN, Why.ABSENT}
)

T = TypeVar("T")


class _Key(msgspec.Struct, frozen=True):
    type: str
    soft_deleted: bool = False
    derived: bool = False


class _Encrypted(msgspec.Struct, frozen=True):
    ciphertext: str


class _Decrypted(msgspec.Struct, frozen=True):
    plaintext: str


class OpenBaoL1:
    """One transit key; ``close`` closes the client too."""

    def __init__(self, bao: OpenBao, *, mount: str, key: str) -> None:
        self._bao: Final = bao
        self._mount: Final = check_mount("mount", mount)
        self._key: Final = check_name("key", key)
        bound = _LABEL + lp(key.encode())
        self._head: Final = WRAPPED_VERSION + hashlib.sha256(bound).digest()[:KEY_ID_BYTES]
        self._aad: Final = base64.b64encode(bound).decode()

    async def wrap(self, e: bytes) -> bytes:
        """See ``L1Provider``.  Raises Refused where the key is of a kind that binds no associated data."""
        if not 0 < len(e) <= PLAIN_MAX_BYTES:
            raise Refused.bad_field("e", f"1..{PLAIN_MAX_BYTES} bytes")
        await self.check_key()
        body = {"plaintext": base64.b64encode(e).decode(), "associated_data": self._aad}
        sealed = _shaped(await self._call("POST", f"{self._mount}/encrypt/{self._key}", body), _Encrypted)
        wrapped = self._head + sealed.ciphertext.encode("utf-8", "replace")
        if len(wrapped) > WRAPPED_MAX_BYTES or not _CIPHERTEXT.fullmatch(wrapped[len(self._head) :]):
            raise _something_else()
        return wrapped

    async def unwrap(self, wrapped: bytes) -> bytes:
        """See ``L1Provider``."""
        head, ciphertext = wrapped[: len(self._head)], wrapped[len(self._head) :]
        if len(wrapped) > WRAPPED_MAX_BYTES or not hmac.compare_digest(head, self._head):
            raise Integrity.opaque()
        if not _CIPHERTEXT.fullmatch(ciphertext):
            raise Integrity.opaque()
        body = {"ciphertext": ciphertext.decode("ascii"), "associated_data": self._aad}
        opened = _shaped(await self._call("POST", f"{self._mount}/decrypt/{self._key}", body), _Decrypted)
        try:
            plain = base64.b64decode(opened.plaintext, validate=True)
        except (binascii.Error, ValueError):
            raise _something_else() from None
        if not 0 < len(plain) <= PLAIN_MAX_BYTES:
            raise _something_else()
        return plain

    async def check_key(self) -> None:
        """That the key is there and can serve as L1.  Raises L1Denied, L1Unreachable, Refused naming ``key``."""
        key = _shaped(await self._call("GET", f"{self._mount}/keys/{self._key}"), _Key)
        if key.soft_deleted:
            raise L1Denied(Why.KEY_DELETED.value, "the customer's key is deleted")
        if key.type not in AEAD_TYPES or key.derived:
            raise Refused.bad_field("key", f"a transit key of type {', '.join(sorted(AEAD_TYPES))}, not derived")

    async def close(self) -> None:
        await self._bao.close()

    async def _call(self, method: str, path: str, body: Any = None) -> Any:
        try:
            return await self._bao.call(method, path, body)
        except BaoRefused as refused:
            _raise_no(refused)
        except Unavailable as away:
            raise L1Unreachable(away.code, away.message, retry_after_ms=away.retry_after_ms) from None


def _raise_no(refused: BaoRefused) -> NoReturn:
    if refused.why is Why.NOT_OPENED:
        raise Integrity.opaque() from None
    if refused.why in _A_CLEAR_NO:
        raise L1Denied(refused.code, refused.message) from None
    raise L1Unreachable("kms-answer", "OpenBao could not make sense of the call") from None


def _shaped(data: Any, shape: type[T]) -> T:
    """As ``openbao.shaped``, in the port's words."""
    try:
        return shaped(data, shape)
    except Unavailable:
        raise _something_else() from None


def _something_else() -> L1Unreachable:
    return L1Unreachable("kms-answer", "OpenBao answered something else")
