"""One line of backups in one store: where it stands, and the next manifest of it.

Everything in here blocks on the store; the keeper calls it from a thread of its own.  What was written is remembered
beside the process, so that a store that goes back, forks or was emptied is noticed and not written on.

1. Chunks first, each durable before the next; a crash leaves chunks that no manifest names, which harm nobody.
2. Then the manifest, under the next number, if nobody has that.  Of two who try, one loses and begins again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from msgspec import Struct

from keymesh.adapters.files import write_file
from keymesh.control import backup_manifest as bm
from keymesh.control.backup_chunks import ChunkSealer, Item
from keymesh.control.backup_manifest import Manifest
from keymesh.control.backup_store import BackupStore
from keymesh.control.purge_messages import BackupLine
from keymesh.crypto.dsse import PublicKey, Signer
from keymesh.crypto.recipients import SEAL_ENTROPY_BYTES
from keymesh.crypto.xaes import KEY_BYTES, NONCE_BYTES
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, KeymeshError, Unavailable
from keymesh.model.ids import ZERO_DIGEST, Digest, KeyId
from keymesh.model.time import Entropy

REMEMBERED_MAX_BYTES: Final = 4 * 1024


class Raced(KeymeshError):
    """Another writer of the line was first: look again, begin again."""


class Remembered(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The newest manifest that this process has written or seen in the store of that address."""

    address: str
    seq: int
    hash: Digest


