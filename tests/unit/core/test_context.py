"""What is remembered about restrictions is what is in force, whatever comes and goes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keymesh.control.messages import Recorded
from keymesh.core import context
from keymesh.core.events import LocalRestrict
from keymesh.model.errors import Refused
from tests.unit.core.bench import TENANT, Bench

SCOPES = ["mesh", "region:us-east", f"tenant:{TENANT}", f"service:{TENANT}/pay", f"key:{TENANT}/pay@1"]
USES = [(TENANT, None, None), (TENANT, "pay", None), (TENANT, "pay", 1), (TENANT, "mail", 1), ("globex", "pay", 1)]
STEPS = st.lists(
    st.tuples(st.sampled_from(["suspend", "resume", "local", "recorded", "reboot"]), st.sampled_from(SCOPES)),
    max_size=10,
)


def expected(bench: Bench, use: tuple[str, str | None, int | None]) -> set[str]:
    """By the signed rows and the local suspensions, without the machine's own rules."""
    tenant, service, version = use
    texts = {
        "mesh",
        "region:us-east",
        f"tenant:{tenant}",
        f"service:{tenant}/{service}",
        f"key:{tenant}/{service}@{version}",
    }
    held = {*bench.state.mesh.restrictions, *bench.holding().restrictions}
    local = {suspension.record.scope for suspension in bench.state.locals.values()}
    kinds = {text.partition(":")[0] for text in texts & held}
    return kinds | ({"local"} if texts & local else set())


@given(steps=STEPS)
def test_remembered_is_in_force(steps: list[tuple[str, str]]) -> None:
    bench = Bench().up()
    for n, (what, scope) in enumerate(steps):
        try:
            match what:
                case "local":
                    bench.feed(LocalRestrict(f"cmd-{n}", scope, "suspend", "ann", "corr"))
                case "recorded":
                    for namespace, name in list(bench.state.locals):
                        held = bench.mesh.states[namespace].head.entry
                        where = Recorded(command_id=name, namespace=namespace, epoch=held.epoch, seq=held.seq)
                        bench.receive(where)
                case "reboot":
                    bench.reboot()
                case _:
                    bench.give(bench.mesh.restrict(what, scope))
        except Refused:
            continue  # nothing to resume
        for use in USES:
            assert context.covered_kinds(bench.state, *use) == expected(bench, use)


@pytest.mark.parametrize("n", [context.COVERED_MAX * 2])
def test_what_is_remembered_is_bounded(n: int) -> None:
    bench = Bench().up()
    for version in range(n):
        context.covered_kinds(bench.state, TENANT, "pay", version)
    assert len(bench.state.covered) <= context.COVERED_MAX
