"""The published KMIP cases: which are run, that each agrees with itself, and that no pinned value may change unseen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from keymesh.kmip.ttlv import Item, ItemType, decode, encode
from keymesh.kmip.xml_cases import (
    Bindings,
    Case,
    differences,
    now_offset,
    read_case,
    request_item,
)
from keymesh.kmip.xml_form import Element, Value, element_of, item_of
from keymesh.kmip.xml_scope import needs_another, provider_of, skip_reason

NOW = 1_700_000_000


@pytest.fixture(scope="module")
def cases(shared_dir: Path) -> dict[str, Case]:
    directory = shared_dir / "vectors" / "kmip"
    found = sorted(directory.rglob("*.xml"))
    assert len(found) == 177
    return {path.relative_to(directory).as_posix(): read_case(path.read_bytes()) for path in found}


@pytest.fixture(scope="module")
def run(cases: dict[str, Case]) -> dict[str, Case]:
    return {name: case for name, case in cases.items() if not skip_reason(case)}


def answer_of(expected: Element, bindings: Bindings) -> Item:
    """An answer that is the expected one, its placeholders filled in with something."""

    def look(element: Element) -> Value | None:
        text = element.value
        if (offset := now_offset(text)) is not None:
            return NOW + offset
        if not text.startswith("$"):
            return None
        return bindings.named.get(text, text if element.kind == "TextString" else text.encode())

    return decode(encode(item_of(expected, look)))


def test_every_case_without_foreign_objects_is_run(run: dict[str, Case]) -> None:
    assert Counter(name.partition("/")[0] for name in run) == {
        "profiles-1.0-1.2": 72,
        "profiles-2.1": 59,
    }


def test_a_file_s_name_decides_nothing(cases: dict[str, Case]) -> None:
    """The one that is wrong as published falls by its content: it registers an RSA private key."""
    (case,) = (case for name, case in cases.items() if name.endswith("BL-M-9-21.xml"))
    assert skip_reason(case) == "needs private keys, RSA keys"


def test_the_two_that_go_on_have_one_that_they_go_on_from(run: dict[str, Case]) -> None:
    found = {}
    for name, case in run.items():
        beside = {n: c for n, c in run.items() if n != name and n.rpartition("/")[0] == name.rpartition("/")[0]}
        if needs_another(case):
            found[name.rpartition("/")[2]] = (provider_of(case, beside) or "").rpartition("/")[2]
    assert found == {
        "SASED-M-3-21.xml": "SASED-M-2-21.xml",
        "TL-M-3-21.xml": "TL-M-2-21.xml",
    }


def test_each_case_agrees_with_itself(run: dict[str, Case]) -> None:
    for name, case in run.items():
        bindings = Bindings()
        for step, exchange in enumerate(case.exchanges):
            encode(request_item(exchange, bindings, now=NOW))
            answer = answer_of(exchange.response, bindings)
            assert differences(exchange, answer, bindings, now=NOW) == [], (name, step)


def changed(item: Item) -> Iterator[tuple[tuple[Item, ...], Item]]:
    """((items from the outermost to the one that is changed), the whole with that one changed)."""
    if not isinstance(item.value, tuple):
        value = item.value
        other: Value = (
            not value
            if isinstance(value, bool)
            else value + "?"
            if isinstance(value, str)
            else value + b"?"
            if isinstance(value, bytes)
            else value + (100_000 if item.type is ItemType.DATE_TIME else 1)
        )
        yield (item,), replace(item, value=other)
        return
    for at, inner in enumerate(item.value):
        yield (item, inner), replace(item, value=item.value[:at] + item.value[at + 1 :])
        for path, spoilt in changed(inner):
            yield (
                (item, *path),
                replace(item, value=(*item.value[:at], spoilt, *item.value[at + 1 :])),
            )


FREE = {
    "TimeStamp", "ResultMessage", "ServerCorrelationValue", "RandomNumberGenerator", "ServerInformation",
}  # fmt: skip


@pytest.mark.slow
def test_no_pinned_value_changes_or_goes_unseen(run: dict[str, Case]) -> None:
    """Each value of each answer is changed, and dropped; what is not noticed is what may differ."""
    unseen: Counter[str] = Counter()
    seen = 0
    for name, case in run.items():
        if len(case.exchanges) > 20:
            continue
        bindings = Bindings()
        for exchange in case.exchanges:
            request_item(exchange, bindings, now=NOW)
            before = bindings.copy()
            answer = answer_of(exchange.response, bindings)
            for path, spoilt in changed(answer):
                names = [element_of(item).name for item in path]
                told = differences(exchange, spoilt, before.copy(), now=NOW)
                if told:
                    seen += 1
                elif not FREE & set(names) and path[-1].value != "Object Group":
                    unseen[f"{names[-1]} {path[-1].type.name}"] += 1
            assert differences(exchange, answer, bindings, now=NOW) == [], name
    assert seen > 5_000
    # Identifiers and bytes where they are first shown, instants that no request gave, a vendor's own name.
    allowed = {"AttributeValue DATE_TIME", "AttributeValue TEXT_STRING"}
    allowed |= {f"{name} TEXT_STRING" for name in ("UniqueIdentifier", "VendorIdentification")}
    free = (
        "AuthenticatedEncryptionTag",
        "CorrelationValue",
        "Data",
        "IVCounterNonce",
        "KeyMaterial",
        "KeyValue",
    )
    allowed |= {f"{name} BYTE_STRING" for name in (*free, "ShortUniqueIdentifier")}
    assert set(unseen) <= allowed, unseen
