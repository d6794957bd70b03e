"""Two regions' keys over real stores and a customer's real KMS: minted in one, the same in the other."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from tests.servers.catcher import catching
from tests.servers.openbao import CustomerCa, give_l1
from tests.unit.adapters.pki_world import N1, US, World, now

from keymesh.adapters.customer_kms import OwnerClient
from keymesh.adapters.pkcs11_descriptor import Tokens
from keymesh.adapters.sqlite_keystore import SqliteKeyStore
from keymesh.adapters.system import SystemEntropy
from keymesh.adapters.tls import Credentials
from keymesh.app import customer_kms
from keymesh.app.blob_peers import BlobPeers
from keymesh.app.core_keys import CoreKeys, outcome_of
from keymesh.app.customer_kms_files import prepare
from keymesh.app.ivk_book import FRESH_S, IvkBook
from keymesh.app.peer_link import PeerLink
from keymesh.control.rows import BindingRow, KeyRow, encode
from keymesh.core.events import (
    IvkRotated,
    KeyMinted,
    KeyRef,
    KeyRewrapped,
    KeysLoaded,
    L1Outcome,
    L1Probed,
    LoadKeys,
    MintFailed,
    MintKey,
    ProbeL1,
    RewrapFailed,
    RewrapKey,
    RotateIvk,
)
from keymesh.core.ivk import WRAPS_RESERVED
from keymesh.core.keyring import Keyring
from keymesh.core.keystore import NEWEST_SCHEMA, StoredKey, StoreIdentity
from keymesh.core.l1 import L1Unreachable
from keymesh.core.l1_budget import CALLS_PER_S
from keymesh.crypto import wrap
from keymesh.crypto.pages import KeyPages
from keymesh.ledger.maptree import root_of
from keymesh.model.errors import Integrity, Refused, Unavailable
from keymesh.model.states import IvkState

TENANT = "acme"


@dataclass(frozen=True)
class Prepared:
    """Certificates and a customer's KMS, made once: each test takes a copy."""

    path: Path


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    path, world = tmp_path_factory.mktemp("prepared"), World()
    for region, uri in (("eu", N1), ("us", US)):
        world.write(path / f"{region}.pem", uri)
    prepare(path / "kms", allow_ca=(world.root_pem.decode(),))
    return Prepared(path)


@dataclass
class Link:
    """The way to one region's blob store, without the network between: up, down, lying, or refusing."""

    store: SqliteKeyStore
    mode: str = "up"
    asked: list[tuple[str, str]] = field(default_factory=list)

    async def request(
        self, method: str, path: str, body: bytes | None = None, *, content_type: str = "", timeout_s: float = 0
    ) -> tuple[int, bytes]:
        await asyncio.sleep(0)
        self.asked.append((method, path))
        tenant, digest = path.removeprefix("/v1/blobs/").split("/")
        match self.mode:
            case "down":
                raise Unavailable("unreachable", "no connection to the peer")
            case "refuses":
                raise Refused("not-found", "no such tenant here")
            case "opaque":
                raise Integrity.opaque()
        if method == "PUT":
            assert body is not None
            await self.store.put_blob(tenant, digest, body)
            return 204, b""
        blob = await self.store.get_blob(tenant, digest)
        if blob is None:
            raise Refused("not-found", "no such blob here")
        return 200, {"lies": blob[:-1] + bytes([blob[-1] ^ 1]), "floods": blob * 10_000}.get(self.mode, blob)


@dataclass
class Liar:
    """An L1 provider that gives back something else."""

    said: bytes

    async def wrap(self, e: bytes) -> bytes:
        return self.said

    async def unwrap(self, wrapped: bytes) -> bytes:
        return self.said

    async def close(self) -> None:
        pass


