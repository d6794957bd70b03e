"""A voter and the end of its set: it tells what it has stored in the step in which it seals, and then acts no more."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.control.test_epoch import OFFICERS, QUORUM
from tests.unit.control.test_epoch import offered as epoch_offered
from tests.unit.control.test_epoch import open_ as open_epoch
from tests.unit.control.test_voter import SUITE, Life, asked, log_page
from tests.unit.control.world import FAR, MESH, digest

from keymesh.control import trust, voter, voter_state
from keymesh.control.kinds import CHANGE_VOTERS
from keymesh.control.messages import Poll, ReadVote, SetOffer, SetSealed, StandbyRequest
from keymesh.control.signing import to_plain
from keymesh.control.voter import MeshApplied, Seat, step
from keymesh.control.voter_seal import args_of
from keymesh.control.voter_state import EpochReply, SetOffered
from keymesh.model.machine import REGISTRY, Persist, Persisted, PersistFailed, Received, node_address
from keymesh.model.time import Instant
from keymesh.orbital.wire import Codec

NOW = Instant(0)
OLD, NEW = ("eu-central", "us-east", "us-west"), ("eu-west", "us-east", "us-west")


def offered(set_id: int = 3, *, n_officers: int = 2, not_after: int = FAR, **changed: Any) -> SetOffered:
    """The officers' word for set ``set_id``; ``changed`` is what somebody made of it afterwards."""
    said: dict[str, Any] = {
        "mesh": MESH,
        "set_id": set_id,
        "regions": NEW,
        "replaces": OLD,
        "command_id": "seats",
        "authority": (),
    }
    signed = trust.make_authority(
        mesh=MESH,
        namespace="mesh",
        command_id="seats",
        kind=CHANGE_VOTERS,
        args=args_of(SetOffer(**said)),
        not_after=not_after,
        signers=OFFICERS[:n_officers],
    )
    return SetOffered("t", SetOffer(**{**said, "authority": (to_plain(signed),), **changed}), QUORUM)


def seal(life: Life, event: SetOffered, *, disk: str = "good") -> EpochReply | None:
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


def word(reply: EpochReply | None) -> SetSealed:
    assert reply is not None and reply.refused == ""
    return SUITE.unseal(reply.stored, SetSealed, SUITE.keys)


def test_it_says_all_that_it_has_stored_and_then_acts_no_more_under_that_set() -> None:
    life = Life()
    life.ask(asked(1))
    life.ask(asked(2, "later"))
    said = word(seal(life, offered()))
    assert [(h.seq, h.entry_hash) for h in said.heads] == [(2, digest("later"))]
    assert (said.set_id, said.voter, said.command_id) == (2, "us-east", "seats")
    node = node_address("us-west", "n1")
    request = StandbyRequest(mesh=MESH, epoch=3, set_id=2, region="us-west", node="n1", nonce="n", ttl_ms=1)
    for _ in range(2):
        assert life.ask(asked(3)) == []
        assert life.ask(asked(1)) == [], "not even again"
        assert life.ask(asked(3, epoch=4)) == []
        poll = Poll(mesh=MESH, epoch=3, set_id=2, poll_id=1)
        assert step(life.state, NOW, Received(REGISTRY, poll)) == []
        assert voter.standby_refusal(life.state, node, request, NOW) == "sealed"
        life.crash()


@pytest.mark.parametrize("vote_first", [True, False])
def test_a_signature_on_its_way_is_in_the_word_or_is_never_given(vote_first: bool) -> None:
    life = Life()
    (vote,) = step(life.state, NOW, Received(REGISTRY, asked(7)))
    (sealing,) = step(life.state, NOW, offered())
    order = (vote, sealing) if vote_first else (sealing, vote)
    replies = [effect for one in order for effect in step(life.state, NOW, Persisted(one.token))]
    said = word(next(e for e in replies if isinstance(e, EpochReply)))
    assert [h.seq for h in said.heads] == ([7] if vote_first else [])
    assert len(replies) == 1, "no countersignature leaves once it is taken up"


