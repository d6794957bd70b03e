"""The Edge machine: single flight, nonces, deadlines from the sending, refusals, revocations, failover."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.edge.world import (
    CORE,
    OTHER_CORE,
    POLICY,
    PUBLIC_KEY,
    SUITE,
    Bench,
    config,
    kid,
    of,
    revocation,
    sent,
)

from keymesh.control.rows import ServiceRow
from keymesh.crypto.dsse import key_id
from keymesh.edge import rules
from keymesh.edge.machine import new_edge
from keymesh.edge.snapshot import Connected, KeyWanted, LeaseSnapshot, Publish, SendFailed, UsageCounted
from keymesh.model.errors import Integrity
from keymesh.model.machine import Address, ClockWentBack, Send, Tick, Wake
from keymesh.orbital.edge_messages import (
    EdgeAck,
    EdgeAckMessage,
    LeasedVersion,
    LeaseGrant,
    LeaseRefused,
    LeaseRequest,
    UsageRecorded,
    UsageReport,
)
from keymesh.orbital.messages import Hello


def test_the_first_thing_is_one_request() -> None:
    bench = Bench()
    assert len(sent(bench.log, LeaseRequest)) == 1
    assert bench.request.signing_key == PUBLIC_KEY
    assert bench.request.policy_version == 0
    for _ in range(5):
        bench.feed(Tick(), at=bench.now + 100)
        bench.feed(KeyWanted())
    assert len(sent(bench.log, LeaseRequest)) == 1, "single flight"


def test_a_lease_counts_from_the_sending() -> None:
    bench = Bench()
    bench.receive(bench.grant(ttl_ms=10_000), at=3_000)
    assert bench.lease().deadline == 10_000
    assert bench.lease().wrapping_kid == kid("v2")
    assert [e.at for e in bench.log if type(e) is Wake][-1] < 10_000, "refreshed before that"


def test_a_grant_is_accepted_once_and_only_for_its_nonce() -> None:
    bench = Bench()
    grant = bench.grant()
    bench.receive(bench.grant(nonce="0" * 32))
    assert not of(bench.log, Publish)
    bench.receive(grant, at=10)
    assert of(bench.receive(grant, at=20), Publish) == [], "a replayed grant changes nothing"
    assert bench.lease().deadline == 10_000


def test_a_grant_from_another_core_than_asked_is_ignored() -> None:
    bench = Bench()
    assert not of(bench.receive(bench.grant(), sender=OTHER_CORE), Publish)
    assert bench.state.pending is not None


def test_a_grant_for_a_nonce_that_timed_out_is_ignored() -> None:
    bench = Bench()
    late = bench.grant()
    bench.feed(Tick(), at=5_000)
    assert bench.state.pending is None
    assert not of(bench.receive(late, at=5_001), Publish)


def test_a_grant_that_ran_out_on_its_way_is_not_used() -> None:
    bench = Bench()
    assert not of(bench.receive(bench.grant(ttl_ms=4_000), at=4_000), Publish)
    assert bench.state.lease is None
    assert bench.state.next_request_at is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"tenant": "other"},
        {"service": "other"},
        {"ttl_ms": 0},
        {"ttl_ms": -1},
        {"versions": (LeasedVersion(kid="a", version=1, may_wrap=False),) * 2},
        {
            "versions": (
                LeasedVersion(kid="a", version=1, may_wrap=True),
                LeasedVersion(kid="b", version=2, may_wrap=True),
            )
        },
        {"policy": ServiceRow(version=1, custody="core-held", edge_ttl_ms=60_000)},
    ],
)
def test_a_grant_that_is_not_for_this_edge_is_refused(changes: dict[str, Any]) -> None:
    bench = Bench()
    effects = bench.receive(bench.grant(**changes))
    assert not of(effects, Publish)
    assert bench.state.lease is None
    assert bench.state.pending is None


def test_a_lease_never_exceeds_the_services_policy() -> None:
    bench = Bench()
    bench.receive(bench.grant(ttl_ms=3_600_001, policy=ServiceRow(version=1, custody="leased", edge_ttl_ms=2_000)))
    assert bench.lease().deadline == 2_000


def test_a_policy_that_the_registry_did_not_sign_is_refused() -> None:
    def bad(grant: LeaseGrant) -> None:
        raise Integrity("policy-signature", "no")

    bench = Bench(new_edge(config(verify_policy=bad)))
    assert not of(bench.receive(bench.grant()), Publish)
    assert bench.state.policy is None


def leased(bench: Bench, **changes: Any) -> Bench:
    bench.receive(bench.grant(**changes), at=bench.now + 1)
    return bench


def refresh(bench: Bench) -> None:
    """Go to where the machine wants a new lease, and let it ask."""
    at = bench.state.next_request_at
    assert at is not None
    bench.feed(Tick(), at=at)


def test_a_policy_never_falls_and_one_version_has_one_content() -> None:
    newer = ServiceRow(version=2, custody="leased", edge_ttl_ms=60_000)
    bench = leased(Bench(), policy=newer)
    refresh(bench)
    assert bench.request.policy_version == 2
    assert not of(bench.receive(bench.grant(policy=POLICY, lease_id="old")), Publish), "rolled back"
    assert bench.lease().lease_id == "lease-1", "the live lease stays"
    refresh(bench)
    forked = ServiceRow(version=2, custody="core-held", edge_ttl_ms=60_000)
    assert not of(bench.receive(bench.grant(policy=forked, versions=()), sender=OTHER_CORE), Publish)


def test_a_newer_policy_applies_without_a_restart() -> None:
    bench = leased(Bench())
    refresh(bench)
    held = ServiceRow(version=2, custody="core-held", edge_ttl_ms=60_000)
    bench.receive(bench.grant(policy=held, versions=(), lease_id="lease-2"))
    assert bench.lease().policy.custody == "core-held"
    assert bench.lease().versions == ()


def test_refresh_is_between_half_and_four_fifths() -> None:
    for spread in (0, 1, 500, 999):
        assert 5_000 <= rules.refresh_after_ms(10_000, spread) < 8_000
    bench = leased(Bench())
    assert bench.state.next_request_at is not None
    assert 5_000 <= bench.state.next_request_at < 8_000


def test_the_deadline_itself_is_expired() -> None:
    bench = leased(Bench())
    assert not of(bench.feed(Tick(), at=9_999), Publish)
    (dropped,) = of(bench.feed(Tick(), at=10_000), Publish)
    assert dropped == Publish(None, "expired")


def test_a_failed_refresh_never_drops_a_live_lease() -> None:
    bench = leased(Bench())
    refresh(bench)
    for code in ("closed", "not-loaded", "unknown"):
        effects = bench.receive(
            LeaseRefused(nonce=bench.request.nonce, code=code, retry_after_ms=10), sender=_asked(bench)
        )
        assert not of(effects, Publish)
        refresh(bench)
    effects = bench.feed(SendFailed(bench.request.nonce))
    assert not of(effects, Publish)
    assert bench.lease().lease_id == "lease-1"


def test_a_restriction_drops_a_live_lease() -> None:
    bench = leased(Bench())
    refresh(bench)
    refused = LeaseRefused(nonce=bench.request.nonce, code="restricted", retry_after_ms=500)
    assert Publish(None, "restricted") in bench.receive(refused)
    at = bench.state.next_request_at
    assert at is not None
    assert bench.now + 500 <= at <= bench.now + 625


def test_a_refusal_for_another_nonce_drops_nothing() -> None:
    bench = leased(Bench())
    assert not bench.receive(LeaseRefused(nonce="0" * 32, code="restricted", retry_after_ms=500))


def test_a_silent_core_is_given_a_fifth_of_the_lease() -> None:
    bench = leased(Bench(), ttl_ms=4_000)
    refresh(bench)
    asked = bench.now
    bench.feed(Tick(), at=asked + 799)
    assert bench.state.pending is not None
    bench.feed(Tick(), at=asked + 800)
    assert bench.state.pending is None
    refresh(bench)
    assert _asked(bench) == OTHER_CORE
    assert bench.now < 4_000, "still under the lease"


def test_retries_back_off_and_go_to_the_next_core() -> None:
    bench = Bench()
    asked, waits = [], []
    for _ in range(12):
        asked.append(_asked(bench))
        bench.feed(SendFailed(bench.request.nonce))
        at = bench.state.next_request_at
        assert at is not None
        waits.append(at - bench.now)
        bench.feed(Tick(), at=at)
    assert asked[:4] == [CORE, OTHER_CORE, CORE, OTHER_CORE]
    assert all(125 <= wait <= 15_000 for wait in waits)
    assert waits[-1] >= 7_500


def _asked(bench: Bench) -> Address:
    return [e.to for e in bench.log if isinstance(e, Send) and isinstance(e.message, LeaseRequest)][-1]


# --- revocations ------------------------------------------------------------------


def test_drop_first_acknowledge_after_then_ask() -> None:
    bench = leased(Bench())
    effects = bench.receive(revocation("lease-1"))
    kinds = [type(e.message) if isinstance(e, Send) else type(e) for e in effects]
    assert kinds.index(Publish) < kinds.index(EdgeAckMessage) < kinds.index(LeaseRequest)
    assert of(effects, Publish) == [Publish(None, "revoked")]
    (message,) = sent(effects, EdgeAckMessage)
    ack = SUITE.unseal(message.ack, EdgeAck, {key_id(bytes.fromhex(PUBLIC_KEY)): PUBLIC_KEY})
    assert (ack.lease_id, ack.revocation_id, ack.dropped) == ("lease-1", "r1", True)
    assert ack.edge == "edge:eu/acme/files/e1"


def test_a_grant_in_flight_at_a_revocation_is_void() -> None:
    bench = Bench()
    in_flight = bench.grant(lease_id="lease-9")
    effects = bench.receive(revocation("lease-9"))
    assert len(sent(effects, EdgeAckMessage)) == 1
    assert not of(bench.receive(in_flight), Publish), "acknowledged as gone, so it must not come"
    bench.receive(bench.grant(lease_id="lease-10"))
    assert bench.lease().lease_id == "lease-10"


def test_a_repeated_revocation_is_acknowledged_and_does_not_starve_the_new_lease() -> None:
    bench = leased(Bench())
    bench.receive(revocation("lease-1"))
    nonce = bench.request.nonce
    for _ in range(3):
        effects = bench.receive(revocation("lease-1"), at=bench.now + 500)
        assert len(sent(effects, EdgeAckMessage)) == 1
        assert not of(effects, Publish)
        assert not sent(effects, LeaseRequest)
    bench.receive(bench.grant(lease_id="lease-2"))
    assert bench.request.nonce == nonce
    assert bench.lease().lease_id == "lease-2"
    bench.receive(revocation("lease-1"))
    assert bench.lease().lease_id == "lease-2", "an old revocation leaves a later lease alone"


def test_superseded_leases_are_acknowledged_each() -> None:
    bench = leased(Bench())
    refresh(bench)
    bench.receive(bench.grant(lease_id="lease-2"))
    effects = bench.receive(revocation("lease-1", "lease-2"))
    assert len(sent(effects, EdgeAckMessage)) == 2
    assert of(effects, Publish)


def test_revocations_of_strangers_or_for_strangers_do_nothing() -> None:
    bench = leased(Bench())
    assert not of(bench.receive(revocation("lease-1"), sender=Address("node:us/n1")), Publish)
    assert not of(bench.receive(revocation("lease-1", tenant="other")), Publish)
    assert not sent(bench.log, EdgeAckMessage)


def test_many_revocations_keep_memory_bounded() -> None:
    bench = leased(Bench())
    for n in range(5_000):
        bench.receive(revocation(f"x{n}", revocation_id=f"r{n}"))
    assert len(bench.state.acked) <= 4_096


# --- clock, kids, hello, usage ------------------------------------------------------------------


def test_a_clock_that_went_back_drops_everything() -> None:
    bench = leased(Bench())
    refresh(bench)
    in_flight = bench.grant(lease_id="lease-2")
    assert Publish(None, "clock") in bench.feed(ClockWentBack())
    assert not of(bench.receive(in_flight), Publish), "what was asked under the old clock is void"
    assert bench.request.nonce != in_flight.nonce


def test_an_unknown_kid_asks_once_and_ever_more_rarely() -> None:
    bench = leased(Bench())
    gaps, last = [], bench.now
    for at in range(1_000, 40_000, 100):
        effects = bench.feed(KeyWanted(), at=at)
        if sent(effects, LeaseRequest):
            gaps.append(at - last)
            last = at
            bench.receive(bench.grant(lease_id=f"l{at}", ttl_ms=60_000))
    assert gaps[0] <= 1_000
    assert gaps == sorted(gaps)
    assert gaps[-1] >= 8_000


def test_a_key_that_came_resets_the_wait() -> None:
    bench = leased(Bench())
    bench.feed(KeyWanted(), at=1_500)
    more = (*bench.lease().versions, LeasedVersion(kid=kid("v3"), version=3, may_wrap=False))
    bench.receive(bench.grant(lease_id="l2", versions=more))
    assert bench.state.wanted_gap_ms == 0


def test_an_unknown_kid_just_after_a_lease_is_asked_for_as_soon_as_the_gap_is_over() -> None:
    bench = leased(Bench())
    refresh(bench)
    bench.receive(bench.grant(lease_id="l2", ttl_ms=60_000))
    asked = bench.now
    assert not sent(bench.feed(KeyWanted(), at=asked + 10), LeaseRequest)
    assert bench.state.wanted_kids == bench.lease().kids, "a caller may wait for it"
    assert sent(bench.feed(Tick(), at=asked + rules.KEY_WANTED_GAP_MS), LeaseRequest)


def test_nobody_waits_for_an_unknown_kid_where_a_core_just_failed() -> None:
    bench = leased(Bench())
    refresh(bench)
    bench.feed(SendFailed(bench.request.nonce))
    assert not sent(bench.feed(KeyWanted(), at=bench.now + 10), LeaseRequest)
    assert bench.state.wanted_kids is None
    bench.feed(KeyWanted(), at=bench.now + rules.KEY_WANTED_GAP_MS)
    assert bench.state.wanted_kids is not None
    bench.feed(SendFailed(bench.request.nonce))
    assert bench.state.wanted_kids is None, "nor goes on waiting where it fails then"


def test_a_new_stream_says_hello_and_asks_where_nothing_is_held() -> None:
    bench = leased(Bench())
    effects = bench.feed(Connected(CORE))
    assert sent(effects, Hello)
    assert not sent(effects, LeaseRequest)
    bench.feed(Tick(), at=10_000)
    bench.feed(SendFailed(bench.request.nonce))
    assert sent(bench.feed(Connected(CORE), at=10_000 + rules.HINT_GAP_MS), LeaseRequest)


def test_usage_is_reported_once_and_repeated_until_recorded() -> None:
    bench = leased(Bench())
    (report,) = sent(bench.feed(UsageCounted(3, 2, 1)), UsageReport)
    assert (report.minted, report.opened, report.refused) == (3, 2, 1)
    assert not sent(bench.feed(UsageCounted(5, 0, 0), at=bench.now + 100), UsageReport), "one in flight"
    assert sent(bench.feed(UsageCounted(0, 0, 0), at=bench.now + 2_000), UsageReport) == [report]
    assert not bench.receive(UsageRecorded(report_id="another"))
    (second,) = sent(bench.receive(UsageRecorded(report_id=report.report_id)), UsageReport)
    assert second.minted == 5
    assert second.report_id != report.report_id
    assert not sent(bench.receive(UsageRecorded(report_id=report.report_id)), UsageReport), "a repeated answer"


EVENTS = st.sampled_from(
    ["grant", "replay", "refuse", "restrict", "revoke", "revoke-old", "fail", "tick", "clock", "kid", "connect"]
)


@given(st.lists(st.tuples(EVENTS, st.integers(0, 4_000)), max_size=60))
def test_whatever_comes_a_published_lease_is_live_fresh_and_not_revoked(script: list[tuple[str, int]]) -> None:
    bench = Bench()
    revoked: set[str] = set()
    grants: list[LeaseGrant] = []
    held: LeaseSnapshot | None = None
    for n, (what, wait) in enumerate(script):
        bench.now += wait
        asked_at = bench.state.pending.sent_at if bench.state.pending else None
        core = _asked(bench)
        match what:
            case "grant":
                grants.append(bench.grant(lease_id=f"l{n}"))
                effects = bench.receive(grants[-1], sender=core)
            case "replay" if grants:
                effects = bench.receive(grants[-1], sender=core)
            case "refuse" | "restrict":
                code = "restricted" if what == "restrict" else "closed"
                effects = bench.receive(
                    LeaseRefused(nonce=bench.request.nonce, code=code, retry_after_ms=100), sender=core
                )
            case "revoke":
                named = [g.lease_id for g in grants[-3:]]
                revoked.update(named)
                effects = bench.receive(revocation(*named, revocation_id=f"r{n}"))
                assert len(sent(effects, EdgeAckMessage)) == len(named)
            case "revoke-old":
                effects = bench.receive(revocation("l0", revocation_id="r0"))
                revoked.add("l0")
            case "fail":
                effects = bench.feed(SendFailed(bench.request.nonce))
            case "clock":
                effects = bench.feed(ClockWentBack())
            case "kid":
                effects = bench.feed(KeyWanted())
            case "connect":
                effects = bench.feed(Connected(CORE))
            case _:
                effects = bench.feed(Tick())
        for publish in of(effects, Publish):
            if publish.lease is not None:
                assert asked_at is not None
                assert publish.lease.deadline == asked_at + 10_000
                assert publish.lease.lease_id not in revoked
            held = publish.lease
        assert held == bench.state.lease
        assert len(sent(effects, LeaseRequest)) <= 1
        bench.feed(Tick())
        held = bench.state.lease
        assert held is None or bench.now < held.deadline
        assert held is None or held.lease_id not in revoked