class Core:
    """One region: its store, its keyring, its events."""

    def __init__(self, world: Mesh, region: str, identity: Path) -> None:
        self.region = region
        self.store = SqliteKeyStore(world.path / f"{region}.db")
        self.link = Link(self.store)
        self.ring = Keyring(region, KeyPages(allow_unlocked=True), SystemEntropy())
        self.ring.unseal(self.ring.fresh())
        self.events: list[Any] = []
        self.later_s = 0.0
        self.keys = CoreKeys(
            region=region,
            keyring=self.ring,
            store=self.store,
            peers=BlobPeers(
                regions_of=lambda tenant: [r for r in world.allowed if r != region],
                client_of=lambda r: cast(PeerLink, world.cores[r].link),
            ),
            credentials=Credentials(identity),
            tokens=Tokens(world.path),
            entropy=SystemEntropy(),
            now=now,
            feed=self.events.append,
            bindings_of=lambda namespace: world.bindings if namespace in world.tenants else {},
            domain_of=world.domain_of,
        )
        self.keys.cascades.ivks = IvkBook(self.store, lambda: time.monotonic() + self.later_s)

    def forget(self) -> None:
        """As after a restart: nothing of any tenant in memory."""
        self.ring.drop(None)

    async def do(self, work: Awaitable[None]) -> Any:
        """The one event that a piece of work answers with."""
        before = len(self.events)
        await work
        assert len(self.events) == before + 1
        return self.events[-1]

    async def load(self, *refs: KeyRef, tenant: str = TENANT) -> KeysLoaded:
        loaded = await self.do(self.keys.load(LoadKeys(namespace=tenant, keys=refs, bindings=(), correlation_id="c")))
        assert isinstance(loaded, KeysLoaded)
        return loaded

    async def mint(
        self, key: str = "l2", parent: str = "b1", version: int = 1, tenant: str = TENANT
    ) -> KeyMinted | MintFailed:
        asked = MintKey(namespace=tenant, key=key, version=version, parent=parent, correlation_id="c")
        return cast(KeyMinted | MintFailed, await self.do(self.keys.mint(asked)))

    async def probe(self, binding: str = "b1", *, all_replicas: bool = False) -> L1Outcome:
        asked = ProbeL1(namespace=TENANT, binding_id=binding, all_replicas=all_replicas)
        answer = await self.do(self.keys.probe(asked))
        assert isinstance(answer, L1Probed)
        assert (answer.namespace, answer.binding_id, answer.all_replicas) == (TENANT, binding, all_replicas)
        return answer.outcome


class Mesh:
    """Two regions of one residency domain, and a customer's KMS with a replica near each."""

    def __init__(self, path: Path, owner: OwnerClient) -> None:
        self.path, self.owner = path, owner
        self.allowed = ["eu", "us"]
        self.tenants = {TENANT, "cluster"}
        self.bindings: dict[str, BindingRow] = {}
        self.cores: dict[str, Core] = {}
        for region in self.allowed:
            self.cores[region] = Core(self, region, path / f"{region}.pem")
        self.eu, self.us = self.cores["eu"], self.cores["us"]

    def domain_of(self, tenant: str) -> str:
        if tenant not in self.tenants:
            raise Refused("not-found", "no such tenant here", field="tenant")
        return "world"

    async def bind(self, binding: str, key: str) -> None:
        await self.owner.create(key)
        descriptor = msgspec.to_builtins(self.owner.descriptor(key))
        self.bindings[binding] = BindingRow(provider="keymesh-kms", descriptor=descriptor, state="active")


@asynccontextmanager
async def mesh(path: Path, pki: Prepared) -> AsyncIterator[Mesh]:
    shutil.copytree(pki.path, path, dirs_exist_ok=True)
    async with customer_kms.running(path / "kms", {"eu": 0, "us": 0}):
        async with OwnerClient.open(path / "kms") as owner:
            made = Mesh(path, owner)
            await made.bind("b1", "root")
            try:
                for core in made.cores.values():
                    await core.store.found(StoreIdentity(store_id="0" * 32, region=core.region, schema=NEWEST_SCHEMA))
                    assert await core.keys.cascades.open_active(known=0) == 1
                yield made
            finally:
                for core in made.cores.values():
                    await core.keys.close()
                    await core.store.close()


def ref_of(minted: KeyMinted | MintFailed | KeyRewrapped, like: KeyRef | None = None) -> KeyRef:
    if isinstance(minted, KeyRewrapped):
        assert like is not None
        return replace(like, revision=minted.revision, digest=minted.digest, parent=minted.parent)
    assert isinstance(minted, KeyMinted), minted
    return KeyRef(
        namespace=minted.namespace,
        key=minted.key,
        version=minted.version,
        revision=1,
        kid=minted.kid,
        digest=minted.digest,
        parent=minted.parent,
    )


async def chain(core: Core) -> tuple[KeyRef, KeyRef]:
    """An L2 and an L3 under it, minted in ``core``."""
    l2 = ref_of(await core.mint())
    return l2, ref_of(await core.mint("l3/pay", l2.kid))


def bytes_of(core: Core, ref: KeyRef) -> bytes:
    return bytes(core.ring.need(ref.kid).secret.reveal())


def row_of(ref: KeyRef) -> tuple[str, bytes]:
    row = KeyRow(kid=ref.kid, revision=ref.revision, state="active", digest=ref.digest, parent=ref.parent)
    return f"key/{ref.key}/{ref.version}", encode(row)


