"""What one Core backs up for its residency domain: wrapped keys of the domain's tenants, and the states that name them.

A tenant of another domain is not in it, whatever the region holds.  Blobs are what the control log names by digest:
sovereign bindings (L2) and L2 wraps (L3), neither of which opens without the customer's L1.  What a region wraps under
its own IVK, and its seal, are not in it: a region makes these anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from keymesh.app.backup_gather import Heads, runs_of
from keymesh.app.backup_keeper import BackupKeeper
from keymesh.app.backup_wiring import make_keeper
from keymesh.app.backup_writer import Position, Totals
from keymesh.control.backup_chunks import CHUNK_TARGET_BYTES, Item
from keymesh.control.backup_manifest import BLOBS, STATES, node_origin
from keymesh.control.rows import KeyRow, PolicyRow, RegionRow, Rows, get
from keymesh.control.state import NamespaceState
from keymesh.core.keystore import KeyStore
from keymesh.crypto.dsse import Ed25519Signer
from keymesh.crypto.wrap import digest as digest_of
from keymesh.model.errors import Integrity, Refused, Unavailable
from keymesh.model.ids import MESH_NAMESPACE, Digest
from keymesh.model.states import KeyState
from keymesh.orbital.wire import Codec

if TYPE_CHECKING:
    from keymesh.app.core_app import CoreProcess

STATES_CODEC: Final = Codec((NamespaceState,))
USABLE: Final = frozenset({KeyState.PRE_ACTIVE.value, KeyState.ACTIVE.value, KeyState.DEACTIVATED.value})
"""States in which a version may still open something: its blob must be in the backup."""

Blob = tuple[str, str]
"""(tenant, digest)."""


def wanted_blobs(rows: Rows) -> frozenset[str]:
    """Digests of the blobs that a tenant's ``rows`` name, of versions that may still open something."""
    found = (get(rows, name, KeyRow) for name in rows if name.startswith("key/"))
    return frozenset(row.digest for row in found if row is not None and row.state in USABLE)


@dataclass(slots=True)
class _Mark:
    heads: Heads = field(default_factory=Heads)
    blobs: set[Blob] = field(default_factory=set)
    missing: set[Blob] = field(default_factory=set)
    epoch: int = 0

    def copy(self) -> _Mark:
        return _Mark(self.heads.copy(), set(self.blobs), set(self.missing), self.epoch)


