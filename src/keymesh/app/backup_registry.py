"""What the Registry backs up: the control log, its kill-switch records and receipts.

The projection is not in it: it follows from the log, and is made anew from it.  The log is read in small pieces with
pauses, so that an append of Lane 0 waits for none of them for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keymesh.app.backup_gather import Heads, runs_of
from keymesh.app.backup_keeper import BackupKeeper
from keymesh.app.backup_wiring import make_keeper
from keymesh.app.backup_writer import Position, Totals
from keymesh.control.backup_chunks import CHUNK_TARGET_BYTES, Item
from keymesh.control.backup_manifest import LOG, RECEIPTS, RECORDS, REGISTRY_ORIGIN
from keymesh.control.entry import SignedEntry, leaf_of
from keymesh.control.log import ControlLog
from keymesh.control.rows import DelegationRow, get
from keymesh.control.signing import public_keys
from keymesh.control.trust import REGISTRY_ROLE
from keymesh.crypto.dsse import ENVELOPE_MAX_BYTES, Ed25519Signer, PublicKey, envelope_to_json
from keymesh.model.errors import Integrity, Refused, Unavailable
from keymesh.model.ids import MESH_NAMESPACE, Digest, KeyId
from keymesh.orbital.wire import Codec
from keymesh.registry.records import RECORD_TYPES, KillRecord, kill_name

if TYPE_CHECKING:
    from keymesh.app.registry_app import RegistryProcess

READ_ENTRIES: Final = 64
PAUSE_S: Final = 0.01
RECEIPTS_MAX_BYTES: Final = 4 * 1024 * 1024


@dataclass(slots=True)
class _Mark:
    """How far a backup goes.  ``base``: number of the full backup that it goes on from."""

    base: int = 0
    index: int = 0
    entries: int = 0
    epoch: int = 0
    heads: Heads = field(default_factory=Heads)
    kills: dict[str, KillRecord] = field(default_factory=dict)
    receipt_bytes: int = 0

    def copy(self) -> _Mark:
        return replace(self, heads=self.heads.copy(), kills=dict(self.kills))

    def take(self, index: int, signed: SignedEntry) -> None:
        self.index, self.entries = index, self.entries + 1
        self.epoch = max(self.epoch, signed.entry.epoch)
        self.heads.put(signed.entry.namespace, leaf_of(signed))


class RegistrySource:
    """``kills`` gives the kill-switch records as they stand; ``receipts``: this replica's file, of ``origin``.

    ``verified``: index up to which the machine has verified the log; nothing beyond it is backed up.
    """

    def __init__(
        self,
        log: ControlLog,
        *,
        verified: Callable[[], int],
        kills: Callable[[], Iterable[KillRecord]],
        receipts: Path,
        origin: str,
    ) -> None:
        self._log, self._verified, self._kills = log, verified, kills
        self._receipts, self._origin = receipts, origin
        self._codec = Codec(RECORD_TYPES)
        self._kept: tuple[Digest, _Mark] | None = None
        self._given = _Mark()

    def knows(self, after: Position) -> bool:
        """Always: the log is read again where another replica, or an earlier life, wrote that backup."""
        return True

    def totals(self) -> Totals:
        mark = self._given
        return Totals(
            epoch=mark.epoch,
            index=mark.index,
            entries=mark.entries,
            namespaces=len(mark.heads),
            blobs=0,
            missing=0,
            heads_root=mark.heads.root,
        )

    def kept(self, position: Position) -> None:
        self._given.base = position.manifest.base
        self._kept = (position.hash, self._given)

    async def pieces(self, after: Position | None) -> AsyncIterator[tuple[str, Sequence[Item]]]:
        mark = self._given = _Mark() if after is None else await self._mark_of(after)
        run: list[Item] = []
        size = 0
        async for index, signed in self._entries(mark):
            raw = envelope_to_json(signed.envelope)
            run.append((index.to_bytes(8, "big"), raw))
            size += len(raw)
            if size >= CHUNK_TARGET_BYTES:
                yield LOG, run
                run, size = [], 0
        if run:
            yield LOG, run
        await mark.heads.settle()
        async for piece in runs_of(self._new_kills(mark)):
            yield RECORDS, piece
        async for piece in runs_of(self._new_receipts(mark)):
            yield RECEIPTS, piece

    async def _entries(self, mark: _Mark, until: int | None = None) -> AsyncIterator[tuple[int, SignedEntry]]:
        """Entries after ``mark``, which moves along, up to ``until`` or where the log is now."""
        while True:
            index, rows = await self._log.read(mark.index, READ_ENTRIES)
            until = min(index, self._verified()) if until is None else until
            for at, signed in rows:
                if at > until:
                    return
                mark.take(at, signed)
                yield at, signed
            if mark.index >= until or not rows:
                return
            await asyncio.sleep(PAUSE_S)

    async def _mark_of(self, after: Position) -> _Mark:
        """How far ``after`` goes.  Another replica's is reached by reading on from what this one gave to the same set,
        else from the beginning.  Raises Integrity where the log is not one that it can have been made of."""
        said = after.manifest
        mark = _Mark(base=said.base)
        if self._kept is not None:
            digest, kept = self._kept
            if digest == after.hash:
                return kept.copy()
            if kept.base == said.base and kept.index <= said.index:
                mark = kept.copy()
        async for _ in self._entries(mark, said.index):
            pass
        if mark.index < said.index:
            raise Integrity("log-behind-backup", f"the log is at {mark.index}, its backup at {said.index}")
        await mark.heads.settle()
        if (mark.entries, mark.heads.root) != (said.entries, said.heads_root):
            raise Integrity("fork", "the log is not the one that was backed up", field="heads_root")
        return mark

    def _new_kills(self, mark: _Mark) -> Iterator[Item]:
        """Read after the log: a record that came in between is about an entry of the next backup, and waits for it."""
        for record in self._kills():
            name = kill_name(record.command_id, record.namespace)
            head = mark.heads.get(record.namespace)
            if head is not None and record.seq <= head.seq and mark.kills.get(name) is not record:
                mark.kills[name] = record
                yield name.encode(), self._codec.encode(record)

    def _new_receipts(self, mark: _Mark) -> Iterator[Item]:
        """Whole lines that were not given yet; a few MiB at a time, the rest at the next turn."""
        try:
            with self._receipts.open("rb") as file:
                file.seek(mark.receipt_bytes)
                begun = mark.receipt_bytes
                while mark.receipt_bytes - begun < RECEIPTS_MAX_BYTES:
                    line = file.readline(ENVELOPE_MAX_BYTES)
                    if not line.endswith(b"\n"):
                        return  # being written, or the end
                    mark.receipt_bytes += len(line)
                    yield self._origin.encode(), line.rstrip(b"\n")
        except FileNotFoundError:
            return
        except OSError as bad:
            raise Unavailable("storage", f"receipts cannot be read: {bad.strerror}") from bad


def registry_keeper(process: RegistryProcess, signer: Ed25519Signer) -> BackupKeeper | None:
    """The Registry's; None where it is not configured.  Raises Refused for a section that is a Core's."""
    config, directory = process.config.backup, Path(process.config.data_dir)
    if config is None:
        return None
    if config.domain:
        raise Refused.bad_field("backup.domain", "empty for a Registry")
    source = RegistrySource(
        process.log.control,
        verified=lambda: process.shell.state.index,
        kills=lambda: [kill.record for kill in list(process.shell.state.kills.values())],
        receipts=directory / "receipts.jsonl",
        origin=f"{process.config.mesh}/registry/{process.config.node}",
    )

    def keys() -> Mapping[KeyId, PublicKey]:
        """Those of any replica: by the mesh, once it is read."""
        space = process.shell.state.spaces.get(MESH_NAMESPACE)
        row = None if space is None else get(space.rows, f"delegation/{REGISTRY_ROLE}", DelegationRow)
        return {} if row is None else public_keys({KeyId(k): v for k, v in row.keys.items()})

    return make_keeper(
        config,
        source,
        mesh=process.config.mesh,
        origin=REGISTRY_ORIGIN,
        signer=signer,
        keys=keys,
        directory=directory,
    )
