"""The map tree: the form is the rows', not the history's; proofs and differences hold against a plain dict."""

from __future__ import annotations

import hashlib
import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from keymesh.ledger import maptree
from keymesh.ledger.maptree import EMPTY_ROOT, Change, Halves, MapTree, Prefix, Proof, Row
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, Refused
from keymesh.model.ids import Digest

keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
values = st.binary(max_size=6)
maps = st.dictionaries(keys, values, max_size=24)
# few names, so that sequences of changes meet
names = st.sampled_from([f"tenant-{i}" for i in range(12)])


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def lp(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def by_the_book(rows: dict[str, bytes]) -> str:
    """The docstring's definition, word for word and bit by bit."""

    def over(these: list[tuple[str, str, bytes]], depth: int) -> bytes:
        if not these:
            return sha(b"\2")
        if len(these) == 1:
            _, key, value = these[0]
            return sha(b"\0" + lp(key.encode()) + lp(value))
        left = [row for row in these if row[0][depth] == "0"]
        right = [row for row in these if row[0][depth] == "1"]
        return sha(b"\1" + over(left, depth + 1) + over(right, depth + 1))

    paths = [("".join(f"{byte:08b}" for byte in sha(k.encode())), k, v) for k, v in rows.items()]
    return over(paths, 0).hex()


def test_fixed_roots() -> None:
    """Constants, so that the form cannot change unnoticed."""
    assert EMPTY_ROOT == "dbc1b4c900ffe48d575b5da5c638040125f65db0fe3e24494b76ea986457d986"
    assert maptree.root_of({}) == EMPTY_ROOT
    assert maptree.root_of({"a": b"1"}) == sha(b"\0\0\0\0\1a\0\0\0\0011").hex()
    ten = {f"key/{i}": bytes((i,)) * i for i in range(10)}
    assert maptree.root_of(ten) == by_the_book(ten)
    assert maptree.root_of(ten) == "5b8ba29b229076ca67f3bba7d71b725c1864cf3ce586e6f1d683af57b0c526c6"


@given(maps)
def test_all_ways_give_the_definitions_root(rows: dict[str, bytes]) -> None:
    root = by_the_book(rows)
    assert maptree.root_of(rows) == root
    assert MapTree.of(rows).root == root
    one_by_one = MapTree()
    for key, value in rows.items():
        one_by_one = one_by_one.set(key, value)
    assert one_by_one.root == root
    assert dict(one_by_one.items()) == rows
    assert len(one_by_one) == len(rows)


@given(maps, st.randoms(use_true_random=False))
def test_order_does_not_matter(rows: dict[str, bytes], random: object) -> None:
    shuffled = list(rows.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    tree = MapTree.of({"gone": b"x", **rows})
    for key, value in shuffled:
        tree = tree.set(key, b"old").set(key, value)
    assert tree.delete("gone").root == maptree.root_of({k: v for k, v in rows.items() if k != "gone"})


@given(maps, maps)
def test_equal_roots_are_equal_maps(one: dict[str, bytes], two: dict[str, bytes]) -> None:
    assert (maptree.root_of(one) == maptree.root_of(two)) == (one == two)


def test_key_and_value_cannot_trade_bytes() -> None:
    roots = {maptree.root_of({k: v}) for k, v in (("ab", b"c"), ("a", b"bc"), ("abc", b""), ("", b"abc"))}
    assert len(roots) == 4


class Changes(RuleBasedStateMachine):
    """Any sequence of sets and deletes against a dict, old trees staying as they were."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, bytes] = {}
        self.tree = MapTree()
        self.before: tuple[MapTree, dict[str, bytes]] = (self.tree, {})

    @rule(key=names, value=values)
    def put(self, key: str, value: bytes) -> None:
        self.before = (self.tree, dict(self.rows))
        self.tree = self.tree.set(key, value)
        self.rows[key] = value

    @rule(key=names)
    def drop(self, key: str) -> None:
        self.before = (self.tree, dict(self.rows))
        self.tree = self.tree.delete(key)
        self.rows.pop(key, None)

    @invariant()
    def same_as_the_dict(self) -> None:
        assert self.tree.root == maptree.root_of(self.rows)
        assert len(self.tree) == len(self.rows)
        assert all(self.tree.get(f"tenant-{i}") == self.rows.get(f"tenant-{i}") for i in range(12))
        assert self.before[0].root == maptree.root_of(self.before[1])


TestChanges = Changes.TestCase


def test_a_no_op_keeps_the_tree() -> None:
    tree = MapTree.of({"a": b"1", "b": b"2"})
    assert tree.set("a", b"1") is tree
    assert tree.delete("c") is tree
    assert "a" in tree
    assert "c" not in tree
    assert tree == MapTree.of({"b": b"2", "a": b"1"})
    assert len({tree, MapTree.of({"b": b"2", "a": b"1"})}) == 1


@given(maps, keys)
def test_proofs_of_inclusion_and_absence(rows: dict[str, bytes], other: str) -> None:
    tree = MapTree.of(rows)
    for key in (*rows, other):
        proof = strict_json.decode(strict_json.dumps(tree.prove(key)), Proof, max_bytes=100_000)
        assert maptree.verify_proof(tree.root, key, proof) == rows.get(key)


@given(st.dictionaries(keys, values, min_size=1, max_size=12), keys, st.data())
def test_a_proof_proves_nothing_else(rows: dict[str, bytes], other: str, data: st.DataObject) -> None:
    """No proof, changed in one place or used for another key, gives an answer that is not true of the rows."""
    tree = MapTree.of(rows)
    proof = tree.prove(data.draw(st.sampled_from(sorted(rows))))
    assert proof.row is not None
    lies = [
        msgspec.structs.replace(proof, row=None),
        msgspec.structs.replace(proof, row=Row(proof.row.key, proof.row.value + b"x")),
        msgspec.structs.replace(proof, row=Row(other, proof.row.value)),
        msgspec.structs.replace(proof, siblings=proof.siblings[:-1]),
        msgspec.structs.replace(proof, siblings=(*proof.siblings, EMPTY_ROOT)),
        msgspec.structs.replace(proof, siblings=proof.siblings[::-1]),
        proof,
    ]
    for lie, key in itertools.product(lies, (other, *rows)):
        try:
            claimed = maptree.verify_proof(tree.root, key, lie)
        except Integrity:
            continue
        assert claimed == rows.get(key)


def test_malformed_proofs() -> None:
    tree = MapTree.of({"a": b"1", "b": b"2"})
    proof = tree.prove("a")
    for siblings in ((EMPTY_ROOT,) * 257, (Digest("zz" * 32),), (Digest("00"),), (Digest("AB" * 32),)):
        with pytest.raises((Integrity, Refused)):
            maptree.verify_proof(tree.root, "a", msgspec.structs.replace(proof, siblings=siblings))
    with pytest.raises(Integrity):
        maptree.verify_proof(EMPTY_ROOT, "a", proof)


@given(maps, maps)
def test_diff_is_the_difference(old: dict[str, bytes], new: dict[str, bytes]) -> None:
    changes = list(maptree.diff(MapTree.of(old), MapTree.of(new)))
    expected = {k: Change(k, old.get(k), new.get(k)) for k in old.keys() | new.keys() if old.get(k) != new.get(k)}
    assert {change.key: change for change in changes} == expected
    assert len(changes) == len(expected)
    paths = [maptree.path_of(change.key) for change in changes]
    assert paths == sorted(paths)


def test_diff_enters_only_what_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {f"tenant-{i}": b"v" for i in range(4_096)}
    old = MapTree.of(rows)
    new = old.set("tenant-7", b"w")
    visits = 0
    halves = maptree._halves

    def counted(node: maptree._Node, depth: int) -> tuple[maptree._Node, maptree._Node]:
        nonlocal visits
        visits += 1
        return halves(node, depth)

    monkeypatch.setattr(maptree, "_halves", counted)
    assert list(maptree.diff(old, new)) == [Change("tenant-7", b"v", b"w")]
    assert visits < 100


def fetch(mine: MapTree, theirs: MapTree) -> tuple[dict[str, bytes], int]:
    """A peer's rows by walking ``at``, checking each answer, entering only what differs."""
    found, asked = dict[str, bytes](), 0
    queue: list[tuple[Prefix, Digest]] = [(Prefix(""), theirs.root)]
    while queue:
        prefix, expected = queue.pop()
        if maptree.hash_of(mine.at(prefix)) == expected:
            found |= {k: v for k, v in mine.items() if format(maptree.path_of(k), "0256b").startswith(prefix)}
            continue
        asked += 1
        answer = theirs.at(prefix)
        assert maptree.hash_of(answer) == expected
        match answer:
            case Halves():
                queue += [(Prefix(prefix + "0"), answer.left), (Prefix(prefix + "1"), answer.right)]
            case Row():
                found[answer.key] = answer.value
            case None:
                continue
    return found, asked


@given(maps, maps)
def test_a_peer_can_walk_the_difference(mine: dict[str, bytes], theirs: dict[str, bytes]) -> None:
    found, asked = fetch(MapTree.of(mine), MapTree.of(theirs))
    assert found == theirs
    assert (asked == 0) == (mine == theirs)


def test_at_checks_its_prefix() -> None:
    tree = MapTree.of({"a": b"1"})
    for bad in ("2", "0x", "0" * 257, "01 "):
        with pytest.raises(Refused):
            tree.at(Prefix(bad))
    path = format(maptree.path_of("a"), "0256b")
    assert tree.at(Prefix(path)) == Row("a", b"1")
    assert tree.at(Prefix(path[:-1] + str(1 - int(path[-1])))) is None
    assert "1 rows" in repr(tree)
