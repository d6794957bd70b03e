"""The orderly end: dropped first, given back after, and nothing taken from then on."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.edge.test_hints import READY, due, refuse
from tests.unit.edge.world import CORE, OTHER_CORE, PUBLIC_KEY, SUITE, Bench, of, revocation, sent

from keymesh.crypto.dsse import key_id
from keymesh.edge.snapshot import Closing, Connected, KeyWanted, Publish, SendFailed, UsageCounted
from keymesh.edge.state import GRANTED_MAX
from keymesh.model.errors import Integrity
from keymesh.model.machine import ClockWentBack, Send, Tick, Wake
from keymesh.model.time import NEVER
from keymesh.orbital.edge_messages import (
    EdgeAck,
    LeaseReturned,
    LeaseReturnedMessage,
    UsageRecorded,
    UsageReport,
)

KEYS = {key_id(bytes.fromhex(PUBLIC_KEY)): PUBLIC_KEY}


def returned(effects: list[Any]) -> dict[str, Any]:
    """lease -> the Core that was told."""
    found = {}
    for effect in of(effects, Send):
        if isinstance(effect.message, LeaseReturnedMessage):
            word = SUITE.unseal(effect.message.returned, LeaseReturned, KEYS)
            assert word.edge == "edge:eu/acme/files/e1"
            found[word.lease_id] = effect.to
    return found


def leased() -> Bench:
    bench = Bench()
    bench.receive(bench.grant())
    return bench


def test_drop_first_give_back_after() -> None:
    bench = leased()
    effects = bench.feed(Closing(), at=5_000)
    assert effects[0] == Publish(None, "edge-closed")
    assert returned(effects) == {"lease-1": CORE}
    assert bench.state.lease is None


def test_a_return_is_no_acknowledgement() -> None:
    (message,) = sent(leased().feed(Closing()), LeaseReturnedMessage)
    with pytest.raises(Integrity):
        SUITE.unseal(message.returned, EdgeAck, KEYS)


def test_nothing_held_nothing_to_give_back() -> None:
    assert Bench().feed(Closing()) == [Publish(None, "edge-closed"), Wake(NEVER)]


def test_every_lease_of_this_life_that_has_not_ended_goes_to_the_core_that_granted_it() -> None:
    bench = leased()
    bench.feed(Tick(), at=due(bench))
    bench.feed(SendFailed(bench.request.nonce))
    bench.feed(Tick(), at=due(bench))
    bench.receive(bench.grant(lease_id="lease-2"), sender=OTHER_CORE)
    assert returned(bench.feed(Closing(), at=9_000)) == {"lease-1": CORE, "lease-2": OTHER_CORE}


def test_one_that_is_over_by_itself_is_not_worth_a_word() -> None:
    bench = leased()
    bench.feed(Tick(), at=due(bench))
    bench.receive(bench.grant(lease_id="lease-2"))
    assert returned(bench.feed(Closing(), at=10_000)) == {"lease-2": CORE}


def test_one_that_was_dropped_before_its_end_is_given_back_too() -> None:
    """Restricted, or by a clock that went back: the Core still counts it; an acknowledgement may have been lost."""
    bench = leased()
    bench.receive(revocation("lease-1"))
    bench.receive(bench.grant(lease_id="lease-2"))
    bench.feed(ClockWentBack())
    assert returned(bench.feed(Closing())) == {"lease-1": CORE, "lease-2": CORE}


def test_a_grant_in_flight_is_for_nobody() -> None:
    bench = leased()
    bench.feed(Tick(), at=due(bench))
    in_flight = bench.grant(lease_id="lease-2")
    assert set(returned(bench.feed(Closing()))) == {"lease-1"}
    assert bench.receive(in_flight) == []
    assert bench.state.lease is None


def test_after_the_end_nothing_wakes_it() -> None:
    bench = leased()
    bench.feed(Closing())
    events: list[Any] = [Tick(), Connected(CORE), KeyWanted(), ClockWentBack(), Closing(), SendFailed("x")]
    for event in events:
        assert bench.feed(event, at=bench.now + 60_000) == []
    for message in (READY, revocation("lease-1"), bench.grant(nonce=bench.request.nonce)):
        assert bench.receive(message) == []


def test_a_hint_that_waited_is_forgotten() -> None:
    bench = Bench()
    bench.receive(READY)
    bench.feed(Closing())
    refuse(bench)
    assert bench.feed(Tick(), at=60_000) == []


def test_usage_is_still_told_to_the_core_that_was_used_last() -> None:
    bench = leased()
    bench.feed(Tick(), at=due(bench))
    bench.feed(SendFailed(bench.request.nonce))
    bench.feed(UsageCounted(3, 0, 0))
    bench.feed(Closing())
    bench.feed(UsageCounted(1, 1, 0))
    first = bench.state.usage.in_flight
    assert first is not None
    effects = bench.receive(UsageRecorded(report_id=first.report_id))
    (second,) = sent(effects, UsageReport)
    assert (first.minted, second.minted, second.opened) == (3, 1, 1)
    assert [e.to for e in of(effects, Send)] == [CORE]


def test_what_is_remembered_for_the_return_is_bounded() -> None:
    bench = Bench()
    for n in range(3 * GRANTED_MAX):
        bench.receive(bench.grant(lease_id=f"lease-{n}"))
        bench.feed(KeyWanted(), at=bench.now + 60_000 if n == GRANTED_MAX else bench.now)
        bench.state.last_request_at = None
        bench.feed(KeyWanted())
    assert len(bench.state.granted) <= GRANTED_MAX
    assert f"lease-{3 * GRANTED_MAX - 1}" in bench.state.granted
