"""A root key in a PKCS#11 token: ``core.l1.L1Provider``, as a customer's L1 and as a MasterKey's seal.

Decides which failures are a *no* (``L1Denied``: PIN refused, key gone, use taken away) and that all else is silence
(``L1Unreachable``): token or library missing, no sessions, a device error, a deadline, a PIN file that cannot be read.

``wrap(e)`` is ``0x01 || key id 16 || the token's wrap`` (``pkcs11_token``).  The key id is SHA-256(
``"keymesh/pkcs11-l1/1" || lp(label)``)[:16]; label and name are the associated data too.  The token's own name is not
in it: a key that the customer has cloned to another token is the same key.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Final, NoReturn

from keymesh.adapters.pkcs11_messages import MakeKey, Request, Unwrap, Why, Wrap
from keymesh.adapters.pkcs11_process import TokenProcess, TokenSaid
from keymesh.core.l1 import PLAIN_MAX_BYTES, WRAPPED_MAX_BYTES, L1Denied, L1Unreachable
from keymesh.crypto.aad import lp
from keymesh.model.errors import Integrity, Refused, Unavailable

WRAPPED_VERSION: Final = b"\x01"
KEY_ID_BYTES: Final = 16
MECHANISMS: Final = (1, 2, 3)
_LABEL: Final = b"keymesh/pkcs11-l1/1"
_A_CLEAR_NO: Final = frozenset({Why.PIN, Why.NO_KEY, Why.NOT_PERMITTED})
_WORDS: Final = {
    Why.LIBRARY: "the PKCS#11 library cannot be loaded",
    Why.TOKEN: "no such token here, or several",
    Why.PIN: "the token does not take the PIN",
    Why.NO_KEY: "the token has no such key",
    Why.AMBIGUOUS: "the token has several keys of that label",
    Why.NOT_PERMITTED: "the key may not be used so",
    Why.SESSIONS: "the token has no more sessions",
    Why.DEVICE: "the token failed",
}


class Pkcs11L1:
    """One key of the token that ``find`` finds, which raises L1Unreachable; ``close`` leaves its process to others."""

    def __init__(self, find: Callable[[], TokenProcess], key: str) -> None:
        self._find: Final = find
        self._key: Final = key
        self._aad: Final = _LABEL + lp(key.encode())
        self._head: Final = WRAPPED_VERSION + hashlib.sha256(self._aad).digest()[:KEY_ID_BYTES]

    async def wrap(self, e: bytes) -> bytes:
        """See ``L1Provider``.  Raises Refused where the key could leave the token, or is of no use here."""
        if not 0 < len(e) <= PLAIN_MAX_BYTES:
            raise Refused.bad_field("e", f"1..{PLAIN_MAX_BYTES} bytes")
        wrapped = self._head + await self._call(Wrap(key=self._key, plain=e, aad=self._aad))
        if len(wrapped) > WRAPPED_MAX_BYTES:
            raise L1Unreachable("kms-answer", "the token answered something else")
        return wrapped

    async def unwrap(self, wrapped: bytes) -> bytes:
        """See ``L1Provider``."""
        head, inner = wrapped[: len(self._head)], wrapped[len(self._head) :]
        if len(wrapped) > WRAPPED_MAX_BYTES or not hmac.compare_digest(head, self._head):
            raise Integrity.opaque()
        if not inner or inner[0] not in MECHANISMS:
            raise Integrity.opaque()
        plain = await self._call(Unwrap(key=self._key, wrapped=inner, aad=self._aad))
        if not 0 < len(plain) <= PLAIN_MAX_BYTES:
            raise L1Unreachable("kms-answer", "the token answered something else")
        return plain

    async def make_key(self) -> None:
        """A new key of that label in the token.  Raises L1Denied where there is one."""
        await self._call(MakeKey(key=self._key))

    async def close(self) -> None:
        """Nothing of its own to close."""

    async def _call(self, request: Request) -> bytes:
        try:
            return await self._find().call(request)
        except TokenSaid as said:
            _raise(said)
        except L1Unreachable:
            raise
        except Unavailable as silent:
            raise L1Unreachable(silent.code, silent.message, retry_after_ms=silent.retry_after_ms) from None


def _raise(said: TokenSaid) -> NoReturn:
    if said.why is Why.BLOB:
        raise Integrity.opaque() from None
    if said.why is Why.UNFIT:
        raise Refused.bad_field("key", said.detail) from None
    code, words = f"pkcs11-{said.why.value}", f"{_WORDS[said.why]} ({said.detail})"
    if said.why in _A_CLEAR_NO:
        raise L1Denied(code, words) from None
    raise L1Unreachable(code, words) from None