@dataclass(frozen=True, slots=True)
class Position:
    """The newest manifest of a line, and when the full one of its set was made (Unix ms)."""

    manifest: Manifest
    hash: Digest
    full_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What a source says of everything that it gave, as the manifest has it."""

    epoch: int
    index: int
    entries: int
    namespaces: int
    blobs: int
    missing: int
    heads_root: Digest


class BackupWriter:
    """``keys`` gives those whose signature on this line's manifests counts; ``memory``: the file of ``Remembered``."""

    def __init__(
        self,
        store: BackupStore,
        *,
        mesh: str,
        origin: str,
        domain: str,
        recipients: Sequence[bytes],
        signer: Signer,
        keys: Callable[[], Mapping[KeyId, PublicKey]],
        entropy: Entropy,
        now_ms: Callable[[], int],
        memory: Path,
    ) -> None:
        self._store = store
        self._mesh, self._origin, self._domain = mesh, bm.check_origin(origin), domain
        self._recipients, self._signer, self._keys = tuple(recipients), signer, keys
        self._entropy, self._now_ms, self._memory = entropy, now_ms, memory
        self._position: Position | None = None

    @property
    def address(self) -> str:
        return self._store.address

    @property
    def position(self) -> Position | None:
        """As of the last look."""
        return self._position

    def lines(self) -> tuple[BackupLine, ...]:
        """Every line in the store, this one or another's: first and last manifest, and until when the last is kept."""
        found: dict[str, list[int]] = {}
        for name in self._store.names("manifests/"):
            origin, seq = bm.split_manifest_name(name)
            found.setdefault(origin, []).append(seq)
        out = []
        for origin, seqs in sorted(found.items()):
            name = bm.manifest_name(origin, max(seqs))
            raw = self._store.get(name, max_bytes=bm.ENVELOPE_MAX_BYTES)
            if raw is None:
                raise Integrity("missing-object", f"{name} is gone from the backup store", field="name")
            out.append(
                BackupLine(
                    store=self._store.address,
                    origin=origin,
                    first=min(seqs),
                    last=max(seqs),
                    digest=bm.manifest_hash(bm.parse_manifest(raw)[1]),
                    kept_until=self._store.kept_until(name),
                )
            )
        return tuple(out)

    # --- where the line stands ---------------------------------------------------------------------------------------

    def look(self) -> Position | None:
        """The newest manifest, once it is known to continue what this process knows; None: nothing was ever written.

        1. The store is this mesh's and this domain's (an unclaimed one becomes so).  2. What was there last is there.
        3. Each one since is signed, and follows.
        Raises Integrity: ``foreign-store``, ``rolled-back``, and what ``backup_manifest`` says; Unavailable.
        """
        self._claim()
        known = self._position
        prefix = bm.manifest_prefix(self._origin)
        if known is None:
            names = self._store.names(prefix)
            self._check_remembered()
            if names:
                self._take(self._newest(names[-1]))
            return self._position
        last = bm.manifest_name(self._origin, known.manifest.seq)
        self._check_there(last, known.hash)
        for name in self._store.names(prefix, after=last):
            known = self._next(name, known)
            self._take(known)
        return known

    def _claim(self) -> None:
        marker = bm.Marker(format=bm.FORMAT, mesh=self._mesh, domain=self._domain)
        wanted = strict_json.dumps(marker)
        if self._remembered() is None:  # never written here: a store that was is not made anew where it is away
            self._store.put(bm.MARKER_NAME, wanted)
        found = self._store.get(bm.MARKER_NAME, max_bytes=bm.MARKER_MAX_BYTES)
        if found is None:
            raise Integrity("rolled-back", "the backup store was emptied", field="marker")
        if found != wanted:
            raise Integrity("foreign-store", "the backup store is another mesh's or another domain's", field="domain")

    def _read(self, name: str) -> tuple[Manifest, Digest]:
        raw = self._store.get(name, max_bytes=bm.ENVELOPE_MAX_BYTES)
        if raw is None:
            raise Integrity("missing-object", f"{name} is gone from the backup store", field="name")
        manifest, envelope = bm.parse_manifest(raw)
        bm.check_signed_by(envelope, self._keys())
        if (manifest.mesh, manifest.domain) != (self._mesh, self._domain):
            raise Integrity("foreign-mesh", f"{name} is of another mesh or domain", field="mesh")
        if (manifest.origin, manifest.seq) != bm.split_manifest_name(name):
            raise Integrity("manifest-order", f"another manifest lies at {name}", field="seq")
        return manifest, bm.manifest_hash(envelope)

    def _newest(self, name: str) -> Position:
        manifest, digest = self._read(name)
        full_at = manifest.created_at
        if not manifest.full:
            full_at = self._read(bm.manifest_name(self._origin, manifest.base))[0].created_at
        return Position(manifest, digest, full_at)

    def _next(self, name: str, known: Position) -> Position:
        manifest, digest = self._read(name)
        bm.check_follows(manifest, known.manifest, known.hash)
        return Position(manifest, digest, manifest.created_at if manifest.full else known.full_at)

    # --- what is remembered ------------------------------------------------------------------------------------------

    def _remembered(self) -> Remembered | None:
        """Of this store; None where nothing was written to it, or another was chosen since."""
        try:
            raw = self._memory.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as bad:
            raise Unavailable("storage", f"what was backed up cannot be read: {bad.strerror}") from bad
        last = strict_json.decode(raw, Remembered, max_bytes=REMEMBERED_MAX_BYTES)
        return last if last.address == self._store.address else None

    def _check_remembered(self) -> None:
        last = self._remembered()
        if last is None:
            return
        self._check_there(bm.manifest_name(self._origin, last.seq), last.hash)

    def _check_there(self, name: str, digest: Digest) -> None:
        """Raises Integrity where what was there last is gone, or is another one."""
        raw = self._store.get(name, max_bytes=bm.ENVELOPE_MAX_BYTES)
        if raw is None:
            raise Integrity("rolled-back", f"{name} was written and is gone from the backup store", field="seq")
        if bm.manifest_hash(bm.parse_manifest(raw)[1]) != digest:
            raise Integrity("manifest-fork", f"{name} is not what was written", field="prev")

    def _take(self, position: Position) -> Position:
        """Known from here on, in later lives too; where it cannot be remembered it is looked for again."""
        last = Remembered(address=self._store.address, seq=position.manifest.seq, hash=position.hash)
        try:
            write_file(self._memory, strict_json.dumps(last))
        except OSError as bad:
            raise Unavailable("storage", f"what was backed up cannot be remembered: {bad.strerror}") from bad
        self._position = position
        return position

    # --- the next one ------------------------------------------------------------------------------------------------

    def begin(self, position: Position | None, *, full: bool) -> Draft:
        """The manifest after ``position``.  A full one is needed where there is none yet."""
        return Draft(self, position, full=full or position is None)

    def put_chunk(self, name: str, content: bytes) -> None:
        self._store.put(name, content)

    def finish(self, draft: Draft, manifest: Manifest) -> Position:
        """Put the manifest under its number.  Raises Raced where somebody was first."""
        raw = bm.sign_manifest(manifest, self._signer)
        if not self._store.put(bm.manifest_name(self._origin, manifest.seq), raw):
            raise Raced("raced", "another writer was first")
        before = draft.position
        full_at = manifest.created_at if manifest.full or before is None else before.full_at
        return self._take(Position(manifest, bm.manifest_hash(bm.parse_manifest(raw)[1]), full_at))

    def sealer(self, seq: int) -> ChunkSealer:
        key = bytearray(self._entropy.token(KEY_BYTES))
        return ChunkSealer(mesh=self._mesh, origin=self._origin, seq=seq, key=key)

    def manifest(self, draft: Draft, totals: Totals) -> Manifest:
        """What is signed."""
        before = draft.position
        stanzas = draft.sealer.stanzas(
            self._recipients, entropy=self._entropy.token(SEAL_ENTROPY_BYTES * len(self._recipients))
        )
        return Manifest(
            format=bm.FORMAT,
            mesh=self._mesh,
            origin=self._origin,
            domain=self._domain,
            seq=draft.seq,
            prev=ZERO_DIGEST if before is None else before.hash,
            full=draft.full,
            base=draft.seq if draft.full or before is None else before.manifest.base,
            epoch=totals.epoch,
            after_index=0 if draft.full or before is None else before.manifest.index,
            index=totals.index,
            entries=totals.entries,
            namespaces=totals.namespaces,
            blobs=totals.blobs,
            missing=totals.missing,
            heads_root=totals.heads_root,
            created_at=self._now_ms(),
            kid=draft.sealer.kid,
            recipients=stanzas,
            chunks=tuple(draft.sealer.refs),
        )

    def nonce(self) -> bytes:
        return self._entropy.token(NONCE_BYTES)


class Draft:
    """A backup that is being written; its key is gone once it is committed or dropped."""

    def __init__(self, writer: BackupWriter, position: Position | None, *, full: bool) -> None:
        self._writer, self.position, self.full = writer, position, full
        self.seq = 1 if position is None else position.manifest.seq + 1
        self.sealer = writer.sealer(self.seq)

    def add(self, kind: str, items: Sequence[Item]) -> None:
        """One chunk more, durable when this returns."""
        ref, sealed = self.sealer.seal(kind, items, nonce=self._writer.nonce())
        self._writer.put_chunk(bm.chunk_name(ref.sha256), sealed)

    def commit(self, totals: Totals) -> Position:
        """Raises Raced, Unavailable."""
        try:
            return self._writer.finish(self, self._writer.manifest(self, totals))
        finally:
            self.drop()

    def drop(self) -> None:
        self.sealer.forget()
