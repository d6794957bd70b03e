"""The walk finds exactly what differs, at a cost that follows the difference, and takes nobody's word for it."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from keymesh.control.entry import Leaf
from keymesh.control.heads import HeadsTree, leaf_bytes
from keymesh.ledger.maptree import EMPTY_ROOT, Halves, MapTree, Prefix, hash_of, is_below
from keymesh.model.errors import Integrity, Refused
from keymesh.model.ids import Digest
from keymesh.model.limits import WALK_PREFIXES_MAX
from keymesh.orbital import walk
from keymesh.orbital.messages import ManifestTell
from keymesh.orbital.wire import MESSAGES

NAMES = st.integers(0, 400).map("t-{}".format)
MAPS = st.dictionaries(NAMES, st.integers(1, 5), max_size=60)


def leaf(seq: int) -> Leaf:
    return Leaf(epoch=1, seq=seq, entry_hash=Digest(f"{seq:064x}"), state=Digest(f"{seq + 1:064x}"))


def tree(seqs: dict[str, int]) -> MapTree:
    return MapTree.of({name: leaf_bytes(leaf(seq)) for name, seq in seqs.items()})


def rounds(going: walk.Walk, theirs: MapTree) -> Iterator[int]:
    """The bytes of each answer."""
    while not going.is_done:
        told = walk.tell(theirs, walk.question(going))
        raw = MESSAGES.encode(told)
        walk.take(going, MESSAGES.decode(raw, max_bytes=len(raw)))
        yield len(raw)


@given(MAPS, MAPS)
def test_it_ends_with_the_others_tree(ours: dict[str, int], theirs: dict[str, int]) -> None:
    going = walk.begin(tree(ours), tree(theirs).root)
    list(rounds(going, tree(theirs)))
    assert dict(going.known.items()) == dict(tree(theirs).items())
    assert going.known.root == tree(theirs).root


@given(MAPS, st.lists(st.tuples(NAMES, st.integers(0, 5)), max_size=80))
def test_a_tree_kept_current_is_the_tree_made_anew(first: dict[str, int], changes: list[tuple[str, int]]) -> None:
    kept, plain = HeadsTree({name: leaf(seq) for name, seq in first.items()}), dict(first)
    for name, seq in changes:
        if seq:
            kept.put(name, leaf(seq))
            plain[name] = seq
        else:
            kept.drop(name)
            plain.pop(name, None)
        assert kept.root == tree(plain).root


@given(st.integers(1, 20), st.integers(0, 2**32))
def test_its_cost_follows_the_difference(differences: int, seed: int) -> None:
    """Per difference at most a path of pairs of hashes and a row; the trees hold two thousand."""
    theirs = {f"t-{n}": 1 for n in range(2_000)}
    ours = dict(theirs)
    for name in random.Random(seed).sample(sorted(theirs), differences):
        ours[name] = 2
    going = walk.begin(tree(ours), tree(theirs).root)
    assert sum(rounds(going, tree(theirs))) < 200 + differences * (450 + 40 * 200)
    assert going.rounds <= 40


def test_equal_trees_ask_nothing() -> None:
    going = walk.begin(tree({"a": 1}), tree({"a": 1}).root)
    assert going.is_done
    assert walk.question(going) == ()


def test_an_empty_other_is_known_without_asking() -> None:
    going = walk.begin(tree({"a": 1, "b": 2}), EMPTY_ROOT)
    assert going.is_done
    assert len(going.known) == 0


def test_an_answer_for_another_root_or_unasked_changes_nothing() -> None:
    going = walk.begin(tree({"a": 1}), tree({"a": 2, "b": 1}).root)
    walk.take(going, walk.tell(tree({"a": 2, "b": 1}), [""]))  # nothing was asked yet
    walk.question(going)
    walk.take(going, walk.tell(tree({"c": 1}), [""]))
    assert not going.is_done
    assert going.rounds == 0


def test_an_answer_to_another_question_changes_nothing() -> None:
    theirs = tree({"a": 2, "b": 1})
    going = walk.begin(MapTree(), theirs.root)
    told = walk.tell(theirs, walk.question(going))
    both = told.halves[""]
    for other in (
        replace(told, halves={}),
        replace(told, rows={"0": ("a", leaf(2))}),
        replace(told, halves={"0": both}),
        replace(told, rows={"": ("a", leaf(2))}),
    ):
        walk.take(going, other)
        assert going.rounds == 0
    walk.take(going, told)
    assert going.rounds == 1


@pytest.mark.parametrize("lie", ["hash", "row", "no-hex", "other-row"])
def test_a_liar_ends_the_walk(lie: str) -> None:
    theirs = tree({"a": 2, "b": 1})
    going = walk.begin(MapTree(), theirs.root)
    told = walk.tell(theirs, walk.question(going))
    left, right = told.halves[""]
    match lie:
        case "hash":
            told = replace(told, halves={"": (right, left)})
        case "row":
            told = replace(told, halves={}, rows={"": ("a", leaf(2))})
        case "no-hex":
            told = replace(told, halves={"": (Digest("no"), right)})
        case "other-row":  # a row of the right hash that does not lie where it is shown
            only = tree({"a": 2})
            prefix = "1" if is_below("a", Prefix("0")) else "0"
            going = walk.Walk(MapTree(), only.root, {Prefix(prefix): only.root}, (Prefix(prefix),))
            told = ManifestTell(root=only.root, halves={}, rows={prefix: ("a", leaf(2))})
    with pytest.raises((Integrity, Refused)):
        walk.take(going, told)


def test_no_walk_goes_below_a_paths_end() -> None:
    """Whoever finds hashes for it could lead nobody further than 256 bits."""
    prefix = Prefix("0" * 256)
    halves = Halves(tree({"a": 1}).root, tree({"b": 1}).root)
    root = hash_of(halves)
    going = walk.Walk(MapTree(), root, {prefix: root}, (prefix,))
    with pytest.raises(Integrity):
        walk.take(going, ManifestTell(root=root, halves={prefix: (halves.left, halves.right)}, rows={}))


def test_questions_are_limited() -> None:
    with pytest.raises(Refused):
        walk.tell(MapTree(), [""] * (WALK_PREFIXES_MAX + 1))
    with pytest.raises(Refused):
        walk.tell(MapTree(), ["2"])
    with pytest.raises(Refused):
        walk.tell(MapTree(), ["0" * 257])
