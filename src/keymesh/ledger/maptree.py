"""The map tree: one hash for a whole map of names to bytes, whatever the order in which it came to be.

Serves namespace states, the heads tree and the manifest.  Decides the tree's form, to the byte; what its rows mean is
their owner's business.

A row's *path* is the 256 bits of ``SHA-256(k)``, most significant first.  The hash of the rows that share the first d
bits of their paths is

* none:     ``SHA-256(0x02)``;
* one row:  ``SHA-256(0x00 || lp(k) || lp(v))``, at whatever depth it is alone;
* several:  ``SHA-256(0x01 || left || right)``, split by bit d: 0 goes left, 1 right.

The root is that of d = 0.  Depth is the number of steps from the root, so a proof cannot shift a row to another
place, and absence is proved by what stands where the row would be: nothing, or another row alone there.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NewType, Self, final

import msgspec

from keymesh.crypto.aad import lp
from keymesh.model.caching import cached
from keymesh.model.errors import Integrity, Refused
from keymesh.model.ids import Digest, check_hex

Prefix = NewType("Prefix", str)
"""The first bits of paths, as ``0`` and ``1``; the root's is empty."""

PATH_BITS: Final = 256
EMPTY_HASH: Final = hashlib.sha256(b"\2").digest()
EMPTY_ROOT: Final = Digest(EMPTY_HASH.hex())

_sha256 = hashlib.sha256


@lru_cache(maxsize=16_384)
def path_of(key: str) -> int:
    """Where ``key`` stands, as a 256-bit number."""
    return int.from_bytes(_sha256(key.encode()).digest(), "big")


@cached(16_384, lambda key, value: len(value))
def leaf_hash(key: str, value: bytes) -> bytes:
    return _sha256(b"\0" + lp(key.encode()) + lp(value)).digest()


@lru_cache(maxsize=16_384)
def _node_hash(left: bytes, right: bytes) -> bytes:
    """Maps change by a row at a time: of the next tree's nodes most have been hashed before."""
    return _sha256(b"\1" + left + right).digest()


def root_of(rows: Mapping[str, bytes]) -> Digest:
    """The root over ``rows``, without building a tree."""
    leaves = sorted([(path_of(key), leaf_hash(key, value)) for key, value in rows.items()])
    return Digest(_hash_range(leaves, 0, len(leaves), 0, 0).hex())


def _hash_range(leaves: list[tuple[int, bytes]], start: int, end: int, depth: int, base: int) -> bytes:
    if end - start == 1:
        return leaves[start][1]
    if start == end:
        return EMPTY_HASH
    if end - start == 2:
        return _hash_pair(leaves[start], leaves[start + 1], depth)
    half = base | 1 << (PATH_BITS - 1 - depth)
    middle = bisect_left(leaves, (half,), start, end)
    return _node_hash(
        _hash_range(leaves, start, middle, depth + 1, base), _hash_range(leaves, middle, end, depth + 1, half)
    )


def _hash_pair(low: tuple[int, bytes], high: tuple[int, bytes], depth: int) -> bytes:
    """Two rows that share ``depth`` bits: they part at the first bit that differs, with nothing beside them above."""
    parting = PATH_BITS - (low[0] ^ high[0]).bit_length()
    running = _node_hash(low[1], high[1])
    for level in range(parting - 1, depth - 1, -1):
        goes_right = low[0] >> (PATH_BITS - 1 - level) & 1
        running = _node_hash(EMPTY_HASH, running) if goes_right else _node_hash(running, EMPTY_HASH)
    return running


@final
class _Leaf(msgspec.Struct, frozen=True):
    path: int
    key: str
    value: bytes
    hash: bytes


@final
class _Fork(msgspec.Struct, frozen=True):
    left: _Node
    right: _Node
    hash: bytes


_Node = _Leaf | _Fork | None


def _hash(node: _Node) -> bytes:
    return EMPTY_HASH if node is None else node.hash


def _bit(path: int, depth: int) -> int:
    return path >> (PATH_BITS - 1 - depth) & 1


def _fork(left: _Node, right: _Node) -> _Node:
    """The node over two halves; a single leaf rises, so that the form is independent of history."""
    if left is None and type(right) is not _Fork:
        return right
    if right is None and type(left) is not _Fork:
        return left
    left_hash = EMPTY_HASH if left is None else left.hash
    right_hash = EMPTY_HASH if right is None else right.hash
    return _Fork(left, right, _node_hash(left_hash, right_hash))


def _put(node: _Node, leaf: _Leaf, depth: int) -> _Node:
    if node is None:
        return leaf
    if type(node) is _Leaf and node.path == leaf.path:
        return leaf
    node_left, node_right = (node.left, node.right) if type(node) is _Fork else _halves(node, depth)
    if leaf.path >> (PATH_BITS - 1 - depth) & 1 == 0:
        return _fork(_put(node_left, leaf, depth + 1), node_right)
    return _fork(node_left, _put(node_right, leaf, depth + 1))


