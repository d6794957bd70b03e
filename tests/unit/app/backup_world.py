"""A small mesh with backups to test with: its log in memory, one Registry's line and any node's, directories as stores.

``sabotage`` makes what an enemy with write access to a store, or with keys that are not enough, would put there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from msgspec import structs
from tests.unit.control.world import DOMAIN, MESH, Mesh

from keymesh.adapters.backup_directory import DirectoryStore
from keymesh.adapters.memory_log import MemoryControlLog
from keymesh.adapters.sqlite_keystore import SqliteKeyStore
from keymesh.adapters.system import SystemEntropy
from keymesh.app.backup_domain import DomainSource
from keymesh.app.backup_keeper import BackupKeeper
from keymesh.app.backup_registry import RegistrySource
from keymesh.app.backup_verify import Opener, Report, verify_domain, verify_registry
from keymesh.app.backup_writer import BackupWriter
from keymesh.control import backup_manifest as bm
from keymesh.control.backup_log import ReplayedLog
from keymesh.control.backup_manifest import Manifest
from keymesh.control.backup_store import BackupStore
from keymesh.control.rows import KeyRow, get
from keymesh.control.signing import DsseSuite, VerifyOnly
from keymesh.control.state import NamespaceState
from keymesh.core.keystore import NEWEST_SCHEMA, StoreIdentity
from keymesh.crypto.dsse import Ed25519Signer
from keymesh.crypto.recipients import parse_recipient
from keymesh.model.errors import Unavailable
from keymesh.model.ids import MESH_NAMESPACE
from keymesh.registry.records import KillRecord

NOW = 1_800_000_000_000
OFFICER = X25519PrivateKey.from_private_bytes(hashlib.sha256(b"officer").digest())
STRANGER = X25519PrivateKey.from_private_bytes(hashlib.sha256(b"stranger").digest())


def signer_of(name: str) -> Ed25519Signer:
    """As ``world.real_key`` makes it."""
    return Ed25519Signer.from_seed(hashlib.sha256(name.encode()).digest())


def blob_of(tenant: str, key: str, version: int) -> bytes:
    """What ``world.Mesh.key_version`` gives the digest of."""
    return f"blob {tenant}/{key}/{version}".encode()


class World:
    """``mesh`` makes entries, ``sync`` puts them into the log, ``registry`` and ``node`` give keepers."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.mesh = Mesh(real=True)
        self.log = MemoryControlLog(MESH)
        self.now = NOW
        self.kills: list[KillRecord] = []
        self.verified = 2**62
        self.held: dict[str, dict[str, NamespaceState]] = {}
        self.blobs: dict[str, SqliteKeyStore] = {}
        self._appended: dict[str, int] = {}
        self._lives = 0

    async def sync(self) -> int:
        """Entries that are not in the log yet, one commit each; the index."""
        index = (await self.log.heads())[0]
        for name, states in sorted(self.mesh.history.items(), key=lambda item: item[0] != MESH_NAMESPACE):
            for state in states[self._appended.get(name, 0) :]:
                index = await self.log.append([state.head])
            self._appended[name] = len(states)
        return index

    def store(self, domain: str = "") -> DirectoryStore:
        return DirectoryStore(self.root / (domain or "registry"))

    def writer(
        self,
        store: BackupStore,
        *,
        origin: str = bm.REGISTRY_ORIGIN,
        domain: str = "",
        signer: str = "registry",
        memory: str = "memory",
        mesh: str = MESH,
        recipient: X25519PrivateKey = OFFICER,
    ) -> BackupWriter:
        key = signer_of(signer)
        return BackupWriter(
            store,
            mesh=mesh,
            origin=origin,
            domain=domain,
            recipients=[parse_recipient(recipient.public_key().public_bytes_raw().hex())],
            signer=key,
            keys=lambda: {key.key_id: key.public_key},
            entropy=SystemEntropy(),
            now_ms=lambda: self.now,
            memory=self.root / f"{memory}-{origin}.json",
        )

    def registry(
        self, store: BackupStore | None = None, *, full_every_s: float = 3600, call_max_s: float = 10, **named: Any
    ) -> BackupKeeper:
        """A life of the Registry's line."""
        source = RegistrySource(
            self.log,
            verified=lambda: self.verified,
            kills=lambda: list(self.kills),
            receipts=self.root / "receipts.jsonl",
            origin=f"{MESH}/registry/r1",
        )
        writer = self.writer(store or self.store(), **named)
        return BackupKeeper(
            writer, source, interval_s=0.01, full_every_s=full_every_s, now_ms=lambda: self.now, call_max_s=call_max_s
        )

    def node(
        self,
        region: str,
        *,
        store: BackupStore | None = None,
        domain: str | None = None,
        fetch: Callable[[str, str], Any] | None = None,
    ) -> BackupKeeper:
        """A life of a node's line; its region holds what ``give`` gave it."""
        domain = DOMAIN[region] if domain is None else domain
        source = DomainSource(
            domain=domain,
            region=region,
            states=lambda: self.held.get(region, {}),
            store=self.keystore(region),
            fetch=fetch or _nobody,
        )
        writer = self.writer(store or self.store(domain), origin=f"{region}.n1", domain=domain, signer=f"node-{region}")
        return BackupKeeper(writer, source, interval_s=0.01, full_every_s=3600, now_ms=lambda: self.now)

    def keystore(self, region: str) -> SqliteKeyStore:
        if region not in self.blobs:
            self.blobs[region] = SqliteKeyStore(self.root / f"{region}.db")
        return self.blobs[region]

    async def keep(self, region: str, tenant: str, digest: str, blob: bytes) -> None:
        """Into the region's blob store."""
        store = self.keystore(region)
        await store.found(StoreIdentity(store_id="ab" * 16, region=region, schema=NEWEST_SCHEMA))
        await store.put_blob(tenant, digest, blob)

    async def give(self, region: str, *tenants: str, blobs: bool = True) -> None:
        """The newest states, and the wrapped keys that they name."""
        names = (MESH_NAMESPACE, *tenants)
        self.held[region] = {name: self.mesh.states[name] for name in names}
        for tenant in tenants if blobs else ():
            for name in self.mesh.states[tenant].rows:
                row = get(self.mesh.states[tenant].rows, name, KeyRow) if name.startswith("key/") else None
                if row is not None:
                    key, _, version = name.removeprefix("key/").rpartition("/")
                    await self.keep(region, tenant, row.digest, blob_of(tenant, key, int(version)))

    def opener(self, private: X25519PrivateKey = OFFICER) -> Opener:
        return Opener(self.mesh.pins, DsseSuite(VerifyOnly()), private, self.now)

    def verify(self, *domains: str, private: X25519PrivateKey = OFFICER) -> tuple[list[Report], ReplayedLog]:
        report, replayed = verify_registry(self.store(), self.opener(private))
        reports = [report]
        for domain in domains:
            reports += verify_domain([self.store(domain)], self.opener(private), replayed)
        return reports, replayed

    async def close(self) -> None:
        for store in self.blobs.values():
            await store.close()


