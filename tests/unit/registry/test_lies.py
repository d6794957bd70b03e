"""Grants that nodes hand in: one that leaves out what its signer countersigned is kept as proof; no other is."""

from __future__ import annotations

from typing import Any

import msgspec

from keymesh.control import commit, standby
from keymesh.control.messages import (
    Countersignature,
    CountersignRequest,
    StandbyGrant,
    StandbyRequest,
    StandbyUsed,
    StoredHead,
)
from keymesh.control.standby import StandbyLie, lie_name
from keymesh.model.machine import Received
from tests.unit.registry.harness import MESH, VOTERS, Bench, node, with_tenant

LIAR = VOTERS[0]


def suspended() -> tuple[Bench, Countersignature]:
    """A committed suspension, and the liar's own word for it: the fifth thing that it stored."""
    bench = with_tenant()
    bench.auto_vote = False
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    asked = [(to, m) for to, m in bench.sent if isinstance(m, CountersignRequest)]
    for to, message in asked:
        bench.feed(Received(to, bench.countersignature(to, message, serial=5)))
    bench.settle()
    assert bench.state.spaces["acme"].commits
    return bench, commit.vote_for(asked[0][1], LIAR, serial=5)


def grant(word: Countersignature, *heads: StoredHead, serial: int = 9, **changed: Any) -> StandbyGrant:
    asked = StandbyRequest(mesh=MESH, epoch=1, set_id=1, region="eu-west", node="n1", nonce="n", ttl_ms=60_000)
    made = standby.grant_for(asked, LIAR, serial=serial, heads=heads)
    return msgspec.structs.replace(made, **changed)


def head_of(word: Countersignature) -> StoredHead:
    return StoredHead(blind=word.blind, epoch=word.epoch, seq=word.seq, entry_hash=word.entry_hash)


def hand_in(bench: Bench, made: StandbyGrant, *, by: str = LIAR, sender: str = "eu-west") -> dict[str, StandbyLie]:
    sealed = bench.suites[by].seal(made)
    bench.feed(Received(node(sender), StandbyUsed(grants=(sealed,))))
    return bench.state.lies


def test_a_grant_that_hides_a_countersigned_restriction_is_kept_under_both_signatures() -> None:
    bench, word = suspended()
    lies = hand_in(bench, grant(word))
    assert set(lies) == {LIAR}
    assert "standby-lie" in bench.note_names()
    keys = bench.state.sessions[node(LIAR)].keys
    suite = bench.state.config.suite
    shown = suite.unseal(lies[LIAR].grant, StandbyGrant, keys)
    assert standby.omits(shown, suite.unseal(lies[LIAR].earlier, Countersignature, keys))
    assert lie_name(LIAR) in bench.records
    bench.boot()
    assert set(bench.state.lies) == {LIAR}, "a restart forgets no proof"


def test_an_honest_grant_or_one_given_before_or_sealed_by_another_proves_nothing() -> None:
    bench, word = suspended()
    assert not hand_in(bench, grant(word, head_of(word)))
    assert not hand_in(bench, grant(word, serial=word.serial - 1))
    assert not hand_in(bench, grant(word), by=VOTERS[1])
    assert not hand_in(bench, grant(word, mesh="other"))
    assert not hand_in(bench, grant(word), sender="nowhere")
