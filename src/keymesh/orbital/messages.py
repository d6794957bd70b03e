"""Orbital's task and the pull that fetches it (DESIGN section 4): one task type serves all lanes."""

from __future__ import annotations

from dataclasses import dataclass

from keymesh.control.entry import Leaf
from keymesh.control.messages import Message
from keymesh.control.state import NamespaceState as NamespaceState
from keymesh.control.state import Supported as Supported
from keymesh.model.ids import Digest
from keymesh.model.states import Lane


@dataclass(frozen=True, slots=True)
class Task:
    """Self-contained: applies when it verifies and is newer, whatever came or did not come before it.

    ``mesh`` comes along when the entry rests on a newer mesh head than the node has reported.
    ``task_id`` is ``<namespace>:<epoch>:<seq>:<first 16 of entry hash>``: versioned and unique.
    """

    task_id: str
    lane: Lane
    namespace: str
    state: NamespaceState
    correlation_id: str
    mesh: NamespaceState | None = None
    force: bool = False


class KeyStoreReport(Message):
    """Node to Registry: the schema of its region's key store, and the newest that this node knows.

    A message of its own, not fields of the heartbeat: a Registry of an older release refuses it, and nothing else.
    """

    region: str
    node: str
    schema: int
    newest: int


class Hello(Message):
    """Node to Registry after a (re)connection: send what I miss."""

    region: str
    node: str
    boot_id: str


@dataclass(frozen=True, slots=True)
class Tail:
    """Node to Registry, again and again: what I held in an earlier epoch, and your base lacks versions of."""

    state: NamespaceState


class TailTaken(Message):
    """Registry to node: everything that could be taken of that tail is in the log."""

    namespace: str
    entry_hash: Digest


class ManifestAsk(Message):
    """Node to Registry: what stands below these prefixes of the heads tree whose root is ``root``, as last answered."""

    region: str
    node: str
    root: Digest
    prefixes: tuple[str, ...]


class ManifestTell(Message):
    """Registry to node, unsigned: every hash leads to the signed root, or it does not count.

    ``halves``: prefix -> the hashes of the two subtrees below it; ``rows``: prefix -> the one namespace below it.
    """

    root: Digest
    halves: dict[str, tuple[Digest, Digest]]
    rows: dict[str, tuple[str, Leaf]]


class ManifestDiffers(Message):
    """Node to Registry: by what its manifest (of root ``manifest_root``, as in its last heartbeat) differs from the
    heads tree of root ``root``.  ``held``: namespace -> the leaf that it holds, or None.  ``more``: there is more."""

    region: str
    node: str
    root: Digest
    manifest_root: Digest
    held: dict[str, Leaf | None]
    more: bool = False
