"""The Registry takes a rotation of root and officers when all who must sign it did, and offers it once committed."""

from __future__ import annotations

import pytest

from keymesh.control.messages import CountersignRequest
from keymesh.control.rows import RootRow, get
from keymesh.control.view import state_bytes
from keymesh.model.errors import KeymeshError, Refused
from keymesh.model.limits import TASK_MAX_BYTES
from keymesh.registry import spaces
from keymesh.registry.events import Command
from tests.unit.registry.harness import OFFICERS, ROOT, Bench, rotated, with_tenant
from tests.unit.registry.test_restart import restart


def version(bench: Bench) -> int:
    row = get(bench.state.spaces["mesh"].rows, "root", RootRow)
    assert row is not None
    return row.version


def refused(bench: Bench, command: Command) -> str:
    done = bench.submit(command)
    assert done is not None and done.error is not None
    assert isinstance(done.error, KeymeshError)
    return done.error.code


def test_after_a_rotation_the_new_officers_sign_and_the_old_do_not() -> None:
    bench = with_tenant()
    bench.ok(bench.rotation())
    assert version(bench) == 2
    assert refused(bench, bench.scope_command("suspend", "mesh", "s1", by=OFFICERS[:2])) == "below-threshold"
    mixed = (OFFICERS[0], rotated(OFFICERS, 1)[0])
    assert refused(bench, bench.scope_command("suspend", "mesh", "s2", by=mixed)) == "below-threshold"
    bench.ok(bench.scope_command("suspend", "mesh", "s3", by=rotated(OFFICERS, 1)[1:]))
    assert refused(bench, bench.rotation(9, by=(*ROOT, *rotated(ROOT, 9), *rotated(OFFICERS, 9)))) == "below-threshold"
    bench.ok(bench.rotation(2))
    assert version(bench) == 3


def test_what_is_refused_before_it_is_in_the_log() -> None:
    bench = with_tenant()
    first = bench.rotation()
    for missing in range(6):
        by = (*ROOT[:2], *rotated(ROOT, 1)[:2], *rotated(OFFICERS, 1)[:2])
        assert refused(bench, bench.rotation(by=by[:missing] + by[missing + 1 :])) == "below-threshold"
    assert refused(bench, bench.rotation(genesis="ab" * 32)) == "foreign-genesis"
    assert refused(bench, bench.rotation(replaces="ab" * 32)) == "conflict"
    assert version(bench) == 1
    bench.ok(first)
    bench.ok(first)  # repeated by its id: the first outcome
    assert version(bench) == 2


def test_an_expired_rotation_is_none() -> None:
    bench = with_tenant()
    command = bench.rotation()
    bench.advance(2_000)
    command = bench.command(
        "trust.rotate", command.args, namespace="mesh", command_id="late", by=ROOT, not_after=bench.now
    )
    assert refused(bench, command) == "approval-expired"


def test_it_is_offered_to_nobody_before_the_voters_have_it() -> None:
    bench = with_tenant()
    bench.auto_vote = False
    space = bench.state.spaces["mesh"]
    before = space.offered
    bench.ok(bench.rotation())
    assert (space.seq, space.offered, space.shown) == (before + 1, before, before)
    assert any(isinstance(m, CountersignRequest) for _, m in bench.sent)
    bench.auto_vote = True
    bench.advance(2_000)
    assert space.offered == space.seq
    state = spaces.state_at(space, space.seq)
    assert any(s.signed.entry.kind == "trust.rotate" and s.countersignatures for s in state.support)


@pytest.mark.parametrize("n", [1, 3])
def test_a_registry_that_boots_reads_the_rotations_of_its_log(n: int) -> None:
    bench = with_tenant()
    for k in range(1, n + 1):
        bench.ok(bench.rotation(k))
    bench.ok(bench.scope_command("suspend", "mesh", "s1", by=rotated(OFFICERS, n)[:2]))
    restart(bench)
    assert bench.state.booted and not bench.state.halted
    assert version(bench) == n + 1


def test_voters_are_not_changed_while_a_rotation_waits_for_them() -> None:
    """Whoever missed both could not tell who may have committed it."""
    bench = with_tenant()
    bench.auto_vote = False
    bench.ok(bench.rotation())
    change = bench.change_voters(by=rotated(OFFICERS, 1)[:2])
    assert refused(bench, change) == "rotation-uncommitted"
    bench.auto_vote = True
    bench.advance(2_000)
    bench.ok(change)


def test_rotations_end_before_the_state_is_too_large_for_a_task() -> None:
    bench = with_tenant()
    n = 0
    while (done := bench.submit(bench.rotation(n + 1))) is not None and done.error is None:
        n += 1
        assert n < 100
    assert isinstance(done.error if done else None, Refused) and refused(bench, bench.rotation(n + 1)) == "too-large"
    assert n >= 25
    for k, region in enumerate(("us-east", "us-west", "eu-west", "eu-central")):
        bench.ok(bench.scope_command("suspend", f"region:{region}", f"s{k}", by=rotated(OFFICERS, n)[:2]))
    space = bench.state.spaces["mesh"]
    assert state_bytes(spaces.state_at(space, space.seq)) < TASK_MAX_BYTES * 7 // 8
