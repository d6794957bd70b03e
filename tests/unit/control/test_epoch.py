"""A voter and a new epoch: it tells what it has stored in the step in which it promises, and then nothing older."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.control.test_voter import SUITE, Life, asked
from tests.unit.control.world import FAR, MESH, digest, row_keys

from keymesh.control import trust, voter
from keymesh.control.kinds import OPEN_EPOCH
from keymesh.control.messages import EpochOffer, EpochStored, Poll, StandbyRequest
from keymesh.control.signing import to_plain
from keymesh.control.trust import Quorum
from keymesh.control.voter import Seat, step
from keymesh.control.voter_state import EpochOffered, EpochReply
from keymesh.model.ids import KeyId
from keymesh.model.machine import REGISTRY, Persist, Persisted, PersistFailed, Received, node_address
from keymesh.model.time import Instant
from keymesh.sim.suite import FakeSuite

NOW = Instant(0)
OFFICERS = [FakeSuite(f"officer-{n}") for n in range(3)]
QUORUM = Quorum({KeyId(k): v for k, v in row_keys(*OFFICERS).items()}, 2)


def offered(epoch: int = 4, *, command_id: str = "open", n_officers: int = 2, **changed: Any) -> EpochOffered:
    signed = trust.make_authority(
        mesh=MESH,
        namespace="mesh",
        command_id=command_id,
        kind=OPEN_EPOCH,
        args={"epoch": epoch},
        not_after=changed.pop("not_after", FAR),
        signers=OFFICERS[:n_officers],
    )
    offer = EpochOffer(
        **{"mesh": MESH, "epoch": epoch, "command_id": command_id, "authority": (to_plain(signed),), **changed}
    )
    return EpochOffered("t", offer, QUORUM)


def open_(life: Life, event: EpochOffered, *, disk: str = "good") -> EpochReply | None:
    """The reply, once the record has been answered."""
    effects = step(life.state, NOW, event)
    for effect in list(effects):
        if isinstance(effect, Persist):
            if disk == "lost":
                return None
            life.disk |= dict(effect.puts) if disk == "good" else {}
            answered = Persisted(effect.token) if disk == "good" else PersistFailed(effect.token)
            effects += step(life.state, NOW, answered)
    (reply,) = [e for e in effects if isinstance(e, EpochReply)]
    return reply


def word(reply: EpochReply | None) -> EpochStored:
    assert reply is not None and reply.refused == ""
    return SUITE.unseal(reply.stored, EpochStored, SUITE.keys)


def test_it_says_all_that_it_has_countersigned_and_then_countersigns_nothing_older() -> None:
    life = Life()
    life.ask(asked(1))
    life.ask(asked(2, "later"))
    said = word(open_(life, offered()))
    assert [(h.seq, h.entry_hash) for h in said.heads] == [(2, digest("later"))]
    assert (said.epoch, said.voter, said.command_id) == (4, "us-east", "open")
    for _ in range(2):
        assert life.ask(asked(3)) == []
        assert life.ask(asked(1)) == [], "not even again"
        assert len(life.ask(asked(3, "new", epoch=4))) == 1
        life.crash()
    assert set(life.notes) == {"countersign-refused"}


def test_it_neither_answers_polls_nor_grants_in_an_older_epoch() -> None:
    life = Life()
    open_(life, offered())
    poll = Poll(mesh=MESH, epoch=3, set_id=2, poll_id=1)
    assert step(life.state, NOW, Received(REGISTRY, poll)) == []
    later = Poll(mesh=MESH, epoch=4, set_id=2, poll_id=1)
    assert len(step(life.state, NOW, Received(REGISTRY, later))) == 1
    node = node_address("us-west", "n1")
    request = StandbyRequest(mesh=MESH, epoch=3, set_id=2, region="us-west", node="n1", nonce="n", ttl_ms=1)
    assert voter.standby_refusal(life.state, node, request, NOW) == "other-epoch"


def test_a_signature_on_its_way_is_in_the_word_or_is_never_given() -> None:
    for vote_first in (True, False):
        life = Life()
        (vote,) = step(life.state, NOW, Received(REGISTRY, asked(7)))
        (promise,) = step(life.state, NOW, offered())
        order = (vote, promise) if vote_first else (promise, vote)
        replies = [effect for one in order for effect in step(life.state, NOW, Persisted(one.token))]
        said = word(next(e for e in replies if isinstance(e, EpochReply)))
        assert [h.seq for h in said.heads] == ([7] if vote_first else [])
        assert len(replies) == 1, "no countersignature leaves once it is taken up"


def test_nothing_is_promised_before_the_record() -> None:
    life = Life()
    assert open_(life, offered(), disk="lost") is None
    life.crash()
    assert len(life.ask(asked(1))) == 1
    failed = open_(life, offered(), disk="bad")
    assert failed is not None
    assert (failed.refused, failed.stored) == ("storage", None)
    assert len(life.ask(asked(2))) == 1
    assert word(open_(life, offered())).epoch == 4


def test_the_same_word_gets_the_same_answer_and_another_for_the_same_epoch_none() -> None:
    life = Life()
    word(open_(life, offered()))
    life.crash()
    assert word(open_(life, offered())).epoch == 4
    other = open_(life, offered(command_id="other"))
    assert other is not None
    assert other.refused == "old-epoch"
    assert word(open_(life, offered(9, command_id="third"))).epoch == 9
    back = open_(life, offered())
    assert back is not None
    assert back.refused == "old-epoch"


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (offered(3), "old-epoch"),
        (offered(n_officers=1), "not-signed"),
        (offered(not_after=0), "not-signed"),
        (offered(mesh="m2"), "foreign-mesh"),
        (EpochOffered("t", offered().offer, None), "not-signed"),
        (EpochOffered("t", offered(authority=()).offer, QUORUM), "not-signed"),
    ],
)
def test_what_is_refused(event: EpochOffered, reason: str) -> None:
    life = Life()
    reply = open_(life, event)
    assert reply is not None
    assert (reply.refused, reply.stored) == (reason, None)
    assert len(life.ask(asked(1))) == 1


def test_who_is_no_voter_or_has_no_memory_stores_nothing() -> None:
    for seat in (None, Seat(epoch=3, set_id=2, seated=False)):
        reply = open_(Life(seat), offered())
        assert reply is not None
        assert reply.refused == "not-a-voter"


def test_the_seat_of_an_older_mesh_state_takes_nothing_back() -> None:
    life = Life()
    open_(life, offered())
    step_ = Seat(epoch=3, set_id=3, seated=True)
    life.feed(voter.MeshApplied(step_))
    assert life.state.epoch == 4
    assert life.ask(asked(5, epoch=3, set_id=3)) == []
    life.crash()
    assert life.state.epoch == 4


@pytest.mark.parametrize("failing", [4, 5])
def test_a_promise_that_was_not_recorded_undoes_no_other(failing: int) -> None:
    """Two are on their way: as long as one may yet become durable, nothing older is countersigned."""
    life = Life()
    on_their_way = {epoch: step(life.state, NOW, offered(epoch))[0] for epoch in (4, 5)}
    (reply,) = step(life.state, NOW, PersistFailed(on_their_way[failing].token))
    assert reply.refused == "storage"
    assert life.ask(asked(1)) == []
    other = 9 - failing
    step(life.state, NOW, Persisted(on_their_way[other].token))
    assert life.state.epoch == other