async def damage(store: SqliteKeyStore, kid: str, **change: Any) -> StoredKey:
    stored = await store.get_key(TENANT, kid)
    assert stored is not None
    changed = replace(stored, **(change or {"blob": stored.blob[:-1] + bytes([stored.blob[-1] ^ 1])}))
    assert await store.drop_key(stored)
    assert await store.put_key(changed, over=None)
    return changed


# --- minting and loading ---------------------------------------------------------------------------------------------


async def test_what_one_region_mints_the_other_loads_alike(tmp_path: Path, pki: Prepared) -> None:
    async with mesh(tmp_path, pki) as m:
        l2, l3 = await chain(m.eu)
        assert {len(bytes_of(m.eu, ref)) for ref in (l2, l3)} == {32}
        for ref in (l2, l3):
            assert await m.us.store.get_blob(TENANT, ref.digest) == await m.eu.store.get_blob(TENANT, ref.digest)
        loaded = await m.us.load(l3, l2)  # in any order: L2s come first
        assert (loaded.loaded, loaded.failed, loaded.l1) == ((l2, l3), (), "ok")
        for ref in (l2, l3):
            assert bytes_of(m.us, ref) == bytes_of(m.eu, ref)
        m.eu.forget()
        again = await m.eu.load(l2, l3)
        assert again.failed == ()
        assert [bytes_of(m.eu, ref) for ref in (l2, l3)] == [bytes_of(m.us, ref) for ref in (l2, l3)]


async def test_nothing_at_rest_holds_a_key(tmp_path: Path, pki: Prepared) -> None:
    async with mesh(tmp_path, pki) as m:
        refs = await chain(m.eu)
        await m.us.load(*refs)
        secrets = [bytes_of(m.eu, ref) for ref in refs]
        for file in tmp_path.rglob("*"):
            raw = file.read_bytes() if file.is_file() else b""
            assert not any(secret in raw or secret.hex().encode() in raw for secret in secrets), file


async def test_a_minted_key_is_reported_with_who_holds_it(tmp_path: Path, pki: Prepared) -> None:
    async with mesh(tmp_path, pki) as m:
        minted = await m.eu.mint()
        assert isinstance(minted, KeyMinted)
        assert minted.holders == ("eu", "us")
        m.allowed = ["eu"]  # a tenant of one region has no second copy to wait for
        alone = await m.eu.mint(version=2)
        assert isinstance(alone, KeyMinted)
        assert alone.holders == ("eu",)
        assert alone.kid != minted.kid


async def test_without_a_second_region_there_is_no_key(tmp_path: Path, pki: Prepared) -> None:
    async with mesh(tmp_path, pki) as m:
        slots = m.eu.ring.pages.slots_in_use
        for m.us.link.mode in ("down", "refuses", "opaque"):
            failed = await m.eu.mint()
            assert isinstance(failed, MintFailed)
            assert failed.reason == "one-copy"
            assert len(m.eu.ring) == 1  # the region's own key
            assert m.eu.ring.pages.slots_in_use == slots  # what was tried is wiped
            assert await m.eu.store.stored_keys() == ()
        m.us.link.mode = "up"
        assert isinstance(await m.eu.mint(), KeyMinted)
        assert len(m.eu.ring) == 2  # and the region's own key


async def test_an_l3_is_not_minted_under_what_is_not_loaded(tmp_path: Path, pki: Prepared) -> None:
    async with mesh(tmp_path, pki) as m:
        failed = await m.eu.mint("l3/pay", "0" * 32)
        assert isinstance(failed, MintFailed)
        assert failed.reason == "not-loaded"
        unknown = await m.eu.mint(parent="b9")
        assert isinstance(unknown, MintFailed)
        assert unknown.reason == "unknown-binding"


async def test_the_loser_of_a_race_is_wiped_everywhere_here(tmp_path: Path, pki: Prepared) -> None:
    async with mesh(tmp_path, pki) as m:
        won, lost = ref_of(await m.us.mint()), ref_of(await m.eu.mint())
        secret = m.eu.ring.need(lost.kid).secret
        await m.eu.keys.wipe_minted(TENANT, lost.kid)
        assert secret.wiped
        assert m.eu.ring.get(lost.kid) is None
        assert await m.eu.store.get_key(lost.namespace, lost.kid) is None
        assert await m.eu.store.get_blob(TENANT, lost.digest) is None
        await m.eu.keys.wipe_minted(TENANT, lost.kid)
        await m.eu.keys.wipe_minted(TENANT, "0" * 32)
        assert (await m.eu.load(won)).loaded == (won,)
        assert bytes_of(m.eu, won) == bytes_of(m.us, won)


