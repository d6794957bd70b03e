"""The manifest: what is really stored, drift shown until it is force-synced."""

from __future__ import annotations

from keymesh.control.heads import heads_root
from keymesh.core.events import LoadKeys, SnapshotTaken, TakeSnapshot
from keymesh.model.ids import ZERO_DIGEST
from keymesh.model.machine import Persist
from keymesh.model.states import Mode
from tests.unit.control.world import digest
from tests.unit.core.bench import TENANT, Bench


def taken(bench: Bench, **changed: str) -> None:
    """The shell's answer: everything as applied, but for ``changed``."""
    states = {name: str(leaf.state) for name, leaf in bench.leaves().items()}
    bench.feed(SnapshotTaken({**states, **changed}))


def asked(bench: Bench) -> Bench:
    bench.advance(10_000)
    assert bench.effects(TakeSnapshot)
    bench.take()
    return bench


def test_snapshots_are_asked_for_by_themselves() -> None:
    bench = asked(Bench().up())
    taken(bench)
    bench.advance(10_000)
    assert len(bench.effects(TakeSnapshot)) == 1
    assert bench.beat().manifest_root == heads_root(bench.leaves())


def test_drift_stands_in_the_manifest_and_leaves_come_along() -> None:
    bench = asked(Bench().up())
    bench.renew()
    taken(bench, **{TENANT: digest("rot")})
    heartbeat = bench.beat()
    assert heartbeat.leaves is not None
    assert heartbeat.leaves[TENANT].state == digest("rot")
    assert heartbeat.leaves[TENANT].entry_hash == bench.leaves()[TENANT].entry_hash
    assert heartbeat.manifest_root == heads_root(heartbeat.leaves) != heads_root(bench.leaves())
    assert "drift" in bench.notes()


def test_drift_does_not_hold_up_leases_force_sync_heals_it() -> None:
    bench = asked(Bench().up())
    bench.renew()
    taken(bench, **{TENANT: digest("rot")})
    bench.renew()
    assert bench.mode() is Mode.SYNCED
    bench.take()
    bench.give(bench.mesh.states[TENANT])  # an ordinary duplicate heals nothing
    assert bench.acks()[-1].outcome == "stale"
    assert bench.effects(Persist) == []
    assert bench.beat().manifest_root != heads_root(bench.leaves())
    bench.give(bench.mesh.states[TENANT], force=True)
    assert bench.acks()[-1].outcome == "applied"
    assert bench.beat().manifest_root == heads_root(bench.leaves())


def test_a_force_sync_loads_anew() -> None:
    bench = asked(Bench().up())
    bench.renew()
    taken(bench, **{TENANT: digest("rot")})
    bench.take()
    bench.give(bench.mesh.states[TENANT], force=True)
    assert bench.effects(LoadKeys)
    assert bench.may().allowed


def test_drift_that_is_gone_by_itself() -> None:
    bench = asked(Bench().up())
    taken(bench, **{TENANT: digest("rot")})
    asked(bench)
    taken(bench)
    assert bench.beat().manifest_root == heads_root(bench.leaves())


def test_what_the_store_does_not_have_is_drift() -> None:
    bench = asked(Bench().up())
    bench.feed(SnapshotTaken({"mesh": bench.leaves()["mesh"].state}))
    assert bench.heartbeat_leaf(TENANT).state == ZERO_DIGEST


def test_a_namespace_applied_since_is_left_to_the_next_snapshot() -> None:
    bench = asked(Bench().up())
    before = bench.leaves()[TENANT].state
    newer = bench.mesh.service(name="mail")
    bench.give(newer)
    taken(bench, **{TENANT: before})
    assert bench.heartbeat_leaf(TENANT) == newer.leaf


def test_a_snapshot_that_nobody_asked_for_is_ignored() -> None:
    bench = Bench().up()
    bench.feed(SnapshotTaken({}))
    assert bench.beat().manifest_root == heads_root(bench.leaves())
