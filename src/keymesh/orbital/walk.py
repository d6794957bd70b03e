"""The walk: what differs between two heads trees, found by asking for hashes from a signed root downwards.

Costs, of d differences among n leaves, about d * log2(n) pairs of hashes, whatever else the trees hold.  The walker
starts from a tree that it has; equal subtrees are never asked for.  What it is told counts only where its hash is the
one that it was led to expect, so a liar can end a walk and not bend it; each round descends by a bit, and a path has
256.  Pure.  Source: DESIGN section 4.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from keymesh.control.heads import leaf_bytes, parse_leaf
from keymesh.ledger.maptree import (
    EMPTY_ROOT,
    PATH_BITS,
    Halves,
    MapTree,
    Prefix,
    Row,
    check_prefix,
    hash_of,
    is_below,
)
from keymesh.model.errors import Integrity, Refused
from keymesh.model.ids import Digest, check_hex
from keymesh.model.limits import WALK_PREFIXES_MAX
from keymesh.orbital.messages import ManifestTell


@dataclass(slots=True)
class Walk:
    """``known``: the other's tree as far as it is known; once nothing is open, its root is ``root``.

    ``open``: prefixes that differ, with the hash that the other has there; ``asked``: those that are out.
    """

    known: MapTree
    root: Digest
    open: dict[Prefix, Digest] = field(default_factory=dict)
    asked: tuple[Prefix, ...] = ()
    rounds: int = 0

    @property
    def is_done(self) -> bool:
        return not self.open


def begin(known: MapTree, root: Digest) -> Walk:
    walk = Walk(known, root)
    _descend(walk, Prefix(""), root)
    return walk


def question(walk: Walk) -> tuple[Prefix, ...]:
    """What to ask for next; the same again until it is answered.  Deepest first, so that little is open at a time."""
    if not walk.asked:
        walk.asked = tuple(sorted(walk.open, key=lambda prefix: (-len(prefix), prefix))[:WALK_PREFIXES_MAX])
    return walk.asked


def tell(tree: MapTree, prefixes: Iterable[str]) -> ManifestTell:
    """The answer to a question about ``tree``.  Raises Refused: too many prefixes, or one that is none."""
    asked = tuple(prefixes)
    if len(asked) > WALK_PREFIXES_MAX:
        raise Refused.bad_field("prefixes", f"at most {WALK_PREFIXES_MAX}")
    halves, rows = {}, {}
    for prefix in asked:
        match tree.at(check_prefix(prefix)):
            case Halves() as found:
                halves[prefix] = (found.left, found.right)
            case Row() as row:
                rows[prefix] = (row.key, parse_leaf(row.value))
    return ManifestTell(root=tree.root, halves=halves, rows=rows)


def take(walk: Walk, told: ManifestTell) -> None:
    """One round.  What does not answer the question that is out changes nothing: it is late, or for an earlier walk.

    1. Each answer has the hash expected there.  2. A row lies below its prefix.  3. What is equal is left; what the
    other lacks is dropped; the rest stays open.

    Raises Integrity where 1 or 2 fails; the walk is then worth nothing.
    """
    if told.root != walk.root or sorted((*told.halves, *told.rows)) != sorted(walk.asked):
        return
    asked, walk.asked = walk.asked, ()
    walk.rounds += 1
    for prefix in asked:
        _take_one(walk, prefix, told)


def _take_one(walk: Walk, prefix: Prefix, told: ManifestTell) -> None:
    expected = walk.open.pop(prefix)
    if prefix in told.rows:
        key, leaf = told.rows[prefix]
        row = Row(key, leaf_bytes(leaf))
        _check(hash_of(row) == expected and is_below(key, prefix))
        _drop_below(walk, prefix, kept=key)
        walk.known = walk.known.set(key, row.value)
        return
    _check(prefix in told.halves and len(prefix) < PATH_BITS)
    left, right = (Digest(check_hex("halves", half, hex_bytes=32)) for half in told.halves[prefix])
    _check(hash_of(Halves(left, right)) == expected)
    _descend(walk, Prefix(prefix + "0"), left)
    _descend(walk, Prefix(prefix + "1"), right)


def _check(holds: bool) -> None:
    if not holds:
        raise Integrity("bad-manifest", "an answer that does not lead to the signed root")


def _descend(walk: Walk, prefix: Prefix, theirs: Digest) -> None:
    if walk.known.hash_below(prefix).hex() == theirs:
        return
    if theirs == EMPTY_ROOT:
        _drop_below(walk, prefix)
    else:
        walk.open[prefix] = theirs


def _drop_below(walk: Walk, prefix: Prefix, *, kept: str | None = None) -> None:
    for key in [key for key, _ in walk.known.below(prefix) if key != kept]:
        walk.known = walk.known.delete(key)