async def test_a_store_that_cannot_forget_keeps_no_key_in_memory(tmp_path: Path, pki: Prepared) -> None:
    async with mesh(tmp_path, pki) as m:
        lost = ref_of(await m.eu.mint())
        m.eu.store._db.execute("PRAGMA query_only = ON")
        await m.eu.keys.wipe_minted(TENANT, lost.kid)
        assert m.eu.ring.get(lost.kid) is None
        m.eu.store._db.execute("PRAGMA query_only = OFF")


async def test_a_tenant_named_like_the_regions_own_keys_loses_its_keys_too(tmp_path: Path, pki: Prepared) -> None:
    async with mesh(tmp_path, pki) as m:
        ref = ref_of(await m.eu.mint(tenant="cluster"))
        secret = m.eu.ring.need(ref.kid).secret
        await m.eu.keys.keep_ivks()
        assert not secret.wiped
        m.eu.ring.drop("cluster")
        assert secret.wiped


# --- damage, lies and silence ----------------------------------------------------------------------------------------


async def test_a_key_is_loaded_by_all_three_of_seal_customer_and_kid(tmp_path: Path, pki: Prepared) -> None:
    async with mesh(tmp_path, pki) as m:
        l2, l3 = await chain(m.eu)
        for bad in (
            replace(l2, kid="0" * 32),
            replace(l2, digest="0" * 64),
            replace(l2, parent="b9"),
            replace(l2, namespace="cluster"),
        ):
            m.us.forget()
            answer = await m.us.load(bad, tenant=bad.namespace)
            assert answer.loaded == ()
            assert len(m.us.ring) == 1
        m.us.forget()
        orphan = await m.us.load(l3)
        assert (orphan.failed, orphan.l1) == (((l3, "not-loaded"),), "unused")


async def test_a_peer_that_lies_or_is_away_gives_no_key(tmp_path: Path, pki: Prepared) -> None:
    async with mesh(tmp_path, pki) as m:
        l2, l3 = await chain(m.eu)
        for ref in (l2, l3):
            await m.us.store.drop_blob(TENANT, ref.digest)
        for m.eu.link.mode in ("lies", "floods", "down", "refuses", "opaque"):
            answer = await m.us.load(l2, l3)
            assert answer.loaded == ()
            assert dict(answer.failed)[l2] == "no-blob"
            assert await m.us.store.get_blob(TENANT, l2.digest) is None
            assert await m.us.store.stored_keys() == ()
        m.eu.link.mode = "up"
        assert (await m.us.load(l2, l3)).failed == ()


async def test_a_blob_damaged_at_rest_is_fetched_anew(tmp_path: Path, pki: Prepared) -> None:
    async with mesh(tmp_path, pki) as m:
        l2, _ = await chain(m.eu)
        good = await m.us.store.get_blob(TENANT, l2.digest)
        await m.us.store.put_blob(TENANT, l2.digest, b"rot")
        assert (await m.us.load(l2)).loaded == (l2,)
        assert await m.us.store.get_blob(TENANT, l2.digest) == good


async def test_damage_shows_as_drift_first_and_is_mended_by_the_next_load(tmp_path: Path, pki: Prepared) -> None:
    async with mesh(tmp_path, pki) as m:
        l2, l3 = await chain(m.eu)
        rows = dict([row_of(l2), row_of(l3), ("policy", b"{}")])
        truth = root_of(rows)

        async def snapshot() -> str:
            return (await m.eu.keys.cascades.snapshot([(TENANT, rows)])).states[TENANT]

        assert await snapshot() == truth
        for ref in (l2, l3):
            await damage(m.eu.store, ref.kid)
            assert await snapshot() != truth
            assert await m.eu.store.get_key(ref.namespace, ref.kid) is None  # so that the next load fetches it
            m.eu.forget()
            assert (await m.eu.load(l2, l3)).failed == ()
            assert await snapshot() == truth
        assert rows == dict([row_of(l2), row_of(l3), ("policy", b"{}")])


async def test_every_kind_of_damage_of_a_cascade_is_noticed(tmp_path: Path, pki: Prepared) -> None:
    async with mesh(tmp_path, pki) as m:
        l2, _ = await chain(m.eu)
        other = ref_of(await m.eu.mint(version=2))
        rows = dict([row_of(l2), row_of(other)])
        of_other, stored = (
            await m.eu.store.get_key(other.namespace, other.kid),
            await m.eu.store.get_key(l2.namespace, l2.kid),
        )
        assert of_other is not None
        assert stored is not None
        changes: list[dict[str, Any]] = [
            {},
            {"blob": b""},
            {"blob": b"\xff" * 9_000},
            {"ivk_kid": "0" * 32},
            {"ivk_kid": ""},
            {"blob": of_other.blob},
            {"blob": stored.blob[:-1]},
        ]
        for change in changes:
            await damage(m.eu.store, l2.kid, **change)
            assert (await m.eu.keys.cascades.snapshot([(TENANT, rows)])).states[TENANT] != root_of(rows), change
            m.eu.forget()
            assert (await m.eu.load(l2)).loaded == (l2,)
            assert (await m.eu.keys.cascades.snapshot([(TENANT, rows)])).states[TENANT] == root_of(rows)


