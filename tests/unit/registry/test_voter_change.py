"""A change of voters at the Registry: not before a majority has sealed the old set, and nothing adds up across sets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from keymesh.control import commit
from keymesh.control.blind import blind
from keymesh.control.messages import CountersignRequest, Poll, SetSealed, StoredHead
from keymesh.control.rows import PastVotersRow, VotersRow, get
from keymesh.model.ids import Digest
from keymesh.model.machine import Received
from keymesh.registry import spaces
from keymesh.registry.events import Command
from tests.unit.registry.harness import MESH, OFFICERS, VOTERS, Bench, mesh_up, node, region_of, with_tenant
from tests.unit.registry.harness import NEW_VOTERS as NEW

SALT = "5a" * 32


def word(
    bench: Bench, region: str, *heads: StoredHead, by: str | None = None, set_id: int = 1, mesh: str = MESH
) -> Any:
    said = SetSealed(mesh=mesh, set_id=set_id, command_id="seats", voter=region, node="n1", heads=heads)
    return bench.suites[by or region].seal(said)


def change(bench: Bench, words: Iterable[Any], **fields: Any) -> Command:
    return replace(bench.change_voters(**fields), words=tuple(words))


def sealed(bench: Bench, *regions: str) -> list[Any]:
    return [word(bench, region) for region in regions or VOTERS[:2]]


def why(bench: Bench, command: Command) -> str:
    done = bench.submit(command)
    assert done is not None and done.error is not None
    return str(done.error.code)  # type: ignore[attr-defined]


def head_of(bench: Bench, seq: int, entry_hash: str = "", *, epoch: int = 1) -> StoredHead:
    held = entry_hash or bench.state.spaces["acme"].entries[seq - 1].hash
    return StoredHead(blind=blind(SALT, "acme"), epoch=epoch, seq=seq, entry_hash=Digest(held))


def test_with_a_majority_of_the_old_set_the_new_one_counts_and_the_old_one_is_kept() -> None:
    bench = mesh_up()
    done = bench.ok(change(bench, sealed(bench)))
    rows = bench.state.spaces["mesh"].rows
    assert get(rows, "voters", VotersRow) == VotersRow(set_id=2, regions=NEW)
    assert get(rows, "voters/1", PastVotersRow) == PastVotersRow(regions=VOTERS, until=done.seq)
    bench.boot()
    bench.settle()
    assert bench.state.voters == VotersRow(set_id=2, regions=NEW), "and after a restart"


def test_half_way_nothing_has_changed() -> None:
    """Everything short of a majority's own words; the same command finishes it later."""
    bench = mesh_up()
    for words in (
        [],
        sealed(bench, "us-east"),
        sealed(bench, "us-east", "us-east"),
        sealed(bench, "us-east", "eu-west"),
        [*sealed(bench, "us-east"), word(bench, "us-west", by="us-east")],
        [*sealed(bench, "us-east"), word(bench, "us-west", by="eu-west")],
        [*sealed(bench, "us-east"), word(bench, "us-west", set_id=2)],
        [*sealed(bench, "us-east"), word(bench, "us-west", mesh="other")],
        [*sealed(bench, "us-east"), {"junk": 1}],
    ):
        assert why(bench, change(bench, words)) == "not-sealed"
    assert bench.state.voters == VotersRow(set_id=1, regions=VOTERS)
    bench.ok(change(bench, sealed(bench)))
    assert bench.ok(change(bench, [])).duplicate, "what is in the log needs no words"


def test_who_has_not_signed_changes_nothing() -> None:
    bench = mesh_up()
    for by in ((), OFFICERS[:1], ("root-1", "root-2")):
        assert why(bench, change(bench, sealed(bench), by=by)) == "below-threshold"


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"set_id": 1}, "conflict"),
        ({"set_id": 3}, "conflict"),
        ({"replaces": NEW}, "conflict"),
        ({"regions": VOTERS}, "already"),
        ({"regions": NEW[:2]}, "bad-field"),
        ({"regions": (*NEW, "eu-central")}, "bad-field"),
        ({"regions": NEW[::-1]}, "bad-field"),
        ({"regions": ("eu-west", "eu-west", "us-east")}, "bad-field"),
        ({"regions": ("ap-south", "us-east", "us-west")}, "bad-field"),
    ],
)
def test_sets_that_can_not_follow(changed: dict[str, Any], code: str) -> None:
    bench = mesh_up()
    assert why(bench, change(bench, sealed(bench), **changed)) == code