def test_nothing_is_sealed_before_the_record() -> None:
    life = Life()
    assert seal(life, offered(), disk="lost") is None
    life.crash()
    assert len(life.ask(asked(1))) == 1
    failed = seal(life, offered(), disk="bad")
    assert failed is not None
    assert (failed.refused, failed.stored) == ("storage", None)
    assert len(life.ask(asked(2))) == 1
    assert word(seal(life, offered())).set_id == 2


def test_a_seal_is_for_good_and_said_again_to_whoever_asks() -> None:
    """The change stopped half-way: its officers ask again, with the same word or another."""
    life = Life()
    word(seal(life, offered()))
    life.crash()
    assert word(seal(life, offered())).set_id == 2
    assert life.ask(asked(1)) == []


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (offered(n_officers=1), "not-signed"),
        (offered(not_after=0), "not-signed"),
        (offered(regions=("eu-west", "us-east", "ap-south")), "not-signed"),
        (offered(command_id="other"), "not-signed"),
        (offered(mesh="m2"), "foreign-mesh"),
        (offered(2), "other-set"),
        (offered(4), "other-set"),
        (SetOffered("t", offered().offer, None), "not-signed"),
    ],
)
def test_who_may_not_ask_gets_nothing(event: SetOffered, why: str) -> None:
    life = Life()
    reply = seal(life, event)
    assert reply is not None
    assert (reply.stored, reply.refused) == (None, why)
    assert len(life.ask(asked(1))) == 1


@pytest.mark.parametrize("seat", [None, Seat(epoch=3, set_id=2, seated=False)])
def test_who_has_no_seat_seals_none(seat: Seat | None) -> None:
    reply = seal(Life(seat), offered())
    assert reply is not None and reply.refused == "not-a-voter"


def test_the_new_seat_is_taken_with_what_the_log_has_and_the_old_one_is_left() -> None:
    """Also by one that had sealed nothing, and was never asked."""
    for sealed_first in (True, False):
        life = Life()
        if sealed_first:
            seal(life, offered())
        life.feed(MeshApplied(Seat(epoch=3, set_id=3, seated=True)))
        assert life.ask(asked(1)) == []
        assert life.ask(asked(1, set_id=3)) == []
        first = asked(5, "x")
        read = ReadVote(blind=first.blind, epoch=3, seq=5, entry_hash=first.entry_hash, restriction=first.restriction)
        life.feed(Received(REGISTRY, log_page(life, read)))
        assert [h.seq for h in voter_state.stored_heads(life.state)] == [5]
        for _ in range(2):
            assert life.ask(asked(6)) == []
            assert life.ask(asked(5, "other", set_id=3)) == [], "two entries in one place get one signature, ever"
            assert len(life.ask(asked(6, "y", set_id=3))) == 1
            life.crash()


def test_who_has_sealed_its_set_stores_no_epoch() -> None:
    """It can't tell what the next set has committed: a restore on its word could forget that."""
    life = Life()
    seal(life, offered())
    for _ in range(2):
        reply = open_epoch(life, epoch_offered())
        assert reply is not None and reply.refused == "sealed"
        life.crash()


def test_the_seal_survives_on_a_real_disk() -> None:
    life, codec = Life(), Codec(voter.RECORD_TYPES)
    seal(life, offered())
    record = life.disk[voter.SEAL_RECORD]
    assert codec.decode(codec.encode(record), max_bytes=1_000) == record


def test_a_seal_that_was_not_recorded_undoes_nothing_newer() -> None:
    """Its node heard meanwhile that the set was replaced: it answers no poll under it, whatever the disk says."""
    life = Life()
    (persist,) = step(life.state, NOW, offered())
    step(life.state, NOW, MeshApplied(Seat(epoch=3, set_id=3, seated=True)))
    (reply,) = step(life.state, NOW, PersistFailed(persist.token))
    assert reply.refused == "storage"
    assert not voter.answers_poll(life.state, Poll(mesh=MESH, epoch=3, set_id=2, poll_id=1))
    assert life.ask(asked(1)) == []
