"""Bytes to bytes: ciphers, MACs and hashes by the names that KMIP gives them; all of it is the cryptography package's.

Decides which combinations are served and what each needs.  A failed authentication or padding is the one answer
``CryptographicFailure``, which never says which check failed.  Source: KMIP 1.4, sections 3.6 and 9.1.3.2; NIST SP
800-38A/B/D/E, RFC 2104, RFC 8439.
"""

from __future__ import annotations

import hmac as hmac_stdlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import cmac, hashes, hmac, padding
from cryptography.hazmat.primitives.ciphers import AEADEncryptionContext, Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from keymesh.kmip.enums import ResultReason
from keymesh.kmip.enums_crypto import BlockCipherMode, CryptographicAlgorithm, HashingAlgorithm, PaddingMethod
from keymesh.kmip.faults import Fault, bad_field, bad_message

BLOCK_BYTES: Final = 16
TAG_MAX_BYTES: Final = 16
HELD_MAX_BYTES: Final = 512 * 1024
TAG_MIN_BYTES: Final = 12  # SP 800-38D: shorter tags only for uses that bound what may be tried
_A = CryptographicAlgorithm
_M = BlockCipherMode

HASHES: Final[dict[HashingAlgorithm, hashes.HashAlgorithm]] = {
    HashingAlgorithm.SHA_1: hashes.SHA1(),  # noqa: S303 -- clients still ask for it
    HashingAlgorithm.SHA_224: hashes.SHA224(),
    HashingAlgorithm.SHA_256: hashes.SHA256(),
    HashingAlgorithm.SHA_384: hashes.SHA384(),
    HashingAlgorithm.SHA_512: hashes.SHA512(),
    HashingAlgorithm.SHA_512_224: hashes.SHA512_224(),
    HashingAlgorithm.SHA_512_256: hashes.SHA512_256(),
    HashingAlgorithm.SHA3_224: hashes.SHA3_224(),
    HashingAlgorithm.SHA3_256: hashes.SHA3_256(),
    HashingAlgorithm.SHA3_384: hashes.SHA3_384(),
    HashingAlgorithm.SHA3_512: hashes.SHA3_512(),
}

HMACS: Final[dict[CryptographicAlgorithm, hashes.HashAlgorithm]] = {
    _A.HMAC_SHA1: hashes.SHA1(),  # noqa: S303
    _A.HMAC_SHA224: hashes.SHA224(),
    _A.HMAC_SHA256: hashes.SHA256(),
    _A.HMAC_SHA384: hashes.SHA384(),
    _A.HMAC_SHA512: hashes.SHA512(),
    _A.HMAC_SHA3_224: hashes.SHA3_224(),
    _A.HMAC_SHA3_256: hashes.SHA3_256(),
    _A.HMAC_SHA3_384: hashes.SHA3_384(),
    _A.HMAC_SHA3_512: hashes.SHA3_512(),
}

_IV_BYTES: Final = {_M.CBC: 16, _M.CTR: 16, _M.XTS: 16, _M.GCM: 12}
_NONCE_BYTES: Final = {_A.ChaCha20: 12, _A.ChaCha20Poly1305: 12}


class Part(Protocol):
    """A use that is fed in parts."""

    def update(self, data: bytes) -> bytes: ...

    def finish(self) -> tuple[bytes, bytes | None]:
        """(the last bytes, the tag where an authenticating cipher protected)."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """How a key is used: what the request and the key's own parameters say together."""

    algorithm: CryptographicAlgorithm
    mode: BlockCipherMode | None
    padding: PaddingMethod
    tag_bytes: int

    @property
    def authenticates(self) -> bool:
        return self.mode is _M.GCM or self.algorithm is _A.ChaCha20Poly1305

    @property
    def iv_bytes(self) -> int:
        """Of an IV that the server chooses; 0 where none is used."""
        if self.algorithm in _NONCE_BYTES:
            return _NONCE_BYTES[self.algorithm]
        return _IV_BYTES.get(self.mode, 0) if self.mode is not None else 0


def plan_of(
    algorithm: CryptographicAlgorithm,
    *,
    mode: BlockCipherMode | None,
    pad: PaddingMethod | None,
    tag_bytes: int | None,
) -> Plan:
    """Raises Fault where the combination is not served."""
    if algorithm in (_A.ChaCha20, _A.ChaCha20Poly1305):
        if mode not in (None, _M.AEAD) or (mode is _M.AEAD and algorithm is _A.ChaCha20):
            raise _unsupported("BlockCipherMode: none or AEAD for this algorithm")
    elif algorithm is not _A.AES:
        raise _unsupported("CryptographicAlgorithm: AES, ChaCha20 or ChaCha20Poly1305")
    elif mode not in (_M.ECB, _M.CBC, _M.CTR, _M.GCM, _M.XTS):
        raise _unsupported("BlockCipherMode: ECB, CBC, CTR, GCM or XTS")
    pad = pad or PaddingMethod.None_
    if pad not in (PaddingMethod.None_, PaddingMethod.PKCS5, PaddingMethod.ANSIX9_23):
        raise _unsupported("PaddingMethod: None, PKCS5 or ANSIX9_23")
    if pad is not PaddingMethod.None_ and mode not in (_M.ECB, _M.CBC):
        raise _unsupported("PaddingMethod: only with ECB or CBC")
    plan = Plan(algorithm, mode, pad, TAG_MAX_BYTES if tag_bytes is None else tag_bytes)
    if plan.authenticates and not TAG_MIN_BYTES <= plan.tag_bytes <= TAG_MAX_BYTES:
        raise Fault(ResultReason.GeneralFailure, f"TagLength: {TAG_MIN_BYTES} to {TAG_MAX_BYTES} bytes")
    return plan


