"""A voter of a big mesh: what it can't tell in one message it refuses first; no step of it raises, nothing is recorded
that could never be told."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.control.test_epoch import OFFICERS
from tests.unit.control.test_epoch import offered as epoch_offered
from tests.unit.control.test_voter import asked
from tests.unit.control.test_voter_seal import offered as set_offered
from tests.unit.control.world import MESH, digest, real_key

from keymesh.control.messages import EpochStored, SetSealed, StandbyGrant, StandbyGrantMessage, StandbyRequest
from keymesh.control.voter import PROMISE_RECORD, SEAL_RECORD, SEAT_RECORD, new_voter, step
from keymesh.control.voter_state import EpochReply, Promise, Seal, Seat, Vote, VoterConfig, vote_name
from keymesh.model.ids import Digest
from keymesh.model.machine import REGISTRY, Booted, BootMark, Persist, Persisted, Received, Send, node_address
from keymesh.model.time import Instant

ASKER = node_address("us-west", "n1")
BOOTED, LATER = Instant(0), Instant(10**6)
SEAT = Seat(epoch=3, set_id=2, seated=True, nodes=(ASKER,), interval_ms=10_000)
FEW, MANY = 700, 10_000
"""Heads of a mesh whose words go into messages, also three to one request; and of one whose words do not."""


class Suite:
    """The real key of a node; officers' words as ``tests`` make them."""

    def __init__(self) -> None:
        self.key = real_key("node-us-east")

    def seal(self, message: Any) -> Any:
        return self.key.seal(message)

    def __getattr__(self, name: str) -> Any:
        return getattr(OFFICERS[0], name)


class Big:
    """A voter that has stored restrictions of ``n`` namespaces, and its disk."""

    def __init__(self, n: int, **records: Any) -> None:
        self.suite = Suite()
        votes = [
            Vote(
                blind=digest(f"b{i}"),
                epoch=3,
                seq=10**9 + i,
                entry_hash=Digest(digest(f"e{i}")),
                restriction=True,
                serial=i + 1,
            )
            for i in range(n)
        ]
        self.disk = {SEAT_RECORD: SEAT, **{vote_name(v.blind, v.seq): v for v in votes}, **records}
        self.state = new_voter(VoterConfig(mesh=MESH, region="us-east", suite=self.suite, node="n1"))
        self.run(Booted(dict(self.disk), BootMark("b", 0), b"\0" * 32), BOOTED)

    def run(self, event: object, now: Instant = LATER) -> list[Any]:
        """All effects, each record durable at once."""
        found = []
        for effect in step(self.state, now, event):
            found.append(effect)
            if isinstance(effect, Persist):
                self.disk |= dict(effect.puts)
                found += self.run(Persisted(effect.token), now)
        return found

    def stand_by(self, **changed: Any) -> Any:
        said: dict[str, Any] = {"mesh": MESH, "epoch": 3, "set_id": 2, "nonce": "a" * 32, "ttl_ms": 60_000}
        (sent,) = self.run(Received(ASKER, StandbyRequest(**said | {"region": "us-west", "node": "n1"} | changed)))
        assert isinstance(sent, Send)
        return sent.message

    def offer(self, event: object) -> EpochReply:
        (reply,) = [e for e in self.run(event) if isinstance(e, EpochReply)]
        return reply

    def opened(self, sealed: Any, shape: Any) -> Any:
        return self.suite.key.unseal(sealed, shape, {self.suite.key.key_id: self.suite.key.public_hex})


def test_few_heads_are_all_told() -> None:
    big = Big(FEW)
    granted = big.stand_by()
    assert isinstance(granted, StandbyGrantMessage)
    assert len(big.opened(granted.grant, StandbyGrant).heads) == FEW
    assert len(big.opened(big.offer(epoch_offered()).stored, EpochStored).heads) == FEW
    assert len(big.opened(Big(FEW).offer(set_offered()).stored, SetSealed).heads) == FEW


def test_many_heads_are_refused_and_no_step_raises() -> None:
    big = Big(MANY)
    assert big.stand_by().reason == "too-many-heads"
    before = dict(big.disk)
    for event in (epoch_offered(), set_offered()):
        reply = big.offer(event)
        assert (reply.stored, reply.refused) == (None, "too-many-heads")
    assert big.disk == before, "nothing is promised or sealed that can't be told"
    again = asked(1, blind=digest("another"))
    assert [type(e) for e in big.run(Received(REGISTRY, again))] == [Persist, Send], "and it goes on committing"


@pytest.mark.parametrize(
    ("records", "event"),
    [
        ({PROMISE_RECORD: Promise(epoch=4, command_id="open")}, epoch_offered()),
        ({SEAL_RECORD: Seal(set_id=2)}, set_offered()),
    ],
)
def test_what_an_earlier_release_recorded_is_refused_too(records: dict[str, Any], event: object) -> None:
    reply = Big(MANY, **records).offer(event)
    assert (reply.stored, reply.refused) == (None, "too-many-heads")


def test_the_limit_is_one_of_bytes_and_of_the_very_message() -> None:
    """Between what fits and what does not there is no number of heads at which sealing raises."""
    told = [n for n in range(2_000, 2_400, 50) if isinstance(Big(n).stand_by(), StandbyGrantMessage)]
    assert told == list(range(2_000, told[-1] + 1, 50))
    assert 2_000 <= told[-1] < 2_350
    assert Big(1).stand_by(nonce="n" * 10**6).reason == "too-many-heads", "whoever made it long"


def test_what_is_on_its_way_counts() -> None:
    """A vote that is not yet durable when the epoch is offered, and is when the promise is."""
    big = Big(2_000)
    assert isinstance(big.stand_by(nonce="b"), StandbyGrantMessage)
    votes = [
        effect
        for i in range(400)
        for effect in step(big.state, LATER, Received(REGISTRY, asked(1, blind=digest(f"late{i}"))))
    ]
    (reply,) = step(big.state, LATER, epoch_offered())
    assert isinstance(reply, EpochReply) and reply.refused == "too-many-heads"
    for vote in votes:
        step(big.state, LATER, Persisted(vote.token))
    assert big.stand_by().reason == "too-many-heads"
