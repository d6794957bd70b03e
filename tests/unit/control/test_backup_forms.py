"""Manifests and chunks by themselves: their forms, their limits, where a chunk opens, what may follow what."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from keymesh.control import backup_manifest as bm
from keymesh.control.backup_chunks import (
    FIELDS,
    PLAIN_MAX_BYTES,
    ChunkSealer,
    Item,
    decode_items,
    encode_items,
    open_chunk,
)
from keymesh.control.backup_manifest import ChunkRef, Manifest
from keymesh.crypto.dsse import Ed25519Signer
from keymesh.crypto.recipients import Stanza
from keymesh.model.errors import Integrity, Refused
from keymesh.model.ids import ZERO_DIGEST, Digest

SIGNER = Ed25519Signer.from_seed(bytes(32))
KEY, NONCE = bytes(range(32)), bytes(range(24))
STANZA = Stanza(recipient="ab" * 32, ephemeral="cd" * 32, sealed=bytes(72))
CHUNK = ChunkRef(kind=bm.LOG, sha256=Digest("ef" * 32), n_bytes=100, items=1)
FIRST = Manifest(
    format=bm.FORMAT,
    mesh="m1",
    origin=bm.REGISTRY_ORIGIN,
    domain="",
    seq=1,
    prev=ZERO_DIGEST,
    full=True,
    base=1,
    epoch=1,
    after_index=0,
    index=4,
    entries=5,
    namespaces=2,
    blobs=0,
    missing=0,
    heads_root=Digest("12" * 32),
    created_at=7,
    kid="34" * 16,
    recipients=(STANZA,),
    chunks=(CHUNK,),
)
SECOND = structs.replace(FIRST, seq=2, prev=Digest("56" * 32), full=False, after_index=4, index=6, entries=9)
items_of = st.lists(st.tuples(st.binary(max_size=40), st.binary(max_size=40)), min_size=1, max_size=8)


# --- manifests -------------------------------------------------------------------------------------------------------


def test_a_manifest_comes_back_as_it_was_signed() -> None:
    raw = bm.sign_manifest(FIRST, SIGNER)
    parsed, envelope = bm.parse_manifest(raw)
    assert parsed == FIRST
    bm.check_signed_by(envelope, {SIGNER.key_id: SIGNER.public_key})
    with pytest.raises(Integrity):
        bm.check_signed_by(envelope, {})
    assert bm.manifest_hash(envelope) == hashlib.sha256(envelope.payload).hexdigest()


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("format", {"format": "keymesh/backup/2"}),
        ("mesh", {"mesh": "M"}),
        ("origin", {"origin": "../up"}),
        ("origin", {"origin": "a..b", "domain": "us"}),
        ("domain", {"domain": "us"}),
        ("domain", {"origin": "us-east.n1"}),
        ("domain", {"origin": "us-east.n1", "domain": "U"}),
        ("prev", {"prev": "00"}),
        ("prev", {"prev": "11" * 32}),
        ("prev", {"seq": 2, "base": 2}),
        ("heads_root", {"heads_root": "x"}),
        ("kid", {"kid": ""}),
        ("base", {"seq": 0}),
        ("base", {"base": 0}),
        ("base", {"full": False}),
        ("base", {"seq": bm.SEQ_MAX, "base": bm.SEQ_MAX, "prev": "11" * 32}),
        ("manifest", {"entries": -1}),
        ("manifest", {"created_at": -1}),
        ("after_index", {"after_index": 1}),
        ("after_index", {"index": -1}),
        ("recipients", {"recipients": ()}),
        ("recipients", {"recipients": (STANZA,) * 17}),
        ("sealed", {"recipients": (structs.replace(STANZA, sealed=b""),)}),
        ("chunks", {"chunks": (CHUNK,) * (bm.CHUNKS_MAX + 1)}),
        ("chunks", {"chunks": (structs.replace(CHUNK, kind="keys"),)}),
        ("chunks", {"chunks": (structs.replace(CHUNK, n_bytes=0),)}),
        ("chunks", {"chunks": (structs.replace(CHUNK, n_bytes=bm.CHUNK_MAX_BYTES + 1),)}),
        ("chunks", {"chunks": (structs.replace(CHUNK, items=0),)}),
        ("sha256", {"chunks": (structs.replace(CHUNK, sha256=Digest("../../etc/passwd")),)}),
    ],
)
def test_what_is_out_of_its_limits_is_neither_signed_nor_read(field: str, fields: dict[str, Any]) -> None:
    bad = structs.replace(FIRST, **fields)
    with pytest.raises(Refused) as refused:
        bm.sign_manifest(bad, SIGNER)
    assert refused.value.field == field


def test_the_largest_manifest_that_there_may_be_is_written_and_read() -> None:
    many = structs.replace(FIRST, chunks=(structs.replace(CHUNK, items=10**15),) * bm.CHUNKS_MAX)
    assert bm.parse_manifest(bm.sign_manifest(many, SIGNER))[0] == many


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"[" * 10_000,
        b"\xff\xfe",
        b'{"payload":"e30=","payloadType":"application/vnd.keymesh.backup.v1+json","signatures":[]}',
        bm.sign_manifest(FIRST, SIGNER)[:-1],
        bm.sign_manifest(FIRST, SIGNER).replace(b"backup.v1", b"entryx.v1"),
        b" " * (bm.ENVELOPE_MAX_BYTES + 1),
    ],
)
def test_what_is_no_manifest_is_an_alarm(raw: bytes) -> None:
    with pytest.raises(Integrity) as failed:
        bm.parse_manifest(raw)
    assert failed.value.code == "manifest"


@pytest.mark.parametrize(
    ("code", "fields"),
    [
        ("", {}),
        ("", {"full": True, "base": 2, "after_index": 0}),
        ("manifest-gap", {"seq": 3}),
        ("manifest-gap", {"seq": 1}),
        ("manifest-fork", {"prev": Digest("57" * 32)}),
        ("manifest-order", {"mesh": "m2"}),
        ("manifest-order", {"origin": "us-east.n1", "domain": "us"}),
        ("manifest-order", {"epoch": 0}),
        ("manifest-order", {"index": 3, "full": True, "base": 2, "after_index": 0}),
        ("manifest-order", {"entries": 4}),
        ("manifest-gap", {"after_index": 5}),
        ("manifest-gap", {"after_index": 3}),
        ("manifest-gap", {"base": 2}),
    ],
)
def test_what_may_follow_a_manifest(code: str, fields: dict[str, Any]) -> None:
    after = structs.replace(SECOND, **fields)
    if not code:
        bm.check_follows(after, FIRST, Digest("56" * 32))
        return
    with pytest.raises(Integrity) as failed:
        bm.check_follows(after, FIRST, Digest("56" * 32))
    assert failed.value.code == code


def test_the_oldest_there_is_must_be_a_full_one() -> None:
    bm.check_follows(FIRST, None, ZERO_DIGEST)
    bm.check_follows(structs.replace(SECOND, full=True, base=2, after_index=0), None, ZERO_DIGEST)
    with pytest.raises(Integrity) as failed:
        bm.check_follows(SECOND, None, ZERO_DIGEST)
    assert failed.value.code == "manifest-gap"


def test_names_are_made_and_read_in_one_form() -> None:
    assert bm.manifest_name("us-east.n1", 42) == "manifests/us-east.n1/000000000042"
    assert bm.split_manifest_name("manifests/us-east.n1/000000000042") == ("us-east.n1", 42)
    assert bm.node_origin("us-east", "n1") == "us-east.n1"
    for name in ("manifests/a/000000000000", "manifests/-a/000000000001", "chunks/aa/bb", "manifests/a/1"):
        with pytest.raises(Integrity):
            bm.split_manifest_name(name)
    for seq in (0, -1, bm.SEQ_MAX):
        with pytest.raises(Refused):
            bm.manifest_name("a", seq)
    with pytest.raises(Refused):
        bm.chunk_name("../x")


# --- chunks ----------------------------------------------------------------------------------------------------------


def sealed(items: list[Item], *, kind: str = bm.LOG, before: int = 0) -> tuple[Manifest, bytes]:
    """A manifest whose last chunk holds ``items``, and that chunk."""
    sealer = ChunkSealer(mesh="m1", origin="registry", seq=1, key=bytearray(KEY))
    for _ in range(before):
        sealer.seal(bm.LOG, [(b"", b"")], nonce=NONCE)
    _, raw = sealer.seal(kind, items, nonce=NONCE)
    return structs.replace(FIRST, chunks=tuple(sealer.refs)), raw


@given(items=items_of)
def test_a_chunk_gives_back_what_was_put_in(items: list[Item]) -> None:
    manifest, raw = sealed(items)
    assert open_chunk(manifest, 0, raw, KEY) == items


@given(items=items_of, at=st.integers(0, 10**6))
def test_no_bit_of_a_chunk_may_change(items: list[Item], at: int) -> None:
    manifest, raw = sealed(items)
    changed = bytearray(raw)
    changed[at // 8 % len(raw)] ^= 1 << at % 8
    with pytest.raises(Integrity) as failed:
        open_chunk(manifest, 0, bytes(changed), KEY)
    assert failed.value.code == "chunk-hash"
    named = structs.replace(manifest.chunks[0], sha256=Digest(hashlib.sha256(changed).hexdigest()))
    with pytest.raises(Integrity) as failed:
        open_chunk(structs.replace(manifest, chunks=(named,)), 0, bytes(changed), KEY)
    assert failed.value.code == "integrity"


def test_a_chunk_opens_in_its_own_place_only() -> None:
    manifest, raw = sealed([(b"a", b"b")], before=1)
    assert open_chunk(manifest, 1, raw, KEY) == [(b"a", b"b")]
    moved = structs.replace(manifest, chunks=(manifest.chunks[1], manifest.chunks[0]))
    elsewhere = [
        (moved, 0),
        (structs.replace(manifest, mesh="m2"), 1),
        (structs.replace(manifest, origin="us-east.n1"), 1),
        (structs.replace(manifest, seq=2), 1),
        (structs.replace(manifest, chunks=(CHUNK, structs.replace(manifest.chunks[1], kind=bm.RECORDS))), 1),
    ]
    for other, place in elsewhere:
        with pytest.raises(Integrity) as failed:
            open_chunk(other, place, raw, KEY)
        assert failed.value.code == "integrity"
    with pytest.raises(Integrity) as failed:
        open_chunk(manifest, 1, raw, bytes(32))
    assert failed.value.code == "integrity"


def test_a_chunk_shorter_than_its_own_head_is_one_more_that_does_not_open() -> None:
    tiny = structs.replace(CHUNK, sha256=Digest(hashlib.sha256(b"x").hexdigest()), n_bytes=1)
    with pytest.raises(Integrity) as failed:
        open_chunk(structs.replace(FIRST, chunks=(tiny,)), 0, b"x", KEY)
    assert failed.value.code == "integrity"


@pytest.mark.parametrize("kind", FIELDS)
def test_items_have_as_many_fields_as_their_kind(kind: str) -> None:
    item = tuple(b"%d" % n for n in range(FIELDS[kind]))
    assert decode_items(kind, encode_items(kind, [item]), items=1) == [item]
    with pytest.raises(Refused):
        encode_items(kind, [item[:-1]])


@pytest.mark.parametrize(
    ("plain", "items"),
    [
        (b"", 1),
        (b"\0\0\0", 1),
        (b"\0\0\0\1", 1),
        (b"\0\0\0\2" + bytes(16), 1),
        (b"\xff\xff\xff\xff" + bytes(16), 2**32 - 1),
        (b"\0\0\0\1" + b"\xff\xff\xff\xff" + bytes(4), 1),
        (b"\0\0\0\1" + bytes(8) + b"\0", 1),
        (b"\0\0\0\1" + b"\0\0\0\1a" + b"\0\0\0\1", 1),
        (b"\0\0\0\2" + bytes(12) + b"\0\0\0\1", 2),
    ],
)
def test_a_plaintext_that_is_not_what_it_says_is_refused(plain: bytes, items: int) -> None:
    with pytest.raises(Integrity) as failed:
        decode_items(bm.LOG, plain, items=items)
    assert failed.value.code == "chunk"


def test_a_chunk_has_a_largest_size_and_its_key_is_forgotten() -> None:
    with pytest.raises(Refused):
        encode_items(bm.LOG, [(bytes(PLAIN_MAX_BYTES), b"")])
    with pytest.raises(Refused):
        ChunkSealer(mesh="m", origin="registry", seq=1, key=bytearray(31))
    key = bytearray(KEY)
    sealer = ChunkSealer(mesh="m", origin="registry", seq=1, key=key)
    assert KEY.hex() not in repr(sealer)
    sealer.forget()
    assert key == bytes(32)