def _unsupported(message: str) -> Fault:
    return Fault(ResultReason.UnsupportedCryptographicParameters, message)


def _broken() -> Fault:
    return Fault(ResultReason.CryptographicFailure, "could not be opened")


def begin(plan: Plan, key: bytes, *, iv: bytes | None, aad: bytes, tag: bytes | None, protect: bool) -> Part:
    """A use of a key, to be fed.  Opening what authenticates gives nothing out before the tag is verified.

    Raises Fault where IV, key, tag or their lengths are not what the plan needs.
    """
    if plan.iv_bytes and iv is None:
        raise bad_message("IVCounterNonce is needed")
    if aad and not plan.authenticates:
        raise bad_field("AuthenticatedEncryptionAdditionalData: only with a mode that authenticates")
    if plan.authenticates and not protect:
        if tag is None:
            raise bad_message("AuthenticatedEncryptionTag is needed")
        if not TAG_MIN_BYTES <= len(tag) <= TAG_MAX_BYTES:
            raise _broken()
    iv = iv or b""
    try:
        if plan.algorithm is _A.ChaCha20Poly1305:
            return _Held(_poly(key, iv, aad, tag, plan.tag_bytes, protect=protect))
        if plan.mode is _M.GCM:
            return _gcm(key, iv, aad, tag, plan.tag_bytes, protect=protect)
        cipher = Cipher(_algorithm(plan, key, iv), _mode(plan.mode, iv))
        context = cipher.encryptor() if protect else cipher.decryptor()
    except ValueError as bad:
        raise bad_field("IVCounterNonce or key: not of a length that this cipher takes") from bad
    if plan.mode is _M.XTS:
        return _Held(lambda data: (context.update(data) + context.finalize(), None))
    return _Plain(context, _padding(plan, protect=protect), protect=protect)


def _algorithm(plan: Plan, key: bytes, iv: bytes) -> algorithms.AES | algorithms.ChaCha20:
    if plan.algorithm is _A.AES:
        return algorithms.AES(key)
    if len(iv) not in (8, 12, 16):
        raise bad_field("IVCounterNonce: 8, 12 or 16 bytes")
    return algorithms.ChaCha20(key, bytes(16 - len(iv)) + iv)  # counter, little-endian from 0, then nonce


def _mode(mode: BlockCipherMode | None, iv: bytes) -> modes.ECB | modes.CBC | modes.CTR | modes.XTS | None:
    match mode:
        case _M.ECB:
            return modes.ECB()  # noqa: S305 -- the client's choice
        case _M.CBC:
            return modes.CBC(iv)
        case _M.CTR:
            return modes.CTR(iv)
        case _M.XTS:
            return modes.XTS(iv)
        case _:
            return None


def _gcm(key: bytes, iv: bytes, aad: bytes, tag: bytes | None, tag_bytes: int, *, protect: bool) -> Part:
    if not 8 <= len(iv) <= 128:
        raise bad_field("IVCounterNonce: 8 to 128 bytes")
    if protect:
        encryptor = Cipher(algorithms.AES(key), modes.GCM(iv)).encryptor()
        encryptor.authenticate_additional_data(aad)
        return _Sealing(encryptor, tag_bytes)
    decryptor = Cipher(algorithms.AES(key), modes.GCM(iv, tag, min_tag_length=TAG_MIN_BYTES)).decryptor()
    decryptor.authenticate_additional_data(aad)
    return _Held(lambda data: (decryptor.update(data) + decryptor.finalize(), None))


