"""The formats of DESIGN section 1 built a second time, from the text and raw primitives alone.

``python -m tests.vectors.reference`` writes the golden files; ``test_golden.py`` holds the product to them and them
to this.  Nothing here may import the product.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

GOLDEN = Path(__file__).resolve().parent / "golden"
Pairs = list[tuple[str, str]]


def draw(label: str, n_bytes: int) -> bytes:
    return hashlib.shake_256(f"keymesh golden {label}".encode()).digest(n_bytes)


def aes_block(key: bytes, block: bytes) -> bytes:
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(block)


def xor(a: bytes, b: bytes) -> bytes:
    return bytes(x ^ y for x, y in zip(a, b, strict=True))


def xaes(key: bytes, nonce: bytes, plaintext: bytes, aad: bytes) -> bytes:
    bits = "".join(f"{byte:08b}" for byte in aes_block(key, bytes(16)))
    doubled = int(bits[1:] + "0", 2).to_bytes(16, "big")
    k1 = xor(doubled, bytes(15) + b"\x87") if bits[0] == "1" else doubled
    derived = b"".join(aes_block(key, xor(bytes((0, i)) + b"X\0" + nonce[:12], k1)) for i in (1, 2))
    return AESGCM(derived).encrypt(nonce[12:], plaintext, aad)


def hkdf(key: bytes, info: bytes, n_bytes: int) -> bytes:
    prk = hmac.digest(b"", key, "sha256")
    out, block = b"", b""
    for i in range(1, 9):
        block = hmac.digest(prk, block + info + bytes((i,)), "sha256")
        out += block
    return out[:n_bytes]


def kid_of(key: bytes) -> bytes:
    return hkdf(key, b"keymesh/kid/1", 16)


def lp(data: bytes | str) -> bytes:
    raw = data.encode() if isinstance(data, str) else data
    return struct.pack(">I", len(raw)) + raw


def context_bytes(pairs: Pairs) -> bytes:
    encoded = sorted((k.encode(), v.encode()) for k, v in pairs)
    return struct.pack(">I", len(encoded)) + b"".join(lp(k) + lp(v) for k, v in encoded)


def l4_aad(tenant: str, kid: bytes, pairs: Pairs) -> bytes:
    return b"keymesh/l4/1" + lp(tenant) + kid + context_bytes(pairs)


def l4_blob(l3: bytes, tenant: str, pairs: Pairs, l4: bytes, nonce: bytes) -> bytes:
    kid = kid_of(l3)
    return b"\x01\x02" + kid + nonce + xaes(l3, nonce, l4, l4_aad(tenant, kid, pairs))


def wrap_aad(subject: dict[str, Any], parent: bytes) -> bytes:
    return (
        b"keymesh/wrap/1"
        + lp(subject["level"])
        + lp(subject["tenant"])
        + lp(subject["domain"])
        + lp(parent)
        + lp(subject["key"])
        + struct.pack(">I", subject["version"])
        + bytes.fromhex(subject["kid"])
    )


def wrap(parent: bytes, subject: dict[str, Any], plaintext: bytes, nonce: bytes) -> bytes:
    kid = kid_of(parent)
    return b"\x02\x02" + kid + nonce + xaes(parent, nonce, plaintext, wrap_aad(subject, kid))


def binding(
    one_time: bytes, binding_id: str, provider: bytes, subject: dict[str, Any], key: bytes, nonce: bytes
) -> bytes:
    sealed = xaes(one_time, nonce, key, wrap_aad(subject, binding_id.encode()))
    return b"\x03\x02" + lp(binding_id) + lp(provider) + nonce + sealed


def sealed_file(l4: bytes, head: dict[str, Any], blob: bytes, salt: bytes, plaintext: bytes, chunk_bytes: int) -> bytes:
    body = lp(head["tenant"]) + lp(head["service"]) + context_bytes(head["context"]) + blob
    body += struct.pack(">I", chunk_bytes) + salt
    prefix = b"KMSEALED\x01" + lp(body)
    both = hkdf(l4, b"keymesh/sealed/1" + hashlib.sha256(prefix).digest(), 64)
    pieces = [plaintext[i : i + chunk_bytes] for i in range(0, len(plaintext), chunk_bytes)] or [b""]
    out = prefix + both[32:]
    for i, piece in enumerate(pieces):
        out += AESGCM(both[:32]).encrypt(i.to_bytes(11, "big") + bytes((i == len(pieces) - 1,)), piece, None)
    return out


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]


def build_kids() -> dict[str, Any]:
    keys = [bytes(32), b"\xff" * 32, bytes(range(32)), draw("kid", 32)]
    return {
        "note": "HKDF-SHA256, empty salt, 16 bytes",
        "kids": [{"key": k.hex(), "kid": kid_of(k).hex()} for k in keys],
    }


def build_l4() -> dict[str, Any]:
    l3, l4, nonce = draw("l3", 32), draw("l4", 32), draw("l4 nonce", 24)
    kid = kid_of(l3)
    contexts: dict[str, Pairs] = {
        "no context": [],
        "two pairs, unsorted": [("table", "users"), ("id", "17")],
        "not ASCII, sorted by UTF-8 bytes": [("\U0001f511", "a"), ("\uffff", "b"), ("z", "\u00e9"), ("", "")],
        "64 pairs": [(f"k{i}", "v" * i) for i in range(64)],
    }
    opens = [
        {
            "why": why,
            "l3": l3.hex(),
            "kid": kid.hex(),
            "tenant": "acme",
            "context": pairs,
            "l4": l4.hex(),
            "nonce": nonce.hex(),
            "aad": l4_aad("acme", kid, pairs).hex(),
            "blob": l4_blob(l3, "acme", pairs, l4, nonce).hex(),
        }
        for why, pairs in contexts.items()
    ]
    pairs = contexts["two pairs, unsorted"]
    blob = l4_blob(l3, "acme", pairs, l4, nonce)
    swapped_context = [("table", "17"), ("id", "users")]
    shifted = [("tableu", "sers"), ("id", "17")]
    other_l3 = draw("other l3", 32)

    def no(why: str, error: str, data: bytes = blob, **over: Any) -> dict[str, Any]:
        base = {"why": why, "error": error, "l3": l3.hex(), "kid": kid.hex(), "tenant": "acme", "context": pairs}
        return base | {"blob": data.hex()} | over

    return {
        "opens": opens,
        "must_not_open": [
            no("another tenant", "integrity", tenant="acme2"),
            no("context missing", "integrity", context=[]),
            no("context values swapped", "integrity", context=swapped_context),
            no("a byte moved from value to key", "integrity", context=shifted),
            no("one pair more", "integrity", context=[*pairs, ("x", "y")]),
            no("a key twice", "refused", context=[*pairs, ("id", "17")]),
            no("65 pairs", "refused", context=[(f"k{i}", "") for i in range(65)]),
            no("context over 8 KiB", "refused", context=[("k", "v" * 8184)]),
            no("another key", "integrity", l3=other_l3.hex()),
            no("another key and its kid", "integrity", l3=other_l3.hex(), kid=kid_of(other_l3).hex()),
            no("kid changed", "integrity", flip(blob, 2)),
            no("nonce changed", "integrity", flip(blob, 18)),
            no("nonce's second half changed", "integrity", flip(blob, 41)),
            no("ciphertext changed", "integrity", flip(blob, 42)),
            no("tag changed", "integrity", flip(blob, 89)),
            no("nonce and start of ciphertext swapped", "integrity", blob[:18] + blob[42:66] + blob[18:42] + blob[66:]),
            no("sealed without associated data", "integrity", blob[:42] + xaes(l3, nonce, l4, b"")),
            no(
                "sealed by plain AES-256-GCM",
                "integrity",
                blob[:42] + AESGCM(l3).encrypt(nonce[:12], l4, l4_aad("acme", kid, pairs)),
            ),
            no("cut short", "refused", blob[:-1]),
            no("empty", "refused", b""),
            no("one byte more", "refused", blob + b"\0"),
            no("two blobs", "refused", blob + blob),
            no("version 0", "refused", b"\0" + blob[1:]),
            no("version of a wrap", "refused", b"\2" + blob[1:]),
            no("scheme 1", "refused", b"\1\1" + blob[2:]),
            no("scheme 0xff", "refused", b"\1\xff" + blob[2:]),
        ],
    }


def build_wraps() -> dict[str, Any]:
    parent, key, nonce = draw("parent", 32), draw("wrapped", 32), draw("wrap nonce", 24)

    def subject(level: str, **over: Any) -> dict[str, Any]:
        cluster = level in ("ivk", "master")
        base = {
            "level": level,
            "tenant": "cluster/eu-west" if cluster else "acme",
            "domain": "" if cluster else "eu",
            "key": "orders" if level == "l3" else level,
            "version": 1,
            "kid": kid_of(key).hex(),
        }
        return base | over

    def yes(what: dict[str, Any]) -> dict[str, Any]:
        return {
            "parent": parent.hex(),
            "subject": what,
            "key": key.hex(),
            "nonce": nonce.hex(),
            "aad": wrap_aad(what, kid_of(parent)).hex(),
            "blob": wrap(parent, what, key, nonce).hex(),
        }

    l3 = subject("l3")
    blob = wrap(parent, l3, key, nonce)
    other = draw("other parent", 32)

    def no(why: str, error: str, data: bytes = blob, **over: Any) -> dict[str, Any]:
        return {"why": why, "error": error, "parent": parent.hex(), "subject": l3, "blob": data.hex()} | over

    return {
        "opens": [yes(l3), yes(subject("l2")), yes(subject("ivk")), yes(subject("l3", version=2**32 - 1))],
        "must_not_open": [
            no("another tenant", "integrity", subject=subject("l3", tenant="other")),
            no("another domain", "integrity", subject=subject("l3", domain="us")),
            no("another service", "integrity", subject=subject("l3", key="carts")),
            no("another version", "integrity", subject=subject("l3", version=2)),
            no("another level", "integrity", subject=subject("l2")),
            no("another kid expected", "integrity", subject=subject("l3", kid=kid_of(other).hex())),
            no("tenant and domain joined otherwise", "integrity", subject=subject("l3", tenant="acmee", domain="u")),
            no("another parent", "integrity", parent=other.hex()),
            no("holds another key than its kid says", "integrity", wrap(parent, l3, other, nonce)),
            no("holds a shorter key", "integrity", wrap(parent, l3, key[:16], nonce)),
            no("parent's kid changed", "integrity", flip(blob, 2)),
            no("nonce changed", "integrity", flip(blob, 18)),
            no("ciphertext changed", "integrity", flip(blob, 42)),
            no("tag changed", "integrity", flip(blob, 89)),
            no("cut short", "integrity", blob[:-1]),
            no("one byte more", "integrity", blob + b"\0"),
            no("cut into the tag", "refused", blob[:50]),
            no("empty", "refused", b""),
            no("over the limit", "refused", blob + bytes(8192)),
            no("version of an L4 blob", "refused", b"\1" + blob[1:]),
            no("scheme 1", "refused", b"\2\1" + blob[2:]),
            no("version 0 of the key", "refused", subject=subject("l3", version=0)),
        ],
    }


def build_bindings() -> dict[str, Any]:
    one_time, l2, nonce, ivk = draw("E", 32), draw("l2", 32), draw("binding nonce", 24), draw("ivk", 32)
    provider, binding_id = draw("provider", 77), "acme-kms:eu/1"
    subject = {"level": "l2", "tenant": "acme", "domain": "eu", "key": "l2", "version": 3, "kid": kid_of(l2).hex()}
    blob = binding(one_time, binding_id, provider, subject, l2, nonce)
    outer = draw("cascade nonce", 24)
    cascade = wrap(ivk, subject, blob, outer)
    id_at, provider_at = 6, 6 + len(binding_id) + 4

    def no(why: str, error: str, data: bytes = blob, **over: Any) -> dict[str, Any]:
        base = {"why": why, "error": error, "one_time": one_time.hex(), "binding_id": binding_id, "subject": subject}
        return base | {"blob": data.hex()} | over

    def no_cascade(why: str, error: str, data: bytes = cascade, **over: Any) -> dict[str, Any]:
        return {"why": why, "error": error, "ivk": ivk.hex(), "subject": subject, "blob": data.hex()} | over

    long_id = binding(one_time, "b" * 129, provider, subject, l2, nonce)
    return {
        "opens": [
            {
                "one_time": one_time.hex(),
                "binding_id": binding_id,
                "provider_blob": provider.hex(),
                "subject": subject,
                "key": l2.hex(),
                "nonce": nonce.hex(),
                "aad": wrap_aad(subject, binding_id.encode()).hex(),
                "blob": blob.hex(),
                "ivk": ivk.hex(),
                "cascade_nonce": outer.hex(),
                "cascade": cascade.hex(),
                "digest": hashlib.sha256(blob).hexdigest(),
            }
        ],
        "must_not_open": [
            no("another binding id", "integrity", binding_id="acme-kms:eu/2"),
            no("binding id changed in the blob", "integrity", flip(blob, id_at)),
            no("another domain", "integrity", subject=subject | {"domain": "us"}),
            no("another tenant", "integrity", subject=subject | {"tenant": "other"}),
            no("another version", "integrity", subject=subject | {"version": 2}),
            no("another one-time key", "integrity", one_time=ivk.hex()),
            no("nonce changed", "integrity", flip(blob, len(blob) - 72)),
            no("tag changed", "integrity", flip(blob, len(blob) - 1)),
            no("provider's blob made shorter", "refused", blob[: provider_at - 1] + b"\x4c" + blob[provider_at:]),
            no("provider's blob empty", "refused", blob[: provider_at - 1] + b"\0" + blob[provider_at:]),
            no("binding id of 129 bytes", "refused", long_id, binding_id="b" * 129),
            no("binding id not UTF-8", "refused", blob[:id_at] + b"\xff" + blob[id_at + 1 :]),
            no("length of 2^32 - 1", "refused", blob[:2] + b"\xff\xff\xff\xff" + blob[6:]),
            no("cut short", "refused", blob[:-1]),
            no("one byte more", "refused", blob + b"\0"),
            no("only a head", "refused", blob[:2]),
            no("version of a wrap", "refused", b"\2" + blob[1:]),
            no("scheme 1", "refused", b"\3\1" + blob[2:]),
        ],
        "cascades_must_not_open": [
            no_cascade("another IVK", "integrity", ivk=one_time.hex()),
            no_cascade("another tenant", "integrity", subject=subject | {"tenant": "other"}),
            no_cascade("an L2 wrapped by the IVK alone", "refused", wrap(ivk, subject, l2, outer)),
            no_cascade("tag changed", "integrity", flip(cascade, len(cascade) - 1)),
            no_cascade("level l3", "refused", subject=subject | {"level": "l3", "key": "orders"}),
        ],
    }


def build_sealed() -> dict[str, Any]:
    l3, l4, salt = draw("file l3", 32), draw("file l4", 32), draw("salt", 16)
    chunk = 64 * 1024
    head: dict[str, Any] = {"tenant": "acme", "service": "orders", "context": [("file", "a.txt"), ("kind", "test")]}
    blob = l4_blob(l3, head["tenant"], head["context"], l4, draw("file nonce", 24))
    long = draw("long", 1) * (2 * chunk + 5)

    def made(plaintext: bytes) -> bytes:
        return sealed_file(l4, head, blob, salt, plaintext, chunk)

    short, longer = made(b"hello"), made(long)
    body = len(made(b"")) - 16
    step = chunk + 16
    first, second, last = longer[body : body + step], longer[body + step : body + 2 * step], longer[body + 2 * step :]
    front = longer[:body]

    def no(why: str, error: str, data: bytes, **over: Any) -> dict[str, Any]:
        return {"why": why, "error": error, "l4": l4.hex(), "size": len(data), "sha256": _sha(data)} | over

    foreign = sealed_file(l4, head, blob, draw("another salt", 16), long, chunk)
    whole = {"long, last chunk only": front + last, "empty": b""}
    tampered: dict[str, tuple[str, bytes]] = {
        "not ours": ("refused", b"NOTSEALD" + short[8:]),
        "version 2": ("refused", short[:8] + b"\2" + short[9:]),
        "header length zero": ("refused", short[:9] + bytes(4) + short[13:]),
        "header length huge": ("refused", short[:9] + b"\xff" * 4 + short[13:]),
        "ends in the prefix": ("refused", short[:7]),
        "ends in the header": ("refused", short[:60]),
        "tenant changed": ("integrity", flip(short, 20)),
        "header's salt changed": ("integrity", flip(short, body - 33)),
        "tag of the header changed": ("integrity", flip(short, body - 1)),
        "chunk changed": ("integrity", flip(short, body)),
        "chunk's tag changed": ("integrity", flip(short, len(short) - 1)),
        "no chunk": ("integrity", short[:body]),
        "cut in the chunk": ("integrity", short[:-1]),
        "one byte more": ("integrity", short + b"\0"),
        "last chunk cut off": ("integrity", front + first + second),
        "first chunk cut off": ("integrity", front + second + last),
        "middle chunk cut off": ("integrity", front + first + last),
        "chunks swapped": ("integrity", front + second + first + last),
        "chunk repeated": ("integrity", front + first + first + second + last),
        "last chunk repeated": ("integrity", longer + last),
        "an empty last chunk after a whole one": ("integrity", _empty_last(l4, longer, body, chunk)),
        "chunk of another file": (
            "integrity",
            front + foreign[body : body + step] + second + last,
        ),
        **{f"nothing but {why}": ("integrity" if data else "refused", data) for why, data in whole.items()},
    }
    return {
        "note": "files over 4 KiB are given by SHA-256 and built by reference.py",
        "opens": [
            {
                "why": why,
                "l3": l3.hex(),
                "l4": l4.hex(),
                "salt": salt.hex(),
                "header": head,
                "l4_blob": blob.hex(),
                "chunk_bytes": chunk,
                "plaintext_sha256": _sha(plaintext),
                "plaintext_bytes": len(plaintext),
                "sealed_sha256": _sha(made(plaintext)),
                "sealed": made(plaintext).hex() if len(plaintext) < 4096 else None,
            }
            for why, plaintext in (("empty", b""), ("short", b"hello"), ("three chunks", long), ("one", long[:chunk]))
        ],
        "must_not_open": [
            no(why, error, data, file=data.hex() if len(data) < 4096 else None, name=why)
            for why, (error, data) in tampered.items()
        ],
        "_tampered": {why: data for why, (_, data) in tampered.items()},
        "_plain": {"empty": b"", "short": b"hello", "three chunks": long, "one": long[:chunk]},
    }


def _empty_last(l4: bytes, longer: bytes, body: int, chunk: int) -> bytes:
    both = hkdf(l4, b"keymesh/sealed/1" + hashlib.sha256(longer[: body - 32]).digest(), 64)
    one = AESGCM(both[:32]).encrypt((0).to_bytes(11, "big") + b"\0", bytes(chunk), None)
    return longer[:body] + one + AESGCM(both[:32]).encrypt((1).to_bytes(11, "big") + b"\1", b"", None)


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


BUILDERS: dict[str, Callable[[], dict[str, Any]]] = {
    "kids": build_kids,
    "l4": build_l4,
    "wraps": build_wraps,
    "bindings": build_bindings,
    "sealed": build_sealed,
}


def render(name: str) -> str:
    public = {key: value for key, value in BUILDERS[name]().items() if not key.startswith("_")}
    return json.dumps(public, indent=1, ensure_ascii=True) + "\n"


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for each in BUILDERS:
        (GOLDEN / f"{each}.json").write_text(render(each))
