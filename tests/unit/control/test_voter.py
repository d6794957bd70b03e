"""The voter: one signature for one place, ever, and only after its record is durable."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.control.world import MESH, Mesh, digest

from keymesh.control import commit, voter
from keymesh.control.messages import (
    Countersignature,
    CountersignatureMessage,
    CountersignRequest,
    Poll,
    PollAnswer,
    ReadVote,
    VoterLog,
)
from keymesh.control.voter import MeshApplied, Seat, VoterConfig, VoterState, new_voter, seat_of, step
from keymesh.model.machine import (
    REGISTRY,
    Booted,
    BootMark,
    Note,
    Persist,
    Persisted,
    PersistFailed,
    Received,
    Send,
    Tick,
    Wake,
    node_address,
)
from keymesh.model.time import Instant
from keymesh.sim.suite import FakeSuite

NOW = Instant(0)
SUITE = FakeSuite("node-us-east")
SEAT = Seat(epoch=3, set_id=2, seated=True)


class Life:
    """A voter and its disk; ``crash`` forgets all but the disk."""

    def __init__(self, seat: Seat | None = SEAT) -> None:
        self.disk: dict[str, Any] = {} if seat is None else {voter.SEAT_RECORD: seat}
        self.sent: list[Any] = []
        self.notes: list[str] = []
        self.failed: list[Any] = []
        self.state: VoterState
        self.crash()

    def crash(self) -> None:
        self.state = new_voter(VoterConfig(mesh=MESH, region="us-east", suite=SUITE))
        self.feed(Booted(dict(self.disk), BootMark("b", 0), b"\0" * 32))

    def feed(self, event: object, *, disk: str = "good") -> list[Any]:
        """Carry out the effects; ``disk``: good, bad (refuses) or lost (crash before it answers)."""
        effects = step(self.state, NOW, event)
        for effect in effects:
            match effect:
                case Persist():
                    if disk == "lost":
                        break
                    if disk == "bad":
                        self.failed = self.feed(PersistFailed(effect.token))
                        break
                    self.disk |= dict(effect.puts)
                    for name in effect.deletes:
                        del self.disk[name]
                    self.feed(Persisted(effect.token))
                case Send():
                    assert effect.to == REGISTRY
                    self.sent.append(effect.message)
                case Note():
                    self.notes.append(effect.name)
        return effects

    def ask(self, request: Any, **kwargs: Any) -> list[Countersignature]:
        before = len(self.sent)
        self.feed(Received(REGISTRY, request), **kwargs)
        return [SUITE.unseal(m.countersignature, Countersignature, SUITE.keys) for m in self.sent[before:]]


def asked(seq: int = 1, text: str = "x", **changed: Any) -> CountersignRequest:
    request = CountersignRequest(
        mesh=MESH, epoch=3, set_id=2, blind=digest("ns"), seq=seq, entry_hash=digest(text), restriction=True  # type: ignore[arg-type]
    )  # fmt: skip
    return msgspec.structs.replace(request, **changed)


def test_a_signature_follows_its_record() -> None:
    life = Life()
    effects = step(life.state, NOW, Received(REGISTRY, asked()))
    assert [type(e) for e in effects] == [Persist]
    assert life.state.votes == {}
    answer = step(life.state, NOW, Persisted(effects[0].token))
    assert [type(e) for e in answer] == [Send]
    assert isinstance(answer[0].message, CountersignatureMessage)
    assert step(life.state, NOW, Persisted(effects[0].token)) == [], "answered once"


def test_the_same_request_gets_the_same_answer_again_and_after_a_crash() -> None:
    life = Life()
    (first,) = life.ask(asked())
    assert (first.voter, first.seq, first.entry_hash, first.restriction) == ("us-east", 1, digest("x"), True)
    life.crash()
    assert life.ask(asked()) == [first]
    assert len(life.disk) == 2


def test_another_entry_in_the_same_place_is_a_fork_and_never_signed() -> None:
    life = Life()
    life.ask(asked())
    for other in (asked(text="y"), asked(restriction=False)):
        assert life.ask(other) == []
        life.crash()
        assert life.ask(other) == []
    assert set(life.notes) == {"fork"}
    assert len(life.ask(asked())) == 1


def test_two_at_once_in_one_place() -> None:
    life = Life()
    effects = step(life.state, NOW, Received(REGISTRY, asked()))
    assert step(life.state, NOW, Received(REGISTRY, asked())) == [], "already on its way"
    (note,) = step(life.state, NOW, Received(REGISTRY, asked(text="y")))
    assert note.name == "fork"
    assert len(step(life.state, NOW, Persisted(effects[0].token))) == 1


def test_a_lost_or_failed_record_promises_nothing() -> None:
    life = Life()
    assert life.ask(asked(), disk="bad") == []
    assert life.ask(asked(text="y"), disk="lost") == []
    life.crash()
    assert len(life.ask(asked(text="z"))) == 1


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"mesh": "m2"}, "foreign-mesh"),
        ({"epoch": 2}, "old-epoch"),
        ({"epoch": 4}, "future-epoch"),
        ({"set_id": 1}, "other-set"),
        ({"set_id": 3}, "other-set"),
        ({"seq": 0}, "malformed"),
        ({"blind": "zz"}, "malformed"),
        ({"entry_hash": ""}, "malformed"),
    ],
)
def test_what_is_refused(changed: dict[str, Any], reason: str) -> None:
    life = Life()
    assert life.ask(asked(**changed)) == []
    assert voter.refusal_of(life.state, asked(**changed)) == reason
    assert life.disk.keys() == {voter.SEAT_RECORD}


def test_only_the_registry_is_answered_and_only_by_who_is_seated() -> None:
    life = Life()
    for message in (asked(), Poll(mesh=MESH, epoch=3, set_id=2, poll_id=1)):
        assert step(life.state, NOW, Received(node_address("us-west", "n1"), message)) == []
        for seat in (None, Seat(epoch=3, set_id=2, seated=False)):
            assert Life(seat).ask(message) == []


@pytest.mark.parametrize(
    ("poll", "answered"),
    [
        ({}, True),
        ({"epoch": 4}, True),
        ({"epoch": 2}, False),
        ({"set_id": 1}, False),
        ({"mesh": "m2"}, False),
    ],
)
def test_polls(poll: dict[str, Any], answered: bool) -> None:
    life = Life()
    sent = msgspec.structs.replace(Poll(mesh=MESH, epoch=3, set_id=2, poll_id=9), **poll)
    life.feed(Received(REGISTRY, sent))
    expected = PollAnswer(mesh=MESH, epoch=sent.epoch, set_id=2, poll_id=9, voter="us-east")
    assert life.sent == ([expected] if answered else [])


def test_seats_only_move_on_and_are_recorded_first() -> None:
    life = Life(None)
    away = Seat(epoch=3, set_id=2, seated=False)
    (persist,) = step(life.state, NOW, MeshApplied(away))
    assert life.state.seat is None
    step(life.state, NOW, Persisted(persist.token))
    assert life.state.seat == away
    life = Life()
    for old in (SEAT, Seat(epoch=2, set_id=9, seated=True), Seat(epoch=3, set_id=1, seated=True)):
        assert life.feed(MeshApplied(old)) == []
    life.feed(MeshApplied(Seat(epoch=3, set_id=3, seated=True)))
    assert life.ask(asked()) == []
    assert life.ask(asked(set_id=3)) == [], "what the old set has committed is read first"
    life.feed(Received(REGISTRY, log_page(life)))
    assert len(life.ask(asked(set_id=3))) == 1
    life.feed(MeshApplied(Seat(epoch=4, set_id=3, seated=True)))
    assert life.ask(asked(set_id=3)) == []
    assert len(life.ask(asked(set_id=3, epoch=4, text="y"))) == 1, "a new epoch has its own places"
    assert life.ask(asked(set_id=3, epoch=4, text="x")) == []


def log_page(life: Life, *votes: ReadVote) -> VoterLog:
    """The log's only page, in answer to what ``life`` asks."""
    assert life.state.recalling is not None
    return VoterLog(mesh=MESH, nonce=life.state.recalling.nonce, after="", index=1, votes=votes, next_after="")


