"""One PKCS#11 token through python-pkcs11: blocking calls on one session, for ``pkcs11_worker`` alone.

Decides which mechanism wraps and how the library's errors are told apart (``Why``); not what they mean to a tenant.
A wrap is ``mechanism 1 || ...``: ``01``: AES-GCM, ``iv 12 || ciphertext || tag 16``, the context as associated data;
``02``: CKM_AES_KEY_WRAP_PAD and ``03``: CKM_AES_KEY_WRAP_KWP (both RFC 5649 where the library keeps to the standard),
for tokens without GCM: of ``length 1 || bytes || zeros`` to a multiple of 8, since libraries differ in whether they
take their own padding off again.  These bind no context, which the wrap around E does anyway.

A key is looked up by its label for each call, so that one that was destroyed is gone at once.  Libraries answer a
ciphertext that does not open with any error they like; the key is then tried on bytes of its own, which tells a
foreign blob from a token that has failed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass, TokenFlag
from pkcs11 import exceptions as p11
from pkcs11.mechanisms import GCMParams

from keymesh.adapters.pkcs11_messages import Open, Why

IV_BYTES: Final = 12
TAG_BITS: Final = 128
GCM: Final = 1
KEY_WRAPS: Final = {2: Mechanism.AES_KEY_WRAP_PAD, 3: Mechanism.AES_KEY_WRAP_KWP}
_NO_TOKEN: Final = (
    p11.NoSuchToken,
    p11.MultipleTokensReturned,
    p11.TokenNotPresent,
    p11.TokenNotRecognised,
    p11.SlotIDInvalid,
)
_PIN_REFUSED: Final = (
    p11.PinIncorrect,
    p11.PinLocked,
    p11.PinExpired,
    p11.PinInvalid,
    p11.PinLenRange,
    p11.UserPinNotInitialized,
)
_PIN_NOT_TRIED: Final = TokenFlag.USER_PIN_LOCKED | TokenFlag.USER_PIN_FINAL_TRY
_TRIAL: Final = bytes(32)
_OPEN_TEMPLATE: Final = {Attribute.TOKEN: False, Attribute.EXTRACTABLE: True, Attribute.SENSITIVE: False}


class TokenFailed(Exception):
    """``why``, and the library's own word for it."""

    def __init__(self, why: Why, detail: str) -> None:
        super().__init__(why.value, detail)
        self.why, self.detail = why, detail


@contextmanager
def _told_apart() -> Iterator[None]:
    try:
        yield
    except _NO_TOKEN as bad:
        raise TokenFailed(Why.TOKEN, type(bad).__name__) from bad
    except _PIN_REFUSED as bad:
        raise TokenFailed(Why.PIN, type(bad).__name__) from bad
    except p11.NoSuchKey as bad:
        raise TokenFailed(Why.NO_KEY, "NoSuchKey") from bad
    except p11.MultipleObjectsReturned as bad:
        raise TokenFailed(Why.AMBIGUOUS, "MultipleObjectsReturned") from bad
    except (p11.SessionCount, p11.HostMemory, p11.DeviceMemory) as bad:
        raise TokenFailed(Why.SESSIONS, type(bad).__name__) from bad
    except p11.PKCS11Error as bad:
        raise TokenFailed(Why.DEVICE, type(bad).__name__) from bad


def open_token(asked: Open) -> Token:
    """The token, logged in.  Raises TokenFailed; a PIN is sent at most once, and never as the last try."""
    try:
        library = pkcs11.lib(asked.module)
    except (RuntimeError, OSError) as bad:
        raise TokenFailed(Why.LIBRARY, type(bad).__name__) from bad
    wanted: dict[str, Any] = {"token_label": asked.token}
    if asked.serial:
        wanted["token_serial"] = asked.serial.encode()
    with _told_apart():
        found = library.get_token(**wanted)
        if found.flags & _PIN_NOT_TRIED:
            raise TokenFailed(Why.PIN, "not tried: the token would be locked, or is")
        try:
            pin = asked.pin.decode()
        except UnicodeDecodeError as bad:
            raise TokenFailed(Why.PIN, "not UTF-8") from bad
        return Token(found.open(user_pin=pin), frozenset(found.slot.get_mechanisms()))


