"""Regions that exchange sealed objects, in virtual time: the real stores, doors and loops over links that fail.

One seed, one run: asyncio on a clock of its own, files without ``fsync``, links that delay, lose, repeat and reorder,
regions that crash at any await, are cut off, or lose their disk.  Checks what must hold of every holder while it runs,
and at the end that all allowed regions have the same.
"""

from __future__ import annotations

import asyncio
import random
import selectors
import shutil
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from keymesh.access.identity import CoreIdentity
from keymesh.adapters.http_messages import JSON, Request, Response, Router, problem_response, raise_problem
from keymesh.app.core_objects import CoreObjects
from keymesh.control.rows import PolicyRow
from keymesh.model.errors import KeymeshError, Refused, Unavailable
from keymesh.model.ids import CorrelationId, MeshName, NodeId, RegionId
from keymesh.orbital.objects import Conflict, SealedObject

REGIONS = ("eu-1", "eu-2", "eu-3", "us-1")
TENANTS = {
    "wholebank": PolicyRow(version=1, home="eu-1", domain="eu", regions=("eu-1", "eu-2", "eu-3"), admins=("a",)),
    "pairbank": PolicyRow(version=1, home="eu-2", domain="eu", regions=("eu-2", "eu-3"), admins=("a",)),
    "leavingbank": PolicyRow(version=1, home="eu-2", domain="eu", regions=("eu-1", "eu-2", "eu-3"), admins=("a",)),
    "endingbank": PolicyRow(version=1, home="eu-1", domain="eu", regions=("eu-1", "eu-2", "eu-3"), admins=("a",)),
}
SERVICE = "vault"
QUIET_S = 180.0
LEAVING_S = 12.0

T = TypeVar("T")


class Violation(AssertionError):
    """An invariant does not hold."""


class _Selector(selectors.SelectSelector):
    """Nobody is waited for: the clock goes on instead."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("nothing will ever happen")
            self.loop.now_s += max(0.0, timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.now_s = 0.0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now_s


def run_virtually(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """``work`` to its end, on a clock that jumps."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work())


def now_s() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class Faults:
    """Chances of each request."""

    lost: float = 0.0
    repeated: float = 0.0
    delay_s: float = 0.01


@dataclass
class Link:
    """``PeerLink`` from one region to another."""

    world: World
    here: str
    there: str

    async def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        query: dict[str, str] | None = None,
        content_type: str = JSON,
        timeout_s: float = 10.0,
    ) -> tuple[int, bytes]:
        world, chance, faults = self.world, self.world.chance, self.world.faults
        world.sent(self.here, self.there, path.encode() + (body or b""))
        if world.is_cut(self.here, self.there) or not world.regions[self.there].alive:
            await asyncio.sleep(chance.choice((0.0, 3.0)))
            raise Unavailable("unreachable", "no connection")
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.sleep(chance.random() * faults.delay_s)
                if any(tenant in path for tenant in world.stuck):
                    await asyncio.sleep(timeout_s)
                if chance.random() < faults.lost:
                    await asyncio.sleep(timeout_s)

                async def arrive() -> Response | None:
                    return await world.regions[self.there].serve(self.here, method, path, query or {}, body or b"")

                if chance.random() < faults.repeated:
                    world.later(chance.random() * 30, arrive)
                answer = await arrive()
                await asyncio.sleep(chance.random() * faults.delay_s)
                if answer is None or chance.random() < faults.lost or world.is_cut(self.there, self.here):
                    await asyncio.sleep(timeout_s)
        except TimeoutError:
            raise Unavailable("timeout", "no answer in time") from None
        assert answer is not None
        world.sent(self.there, self.here, answer.body)
        if not 200 <= answer.status < 300:
            raise_problem(answer.status, answer.body)
        return answer.status, answer.body


