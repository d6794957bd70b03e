"""What stands in for key bytes, blob stores and the customers' KMS: names, digests, and who can reach what.

A blob is (kid, digest, parent, material); the material is a number, so that two blobs of one kid can be compared
(I11).  Blob stores are durable per region; memory is per process life.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from keymesh.core.events import (
    DropKeys,
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
    SnapshotTaken,
    TakeSnapshot,
    WipeMinted,
)
from keymesh.sim.draw import mix, stream_of
from keymesh.sim.process import Machine, Process
from keymesh.sim.world import World

_STREAM = stream_of("keys")
_NO_L1_TIMEOUT_MS = 2_000
L2 = "l2"


@dataclass(frozen=True, slots=True)
class Blob:
    kid: str
    digest: str
    parent: str
    material: int


class Customer:
    """A tenant's own KMS: per region a replica that serves, denies, or cannot be reached."""

    __slots__ = ("denied", "disabled_at", "enabled", "unreachable")

    def __init__(self) -> None:
        self.enabled = True
        self.disabled_at: int | None = None
        self.denied: set[str] = set()  # replicas (regions) that deny on their own
        self.unreachable: Counter[str] = Counter()

    def answer(self, region: str) -> str:
        if self.unreachable[region]:
            return "unreachable"
        return "ok" if self.enabled and region not in self.denied else "denied"