class Token:
    """One session on one token."""

    def __init__(self, session: Any, mechanisms: frozenset[Mechanism]) -> None:
        self._session = session
        self._mechanisms = mechanisms

    def wrap(self, label: str, plain: bytes, aad: bytes) -> bytes:
        """Raises TokenFailed; ``UNFIT`` for a key that could leave the token."""
        with _told_apart():
            key = self._key(label)
            if key[Attribute.EXTRACTABLE] or not key[Attribute.SENSITIVE]:
                raise TokenFailed(Why.UNFIT, "the key is not sensitive and non-extractable")
            return self._wrap(key, plain, aad)

    def unwrap(self, label: str, wrapped: bytes, aad: bytes) -> bytes:
        """Raises TokenFailed; ``BLOB`` where the key wraps and opens its own, and not this."""
        with _told_apart():
            key = self._key(label)
        try:
            return self._unwrap(key, wrapped, aad)
        except TokenFailed:
            raise
        except p11.PKCS11Error as bad:
            with _told_apart():
                if self._unwrap(key, self._wrap(key, _TRIAL, aad), aad) == _TRIAL:
                    raise TokenFailed(Why.BLOB, type(bad).__name__) from bad
            raise TokenFailed(Why.DEVICE, "what the key wraps it does not open") from bad

    def make_key(self, label: str) -> None:
        """Raises TokenFailed."""
        with _told_apart():
            if list(self._session.get_objects({Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.LABEL: label})):
                raise TokenFailed(Why.NOT_PERMITTED, "there is a key of that label")
            gcm = Mechanism.AES_GCM in self._mechanisms
            use = (MechanismFlag.ENCRYPT, MechanismFlag.DECRYPT) if gcm else (MechanismFlag.WRAP, MechanismFlag.UNWRAP)
            # Within the login that there is: a session that may write is opened beside the reading one.
            with self._session.token.open(rw=True) as writing:
                writing.generate_key(
                    KeyType.AES,
                    256,
                    label=label,
                    store=True,
                    capabilities=use[0] | use[1],
                    template={
                        Attribute.SENSITIVE: True,
                        Attribute.EXTRACTABLE: False,
                        Attribute.PRIVATE: True,
                    },
                )

    def _key(self, label: str) -> Any:
        return self._session.get_key(object_class=ObjectClass.SECRET_KEY, key_type=KeyType.AES, label=label)

    def _wrap(self, key: Any, plain: bytes, aad: bytes) -> bytes:
        if Mechanism.AES_GCM in self._mechanisms and key[Attribute.ENCRYPT]:
            iv = os.urandom(IV_BYTES)
            sealed = key.encrypt(plain, mechanism=Mechanism.AES_GCM, mechanism_param=GCMParams(iv, aad, TAG_BITS))
            return bytes((GCM,)) + iv + bytes(sealed)
        if not key[Attribute.WRAP]:
            raise TokenFailed(Why.NOT_PERMITTED, "the key neither encrypts by AES-GCM nor wraps")
        for number, mechanism in sorted(KEY_WRAPS.items(), reverse=True):
            if mechanism in self._mechanisms:
                return bytes((number,)) + self._wrap_object(key, mechanism, plain)
        raise TokenFailed(Why.UNFIT, "the token has neither AES-GCM nor AES key wrap with padding")

    def _wrap_object(self, key: Any, mechanism: Mechanism, plain: bytes) -> bytes:
        template = {
            Attribute.CLASS: ObjectClass.SECRET_KEY,
            Attribute.KEY_TYPE: KeyType.GENERIC_SECRET,
            Attribute.VALUE: _padded(plain),
            **_OPEN_TEMPLATE,
        }
        lent = self._session.create_object(template)
        try:
            return bytes(key.wrap_key(lent, mechanism=mechanism))
        finally:
            lent.destroy()

    def _unwrap(self, key: Any, wrapped: bytes, aad: bytes) -> bytes:
        kind, body = wrapped[0], wrapped[1:]
        if kind == GCM:
            if not key[Attribute.DECRYPT]:
                raise TokenFailed(Why.NOT_PERMITTED, "the key may not decrypt")
            param = GCMParams(body[:IV_BYTES], aad, TAG_BITS)
            return bytes(key.decrypt(body[IV_BYTES:], mechanism=Mechanism.AES_GCM, mechanism_param=param))
        if not key[Attribute.UNWRAP]:
            raise TokenFailed(Why.NOT_PERMITTED, "the key may not unwrap")
        opened = key.unwrap_key(
            ObjectClass.SECRET_KEY,
            KeyType.GENERIC_SECRET,
            body,
            mechanism=KEY_WRAPS[kind],
            template=dict(_OPEN_TEMPLATE),
        )
        try:
            return _plain(bytes(opened[Attribute.VALUE]))
        finally:
            opened.destroy()


def _padded(plain: bytes) -> bytes:
    return bytes((len(plain),)) + plain + bytes(-(len(plain) + 1) % 8)


def _plain(padded: bytes) -> bytes:
    """Raises TokenFailed (``BLOB``) for what ``_padded`` did not make."""
    if not padded or _padded(padded[1 : 1 + padded[0]]) != padded:
        raise TokenFailed(Why.BLOB, "other padding")
    return padded[1 : 1 + padded[0]]