def _drop(node: _Node, path: int, depth: int) -> _Node:
    if node is None or isinstance(node, _Leaf):
        return None if node is not None and node.path == path else node
    if _bit(path, depth) == 0:
        left = _drop(node.left, path, depth + 1)
        return node if left is node.left else _fork(left, node.right)
    right = _drop(node.right, path, depth + 1)
    return node if right is node.right else _fork(node.left, right)


def _build(leaves: list[_Leaf], start: int, end: int, depth: int, base: int) -> _Node:
    if end - start <= 1:
        return leaves[start] if start < end else None
    half = base | 1 << (PATH_BITS - 1 - depth)
    middle = bisect_left(leaves, half, start, end, key=lambda leaf: leaf.path)
    return _fork(_build(leaves, start, middle, depth + 1, base), _build(leaves, middle, end, depth + 1, half))


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: str
    value: bytes


class Proof(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands at a key's place, and the hashes beside the way to it, root first.

    A proof of absence may show another row that stands there: mind who may see it.
    """

    siblings: tuple[Digest, ...]
    row: Row | None


class Halves(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The hashes of the two subtrees below a prefix that several rows share."""

    left: Digest
    right: Digest


@dataclass(frozen=True, slots=True)
class Change:
    """One row that differs; None where a side has no such row."""

    key: str
    old: bytes | None
    new: bytes | None


class MapTree:
    """An immutable map that knows its root; ``set`` and ``delete`` give a new one that shares all it can."""

    __slots__ = ("_node", "_size")

    def __init__(self, _node: _Node = None, _size: int = 0) -> None:
        self._node = _node
        self._size = _size

    @classmethod
    def of(cls, rows: Mapping[str, bytes]) -> Self:
        """The tree over ``rows``, faster than one by one."""
        leaves = [_Leaf(path_of(key), key, value, leaf_hash(key, value)) for key, value in rows.items()]
        leaves.sort(key=lambda leaf: leaf.path)
        return cls(_build(leaves, 0, len(leaves), 0, 0), len(leaves))

    @property
    def root(self) -> Digest:
        return EMPTY_ROOT if self._node is None else Digest(self._node.hash.hex())

    def get(self, key: str) -> bytes | None:
        leaf = self._standing_at(path_of(key))
        return leaf.value if leaf is not None and leaf.key == key else None

    def set(self, key: str, value: bytes) -> MapTree:
        leaf = self._standing_at(path_of(key))
        if leaf is not None and leaf.key == key:
            if leaf.value == value:
                return self
            added = 0
        else:
            added = 1
        new = _Leaf(path_of(key), key, value, leaf_hash(key, value))
        return MapTree(_put(self._node, new, 0), self._size + added)

    def delete(self, key: str) -> MapTree:
        """Without ``key``; the same tree where it has no such row."""
        node = _drop(self._node, path_of(key), 0)
        return self if node is self._node else MapTree(node, self._size - 1)

    def items(self) -> Iterator[tuple[str, bytes]]:
        """The rows, in the order of their paths."""
        return ((leaf.key, leaf.value) for leaf in _leaves(self._node))

    def __len__(self) -> int:
        return self._size

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MapTree) and _hash(self._node) == _hash(other._node)

    def __hash__(self) -> int:
        return hash(_hash(self._node))

    def __repr__(self) -> str:
        return f"<MapTree {self._size} rows {self.root[:16]}>"

    def _standing_at(self, path: int) -> _Leaf | None:
        """The leaf that stands where ``path`` leads."""
        node, bit = self._node, PATH_BITS - 1
        while type(node) is _Fork:
            node = node.right if path >> bit & 1 else node.left
            bit -= 1
        return node

    def _walk(self, path: int) -> tuple[_Leaf | None, list[bytes]]:
        """The leaf that stands where ``path`` leads, and the hashes beside the way, root first."""
        node, siblings = self._node, list[bytes]()
        while isinstance(node, _Fork):
            goes_right = _bit(path, len(siblings))
            siblings.append(_hash(node.left if goes_right else node.right))
            node = node.right if goes_right else node.left
        return node, siblings

    def prove(self, key: str) -> Proof:
        """That ``key`` has its value here, or that it has none."""
        leaf, siblings = self._walk(path_of(key))
        return Proof(
            tuple(Digest(sibling.hex()) for sibling in siblings), None if leaf is None else Row(leaf.key, leaf.value)
        )

    def at(self, prefix: Prefix) -> Halves | Row | None:
        """What stands below ``prefix``, for a peer that walks the differences; see ``hash_of``.

        None also where the tree ends above ``prefix`` in nothing or in a row that does not lie below it.
        """
        check_prefix(prefix)
        node = self._node
        for bit in prefix:
            if not isinstance(node, _Fork):
                if node is None or not format(node.path, "0256b").startswith(prefix):
                    return None
                return Row(node.key, node.value)
            node = node.left if bit == "0" else node.right
        match node:
            case _Fork():
                return Halves(Digest(_hash(node.left).hex()), Digest(_hash(node.right).hex()))
            case _Leaf():
                return Row(node.key, node.value)
            case None:
                return None

    def hash_below(self, prefix: Prefix) -> bytes:
        """The hash of the rows below ``prefix``; that of nothing where there are none."""
        return _hash(self._below(prefix))

    def below(self, prefix: Prefix) -> Iterator[tuple[str, bytes]]:
        """The rows below ``prefix``, in the order of their paths."""
        return ((leaf.key, leaf.value) for leaf in _leaves(self._below(prefix)))

    def _below(self, prefix: Prefix) -> _Node:
        node = self._node
        for bit in prefix:
            if not isinstance(node, _Fork):
                return node if node is not None and is_below(node.key, prefix) else None
            node = node.left if bit == "0" else node.right
        return node


