"""The product against golden files that ``reference.py`` built from the design's text; many must not open."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.vectors import reference

from keymesh.crypto import aad, blob, kid, stream, wrap
from keymesh.crypto.pages import KeyPages, SecretBytes
from keymesh.crypto.xaes import XaesKey
from keymesh.model.errors import Integrity, KeymeshError, Refused
from keymesh.model.ids import BindingId, ServiceName, TenantId

ERRORS: dict[str, type[KeymeshError]] = {"integrity": Integrity, "refused": Refused}
_hex = bytes.fromhex


def golden(name: str) -> Any:
    return json.loads((reference.GOLDEN / f"{name}.json").read_text())


def cases(name: str, part: str) -> list[Any]:
    listed = golden(name)[part]
    return [pytest.param(case, id=case.get("why", str(i))) for i, case in enumerate(listed)]


@pytest.fixture
def pages() -> Iterator[KeyPages]:
    pool = KeyPages()
    yield pool
    pool.wipe_all()


def opaque(error: KeymeshError, case: dict[str, Any]) -> bool:
    """An Integrity says nothing about what failed; a refusal names a field."""
    if case["error"] == "integrity":
        return str(error) == str(Integrity.opaque())
    return error.field is not None


@pytest.mark.parametrize("name", sorted(reference.BUILDERS))
def test_golden_files_are_what_the_reference_builds(name: str) -> None:
    assert (reference.GOLDEN / f"{name}.json").read_text() == reference.render(name)


@pytest.mark.parametrize("case", cases("kids", "kids"))
def test_kid(case: dict[str, str]) -> None:
    assert kid.kid_of(_hex(case["key"])).hex() == case["kid"]
    assert kid.kid_matches(_hex(case["key"]), _hex(case["kid"]))


@pytest.mark.parametrize("case", cases("l4", "opens"))
def test_l4_opens(case: dict[str, Any]) -> None:
    xkey, name = XaesKey(_hex(case["l3"])), _hex(case["kid"])
    context = dict(case["context"])
    assert aad.l4_aad(case["tenant"], name, context).hex() == case["aad"]
    assert aad.l4_aad_pairs(case["tenant"], name, [tuple(pair) for pair in case["context"]]).hex() == case["aad"]
    sealed = blob.seal_l4(xkey, name, case["tenant"], context, _hex(case["l4"]), _hex(case["nonce"]))
    assert sealed.hex() == case["blob"]
    assert blob.blob_kid(sealed) == name
    assert blob.open_l4(xkey, name, case["tenant"], context, sealed).hex() == case["l4"]


@pytest.mark.parametrize("case", cases("l4", "must_not_open"))
def test_l4_must_not_open(case: dict[str, Any]) -> None:
    pairs = [tuple(pair) for pair in case["context"]]
    with pytest.raises(ERRORS[case["error"]]) as caught:
        aad.encode_pairs(pairs)  # a mapping cannot hold a key twice
        blob.open_l4(XaesKey(_hex(case["l3"])), _hex(case["kid"]), case["tenant"], dict(pairs), _hex(case["blob"]))
    assert opaque(caught.value, case)


def subject_of(raw: dict[str, Any]) -> aad.Subject:
    return aad.Subject(
        level=aad.Level(raw["level"]),
        tenant=raw["tenant"],
        domain=raw["domain"],
        key=raw["key"],
        version=raw["version"],
        kid=_hex(raw["kid"]),
    )


def same(secret: SecretBytes, expected: str) -> bool:
    return bytes(secret.reveal()).hex() == expected


@pytest.mark.parametrize("case", cases("wraps", "opens"))
def test_wrap_opens(case: dict[str, Any], pages: KeyPages) -> None:
    parent, parent_kid = XaesKey(_hex(case["parent"])), kid.kid_of(_hex(case["parent"]))
    subject = subject_of(case["subject"])
    assert aad.wrap_aad(subject, parent_kid).hex() == case["aad"]
    sealed = wrap.seal_key(parent, parent_kid, subject, pages.put(_hex(case["key"])), _hex(case["nonce"]))
    assert sealed.hex() == case["blob"]
    assert wrap.parse_wrap(sealed).pack() == sealed
    assert same(wrap.open_key(parent, parent_kid, subject, sealed, pages), case["key"])


@pytest.mark.parametrize("case", cases("wraps", "must_not_open"))
def test_wrap_must_not_open(case: dict[str, Any], pages: KeyPages) -> None:
    parent = _hex(case["parent"])
    with pytest.raises(ERRORS[case["error"]]) as caught:
        wrap.open_key(XaesKey(parent), kid.kid_of(parent), subject_of(case["subject"]), _hex(case["blob"]), pages)
    assert opaque(caught.value, case)
    assert pages.slots_in_use == 0


@pytest.mark.parametrize("case", cases("bindings", "opens"))
def test_binding_and_cascade_open(case: dict[str, Any], pages: KeyPages) -> None:
    one_time, ivk, subject = XaesKey(_hex(case["one_time"])), XaesKey(_hex(case["ivk"])), subject_of(case["subject"])
    binding_id, provider = BindingId(case["binding_id"]), _hex(case["provider_blob"])
    assert aad.wrap_aad(subject, binding_id).hex() == case["aad"]
    l2 = pages.put(_hex(case["key"]))
    sealed = wrap.seal_binding(one_time, binding_id, provider, subject, l2, _hex(case["nonce"]))
    assert sealed.hex() == case["blob"]
    assert wrap.digest(sealed) == case["digest"]
    parsed = wrap.parse_binding(sealed)
    assert (parsed.binding_id, parsed.provider_blob, parsed.pack()) == (binding_id, provider, sealed)
    assert same(wrap.open_binding(one_time, binding_id, subject, sealed, pages), case["key"])
    ivk_kid = kid.kid_of(_hex(case["ivk"]))
    cascade = wrap.seal_cascade(ivk, ivk_kid, subject, sealed, _hex(case["cascade_nonce"]))
    assert cascade.hex() == case["cascade"]
    assert wrap.open_cascade(ivk, ivk_kid, subject, cascade) == sealed


@pytest.mark.parametrize("case", cases("bindings", "must_not_open"))
def test_binding_must_not_open(case: dict[str, Any], pages: KeyPages) -> None:
    one_time, binding_id = XaesKey(_hex(case["one_time"])), BindingId(case["binding_id"])
    with pytest.raises(ERRORS[case["error"]]) as caught:
        wrap.open_binding(one_time, binding_id, subject_of(case["subject"]), _hex(case["blob"]), pages)
    assert opaque(caught.value, case)
    assert pages.slots_in_use == 0


@pytest.mark.parametrize("case", cases("bindings", "cascades_must_not_open"))
def test_cascade_must_not_open(case: dict[str, Any]) -> None:
    ivk = _hex(case["ivk"])
    with pytest.raises(ERRORS[case["error"]]) as caught:
        wrap.open_cascade(XaesKey(ivk), kid.kid_of(ivk), subject_of(case["subject"]), _hex(case["blob"]))
    assert opaque(caught.value, case)


SEALED = reference.build_sealed()


@pytest.mark.parametrize("case", cases("sealed", "opens"))
def test_sealed_file_opens(case: dict[str, Any]) -> None:
    plaintext: bytes = SEALED["_plain"][case["why"]]
    header = stream.Header(
        tenant=TenantId(case["header"]["tenant"]),
        service=ServiceName(case["header"]["service"]),
        context=tuple((key, value) for key, value in case["header"]["context"]),
        l4_blob=_hex(case["l4_blob"]),
        salt=_hex(case["salt"]),
        chunk_bytes=case["chunk_bytes"],
    )
    out = io.BytesIO()
    assert stream.seal_stream(io.BytesIO(plaintext), out, l4=_hex(case["l4"]), header=header) == len(plaintext)
    sealed = out.getvalue()
    assert hashlib.sha256(sealed).hexdigest() == case["sealed_sha256"]
    assert case["sealed"] in (None, sealed.hex())
    reader, back = io.BytesIO(sealed), io.BytesIO()
    found = stream.read_header(reader)
    assert found == header
    l4 = blob.open_l4(
        XaesKey(_hex(case["l3"])), blob.blob_kid(found.l4_blob), found.tenant, dict(found.context), found.l4_blob
    )
    assert stream.open_stream(reader, back, l4=l4, header=found) == len(plaintext)
    assert back.getvalue() == plaintext


@pytest.mark.parametrize("case", cases("sealed", "must_not_open"))
def test_sealed_file_must_not_open(case: dict[str, Any]) -> None:
    data: bytes = SEALED["_tampered"][case["why"]]
    assert hashlib.sha256(data).hexdigest() == case["sha256"]
    with pytest.raises(ERRORS[case["error"]]) as caught:
        reader = io.BytesIO(data)
        header = stream.read_header(reader)
        stream.open_stream(reader, io.BytesIO(), l4=_hex(case["l4"]), header=header)
    assert opaque(caught.value, case)
