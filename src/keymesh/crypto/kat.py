"""Known answers that the cryptographic library must give before the process serves: run at start, under 50 ms.

Decides whether this build computes what the standards say; not whether keys are right.  Sources: FIPS 180-4 (SHA-256
of "abc"), RFC 5869 case 1, NIST GCM (McGrew and Viega, case 16), RFC 3394 section 4.6, C2SP XAES-256-GCM,
RFC 8032 section 7.1 test 2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keymesh.crypto import dsse, keywrap, shamir
from keymesh.crypto.xaes import XaesKey
from keymesh.model.errors import Integrity

_hex = bytes.fromhex


def _sha256() -> bool:
    return hashlib.sha256(b"abc").digest() == _hex("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")


def _hkdf() -> bool:
    hkdf = HKDF(
        algorithm=SHA256(), length=42, salt=_hex("000102030405060708090a0b0c"), info=_hex("f0f1f2f3f4f5f6f7f8f9")
    )
    return hkdf.derive(b"\x0b" * 22) == _hex(
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )


def _aes_gcm() -> bool:
    aes = AESGCM(_hex("feffe9928665731c6d6a8f9467308308") * 2)
    nonce, aad = _hex("cafebabefacedbaddecaf888"), _hex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
    plaintext = _hex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
        "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
    )
    sealed = _hex(
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
        "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f66276fc6ece0f4e1768cddf8853bb2d551b"
    )
    return aes.encrypt(nonce, plaintext, aad) == sealed and aes.decrypt(nonce, sealed, aad) == plaintext


def _aes_kw() -> bool:
    kek = bytes(range(32))
    key = _hex("00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f")
    wrapped = _hex("28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21")
    return keywrap.kw_wrap(kek, key) == wrapped and keywrap.kw_unwrap(kek, wrapped) == key


def _xaes() -> bool:
    nonce, text = b"ABCDEFGHIJKLMNOPQRSTUVWX", b"XAES-256-GCM"
    first = _hex("ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271")
    second = _hex("986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d")
    one, three = XaesKey(b"\1" * 32), XaesKey(b"\3" * 32)
    return (
        one.seal(nonce, text, b"") == first  # L has its top bit clear
        and three.seal(nonce, text, b"c2sp.org/XAES-256-GCM") == second  # and here set
        and one.open(nonce, first, b"") == text
    )


def _ed25519() -> bool:
    signer = dsse.Ed25519Signer.from_seed(_hex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"))
    expected = _hex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
    signature = _hex(
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    envelope = signer.sign(b"known answer", "text/plain")
    changed = dsse.Envelope(b"another", "text/plain", envelope.signatures)
    keys = {signer.key_id: signer.public_key}
    return (
        signer.public_key == expected
        and signer.sign_raw(b"\x72") == signature
        and dsse.verify_envelope(envelope, keys) == frozenset(keys)
        and not dsse.verify_envelope(changed, keys)
    )


def _shamir() -> bool:
    secret = bytes(range(32))
    shares = shamir.split(secret, 2, 3, lambda n: hashlib.shake_128(b"known answer").digest(n))
    return shamir.gf_mul(0x57, 0x83) == 0xC1 and all(
        bytes(shamir.combine(pair)) == secret for pair in ((shares[0], shares[1]), (shares[2], shares[0]))
    )


TESTS: Final[dict[str, Callable[[], bool]]] = {
    "sha-256": _sha256,
    "hkdf-sha-256": _hkdf,
    "aes-256-gcm": _aes_gcm,
    "aes-kw": _aes_kw,
    "xaes-256-gcm": _xaes,
    "ed25519": _ed25519,
    "shamir": _shamir,
}


def run_known_answer_tests() -> None:
    """Raises Integrity naming the test that failed: the process must not serve."""
    for name, test in TESTS.items():
        try:
            passed = test()
        except Exception as bad:  # any failure here is the answer no
            raise Integrity("known-answer", f"known-answer test failed: {name}") from bad
        if not passed:
            raise Integrity("known-answer", f"known-answer test failed: {name}")
