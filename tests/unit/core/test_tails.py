"""A node and a new epoch: what it had beyond the base stays in force, is durable with it, and is handed in."""

from __future__ import annotations

import pytest

from keymesh.control.messages import ForwardRestriction, Recorded
from keymesh.control.state import NamespaceState, Supported, support_after
from keymesh.core import tails
from keymesh.core.records import local_name, old_tail_name, state_name, tail_name
from keymesh.model.ids import ZERO_DIGEST, Digest
from keymesh.model.machine import Persist
from keymesh.model.states import Mode, Operation
from keymesh.orbital.messages import Tail, TailTaken
from keymesh.registry.regrow import Regrown
from keymesh.registry.restore import Handed
from tests.unit.control.world import Mesh, digest
from tests.unit.core.bench import SERVICE, TENANT, Bench, furnished
from tests.unit.registry.test_restore import backed_up, offer_of, restored, word

SCOPE = f"service:{TENANT}/{SERVICE}"


def state_of(log: Regrown, namespace: str) -> NamespaceState:
    """As the restored Registry would send it."""
    chain = log.chain(namespace)
    support: tuple[Supported, ...] = ()
    for signed in chain.entries:
        support = support_after(support, signed)
    assert chain.head is not None
    return NamespaceState(chain.head, dict(chain.rows), support)


def lost(*, version: bool = False, handed: bool = False) -> tuple[Bench, Regrown, str]:
    """A node that applied a suspension (and a version) that the base lacks, unless ``handed``; the command's id."""
    mesh = furnished()
    n_backup = len(mesh.history[TENANT])
    if version:
        mesh.do(TENANT, "key.want", {"key": f"l3/{SERVICE}", "version": 2})
        mesh.key_version(TENANT, f"l3/{SERVICE}", 2, digest("acme/l2/1")[:32])
    command_id = mesh.restrict("suspend", SCOPE).head.entry.command_id
    bench = Bench(mesh).up()
    log = backed_up(mesh, n_backup)
    restored(mesh, log, *([Handed("us-west", (mesh.states[TENANT],))] if handed else []))
    return bench, log, command_id


def move(bench: Bench, log: Regrown) -> None:
    bench.give(state_of(log, "mesh"))
    bench.give(state_of(log, TENANT), mesh=state_of(log, "mesh"))


def refused(bench: Bench) -> bool:
    return not bench.may(Operation.UNWRAP).allowed


def test_a_restriction_of_the_tail_becomes_a_local_suspension_in_the_same_step_as_the_base() -> None:
    bench, log, command_id = lost()
    move(bench, log)
    assert (bench.state.epoch, bench.holding().leaf.epoch) == (2, 2)
    (step,) = [e for e in bench.effects(Persist) if state_name(TENANT) in dict(e.puts)]
    assert local_name(TENANT, command_id) in dict(step.puts)
    assert refused(bench)
    bench.reboot()
    assert refused(bench)
    bench.take()
    assert bench.beat().epoch == 2
    (forwarded,) = bench.sent(ForwardRestriction)
    assert (forwarded.command_id, forwarded.scope, forwarded.action) == (command_id, SCOPE, "suspend")


def test_what_the_base_has_is_no_suspension_of_the_nodes_own() -> None:
    bench, log, _ = lost(handed=True)
    move(bench, log)
    assert bench.state.locals == {}
    assert refused(bench)


def test_it_ends_only_with_its_entry_and_a_later_resume() -> None:
    bench, log, command_id = lost()
    move(bench, log)
    bench.receive(Recorded(command_id=command_id, namespace=TENANT, epoch=1, seq=3))
    bench.receive(Recorded(command_id=command_id, namespace=TENANT, epoch=2, seq=log.chain(TENANT).seq))
    assert refused(bench), "a false word: the rows do not show it"
    assert len(bench.state.locals) == 1


def test_a_crash_before_the_record_leaves_the_tail_and_its_restriction() -> None:
    bench, log, _ = lost()
    bench.crash_at_persist = True
    move(bench, log)
    bench.crash_at_persist = False
    bench.reboot()
    assert bench.holding().leaf.epoch == 1
    assert refused(bench)
    move(bench, log)
    assert (bench.holding().leaf.epoch, refused(bench)) == (2, True)


