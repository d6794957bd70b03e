"""What the Registry tells a voter without a memory: everything there was to countersign, by blinds, after a read."""

from __future__ import annotations

import pytest

from keymesh.control.messages import VoterLog, VoterRead
from keymesh.model.machine import Received
from keymesh.registry import machine, voter_reads
from tests.unit.registry.harness import MESH, VOTERS, Bench, node, with_tenant


def ask(bench: Bench, region: str, *, after: str = "", mesh: str = MESH, nonce: str = "n1") -> list[VoterLog]:
    bench.sent = []
    bench.feed(Received(node(region), VoterRead(mesh=mesh, region=region, nonce=nonce, after=after)))
    bench.settle()
    return [m for to, m in bench.sent if isinstance(m, VoterLog) and to == node(region)]


def test_a_voter_is_told_every_entry_that_needed_voters_and_no_name() -> None:
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    (log,) = ask(bench, VOTERS[0])
    assert [(v.seq, v.restriction) for v in log.votes] == [(3, True)]
    assert log.votes[0].entry_hash == bench.state.spaces["acme"].entries[2].hash
    assert (log.next_after, log.nonce, log.index) == ("", "n1", bench.state.index)
    assert "acme" not in repr(log)


def test_pages_follow_each_other_without_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voter_reads, "PAGE", 2)
    bench = with_tenant()
    for n in range(5):
        bench.ok(bench.scope_command("suspend", "tenant:acme", f"s{n}"))
    seen: list[int] = []
    after = ""
    while True:
        (log,) = ask(bench, VOTERS[0], after=after)
        seen += [v.seq for v in log.votes]
        after = log.next_after
        if not after:
            break
    assert seen == [3, 4, 5, 6, 7]


def test_only_voters_are_told_and_each_only_for_itself() -> None:
    bench = with_tenant()
    assert ask(bench, "eu-west") == []
    assert ask(bench, VOTERS[0], mesh="other") == []
    bench.sent = []
    bench.feed(Received(node(VOTERS[0]), VoterRead(mesh=MESH, region=VOTERS[1], nonce="n", after="")))
    bench.settle()
    assert not [m for _, m in bench.sent if isinstance(m, VoterLog)]


def test_the_answer_waits_for_a_read_that_began_after_the_request() -> None:
    bench = with_tenant()
    bench.beat("us-east")  # settles a read
    before = bench.state.read
    assert before is None
    bench.sent = []
    asked = VoterRead(mesh=MESH, region=VOTERS[0], nonce="n1", after="")
    effects = machine.step(bench.state, bench.now, Received(node(VOTERS[0]), asked))
    assert not [e for e in effects if isinstance(getattr(e, "message", None), VoterLog)]
    assert bench.state.read is not None
    assert bench.state.read.voters == {node(VOTERS[0]): asked}