class DomainSource:
    """``states`` gives what the node has applied, the mesh among it; ``fetch`` asks the tenant's other regions."""

    def __init__(
        self,
        *,
        domain: str,
        region: str,
        states: Callable[[], Mapping[str, NamespaceState]],
        store: KeyStore,
        fetch: Callable[[str, str], Awaitable[bytes]],
    ) -> None:
        self._domain, self._region = domain, region
        self._states, self._store, self._fetch = states, store, fetch
        self._kept: tuple[Digest, _Mark] | None = None
        self._given = _Mark()

    def knows(self, after: Position) -> bool:
        """What earlier lives gave is not known: begin with a full one."""
        return self._kept is not None and self._kept[0] == after.hash

    def totals(self) -> Totals:
        mark = self._given
        return Totals(
            epoch=mark.epoch,
            index=0,
            entries=0,
            namespaces=len(mark.heads),
            blobs=len(mark.blobs),
            missing=len(mark.missing),
            heads_root=mark.heads.root,
        )

    def kept(self, position: Position) -> None:
        self._kept = (position.hash, self._given)

    async def pieces(self, after: Position | None) -> AsyncIterator[tuple[str, Sequence[Item]]]:
        """States first, the mesh's before all; then the wrapped keys that they name and that were not given yet."""
        mark = self._given = _Mark() if after is None or self._kept is None else self._kept[1].copy()
        states = self._ours()
        mark.epoch = states[MESH_NAMESPACE].head.entry.epoch
        changed = [name for name, state in states.items() if mark.heads.get(name) != state.leaf]
        gone = sorted(mark.heads.names - states.keys())
        for name in changed:
            mark.heads.put(name, states[name].leaf)
        for name in gone:
            mark.heads.drop(name)
        await mark.heads.settle()
        async for piece in runs_of(_state_items(states, changed, gone)):
            yield STATES, piece
        wanted = {blob for blob in mark.missing if blob[0] in states}
        mark.missing = set()
        run: list[Item] = []
        size = 0
        for tenant in sorted({*changed, *(tenant for tenant, _ in wanted)} - {MESH_NAMESPACE}):
            names = {(tenant, digest) for digest in wanted_blobs(states[tenant].rows)}
            for _, digest in sorted(names - mark.blobs):
                blob = await self._blob(tenant, digest)
                if blob is None:
                    mark.missing.add((tenant, digest))
                    continue
                mark.blobs.add((tenant, digest))
                run.append((tenant.encode(), digest.encode(), blob))
                size += len(blob)
                if size >= CHUNK_TARGET_BYTES:
                    yield BLOBS, run
                    run, size = [], 0
            await asyncio.sleep(0)
        if run:
            yield BLOBS, run

    def _ours(self) -> dict[str, NamespaceState]:
        """What may be in this store.  Raises Integrity where the store is another domain's: then nothing may."""
        held = self._states()
        if MESH_NAMESPACE not in held:
            raise Unavailable("booting", "this node has no mesh state yet")
        region = get(held[MESH_NAMESPACE].rows, f"region/{self._region}", RegionRow)
        if region is None or region.domain != self._domain:
            raise Integrity("foreign-domain", f"{self._region} is not of domain {self._domain}", field="backup.domain")
        return {name: state for name, state in sorted(held.items()) if self._is_ours(name, state)}

    def _is_ours(self, name: str, state: NamespaceState) -> bool:
        if name == MESH_NAMESPACE:
            return True
        policy = get(state.rows, "policy", PolicyRow)
        return policy is not None and policy.domain == self._domain

    async def _blob(self, tenant: str, digest: str) -> bytes | None:
        """From this node's stores, else from another allowed region; None where nobody answers with it."""
        blob = await self._store.get_blob(tenant, digest)
        if blob is None or digest_of(blob) != digest:
            held = [k.blob for k in await self._store.stored_keys(tenant) if k.digest == digest]
            blob = next((b for b in held if digest_of(b) == digest), None)
        if blob is not None:
            return blob
        try:
            return await self._fetch(tenant, digest)
        except (Unavailable, Refused):  # nobody answers with it, or the tenant has just left
            return None


def _state_items(states: Mapping[str, NamespaceState], changed: Iterable[str], gone: Iterable[str]) -> Iterable[Item]:
    """The mesh first, for the others are judged by it."""
    for name in sorted(changed, key=lambda n: (n != MESH_NAMESPACE, n)):
        yield name.encode(), STATES_CODEC.encode(states[name])
    for name in gone:
        yield name.encode(), b""


def core_keeper(core: CoreProcess, signer: Ed25519Signer) -> BackupKeeper | None:
    """A Core's, for its own residency domain; None where it is not configured.  Raises Refused for the Registry's
    section; that the domain is the region's own is seen once the mesh is known."""
    config = core.config.backup
    if config is None:
        return None
    if not config.domain:
        raise Refused.bad_field("backup.domain", "a Core's store is for its region's residency domain")

    def states() -> Mapping[str, NamespaceState]:
        held = {name: h.applied for name, h in core.shell.state.tenants.items() if h.applied is not None}
        mesh = core.shell.state.mesh.applied
        return held if mesh is None else {**held, MESH_NAMESPACE: mesh}

    source = DomainSource(
        domain=config.domain, region=core.region, states=states, store=core.store, fetch=core.keys.peers.fetch
    )
    own = {signer.key_id: signer.public_key}
    return make_keeper(
        config,
        source,
        mesh=core.config.mesh,
        origin=node_origin(core.region, core.node),
        signer=signer,
        keys=lambda: own,
        directory=core.directory,
    )