def test_a_seat_that_moves_while_the_disk_is_busy() -> None:
    life = Life()
    (vote,) = step(life.state, NOW, Received(REGISTRY, asked()))
    life.feed(MeshApplied(Seat(epoch=4, set_id=2, seated=True)))
    assert step(life.state, NOW, Persisted(vote.token)) == []


def test_seats_are_read_from_the_mesh() -> None:
    mesh = Mesh()
    nodes = tuple(f"node:{region}/n1" for region in ("eu-central", "eu-west", "us-east", "us-west"))
    for region in ("us-east", "eu-west"):
        seat = Seat(epoch=1, set_id=1, seated=region == "us-east", nodes=nodes, interval_ms=1_000)
        assert seat_of(mesh.mesh, region, epoch=1) == seat


def test_memory_is_bounded_and_what_is_forgotten_is_never_signed_again() -> None:
    life = Life()
    for seq in range(1, voter.VOTES_PER_BLIND + 11):
        assert len(life.ask(asked(seq))) == 1
    assert len(life.disk) == voter.VOTES_PER_BLIND + 1
    life.crash()
    assert life.ask(asked(1)) == []
    assert life.ask(asked(10, "y")) == []
    assert len(life.ask(asked(11))) == 1
    assert len(life.ask(asked(1, blind=digest("other")))) == 1


