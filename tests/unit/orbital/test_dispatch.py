"""Lanes of one node: order, gate, merging, retries, parking."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from keymesh.model.ids import Namespace
from keymesh.model.states import Lane
from keymesh.model.time import NEVER, Instant
from keymesh.orbital import dispatch
from keymesh.orbital.dispatch import Item, NodeQueue

A, B = Namespace("acme"), Namespace("beta")
T0 = Instant(10_000)


def at(ms: int) -> Instant:
    return Instant(T0 + ms)


def item(seq: int, namespace: Namespace = A, scope: str = "") -> Item:
    return Item(namespace, seq, f"c{seq}", scope=scope)


def lower(queue: NodeQueue, seq: int, namespace: Namespace = A, lane: Lane = Lane.ROUTINE, **kwargs: int) -> None:
    dispatch.offer_lower(queue, lane, item(seq, namespace), **kwargs)


def of(queue: NodeQueue, lane: Lane) -> list[Item]:
    return [found for items in queue.lower[lane].values() for found in items]


def test_lane_0_goes_at_once_and_again_every_second_for_ever() -> None:
    queue = NodeQueue()
    dispatch.offer_urgent(queue, item(1, scope="tenant:acme"), T0)
    assert [u.item.seq for u in dispatch.due_urgent(queue, T0)] == [1]
    assert dispatch.due_urgent(queue, at(999)) == []
    assert len(dispatch.due_urgent(queue, at(1_000))) == 1
    far = at(10**9)
    assert len(dispatch.due_urgent(queue, far)) == 1
    assert dispatch.next_due(queue) == far + 1_000


def test_lane_0_goes_slower_to_a_silent_node_and_at_full_pace_once_it_is_heard() -> None:
    queue = NodeQueue()
    dispatch.offer_urgent(queue, item(1, scope="tenant:acme"), T0)
    for second in range(dispatch.URGENT_SILENT_SENDS):
        assert len(dispatch.due_urgent(queue, at(second * 1_000))) == 1
    last = at((dispatch.URGENT_SILENT_SENDS - 1) * 1_000)
    assert dispatch.next_due(queue) == last + 5_000
    dispatch.heard(queue)
    assert dispatch.next_due(queue) == last + 1_000
    dispatch.resend_all(queue, T0)
    assert dispatch.next_due(queue) == T0


def test_namespaces_are_those_of_which_something_waits_or_is_out() -> None:
    queue = NodeQueue()
    assert dispatch.namespaces(queue) == set()
    lower(queue, 2, B)
    assert dispatch.namespaces(queue) == {B}
    assert dispatch.next_lower(queue, T0) is not None
    assert dispatch.namespaces(queue) == {B}
    dispatch.offer_urgent(queue, item(1, scope="tenant:acme"), T0)
    assert dispatch.namespaces(queue) == {A, B}
    dispatch.settle(queue, B, 2, ())
    assert dispatch.namespaces(queue) == {A}


def test_each_restriction_keeps_its_place_and_only_a_newer_one_of_its_scope_takes_it() -> None:
    queue = NodeQueue()
    dispatch.offer_urgent(queue, item(1, scope="tenant:acme"), T0)
    dispatch.offer_urgent(queue, item(2, scope="service:acme/pay"), T0)
    dispatch.offer_urgent(queue, item(4, scope="tenant:acme"), T0)
    dispatch.offer_urgent(queue, item(3, scope="tenant:acme"), T0)
    assert sorted(u.item.seq for u in queue.urgent.values()) == [2, 4]


def test_lane_0_ends_only_by_a_word_that_names_its_scope() -> None:
    queue = NodeQueue()
    dispatch.offer_urgent(queue, item(1, scope="tenant:acme"), T0)
    dispatch.settle(queue, A, 5, ())
    assert queue.urgent
    dispatch.settle(queue, A, 0, ("tenant:acme",))
    dispatch.settle(queue, B, 5, ("tenant:acme",))
    assert queue.urgent
    dispatch.settle(queue, A, 1, ("tenant:acme",))
    assert not queue.urgent


def test_one_lower_task_in_flight_lane_1_first() -> None:
    queue = NodeQueue()
    lower(queue, 1)
    lower(queue, 2, B)
    lower(queue, 3, A, Lane.ONBOARDING)
    first = dispatch.next_lower(queue, T0)
    assert first is not None
    assert (first.lane, first.item.seq) == (Lane.ONBOARDING, 3)
    assert dispatch.next_lower(queue, T0) is None
    dispatch.settle(queue, A, 3, ())  # and with it the older entry of the same namespace
    second = dispatch.next_lower(queue, T0)
    assert second is not None
    assert (second.lane, second.item.namespace) == (Lane.ROUTINE, B)


def test_no_lower_task_while_a_young_restriction_is_out_and_progress_after_two_seconds() -> None:
    queue = NodeQueue()
    lower(queue, 1)
    dispatch.offer_urgent(queue, item(2, B, "tenant:beta"), T0)
    assert dispatch.next_lower(queue, T0) is None
    assert dispatch.next_lower(queue, at(1_999)) is None
    assert dispatch.next_lower(queue, at(2_000)) is not None


def test_a_flight_is_not_resent_while_the_gate_is_shut() -> None:
    queue = NodeQueue()
    lower(queue, 1)
    assert dispatch.next_lower(queue, T0)
    dispatch.offer_urgent(queue, item(2, B, "tenant:beta"), at(1_900))
    assert dispatch.resend_lower(queue, at(2_500), heard_since=False) == (None, None)
    again, _ = dispatch.resend_lower(queue, at(3_900), heard_since=False)
    assert again is not None


def test_merging_starts_past_the_bound_and_keeps_the_newest() -> None:
    queue = NodeQueue()
    for seq in range(1, 257):
        lower(queue, seq)
    assert queue.depth(Lane.ROUTINE) == 256
    lower(queue, 257)
    assert queue.depth(Lane.ROUTINE) == 1
    flight = dispatch.next_lower(queue, T0)
    assert flight is not None
    assert (flight.item.seq, flight.item.merged) == (257, 257)


def test_namespaces_take_turns() -> None:
    queue = NodeQueue()
    for seq in range(1, 50):
        lower(queue, seq)
    lower(queue, 1, B)
    order = []
    for _ in range(3):
        flight = dispatch.next_lower(queue, T0)
        assert flight is not None
        order.append((flight.item.namespace, flight.item.seq))
        dispatch.settle(queue, flight.item.namespace, flight.item.seq, ())
    assert order == [(A, 1), (B, 1), (A, 2)]


def test_poison_is_parked_after_three_tries_and_others_go_on() -> None:
    queue = NodeQueue()
    lower(queue, 1)
    lower(queue, 1, B)
    outcomes = []
    done = []
    while (flight := dispatch.next_lower(queue, T0)) is not None:
        if flight.item.namespace == A:
            outcomes.append(dispatch.fail(queue, A, 1, "poison", T0))
        else:
            done.append(flight.item.namespace)
            dispatch.settle(queue, B, 1, ())
    assert done == [B]
    assert [o is not None for o in outcomes] == [False, False, True]
    assert queue.parked[A].reason == "poison"
    lower(queue, 1)
    assert dispatch.next_lower(queue, T0) is None  # the same content is not tried again
    lower(queue, 2)
    assert dispatch.next_lower(queue, T0) is not None  # newer content is


def test_silence_of_a_node_that_speaks_counts_as_a_failure_and_frees_the_slot() -> None:
    queue = NodeQueue()
    lower(queue, 1)
    lower(queue, 1, B)
    assert dispatch.next_lower(queue, T0)
    now, parked = T0, None
    for _ in range(10):
        assert queue.flight is not None
        now = dispatch.lower_retry_at(queue.flight)
        _, parked = dispatch.resend_lower(queue, now, heard_since=True)
        if parked is not None:
            break
    assert parked is not None
    assert parked.namespace == A
    following = dispatch.next_lower(queue, now)
    assert following is not None
    assert following.item.namespace == B


def test_silence_of_a_node_that_is_away_counts_for_nothing() -> None:
    queue = NodeQueue()
    lower(queue, 1)
    assert dispatch.next_lower(queue, T0)
    now = T0
    for _ in range(20):
        assert queue.flight is not None
        now = dispatch.lower_retry_at(queue.flight)
        again, parked = dispatch.resend_lower(queue, now, heard_since=False)
        assert again is not None
        assert parked is None


def test_a_parked_task_is_tried_again_after_a_while() -> None:
    queue = NodeQueue()
    queue.parked[A] = dispatch.Parked(A, 1, "disk full", T0)
    assert not dispatch.unpark(queue, A, at(999), after_ms=1_000)
    assert dispatch.unpark(queue, A, at(1_000), after_ms=1_000)
    assert dispatch.unpark(queue, A, at(1_000), after_ms=1_000)


def test_a_refused_restriction_is_never_dropped_and_holds_nobody_up() -> None:
    queue = NodeQueue()
    dispatch.offer_urgent(queue, item(1, scope="tenant:acme"), T0)
    told = [dispatch.fail(queue, A, 1, "quarantined", T0) for _ in range(5)]
    assert [t is not None for t in told] == [False, False, True, False, False]
    assert queue.urgent
    lower(queue, 2, B)
    assert dispatch.next_lower(queue, at(2_000)) is not None


def test_an_empty_queue_wants_nothing() -> None:
    assert dispatch.next_due(NodeQueue()) == NEVER


def test_a_node_that_connects_gets_at_once_what_may_have_been_lost() -> None:
    queue = NodeQueue()
    lower(queue, 1, B)
    assert dispatch.next_lower(queue, T0)
    dispatch.offer_urgent(queue, item(2, scope="tenant:acme"), T0)
    dispatch.due_urgent(queue, T0)
    dispatch.resend_all(queue, T0)
    assert len(dispatch.due_urgent(queue, at(1))) == 1
    again, _ = dispatch.resend_lower(queue, at(2_001), heard_since=False)
    assert again is not None


def test_to_a_node_that_comes_back_restrictions_of_all_namespaces_go_first() -> None:
    """However old they are: it was away for longer than the gate."""
    queue = NodeQueue()
    lower(queue, 1, B)
    dispatch.offer_urgent(queue, item(2, scope="tenant:acme"), T0)
    dispatch.resend_all(queue, at(60_000))
    assert dispatch.next_lower(queue, at(60_001)) is None
    assert len(dispatch.due_urgent(queue, at(60_001))) == 1
    dispatch.settle(queue, A, 2, {"tenant:acme"})
    assert dispatch.next_lower(queue, at(60_001)) is not None


def test_a_restriction_that_is_always_refused_holds_up_nobody_who_comes_back() -> None:
    queue = NodeQueue()
    lower(queue, 1, B)
    dispatch.offer_urgent(queue, item(2, scope="tenant:acme"), T0)
    for _ in range(3):
        dispatch.fail(queue, A, 2, "unknown-kind", T0)
    dispatch.resend_all(queue, at(60_000))
    assert dispatch.next_lower(queue, at(60_001)) is not None


def test_a_node_that_comes_back_gets_the_newest_state_alone_of_each_namespace() -> None:
    """Also in place of what was out when it went, in the more urgent of the lanes, with all that it stands for."""
    queue = NodeQueue()
    for seq in (1, 2, 3):
        lower(queue, seq, B)
    assert dispatch.next_lower(queue, T0) is not None
    dispatch.offer_lower(queue, Lane.ONBOARDING, item(4, B))
    lower(queue, 5, B)
    lower(queue, 7, A)
    dispatch.resend_all(queue, at(60_000))
    assert queue.flight is None
    waits = {lane: [(i.namespace, i.seq, i.merged) for i in of(queue, lane)] for lane in dispatch.LOWER_LANES}
    assert waits == {Lane.ONBOARDING: [(B, 5, 5)], Lane.ROUTINE: [(A, 7, 1)]}


def test_what_is_out_and_the_newest_stays_out_with_its_tries_when_the_node_comes_back() -> None:
    queue = NodeQueue()
    lower(queue, 1, B)
    flight = dispatch.next_lower(queue, T0)
    assert flight is not None
    flight.tries = 2
    dispatch.resend_all(queue, at(10))
    again, _ = dispatch.resend_lower(queue, at(11), heard_since=False)
    assert again is flight and flight.tries == 2


@given(
    st.lists(
        st.tuples(st.sampled_from([Lane.ONBOARDING, Lane.ROUTINE]), st.sampled_from([A, B])), min_size=1, max_size=60
    ),
    st.integers(1, 8),
)
def test_whatever_is_offered_is_reached_in_the_end(offers: list[tuple[Lane, Namespace]], merge_after: int) -> None:
    """An answering node reaches the newest entry of each namespace, and the backlog is bounded by entities."""
    queue = NodeQueue()
    heads = {A: 0, B: 0}
    for lane, namespace in offers:
        heads[namespace] += 1
        dispatch.offer_lower(queue, lane, item(heads[namespace], namespace), merge_after=merge_after)
        assert queue.depth(lane) <= 2 * merge_after
    reached = {A: 0, B: 0}
    while (flight := dispatch.next_lower(queue, T0)) is not None:
        assert flight.item.seq > reached[flight.item.namespace]
        reached[flight.item.namespace] = flight.item.seq
        dispatch.settle(queue, flight.item.namespace, flight.item.seq, ())
    assert reached == heads
