"""The heads tree: its root says what it holds, however it came to hold it."""

from __future__ import annotations

import hashlib
import hmac
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.control.world import digest

from keymesh.control.blind import blind
from keymesh.control.entry import Leaf
from keymesh.control.heads import HeadsTree, heads_root, leaf_bytes, parse_leaf
from keymesh.model.errors import Refused

NAMES = st.sampled_from([f"t{i}" for i in range(12)] + ["mesh"])
LEAVES = st.builds(
    lambda seq, text: Leaf(epoch=1, seq=seq, entry_hash=digest(text), state=digest(text * 2)),  # type: ignore[arg-type]
    st.integers(1, 5),
    st.sampled_from(["a", "b"]),
)


@given(st.lists(st.tuples(NAMES, st.none() | LEAVES)), st.integers())
def test_the_root_depends_on_what_is_held_only(steps: list[tuple[str, Leaf | None]], seed: int) -> None:
    tree, held = HeadsTree(), dict[str, Leaf]()
    for name, leaf in steps:
        if leaf is None:
            tree.drop(name)
            held.pop(name, None)
        else:
            tree.put(name, leaf)
            held[name] = leaf
        assert tree.root == heads_root(held)
    shuffled = list(held.items())
    random.Random(seed).shuffle(shuffled)
    assert HeadsTree(dict(shuffled)).root == tree.root
    assert (list(tree), len(tree), tree.leaves) == (sorted(held), len(held), held)


@given(NAMES, LEAVES, LEAVES)
def test_every_field_of_a_leaf_is_in_the_root(name: str, one: Leaf, other: Leaf) -> None:
    assert (heads_root({name: one}) == heads_root({name: other})) is (one == other)
    assert parse_leaf(leaf_bytes(one)) == one


def test_a_leaf_has_no_other_fields() -> None:
    with pytest.raises(Refused):
        parse_leaf(b'{"entry_hash":"a","epoch":1,"seq":1,"state":"b","x":1}')


def test_a_blind_is_an_hmac_under_the_salt() -> None:
    assert blind("ab" * 32, "acme") == hmac.new(b"\xab" * 32, b"acme", hashlib.sha256).hexdigest()
    assert blind("ab" * 32, "acme") != blind("ac" * 32, "acme") != blind("ac" * 32, "acmf")
