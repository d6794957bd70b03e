"""Heartbeats: whose they are, when they are answered, what the answer rests on, what it shows."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from keymesh.control.heads import heads_root
from keymesh.control.messages import Answer, Poll, ReprobeL1
from keymesh.model import strict_json
from keymesh.model.ids import KeyId
from keymesh.model.machine import ClockWentAhead, Received
from keymesh.model.time import Instant
from keymesh.registry import heartbeats, reads
from keymesh.registry.events import LogUnavailable
from tests.unit.registry.harness import REGIONS, Bench, keys_of, mesh_up, node, region_of, with_tenant


def opened(bench: Bench, region: str) -> list[Answer]:
    keys = {KeyId(k): v for k, v in keys_of("registry").items()}
    return [bench.suites[region].unseal(m.answer, Answer, keys) for m in bench.answers(region)]


def polls(bench: Bench) -> list[tuple[Any, Poll]]:
    """Polls sent since last asked."""
    found = [(to, m) for to, m in bench.sent if isinstance(m, Poll)]
    bench.sent = [(to, m) for to, m in bench.sent if not isinstance(m, Poll)]
    return found


def refusals(bench: Bench) -> list[str]:
    return [str(dict(n.fields)["reason"]) for n in bench.notes if n.name == "heartbeat-refused"]


def test_an_answer_echoes_and_attests() -> None:
    bench = with_tenant()
    bench.beat("us-east", nonce="fresh")
    (answer,) = opened(bench, "us-east")
    assert (answer.mesh, answer.epoch, answer.region, answer.node) == ("example", 1, "us-east", "n1")
    assert (answer.nonce, answer.index, answer.poll_age_ms, answer.ttl_ms) == ("fresh", bench.state.index, 0, 60_000)
    assert answer.heads_root == heads_root(bench.offered("us-east"))


def test_an_answer_shows_the_clock_and_a_jump_makes_it_another() -> None:
    bench = with_tenant()
    bench.beat("us-east")
    (before,) = opened(bench, "us-east")
    assert before.clock_ms == bench.now
    bench.feed(ClockWentAhead(3_600_000))
    bench.beat("us-west")
    (after,) = opened(bench, "us-west")
    assert before.clock != after.clock


def test_leaves_come_along_only_where_the_manifest_differs() -> None:
    bench = with_tenant()
    bench.beat("us-east", manifest_root="0" * 64)
    bench.beat_in_step("us-west")
    (differs,), (same,) = bench.answers("us-east"), bench.answers("us-west")
    assert differs.leaves == bench.offered("us-east")
    assert same.leaves is None


def test_a_region_is_shown_what_it_may_hold_and_no_identifier_of_others() -> None:
    bench = with_tenant()
    bench.tenant("globex", regions=("eu-central", "eu-west"), home="eu-central")
    bench.ok(bench.scope_command("suspend", "tenant:globex", "s1"))
    assert set(bench.offered("us-west")) == {"mesh", "acme"}
    assert set(bench.offered("eu-west")) == {"mesh", "globex"}
    bench.beat("us-west")
    for to, message in bench.sent:
        if region_of(to).startswith("us-"):
            assert b"globex" not in strict_json.dumps(getattr(message, "leaves", None) or {})
            assert "globex" not in repr(message)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"by": "us-west"}, "integrity"),
        ({"region": "us-west"}, "other-node"),
        ({"node": "n2"}, "other-node"),
        ({"mesh": "other"}, "other-mesh"),
        ({"counter": 1}, "replayed"),
    ],
)
def test_a_heartbeat_that_is_not_its_own_is_refused(changed: dict[str, Any], reason: str) -> None:
    bench = mesh_up()
    bench.beat("us-east")
    before = len(bench.answers("us-east"))
    bench.beat("us-east", **changed)
    assert refusals(bench) == [reason]
    assert len(bench.answers("us-east")) == before


def test_a_stranger_is_refused() -> None:
    bench = mesh_up()
    bench.feed(Received(node("nowhere"), bench.heartbeat("us-east")))
    assert refusals(bench) == ["not-enrolled"]


def test_replays_are_refused_within_a_boot_and_across_boots() -> None:
    bench = mesh_up()
    old = bench.heartbeat("us-east", boot_id="boot-2", counter=5)
    bench.feed(Received(node("us-east"), old))
    bench.feed(Received(node("us-east"), old))
    assert refusals(bench) == ["replayed"]
    bench.beat("us-east", boot_id="boot-3", counter=1)
    bench.feed(Received(node("us-east"), old))
    bench.beat("us-east", boot_id="boot-2", counter=4)
    assert refusals(bench) == ["replayed"] * 3


def test_a_dead_lifes_last_word_that_comes_late_does_not_shut_out_the_living() -> None:
    bench = mesh_up()
    late = bench.heartbeat("us-east", boot_id="boot-2", counter=5)
    bench.beat("us-east", boot_id="boot-3", counter=1)
    bench.feed(Received(node("us-east"), late))
    for counter in (2, 3):
        bench.beat("us-east", boot_id="boot-3", counter=counter)
    assert refusals(bench) == []
    bench.feed(Received(node("us-east"), late))
    bench.beat("us-east", boot_id="boot-3", counter=3)
    assert refusals(bench) == ["replayed"] * 2


def test_old_boots_are_remembered_within_bounds() -> None:
    bench = mesh_up()
    for life in range(100):
        bench.beat("us-east", boot_id=f"life-{life}", counter=1)
    session = bench.state.sessions[node("us-east")]
    assert len(session.old_boots) == heartbeats.BOOTS_KEPT
    assert "life-98" in session.old_boots


def test_an_answer_waits_for_a_read_begun_after_the_heartbeat_arrived() -> None:
    bench = mesh_up()
    bench.auto_read = False
    bench.beat("us-east")
    assert len(bench.reads) == 1
    bench.beat("us-west")  # the read is out already
    assert len(bench.reads) == 1
    bench.do_read()
    bench.settle()
    assert len(bench.answers("us-east")) == 1
    assert not bench.answers("us-west")
    assert len(bench.reads) == 1  # a second one, begun after it arrived
    bench.do_read()
    bench.settle()
    assert len(bench.answers("us-west")) == 1


def test_one_read_serves_all_that_wait() -> None:
    bench = mesh_up()
    bench.auto_read = False
    bench.beat("us-east")
    for region in sorted(REGIONS):
        bench.beat(region)
    bench.do_read()
    assert len(bench.reads) == 1
    bench.do_read()
    bench.settle()
    assert [len(bench.answers(r)) for r in sorted(REGIONS)] == [1, 1, 2, 1]


def test_an_answer_shows_what_another_registry_appended_meanwhile() -> None:
    """Linearizable: a restriction in the log before the read is in the answer, though we did not write it."""
    bench = with_tenant()
    rival = Bench(log=bench.log)
    rival.settle()
    rival.ok(rival.scope_command("suspend", "tenant:acme", "s1"))
    bench.beat("us-east")
    assert opened(bench, "us-east")[0].heads_root == heads_root(bench.offered("us-east"))
    assert bench.offered("us-east")["acme"].seq == 3


def test_a_log_that_fails_is_asked_again_and_nobody_is_answered_meanwhile() -> None:
    bench = mesh_up()
    bench.auto_read = False
    bench.beat("us-east")
    lost = bench.reads.pop()
    bench.feed(LogUnavailable(lost.token))
    assert not bench.answers("us-east")
    bench.advance(500)
    assert len(bench.reads) == 1
    bench.do_read()
    bench.settle()
    assert len(bench.answers("us-east")) == 1


def test_a_denied_l1_is_told_to_the_tenant_s_other_nodes_and_to_nobody_else() -> None:
    bench = with_tenant()
    bench.tenant("globex", regions=("eu-central", "eu-west"), home="eu-central")
    bench.sent.clear()
    bench.beat("us-east", l1_denied=("acme", "globex", "nobody", "mesh"))
    told = [(to, m.namespace) for to, m in bench.sent if isinstance(m, ReprobeL1)]
    assert told == [(node("us-west"), "acme")]


# --- polls ----------------------------------------------------------------------------------------------------------


def test_poll_age_is_what_the_poll_was_too_early() -> None:
    assert heartbeats.poll_age_ms(Instant(1_000), Instant(1_000)) == 0
    assert heartbeats.poll_age_ms(Instant(1_000), Instant(1_250)) == 0
    assert heartbeats.poll_age_ms(Instant(1_000), Instant(400)) == 600


def test_a_poll_is_sent_only_where_the_newest_is_too_old() -> None:
    assert heartbeats.needs_poll(None, Instant(5))
    assert heartbeats.needs_poll(Instant(4), Instant(5))
    assert not heartbeats.needs_poll(Instant(5), Instant(5))


def test_an_answer_waits_for_a_majority() -> None:
    bench = mesh_up()
    bench.auto_vote = False
    bench.now = Instant(bench.now + 1)
    bench.beat("us-east")
    (first, second, _) = polls(bench)
    assert not bench.answers("us-east")
    bench.feed(Received(first[0], bench.poll_answer(*first)))
    bench.feed(Received(first[0], bench.poll_answer(*first)))
    assert not bench.answers("us-east")
    bench.feed(Received(second[0], bench.poll_answer(*second)))
    assert [a.poll_age_ms for a in opened(bench, "us-east")] == [0]


def test_heartbeats_share_a_read_while_two_polls_are_under_way() -> None:
    """What voters are asked does not grow with the mesh; whoever waits for something else waits for no company."""
    bench = mesh_up()
    bench.auto_vote = False
    for region in ("us-east", "us-west", "eu-west", "eu-central"):
        bench.now = Instant(bench.now + 1)
        bench.beat(region)
    assert len({poll.poll_id for _, poll in polls(bench)}) == reads.POLLS_AT_ONCE
    bench.advance(reads.GATHER_MS)
    assert len({poll.poll_id for _, poll in polls(bench)}) == 1, "the other two share one"
    assert not bench.state.beats


def test_a_poll_that_is_answered_lets_the_next_read_begin() -> None:
    bench = mesh_up()
    bench.auto_vote = False
    for region in ("us-east", "us-west", "eu-west"):
        bench.now = Instant(bench.now + 1)
        bench.beat(region)
    assert bench.state.beats
    sent = polls(bench)
    newest = max(poll.poll_id for _, poll in sent)
    for to, poll in [(to, poll) for to, poll in sent if poll.poll_id == newest][:2]:
        bench.feed(Received(to, bench.poll_answer(to, poll)))
    bench.settle()
    assert not bench.state.beats


def test_a_fast_stream_of_heartbeats_never_outruns_slow_voters() -> None:
    """Each poll waits 150 ms for its voters, a heartbeat comes every 5 ms: all are answered for a fresh poll."""
    bench = mesh_up()
    bench.auto_vote = False
    due: list[tuple[Instant, Any, Any]] = []
    regions = sorted(REGIONS)
    for n in range(400):
        bench.beat(regions[n % len(regions)])
        bench.advance(5)
        due += [(Instant(bench.now + 150), to, poll) for to, poll in polls(bench)]
        for at, to, poll in [one for one in due if one[0] <= bench.now]:
            due.remove((at, to, poll))
            bench.feed(Received(to, bench.poll_answer(to, poll)))
        bench.settle()
    ages = [a.poll_age_ms for region in regions for a in opened(bench, region)]
    assert len(ages) > 40
    assert set(ages) == {0}


def test_without_a_majority_the_older_poll_s_age_is_told_after_half_a_second() -> None:
    bench = mesh_up()
    sent_at = bench.state.majority_at
    assert sent_at is not None
    bench.auto_vote = False
    bench.now = Instant(bench.now + 7_000)
    arrived = bench.now
    bench.beat("us-east")
    bench.advance(499)
    assert not bench.answers("us-east")
    bench.advance(1)
    assert [a.poll_age_ms for a in opened(bench, "us-east")] == [arrived - sent_at]


def test_a_registry_that_never_had_a_majority_answers_nobody() -> None:
    bench = Bench()
    bench.settle()
    bench.auto_vote = False
    bench.found()
    bench.beat("us-east")
    bench.advance(2_000)
    assert not bench.answers("us-east")
    assert "no-voter-majority" in bench.note_names()


def test_a_late_majority_counts_from_when_its_poll_was_sent() -> None:
    bench = mesh_up()
    bench.auto_vote = False
    bench.now = Instant(bench.now + 5_000)
    sent_at = bench.now
    bench.beat("us-east")
    late = polls(bench)
    bench.advance(3_000)
    bench.sent.clear()
    for to, poll in late:
        bench.feed(Received(to, bench.poll_answer(to, poll)))
    assert bench.state.majority_at == sent_at
    bench.now = Instant(bench.now + 1)
    bench.beat("us-west")
    bench.advance(500)
    assert [a.poll_age_ms for a in opened(bench, "us-west")] == [3_001]


def test_an_older_poll_never_moves_the_majority_back() -> None:
    bench = mesh_up()
    bench.auto_vote = False
    bench.now = Instant(bench.now + 1_000)
    bench.beat("us-east")
    older = polls(bench)
    bench.now = Instant(bench.now + 1_000)
    bench.beat("us-west")
    newer = polls(bench)
    for to, poll in newer:
        bench.feed(Received(to, bench.poll_answer(to, poll)))
    newest = bench.state.majority_at
    for to, poll in older:
        bench.feed(Received(to, bench.poll_answer(to, poll)))
    assert bench.state.majority_at == newest == bench.now


@pytest.mark.parametrize("changed", [{"mesh": "other"}, {"epoch": 2}, {"set_id": 2}, {"voter": "us-west"}])
def test_poll_answers_about_something_else_count_for_nothing(changed: dict[str, Any]) -> None:
    bench = mesh_up()
    bench.auto_vote = False
    bench.now = Instant(bench.now + 1)
    bench.beat("us-east")
    for to, poll in polls(bench):
        answer = bench.poll_answer(to, poll)
        if region_of(to) != changed.get("voter"):
            answer = replace(answer, **changed)
        else:
            continue
        bench.feed(Received(to, answer))
    assert not bench.answers("us-east")


def test_a_non_voter_has_no_voice() -> None:
    bench = mesh_up()
    bench.auto_vote = False
    bench.now = Instant(bench.now + 1)
    bench.beat("us-east")
    _, poll = polls(bench)[0]
    for region in ("eu-west", "us-east"):
        bench.feed(Received(node(region), bench.poll_answer(node(region), poll)))
    assert not bench.answers("us-east")


def test_a_node_of_a_later_epoch_ends_this_registry_and_one_of_an_earlier_is_told_of_the_mesh() -> None:
    bench = mesh_up()
    bench.beat("us-east")
    before = len(bench.answers("us-east"))
    bench.beat("us-east", epoch=0)
    assert len(bench.answers("us-east")) == before, "no lease of another epoch"
    assert not bench.state.halted
    bench.beat("us-east", by="us-west", epoch=2)
    assert not bench.state.halted, "nobody's word"
    bench.beat("us-east", epoch=2)
    assert bench.state.halted.startswith("superseded")
    assert len(bench.answers("us-east")) == before
    bench.beat("us-west")
    assert len(bench.answers("us-west")) == 0
