"""``may``: the mode table written out again, and doubt never turning a no into a yes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from keymesh.core.may import NO_KEY, Grantor, MayContext, is_fresh, may
from keymesh.model.states import KeyState, Mode, Operation
from keymesh.model.time import NEVER, Instant

NOW = Instant(1_000_000)
LIVE = Instant(NOW + 1)
DEAD = NOW  # a deadline's own instant is expired

GOOD = MayContext(
    sealed=False,
    closed=False,
    restricted_mesh=False,
    restricted_region=False,
    restricted_tenant=False,
    restricted_service=False,
    restricted_key=False,
    restricted_local=False,
    lease_until=LIVE,
    grantor=Grantor.REGISTRY,
    mesh_lease_until=LIVE,
    l1_until=LIVE,
    answered_sent_at=Instant(NOW - 30),
    interval_ms=10,
    key_state=KeyState.ACTIVE,
)

MODES: dict[Mode, MayContext] = {
    Mode.SYNCED: GOOD,
    Mode.AUTONOMOUS: replace(GOOD, answered_sent_at=Instant(NOW - 31)),
    Mode.STANDBY: replace(GOOD, grantor=Grantor.VOTERS),
    Mode.CLOSED: replace(GOOD, lease_until=DEAD),
    Mode.SEALED: replace(GOOD, sealed=True),
}

# mode -> wrap, unwrap, lease, export, grant, restrict
MATRIX = {
    Mode.SYNCED: "yyyyyy",
    Mode.AUTONOMOUS: "yyyyny",
    Mode.STANDBY: "yyyyny",
    Mode.CLOSED: "nnnnny",
    Mode.SEALED: "nnnnny",
}
COLUMNS = (
    Operation.WRAP,
    Operation.UNWRAP,
    Operation.LEASE,
    Operation.EXPORT,
    Operation.GRANT,
    Operation.RESTRICT,
)

# key state -> wrap, unwrap, lease, export, grant
STATES = {
    KeyState.PRE_ACTIVE: "nnnny",
    KeyState.ACTIVE: "yyyyy",
    KeyState.SUSPENDED: "nnnny",
    KeyState.DEACTIVATED: "nyyny",
    KeyState.COMPROMISED: "nnnnn",
    KeyState.DESTROYED: "nnnnn",
    KeyState.DESTROYED_COMPROMISED: "nnnnn",
}


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("column", range(len(COLUMNS)))
def test_mode_table(mode: Mode, column: int) -> None:
    verdict = may(MODES[mode], COLUMNS[column], NOW)
    assert verdict.mode is mode
    assert verdict.allowed == (MATRIX[mode][column] == "y")


@pytest.mark.parametrize("state", KeyState)
@pytest.mark.parametrize("column", range(5))
def test_key_states(state: KeyState, column: int) -> None:
    verdict = may(replace(GOOD, key_state=state), COLUMNS[column], NOW)
    assert verdict.allowed == (STATES[state][column] == "y")


@pytest.mark.parametrize(
    ("changed", "mode", "reason"),
    [
        ({"closed": True}, Mode.CLOSED, "closed"),
        ({"lease_until": DEAD}, Mode.CLOSED, "lease"),
        ({"mesh_lease_until": DEAD}, Mode.CLOSED, "mesh-lease"),
        ({"l1_until": DEAD}, Mode.CLOSED, "l1-lease"),
        ({"grantor": None}, Mode.CLOSED, "grantor"),
        ({"restricted_mesh": True}, Mode.SYNCED, "restricted-mesh"),
        ({"restricted_region": True}, Mode.SYNCED, "restricted-region"),
        ({"restricted_tenant": True}, Mode.SYNCED, "restricted-tenant"),
        ({"restricted_service": True}, Mode.SYNCED, "restricted-service"),
        ({"restricted_key": True}, Mode.SYNCED, "restricted-key"),
        ({"restricted_local": True}, Mode.SYNCED, "restricted-local"),
        ({"key_state": None}, Mode.SYNCED, "key-state"),
    ],
)
def test_reasons(changed: dict[str, Any], mode: Mode, reason: str) -> None:
    verdict = may(replace(GOOD, **changed), Operation.UNWRAP, NOW)
    assert (verdict.allowed, verdict.mode, verdict.reason) == (False, mode, reason)


def test_no_key_is_not_doubt() -> None:
    assert may(replace(GOOD, key_state=NO_KEY), Operation.GRANT, NOW).allowed


def test_fresh_is_three_intervals_from_the_sending() -> None:
    assert is_fresh(Instant(NOW - 30), 10, NOW)
    assert not is_fresh(Instant(NOW - 31), 10, NOW)
    assert not is_fresh(Instant(NOW + 1), 10, NOW)  # an answer to a heartbeat of the future
    assert not is_fresh(None, 10, NOW)
    assert not is_fresh(NOW, None, NOW)


@pytest.mark.parametrize("op", [Operation.UNWRAP, Operation.GRANT])
def test_a_verdict_holds_strictly_before_its_end(op: Operation) -> None:
    ctx = replace(GOOD, lease_until=Instant(NOW + 50), l1_until=Instant(NOW + 40), mesh_lease_until=NEVER)
    ctx = replace(ctx, answered_sent_at=NOW)
    until = may(ctx, op, NOW).until
    assert may(ctx, op, Instant(until - 1)).allowed
    assert not may(ctx, op, until).allowed


BOOLS = st.sampled_from([True, False, None])
TIMES = st.sampled_from([None, DEAD, LIVE, Instant(NOW - 31), Instant(NOW - 30), NEVER])
CONTEXTS = st.builds(
    MayContext,
    sealed=BOOLS,
    closed=BOOLS,
    restricted_mesh=BOOLS,
    restricted_region=BOOLS,
    restricted_tenant=BOOLS,
    restricted_service=BOOLS,
    restricted_key=BOOLS,
    restricted_local=BOOLS,
    lease_until=TIMES,
    grantor=st.sampled_from([None, *Grantor]),
    mesh_lease_until=TIMES,
    l1_until=TIMES,
    answered_sent_at=TIMES,
    interval_ms=st.sampled_from([None, 10]),
    key_state=st.sampled_from([None, NO_KEY, *KeyState]),
)
NAMES = MayContext.__struct_fields__
# Nearly good contexts, so that the property is met with yes as well as with no.
NEARLY = st.builds(
    lambda noisy, names: replace(GOOD, **{name: getattr(noisy, name) for name in names}),
    CONTEXTS,
    st.lists(st.sampled_from(NAMES), max_size=2),
)


@given(ctx=st.one_of(CONTEXTS, NEARLY), op=st.sampled_from(Operation), name=st.sampled_from(NAMES))
def test_doubt_never_turns_no_into_yes(ctx: MayContext, op: Operation, name: str) -> None:
    """I7, for every input and operation."""
    before, after = may(ctx, op, NOW), may(replace(ctx, **{name: None}), op, NOW)
    assert before.allowed or not after.allowed
    if op is not Operation.RESTRICT and name not in ("answered_sent_at", "interval_ms", "grantor"):
        assert not after.allowed  # each of these must be known


@given(ctx=NEARLY, op=st.sampled_from(Operation), name=st.sampled_from([n for n in NAMES if n.startswith("restr")]))
def test_a_restriction_never_turns_no_into_yes(ctx: MayContext, op: Operation, name: str) -> None:
    worse: dict[str, Any] = {name: True}
    assert may(ctx, op, NOW).allowed or not may(replace(ctx, **worse), op, NOW).allowed