def test_what_voters_sign_commits_an_entry() -> None:
    mesh = Mesh()
    mesh.furnished()
    head = mesh.restrict("suspend", "tenant:acme", committed=False).head
    request = commit.countersign_request(head, mesh.mesh.rows)
    sealed = []
    for region in ("us-east", "us-west"):
        state = new_voter(VoterConfig(mesh=MESH, region=region, suite=mesh.nodes[region]))
        seat = seat_of(mesh.mesh, region, epoch=1)
        step(state, NOW, Booted({voter.SEAT_RECORD: seat}, BootMark("b", 0), b"\0" * 32))
        (persist,) = step(state, NOW, Received(REGISTRY, request))
        (send,) = step(state, NOW, Persisted(persist.token))
        sealed.append(send.message.countersignature)
    assert commit.countersigned_by(head, sealed, mesh.mesh.rows, mesh.registry) == {"us-east", "us-west"}
    assert commit.is_committed(head, tuple(sealed), mesh.mesh.rows, mesh.registry)
    assert not commit.is_committed(head, (sealed[0], sealed[0]), mesh.mesh.rows, mesh.registry)
    assert [commit.majority(n) for n in (1, 2, 3, 4, 5, 7)] == [1, 2, 2, 3, 3, 4]


STEP = st.tuples(
    st.sampled_from(["ask", "ask", "ask", "crash"]), st.integers(1, 3), st.sampled_from("xy"),
    st.sampled_from(["good", "bad", "lost"]),
)  # fmt: skip


@settings(max_examples=60)
@given(st.lists(STEP, max_size=30))
def test_no_place_ever_gets_two_signatures(steps: list[tuple[str, int, str, str]]) -> None:
    life = Life()
    signed: dict[int, str] = {}
    for what, seq, text, disk in steps:
        if what == "crash":
            life.crash()
            continue
        for vote in life.ask(asked(seq, text), disk=disk):
            assert signed.setdefault(vote.seq, vote.entry_hash) == vote.entry_hash
            assert f"vote/{digest('ns')}/{seq}" in life.disk
        if disk == "lost":
            life.crash()


# --- a seat that could not be recorded -------------------------------------------------------------------------------


def test_a_seat_whose_record_failed_is_recorded_by_a_tick_and_not_taken_before() -> None:
    life = Life()
    new = Seat(epoch=4, set_id=2, seated=True)
    life.feed(MeshApplied(new), disk="bad")
    assert life.state.seat == SEAT
    assert life.ask(asked(epoch=4)) == []
    (wake,) = life.failed
    assert isinstance(wake, Wake)
    life.feed(Tick(), disk="bad")
    assert life.state.seat == SEAT
    life.feed(Tick())
    assert life.disk[voter.SEAT_RECORD] == life.state.seat == new
    assert len(life.ask(asked(epoch=4))) == 1
    assert life.feed(Tick()) == []


def test_of_two_seats_that_failed_the_newer_is_recorded() -> None:
    life = Life()
    newer = Seat(epoch=5, set_id=2, seated=True)
    life.feed(MeshApplied(Seat(epoch=4, set_id=2, seated=True)), disk="bad")
    life.feed(MeshApplied(newer), disk="bad")
    life.feed(MeshApplied(Seat(epoch=4, set_id=2, seated=True)), disk="bad")
    life.feed(Tick())
    assert life.state.seat == newer
