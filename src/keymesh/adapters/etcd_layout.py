"""Where a control log lies in etcd, and which of its keys and values are what they must be.

Under one prefix, for one mesh:

    meta                           the format and the mesh
    index                          put, without a compare, by each commit
    head/<namespace>               the leaf of its newest entry
    log/<namespace>/<seq, 16 hex>  the signed envelope, as JSON; written once
    cmd/<namespace>/<command id>   the seq, in decimal, of the entry that the command became; written once

A commit's **index** is the version that etcd gave the ``index`` key in its transaction: it counts the puts of that
key, so indexes begin at 1 and skip none, and no two appends wait for each other over it.  Entries carry their
transaction's mod_revision; the n-th revision among them is index n.  So entries put, altered or removed by anyone
else no longer add up to the version, and are refused.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from keymesh.adapters.etcd_wire import KeyValue, end_of
from keymesh.control.entry import Leaf, SignedEntry, parse_entry
from keymesh.control.heads import parse_leaf
from keymesh.crypto.dsse import envelope_from_json
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, KeymeshError, Refused

FORMAT: Final = "1"

Row = tuple[int, SignedEntry]
Place = tuple[str, int]
"""Namespace and seq."""


class Layout:
    """The keys of the log of ``mesh`` under ``prefix``, which ends in a slash."""

    def __init__(self, prefix: str, mesh: str) -> None:
        if not prefix.isascii() or not prefix.endswith("/") or not 2 <= len(prefix) <= 256:
            raise Refused.bad_field("prefix", f"2 to 256 ASCII characters that end in a slash, got {prefix[:256]!r}")
        self.mesh: Final = mesh
        self.prefix: Final = prefix.encode("ascii")
        self.end: Final = end_of(self.prefix)
        self.meta: Final = self.prefix + b"meta"
        self.index: Final = self.prefix + b"index"
        self.heads: Final = self.prefix + b"head/"
        self.log: Final = self.prefix + b"log/"
        self.commands: Final = self.prefix + b"cmd/"
        self.meta_value: Final = strict_json.dumps({"format": FORMAT, "mesh": mesh})

    def head(self, namespace: str) -> bytes:
        return self.heads + namespace.encode()

    def entry(self, namespace: str, seq: int) -> bytes:
        return b"%b%b/%016x" % (self.log, namespace.encode(), seq)

    def command(self, namespace: str, command_id: str) -> bytes:
        return b"%b%b/%b" % (self.commands, namespace.encode(), command_id.encode())

    def check_meta(self, found: KeyValue | None) -> None:
        """Raises Integrity unless this is the log of our mesh, in the form that we know."""
        if found is None:
            raise Integrity("broken-log", "there is no log where there was one, or something else", field="meta")
        if found.value == self.meta_value and found.version == 1:
            return
        try:
            meta = strict_json.decode(found.value, dict[str, str], max_bytes=1024)
        except Refused as bad:
            raise Integrity("broken-log", "the log's description cannot be read", field="meta") from bad
        if meta.get("format") == FORMAT and meta.get("mesh", self.mesh) != self.mesh:
            raise Integrity("foreign-mesh", f"this is the log of mesh {meta['mesh'][:64]!r}", field="mesh")
        raise Integrity("unknown-format", "this release does not know this log's format", field="format")

    def read_head(self, kv: KeyValue) -> tuple[str, Leaf]:
        """Raises Integrity."""
        name = kv.key.removeprefix(self.heads).decode("ascii", "replace")
        try:
            return name, parse_leaf(kv.value)
        except Refused as bad:
            raise Integrity("broken-log", f"the head of {name[:64]!r} cannot be read", field="heads") from bad

    def read_entry(self, kv: KeyValue) -> SignedEntry:
        """Raises Integrity where it is not the entry of its place, or was not written once and for good."""
        try:
            signed = parse_entry(envelope_from_json(kv.value))
        except KeymeshError as bad:
            raise Integrity("broken-log", f"{kv.key[:256]!r} is no entry: {bad.message}", field="envelope") from bad
        if kv.key != self.entry(signed.entry.namespace, signed.entry.seq):
            raise Integrity("broken-log", f"another entry stands at {kv.key[:256]!r}", field="envelope")
        _written_once(kv)
        return signed

    def check_commands(self, stored: Sequence[KeyValue], rows: Iterable[tuple[int, SignedEntry]]) -> None:
        """The commands are those of the entries, which come with their revisions.  Raises Integrity."""
        expected = {
            self.command(s.entry.namespace, s.entry.command_id): (b"%d" % s.entry.seq, revision) for revision, s in rows
        }
        for kv in stored:
            _written_once(kv)
        if expected != {kv.key: (kv.value, kv.mod_revision) for kv in stored}:
            raise Integrity("broken-log", "the command index is not that of the entries", field="cmd")


def _written_once(kv: KeyValue) -> None:
    if kv.version != 1 or kv.create_revision != kv.mod_revision or kv.lease != 0:
        raise Integrity("broken-log", f"{kv.key[:256]!r} was written more than once, or for a time", field="version")


class Places:
    """Which revision each index was, and which entries stand there: some 20 bytes for each entry."""

    def __init__(self) -> None:
        self._revisions = array("q")
        self._starts = array("q", [0])
        self._names: list[str] = []
        self._ids: dict[str, int] = {}
        self._namespaces = array("L")
        self._seqs = array("Q")

    @property
    def index(self) -> int:
        return len(self._revisions)

    def revision(self, index: int) -> int:
        """0 for index 0, which is no commit."""
        return self._revisions[index - 1] if index else 0

    def index_of(self, revision: int) -> int | None:
        at = bisect_left(self._revisions, revision)
        return at + 1 if at < self.index and self._revisions[at] == revision else None

    def add(self, revision: int, places: Sequence[Place]) -> None:
        """The next commit."""
        for namespace, seq in places:
            number = self._ids.setdefault(namespace, len(self._names))
            if number == len(self._names):
                self._names.append(namespace)
            self._namespaces.append(number)
            self._seqs.append(seq)
        self._starts.append(len(self._seqs))
        self._revisions.append(revision)

    def after(self, index: int, until: int, limit: int | None) -> Iterator[tuple[int, Place]]:
        """Whole commits after ``index`` up to ``until``, and none more once ``limit`` places are reached."""
        given = 0
        for commit in range(max(index, 0), until):
            if limit is not None and given and given >= limit:
                return
            for at in range(self._starts[commit], self._starts[commit + 1]):
                given += 1
                yield commit + 1, (self._names[self._namespaces[at]], self._seqs[at])


def numbered(found: Iterable[tuple[int, SignedEntry]], *, after: int) -> tuple[list[Row], list[int]]:
    """(entries as the log orders them, by index; the revision of each index) of entries with their revisions."""
    ordered = sorted(found, key=lambda f: (f[0], f[1].entry.namespace, f[1].entry.seq))
    rows: list[Row] = []
    revisions: list[int] = []
    for revision, signed in ordered:
        if not revisions or revisions[-1] != revision:
            revisions.append(revision)
        rows.append((after + len(revisions), signed))
    return rows, revisions
