"""Why a tenant is in its mode, what ends it and when: always what ``may`` says, in every mode, under every cause."""

from __future__ import annotations

import pytest

from keymesh.control.messages import StandbyRefused
from keymesh.core.context import tenant_mode
from keymesh.core.events import Sealed
from keymesh.core.explain import Explanation, explain
from keymesh.model.machine import node_address
from keymesh.model.states import Mode
from tests.unit.control.world import Mesh
from tests.unit.core.bench import TENANT, TTL_MS, Bench
from tests.unit.core.test_standby import INTERVAL_MS, asking, grant, in_silence, salt_of, stand_by, stored


def told(bench: Bench) -> Explanation:
    found = explain(bench.state, bench.now, TENANT)
    mode, reason = tenant_mode(bench.state, bench.now, TENANT)
    assert (found.mode, found.reason) == (mode.value, reason) or mode is Mode.CLOSED
    return found


@pytest.mark.parametrize("mode", ["synced", "autonomous", "standby"])
def test_when_it_says_that_a_mode_ends_it_does(mode: str) -> None:
    bench = Bench().up()
    if mode == "autonomous":
        bench.advance(3 * INTERVAL_MS + 1)
    if mode == "standby":
        bench.advance(TTL_MS)
        stand_by(bench)
    found = told(bench)
    assert found.mode == mode
    assert found.ends_in_ms is not None
    bench.advance(found.ends_in_ms - 1)
    assert told(bench).mode == mode
    bench.advance(1)
    assert told(bench).mode == found.then


def test_in_standby_it_says_who_grants_and_what_ends_it() -> None:
    bench = in_silence()
    stand_by(bench)
    found = told(bench)
    assert "majority of the voters" in found.why
    assert "answer of the Registry" in found.ends


def test_closed_for_want_of_a_majority_it_says_what_each_voter_said() -> None:
    bench = in_silence()
    asked = asking(bench)
    assert "none answers" in told(bench).why
    bench.feed(grant(bench, asked, "us-west"))
    refused = StandbyRefused(nonce=asked.nonce, voter="eu-central", reason="registry-answers")
    bench.receive(refused, node_address("eu-central", "n1"))
    found = told(bench)
    assert "us-west grants" in found.why
    assert "eu-central refuses (registry-answers)" in found.why
    assert (found.then, found.ends_in_ms) == (None, None)


def test_closed_behind_a_stored_restriction_it_says_so() -> None:
    bench = in_silence()
    suspended = bench.mesh.restrict("suspend", f"service:{TENANT}/pay")
    stand_by(bench, stored(suspended, salt_of(bench)))
    assert "other regions are asked for it" in told(bench).why


def test_where_there_can_be_no_standby_only_the_registry_ends_it() -> None:
    mesh = Mesh(voters=("us-east",))
    mesh.furnished(TENANT)
    found = told(in_silence(Bench(mesh)))
    assert "fewer than three voters" in found.why
    assert found.ends == "an answer of the Registry"


def test_other_reasons_have_their_own_words() -> None:
    bench = Bench().up()
    bench.feed(Sealed())
    assert "MasterKey" in told(bench).why
    bench = Bench().up()
    bench.holding().closed["fork"] = (1, 1)
    assert told(bench).reason == "fork"
    assert "fork" in told(bench).why
    bench = Bench().up()
    bench.holding().l1.until = None
    assert "root key" in told(bench).why
    bench = Bench()
    bench.give_all()
    assert "awaits something" in told(bench).why