async def test_lag_is_not_drift_and_a_damaged_record_is(tmp_path: Path, pki: Prepared) -> None:
    async with mesh(tmp_path, pki) as m:
        l2, _ = await chain(m.eu)
        newer = dict([row_of(replace(l2, revision=2, digest="ab" * 32))])
        absent = dict([row_of(replace(l2, version=7))])
        for rows in (newer, absent, {}):
            assert (await m.eu.keys.cascades.snapshot([(TENANT, rows)])).states[TENANT] == root_of(rows)
        assert await m.eu.store.get_key(l2.namespace, l2.kid) is not None
        broken = {row_of(l2)[0]: b"\xff not a row"}
        assert (await m.eu.keys.cascades.snapshot([(TENANT, broken)])).states[TENANT] == root_of(broken)


async def test_a_denial_and_silence_of_the_customer_are_told_apart(tmp_path: Path, pki: Prepared) -> None:
    async with mesh(tmp_path, pki) as m:
        l2, l3 = await chain(m.eu)
        assert await m.us.probe() is L1Outcome.UNREACHABLE  # nothing stored here yet
        await m.us.load(l2, l3)
        assert await m.us.probe() is await m.us.probe(all_replicas=True) is L1Outcome.OK

        await m.owner.disable("root", replica="us")
        assert await m.us.probe() is await m.eu.probe(all_replicas=True) is L1Outcome.DENIED
        denied = await m.us.load(l2, l3)
        assert (denied.loaded, denied.failed, denied.l1) == ((l3,), ((l2, "disabled"),), "denied")
        m.us.forget()
        denied = await m.us.load(l2, l3)
        assert (dict(denied.failed), denied.l1) == ({l2: "disabled", l3: "not-loaded"}, "denied")
        await m.owner.enable("root")
        assert await m.us.probe(all_replicas=True) is L1Outcome.OK


async def test_silence_closes_nothing_by_itself(tmp_path: Path, pki: Prepared) -> None:
    async with mesh(tmp_path, pki) as m:
        l2, l3 = await chain(m.eu)
        nobody_there = m.bindings["b1"].descriptor | {"replicas": {"eu": "https://127.0.0.1:9"}}
        m.bindings["b1"] = BindingRow(provider="keymesh-kms", descriptor=nobody_there, state="active")
        m.eu.keys.l1.providers.clear()
        assert await m.eu.probe() is L1Outcome.UNREACHABLE
        silent = await m.eu.load(l2, l3)
        assert (silent.loaded, silent.failed, silent.l1) == ((l3,), ((l2, "unreachable"),), "unreachable")
        assert m.eu.ring.get(l2.kid) is not None  # in memory still: its lease ends by itself
        failed = await m.eu.mint(version=2)
        assert isinstance(failed, MintFailed)
        assert failed.reason == "unreachable"


async def test_a_replica_that_is_silent_keeps_nothing_closed_that_another_opens(tmp_path: Path, pki: Prepared) -> None:
    async with mesh(tmp_path, pki) as m:
        l2, l3 = await chain(m.eu)
        found = m.bindings["b1"].descriptor
        half = found | {"replicas": found["replicas"] | {"eu": "https://127.0.0.1:9"}}
        m.bindings["b1"] = BindingRow(provider="keymesh-kms", descriptor=half, state="active")
        m.eu.keys.l1.providers.clear()
        m.eu.forget()
        loaded = await m.eu.load(l2, l3)
        assert (loaded.loaded, loaded.l1) == ((l2, l3), "ok")
        await m.owner.disable("root", replica="us")
        m.eu.forget()
        assert (await m.eu.load(l2, l3)).l1 == "denied", "silence here, and a no there: believed"


class Throttled:
    """An L1 whose provider answers no more calls for now."""

    def __init__(self) -> None:
        self.asked = 0

    async def wrap(self, e: bytes) -> bytes:
        raise L1Unreachable("throttled", "too many calls")

    async def unwrap(self, wrapped: bytes) -> bytes:
        self.asked += 1
        raise L1Unreachable("throttled", "too many calls")

    async def close(self) -> None:
        pass


