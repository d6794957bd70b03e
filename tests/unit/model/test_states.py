"""The tables of states, written out again: a difference is a decision, not a slip."""

from __future__ import annotations

import itertools

from keymesh.model.states import ALLOWED, TRANSITIONS, KeyState, Lane, Operation, may_become, state_allows

# columns: wrap, unwrap, lease, export, grant, restrict
OPERATIONS = ("wrap", "unwrap", "lease", "export", "grant", "restrict")
ALLOWED_AGAIN = {
    "pre-active": "----gr",
    "active": "wulegr",
    "suspended": "----gr",
    "deactivated": "-ul-gr",
    "compromised": "-----r",
    "destroyed": "------",
    "destroyed-compromised": "------",
}
# rows: from; columns: to, in the order of the rows
TRANSITIONS_AGAIN = {
    "pre-active": ".yyyyy.",
    "active": " ..yyy.. ",
    "suspended": " .y.yyy. ",
    "deactivated": " ....yy. ",
    "compromised": " ......y ",
    "destroyed": " ......y ",
    "destroyed-compromised": " ....... ",
}


def test_the_words() -> None:
    assert [state.value for state in KeyState] == list(ALLOWED_AGAIN) == list(TRANSITIONS_AGAIN)
    assert [operation.value for operation in Operation] == list(OPERATIONS)
    assert [int(lane) for lane in Lane] == [0, 1, 2]
    assert Lane.RESTRICTION is min(Lane)


def test_every_state_and_operation() -> None:
    for state, row in ALLOWED_AGAIN.items():
        for name, cell in zip(OPERATIONS, row, strict=True):
            assert state_allows(KeyState(state), Operation(name)) is (cell != "-"), (state, name)
    assert set(ALLOWED) == set(KeyState)


def test_every_pair_of_states() -> None:
    for old, new in itertools.product(KeyState, KeyState):
        cell = TRANSITIONS_AGAIN[old.value].strip()[list(KeyState).index(new)]
        assert may_become(old, new) is (cell == "y"), (old, new)
    assert set(TRANSITIONS) == set(KeyState)


def test_what_ended_never_comes_back() -> None:
    """From a compromised or destroyed state nothing leads to one that protects or opens data."""
    reached = {KeyState.COMPROMISED, KeyState.DESTROYED}
    while more := {new for old in reached for new in TRANSITIONS[old]} - reached:
        reached |= more
    use = {Operation.WRAP, Operation.UNWRAP, Operation.LEASE, Operation.EXPORT, Operation.GRANT}
    assert not any(state_allows(state, operation) for state in reached for operation in use)
