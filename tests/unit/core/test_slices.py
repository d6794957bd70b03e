"""Budgets at a Core's machine: counted before they leave, given back once, kept over crashes, clocks and periods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from keymesh.control.rows import BudgetRow
from keymesh.core import budget, slices
from keymesh.core.budget import Account
from keymesh.core.events import BudgetReply, UseBudget
from keymesh.model.machine import ClockWentAhead, Note, Persist, Persisted, Received
from keymesh.model.periods import Period, number_at
from keymesh.model.time import Instant
from keymesh.orbital.edge_messages import LeaseGrant, SliceGrant, SliceReturned, SliceReturnedMessage
from keymesh.sim.suite import FakeSuite
from tests.unit.core.bench import SERVICE, TENANT, Bench, Edge, furnished

MINUTE_MS = 60_000
current, touched, come_back = budget.current, budget.touched, slices._come_back


def budgeted(ops: int | None = 10_000, *, service: str = SERVICE, period: str = "minute", **row: Any) -> Bench:
    """A node of a tenant with a budget.  Its share of it is ``share``."""
    mesh = furnished()
    fields = {"version": 1, "period": period, "ops": ops, **row}
    mesh.do(TENANT, "budget.set", {"service": service, "row": fields})
    bench = Bench(mesh)
    bench.now = Instant(30_000_000)  # the beginning of a minute, and of an hour no
    bench.boot()
    return bench.up()


def share(bench: Bench, total: int) -> int:
    policy = bench.state.tenants[TENANT].view.policy
    assert policy is not None
    return budget.share_of(total, bench.region, policy.regions, policy.home)


def grant(bench: Bench, edge: Edge, **asked: Any) -> LeaseGrant:
    bench.take()
    bench.receive(edge.request(**asked), edge.address)
    return bench.sent(LeaseGrant)[-1]


def slice_of(bench: Bench, edge: Edge, **asked: Any) -> SliceGrant:
    found = grant(bench, edge, **asked).slice
    assert isinstance(found, SliceGrant)
    return found


def give_back(bench: Bench, edge: Edge, lease_id: str, unused: int, *, suite: FakeSuite | None = None) -> None:
    said = SliceReturned(lease_id=lease_id, edge=edge.address, unused=unused)
    bench.feed(Received(edge.address, SliceReturnedMessage(returned=(suite or edge.suite).seal(said))))


def spent(bench: Bench, service: str = SERVICE) -> int:
    account = bench.state.accounts[TENANT, service]
    return account.of(account.floor).ops


def drain(bench: Bench, edge: Edge) -> int:
    """Everything that is to be had."""
    total = 0
    for _ in range(60):
        found = slice_of(bench, edge, wants=10**9)
        bench.state.edge_leases.clear()  # the limit on leases is another test's
        total += found.ops
        if not found.ops:
            assert not found.more
            return total
    raise AssertionError("never spent")


def test_without_a_budget_there_is_no_slice() -> None:
    bench = Bench().up()
    bench.receive(Edge().request(), Edge().address)
    assert "slice" not in bench.sent(LeaseGrant)[0].__struct_fields__ or not isinstance(
        bench.sent(LeaseGrant)[0].slice, SliceGrant
    )


def test_a_slice_is_recorded_with_its_lease_before_it_leaves() -> None:
    bench, edge = budgeted(), Edge()
    first = grant(bench, edge)
    assert isinstance(first.slice, SliceGrant)
    assert first.slice.ops == max(budget.SLICE_MIN, share(bench, 10_000) // 16)
    names = [type(getattr(e, "message", e)).__name__ for e in bench.out]
    assert names.index("Persist") < names.index("LeaseGrant")
    puts = next(dict(e.puts) for e in bench.out if isinstance(e, Persist))
    assert {f"budget/{TENANT}/{SERVICE}", f"slice/{first.lease_id}", f"edge-lease/{first.lease_id}"} <= puts.keys()
    assert spent(bench) == first.slice.ops


def test_what_could_not_be_recorded_is_not_spent() -> None:
    bench, edge = budgeted(), Edge()
    bench.disk_works = False
    assert bench.refusal(edge) == "retry"
    assert spent(bench) == 0


def test_never_more_than_the_share_and_edges_that_die_have_spent_theirs() -> None:
    bench = budgeted()
    total = sum(drain(bench, Edge(f"e{n}")) for n in range(3))
    assert total == share(bench, 10_000)
    bench.reboot()
    bench.up()
    assert slice_of(bench, Edge("late")).ops == 0


def test_the_tenants_budget_binds_every_service_beside_their_own() -> None:
    bench = budgeted(10_000)
    bench.mesh.do(TENANT, "budget.set", {"service": "", "row": {"version": 1, "period": "minute", "ops": 600}})
    bench.up()
    assert drain(bench, Edge()) == share(bench, 600)
    assert spent(bench) == spent(bench, "") == share(bench, 600)


def test_money_limits_too() -> None:
    bench = budgeted(None, money=1_000_000, price=2_000_000)  # one unit of money, two for 1 000 operations
    assert drain(bench, Edge()) == share(bench, 1_000_000 * 1_000) // 2_000_000


def test_unused_parts_come_back_once_whoever_says_it_again() -> None:
    bench, edge = budgeted(), Edge()
    taken = grant(bench, edge)
    assert isinstance(taken.slice, SliceGrant)
    ops = taken.slice.ops
    for _ in range(3):
        give_back(bench, edge, taken.lease_id, 40)
        assert spent(bench) == ops - 40
    give_back(bench, edge, taken.lease_id, 30)  # an older word
    assert spent(bench) == ops - 40
    give_back(bench, edge, taken.lease_id, 100)
    assert spent(bench) == ops - 100
    bench.reboot()
    bench.up()
    give_back(bench, edge, taken.lease_id, 100)
    assert spent(bench) == ops - 100, "a replay after a restart"


@pytest.mark.parametrize("how", ["too-many", "negative", "stranger", "other-key", "other-lease"])
def test_words_that_give_nothing_back(how: str) -> None:
    bench, edge, other = budgeted(), Edge(), Edge("e2")
    taken, others = grant(bench, edge), grant(bench, other)
    before = spent(bench)
    assert isinstance(taken.slice, SliceGrant)
    match how:
        case "too-many":
            give_back(bench, edge, taken.lease_id, taken.slice.ops + 1)
        case "negative":
            give_back(bench, edge, taken.lease_id, -5)
        case "stranger":
            give_back(bench, other, taken.lease_id, 5)
        case "other-key":  # another life of the same Edge, or a clone that has made itself a key
            give_back(bench, edge, taken.lease_id, 5, suite=FakeSuite("another"))
        case _:
            give_back(bench, edge, others.lease_id, 5)
    assert spent(bench) == before
    assert "slice-return-refused" in [e.name for e in bench.out if isinstance(e, Note)]


def test_a_grant_that_was_overtaken_by_a_restriction_takes_nothing_with_it() -> None:
    bench, edge = budgeted(), Edge()
    bench.crash_at_persist = True
    bench.receive(edge.request(), edge.address)
    token, pending = next((t, p) for t, p in bench.state.persisting.items() if t.startswith("edge-lease"))
    bench.crash_at_persist = False
    bench.state.tenants[TENANT].lease = None  # closed meanwhile
    bench.state.persisting[token] = pending
    bench.feed(Persisted(token))
    assert not bench.sent(LeaseGrant)
    assert spent(bench) == 0


def test_shortly_before_the_end_a_slice_counts_in_both_periods() -> None:
    bench, edge = budgeted(), Edge()
    early = slice_of(bench, edge)
    bench.advance(50_000)
    bench.up()
    late = slice_of(bench, edge, wants=200)
    assert late.window == early.window + MINUTE_MS
    account = bench.state.accounts[TENANT, SERVICE]
    assert (account.of(account.floor).ops, account.of(account.floor + 1).ops) == (early.ops + late.ops, late.ops)


def test_when_one_period_is_spent_the_next_one_is_not_touched() -> None:
    bench, edge = budgeted(), Edge()
    drain(bench, edge)
    bench.advance(58_000)
    bench.up()
    late = slice_of(bench, edge)
    assert (late.ops, late.more) == (0, False)
    assert 0 < late.ends_in_ms <= 2_000, "until the period ends"
    bench.advance(2_000)
    bench.up()
    assert slice_of(bench, Edge("e2")).ops > 0


def test_a_clock_that_is_set_back_opens_no_new_period() -> None:
    bench = budgeted(period="minute")
    bench.advance(60_000)
    bench.up()
    drain(bench, Edge())
    bench.now = Instant(bench.now - 10 * MINUTE_MS)
    bench.reboot(kernel=True)
    bench.up()
    late = slice_of(bench, Edge("e2"))
    assert late.ops == 0
    assert late.ends_in_ms > 9 * MINUTE_MS, "until the period that was seen ends"


def test_a_clock_that_jumps_ahead_carries_open_slices_into_the_new_period() -> None:
    bench = budgeted()
    held = drain(bench, Edge())
    bench.now = Instant(bench.now + 5 * MINUTE_MS)
    bench.feed(ClockWentAhead(5 * MINUTE_MS))
    bench.up()
    assert slice_of(bench, Edge("e2")).ops == 0, "the Edges' clocks may not have jumped"
    assert spent(bench) == held


def test_a_larger_budget_counts_at_once_and_a_smaller_one_takes_nothing_back() -> None:
    bench = budgeted(1_000)
    held = drain(bench, Edge())
    for version, ops, more in ((2, 400, 0), (3, 3_000, share(bench, 3_000) - held)):
        row = {"version": version, "period": "minute", "ops": ops}
        bench.mesh.do(TENANT, "budget.set", {"service": SERVICE, "row": row})
        bench.up()
        assert drain(bench, Edge(f"e{version}")) == more


def test_an_old_edge_gets_its_slice_too() -> None:
    """It does not know the field, refuses the grant, and so uses nothing that is not counted."""
    assert slice_of(budgeted(), Edge()).ops > 0


# --- at the Core -----------------------------------------------------------------------------------------------------


def use(bench: Bench, ops: int) -> BudgetReply:
    bench.take()
    bench.feed(UseBudget("t1", TENANT, SERVICE, ops))
    return next(e for e in bench.out if isinstance(e, BudgetReply))


def test_use_at_the_core_is_recorded_before_it_is_allowed_all_or_none() -> None:
    bench = budgeted()
    whole = share(bench, 10_000)
    assert use(bench, whole - 5).allowed
    kinds = [type(e) for e in bench.out]
    assert kinds.index(Persist) < kinds.index(BudgetReply)
    refused = use(bench, 6)
    assert (refused.allowed, refused.reason) == (False, "budget-spent")
    assert 0 < refused.retry_after_ms <= MINUTE_MS
    bench.reboot()
    bench.up()
    assert not use(bench, 6).allowed
    assert use(bench, 5).allowed


def test_use_at_the_core_that_cannot_be_recorded_is_refused_and_not_spent() -> None:
    bench = budgeted()
    bench.disk_works = False
    assert use(bench, 5).reason == "storage"
    bench.disk_works = True
    assert use(bench, share(bench, 10_000)).allowed


def test_use_of_a_tenant_that_is_not_here_is_refused() -> None:
    bench = budgeted()
    bench.take()
    bench.feed(UseBudget("t1", "globex", SERVICE, 1))
    assert [e.allowed for e in bench.out if isinstance(e, BudgetReply)] == [False]


# --- anything at all -------------------------------------------------------------------------------------------------


class Holder:
    """An Edge with its own clock: what it may use until when, by real time."""

    def __init__(self, name: str) -> None:
        self.edge = Edge(name)
        self.slices: list[list[Any]] = []  # [lease id, left, until (real), unused]


class Budgets(RuleBasedStateMachine):
    """Edges take, use and give back; the Core crashes, its clock jumps; nobody ever uses more in a period."""

    @initialize(ops=st.integers(0, 3_000))
    def start(self, ops: int) -> None:
        self.bench = budgeted(ops)
        self.share = share(self.bench, ops)
        self.real = 0
        self.holders = [Holder(f"h{n}") for n in range(3)]
        self.used: dict[int, int] = {}
        self.seen = 0

    def period(self) -> int:
        """By the Core's clock; one that is set back makes no period earlier than one that was seen."""
        self.seen = max(self.seen, number_at(Period.MINUTE, self.bench.now))
        return self.seen

    @rule(who=st.integers(0, 2), wants=st.one_of(st.none(), st.integers(0, 5_000)), heard=st.booleans())
    def ask(self, who: int, wants: int | None, heard: bool) -> None:
        self.bench.up()
        self.bench.take()
        holder = self.holders[who]
        asked = {} if wants is None else {"wants": wants}
        self.bench.receive(holder.edge.request(**asked), holder.edge.address)
        for found in self.bench.sent(LeaseGrant):
            if heard and isinstance(found.slice, SliceGrant):
                until = self.real + found.slice.ends_in_ms
                holder.slices.append([found.lease_id, found.slice.ops, until, 0])
        self.bench.state.edge_leases.clear()

    @rule(who=st.integers(0, 2), part=st.integers(1, 4))
    def use(self, who: int, part: int) -> None:
        for held in self.holders[who].slices:
            if self.real < held[2]:
                ops = held[1] // part
                held[1] -= ops
                self.used[self.period()] = self.used.get(self.period(), 0) + ops

    @rule(who=st.integers(0, 2), part=st.integers(1, 4), again=st.booleans())
    def give(self, who: int, part: int, again: bool) -> None:
        holder = self.holders[who]
        for held in holder.slices:
            back = held[1] // part
            held[1] -= back
            held[3] += back
            for _ in range(1 + again):
                give_back(self.bench, holder.edge, held[0], held[3])

    @rule(ms=st.sampled_from((500, 5_000, 31_000, 70_000)))
    def time(self, ms: int) -> None:
        self.bench.advance(ms)
        self.real += ms

    @rule(kernel=st.booleans(), torn=st.booleans())
    def crash(self, kernel: bool, torn: bool) -> None:
        if torn:
            self.bench.crash_at_persist = True
            self.bench.receive(self.holders[0].edge.request(), self.holders[0].edge.address)
            self.bench.crash_at_persist = False
        self.bench.reboot(kernel=kernel)

    @rule(ms=st.sampled_from((2_000, 45_000, 300_000)))
    def jump(self, ms: int) -> None:
        self.bench.now = Instant(self.bench.now + ms)
        self.bench.feed(ClockWentAhead(ms))

    @rule(ms=st.sampled_from((2_000, 45_000, 300_000)))
    def set_back(self, ms: int) -> None:
        self.period()
        self.bench.now = Instant(self.bench.now - ms)
        self.bench.reboot(kernel=True)

    @invariant()
    def kept(self) -> None:
        for period, ops in getattr(self, "used", {}).items():
            assert ops <= self.share, (period, ops, self.share)


TestBudgets = Budgets.TestCase
TestBudgets.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


def by_the_clock_alone(account: Account | None, row: BudgetRow, now: Instant) -> Account:
    fresh = current(None, row, now)
    return fresh if account is None or fresh.floor < account.floor else current(account, row, now)


@pytest.mark.parametrize(
    ("where", "name", "broken", "test"),
    [
        (budget, "current", by_the_clock_alone, test_a_clock_that_is_set_back_opens_no_new_period),
        (slices, "extend_all", lambda *_: None, test_a_clock_that_jumps_ahead_carries_open_slices_into_the_new_period),
        (
            slices,
            "_come_back",
            lambda state, record, unused: come_back(state, replace(record, unused=0), unused),
            test_unused_parts_come_back_once_whoever_says_it_again,
        ),
        (
            budget,
            "touched",
            lambda account, until: touched(account, until)[:1],
            test_shortly_before_the_end_a_slice_counts_in_both_periods,
        ),
    ],
)
def test_planted_bugs_are_found(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, broken: Any, test: Callable[[], None]
) -> None:
    monkeypatch.setattr(where, name, broken)
    with pytest.raises(AssertionError):
        test()
