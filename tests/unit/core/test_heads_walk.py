"""A heads tree too large to come along is walked: leases rest on what it shows, and the Registry hears what differs."""

from __future__ import annotations

from dataclasses import replace as with_config

import msgspec

from keymesh.control.heads import HeadsTree
from keymesh.core import heads_walk
from keymesh.model.ids import Digest
from keymesh.model.machine import ClockWentBack, node_address
from keymesh.model.states import Mode
from keymesh.orbital import walk
from keymesh.orbital.messages import ManifestAsk, ManifestDiffers, ManifestTell
from tests.unit.core.bench import TENANT, TTL_MS, Bench, next_version


def behind() -> Bench:
    """A node that has all but the tenant's newest state, and whose answers bring no leaves."""
    bench = Bench().up()
    bench.state.config = with_config(bench.state.config, leaves_in_full=0)
    next_version(bench.mesh, "l2", 2, "b1")
    return bench


def tell(bench: Bench) -> ManifestTell:
    """The Registry's true answer to the newest question."""
    return walk.tell(HeadsTree(bench.leaves()).tree, bench.sent(ManifestAsk)[-1].prefixes)


def walk_to_the_end(bench: Bench) -> int:
    asked = 0
    while bench.state.walk is not None:
        bench.receive(tell(bench))
        asked += 1
    return asked


def test_what_the_walk_finds_is_reported_and_credited_once_applied() -> None:
    bench = behind()
    bench.advance(TTL_MS // 2)
    old = bench.holding().lease
    assert old is not None
    beat = bench.beat()
    assert beat.leaves is None
    sent_at = bench.now
    bench.receive(bench.answer(beat, with_leaves=False))
    assert walk_to_the_end(bench) >= 1
    (said,) = bench.sent(ManifestDiffers)
    assert said.held == {TENANT: bench.holding().leaf}
    assert (said.manifest_root, said.more) == (beat.manifest_root, False)
    assert bench.holding().lease == old  # not yet applied
    bench.give(bench.mesh.states[TENANT])
    lease = bench.holding().lease
    assert lease is not None
    assert lease.until == sent_at + TTL_MS
    assert bench.mode() is Mode.SYNCED


def test_nothing_is_credited_on_the_way() -> None:
    bench = behind()
    bench.advance(1_000)
    bench.receive(bench.answer(bench.beat(), with_leaves=False))
    bench.give(bench.mesh.states[TENANT])
    lease = bench.holding().lease
    assert lease is not None
    assert lease.until < bench.now + TTL_MS


def test_a_lie_ends_the_walk_and_credits_nothing() -> None:
    bench = behind()
    bench.receive(bench.answer(bench.beat(), with_leaves=False))
    told = tell(bench)
    lie = {prefix: (Digest("a" * 64), Digest("b" * 64)) for prefix in told.halves}
    bench.receive(msgspec.structs.replace(told, halves=lie))
    assert "manifest-refused" in bench.notes()
    bench.receive(told)
    assert bench.state.walk is None
    assert not bench.sent(ManifestDiffers)


def test_only_the_registry_is_heard() -> None:
    bench = behind()
    bench.receive(bench.answer(bench.beat(), with_leaves=False))
    bench.receive(tell(bench), sender=node_address("us-west", "n1"))
    assert bench.state.walk is not None
    assert bench.state.walk.walk.rounds == 0


def test_a_repeated_answer_is_no_second_round() -> None:
    bench = behind()
    bench.receive(bench.answer(bench.beat(), with_leaves=False))
    told = tell(bench)
    bench.receive(told)
    asked = len(bench.sent(ManifestAsk))
    bench.receive(told)
    assert len(bench.sent(ManifestAsk)) == asked


def test_a_lost_round_is_made_good_by_the_next_heartbeat() -> None:
    bench = behind()
    bench.receive(bench.answer(bench.beat(), with_leaves=False))
    bench.receive(tell(bench))
    next_version(bench.mesh, "l2", 3, "b1")  # and the heads moved on meanwhile
    bench.receive(bench.answer(bench.beat(), with_leaves=False))
    walk_to_the_end(bench)
    bench.give(bench.mesh.states[TENANT])
    assert bench.mode() is Mode.SYNCED
    assert bench.state.offer is not None
    assert bench.state.offer.leaves == bench.leaves()


def test_a_walk_does_not_outlive_a_clock_that_went_back() -> None:
    bench = behind()
    bench.receive(bench.answer(bench.beat(), with_leaves=False))
    told = tell(bench)
    bench.feed(ClockWentBack())
    bench.receive(told)
    assert bench.state.walk is None
    assert bench.state.offer is None


def test_a_question_is_asked_again_until_it_is_answered_but_not_for_ever() -> None:
    bench = behind()
    bench.receive(bench.answer(bench.beat(), with_leaves=False))
    first = bench.sent(ManifestAsk)
    bench.advance(heads_walk.ASK_AGAIN_MS + 1)
    assert bench.sent(ManifestAsk) == first * 2
    bench.advance(10 * bench.state.interval_ms)
    assert len(bench.sent(ManifestAsk)) <= 1 + heads_walk.ASKED_INTERVALS * bench.state.interval_ms // 2_000
