"""XAES-256-GCM: AES-256-GCM under a key derived for each 24-byte nonce, so that random nonces are safe.

Decides nothing about what is sealed; see ``aad`` for what is bound.  Source: C2SP XAES-256-GCM.

1. ``L = AES(K, 0^128)``; ``K1`` = ``L`` doubled in GF(2^128) (done once for each key).
2. ``M1 = 00 01 'X' 00 || N[:12]``, ``M2 = 00 02 'X' 00 || N[:12]``.
3. ``Kx = AES(K, M1 xor K1) || AES(K, M2 xor K1)``.
4. AES-256-GCM under ``Kx`` with nonce ``N[12:]``.

``K`` itself lives on in OpenSSL's key schedule until the ``XaesKey`` is dropped (OpenSSL clears it then); ``Kx``
opens one blob only and is not wiped.
"""

from __future__ import annotations

from typing import Final, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keymesh.model.errors import Integrity, Refused

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 24
TAG_BYTES: Final = 16

_BLOCK_MASK: Final = (1 << 128) - 1
_TWICE: Final = (1 << 128) | 1  # puts one 128-bit number into both halves of 256 bits
_COUNTERS: Final = int.from_bytes(b"\0\1X\0" + bytes(12) + b"\0\2X\0" + bytes(12), "big")

Octets = bytes | bytearray | memoryview
"""What key bytes come in: the last two can be wiped by their owner."""


class XaesKey:
    """One AES-256 key, made ready.  Has no representation, equality, copy or pickle form."""

    __slots__ = ("_blocks", "_mask")

    def __init__(self, key: Octets) -> None:
        if len(key) != KEY_BYTES:
            raise Refused.bad_field("key", f"exactly {KEY_BYTES} bytes")
        cipher = Cipher(algorithms.AES256(key), modes.ECB())  # noqa: S305 - single blocks, as the construction asks
        self._blocks = cipher.encryptor().update
        top = int.from_bytes(self._blocks(bytes(16)), "big")
        doubled = ((top << 1) & _BLOCK_MASK) ^ (0x87 * (top >> 127))
        self._mask = doubled * _TWICE ^ _COUNTERS

    def seal(self, nonce: Octets, plaintext: Octets, aad: Octets) -> bytes:
        """Ciphertext with its tag behind it.  ``nonce`` is 24 fresh random bytes."""
        if len(nonce) != NONCE_BYTES:
            raise Refused.bad_field("nonce", f"exactly {NONCE_BYTES} bytes")
        # Steps 2 to 4 in one expression, here and below: this is the Edge's inner loop.
        blocks = (int.from_bytes(nonce[:12], "big") * _TWICE ^ self._mask).to_bytes(32, "big")
        return AESGCM(self._blocks(blocks)).encrypt(nonce[12:], plaintext, aad)

    def open(self, nonce: Octets, sealed: Octets, aad: Octets) -> bytes:
        """The plaintext.  Raises Integrity (opaque) where key, nonce, ciphertext or ``aad`` is not the sealed one."""
        if len(nonce) != NONCE_BYTES:
            raise Refused.bad_field("nonce", f"exactly {NONCE_BYTES} bytes")
        blocks = (int.from_bytes(nonce[:12], "big") * _TWICE ^ self._mask).to_bytes(32, "big")
        try:
            return AESGCM(self._blocks(blocks)).decrypt(nonce[12:], sealed, aad)
        except InvalidTag:
            raise Integrity.opaque() from None

    def open_into(self, nonce: Octets, sealed: Octets, aad: Octets, out: bytearray | memoryview) -> None:
        """As ``open``, but the plaintext goes to ``out`` (of exactly its length) and to no other Python object."""
        if len(nonce) != NONCE_BYTES:
            raise Refused.bad_field("nonce", f"exactly {NONCE_BYTES} bytes")
        if len(sealed) != len(out) + TAG_BYTES:
            raise Integrity.opaque()
        blocks = (int.from_bytes(nonce[:12], "big") * _TWICE ^ self._mask).to_bytes(32, "big")
        try:
            AESGCM(self._blocks(blocks)).decrypt_into(nonce[12:], sealed, aad, out)
        except InvalidTag:
            out[:] = bytes(len(out))
            raise Integrity.opaque() from None

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = None  # type: ignore[assignment]

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a key has no pickle or copy form")

    def __repr__(self) -> str:
        return "<XaesKey>"


def xaes_seal(key: Octets, nonce: Octets, plaintext: Octets, aad: Octets) -> bytes:
    """One-off ``XaesKey(key).seal``."""
    return XaesKey(key).seal(nonce, plaintext, aad)


def xaes_open(key: Octets, nonce: Octets, sealed: Octets, aad: Octets) -> bytes:
    """One-off ``XaesKey(key).open``."""
    return XaesKey(key).open(nonce, sealed, aad)
