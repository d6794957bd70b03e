"""The control log on etcd, for production: a Raft quorum, one transaction for each commit (keys: ``etcd_layout``).

An append compares the heads of its namespaces, the mesh head, and that its commands are new; nothing mesh-wide is
compared and written, so namespaces do not wait for each other.  The first use checks the whole log, each later one
what was added since, against what this process has seen: a store that is another mesh's, damaged, or behind what it
once answered is refused before anything is written.  Source: DESIGN section 2.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Final

from keymesh.adapters import etcd_wire as wire
from keymesh.adapters.etcd_client import Compacted, EtcdClient
from keymesh.adapters.etcd_layout import Layout, Place, Places, Row, numbered
from keymesh.control import log
from keymesh.control.entry import Leaf, SignedEntry
from keymesh.control.heads import leaf_bytes
from keymesh.crypto.dsse import envelope_to_json
from keymesh.model.errors import Integrity, Refused, Unavailable
from keymesh.model.ids import MESH_NAMESPACE, check_label, check_token

PREFIX: Final = "keymesh/"
PAGE_KEYS: Final = 1_000
PAGE_ENTRIES: Final = 128  # at most 16 MB of JSON
TAIL_ENTRIES: Final = 256
TRIES: Final = 4


class EtcdControlLog:
    """The log of ``mesh`` under ``prefix``; the client is closed with it.

    ``may_found``: whether a log may be begun where there is nothing; else that is Refused ``not-founded``.  Every
    method opens the log first where that has not succeeded yet, and raises what ``open`` raises.
    """

    def __init__(self, client: EtcdClient, *, mesh: str, prefix: str = PREFIX, may_found: bool = True) -> None:
        self._client = client
        self._may_found = may_found
        self._keys = Layout(prefix, mesh)
        self._places = Places()
        self._heads: dict[str, Leaf] = {}
        self._ours: dict[str, Leaf] = {}
        """Heads that our own appends left or met, until a read has seen them: hints, which the compare corrects."""
        self._seen = 0
        self._tail: list[Row] = []
        self._lock = asyncio.Lock()
        self._opened = False

    async def open(self) -> None:
        """Found the log where there is nothing, else check all of it.

        Raises Integrity for what is not this mesh's log as it was appended, Unavailable.
        """
        async with self._lock:
            for _ in range(TRIES):
                if self._opened:
                    return
                try:
                    await self._check_all(await self._found())
                    self._opened = True
                except Compacted:
                    continue
            if not self._opened:
                raise Unavailable("compacted", "the store is compacted faster than it can be read")

    async def append(self, entries: Sequence[SignedEntry]) -> int:
        """As the port has it; also raises Integrity where the store is not our log any more."""
        log.check_group(entries, mesh=self._keys.mesh)
        for signed in entries:
            check_label("namespace", signed.entry.namespace)
            check_token("command_id", signed.entry.command_id)
        await self._ready()
        names = sorted({MESH_NAMESPACE, *(s.entry.namespace for s in entries)})
        heads = {n: leaf for n in names if (leaf := self._ours.get(n, self._heads.get(n))) is not None}
        try:
            log.check_heads(entries, heads)
        except log.Conflict:  # perhaps only ours are old
            heads = await self._current(entries, names)
        for _ in range(TRIES):
            after = log.check_heads(entries, heads)
            answer = await self._client.write(self._transaction(entries, names, heads, after))
            if answer.succeeded:
                index = self._index_put(answer)
                self._ours |= {s.entry.namespace: after[s.entry.namespace] for s in entries}
                self._learn_own(index, answer.header.revision, entries)
                return index
            stood, heads = heads, await self._current(entries, names)
            if stood == heads:
                raise Integrity("broken-log", "something stands where the next entry belongs", field="seq")
        raise log.Conflict("conflict", "the heads move faster than they can be read", field="prev")

    async def read(self, after_index: int, limit: int | None = None) -> tuple[int, list[Row]]:
        index = await self._caught_up()
        if self._tail and after_index >= self._tail[0][0]:
            rows = [row for row in self._tail if after_index < row[0] <= index]
            return index, log.take(rows, limit)
        return index, await self._rows(list(self._places.after(after_index, index, limit)))

    async def find(self, namespace: str, command_id: str) -> tuple[int, SignedEntry] | None:
        await self._ready()
        _, (known,) = await self._look([wire.get(self._keys.command(namespace, command_id))])
        if not known.kvs:
            return None
        if not known.kvs[0].value.isdigit() or len(known.kvs[0].value) > 18:
            raise Integrity("broken-log", "the command index cannot be read", field="cmd")
        place = (namespace, int(known.kvs[0].value))
        await self._caught_up()
        index = self._places.index_of(known.kvs[0].mod_revision)
        if index is not None:
            (found,) = await self._rows([(index, place)])
            if found[1].entry.command_id == command_id:
                return found
        raise Integrity("broken-log", f"{namespace}:{command_id} is not where the index has it", field="cmd")

    async def heads(self) -> tuple[int, dict[str, Leaf]]:
        await self._caught_up()
        return self._places.index, dict(self._heads)

    async def close(self) -> None:
        self._client.close()

    # --- appending ---------------------------------------------------------------------------------------------------

    def _transaction(
        self, entries: Sequence[SignedEntry], names: list[str], heads: dict[str, Leaf], after: dict[str, Leaf]
    ) -> bytes:
        keys = self._keys
        compare = [wire.holds(keys.meta, keys.meta_value)]
        for name in names:
            head = keys.head(name)
            compare.append(wire.holds(head, leaf_bytes(heads[name])) if name in heads else wire.absent(head))
        writes = [wire.put(keys.index, b"", prev_kv=True)]
        for signed in entries:
            entry = signed.entry
            place, command = keys.entry(entry.namespace, entry.seq), keys.command(entry.namespace, entry.command_id)
            compare += [wire.absent(place), wire.absent(command)]
            writes += [wire.put(place, envelope_to_json(signed.envelope)), wire.put(command, b"%d" % entry.seq)]
        moved = sorted({s.entry.namespace for s in entries})
        writes += [wire.put(keys.head(n), leaf_bytes(after[n])) for n in moved]
        return wire.txn(writes, compare=compare)

    async def _current(self, entries: Sequence[SignedEntry], names: list[str]) -> dict[str, Leaf]:
        """The heads that these entries follow, as the store has them.  Raises Conflict where they follow no longer."""
        keys = self._keys
        commands = [keys.command(s.entry.namespace, s.entry.command_id) for s in entries]
        _, found = await self._look([*(wire.get(keys.head(n)) for n in names), *(wire.get(c) for c in commands)])
        stored = [kv for answer in found[: len(names)] for kv in answer.kvs]
        known = [s for s, answer in zip(entries, found[len(names) :], strict=True) if answer.kvs]
        log.check_new_commands(entries, [(s.entry.namespace, s.entry.command_id) for s in known])
        heads = dict(keys.read_head(kv) for kv in stored)
        self._ours |= heads
        log.check_heads(entries, heads)
        return heads

    def _index_put(self, answer: wire.TxnAnswer) -> int:
        put = answer.responses[0].response_put if answer.responses else None
        if put is None:
            raise log.UnknownOutcome("unknown-outcome", "an answer that does not say where the append stands")
        index = 1 if put.prev_kv is None else put.prev_kv.version + 1
        self._seen = max(self._seen, index)
        return index

    # --- reading -----------------------------------------------------------------------------------------------------

    async def _ready(self) -> None:
        if not self._opened:
            await self.open()

    async def _look(self, ops: list[wire.Op]) -> tuple[tuple[int, int, int], list[wire.RangeAnswer]]:
        """((index, its revision, the store's revision), what ``ops`` read) at one linearizable moment.

        Raises Integrity where the log is not ours any more, or behind what this process has seen of it.
        """
        seen = self._seen
        body = wire.txn([wire.get(self._keys.meta), wire.get(self._keys.index), *ops])
        answer = await self._client.read(body)
        found = answer.ranges()
        if len(found) != 2 + len(ops):
            raise Unavailable("etcd", "an answer that lacks what was asked")
        self._keys.check_meta(found[0].kvs[0] if found[0].kvs else None)
        counter = found[1].kvs[0] if found[1].kvs else None
        index, revision = (0, 0) if counter is None else (counter.version, counter.mod_revision)
        if index < seen or (index <= self._places.index and revision != self._places.revision(index)):
            raise Integrity("rolled-back", f"the log is at {index}, and was at {seen}", field="index")
        self._seen = max(self._seen, index)
        return (index, revision, answer.header.revision), found[2:]

    async def _caught_up(self) -> int:
        """The index of a linearizable read begun after the call, up to which at least everything is known here."""
        await self._ready()
        for _ in range(TRIES):
            (index, revision, at), _ = await self._look([])
            if index <= self._places.index:
                return index
            async with self._lock:
                if index <= self._places.index:
                    return index
                try:
                    await self._catch_up(index, revision, at)
                    return index
                except Compacted:
                    continue
        raise Unavailable("compacted", "the store is compacted faster than it can be read")

    async def _catch_up(self, index: int, revision: int, at: int) -> None:
        """Read what was added since, up to ``index``.  Raises Integrity where it does not follow what is known."""
        since = self._places.revision(self._places.index) + 1
        moved = {}
        async for kv in self._pages(self._keys.heads, wire.end_of(self._keys.heads), at, PAGE_KEYS, since=since):
            name, leaf = self._keys.read_head(kv)
            moved[name] = leaf
        spans = []
        for name, leaf in sorted(moved.items()):
            known = self._heads.get(name)
            first = 1 if known is None else known.seq + 1
            if leaf.seq < first:
                raise Integrity("broken-log", f"the head of {name[:64]!r} went back", field="heads")
            spans.append((name, first, leaf.seq))
        rows, revisions = numbered(await self._entries(spans, at), after=self._places.index)
        got, heads = log.check_stored(rows, mesh=self._keys.mesh, index=self._places.index, heads=self._heads)
        if got != index or not revisions or revisions[-1] != revision or revisions[0] < since:
            raise Integrity("broken-log", f"the log's entries do not add up to {index}", field="index")
        if any(heads[name] != leaf for name, leaf in moved.items()):
            raise Integrity("broken-log", "the heads are not those of the entries", field="heads")
        self._learn(rows, revisions, heads)

    def _learn(self, rows: list[Row], revisions: list[int], heads: dict[str, Leaf]) -> None:
        places: list[list[Place]] = [[] for _ in revisions]
        for index, signed in rows:
            places[index - self._places.index - 1].append((signed.entry.namespace, signed.entry.seq))
        for revision, commit in zip(revisions, places, strict=True):
            self._places.add(revision, commit)
        self._heads = heads
        self._ours = {n: leaf for n, leaf in self._ours.items() if n not in heads or leaf.seq > heads[n].seq}
        self._seen = max(self._seen, self._places.index)
        self._tail = [*self._tail, *rows][-TAIL_ENTRIES:]

    def _learn_own(self, index: int, revision: int, entries: Sequence[SignedEntry]) -> None:
        """What we have just written right behind all that is known need not be read back.

        Nothing where somebody reads on at this moment, or anything else came between: then it is read like the rest.
        """
        if self._lock.locked() or index != self._places.index + 1 or revision <= self._places.revision(index - 1):
            return
        rows = [(index, signed) for signed in log.in_order(entries)]
        try:
            _, heads = log.check_stored(rows, mesh=self._keys.mesh, index=index - 1, heads=self._heads)
        except Integrity:  # written behind what is not known yet
            return
        self._learn(rows, [revision], heads)

    async def _rows(self, wanted: list[tuple[int, Place]]) -> list[Row]:
        """The entries that stand at these places, which are known to."""
        spans: dict[str, tuple[int, int]] = {}
        for _, (name, seq) in wanted:
            low, high = spans.get(name, (seq, seq))
            spans[name] = (min(low, seq), max(high, seq))
        found = await self._entries([(n, low, high) for n, (low, high) in sorted(spans.items())], 0)
        at = {(s.entry.namespace, s.entry.seq): (revision, s) for revision, s in found}
        for index, place in wanted:
            if place not in at or at[place][0] != self._places.revision(index):
                raise Integrity("broken-log", f"the entry at {place} was altered", field="envelope")
        return [(index, at[place][1]) for index, place in wanted]

    async def _entries(self, spans: Iterable[tuple[str, int, int]], at: int) -> list[tuple[int, SignedEntry]]:
        """(revision, entry) of each place in (namespace, first seq, last seq), all of which must be there."""
        found: list[tuple[int, SignedEntry]] = []
        ops: list[wire.Op] = []
        asked = 0
        for name, low, high in spans:
            while low <= high:
                until = min(high, low + PAGE_ENTRIES - asked - 1)
                ops.append(wire.span(self._keys.entry(name, low), self._keys.entry(name, until + 1), revision=str(at)))
                asked += until - low + 1
                low = until + 1
                if asked == PAGE_ENTRIES:
                    found += await self._fetched(ops, asked)
                    ops, asked = [], 0
        return [*found, *(await self._fetched(ops, asked) if ops else ())]

    async def _fetched(self, ops: list[wire.Op], asked: int) -> list[tuple[int, SignedEntry]]:
        kvs = [kv for answer in await self._ranges(ops) for kv in answer.kvs]
        if len(kvs) != asked:
            raise Integrity("broken-log", f"{asked} entries should be there, and {len(kvs)} are", field="seq")
        return [(kv.mod_revision, self._keys.read_entry(kv)) for kv in kvs]

    async def _ranges(self, ops: list[wire.Op]) -> list[wire.RangeAnswer]:
        found = (await self._client.read(wire.txn(ops))).ranges()
        if len(found) != len(ops):
            raise Unavailable("etcd", "an answer that lacks what was asked")
        return found

    async def _pages(
        self, first: bytes, end: bytes, at: int, size: int, *, since: int = 0
    ) -> AsyncIterator[wire.KeyValue]:
        """Every key from ``first`` on and before ``end``, as of revision ``at``, that was written since ``since``.

        Raises Compacted.
        """
        more = True
        while more:
            op = wire.span(first, end, revision=str(at), limit=str(size), min_mod_revision=str(since))
            (answer,) = await self._ranges([op])
            for kv in answer.kvs:
                yield kv
            more = answer.more and len(answer.kvs) > 0
            first = answer.kvs[-1].key + b"\0" if answer.kvs else end

    # --- opening -----------------------------------------------------------------------------------------------------

    async def _found(self) -> int:
        """The revision at which there is a log of ours, founded just now where nothing was."""
        keys = self._keys
        look = [wire.get(keys.meta), wire.span(keys.prefix, keys.end, limit="1", keys_only=True)]
        answer = await self._client.read(wire.txn(look))
        meta, anything = answer.ranges()
        if not meta.kvs and not anything.kvs:
            if not self._may_found:
                raise Refused("not-founded", "there is no log yet: `keymesh registry init` founds it", field="log")
            begin = [wire.put(keys.meta, keys.meta_value)]
            try:
                await self._client.write(wire.txn(begin, compare=[wire.absent(keys.prefix, keys.end)]))
            except log.UnknownOutcome as open_end:  # either is well: look again
                raise Unavailable("etcd", open_end.message) from open_end
            answer = await self._client.read(wire.txn(look))
            meta = answer.ranges()[0]
        keys.check_meta(meta.kvs[0] if meta.kvs else None)
        return answer.header.revision

    async def _check_all(self, at: int) -> None:
        """Every key under the prefix, as of revision ``at``, is part of one sound log.  Raises Integrity, Compacted."""
        keys = self._keys
        others = [kv async for kv in self._pages(keys.prefix, keys.log, at, PAGE_KEYS)]
        entries = [
            (kv.mod_revision, keys.read_entry(kv))
            async for kv in self._pages(keys.log, wire.end_of(keys.log), at, PAGE_ENTRIES)
        ]
        others += [kv async for kv in self._pages(wire.end_of(keys.log), keys.end, at, PAGE_KEYS)]
        rows, revisions = numbered(entries, after=0)
        index, heads = log.check_stored(rows, mesh=keys.mesh)
        counter = next(((kv.version, kv.mod_revision) for kv in others if kv.key == keys.index), (0, 0))
        if counter != (index, revisions[-1] if revisions else 0):
            raise Integrity(
                "broken-log", f"the entries make {index} commits, the counter says {counter}", field="index"
            )
        stored = dict(keys.read_head(kv) for kv in others if kv.key.startswith(keys.heads))
        if stored != heads:
            raise Integrity("broken-log", "the heads are not those of the entries", field="heads")
        keys.check_commands([kv for kv in others if kv.key.startswith(keys.commands)], entries)
        for kv in others:
            if not kv.key.startswith((keys.heads, keys.commands)) and kv.key not in (keys.meta, keys.index):
                raise Integrity("broken-log", f"{kv.key[:256]!r} is no part of a log", field="key")
        self._learn(rows, revisions, heads)
