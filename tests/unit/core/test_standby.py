"""Standby at the node: when it asks, what counts as a majority, what it must have applied first, and the way back."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from keymesh.control import standby
from keymesh.control.blind import blind
from keymesh.control.messages import (
    StandbyGrant,
    StandbyGrantMessage,
    StandbyRefused,
    StandbyRequest,
    StandbyUsed,
    StateRequest,
    StoredHead,
)
from keymesh.control.standby import lie_name
from keymesh.control.state import NamespaceState
from keymesh.core.may import Grantor
from keymesh.core.standby import HAND_INS
from keymesh.model.ids import Digest, KeyId
from keymesh.model.machine import Address, ClockWentBack, Received, Send, node_address
from keymesh.model.states import Mode, Operation
from keymesh.model.time import Instant
from keymesh.orbital.messages import Task
from tests.unit.control.world import Mesh
from tests.unit.core.bench import TENANT, TTL_MS, Bench, furnished

INTERVAL_MS = 1_000
OTHERS = ("eu-central", "us-west")


def in_silence(bench: Bench | None = None) -> Bench:
    """A node whose Registry lease is over, and that hears nobody."""
    made = (bench or Bench()).up()
    made.advance(TTL_MS)
    assert made.mode() is Mode.CLOSED
    return made


def asking(bench: Bench) -> StandbyRequest:
    """Its newest request, made now."""
    bench.take()
    bench.beat()
    return bench.sent(StandbyRequest)[-1]


def stored(state: NamespaceState, salt: str) -> StoredHead:
    leaf, namespace = state.leaf, state.head.entry.namespace
    return StoredHead(blind=blind(salt, namespace), epoch=leaf.epoch, seq=leaf.seq, entry_hash=leaf.entry_hash)


def salt_of(bench: Bench) -> str:
    settings = bench.state.mesh_view.settings
    assert settings is not None
    return settings.salt


def grant(
    bench: Bench, asked: StandbyRequest, voter: str, /, *heads: StoredHead, serial: int = 1, **changed: Any
) -> Received:
    made = standby.grant_for(asked, voter, serial=serial, heads=heads)
    sealed = bench.mesh.nodes[voter].seal(msgspec.structs.replace(made, **changed))
    return Received(node_address(voter, "n1"), StandbyGrantMessage(grant=sealed))


def stand_by(bench: Bench, *heads: StoredHead) -> StandbyRequest:
    asked = asking(bench)
    for region in OTHERS:
        bench.feed(grant(bench, asked, region, *heads))
    return asked


# --- asking ----------------------------------------------------------------------------------------------------------


def test_every_voter_is_asked_once_the_registry_is_silent_and_the_lease_nearly_over() -> None:
    bench = Bench().up()
    bench.advance(4 * INTERVAL_MS)
    assert bench.sent(StandbyRequest) == [], "its lease has long to run"
    bench.advance(TTL_MS - 7 * INTERVAL_MS - 500)
    assert bench.sent(StandbyRequest) == []
    assert bench.mode() is Mode.AUTONOMOUS
    bench.advance(3 * INTERVAL_MS)
    to = [e.to for e in bench.out if isinstance(e, Send) and isinstance(e.message, StandbyRequest)]
    assert set(to) == {node_address(r, "n1") for r in ("eu-central", "us-east", "us-west")}
    nonces = [m.nonce for m in bench.sent(StandbyRequest)]
    assert len(set(nonces)) * 3 == len(nonces) > 3, "a fresh one with each heartbeat"


def test_nobody_is_asked_while_the_registry_answers_and_never_in_a_mesh_without_voters() -> None:
    bench = Bench().up()
    for _ in range(2 * TTL_MS // INTERVAL_MS):
        bench.advance(INTERVAL_MS)
        bench.renew()
    assert bench.sent(StandbyRequest) == []
    mesh = Mesh(voters=("us-east",))
    mesh.furnished(TENANT)
    alone = in_silence(Bench(mesh))
    assert alone.sent(StandbyRequest) == []
    assert alone.mode() is Mode.CLOSED


def test_a_registry_that_answers_without_a_majority_of_its_voters_leaves_the_node_to_them() -> None:
    """The asymmetric case: this node sees it, most voters do not; its answers rest on a poll that gets older."""
    bench = Bench().up()
    for n in range(TTL_MS // INTERVAL_MS):
        bench.advance(INTERVAL_MS)
        bench.renew(poll_age_ms=(n + 1) * INTERVAL_MS)
    assert bench.mode() is Mode.CLOSED
    asked = bench.sent(StandbyRequest)[-1]
    for region in OTHERS:
        bench.feed(grant(bench, asked, region))
    assert bench.mode() is Mode.STANDBY
    assert not bench.may(Operation.GRANT).allowed, "it does not speak for the mesh"
    bench.advance(INTERVAL_MS)
    bench.renew()
    assert bench.mode() is Mode.SYNCED


# --- a lease ---------------------------------------------------------------------------------------------------------


def test_a_majority_gives_a_lease_from_the_sending_and_existing_keys_serve() -> None:
    bench = in_silence()
    asked = asking(bench)
    sent_at = bench.now
    bench.advance(500)
    bench.feed(grant(bench, asked, "us-west"))
    assert bench.mode() is Mode.CLOSED
    bench.feed(grant(bench, asked, "us-west"))
    assert bench.mode() is Mode.CLOSED, "one voter twice is one"
    bench.feed(grant(bench, asked, "eu-central"))
    assert bench.mode() is Mode.STANDBY
    lease = bench.holding().lease
    assert lease is not None
    assert (lease.until, lease.grantor) == (sent_at + TTL_MS, Grantor.VOTERS)
    assert bench.may(Operation.UNWRAP).allowed
    assert bench.may(Operation.WRAP).allowed
    assert bench.may(Operation.RESTRICT).allowed
    assert not bench.may(Operation.GRANT).allowed
    bench.advance(TTL_MS - 501)
    assert bench.mode() is Mode.STANDBY
    bench.advance(1)
    assert bench.mode() is Mode.CLOSED, "dead at its deadline; silence alone closes"
    assert bench.memory == set()


def test_it_is_renewed_for_as_long_as_a_majority_grants() -> None:
    bench = in_silence()
    for _ in range(3 * TTL_MS // INTERVAL_MS):
        stand_by(bench)
        assert bench.mode() is Mode.STANDBY
        bench.advance(INTERVAL_MS)


def test_a_tenant_that_denies_standby_closes() -> None:
    bench = Bench().up()
    policy = bench.holding().view.policy
    assert policy is not None
    view = bench.holding().view
    bench.holding().view = type(view)(
        **{**{f: getattr(view, f) for f in view.__slots__}, "policy": msgspec.structs.replace(policy, standby="deny")}
    )
    bench.advance(TTL_MS)
    stand_by(bench)
    assert bench.state.mesh.lease is not None
    assert bench.state.mesh.lease.grantor is Grantor.VOTERS
    assert bench.mode() is Mode.CLOSED


@pytest.mark.parametrize(
    "changed",
    [
        {"mesh": "other"},
        {"epoch": 2},
        {"set_id": 2},
        {"node": "n2"},
        {"region": "us-west"},
        {"nonce": "older"},
        {"ttl_ms": 10 * TTL_MS},
        {"voter": "us-east"},
    ],
)
def test_a_grant_for_anything_else_counts_for_nothing(changed: dict[str, Any]) -> None:
    bench = in_silence()
    asked = asking(bench)
    bench.feed(grant(bench, asked, "us-west"))
    bench.feed(grant(bench, asked, "eu-central", **changed))
    assert bench.mode() is Mode.CLOSED


def test_nor_one_by_a_region_without_a_seat_or_sealed_by_another_or_sent_by_a_stranger() -> None:
    bench = in_silence()
    asked = asking(bench)
    bench.feed(grant(bench, asked, "us-west"))
    bench.feed(grant(bench, asked, "eu-west"))
    whole = grant(bench, asked, "eu-central")
    forged = StandbyGrantMessage(grant=bench.mesh.nodes["us-west"].seal(whole.message.grant.message))
    bench.feed(Received(node_address("eu-central", "n1"), forged))
    bench.feed(Received(Address("node:eu-central/n9"), whole.message))
    bench.feed(Received(Address("registry"), whole.message))
    assert bench.mode() is Mode.CLOSED
    bench.feed(whole)
    assert bench.mode() is Mode.STANDBY


def test_an_older_request_is_void_and_a_late_grant_renews_nothing() -> None:
    bench = in_silence()
    first = asking(bench)
    asking(bench)
    for region in OTHERS:
        bench.feed(grant(bench, first, region))
    assert bench.mode() is Mode.CLOSED


def test_a_clock_that_went_back_drops_it_all() -> None:
    bench = in_silence()
    stand_by(bench)
    bench.feed(ClockWentBack())
    assert bench.mode() is Mode.CLOSED
    assert bench.memory == set()


def test_nothing_of_it_outlives_the_process() -> None:
    bench = in_silence()
    stand_by(bench)
    bench.reboot()
    assert bench.mode() is Mode.CLOSED


def test_with_the_registry_back_it_is_in_step_after_what_it_missed() -> None:
    bench = in_silence()
    stand_by(bench)
    suspended = bench.mesh.restrict("suspend", f"tenant:{TENANT}")
    bench.renew()
    assert bench.mode() is Mode.STANDBY, "no lease of the Registry's before its restrictions"
    bench.give(suspended)
    assert bench.mode() is Mode.SYNCED
    assert not bench.may(Operation.UNWRAP).allowed


# --- what was stored -------------------------------------------------------------------------------------------------


def test_a_restriction_behind_a_head_is_applied_before_anything_is_served() -> None:
    bench = in_silence()
    salt = salt_of(bench)
    suspended = bench.mesh.restrict("suspend", f"service:{TENANT}/pay")
    asked = asking(bench)
    bench.feed(grant(bench, asked, "us-west"))
    bench.feed(grant(bench, asked, "eu-central", stored(suspended, salt)))
    assert bench.mode() is Mode.CLOSED, "what is behind the head is not here"
    (wanted,) = bench.sent(StateRequest)
    assert (wanted.namespace, wanted.seq) == (TENANT, suspended.head.entry.seq)
    to = [e.to for e in bench.out if isinstance(e, Send) and isinstance(e.message, StateRequest)]
    assert to == [node_address("us-west", "n1")], "regions that the tenant allows, and no other"
    bench.receive(bench.task(suspended), node_address("us-west", "n1"))
    assert bench.mode() is Mode.STANDBY
    assert not bench.may(Operation.UNWRAP).allowed, "restricted"


def test_a_head_of_the_mesh_holds_up_every_tenant() -> None:
    bench = in_silence()
    salt = salt_of(bench)
    suspended = bench.mesh.restrict("suspend", "region:eu-west")
    stand_by(bench, stored(suspended, salt))
    assert bench.mode() is Mode.CLOSED
    bench.receive(bench.task(suspended), node_address("eu-central", "n1"))
    assert bench.mode() is Mode.STANDBY


def test_another_entry_in_the_same_place_is_not_what_was_stored() -> None:
    bench = in_silence()
    head = stored(bench.mesh.states[TENANT], salt_of(bench))
    stand_by(bench, head)
    assert bench.mode() is Mode.STANDBY
    other = in_silence()
    stand_by(other, msgspec.structs.replace(head, entry_hash=Digest("f" * 64)))
    assert other.mode() is Mode.CLOSED


def test_of_two_answers_the_highest_counts_and_of_namespaces_of_others_none() -> None:
    bench = in_silence()
    salt = salt_of(bench)
    old = stored(bench.mesh.states[TENANT], salt)
    suspended = bench.mesh.restrict("suspend", f"service:{TENANT}/pay")
    asked = asking(bench)
    stranger = StoredHead(blind="ee" * 32, epoch=1, seq=99, entry_hash=Digest("e" * 64))
    bench.feed(grant(bench, asked, "us-west", old, stranger))
    bench.feed(grant(bench, asked, "eu-central", stored(suspended, salt), stranger))
    assert bench.mode() is Mode.CLOSED
    assert [m.namespace for m in bench.sent(StateRequest)] == [TENANT]


def test_a_task_that_was_not_asked_for_or_is_forced_is_ignored() -> None:
    bench = in_silence()
    suspended = bench.mesh.restrict("suspend", f"service:{TENANT}/pay")
    bench.receive(bench.task(suspended), node_address("us-west", "n1"))
    assert "task-ignored" in bench.notes()
    stand_by(bench, stored(suspended, salt_of(bench)))
    bench.receive(bench.task(suspended, force=True), node_address("us-west", "n1"))
    bench.receive(bench.task(suspended), Address("edge:us-east/acme/pay/e1"))
    assert bench.mode() is Mode.CLOSED


def test_a_region_hands_on_what_it_has_to_those_that_may_hold_it() -> None:
    bench = Bench().up()
    leaf = bench.holding().leaf

    def asks(region: str, namespace: str = TENANT, seq: int = leaf.seq) -> list[Task]:
        bench.take()
        bench.receive(StateRequest(namespace=namespace, epoch=1, seq=seq), node_address(region, "n1"))
        return bench.sent(Task)

    (task,) = asks("us-west")
    assert (task.namespace, task.state.leaf) == (TENANT, leaf)
    assert asks("us-west", seq=leaf.seq + 1) == [], "it has nothing so new"
    assert asks("eu-west") == [], "not a region of the tenant"
    assert asks("nowhere") == []
    assert asks("us-west", namespace="other") == []
    assert len(asks("eu-west", namespace="mesh", seq=1)) == 1
    other = Bench(furnished(), region="us-west")
    other.give(other.mesh.mesh)
    other.state.fetching.add(TENANT)
    other.receive(task, node_address("us-east", "n1"))
    assert other.holding().leaf == leaf


# --- lies ------------------------------------------------------------------------------------------------------------


def test_a_voter_that_shows_less_than_before_is_proved_a_liar_for_good() -> None:
    bench = in_silence()
    head = stored(bench.mesh.states[TENANT], salt_of(bench))
    asked = asking(bench)
    bench.feed(grant(bench, asked, "us-west", head, serial=3))
    asked = asking(bench)
    bench.feed(grant(bench, asked, "us-west", serial=3))
    bench.feed(grant(bench, asked, "eu-central"))
    assert "standby-lie" in bench.notes()
    assert bench.mode() is Mode.CLOSED, "its word counts no more"
    address = node_address("us-west", "n1")
    lie = bench.disk[lie_name(address)]
    key = bench.state.mesh_view.nodes[address].keys
    shown, hidden = (bench.mesh.registry.unseal(s, StandbyGrant, key) for s in (lie.earlier, lie.grant))
    assert standby.contradicts(hidden, shown) == lie.blind
    bench.reboot()
    assert bench.state.liars == {address}
    bench.advance(4 * INTERVAL_MS)
    asked = asking(bench)
    for region in OTHERS:
        bench.feed(grant(bench, asked, region, head, serial=9))
    assert bench.mode() is Mode.CLOSED
    bench.feed(grant(bench, asked, "us-east", head))
    assert bench.mode() is Mode.STANDBY


def test_why_voters_refuse_is_kept_for_people() -> None:
    bench = in_silence()
    asked = asking(bench)
    said = StandbyRefused(nonce=asked.nonce, voter="us-west", reason="registry-answers")
    bench.receive(said, node_address("us-west", "n1"))
    bench.receive(msgspec.structs.replace(said, nonce="older", reason="x"), node_address("eu-central", "n1"))
    assert bench.state.standby_ask is not None
    assert bench.state.standby_ask.refusals == {"us-west": "registry-answers"}
    assert Instant(bench.now) == bench.state.standby_ask.sent_at


def test_with_the_registry_back_it_hands_in_what_voters_granted_and_then_is_done() -> None:
    bench = in_silence()
    stand_by(bench)
    bench.take()
    for _ in range(6):
        bench.advance(INTERVAL_MS // 2)
        bench.renew()
    used = bench.sent(StandbyUsed)
    assert len(used) == HAND_INS
    voters = [bench.mesh.registry.unseal(s, StandbyGrant, keys_of(bench)).voter for s in used[0].grants]
    assert sorted(voters) == sorted(OTHERS)
    untroubled = Bench().up()
    untroubled.renew()
    assert untroubled.sent(StandbyUsed) == []


def keys_of(bench: Bench) -> dict[KeyId, str]:
    return {name: key for node in bench.state.mesh_view.nodes.values() for name, key in node.keys.items()}
