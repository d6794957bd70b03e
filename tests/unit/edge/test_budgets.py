"""The Edge's part of a budget: asked for ahead of need, never used too late, given back, and what its callers hear."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import UNSET
from tests.unit.edge.world import CORE, PUBLIC_KEY, SUITE, Bench, Clocks, hot_lease, hot_path, of, sent

from keymesh.crypto.dsse import key_id
from keymesh.edge import budgets
from keymesh.edge.client import worth_waiting
from keymesh.edge.hot_lease import Budget as HotBudget
from keymesh.edge.hot_lease import BudgetSpent, HotLease, LeasedKey, Meter
from keymesh.edge.purse import Purse
from keymesh.edge.snapshot import BudgetUsed, Closing, SlicesUnused, Trim
from keymesh.model.machine import Tick
from keymesh.model.time import NEVER
from keymesh.orbital.edge_messages import LeaseRequest, SliceGrant, SliceReturned, SliceReturnedMessage

KEYS = {key_id(bytes.fromhex(PUBLIC_KEY)): PUBLIC_KEY}


def slice_grant(ops: int = 1_000, **changed: Any) -> SliceGrant:
    fields: dict[str, Any] = {"ops": ops, "window": 86_400_000, "ends_in_ms": 8_000, "ahead_ms": 4_000, "more": True}
    return SliceGrant(**{**fields, **changed})


def holding(**changed: Any) -> Bench:
    bench = Bench()
    bench.receive(bench.grant(slice=slice_grant(**changed)), at=100)
    return bench


def test_the_first_request_asks_for_the_usual_and_without_a_budget_nobody_asks() -> None:
    bench = Bench()
    assert bench.request.wants is UNSET
    bench.receive(bench.grant(), at=100)
    assert bench.lease().terms is None
    bench.feed(Tick(), at=9_000)
    assert bench.request.wants is UNSET


def test_a_lease_with_a_slice_ends_with_its_window() -> None:
    bench = holding(ends_in_ms=3_000)
    terms = bench.lease().terms
    assert terms is not None
    assert (terms.ops, terms.until, bench.lease().deadline) == (1_000, 3_000, 3_000)
    empty = holding(ops=0, ends_in_ms=3_000, more=False)
    assert empty.lease().deadline == 10_000, "nothing can be used, so nothing ends"


def test_the_next_window_is_asked_for_ahead_and_what_is_held_stays() -> None:
    bench = holding(ends_in_ms=4_000)
    bench.feed(Tick(), at=3_000)
    assert len(sent(bench.log, LeaseRequest)) == 2
    assert isinstance(bench.request.wants, int)
    assert bench.request.wants >= budgets.WANT_MIN


def test_asked_for_when_half_is_used_at_twice_what_was_used() -> None:
    bench = holding(ends_in_ms=60_000)
    assert not sent(bench.feed(BudgetUsed(600, 400, False), at=200), LeaseRequest)
    asked = sent(bench.feed(BudgetUsed(400, 200, True), at=300), LeaseRequest)
    assert [a.wants for a in asked] == [1_200]
    assert not sent(bench.feed(BudgetUsed(100, 300, True), at=310), LeaseRequest), "one at a time"
    nonce = bench.request.nonce
    bench.receive(bench.grant(nonce=nonce, lease_id="lease-2", slice=slice_grant(ops=0, more=False)), at=320)
    assert not sent(bench.feed(BudgetUsed(0, 100, True), at=500), LeaseRequest), "there was no more to be had"


def test_an_empty_slice_of_an_earlier_window_takes_nothing_away() -> None:
    bench = holding(window=2, ends_in_ms=9_000)
    bench.feed(BudgetUsed(400, 600, True), at=200)
    late = slice_grant(ops=0, window=1, ends_in_ms=500, more=False)
    bench.receive(bench.grant(nonce=bench.request.nonce, lease_id="lease-2", slice=late), at=300)
    terms = bench.lease().terms
    assert terms is not None
    assert (terms.window, terms.until, terms.ops) == (2, 9_000, 0)


def test_what_lies_idle_is_given_back_and_said_signed_to_whom_it_came_from() -> None:
    bench = holding(ops=100_000, ends_in_ms=60_000)
    bench.feed(BudgetUsed(99_990, 10, False), at=1_000)
    assert [e.keep for e in of(bench.feed(Tick(), at=8_500), Trim)] == [budgets.KEEP_MIN]
    effects = bench.feed(SlicesUnused((("lease-1", 99_000), ("unknown", 5))))
    words = [SUITE.unseal(m.returned, SliceReturned, KEYS) for m in sent(effects, SliceReturnedMessage)]
    assert [(w.lease_id, w.unused) for w in words] == [("lease-1", 99_000)]
    assert [e.to for e in effects] == [CORE]


def test_after_its_end_an_edge_still_says_what_it_has_not_used() -> None:
    bench = holding()
    bench.feed(Closing())
    assert sent(bench.feed(SlicesUnused((("lease-1", 7),))), SliceReturnedMessage)
    assert not bench.feed(BudgetUsed(1, 1, True))


def test_without_a_window_nothing_is_due() -> None:
    assert budgets.next_request(Bench().state, 5) >= NEVER  # type: ignore[arg-type]


# --- the hot path ----------------------------------------------------------------------------------------------------


def limited(clocks: Clocks, ops: int, *, more: bool = False, mint_budget: int | None = None) -> tuple[Any, Purse]:
    purse = Purse()
    purse.turn(1)
    purse.add("l1", ops)
    end_ns = clocks.boot + 5_500 * 1_000_000
    meter = Meter(mint_budget, None, HotBudget(purse.stream(), lambda: purse.left, end_ns, more))
    plain = hot_lease(clocks, "v1")
    keys: list[LeasedKey] = list(plain.versions.values())
    lease = HotLease(keys=keys, wrapping=keys[-1], meter=meter)
    lease.boot_end, lease.wall_end, lease.lead_floor = plain.boot_end, plain.wall_end, plain.lead_floor
    hot = hot_path(clocks)
    hot.publish(lease)
    return hot, purse


def test_mints_and_opens_share_the_budget_and_are_counted_apart() -> None:
    hot, purse = limited(Clocks(), 5)
    blob = hot.create_key().blob
    for _ in range(2):
        hot.decrypt_key(blob)
    hot.create_keys(2)
    with pytest.raises(BudgetSpent) as caught:
        hot.create_key()
    assert (caught.value.code, caught.value.retry_after_ms, caught.value.more) == ("budget-spent", 5_500, False)
    with pytest.raises(BudgetSpent):
        hot.decrypt_key(blob)
    assert hot.take_usage() == (3, 2, 2)
    assert purse.left == 0


def test_a_batch_that_is_too_large_uses_nothing_up() -> None:
    hot, purse = limited(Clocks(), 5, more=True)
    with pytest.raises(BudgetSpent) as caught:
        hot.create_keys(6)
    assert worth_waiting(caught.value), "the Core had more"
    blob = hot.create_keys(2)[0].blob
    with pytest.raises(BudgetSpent):
        hot.decrypt_keys([blob] * 4)
    assert (purse.left, hot.short) == (3, 6)
    assert len(hot.decrypt_keys([blob] * 3)) == 3


def test_a_leases_own_limit_uses_nothing_of_the_budget_up() -> None:
    hot, purse = limited(Clocks(), 50, mint_budget=2)
    hot.create_keys(2)
    for _ in range(5):
        with pytest.raises(BudgetSpent, match="this lease's budget"):
            hot.create_key()
    assert purse.left == 48