async def _nobody(tenant: str, digest: str) -> bytes:
    raise Unavailable("no-blob", "nobody has it")


# --- sabotage --------------------------------------------------------------------------------------------------------


def path_of(store: Path, name: str) -> Path:
    return store / name


def replace_object(path: Path, content: bytes) -> None:
    """As whoever owns the directory could, mode bits and all."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o400)


def manifest_of(store: Path, seq: int, origin: str = bm.REGISTRY_ORIGIN) -> Manifest:
    return bm.parse_manifest((store / bm.manifest_name(origin, seq)).read_bytes())[0]


def forge(store: Path, seq: int, *, signer: str = "registry", origin: str = bm.REGISTRY_ORIGIN, **fields: Any) -> None:
    """The manifest with other fields, signed by ``signer``."""
    changed = structs.replace(manifest_of(store, seq, origin), **fields)
    replace_object(store / bm.manifest_name(origin, seq), bm.sign_manifest(changed, signer_of(signer)))


async def raw_backup(
    writer: BackupWriter, chunks: Iterable[tuple[str, list[tuple[bytes, ...]]]], totals: Mapping[str, Any]
) -> None:
    """A backup of anything at all, by a writer that has the signing key and tells what it likes."""
    from keymesh.app.backup_writer import Totals

    draft = writer.begin(writer.look(), full=True)
    for kind, items in chunks:
        draft.add(kind, items)
    draft.commit(Totals(**totals))
