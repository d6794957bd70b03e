"""Who is loaded next, and how long thousands of tenants take."""

from __future__ import annotations

from heapq import heappop, heappush

from hypothesis import given
from hypothesis import strategies as st

from keymesh.core.events import LoadKeys
from keymesh.core.l1_budget import CALLS_PER_S, Budget
from keymesh.core.load_queue import WANTED_MAX, LoadQueue
from keymesh.model.time import Instant


def load(namespace: str, correlation_id: str = "") -> LoadKeys:
    return LoadKeys(namespace=namespace, keys=(), bindings=(), correlation_id=correlation_id)


def taken(queue: LoadQueue) -> str | None:
    effect = queue.take()
    return None if effect is None else effect.namespace


def test_in_the_order_of_arrival_and_no_more_than_may_run() -> None:
    queue = LoadQueue(2)
    for name in "abc":
        queue.offer(load(name))
    assert [taken(queue) for _ in range(3)] == ["a", "b", None]
    queue.done("a")
    assert [taken(queue), taken(queue)] == ["c", None]


def test_who_is_waited_for_goes_first_also_where_the_wish_came_before_the_load() -> None:
    queue = LoadQueue(1)
    queue.want("c")
    for name in "abcd":
        queue.offer(load(name))
    queue.want("d")
    order = []
    while (next_one := taken(queue)) is not None:
        order.append(next_one)
        queue.done(next_one)
    assert order == ["c", "d", "a", "b"]


def test_of_a_tenant_one_runs_and_the_newest_waits() -> None:
    queue = LoadQueue(4)
    queue.offer(load("a", "1"))
    assert taken(queue) == "a"
    queue.offer(load("a", "2"))
    queue.offer(load("a", "3"))
    assert taken(queue) is None
    queue.done("a")
    assert queue.take() == load("a", "3")


def test_what_leaves_memory_is_not_loaded() -> None:
    queue = LoadQueue(4)
    queue.offer(load("a"))
    queue.offer(load("b"))
    queue.drop("a")
    assert [taken(queue), taken(queue)] == ["b", None]
    queue.offer(load("c"))
    queue.drop(None)
    assert taken(queue) is None


def test_wishes_have_a_limit() -> None:
    queue = LoadQueue(1)
    for n in range(WANTED_MAX + 9):
        queue.want(f"t{n}")
    assert len(queue.wanted) == WANTED_MAX


@given(st.lists(st.tuples(st.sampled_from("owdte"), st.sampled_from("abcde")), max_size=80), st.integers(1, 3))
def test_whatever_comes_all_that_is_offered_is_loaded_and_few_at_once(script: list[tuple[str, str]], most: int) -> None:
    queue = LoadQueue(most)
    for what, name in script:
        match what:
            case "o":
                queue.offer(load(name))
            case "w":
                queue.want(name)
            case "d":
                queue.drop(name)
            case "t":
                queue.take()
            case "e":
                queue.done(name)
        assert len(queue.running) <= most
    left = set(queue.waiting)
    while left:
        for name in list(queue.running):
            queue.done(name)
        effect = queue.take()
        assert effect is not None
        left.discard(effect.namespace)


def took_ms(tenants: int, call_ms: int, most: int, *, wanted: dict[int, str]) -> dict[str, int]:
    """When each tenant is loaded, in virtual time: one L1 call each, within the account's budget.

    ``wanted``: at which moment somebody asks for whom.
    """
    queue, budget = LoadQueue(most), Budget()
    for n in range(tenants):
        queue.offer(load(f"t{n}"))
    events: list[tuple[int, str, str]] = [(at, "want", name) for at, name in wanted.items()]
    now, done = 0, dict[str, int]()
    while True:
        while (effect := queue.take()) is not None:
            wait = budget.take("account", Instant(now), urgent=True)
            assert wait is not None
            heappush(events, (now + wait + call_ms, "done", effect.namespace))
        if not events:
            return done
        now, what, name = heappop(events)
        if what == "done":
            queue.done(name)
            done[name] = now
        else:
            queue.want(name)


def test_ten_thousand_tenants_at_20_ms_a_call_and_who_is_asked_for_first() -> None:
    """All within 120 s; whoever is asked for meanwhile within a second, though he came last."""
    done = took_ms(10_000, 20, 16, wanted={1_000: "t9999", 5_000: "t9000"})
    assert len(done) == 10_000
    assert max(done.values()) < 120_000
    assert done["t9999"] < 2_000 and done["t9000"] < 6_000
    assert max(done.values()) >= (10_000 - 500) * 1_000 // CALLS_PER_S, "the account's budget is kept"
