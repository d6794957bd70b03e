"""Which store is ours: the whole matrix of what is remembered and what is found."""

from __future__ import annotations

import pytest

from keymesh.core.keystore import NEWEST_SCHEMA, StoredIvk, StoreIdentity
from keymesh.core.store_rules import Remembered, check_step, check_store, founding_schema, remember
from keymesh.model.errors import Integrity, Refused
from keymesh.model.ids import Kid
from keymesh.model.states import IvkState
from keymesh.model.time import Instant


def found(store_id: str = "a", region: str = "eu", schema: int = 1) -> StoreIdentity:
    return StoreIdentity(store_id=store_id, region=region, schema=schema)


def known(store_id: str = "a", schema: int = 1, ivk_generation: int = 2) -> Remembered:
    return Remembered(store_id=store_id, schema=schema, ivk_generation=ivk_generation)


def ivks(newest: int) -> list[StoredIvk]:
    return [
        StoredIvk(generation=n, kid=Kid(f"{n:032x}"), state=IvkState.ACTIVE, created_at=Instant(0), wraps=0, blob=b"")
        for n in range(newest, 0, -1)
    ]


@pytest.mark.parametrize(
    ("before", "there", "newest", "code"),
    [
        (None, None, 0, ""),
        (None, found(), 0, ""),
        (None, found(schema=NEWEST_SCHEMA), 7, ""),
        (None, found(schema=NEWEST_SCHEMA + 1), 7, "store-schema-unknown"),
        (None, found(schema=0), 7, "store-schema-unknown"),
        (None, found(region="us"), 2, "store-of-another-region"),
        (known(), None, 0, "store-lost"),
        (known(), None, 2, "store-lost"),
        (known(ivk_generation=0), None, 0, "store-lost"),
        (known(), found("b"), 2, "store-of-another"),
        (known(), found(), 2, ""),
        (known(), found(), 3, ""),
        (known(), found(), 1, "store-rolled-back"),
        (known(), found(), 0, "store-rolled-back"),
        (known(ivk_generation=0), found(), 0, ""),
        (known(schema=2), found(schema=1), 2, "store-rolled-back"),
        (known(schema=1), found(schema=2), 2, ""),
        (known(), found(region="us"), 2, "store-of-another-region"),
        (known(), found(schema=NEWEST_SCHEMA + 1), 2, "store-schema-unknown"),
    ],
)
def test_what_is_used_and_what_is_not(
    before: Remembered | None, there: StoreIdentity | None, newest: int, code: str
) -> None:
    if not code:
        check_store(before, there, ivks(newest), region="eu")
        return
    with pytest.raises(Integrity) as refused:
        check_store(before, there, ivks(newest), region="eu")
    assert refused.value.code == code


def test_what_is_remembered_never_falls() -> None:
    first = remember(None, found(), ivks(1))
    assert first == known(ivk_generation=1)
    assert remember(known(ivk_generation=5, schema=2), found(), ivks(1)) == known(ivk_generation=5, schema=2)
    assert remember(first, found(schema=2), ivks(4)) == known(schema=2, ivk_generation=4)
    assert remember(None, found(), []) == known(ivk_generation=0)


def test_what_release_0_1_wrote_keeps_its_layout_until_it_is_migrated() -> None:
    assert (founding_schema(has_rows=True), founding_schema(has_rows=False)) == (1, NEWEST_SCHEMA)


@pytest.mark.parametrize(
    ("now", "wanted", "code"),
    [
        (1, 1, ""),
        (1, 2, ""),
        (2, 2, ""),
        (2, 1, "schema-backwards"),
        (1, 0, "schema-unknown"),
        (1, NEWEST_SCHEMA + 1, "schema-unknown"),
        (NEWEST_SCHEMA + 1, NEWEST_SCHEMA + 1, "schema-unknown"),
        (NEWEST_SCHEMA + 1, NEWEST_SCHEMA, "schema-unknown"),
    ],
)
def test_a_schema_only_rises_and_only_to_what_is_known(now: int, wanted: int, code: str) -> None:
    if not code:
        check_step(now, wanted)
        return
    with pytest.raises(Refused) as refused:
        check_step(now, wanted)
    assert refused.value.code == code