def test_what_a_voter_has_stored_must_be_in_the_log() -> None:
    """A log that lost an entry since, or another's log, gets no new voters: they would never hear of it."""
    bench = with_tenant()
    seq = bench.ok(bench.scope_command("suspend", "tenant:acme", "s1")).seq
    unknown = StoredHead(blind="ff" * 32, epoch=1, seq=1, entry_hash=Digest("ab" * 32))
    for head in (head_of(bench, seq, "ab" * 32), head_of(bench, seq + 1, "cd" * 32), unknown):
        words = [*sealed(bench, "us-east"), word(bench, "us-west", head)]
        assert why(bench, change(bench, words)) == "union-not-in-log"
    older = head_of(bench, seq, "ab" * 32, epoch=0)  # a tail that a restore has judged
    bench.ok(change(bench, [word(bench, "us-east", head_of(bench, seq)), word(bench, "us-west", older)]))


def test_voices_of_two_sets_never_add_up() -> None:
    bench = with_tenant()
    bench.auto_vote = False
    seq = bench.ok(bench.scope_command("suspend", "tenant:acme", "s1")).seq
    asked = [(to, m) for to, m in bench.sent if isinstance(m, CountersignRequest)]
    bench.sent.clear()
    old = next((to, m) for to, m in asked if region_of(to) == "us-west")
    bench.feed(Received(old[0], bench.countersignature(*old)))
    bench.ok(change(bench, sealed(bench, "us-east", "eu-central")))
    bench.advance(1_500)
    new = [(to, m) for to, m in bench.sent if isinstance(m, CountersignRequest)]
    assert {region_of(to) for to, _ in new} == set(NEW), "all are asked again"
    assert {m.set_id for _, m in new} == {2}
    one = next((to, m) for to, m in new if region_of(to) == "eu-west")
    bench.feed(Received(one[0], bench.countersignature(*one)))
    late = next((to, m) for to, m in asked if region_of(to) == "us-east")
    bench.feed(Received(late[0], bench.countersignature(*late)))
    bench.settle()
    assert seq not in bench.state.spaces["acme"].commits
    other = next((to, m) for to, m in new if region_of(to) == "us-west")
    bench.feed(Received(other[0], bench.countersignature(*other)))
    bench.settle()
    assert seq in bench.state.spaces["acme"].commits


def test_polls_of_the_old_set_are_forgotten_with_it() -> None:
    bench = mesh_up()
    bench.advance(30_000)
    bench.auto_vote = False
    bench.feed(Received(node("us-east"), bench.heartbeat("us-east")))
    bench.settle()
    polls = [(to, m) for to, m in bench.sent if isinstance(m, Poll)]
    assert {m.set_id for _, m in polls} == {1}
    to, poll = next((to, m) for to, m in polls if region_of(to) == "us-west")
    bench.feed(Received(to, bench.poll_answer(to, poll)))
    bench.ok(change(bench, sealed(bench)))
    before = bench.state.majority_at
    for region in NEW:
        said = bench.poll_answer(node(region), poll)
        bench.feed(Received(node(region), said))
    assert bench.state.majority_at == before


def test_what_the_old_set_countersigned_goes_on_counting_and_only_that() -> None:
    bench = with_tenant()
    before = bench.ok(bench.scope_command("suspend", "tenant:acme", "s1")).seq
    space = bench.state.spaces["acme"]
    proof = space.commits[before].countersignatures
    bench.ok(change(bench, sealed(bench)))
    rows, suite = spaces.mesh_space(bench.state).rows, bench.state.config.suite
    signed = space.entries[before - 1]
    assert commit.is_committed(signed, proof, rows, suite)
    assert commit.countersigned_by(signed, proof, rows, suite) <= set(VOTERS)
    assert not commit.is_committed(signed, proof[:1], rows, suite)
    after = bench.ok(bench.scope_command("suspend", "service:acme/pay", "s2")).seq
    later = space.entries[after - 1]
    old = VotersRow(set_id=1, regions=VOTERS)
    asked = commit.countersign_request(later, rows, old)
    words = tuple(bench.countersignature(node(r), asked).countersignature for r in VOTERS)
    assert not commit.is_committed(later, words, rows, suite), "a set that was replaced says nothing of later entries"
    assert commit.is_committed(later, space.commits[after].countersignatures, rows, suite)
    mixed = (proof[0], *_of_new(bench, signed, rows)[:1])
    assert not commit.is_committed(signed, mixed, rows, suite), "one of each is a majority of neither"


def _of_new(bench: Bench, signed: Any, rows: Any) -> tuple[Any, ...]:
    asked = commit.countersign_request(signed, rows)
    return tuple(bench.countersignature(node(r), asked).countersignature for r in ("eu-west", "us-west"))
