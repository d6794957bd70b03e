"""Standby at the voter: who gets a grant and when, what it shows, a voter without a memory, and proofs of a lie."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.unit.control.world import MESH, digest

from keymesh.control import standby, voter, voter_state
from keymesh.control.messages import (
    Countersignature,
    CountersignatureMessage,
    CountersignRequest,
    ReadVote,
    StandbyGrant,
    StandbyGrantMessage,
    StandbyRefused,
    StandbyRequest,
    StoredHead,
    VoterLog,
    VoterRead,
)
from keymesh.control.rows import VotersRow
from keymesh.control.voter import MeshApplied, RegistryHeard, Seat, VoterConfig, new_voter, step
from keymesh.model.ids import Digest
from keymesh.model.limits import COMMIT_MAX_ENTRIES
from keymesh.model.machine import (
    REGISTRY,
    Address,
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

SUITE = FakeSuite("node-us-east")
ASKER = node_address("eu-west", "n1")
INTERVAL_MS = 10_000
SEAT = Seat(epoch=1, set_id=1, seated=True, nodes=(ASKER,), interval_ms=INTERVAL_MS)
BLIND = "ab" * 32
VOTERS = VotersRow(set_id=1, regions=("eu-central", "us-east", "us-west"))


class Life:
    """A voter, its disk and its clock."""

    def __init__(self, seat: Seat | None = SEAT, *, now: int = 1_000_000) -> None:
        self.disk: dict[str, Any] = {} if seat is None else {voter.SEAT_RECORD: seat}
        self.now = Instant(now)
        self.disk_works = True
        self.lives = 0
        self.crash()

    def crash(self) -> None:
        self.lives += 1
        self.state = new_voter(VoterConfig(mesh=MESH, region="us-east", suite=SUITE))
        self.feed(Booted(dict(self.disk), BootMark("b", 0), bytes([self.lives]) * 32))

    def feed(self, event: object) -> list[Send]:
        sent: list[Send] = []
        for effect in step(self.state, self.now, event):
            match effect:
                case Persist() if self.disk_works:
                    self.disk |= dict(effect.puts)
                    for name in effect.deletes:
                        del self.disk[name]
                    sent += self.feed(Persisted(effect.token))
                case Persist():
                    return sent + self.feed(PersistFailed(effect.token))
                case Send():
                    sent.append(effect)
                case Note() | Wake():
                    pass
        return sent

    def advance(self, ms: int) -> None:
        self.now = Instant(self.now + ms)

    def silence(self) -> None:
        """The Registry misses three heartbeats."""
        self.advance(3 * INTERVAL_MS + 1)

    def countersign(self, seq: int, *, blind: str = BLIND, restriction: bool = True) -> Countersignature:
        request = CountersignRequest(
            mesh=MESH,
            epoch=1,
            set_id=1,
            blind=blind,
            seq=seq,
            entry_hash=place_hash(f"e{seq}"),
            restriction=restriction,
        )
        (sent,) = self.feed(Received(REGISTRY, request))
        assert isinstance(sent.message, CountersignatureMessage)
        return SUITE.unseal(sent.message.countersignature, Countersignature, SUITE.keys)

    def ask(self, sender: Address = ASKER, **changed: Any) -> StandbyGrant | str:
        """The grant, or why not."""
        (sent,) = self.feed(Received(sender, request(**changed)))
        assert sent.to == sender
        if isinstance(sent.message, StandbyRefused):
            return sent.message.reason
        assert isinstance(sent.message, StandbyGrantMessage)
        return SUITE.unseal(sent.message.grant, StandbyGrant, SUITE.keys)


def place_hash(text: str) -> Digest:
    return Digest(digest(text))


def request(**changed: Any) -> StandbyRequest:
    fields = {
        "mesh": MESH, "epoch": 1, "set_id": 1, "region": "eu-west", "node": "n1", "nonce": "n1", "ttl_ms": 60_000,
    }  # fmt: skip
    return StandbyRequest(**{**fields, **changed})


def head(seq: int, blind: str = BLIND) -> StoredHead:
    return StoredHead(blind=blind, epoch=1, seq=seq, entry_hash=place_hash(f"e{seq}"))


# --- who gets one, and when ------------------------------------------------------------------------------------------


def test_a_grant_answers_every_field_and_shows_what_is_stored() -> None:
    life = Life()
    life.countersign(2)
    life.countersign(4)
    life.countersign(5, restriction=False)
    life.countersign(7, blind="cd" * 32)
    life.silence()
    grant = life.ask()
    assert isinstance(grant, StandbyGrant)
    assert grant == standby.grant_for(
        request(), "us-east", serial=4, heads=(head(4), StoredHead(blind="cd" * 32, **_place(7)))
    )
    assert standby.answers(grant, request())


def _place(seq: int) -> dict[str, Any]:
    return {"epoch": 1, "seq": seq, "entry_hash": place_hash(f"e{seq}")}


def test_only_after_the_registry_missed_three_heartbeats_of_its_own() -> None:
    life = Life()
    life.advance(3 * INTERVAL_MS)
    assert life.ask() == "registry-answers"
    life.feed(RegistryHeard(Instant(life.now - 1)))
    life.advance(3 * INTERVAL_MS - 1)
    assert life.ask() == "registry-answers", "three intervals to the millisecond are not missed yet"
    life.advance(1)
    assert isinstance(life.ask(), StandbyGrant)
    life.crash()
    assert life.ask(nonce="n2") == "registry-answers", "a new life has missed nothing yet"


def test_an_older_word_of_the_registry_takes_nothing_back() -> None:
    life = Life()
    life.silence()
    life.feed(RegistryHeard(life.now))
    life.feed(RegistryHeard(Instant(0)))
    assert life.ask() == "registry-answers"


def test_a_voter_that_does_not_know_the_interval_grants_nothing() -> None:
    life = Life(msgspec.structs.replace(SEAT, interval_ms=0))
    life.advance(10**9)
    assert life.ask() == "registry-answers"


def test_one_answer_for_a_nonce() -> None:
    life = Life()
    life.silence()
    assert isinstance(life.ask(), StandbyGrant)
    assert life.ask() == "answered"
    assert isinstance(life.ask(nonce="n2"), StandbyGrant)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"mesh": "other"}, "foreign"),
        ({"node": "n2"}, "foreign"),
        ({"region": "us-west"}, "foreign"),
        ({"set_id": 2}, "other-set"),
        ({"set_id": 0}, "other-set"),
        ({"epoch": 2}, "other-epoch"),
        ({"epoch": 0}, "other-epoch"),
    ],
)
def test_what_gets_no_grant(changed: dict[str, Any], reason: str) -> None:
    life = Life()
    life.silence()
    assert life.ask(**changed) == reason


def test_nobody_who_is_not_enrolled_and_nobody_from_without_a_seat() -> None:
    life = Life()
    life.silence()
    assert life.ask(node_address("us-west", "n1"), region="us-west") == "not-enrolled"
    away = Life(msgspec.structs.replace(SEAT, seated=False))
    away.silence()
    assert away.ask() == "not-a-voter"


def test_the_newest_restriction_is_never_what_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voter_state, "VOTES_PER_BLIND", 4)
    life = Life()
    life.countersign(1)
    for seq in range(2, 20):
        life.countersign(seq, restriction=False)
    life.silence()
    grant = life.ask()
    assert isinstance(grant, StandbyGrant)
    assert grant.heads == (head(1),)


# --- without a memory ------------------------------------------------------------------------------------------------


def vote(seq: int, *, blind: str = BLIND, restriction: bool = True) -> ReadVote:
    return ReadVote(blind=blind, epoch=1, seq=seq, entry_hash=place_hash(f"e{seq}"), restriction=restriction)


def page(asked: VoterRead, *votes: ReadVote, index: int = 9, next_after: str = "", **changed: Any) -> Received:
    log = VoterLog(
        mesh=MESH, nonce=asked.nonce, after=asked.after, index=index, votes=tuple(votes), next_after=next_after
    )
    return Received(REGISTRY, msgspec.structs.replace(log, **changed))


def forgetful() -> tuple[Life, VoterRead]:
    life = Life(None)
    (sent,) = life.feed(MeshApplied(SEAT))
    assert sent.to == REGISTRY
    assert isinstance(sent.message, VoterRead)
    return life, sent.message


def test_without_a_memory_it_neither_countersigns_nor_grants_until_it_has_read_the_log() -> None:
    life, asked = forgetful()
    request_ = CountersignRequest(
        mesh=MESH, epoch=1, set_id=1, blind=BLIND, seq=8, entry_hash=place_hash("e8"), restriction=True
    )
    assert life.feed(Received(REGISTRY, request_)) == []
    life.silence()
    assert life.ask() == "no-memory"
    assert life.disk == {}
    life.feed(page(asked, vote(3), vote(4, restriction=False)))
    grant = life.ask()
    assert isinstance(grant, StandbyGrant)
    assert grant.heads == (head(3),)
    assert life.countersign(8).serial > grant.serial


def test_pages_are_read_to_the_last_and_a_crash_in_between_begins_anew() -> None:
    life, asked = forgetful()
    (sent,) = life.feed(page(asked, vote(3), next_after="x"))
    assert sent.message.after == "x"
    assert sent.message.nonce == asked.nonce
    life.crash()
    (sent,) = life.feed(MeshApplied(SEAT))
    assert (sent.message.after, sent.message.nonce == asked.nonce) == ("", False)
    assert life.feed(page(asked, vote(3))) == [], "an answer to an earlier life"
    assert life.state.seat is None
    life.feed(page(sent.message, vote(3)))
    assert life.state.seat == SEAT
    life.crash()
    assert life.feed(MeshApplied(SEAT)) == [], "what it has read it remembers"
    assert life.state.votes[BLIND][3].entry_hash == place_hash("e3")


def test_pages_out_of_turn_of_another_mesh_or_from_a_stranger_are_nothing() -> None:
    life, asked = forgetful()
    life.feed(page(asked, vote(3), nonce="other"))
    life.feed(page(asked, vote(3), mesh="other"))
    life.feed(page(asked, vote(3), after="zz"))
    life.feed(Received(ASKER, page(asked, vote(3)).message))
    assert life.state.seat is None
    assert [s.message for s in life.feed(Tick())] == [asked], "it asks again"


def test_a_disk_that_fails_leaves_it_without_a_seat_and_it_asks_again() -> None:
    life, asked = forgetful()
    life.disk_works = False
    life.feed(page(asked, vote(3)))
    assert life.state.seat is None
    life.disk_works = True
    (again,) = life.feed(Tick())
    life.feed(page(again.message, vote(3)))
    assert life.state.seat == SEAT


def test_a_region_that_gets_a_seat_reads_first() -> None:
    life = Life(msgspec.structs.replace(SEAT, seated=False))
    new = msgspec.structs.replace(SEAT, set_id=2)
    (sent,) = life.feed(MeshApplied(new))
    assert isinstance(sent.message, VoterRead)
    assert life.state.seat is not None
    assert not life.state.seat.seated


def test_serials_after_a_lost_disk_are_above_all_that_an_earlier_life_can_have_used() -> None:
    life = Life()
    last = [life.countersign(seq) for seq in range(1, COMMIT_MAX_ENTRIES + 1)][-1]  # all of one commit
    assert last.serial == COMMIT_MAX_ENTRIES
    fresh, asked = forgetful()
    fresh.feed(page(asked, *[vote(seq) for seq in range(1, COMMIT_MAX_ENTRIES + 1)], index=1))
    assert fresh.countersign(COMMIT_MAX_ENTRIES + 1).serial > last.serial


# --- a majority ------------------------------------------------------------------------------------------------------


def test_a_majority_of_the_set_each_counted_once_and_never_of_fewer_than_three() -> None:
    assert standby.is_enough(["us-east", "us-west"], VOTERS)
    assert not standby.is_enough(["us-east", "us-east"], VOTERS)
    assert not standby.is_enough(["us-east", "eu-west"], VOTERS), "no voter"
    assert not standby.is_enough([], VOTERS)
    for few in (("us-east",), ("us-east", "us-west")):
        assert not standby.is_enough(few, VotersRow(set_id=1, regions=few))
    assert not standby.is_enough(["us-east"] * 3, VotersRow(set_id=1, regions=("us-east",) * 3))


def test_the_highest_of_each_namespace_counts() -> None:
    grants = [
        standby.grant_for(request(), "us-east", serial=1, heads=(head(3), head(9, "cd" * 32))),
        standby.grant_for(request(), "us-west", serial=1, heads=(head(5),)),
    ]
    found = standby.highest(grants)
    assert {blind: leaf.seq for blind, leaf in found.items()} == {BLIND: 5, "cd" * 32: 9}
    assert found[BLIND].entry_hash == place_hash("e5")


@pytest.mark.parametrize("field", ["mesh", "epoch", "set_id", "region", "node", "nonce", "ttl_ms"])
def test_a_grant_for_anything_else_is_no_answer(field: str) -> None:
    grant = standby.grant_for(request(), "us-east", serial=1, heads=())
    other = 7 if isinstance(getattr(grant, field), int) else "other"
    assert standby.answers(grant, request())
    assert not standby.answers(msgspec.structs.replace(grant, **{field: other}), request())


# --- lies ------------------------------------------------------------------------------------------------------------


def test_a_grant_without_what_its_signer_countersigned_is_proof() -> None:
    life = Life()
    life.silence()
    before = life.ask()
    word = life.countersign(4)
    after = life.ask(nonce="n2")
    assert isinstance(before, StandbyGrant)
    assert isinstance(after, StandbyGrant)
    assert not standby.omits(before, word), "given before it was asked to countersign"
    assert not standby.omits(after, word)
    assert standby.omits(msgspec.structs.replace(after, heads=()), word)
    assert standby.omits(msgspec.structs.replace(after, heads=(head(3),)), word)
    for changed in ({"voter": "us-west"}, {"mesh": "other"}, {"epoch": 2}):
        assert not standby.omits(msgspec.structs.replace(after, heads=(), **changed), word)


def test_a_grant_that_shows_less_than_an_earlier_one_is_proof() -> None:
    earlier = standby.grant_for(request(), "us-east", serial=5, heads=(head(4),))
    assert standby.contradicts(standby.grant_for(request(), "us-east", serial=5, heads=()), earlier) == BLIND
    assert standby.contradicts(standby.grant_for(request(), "us-east", serial=6, heads=(head(3),)), earlier) == BLIND
    assert standby.contradicts(standby.grant_for(request(), "us-east", serial=6, heads=(head(9),)), earlier) is None
    assert standby.contradicts(standby.grant_for(request(), "us-west", serial=6, heads=()), earlier) is None
    late = standby.grant_for(request(), "us-east", serial=2, heads=())
    assert standby.contradicts(late, earlier) is None, "the older of two that overtook each other"