def test_a_disk_that_refuses_closes_the_tenant_until_both_are_recorded() -> None:
    bench, log, command_id = lost()
    bench.give(state_of(log, "mesh"))
    bench.disk_works = False
    bench.give(state_of(log, TENANT))
    assert refused(bench)
    assert local_name(TENANT, command_id) not in bench.disk
    bench.disk_works = True
    bench.advance(1_500)
    assert local_name(TENANT, command_id) in bench.disk
    assert bench.holding().leaf.epoch == 2
    assert refused(bench)


def test_a_state_with_lost_versions_is_handed_in_until_it_is_taken() -> None:
    bench, log, _ = lost(version=True)
    held = bench.holding().applied
    assert held is not None
    move(bench, log)
    bench.take()
    for _ in range(2):
        bench.beat()
        assert [tail.state for tail in bench.sent(Tail)] == [held]
        bench.reboot()
        bench.take()
    bench.receive(TailTaken(namespace=TENANT, entry_hash=Digest(ZERO_DIGEST)))
    assert tail_name(TENANT, 1) in bench.disk
    bench.receive(TailTaken(namespace=TENANT, entry_hash=held.head.hash))
    assert tail_name(TENANT, 1) not in bench.disk
    bench.take()
    bench.beat()
    assert bench.sent(Tail) == []


def test_after_a_new_epoch_nothing_of_the_old_registry_counts() -> None:
    bench, log, _ = lost()
    mesh = bench.mesh
    move(bench, log)
    resumed = mesh.restrict("resume", SCOPE)
    for state in (resumed, mesh.plan(TENANT, "tenant.labels", {"labels": {"a": "b"}}), mesh.mesh):
        bench.give(state)
    assert (bench.holding().leaf.epoch, refused(bench)) == (2, True)
    bench.take()
    bench.receive(bench.answer(bench.beat()))
    assert "answer-refused" in bench.notes()


@pytest.mark.parametrize("namespace", ["mesh", TENANT])
def test_no_registry_opens_an_epoch_by_itself(namespace: str) -> None:
    bench, log, _ = lost()
    mesh: Mesh = bench.mesh
    kind, args = ("region.rotate-ivk", {"region": "us-east", "generation": 2})
    if namespace == TENANT:
        kind, args = ("tenant.labels", {"labels": {}})
    bench.give(mesh.plan(namespace, kind, args, epoch=2))
    assert bench.state.epoch == 1
    assert bench.holding().leaf.epoch == 1
    bench.give(state_of(log, TENANT))
    assert bench.holding().leaf.epoch == 1, "a tenant's state alone opens none"
    bench.give(mesh.plan("mesh", "epoch.open", {"epoch": 2}, epoch=2))
    assert bench.state.epoch == 2, "two officers do"


def test_one_officer_opens_nothing() -> None:
    bench, _, _ = lost()
    mesh = bench.mesh
    base = mesh.plan("mesh", "region.rotate-ivk", {"region": "us-east", "generation": 2}, epoch=2)
    few = mesh.plan("mesh", "epoch.open", {"epoch": 2}, epoch=2, signers=mesh.officers[:1])
    for state in (few, base):
        bench.give(state)
    assert bench.state.epoch == 1
    assert bench.mode() is Mode.SYNCED


# --- several epochs --------------------------------------------------------------------------------------------------

KEY_SCOPE = f"key:{TENANT}/{SERVICE}@1"


def log_without(mesh: Mesh, n_backup: int, epoch: int) -> Regrown:
    """The log of ``epoch``, made from the backup alone: no region and no voter had more."""
    log = backed_up(mesh, n_backup)
    offer = offer_of(mesh, epoch, command_id=f"open-{epoch}")
    restored(mesh, log, offer=offer, words=[word(mesh, region, offer) for region in ("us-east", "us-west")])
    return log