async def test_throttling_is_silence_and_makes_the_core_call_less(tmp_path: Path, pki: Prepared) -> None:
    async with mesh(tmp_path, pki) as m:
        l2, _ = await chain(m.eu)
        busy = Throttled()
        m.eu.keys.l1.providers = {(TENANT, "b1", replica): busy for replica in ("eu", "us")}
        m.eu.forget()
        assert await m.eu.probe() is L1Outcome.UNREACHABLE
        loaded = await m.eu.load(l2)
        assert (loaded.failed, loaded.l1) == (((l2, "throttled"),), "unreachable")
        assert all(account.per_s < CALLS_PER_S for account in m.eu.keys.l1.budget.accounts.values())
        for account in m.eu.keys.l1.budget.accounts.values():
            account.calls = -1e6
        asked = busy.asked
        assert await m.eu.probe() is L1Outcome.UNREACHABLE
        assert (await m.eu.load(l2)).failed == ((l2, "l1-budget"),)
        assert busy.asked == asked, "over the budget nobody is asked"


HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "empty": lambda good: {},
    "no key": lambda good: {k: v for k, v in good.items() if k != "key"},
    "types": lambda good: good | {"replicas": ["https://h:1"]},
    "more": lambda good: good | {"more": 1},
    "provider": lambda good: good | {"provider": "aws"},
    "ca": lambda good: good | {"ca_pem": ""},
    "ca junk": lambda good: good | {"ca_pem": "junk"},
    "key path": lambda good: good | {"key": "../../clients"},
    "http": lambda good: good | {"replicas": {"eu": "http://127.0.0.1:1"}},
    "dots": lambda good: good | {"replicas": {"eu": "https://a..b:1"}},
    "long label": lambda good: good | {"replicas": {"eu": f"https://{'a' * 100}:1"}},
    "port": lambda good: good | {"replicas": {"eu": "https://127.0.0.1:99999"}},
    "dot": lambda good: good | {"replicas": {"eu": "https://.:1"}},
    "v6": lambda good: good | {"replicas": {"eu": "https://[:::::]:1"}},
}


async def test_a_tenants_descriptor_harms_nobody_but_its_tenant(tmp_path: Path, pki: Prepared) -> None:
    """It comes from the tenant; whatever it says, the Core goes on."""
    async with mesh(tmp_path, pki) as m:
        l2, _ = await chain(m.eu)
        good = dict(m.bindings["b1"].descriptor)
        for how, change in HOSTILE.items():
            m.bindings["b1"] = BindingRow(provider="keymesh-kms", descriptor=change(good), state="active")
            m.eu.keys.l1.providers.clear()
            m.eu.forget()
            assert (await m.eu.load(l2)).loaded == (), how
            assert isinstance(await m.eu.mint(version=2), MintFailed), how
            assert await m.eu.probe() is L1Outcome.UNREACHABLE, how


async def test_a_kms_that_says_something_else_gives_no_key(tmp_path: Path, pki: Prepared) -> None:
    async with mesh(tmp_path, pki) as m:
        l2, _ = await chain(m.eu)

        for said in (b"", b"x", bytes(31), bytes(32), bytes(64)):
            m.eu.keys.l1.providers = {(TENANT, "b1", replica): Liar(said) for replica in ("eu", "us")}
            m.eu.forget()
            answer = await m.eu.load(l2)
            assert (answer.loaded, len(m.eu.ring)) == ((), 1)


async def test_a_tenant_that_is_gone_meanwhile_is_a_failure_to_load(tmp_path: Path, pki: Prepared) -> None:
    async with mesh(tmp_path, pki) as m:
        l2, l3 = await chain(m.eu)
        m.tenants.clear()
        assert dict((await m.eu.load(l2, l3)).failed) == {l2: "not-found", l3: "not-found"}
        assert await m.eu.probe() is L1Outcome.UNREACHABLE
        assert isinstance(await m.eu.mint(version=2), MintFailed)


def test_what_many_replicas_say_together() -> None:
    ok, no, away = L1Outcome.OK, L1Outcome.DENIED, L1Outcome.UNREACHABLE
    table: list[
        tuple[list[L1Outcome], L1Outcome, L1Outcome]
    ] = [  # answers, where any one is enough, where all are asked
        ([], away, away),
        ([ok], ok, ok),
        ([ok, ok], ok, ok),
        ([ok, away], ok, away),
        ([away, away], away, away),
        ([ok, no], no, no),
        ([no, away], no, no),
        ([no, no], no, no),
    ]
    for answers, some, every in table:
        for order in (answers, answers[::-1]):
            assert outcome_of(order, all_replicas=False) is some
            assert outcome_of(order, all_replicas=True) is every


# --- re-wrapping -----------------------------------------------------------------------------------------------------


async def rewrap(core: Core, ref: KeyRef, parent: str) -> KeyRewrapped | RewrapFailed:
    asked = RewrapKey(ref=ref, revision=ref.revision + 1, parent=parent, correlation_id="c")
    return cast(KeyRewrapped | RewrapFailed, await core.do(core.keys.rewrap(asked)))