def _poly(
    key: bytes, nonce: bytes, aad: bytes, tag: bytes | None, tag_bytes: int, *, protect: bool
) -> Callable[[bytes], tuple[bytes, bytes | None]]:
    if len(nonce) != 12:
        raise bad_field("IVCounterNonce: 12 bytes")
    aead = ChaCha20Poly1305(key)

    def protected(data: bytes) -> tuple[bytes, bytes | None]:
        whole = aead.encrypt(nonce, data, aad)
        return whole[:-TAG_MAX_BYTES], whole[-TAG_MAX_BYTES:][:tag_bytes]

    def opened(data: bytes) -> tuple[bytes, bytes | None]:
        # the package verifies whole tags only: one that was shortened is compared with that of the same plaintext
        stream = Cipher(algorithms.ChaCha20(key, (1).to_bytes(4, "little") + nonce), None).decryptor()
        plain = stream.update(data)
        assert tag is not None
        if not hmac_stdlib.compare_digest(aead.encrypt(nonce, plain, aad)[-TAG_MAX_BYTES:][: len(tag)], tag):
            raise InvalidTag
        return plain, None

    return protected if protect else opened


def _padding(plan: Plan, *, protect: bool) -> padding.PaddingContext | None:
    if plan.padding is PaddingMethod.None_:
        return None
    scheme = padding.PKCS7 if plan.padding is PaddingMethod.PKCS5 else padding.ANSIX923
    return scheme(BLOCK_BYTES * 8).padder() if protect else scheme(BLOCK_BYTES * 8).unpadder()


class _Plain:
    """A cipher that does not authenticate, with or without padding."""

    def __init__(self, context: CipherContext, pad: padding.PaddingContext | None, *, protect: bool) -> None:
        self._context, self._pad, self._protect = context, pad, protect

    def update(self, data: bytes) -> bytes:
        if self._pad is None:
            return self._context.update(data)
        if self._protect:
            return self._context.update(self._pad.update(data))
        return self._pad.update(self._context.update(data))

    def finish(self) -> tuple[bytes, bytes | None]:
        try:
            if self._pad is None:
                return self._context.finalize(), None
            if self._protect:
                return self._context.update(self._pad.finalize()) + self._context.finalize(), None
            last = self._pad.update(self._context.finalize())
            return last + self._pad.finalize(), None
        except ValueError as bad:
            if self._protect:
                raise bad_field(f"Data: without padding, a multiple of {BLOCK_BYTES} bytes") from bad
            raise _broken() from None


class _Sealing:
    """GCM, protecting."""

    def __init__(self, encryptor: AEADEncryptionContext, tag_bytes: int) -> None:
        self._encryptor, self._tag_bytes = encryptor, tag_bytes

    def update(self, data: bytes) -> bytes:
        return self._encryptor.update(data)

    def finish(self) -> tuple[bytes, bytes | None]:
        last = self._encryptor.finalize()
        return last, self._encryptor.tag[: self._tag_bytes]


class _Held:
    """Everything is held until the end: nothing that is not verified goes out, or the cipher wants it whole."""

    def __init__(self, whole: Callable[[bytes], tuple[bytes, bytes | None]]) -> None:
        self._whole = whole
        self._data = bytearray()

    def update(self, data: bytes) -> bytes:
        self._data += data
        if len(self._data) > HELD_MAX_BYTES:
            raise bad_field(f"Data: at most {HELD_MAX_BYTES} bytes with this mode")
        return b""

    def finish(self) -> tuple[bytes, bytes | None]:
        try:
            return self._whole(bytes(self._data))
        except InvalidTag:
            raise _broken() from None
        except ValueError as bad:
            raise bad_field("Data: not of a length that this cipher takes") from bad


class _Mac(Protocol):
    def update(self, data: bytes) -> None: ...

    def finalize(self) -> bytes: ...


class Summed:
    """A MAC or a hash, fed in parts: nothing comes out before the end."""

    def __init__(self, mac: _Mac) -> None:
        self._mac = mac

    def update(self, data: bytes) -> bytes:
        self._mac.update(data)
        return b""

    def finish(self) -> tuple[bytes, bytes | None]:
        return self._mac.finalize(), None


def begin_mac(algorithm: CryptographicAlgorithm, mode: BlockCipherMode | None, key: bytes) -> Summed:
    """HMAC by its algorithm, or CMAC of AES by its mode.  Raises Fault where it is neither."""
    if mode is _M.CMAC and algorithm is _A.AES:
        try:
            return Summed(cmac.CMAC(algorithms.AES(key)))
        except ValueError as bad:
            raise bad_field("key: not of a length that AES takes") from bad
    if algorithm in HMACS and mode is None:
        return Summed(hmac.HMAC(key, HMACS[algorithm]))
    raise _unsupported("CryptographicParameters: an HMAC's algorithm, or CMAC of AES")


def begin_hash(algorithm: HashingAlgorithm | None) -> Summed:
    if algorithm not in HASHES:
        raise _unsupported("HashingAlgorithm: SHA_1, SHA-2 or SHA-3")
    return Summed(hashes.Hash(HASHES[algorithm]))


def digest(data: bytes) -> bytes:
    """SHA-256."""
    found = hashes.Hash(hashes.SHA256())
    found.update(data)
    return found.finalize()


def same(one: bytes, other: bytes) -> bool:
    """Compared in a time that does not depend on where they differ."""
    return hmac_stdlib.compare_digest(one, other)
