"""The list of seals: bound to the MasterKey, never empty, tried in order."""

from __future__ import annotations

import hmac
import json
from typing import Any

import msgspec
import pytest

from keymesh.core.seals import (
    Kind,
    MasterRecord,
    Seal,
    check_left,
    new_record,
    parse_record,
    seal_of,
    tried,
    verify_record,
    without,
)
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, Refused
from keymesh.model.limits import SEALS_MAX

MASTER = bytes(range(32))


def seal(name: str, kind: Kind = Kind.FILE, **parameters: Any) -> Seal:
    return Seal(id=name, kind=kind, sealed="00", parameters=parameters)


ALL = (seal("f", key_file="f.key"), seal("s", Kind.SHAMIR), seal("b", Kind.OPENBAO), seal("p", Kind.PKCS11, token="t"))


def test_a_record_is_whole_or_one_answer() -> None:
    record = new_record("eu", MASTER, ALL)
    verify_record(record, "eu", MASTER)
    assert parse_record(strict_json.dumps(record)) == record
    change = msgspec.structs.replace
    tampered: list[MasterRecord] = [
        change(record, seals=record.seals[:-1]),
        change(record, seals=(*record.seals, seal("x"))),
        change(record, seals=record.seals[::-1]),
        change(record, seals=(change(ALL[0], sealed="01"), *ALL[1:])),
        change(record, seals=(change(ALL[0], parameters={}), *ALL[1:])),
        change(record, seals=(change(ALL[0], id="g"), *ALL[1:])),
        change(record, seals=(change(ALL[0], kind=Kind.SHAMIR), *ALL[1:])),
        change(record, kid="0" * 32),
        change(record, tag="0" * 64),
        new_record("eu", bytes(32), ALL),
    ]
    said = set()
    for bad in tampered:
        with pytest.raises(Integrity) as caught:
            verify_record(bad, "eu", MASTER)
        said.add((caught.value.code, caught.value.message, caught.value.field))
    with pytest.raises(Integrity):
        verify_record(record, "us", MASTER)
    assert said == {("integrity", "could not be opened", None)}


def test_a_list_has_limits() -> None:
    for wrong in ((), (ALL[0], ALL[0]), tuple(seal(f"s{n}") for n in range(SEALS_MAX + 1)), (seal("UPPER"),)):
        with pytest.raises(Refused):
            new_record("eu", MASTER, wrong)


def test_seals_are_tried_as_configured_then_as_recorded_and_shares_never() -> None:
    record = new_record("eu", MASTER, ALL)

    def names(*order: str) -> str:
        return "".join(s.id for s in tried(record, order))

    assert names() == "fbp"
    assert names("p") == "pfb"
    assert names("pkcs11", "openbao") == "pbf"
    assert names("b", "file", "nothing", "shamir") == "bfp"


def test_the_last_seal_and_the_last_that_opens_stay() -> None:
    record = new_record("eu", MASTER, ALL)
    assert [s.id for s in without(record, "b")] == ["f", "s", "p"]
    for name in ("x", ""):
        with pytest.raises(Refused) as absent:
            seal_of(record, name)
        assert absent.value.code == "not-found"
    with pytest.raises(Refused) as last:
        without(new_record("eu", MASTER, ALL[:1]), "f")
    assert last.value.code == "last-seal"
    check_left((ALL[0], ALL[2]), {"b"})
    check_left((ALL[0], ALL[1]), set())  # people's shares
    for opening in (set(), {"p"}):
        with pytest.raises(Refused) as none:
            check_left((ALL[0], ALL[2]), opening)
        assert none.value.code == "no-seal-opens"


def test_the_tag_is_what_the_formats_page_says() -> None:
    """Written out again with HMAC alone, and as a fixed value: records of this release must open in later ones."""
    record = new_record("eu", MASTER, ALL)
    body = json.loads(strict_json.dumps(record)) | {"tag": ""}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    label = b"keymesh/seals/1"
    extracted = hmac.digest(bytes(32), MASTER, "sha256")
    key = hmac.digest(extracted, label + b"\x01", "sha256")
    assert record.tag == hmac.digest(key, label + b"\0\0\0\x02eu" + text, "sha256").hex()
    assert record.tag == "462374be74964f1f418cfc479b7d0122347beed648e954ce38e905f2f1c203df"