async def test_the_same_key_under_the_customers_new_root(tmp_path: Path, pki: Prepared) -> None:
    async with mesh(tmp_path, pki) as m:
        l2, l3 = await chain(m.eu)
        raw = bytes_of(m.eu, l2)
        await m.bind("b2", "new-root")
        moved = ref_of(await rewrap(m.eu, l2, "b2"), l2)  # type: ignore[arg-type]
        assert (moved.kid, moved.parent, moved.revision) == (l2.kid, "b2", 2)
        assert moved.digest != l2.digest
        await m.owner.disable("root")  # the old one is not needed any more
        for core in (m.eu, m.us):
            core.forget()
            answer = await core.load(moved, l3)
            assert (answer.failed, answer.l1) == ((), "ok")
            assert bytes_of(core, moved) == raw
            assert await core.probe("b2") is L1Outcome.OK
            core.forget()
            assert (await core.load(l2)).failed[0][1] == "disabled"


async def test_an_l3_under_a_new_l2(tmp_path: Path, pki: Prepared) -> None:
    async with mesh(tmp_path, pki) as m:
        _, l3 = await chain(m.eu)
        raw = bytes_of(m.eu, l3)
        newer = ref_of(await m.eu.mint(version=2))
        moved = ref_of(await rewrap(m.eu, l3, newer.kid), l3)  # type: ignore[arg-type]
        assert (await m.us.load(newer, moved)).failed == ()
        assert bytes_of(m.us, moved) == raw


async def test_a_rewrap_that_fails_leaves_what_was(tmp_path: Path, pki: Prepared) -> None:
    async with mesh(tmp_path, pki) as m:
        l2, l3 = await chain(m.eu)
        await m.bind("b2", "new-root")
        await m.owner.disable("new-root")
        for ref, parent, reason in (
            (l2, "b2", "disabled"),
            (l2, "b9", "unknown-binding"),
            (l3, "0" * 32, "not-loaded"),
        ):
            failed = await rewrap(m.eu, ref, parent)
            assert isinstance(failed, RewrapFailed)
            assert (failed.reason, failed.revision) == (reason, 2)
        m.us.link.mode = "down"
        await m.owner.enable("new-root")
        failed = await rewrap(m.eu, l2, "b2")
        assert isinstance(failed, RewrapFailed)
        assert failed.reason == "one-copy"
        m.us.link.mode = "up"
        m.eu.forget()
        assert (await m.eu.load(l2, l3)).failed == ()
        m.eu.forget()
        unheld = await rewrap(m.eu, l2, "b2")
        assert isinstance(unheld, RewrapFailed)
        assert unheld.reason == "not-loaded"


# --- internal keys ---------------------------------------------------------------------------------------------------


async def test_a_rotation_seals_everything_anew_and_asks_the_customer_nothing(tmp_path: Path, pki: Prepared) -> None:
    async with mesh(tmp_path, pki) as m:
        l2, l3 = await chain(m.eu)
        before = await m.eu.store.get_key(l2.namespace, l2.kid)
        await m.owner.disable("root")
        rotated = await m.eu.do(m.eu.keys.rotate_ivk(RotateIvk(3)))
        assert rotated == IvkRotated(3)
        after = await m.eu.store.get_key(l2.namespace, l2.kid)
        assert before is not None
        assert after is not None
        assert after.ivk_kid != before.ivk_kid
        assert after.blob != before.blob
        assert (after.digest, after.revision) == (before.digest, before.revision)
        states = {i.generation: i.state for i in await m.eu.store.ivks()}
        assert states == {3: IvkState.ACTIVE, 1: IvkState.GRACE}
        assert await m.eu.do(m.eu.keys.rotate_ivk(RotateIvk(3))) == IvkRotated(3)  # the same wish again
        assert len(await m.eu.store.ivks()) == 2
        await m.owner.enable("root")
        m.eu.forget()
        assert (await m.eu.load(l2, l3)).failed == ()


async def test_a_revoked_internal_key_opens_nothing_and_the_blob_is_fetched_anew(tmp_path: Path, pki: Prepared) -> None:
    async with mesh(tmp_path, pki) as m:
        l2, _ = await chain(m.eu)
        await m.eu.keys.cascades.new_ivk(2)
        old = (await m.eu.store.ivks())[-1]
        await m.eu.store.put_ivk(replace(old, state=IvkState.REVOKED))  # by another node
        m.eu.later_s += FRESH_S
        m.eu.ring.keep_internal(set())
        m.eu.forget()
        assert (await m.eu.load(l2)).loaded == (l2,)
        assert m.eu.ring.get(old.kid) is None
        stored = await m.eu.store.get_key(l2.namespace, l2.kid)
        assert stored is not None
        assert stored.ivk_kid == (await m.eu.store.ivks())[0].kid


