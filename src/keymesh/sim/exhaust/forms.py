"""Machine states as values: a cheap copy to step, and a form that is equal where states are equal.

A form leaves out nothing that a machine could act on.  What it does leave out are caches, whose content follows from
the rest of the state, and what a clock showed, which nobody watches there (``_CACHES``); and the proofs of the
simulated seals, which follow from the message.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from types import MappingProxyType
from typing import Any, Final

from msgspec import Struct

from keymesh.control.entry import SignedEntry
from keymesh.control.heads import HeadsTree
from keymesh.control.messages import Answer
from keymesh.core.lease_book import LeaseBook
from keymesh.core.state import NodeState, StandbyAsk
from keymesh.ledger.maptree import MapTree
from keymesh.registry.state import Kill, RegionHeads, Version
from keymesh.sim.suite import FakeSealed, FakeSuite

_PLAIN: Final = frozenset((int, str, bytes, bool, float, type(None)))
_CACHES: Final[dict[type, frozenset[str]]] = {
    NodeState: frozenset(("covered", "wanted")),
    Answer: frozenset(("clock", "clock_ms")),
    Version: frozenset(("shown", "proofs")),
    RegionHeads: frozenset(("shown",)),
    Kill: frozenset(("due",)),
    HeadsTree: frozenset(("_tree",)),
    LeaseBook: frozenset(("_edges", "_tenants")),
}
_UNORDERED: Final[dict[type, frozenset[str]]] = {
    NodeState: frozenset(("standby_said",)),
    StandbyAsk: frozenset(("grants",)),
}
"""By whom, whatever came first: read sorted, or for their maximum."""
_WHOLE: Final = (SignedEntry, MapTree, FakeSuite)
"""Immutable; a signed entry is its hash, a suite its key."""


@cache
def _is_fixed(kind: Any) -> bool:
    """Whether objects of that type never change."""
    if kind in _PLAIN or kind in (tuple, frozenset, MappingProxyType) or issubclass(kind, (Enum, type, *_WHOLE)):
        return True
    if issubclass(kind, Struct):
        return bool(kind.__struct_config__.frozen)
    if is_dataclass(kind):
        return bool(getattr(kind, "__dataclass_params__").frozen)  # noqa: B009
    return callable(kind) and not hasattr(kind, "__slots__") and not issubclass(kind, (dict, list, set, deque))


@cache
def _attributes(kind: Any) -> tuple[str, ...]:
    if issubclass(kind, Struct):
        return tuple(kind.__struct_fields__)
    if is_dataclass(kind):
        return tuple(f.name for f in fields(kind))
    return tuple(kind.__slots__)


@cache
def _told(kind: Any) -> tuple[str, ...]:
    left_out = _CACHES.get(kind, frozenset())
    return tuple(name for name in _attributes(kind) if name not in left_out)


def copied(value: Any) -> Any:
    """A copy that shares only what never changes."""
    kind: Any = type(value)
    if _is_fixed(kind):
        return value
    if kind is dict:
        return {k: copied(v) for k, v in value.items()}
    if kind is list:
        return [copied(v) for v in value]
    if kind is set:
        return set(value)
    if kind is deque:
        return deque((copied(v) for v in value), value.maxlen)
    if kind is Counter:
        return Counter(value)
    twin = object.__new__(kind)
    for name in _attributes(kind):
        setattr(twin, name, copied(getattr(value, name)))
    return twin


class Forms:
    """Forms of values.  Those of immutable objects are numbered, and each object is looked at once."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Any, Any]] = {}  # id -> the object, which stays alive, and its form
        self._numbers: dict[Any, tuple[int]] = {}

    def form(self, value: Any) -> Any:
        """A hashable stand-in for ``value``; equal for equal values."""
        kind: Any = type(value)
        if kind in _PLAIN:
            return value
        if kind is dict or kind is Counter or kind is MappingProxyType:
            return ("d", *[(k, self.form(v)) for k, v in value.items()])
        if kind is tuple:
            return ("t", *[self.form(v) for v in value])
        if kind is list or kind is deque:
            return ("l", *[self.form(v) for v in value])
        if kind is set or kind is frozenset:
            return ("s", *sorted(self.form(v) for v in value))
        if not _is_fixed(kind):
            unordered = _UNORDERED.get(kind, ())
            told = [(name in unordered, getattr(value, name)) for name in _told(kind)]
            return (kind.__name__, *[self.form(dict(sorted(x.items())) if by_key else x) for by_key, x in told])
        seen = self._seen.get(id(value))
        if seen is None:
            made = self._fixed(kind, value)
            number = self._numbers.setdefault(made, (len(self._numbers),))
            seen = self._seen[id(value)] = (value, number)
        return seen[1]

    def _fixed(self, kind: type, value: Any) -> Any:
        if kind is SignedEntry:
            return ("entry", value.hash)
        if kind is FakeSealed:
            return ("sealed", value.key_id, self.form(value.message))
        if kind is FakeSuite:
            return ("suite", value.key_id)
        if issubclass(kind, Enum):
            return ("enum", kind.__name__, value.name)
        if issubclass(kind, Struct) or is_dataclass(kind):
            return (kind.__name__, *[self.form(getattr(value, name)) for name in _told(kind)])
        return ("object", id(value))
