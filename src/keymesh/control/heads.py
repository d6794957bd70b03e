"""The heads tree: one leaf for each namespace that a region may hold; its root is what a signed answer attests.

The same tree, filled with what a node applied, is its manifest (DESIGN sections 3, 4).  It is a map tree from the
namespace to the canonical JSON of its ``Leaf``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Final

from keymesh.control.entry import Leaf
from keymesh.ledger.maptree import MapTree, root_of
from keymesh.model import strict_json
from keymesh.model.ids import Digest

LEAF_MAX_BYTES: Final = 1024


@lru_cache(maxsize=16_384)
def leaf_bytes(leaf: Leaf) -> bytes:
    """The value of a leaf in the tree."""
    return strict_json.dumps(leaf)


def parse_leaf(raw: bytes) -> Leaf:
    """Raises Refused."""
    return strict_json.decode(raw, Leaf, max_bytes=LEAF_MAX_BYTES)


def heads_root(leaves: Mapping[str, Leaf]) -> Digest:
    """The root over ``leaves`` at once, as a receiver of unsigned leaves recomputes it."""
    return root_of({namespace: leaf_bytes(leaf) for namespace, leaf in leaves.items()})


class HeadsTree:
    """Leaves with a root that costs one path to keep current."""

    __slots__ = ("_leaves", "_tree")

    def __init__(self, leaves: Mapping[str, Leaf] | None = None) -> None:
        self._leaves: dict[str, Leaf] = dict(leaves or {})
        self._tree = MapTree.of({namespace: leaf_bytes(leaf) for namespace, leaf in self._leaves.items()})

    @property
    def root(self) -> Digest:
        return self._tree.root

    @property
    def tree(self) -> MapTree:
        """An immutable picture of it, to walk or compare."""
        return self._tree

    @property
    def leaves(self) -> dict[str, Leaf]:
        """A copy."""
        return dict(self._leaves)

    def copy(self) -> HeadsTree:
        """Another one of the same leaves; costs a dict, for the tree itself is shared."""
        other = HeadsTree()
        other._leaves, other._tree = dict(self._leaves), self._tree
        return other

    def get(self, namespace: str) -> Leaf | None:
        return self._leaves.get(namespace)

    def put(self, namespace: str, leaf: Leaf) -> None:
        if self._leaves.get(namespace) != leaf:
            self._leaves[namespace] = leaf
            self._tree = self._tree.set(namespace, leaf_bytes(leaf))

    def drop(self, namespace: str) -> None:
        if self._leaves.pop(namespace, None) is not None:
            self._tree = self._tree.delete(namespace)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._leaves))

    def __len__(self) -> int:
        return len(self._leaves)
