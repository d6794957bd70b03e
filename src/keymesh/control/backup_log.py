"""The control log as a backup has it, read again from nothing but the pinned root: every entry judged as at the start.

Decides whether the entries are a log of this mesh and what the mesh and its tenants are after them.  Knows earlier
sets by their hashes: a later full backup that tells another history is a fork.
"""

from __future__ import annotations

from typing import Final

from keymesh.control import log, reduce, trust
from keymesh.control.backup_manifest import Manifest
from keymesh.control.entry import Leaf, SignedEntry, parse_entry
from keymesh.control.heads import HeadsTree
from keymesh.control.rows import DelegationRow, Rows, SignersRow, get
from keymesh.control.signing import Suite, public_keys
from keymesh.control.trust import REGISTRY_ROLE, Pins
from keymesh.control.view import rows_root
from keymesh.crypto.dsse import PublicKey, envelope_from_json
from keymesh.model.errors import Integrity, KeymeshError
from keymesh.model.ids import MESH_NAMESPACE, Digest, KeyId

MANY_HEADS: Final = 64
_NONE: Final[Rows] = {}


class ReplayedLog:
    """``take`` entries in order, ``finish`` each manifest; ``rewind`` to begin again with another full backup."""

    def __init__(self, pins: Pins, suite: Suite) -> None:
        self._pins, self._suite = pins, suite
        self._known: dict[tuple[str, int], tuple[int, Digest]] = {}  # (namespace, seq) -> (index, entry hash)
        self._finished = 0
        self.rows: dict[str, dict[str, bytes]] = {}
        self.index = 0
        self.entries = 0
        self.epoch = 0
        self.rewind()

    def rewind(self) -> None:
        """A full backup begins: its entries are compared with what is known."""
        self._at, self._read = 0, 0
        self._last = ("", 0)
        self._heads: dict[str, Leaf] = {}
        self._tree, self._moved = HeadsTree(), set[str]()

    def take(self, index: int, raw: bytes) -> SignedEntry:
        """The next entry of the set.

        1. It is an entry, of this mesh, and continues index and chain.  2. If an earlier set had that place it is
        the same entry.  3. Else its signatures verify and its rows have the root that it attests.
        Raises Integrity naming namespace and seq.
        """
        signed = self._parsed(index, raw)
        entry = signed.entry
        inside = index == self._at and self._read > 0
        if inside and (entry.namespace, entry.seq) <= self._last:
            raise Integrity("broken-log", f"index {index} is out of order", field="index")
        head = self._heads.get(entry.namespace)
        _, heads = log.check_stored(
            [(index, signed)],
            mesh=self._pins.mesh,
            index=index - 1 if inside else self._at,
            heads={} if head is None else {entry.namespace: head},
        )
        known = self._known.get((entry.namespace, entry.seq))
        if known is not None and known != (index, signed.hash):
            raise Integrity("fork", f"{entry.namespace}:{entry.seq} was another entry before", field="prev")
        if known is None:
            self._judge(index, signed)
        self._heads |= heads
        self._moved |= heads.keys()
        self._at, self._last, self._read = index, (entry.namespace, entry.seq), self._read + 1
        return signed

    def finish(self, m: Manifest) -> None:
        """All that ``m`` and the set before it hold was taken: is it what ``m`` says, and all that was known?

        Raises Integrity ``incomplete`` or ``fork``.
        """
        said = (m.index, m.entries, m.namespaces, m.heads_root, m.epoch)
        if said != (self._at, self._read, len(self._heads), self._root(), self.epoch):
            raise Integrity("incomplete", f"{m.origin}: {m.seq} does not hold what it says", field="entries")
        if self._read != self.entries:
            raise Integrity("fork", f"{m.origin}: {m.seq} lacks entries that were there before", field="entries")
        self._finished = m.index

    def _root(self) -> Digest:
        """By paths where few heads moved since the last manifest: there may be many of these."""
        if len(self._moved) > MANY_HEADS:
            self._tree = HeadsTree(self._heads)
        else:
            for name in sorted(self._moved):
                self._tree.put(name, self._heads[name])
        self._moved = set()
        return self._tree.root

    def _parsed(self, index: int, raw: bytes) -> SignedEntry:
        try:
            return parse_entry(envelope_from_json(raw))
        except KeymeshError as bad:
            raise Integrity("broken-log", f"at index {index} there is no entry: {bad.message}", field="entry") from bad

    def _judge(self, index: int, signed: SignedEntry) -> None:
        entry = signed.entry
        if index <= self._finished:
            raise Integrity("fork", f"index {index} has an entry that it had not before", field="index")
        rows = self.rows.get(entry.namespace, {})
        signers = get(rows, "signers", SignersRow)
        try:
            mesh_rows = self.rows.get(MESH_NAMESPACE, _NONE)
            trust.verify_entry(signed, mesh_rows, signers, self._suite, pins=self._pins)
            after = reduce.apply(rows, entry)
        except KeymeshError as bad:
            where = f"{entry.namespace}:{entry.seq}"
            raise Integrity(bad.code, f"{where} does not hold: {bad.message}", field=bad.field) from bad
        if rows_root(after) != entry.state:
            raise Integrity("state-mismatch", f"{entry.namespace}:{entry.seq} attests another state", field="state")
        self.rows[entry.namespace] = after
        self._known[entry.namespace, entry.seq] = (index, signed.hash)
        self.index = index
        self.entries += 1
        self.epoch = max(self.epoch, entry.epoch)

    def hash_at(self, namespace: str, seq: int) -> Digest | None:
        """The entry that stands there; None beyond what is known."""
        known = self._known.get((namespace, seq))
        return None if known is None else known[1]

    def registry_keys(self) -> dict[KeyId, PublicKey]:
        """Who may sign the Registry's manifests, by the mesh as it is known so far."""
        row = get(self.rows.get(MESH_NAMESPACE, _NONE), f"delegation/{REGISTRY_ROLE}", DelegationRow)
        return {} if row is None else public_keys({KeyId(k): v for k, v in row.keys.items()})
