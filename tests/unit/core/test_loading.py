"""Which keys are in memory: drops before loads, L2 before L3, and a plan that converges from anywhere."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keymesh.control.rows import KeyRow
from keymesh.core import loading
from keymesh.core.events import DropKeys, KeyRef, KeysLoaded, LoadKeys, Sealed, Unsealed
from keymesh.core.loading import key_ref, plan
from keymesh.core.views import TenantView
from keymesh.model.states import KeyState, Mode
from keymesh.model.time import Instant
from tests.unit.control.world import Mesh
from tests.unit.core.bench import L2_KID, L3_KID, TENANT, TTL_MS, Bench, next_version

NONE: set[tuple[str, int]] = set()


def row(kid: str, *, parent: str = "b1", state: KeyState = KeyState.ACTIVE, revision: int = 1) -> KeyRow:
    return KeyRow(kid=kid, revision=revision, state=state.value, digest="d" + kid, parent=parent)


def planned(view: TenantView, loaded: dict[tuple[str, int], KeyRef], restricted: set[tuple[str, int]]) -> Any:
    return plan(TENANT, view, lambda key, version: (key, version) in restricted, loaded)


# --- the plan --------------------------------------------------------------------------------------------------------


def test_l2_first_then_l3_of_loaded_parents() -> None:
    view = TenantView(
        keys={("l2", 1): row("a"), ("l3/pay", 1): row("b", parent="a"), ("l3/x", 1): row("c", parent="z")}
    )
    first = planned(view, {}, NONE)
    assert [ref.kid for ref in first.loads] == ["a"]
    second = planned(view, {("l2", 1): first.loads[0]}, NONE)
    assert [ref.kid for ref in second.loads] == ["b"]


def test_an_l2_that_cannot_be_had_keeps_only_its_own_l3s_away() -> None:
    view = TenantView(
        keys={
            ("l2", 1): row("a"), ("l2", 2): row("z"), ("l3/pay", 1): row("b", parent="a"),
            ("l3/x", 1): row("c", parent="z"),
        }
    )  # fmt: skip
    held = {("l2", 1): key_ref(TENANT, ("l2", 1), view.keys["l2", 1])}
    assert [ref.kid for ref in planned(view, held, NONE).loads] == ["z", "b"]


@pytest.mark.parametrize("state", KeyState)
def test_which_states_belong_in_memory(state: KeyState) -> None:
    view = TenantView(keys={("l2", 1): row("a", state=state)})
    live = state in (KeyState.PRE_ACTIVE, KeyState.ACTIVE, KeyState.DEACTIVATED)
    assert bool(planned(view, {}, NONE).loads) == live
    held = {("l2", 1): key_ref(TENANT, ("l2", 1), view.keys["l2", 1])}
    assert bool(planned(view, held, NONE).drops) != live


def test_an_unknown_state_is_not_loaded() -> None:
    view = TenantView(keys={("l2", 1): KeyRow(kid="a", revision=1, state="odd", digest="d", parent="b")})
    assert planned(view, {}, NONE).loads == ()


def test_another_kid_is_dropped_and_loaded_a_new_revision_is_only_loaded() -> None:
    view = TenantView(keys={("l2", 1): row("a", revision=2)})
    old = key_ref(TENANT, ("l2", 1), row("a"))
    assert planned(view, {("l2", 1): old}, NONE).drops == ()
    assert [ref.revision for ref in planned(view, {("l2", 1): old}, NONE).loads] == [2]
    other = key_ref(TENANT, ("l2", 1), row("x"))
    assert planned(view, {("l2", 1): other}, NONE).drops == ("x",)


NAMES = [("l2", 1), ("l2", 2), ("l3/pay", 1), ("l3/pay", 2)]


@given(
    states=st.tuples(*[st.sampled_from(list(KeyState)) for _ in NAMES]),
    restricted=st.sets(st.sampled_from(NAMES)),
    held=st.sets(st.sampled_from(NAMES)),
    stale=st.booleans(),
    stops=st.lists(st.integers(0, 2), max_size=6),
)
def test_stop_anywhere_plan_afresh_converge(
    states: tuple[KeyState, ...],
    restricted: set[tuple[str, int]],
    held: set[tuple[str, int]],
    stale: bool,
    stops: list[int],
) -> None:
    keys = {
        name: row(f"k{i}", parent="b1" if i < 2 else f"k{i - 2}", state=states[i], revision=2)
        for i, name in enumerate(NAMES)
    }
    view = TenantView(keys=keys)
    loaded = {name: key_ref(TENANT, name, row(keys[name].kid, revision=1 if stale else 2)) for name in held}
    for stop in [*stops, *[9] * 4]:
        todo = planned(view, loaded, restricted)
        for done, kid in enumerate(todo.drops):
            if done < stop:
                loaded = {name: ref for name, ref in loaded.items() if ref.kid != kid}
        for done, ref in enumerate(todo.loads):
            if done < stop - len(todo.drops):
                loaded[ref.key, ref.version] = ref
    end = planned(view, loaded, restricted)
    assert (end.drops, end.loads) == ((), ())
    live = {KeyState.PRE_ACTIVE, KeyState.ACTIVE, KeyState.DEACTIVATED}
    for name, ref in loaded.items():
        assert name not in restricted
        assert KeyState(keys[name].state) in live
        parent = {"k2": ("l2", 1), "k3": ("l2", 2)}.get(ref.kid)
        assert ref.revision == 2 or (parent is not None and parent not in loaded)  # L3s are re-read through their L2


# --- in the machine --------------------------------------------------------------------------------------------------


def test_nothing_is_loaded_without_a_lease_or_a_master_key() -> None:
    bench = Bench()
    bench.boot(unseal=False)
    bench.give_all()
    assert bench.effects(LoadKeys) == []
    bench.renew()
    assert bench.mode() is Mode.SEALED
    assert bench.effects(LoadKeys) == []
    bench.feed(Unsealed(ivk_generation=1))
    assert {ref.kid for e in bench.effects(LoadKeys) for ref in e.keys} == {L2_KID, L3_KID}
    assert bench.mode() is Mode.SYNCED


def test_sealing_wipes_and_unsealing_loads_again() -> None:
    bench = Bench().up()
    bench.feed(Sealed())
    assert DropKeys(None) in bench.out
    assert bench.mode() is Mode.SEALED
    assert not bench.may().allowed
    bench.feed(Unsealed(ivk_generation=1))
    assert bench.memory == {L2_KID, L3_KID}


def test_closed_drops_and_reopened_loads_again() -> None:
    bench = Bench().up()
    bench.advance(TTL_MS)
    assert bench.memory == set()
    bench.renew()
    assert bench.memory == {L2_KID, L3_KID}
    assert bench.may().allowed


def test_a_load_that_comes_back_restricted_is_wiped() -> None:
    bench = Bench()
    bench.loads = False
    bench.give_all()
    bench.renew()
    load = bench.effects(LoadKeys)[0]
    bench.give(bench.mesh.restrict("suspend", f"tenant:{TENANT}"))
    bench.load(load)
    assert bench.memory == set()
    assert bench.holding().loaded == {}


def test_a_load_that_comes_back_after_the_lease_is_wiped() -> None:
    bench = Bench()
    bench.loads = False
    bench.give_all()
    bench.renew()
    load = bench.effects(LoadKeys)[0]
    bench.advance(TTL_MS)
    bench.load(load)
    assert bench.memory == set()
    assert bench.holding().loaded == {}


def test_a_load_of_nobody_is_wiped() -> None:
    bench = Bench().up()
    ref = KeyRef("globex", "l2", 1, 1, "k", "d", "b")
    bench.feed(KeysLoaded("globex", (ref,), (), "ok", bench.now))
    assert bench.effects(DropKeys) == [DropKeys("globex", ("k",))]


def test_failures_are_tried_again_ever_more_rarely() -> None:
    bench = Bench()
    bench.l1 = "unreachable"
    bench.give_all()
    bench.renew()
    for _ in range(120):
        bench.advance(1_000)
        bench.renew()
    tries = len(bench.effects(LoadKeys))
    assert 4 <= tries <= 20
    assert bench.beat().pending
    bench.l1 = "ok"
    for _ in range(31):
        bench.advance(1_000)
        bench.renew()
    assert bench.mode() is Mode.SYNCED


@pytest.mark.parametrize("failures", range(12))
def test_backoff_is_within_1_s_and_30_s(failures: int) -> None:
    assert 1_000 <= loading.backoff_ms(TENANT, "node", failures) <= 30_000


def test_one_load_at_a_time_and_again_when_no_outcome_comes() -> None:
    bench = Bench()
    bench.loads = False
    bench.give_all()
    for _ in range(20):
        bench.renew()
        bench.advance(1_000)
    assert len(bench.effects(LoadKeys)) == 1
    for _ in range(20):
        bench.renew()
        bench.advance(1_000)
    assert len(bench.effects(LoadKeys)) == 2


def test_pending_is_what_is_live_unrestricted_and_not_loaded() -> None:
    mesh = Mesh()
    mesh.furnished(TENANT)
    bench = Bench(mesh)
    bench.loads = False
    bench.give_all()
    bench.renew()
    assert {(p.namespace, p.key, p.version, p.revision) for p in bench.beat().pending} == {
        (TENANT, "l2", 1, 1),
        (TENANT, "l3/pay", 1, 1),
    }
    bench.give(mesh.restrict("suspend", f"service:{TENANT}/pay"))
    assert {p.key for p in bench.beat().pending} == {"l2"}
    bench.give(mesh.restrict("suspend", f"tenant:{TENANT}"))
    assert bench.beat().pending == ()


def test_a_new_version_is_loaded_and_no_longer_pending() -> None:
    bench = Bench().up()
    bench.give(next_version(bench.mesh, "l3/pay", 2, L2_KID))
    assert bench.may(version=2).allowed
    assert bench.beat().pending == ()


def test_a_second_answer_to_one_load_does_no_harm() -> None:
    bench = Bench()
    bench.loads = False
    bench.give_all()
    bench.renew()
    load = bench.effects(LoadKeys)[0]
    bench.load(load)
    bench.take()
    bench.load(load)
    assert bench.effects(DropKeys) == []
    assert ("l2", 1) in bench.holding().loaded
    bench.now = Instant(bench.now + 1)