def final_then_lost_again() -> tuple[Bench, list[NamespaceState]]:
    """A node that lost a revocation and a version in epoch 2, and a version of epoch 2 in epoch 3, and handed in
    nothing; the two states that it held."""
    mesh = furnished()
    n_backup = len(mesh.history[TENANT])
    mesh.do(TENANT, "key.want", {"key": f"l3/{SERVICE}", "version": 2})
    mesh.key_version(TENANT, f"l3/{SERVICE}", 2, digest("acme/l2/1")[:32])
    mesh.do(TENANT, "revoke", {"scope": KEY_SCOPE, "reason": "", "abandon_children": True})
    bench = Bench(mesh).up()
    states = [applied(bench)]
    log = log_without(mesh, n_backup, 2)
    move(bench, log)
    base = state_of(log, TENANT)
    made = {"key": f"l3/{SERVICE}", "version": 2, "kid": digest("other")[:32], "digest": digest("other blob")}
    want = mesh.plan(TENANT, "key.want", {"key": f"l3/{SERVICE}", "version": 2}, held=base, epoch=2)
    grown = mesh.plan(TENANT, "key.create", {**made, "parent": digest("acme/l2/1")[:32]}, held=want, epoch=2)
    bench.give(grown)
    states.append(applied(bench))
    move(bench, log_without(mesh, n_backup, 3))
    assert [state.head.entry.epoch for state in (*states, applied(bench))] == [1, 2, 3]
    return bench, states


def applied(bench: Bench) -> NamespaceState:
    held = bench.holding().applied
    assert held is not None
    return held


def handed_in(bench: Bench) -> list[NamespaceState]:
    bench.take()
    bench.beat()
    return [tail.state for tail in bench.sent(Tail)]


def test_the_tail_of_a_second_epoch_takes_no_earlier_ones_place() -> None:
    bench, states = final_then_lost_again()
    for _ in range(2):
        assert handed_in(bench) == states
        bench.reboot()
    bench.receive(TailTaken(namespace=TENANT, entry_hash=states[1].head.hash))
    assert handed_in(bench) == states[:1]
    bench.reboot()
    assert handed_in(bench) == states[:1]
    bench.receive(TailTaken(namespace=TENANT, entry_hash=states[0].head.hash))
    bench.reboot()
    assert handed_in(bench) == []
    assert not [name for name in bench.disk if name.startswith("tail/")]


def test_a_tail_under_its_old_name_is_read_and_goes_last() -> None:
    bench, states = final_then_lost_again()
    bench.disk[old_tail_name(TENANT)] = bench.disk.pop(tail_name(TENANT, 1))
    bench.reboot()
    bench.receive(TailTaken(namespace=TENANT, entry_hash=states[1].head.hash))
    bench.reboot()
    assert handed_in(bench) == states[:1]
    bench.receive(TailTaken(namespace=TENANT, entry_hash=states[0].head.hash))
    assert not [name for name in bench.disk if name.startswith("tail/")]


def test_one_tail_too_many_takes_no_earlier_ones_place_and_closes_the_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tails, "TAILS_PER_NAMESPACE_MAX", 1)
    bench, states = final_then_lost_again()
    assert "tail-not-kept" in bench.notes()
    assert handed_in(bench) == states[:1]
    command_id = f"tail-2-{states[1].head.hash[:16]}"
    assert bench.disk[local_name(TENANT, command_id)].scope == f"tenant:{TENANT}"
    bench.reboot()
    assert refused(bench)


def test_a_tail_is_kept_as_it_was_signed_whatever_restricts_beyond_it() -> None:
    bench, log, _ = lost(version=True)
    held = applied(bench)
    bench.give(state_of(log, "mesh"))
    args = {"scope": f"tenant:{TENANT}", "reason": "", "abandon_children": False}
    suspended = bench.mesh.plan(TENANT, "suspend", args, held=state_of(log, TENANT), epoch=2)
    bench.disk_works = False
    bench.give(suspended)
    bench.disk_works = True
    bench.give(suspended)
    assert applied(bench).head.entry.epoch == 2
    assert handed_in(bench) == [held]