async def test_a_key_of_nobody_here_does_not_stop_a_rotation(tmp_path: Path, pki: Prepared) -> None:
    async with mesh(tmp_path, pki) as m:
        l2, _ = await chain(m.eu)
        stored = await m.eu.store.get_key(l2.namespace, l2.kid)
        assert stored is not None
        foreign = replace(stored, namespace="a-gone", kid=type(stored.kid)("e" * 32))
        assert await m.eu.store.put_key(foreign, over=None)
        assert await m.eu.do(m.eu.keys.rotate_ivk(RotateIvk(2))) == IvkRotated(2)
        now_stored = await m.eu.store.get_key(l2.namespace, l2.kid)
        assert now_stored is not None
        assert now_stored.ivk_kid == (await m.eu.store.ivks())[0].kid
        assert await m.eu.store.get_key(foreign.namespace, foreign.kid) == foreign


async def test_a_sealed_region_does_nothing_with_its_keys(tmp_path: Path, pki: Prepared) -> None:
    async with mesh(tmp_path, pki) as m:
        l2, _ = await chain(m.eu)
        rows = dict([row_of(l2)])
        m.eu.ring.seal()
        assert (await m.eu.load(l2)).failed == ((l2, "sealed"),)
        failed = await m.eu.mint(version=2)
        assert isinstance(failed, MintFailed)
        assert failed.reason == "sealed"
        with pytest.raises(Unavailable):
            await m.eu.keys.cascades.snapshot([(TENANT, rows)])
        before = len(m.eu.events)
        await m.eu.keys.keep_ivks(wanted_generation=9)
        assert len(m.eu.events) == before
        assert (
            await m.eu.store.get_key(l2.namespace, l2.kid) is not None
        )  # nothing is taken for damaged that could not be looked at


async def test_a_cascade_sealed_by_an_older_key_is_sealed_anew_when_read(tmp_path: Path, pki: Prepared) -> None:
    async with mesh(tmp_path, pki) as m:
        l2, _ = await chain(m.eu)
        await m.eu.keys.cascades.new_ivk(2)
        m.eu.forget()
        assert (await m.eu.load(l2)).loaded == (l2,)
        stored = await m.eu.store.get_key(l2.namespace, l2.kid)
        assert stored is not None
        newest = (await m.eu.store.ivks())[0]
        assert (stored.ivk_kid, newest.generation, newest.wraps) == (newest.kid, 2, WRAPS_RESERVED)
        assert wrap.parse_wrap(stored.blob).parent_kid.hex() == newest.kid


async def test_a_tenant_that_names_another_tenants_login_has_nothing_sent(
    tmp_path: Path, pki: Prepared, caplog: pytest.LogCaptureFixture
) -> None:
    """The attack itself: a binding of the tenant's own, to a server of its own, with another's login."""
    ca = CustomerCa.make("attacker")
    async with mesh(tmp_path, pki) as world, catching(tmp_path, ca) as catcher:
        (mine := give_l1(tmp_path, TENANT, ca.pem, catcher.url) / "openbao-cores.json").touch(mode=0o600)
        mine.write_text(json.dumps({"role_id": "a-role", "secret_id": "a-secret"}))
        shutil.copy(mine, tmp_path / mine.name)  # as a seal's lies
        give_l1(tmp_path, "cluster", ca.pem, catcher.url)
        descriptor = {
            "provider": "openbao",
            "key": "root",
            "mount": "transit",
            "replicas": {"openbao": catcher.url},
            "ca_pem": ca.pem,
            "login": "approle:cores",
        }
        world.bindings["b2"] = BindingRow(provider="openbao", descriptor=descriptor, state="active")
        failed = await world.eu.mint(parent="b2", tenant="cluster")
        assert isinstance(failed, MintFailed) and failed.reason == "credentials"
        assert (catcher.connections, catcher.caught) == (0, b"")
        assert isinstance(await world.eu.mint(parent="b2"), MintFailed)  # the owner's, so that it is known to be caught
        assert b"a-secret" in catcher.caught
        elsewhere = descriptor | {"replicas": {"openbao": "https://127.0.0.1:1"}}
        world.bindings["b3"] = BindingRow(provider="openbao", descriptor=elsewhere, state="active")
        failed = await world.eu.mint(parent="b3")
        assert isinstance(failed, MintFailed) and failed.reason == "bad-field"
        (told,) = [r for r in caplog.records if r.message == "L1 not opened"]
        assert "endpoints.json" in vars(told)["fields"]["reason"]