class KeyShells:
    """The key-related effects of the Cores."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.blobs: dict[str, dict[tuple[str, str], Blob]] = {}  # region -> (tenant, digest)
        self.memory: dict[str, dict[str, set[str]]] = {}  # process -> namespace -> kids
        self.ivk: dict[str, int] = {}
        self.customers: dict[str, Customer] = {}
        self.materials: dict[str, int] = {}
        self.forbidden: set[tuple[str, str]] = set()  # (region, tenant): its store takes nothing more of that
        self._minted = 0
        self.probed: list[Any] = []  # hooks: (machine, namespace, outcome, started_at)
        world.handlers |= {
            LoadKeys: self._load,
            DropKeys: self._drop,
            ProbeL1: self._probe,
            MintKey: self._mint,
            RewrapKey: self._rewrap,
            WipeMinted: self._wipe,
            RotateIvk: self._rotate,
            TakeSnapshot: self._snapshot,
        }
        world.on_crash.append(self._crashed)

    def _crashed(self, proc: Process) -> None:
        self.memory.pop(proc.name, None)

    def customer(self, tenant: str) -> Customer:
        return self.customers.setdefault(tenant, Customer())

    def kids(self, process: str, namespace: str) -> set[str]:
        return self.memory.setdefault(process, {}).setdefault(namespace, set())

    def has_copies_elsewhere(self, region: str) -> bool:
        others = [store for name, store in self.blobs.items() if name != region]
        return all(any(place in store for store in others) for place in self.blobs.get(region, ()))

    def wipe_region(self, region: str) -> None:
        self.blobs.pop(region, None)
        self.ivk.pop(region, None)

    # --- loading and dropping ----------------------------------------------------------------------------------------

    def _load(self, m: Machine, e: LoadKeys) -> None:
        region = m.proc.region
        if not self.world.ledger.may_hold(region, e.namespace):
            self.world.fail("I5", f"{region} loads keys of {e.namespace}")
        started = m.proc.clock.now(self.world.t)
        needs_l1 = any(ref.key == L2 and ref.kid not in self.kids(m.proc.name, e.namespace) for ref in e.keys)
        slow = needs_l1 and self.customer(e.namespace).answer(region) == "unreachable"
        delay = _NO_L1_TIMEOUT_MS if slow else 5 + self._draw() % (150 if needs_l1 else 30)
        self.world.schedule(delay, self._loaded, (m, m.proc.life), (e, started, needs_l1))

    def _loaded(self, life: Any, job: Any) -> None:
        m, number = life
        e, started, needs_l1 = job
        if m.proc.life != number:
            return
        l1 = self.customer(e.namespace).answer(m.proc.region) if needs_l1 else "unused"
        kids = self.kids(m.proc.name, e.namespace)
        loaded: list[KeyRef] = []
        failed: list[tuple[KeyRef, str]] = []
        for ref in sorted(e.keys, key=lambda r: r.key != L2):
            why = self._load_one(m.proc.region, ref, kids, l1)
            if why:
                failed.append((ref, why))
            else:
                kids.add(ref.kid)
                loaded.append(ref)
        if m.proc.life == number:
            event = KeysLoaded(
                namespace=e.namespace, loaded=tuple(loaded), failed=tuple(failed), l1=l1, l1_started_at=started
            )
            self.world.reply(life, event)
            if l1 != "unused":
                self._told(m, e.namespace, l1, started)

    def _load_one(self, region: str, ref: KeyRef, kids: set[str], l1: str) -> str:
        if ref.key == L2 and ref.kid not in kids and l1 != "ok":
            return l1
        if ref.key != L2 and ref.parent not in kids:
            return "parent-missing"
        blob = self._fetch(region, ref)
        if blob is None:
            return "unavailable"
        if blob.kid != ref.kid or blob.digest != ref.digest:
            return "integrity"
        if self.materials.setdefault(ref.kid, blob.material) != blob.material:
            self.world.fail("I11", f"two keys under kid {ref.kid}")
        return ""

    def _fetch(self, region: str, ref: KeyRef) -> Blob | None:
        """From this region's store, else from any allowed region that can be reached now."""
        place = (ref.namespace, ref.digest)
        own = self.blobs.setdefault(region, {})
        blob = own.get(place)
        if blob is not None and blob.digest == ref.digest:
            return blob
        for other in sorted(self.world.ledger.allowed.get(ref.namespace, ())):
            if other != region and self._reaches(region, other):
                found = self.blobs.get(other, {}).get(place)
                if found is not None and found.digest == ref.digest and (region, ref.namespace) not in self.forbidden:
                    own[place] = found
                    return found
        return None

    def _reaches(self, a: str, b: str) -> bool:
        other = self.world.processes[b]
        return other.alive and not other.paused and self.world.network.connected(a, b)

    def _drop(self, m: Machine, e: DropKeys) -> None:
        memory = self.memory.setdefault(m.proc.name, {})
        if e.namespace is None:
            memory.clear()
        elif e.kids is None:
            memory.pop(e.namespace, None)
        else:
            self.kids(m.proc.name, e.namespace).difference_update(e.kids)

    # --- the customer's L1 -------------------------------------------------------------------------------------------

    def _probe(self, m: Machine, e: ProbeL1) -> None:
        started = m.proc.clock.now(self.world.t)
        customer = self.customer(e.namespace)
        delay = _NO_L1_TIMEOUT_MS if customer.answer(m.proc.region) == "unreachable" else 5 + self._draw() % 120
        self.world.schedule(delay, self._probed, (m, m.proc.life), (e, started))

    def _probed(self, life: Any, job: Any) -> None:
        m, number = life
        if m.proc.life != number:
            return
        e, started = job
        customer = self.customer(e.namespace)
        regions = sorted(self.world.ledger.allowed.get(e.namespace, ())) if e.all_replicas else [m.proc.region]
        answers = {customer.answer(r) for r in regions}
        worst = "denied" if "denied" in answers else "unreachable" if "unreachable" in answers else "ok"
        outcome = L1Outcome(worst)
        self.world.reply(
            life,
            L1Probed(
                namespace=e.namespace,
                binding_id=e.binding_id,
                outcome=outcome,
                started_at=started,
                all_replicas=e.all_replicas,
            ),
        )
        self._told(m, e.namespace, worst, started)

    def _told(self, m: Machine, namespace: str, outcome: str, started: int) -> None:
        for hook in self.probed:
            hook(m, namespace, outcome, started)

    # --- minting -----------------------------------------------------------------------------------------------------

    def _mint(self, m: Machine, e: MintKey) -> None:
        self.world.schedule(20 + self._draw() % 300, self._minted_now, (m, m.proc.life), e)

    def _minted_now(self, life: Any, e: Any) -> None:
        m, number = life
        if m.proc.life != number:
            return
        why = self._mint_refusal(m, e.namespace, e.key, e.parent)
        holders = self._holders(m.proc.region, e.namespace)
        if why or not holders:
            self.world.reply(life, MintFailed(e.namespace, e.key, e.version, why or "unavailable"))
            return
        self._minted += 1
        material = mix(self.world.options.seed, _STREAM, -self._minted)
        kid = f"{material:016x}{self._minted:016x}"
        blob = Blob(kid, f"{material ^ 1:064x}", e.parent, material)
        for region in holders:
            self.blobs.setdefault(region, {})[e.namespace, blob.digest] = blob
        self.world.reply(life, KeyMinted(e.namespace, e.key, e.version, kid, blob.digest, e.parent, tuple(holders)))

    def _mint_refusal(self, m: Machine, namespace: str, key: str, parent: str) -> str:
        if key == L2:
            answer = self.customer(namespace).answer(m.proc.region)
            return "" if answer == "ok" else answer
        return "" if parent in self.kids(m.proc.name, namespace) else "parent-missing"

    def _holders(self, region: str, namespace: str) -> list[str]:
        """This region's store and one more: a write goes to two where the tenant has two."""
        allowed = self.world.ledger.allowed.get(namespace, frozenset())
        if (region, namespace) in self.forbidden:
            return []
        takes = [r for r in sorted(allowed) if r != region and (r, namespace) not in self.forbidden]
        others = [r for r in takes if self._reaches(region, r)]
        if not others and len(allowed) > 1:
            return []
        return sorted((region, *others[:1]))

    def _rewrap(self, m: Machine, e: RewrapKey) -> None:
        self.world.schedule(20 + self._draw() % 200, self._rewrapped, (m, m.proc.life), e)

    def _rewrapped(self, life: Any, e: Any) -> None:
        m, number = life
        if m.proc.life != number:
            return
        ref: KeyRef = e.ref
        old = self._fetch(m.proc.region, ref)
        why = self._mint_refusal(m, ref.namespace, ref.key, e.parent)
        holders = self._holders(m.proc.region, ref.namespace)
        if why or old is None or not holders or ref.kid not in self.kids(m.proc.name, ref.namespace):
            self.world.reply(life, RewrapFailed(ref.namespace, ref.key, ref.version, e.revision, why or "unavailable"))
            return
        digest = f"{mix(old.material, stream_of(e.parent), e.revision):064x}"
        blob = Blob(ref.kid, digest, e.parent, old.material)
        for region in holders:
            self.blobs.setdefault(region, {})[ref.namespace, blob.digest] = blob
        self.world.reply(life, KeyRewrapped(ref.namespace, ref.key, ref.version, e.revision, digest, e.parent))

    def _wipe(self, m: Machine, e: WipeMinted) -> None:
        self.world.sometimes["mint-race-lost"] += 1
        self.kids(m.proc.name, e.namespace).discard(e.kid)
        for store in self.blobs.values():
            for place in [p for p, b in store.items() if b.kid == e.kid]:
                del store[place]

    # --- IVK and snapshots -------------------------------------------------------------------------------------------

    def _rotate(self, m: Machine, e: RotateIvk) -> None:
        self.ivk[m.proc.region] = max(self.ivk.get(m.proc.region, 1), e.generation)
        self.world.schedule(50, self.world.reply, (m, m.proc.life), IvkRotated(e.generation))

    def _snapshot(self, m: Machine, e: TakeSnapshot) -> None:
        self.world.schedule(20, self._taken, (m, m.proc.life), None)

    def _taken(self, life: Any, _: Any) -> None:
        m, number = life
        if m.proc.life != number:
            return
        states: dict[str, str] = {}
        for key, record in m.disk.items():
            head, _slash, namespace = key.partition("/")
            if head == "ns":
                state = record.head.entry.state
                states[namespace] = "f" * 64 if key in m.proc.rotten else state
        self.world.reply(life, SnapshotTaken(states))

    def _draw(self) -> int:
        return mix(self.world.t, _STREAM, self.world.seq)