@dataclass
class Region:
    """One Core's objects: the process and its disk."""

    world: World
    name: str
    directory: Path
    policies: dict[str, PolicyRow]
    alive: bool = False
    serving: bool = True
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    seen: dict[tuple[str, str], int] = field(default_factory=dict)
    clean: set[str] = field(default_factory=set)  # tenants of which it said that nothing is left
    purging: set[str] = field(default_factory=set)

    def start(self) -> None:
        world = self.world
        self.directory.mkdir(exist_ok=True)
        self.objects = CoreObjects(
            region=self.name,
            directory=self.directory,
            policy_of=self.policy_of,
            tenants=lambda: tuple(self.policies),
            link=lambda there: world.link(self.name, there),  # type: ignore[arg-type,return-value]
            peers=[region for region in REGIONS if region != self.name],
            token=world.chance.randbytes,
            may_change=lambda tenant, service: self.serving,
            monotonic_s=now_s,
        )
        assert self.objects.fault is None
        self.objects.store._query("PRAGMA synchronous=OFF")
        self.router = Router(self.objects.routes())
        self.alive = True
        for tenant in self.purging:
            self.objects.forbid(tenant)
        self.spawn(self.objects.run())

    def policy_of(self, tenant: str) -> PolicyRow:
        if tenant not in self.policies:
            raise Refused("not-found", "no such tenant here", field="tenant")
        return self.policies[tenant]

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        self._begin(work).add_done_callback(self.tasks.discard)

    def _begin(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (failed := task.exception()) is not None:
            self.world.bugs.append(failed)

    def crash(self) -> None:
        """At whatever await each of its tasks is."""
        self.alive = False
        for task in self.tasks:
            task.cancel()
        self.objects.close()

    def lose_disk(self) -> None:
        self.crash()
        self.world.lost.add(self.name)
        shutil.rmtree(self.directory)
        self.seen, self.clean = {}, set()

    async def serve(self, asker: str, method: str, path: str, query: dict[str, str], body: bytes) -> Response | None:
        """None: nobody answered."""
        if not self.alive:
            return None
        route, params = self.router.find(method, path)
        identity = CoreIdentity(mesh=MeshName("m"), region=RegionId(asker), node=NodeId("n1"))
        request = Request(
            method=method,
            path=path,
            params=params,
            query=query,
            headers={},
            body=body,
            peer=None,
            bearer=identity,
            correlation_id=CorrelationId("c"),
            idempotency_key=None,
        )
        task = self._begin(_answered(route.handler(request)))
        await asyncio.wait({task})
        return None if task.cancelled() else task.result()

    def holds(self, tenant: str) -> dict[str, SealedObject]:
        found, _, damaged = self.objects.store.find(tenant, SERVICE, None, after=0, most=10_000)
        assert not damaged
        return {one.uid: one for one in found}


async def _answered(handling: Any) -> Response:
    try:
        answer = await handling
    except KeymeshError as no:
        return problem_response(no, "c")
    assert isinstance(answer, Response)
    return answer


class World:
    """``chance`` decides everything that is left open."""

    def __init__(self, directory: Path, seed: int, faults: Faults | None = None) -> None:
        self.chance = random.Random(seed)
        self.faults = faults or Faults()
        self.cuts: set[tuple[str, str]] = set()
        self.bugs: list[BaseException] = []
        self.sometimes: Counter[str] = Counter()
        self.ever_allowed = {tenant: set(policy.regions) for tenant, policy in TENANTS.items()}
        self.regions = {
            name: Region(self, name, directory / name, {t: p for t, p in TENANTS.items() if name in p.regions})
            for name in REGIONS
        }
        self._links: dict[tuple[str, str], Link] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self.acked: dict[tuple[str, str], tuple[int, str, str]] = {}  # newest: version, durability, who did it
        self.lost: set[str] = set()  # regions whose disk was lost
        self.stuck: set[str] = set()  # tenants of whom no request is answered
        self.number = 0

    # --- links -------------------------------------------------------------------------------------------------------

    def link(self, here: str, there: str) -> Link:
        return self._links.setdefault((here, there), Link(self, here, there))

    def is_cut(self, here: str, there: str) -> bool:
        return (here, there) in self.cuts

    def cut(self, region: str) -> None:
        self.cuts |= {pair for other in REGIONS for pair in ((region, other), (other, region)) if other != region}

    def later(self, delay_s: float, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        async def wait() -> None:
            await asyncio.sleep(delay_s)
            self.sometimes["repeated"] += 1
            await work()

        task = asyncio.get_running_loop().create_task(wait())
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    def sent(self, here: str, there: str, raw: bytes) -> None:
        """I5: nothing that names a tenant goes to a region that it never allowed."""
        for tenant, regions in self.ever_allowed.items():
            if there not in regions and tenant.encode() in raw:
                raise Violation(f"I5: {here} sends something of {tenant} to {there}")

    # --- clients -----------------------------------------------------------------------------------------------------

    def a_new(self, tenant: str, *names: bytes) -> SealedObject:
        self.number += 1
        sealed = b"sealed-%d" % self.number
        return SealedObject(tenant, SERVICE, f"u{self.number}", "anywhere", 1, names, False, sealed)

    def changed(self, one: SealedObject, *, gone: bool = False) -> tuple[int, SealedObject]:
        self.number += 1
        return one.version, replace(one, version=one.version + 1, sealed=b"sealed-%d" % self.number, gone=gone)

    async def commit(self, region: Region, changes: list[tuple[int, SealedObject]], durability: str = "async") -> str:
        """The client's view: ``done``, or the code of the error."""
        tenant = changes[0][1].namespace
        try:
            await region.objects.commit(tenant, SERVICE, changes, durability=durability)
        except Conflict as conflict:
            for _, after in changes:
                held = [one.holds(tenant).get(after.uid) for one in self.regions.values() if one.alive]
                if not conflict.name_taken and any(one is not None and one.sealed == after.sealed for one in held):
                    raise Violation(f"a change of {after.uid} was done, and its client hears of a conflict") from None
            return conflict.code
        except KeymeshError as no:
            return no.code
        for _, after in changes:
            stored = region.objects.store.get(tenant, SERVICE, after.uid)
            if stored is None:
                if tenant not in region.purging:
                    raise Violation(f"I2: {after.uid} is acknowledged, and not at {region.name}")
                continue
            self.acked[tenant, after.uid] = (after.version, durability, stored.home)
        return "done"

    async def client(self, region: Region, durability: str) -> None:
        """One operation that a client might want."""
        tenant = self.chance.choice(sorted(region.policies))
        held = sorted(region.holds(tenant).items())
        if not held or self.chance.random() < 0.4:
            said = await self.commit(region, [(0, self.a_new(tenant))], durability)
            self.sometimes[f"create-{said}"] += 1
            return
        _, one = self.chance.choice(held)
        changes = [self.changed(one, gone=one.gone or self.chance.random() < 0.1)]
        if self.chance.random() < 0.2:
            changes.append((0, self.a_new(tenant)))
        is_far = one.home != region.name
        said = await self.commit(region, changes, durability)
        self.sometimes[f"change-{'far' if is_far else 'own'}-{said}"] += 1

    # --- faults ------------------------------------------------------------------------------------------------------

    async def purge(self, region: Region, tenant: str) -> None:
        """As ``CorePurge`` does it."""
        region.purging.add(tenant)
        region.objects.forbid(tenant)
        store = region.objects.store
        is_empty = False
        while not is_empty:
            is_empty = store.purge_some(tenant, most=3)
            await asyncio.sleep(0.01)
        region.clean.add(tenant)
        self.sometimes["purged"] += 1

    # --- judging -----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """What must hold at every moment."""
        if self.bugs:
            raise self.bugs[0]
        for region in self.regions.values():
            if not region.alive:
                continue
            for tenant in TENANTS:
                held = region.holds(tenant)
                if held and region.name not in self.ever_allowed[tenant]:
                    raise Violation(f"I5: {region.name} holds objects of {tenant}")
                if held and tenant in region.clean:
                    raise Violation(f"I3: objects of {tenant} came back to {region.name}")
                for uid, one in held.items():
                    if one.version < region.seen.get((tenant, uid), 0):
                        raise Violation(f"I4: {uid} went back to version {one.version} at {region.name}")
                    region.seen[tenant, uid] = one.version
            if region.objects.store.forks():
                raise Violation(f"I11: two objects of one version at {region.name}")

    def check_end(self) -> None:
        """After a quiet time: all that are allowed have the same, and what was promised."""
        self.check()
        for tenant in TENANTS:
            holders = [
                r for r in self.regions.values() if tenant in r.policies and r.name in r.policies[tenant].regions
            ]
            if any(tenant in holder.purging for holder in holders):
                continue
            views = {holder.name: holder.holds(tenant) for holder in holders}
            first = views[holders[0].name]
            for name, view in views.items():
                if view != first:
                    differ = {uid for uid in view.keys() | first.keys() if view.get(uid) != first.get(uid)}
                    raise Violation(f"I10: {name} and {holders[0].name} differ in {sorted(differ)} of {tenant}")
            before, now = set(TENANTS[tenant].regions), set(holders[0].policies[tenant].regions)
            losses = (before - now) | (self.lost & before)  # a region that the tenant left is lost to it
            for (of, uid), (version, durability, by) in self.acked.items():
                is_promised = by not in losses or (durability == "peer" and len(losses) == 1)
                if of == tenant and is_promised and (uid not in first or first[uid].version < version):
                    raise Violation(f"I2: {uid} version {version} ({durability}, by {by}) of {tenant} is lost")


def begun(directory: Path, seed: int = 0, faults: Faults | None = None) -> World:
    """All regions up."""
    world = World(directory, seed, faults)
    for region in world.regions.values():
        region.start()
    return world


async def ended(world: World) -> World:
    """Healed, quiet for a while, judged, stopped."""
    world.cuts.clear()
    world.faults = Faults()
    for region in world.regions.values():
        if not region.alive:
            region.start()
    await asyncio.sleep(QUIET_S)
    world.check_end()
    for region in world.regions.values():
        region.crash()
    return world


async def run_seed(directory: Path, seed: int) -> World:
    """A run with every kind of fault, then quiet, then judged."""
    world = begun(directory, seed, Faults(lost=0.1, repeated=0.15, delay_s=1.0))
    chance = world.chance
    for step in range(120):
        region = chance.choice([one for one in world.regions.values() if one.policies])
        if region.alive:
            region.spawn(world.client(region, chance.choice(("async", "peer"))))
        await asyncio.sleep(chance.random() * 2)
        world.check()
        await _one_fault(world, step)
        world.check()
    return await ended(world)


async def _one_fault(world: World, step: int) -> None:
    chance, regions = world.chance, world.regions
    draw = chance.random()
    if draw < 0.06:
        world.cut(chance.choice(REGIONS))
        world.sometimes["cut"] += 1
    elif draw < 0.18:
        world.cuts.clear()
    elif draw < 0.24 and all(one.alive for one in regions.values()):
        region = chance.choice(list(regions.values()))
        region.crash()
        world.sometimes["crash"] += 1
        await asyncio.sleep(chance.random() * 20)
        region.start()
    if step == 60:  # one region's disk is lost for good
        region = regions[chance.choice(REGIONS[:3])]
        region.lose_disk()
        await asyncio.sleep(chance.random() * 20)
        region.start()
    if step == 90:  # a tenant leaves a region, which hears of it first
        left = replace_regions(TENANTS["leavingbank"], ("eu-2", "eu-3"))
        for name in ("eu-1", "eu-2", "eu-3"):
            regions[name].policies["leavingbank"] = left
            await asyncio.sleep(LEAVING_S)  # what was on its way has arrived
    if step in (70, 80, 100):  # a tenant ends, region by region
        region = regions[{70: "eu-3", 80: "eu-1", 100: "eu-2"}[step]]
        await world.purge(region, "endingbank")


def replace_regions(policy: PolicyRow, regions: tuple[str, ...]) -> PolicyRow:
    return PolicyRow(
        version=policy.version + 1, home=policy.home, domain=policy.domain, regions=regions, admins=policy.admins
    )