def is_below(key: str, prefix: Prefix) -> bool:
    """Whether the path of ``key`` begins with ``prefix``."""
    return format(path_of(key), "0256b").startswith(prefix)


def check_prefix(prefix: str) -> Prefix:
    """Raises Refused where ``prefix`` is not at most 256 of ``0`` and ``1``."""
    if len(prefix) > PATH_BITS or prefix.strip("01"):
        raise Refused.bad_field("prefix", f"at most {PATH_BITS} of 0 and 1")
    return Prefix(prefix)


def hash_of(found: Halves | Row | None) -> Digest:
    """The hash that a correct answer of ``MapTree.at`` has, to be compared before it is used."""
    match found:
        case Halves():
            return Digest(_node_hash(bytes.fromhex(found.left), bytes.fromhex(found.right)).hex())
        case Row():
            return Digest(leaf_hash(found.key, found.value).hex())
        case None:
            return EMPTY_ROOT


def verify_proof(root: Digest, key: str, proof: Proof) -> bytes | None:
    """The value that ``key`` has under ``root``; None where it is proved to have none.

    1. At most 256 siblings, each a SHA-256.
    2. What stands at the end: nothing, the row itself, or another row whose path shares the way's bits.
    3. Hashing back along the key's own path gives ``root``.

    Raises Integrity where any of them fails.
    """
    path, depth = path_of(key), len(proof.siblings)
    if depth > PATH_BITS:
        raise Integrity("bad-proof", f"a proof of at most {PATH_BITS} siblings, got {depth}")
    row = proof.row
    if row is not None and row.key != key and path_of(row.key) >> (PATH_BITS - depth) != path >> (PATH_BITS - depth):
        raise Integrity("bad-proof", "the row shown does not stand where the key would")
    running = EMPTY_HASH if row is None else leaf_hash(row.key, row.value)
    for level in range(depth - 1, -1, -1):
        beside = bytes.fromhex(check_hex("siblings", proof.siblings[level], hex_bytes=32))
        running = _node_hash(running, beside) if _bit(path, level) == 0 else _node_hash(beside, running)
    if running.hex() != root:
        raise Integrity("bad-proof", "the proof does not lead to this root")
    return row.value if row is not None and row.key == key else None


def diff(old: MapTree, new: MapTree) -> Iterator[Change]:
    """The rows that differ, in the order of their paths; equal subtrees are not entered."""
    return _diff(old._node, new._node, 0)


def _diff(old: _Node, new: _Node, depth: int) -> Iterator[Change]:
    if _hash(old) == _hash(new):
        return
    if not (isinstance(old, _Fork) or isinstance(new, _Fork)):
        yield from _diff_leaves(old, new)
        return
    old_left, old_right = _halves(old, depth)
    new_left, new_right = _halves(new, depth)
    yield from _diff(old_left, new_left, depth + 1)
    yield from _diff(old_right, new_right, depth + 1)


def _diff_leaves(old: _Leaf | None, new: _Leaf | None) -> Iterator[Change]:
    if old is not None and new is not None and old.path == new.path:
        yield Change(new.key, old.value, new.value)
        return
    changes = [(leaf.path, Change(leaf.key, leaf.value, None)) for leaf in (old,) if leaf is not None]
    changes += [(leaf.path, Change(leaf.key, None, leaf.value)) for leaf in (new,) if leaf is not None]
    yield from (change for _, change in sorted(changes, key=lambda pair: pair[0]))


def _halves(node: _Node, depth: int) -> tuple[_Node, _Node]:
    match node:
        case _Fork():
            return node.left, node.right
        case _Leaf():
            return (node, None) if _bit(node.path, depth) == 0 else (None, node)
        case None:
            return None, None


def _leaves(node: _Node) -> Iterator[_Leaf]:
    match node:
        case _Fork():
            yield from _leaves(node.left)
            yield from _leaves(node.right)
        case _Leaf():
            yield node
        case None:
            return
