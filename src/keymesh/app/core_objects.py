"""The sealed KMIP objects of one Core: read here, changed by their writer, kept in a file of their own.

Decides nothing about an object's content.  Its own callers ask the kill switch before they call; for a change that
another region hands over it is asked here.  A region that the tenant does not allow neither reads nor writes.  Where
the file is damaged or away, objects are, and all else goes on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from keymesh.adapters.http_messages import Route
from keymesh.adapters.sqlite_objects import SqliteObjects
from keymesh.adapters.system import SystemEntropy
from keymesh.app.config_objects import DURABILITIES, ObjectsConfig
from keymesh.app.object_door import ObjectDoor
from keymesh.app.object_replicas import ObjectReplica
from keymesh.app.object_writers import confirm_elsewhere, forward_to_writer
from keymesh.app.peer_link import PeerLink
from keymesh.control.rows import PolicyRow
from keymesh.core.context import context
from keymesh.core.may import may
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable
from keymesh.model.limits import OBJECTS_FOUND_MAX
from keymesh.model.states import Operation
from keymesh.orbital.object_sync import Cursor, may_exchange
from keymesh.orbital.objects import Changes, SealedObject, Verdict, at_home, check_changes, plan_writer

if TYPE_CHECKING:
    from keymesh.app.core_app import CoreProcess

log = logging.getLogger("keymesh.core.objects")

FILE: Final = "objects.db"
FIND_STEP: Final = 100
PURGE_STEP: Final = 200
ID_BYTES: Final = 16


def objects_of(core: CoreProcess) -> CoreObjects:
    """Those of ``core``, which exchanges them over connections of their own."""
    return CoreObjects(
        region=core.region,
        directory=core.directory,
        policy_of=core.policy,
        tenants=lambda: tuple(core.shell.state.tenants),
        link=lambda region: core.peer(region, "objects"),
        peers=core.config.peers,
        token=SystemEntropy().token,
        may_change=lambda tenant, service: (
            may(context(core.shell.state, tenant, service=service), Operation.WRAP, core.shell.now()).allowed
        ),
        config=core.config.objects,
    )


class CoreObjects:
    """``policy_of(tenant)``: as applied here; raises Refused ``not-found``.  ``tenants()``: those that this region
    holds.  ``link(region)``: to its Cores; ``peers``: regions that there is a link to.  ``token(n)``: n random bytes.
    ``may_change(tenant, service)``: whether anybody of that service is served here at this moment.
    """

    def __init__(
        self,
        *,
        region: str,
        directory: Path,
        policy_of: Callable[[str], PolicyRow],
        tenants: Callable[[], Iterable[str]],
        link: Callable[[str], PeerLink],
        peers: Iterable[str],
        token: Callable[[int], bytes],
        may_change: Callable[[str, str], bool],
        monotonic_s: Callable[[], float] = time.monotonic,
        config: ObjectsConfig | None = None,
    ) -> None:
        self.region, self.link, self.monotonic_s, self.token = region, link, monotonic_s, token
        self._policy_of, self._may_change = policy_of, may_change
        self._config = config or ObjectsConfig()
        self._store: SqliteObjects | None = None
        self.fault: KeymeshError | None = None
        self.writing = asyncio.Lock()
        self.counts: Counter[str] = Counter()
        self._reread: set[str] = set()
        self.replicas = {peer: ObjectReplica(self, peer, tenants) for peer in sorted(peers)}
        try:
            self._store = SqliteObjects(directory / FILE, new_origin=token(ID_BYTES).hex())
        except (Integrity, Unavailable) as bad:
            self.fault = bad
            log.error("objects are not served", extra={"fields": {"reason": bad.message}})

    @property
    def store(self) -> SqliteObjects:
        """Raises why there is none."""
        if self._store is None:
            assert self.fault is not None
            raise type(self.fault)(self.fault.code, self.fault.message)
        return self._store

    def policy(self, namespace: str) -> PolicyRow:
        """Raises Refused ``not-found`` where this region may not hold the tenant."""
        policy = self._policy_of(namespace)
        if self.region not in policy.regions:
            raise Refused("not-found", "no such tenant here", field="tenant")
        return policy

    def may_exchange(self, namespace: str, region: str) -> bool:
        """Whether this region and that one may speak of the tenant's objects, at this moment."""
        if self._store is None or namespace in self._store.forbidden:
            return False
        try:
            return may_exchange(self._policy_of(namespace), here=self.region, there=region)
        except Refused:
            return False

    def durability_of(self, namespace: str, service: str) -> str:
        """As this region is configured: ``async`` or ``peer``."""
        return self._config.durability_of(namespace, service)

    def routes(self) -> list[Route]:
        """For Cores of other regions."""
        return ObjectDoor(self).routes()

    async def run(self) -> None:
        """For ever: read what other regions have."""
        if self._store is not None:
            await asyncio.gather(*(replica.run() for replica in self.replicas.values()))

    # --- what the KMIP side calls --------------------------------------------------------------------------------

    async def get(self, namespace: str, service: str, uid: str) -> SealedObject | None:
        """The newest version that this region has.  Raises Integrity where it is damaged."""
        self.policy(namespace)
        try:
            return self.store.get(namespace, service, uid)
        except Integrity:
            self.saw_damage(namespace, 1)
            raise

    async def find(self, namespace: str, service: str, name: bytes | None) -> Sequence[SealedObject]:
        """All of the service, or those with that name's token, destroyed ones too, in the order in which they came to
        this region; damaged ones are passed over.  Raises Refused ``too-many``."""
        found: list[SealedObject] = []
        after, rest = 0, True
        while rest:
            self.policy(namespace)
            page, upto, damaged = self.store.find(namespace, service, name, after=after, most=FIND_STEP)
            self.saw_damage(namespace, damaged)
            found += page
            if len(found) > OBJECTS_FOUND_MAX:
                raise Refused("too-many", f"more than {OBJECTS_FOUND_MAX} objects; name the one that is meant")
            after, rest = upto, upto > after
            await asyncio.sleep(0)
        return found

    async def commit(self, namespace: str, service: str, changes: Changes, *, durability: str) -> None:
        """All of ``changes`` or nothing, durable on return; ``home`` is set by whoever does it.

        ``durability``: ``async``, or ``peer``: another allowed region has it as well on return.  Where none confirmed
        it, Unavailable ``no-peer`` is raised, and it is done here all the same.  Where the writer did not answer
        (``writer-away``), it may have been done there, and will show here then.  Raises Conflict, Refused, Integrity.
        """
        if durability not in DURABILITIES:
            raise ValueError(durability)
        check_changes(namespace, service, changes)
        policy = self.policy(namespace)
        by = plan_writer(changes, self._held(namespace, service, changes), policy, here=self.region)
        if by != self.region:
            self.store.check_names(changes)
            link = self._replica(by).link
            done = await forward_to_writer(link, by, namespace, service, changes, self.token(ID_BYTES).hex())
            await self.receive(namespace, done, source=by)
            return
        others = [region for region in policy.regions if region != self.region]
        if durability == "peer" and not others:
            raise Refused("no-peer", "only this region is allowed the tenant: no other can hold a copy")
        links = {region: self.replicas[region].link for region in others if region in self.replicas}
        if durability == "peer" and not links:
            raise Unavailable("no-link", "this Core knows no way to any other region of the tenant")
        held = await self._commit_here(namespace, service, changes)
        if durability == "peer":
            await confirm_elsewhere(links, namespace, held, lambda region: self.may_exchange(namespace, region))

    def _held(self, namespace: str, service: str, changes: Changes) -> dict[str, SealedObject]:
        uids = [after.uid for expected, after in changes if expected]
        return {uid: one for uid in uids if (one := self.store.get(namespace, service, uid)) is not None}

    async def _commit_here(
        self, namespace: str, service: str, changes: Changes, *, forward: str = ""
    ) -> tuple[SealedObject, ...]:
        await self._read_first(namespace, service, changes, self.policy(namespace))
        async with self.writing:
            policy, held = self.policy(namespace), self._held(namespace, service, changes)
            if (by := plan_writer(changes, held, policy, here=self.region)) != self.region:
                raise Unavailable("writer-moves", f"region {by} changes these objects now")
            return self.store.commit(namespace, service, at_home(changes, self.region), forward=forward)

    async def _read_first(self, namespace: str, service: str, changes: Changes, policy: PolicyRow) -> None:
        """An object that came from elsewhere, though this region is its writer now, may be newer there: this region's
        file was lost, or it took over.  Raises Unavailable where another allowed region cannot be asked."""
        if not any(self.store.source(namespace, service, after.uid) for expected, after in changes if expected):
            return
        for region in policy.regions:
            if region != self.region:
                await self._replica(region).read_now(namespace)

    def _replica(self, region: str) -> ObjectReplica:
        """Raises Unavailable where this Core was told no address of ``region``."""
        if region not in self.replicas:
            raise Unavailable("no-link", f"this Core knows no way to region {region}")
        return self.replicas[region]

    # --- what other regions want -------------------------------------------------------------------------------------

    async def commit_for_another(
        self, namespace: str, service: str, changes: Changes, *, forward: str
    ) -> tuple[SealedObject, ...]:
        """As the writer.  One that comes again is not done again.  The other region asked its own kill switch, and
        this one's word counts here: it may know of a restriction before others do.  Raises Unavailable too."""
        check_changes(namespace, service, changes)
        if not self._may_change(namespace, service):
            raise Unavailable("writer-closed", "this region serves nobody of that service now")
        return await self._commit_here(namespace, service, changes, forward=forward)

    async def receive(
        self, namespace: str, offered: Sequence[SealedObject], *, source: str, cursor: Cursor | None = None
    ) -> list[Verdict]:
        """What region ``source`` has, judged and stored.  Raises Refused where it has no say in the tenant any more."""
        async with self.writing:
            if not self.may_exchange(namespace, source):
                raise Refused("not-found", "no such tenant here", field="tenant")
            verdicts = self.store.receive(namespace, offered, source=source, cursor=cursor)
        for one, verdict in zip(offered, verdicts, strict=True):
            self.counts[verdict.value] += 1
            if verdict is Verdict.FORK:
                fields = {"tenant": namespace, "service": one.service, "uid": one.uid, "version": one.version}
                log.error("an object is forked", extra={"fields": {**fields, "region": source}})
        return verdicts

    def saw_damage(self, namespace: str, damaged: int) -> None:
        """Objects that cannot be read here are asked for again, once in a life."""
        if not damaged:
            return
        self.counts["damaged"] += damaged
        if namespace not in self._reread:
            self._reread.add(namespace)
            log.error("objects are damaged", extra={"fields": {"tenant": namespace, "n": damaged}})
            try:
                self.store.forget_cursors(namespace)
            except KeymeshError as failed:
                log.warning("objects are not read again", extra={"fields": {"reason": failed.code}})

    # --- a tenant that is no more ------------------------------------------------------------------------------------

    def forbid(self, namespace: str) -> None:
        """From now on nothing of that tenant is written here."""
        if self._store is not None:
            self._store.forbid(namespace)

    async def purge(self, namespace: str) -> None:
        """Destroy all that is here of a forbidden tenant, durably; no file has its bytes then.  Idempotent."""
        async with self.writing:
            is_empty = False
            while not is_empty:
                is_empty = self.store.purge_some(namespace, most=PURGE_STEP)
                await asyncio.sleep(0)
            await asyncio.to_thread(self.store.compact)

    # --- being looked at ---------------------------------------------------------------------------------------------

    def lags_s(self, namespace: str) -> dict[str, float]:
        """For each other region that may hold the tenant: how old what is here of its objects may be."""
        now = self.monotonic_s()
        return {
            peer: replica.lag.seconds(namespace, now)
            for peer, replica in self.replicas.items()
            if self.may_exchange(namespace, peer)
        }

    def behind_s(self, namespace: str) -> float:
        """The largest of ``lags_s``; 0 where nothing is known of any object."""
        is_known = self._store is not None and self._store.head(namespace) > 0
        return max(self.lags_s(namespace).values(), default=0.0) if is_known else 0.0

    def describe(self) -> dict[str, Any]:
        """For operators: objects and lags of each tenant, and what somebody should look at."""
        try:
            counts, forks = self.store.counts(), self.store.forks()
        except KeymeshError as failed:
            return {"code": failed.code, "tenants": {}}
        tenants = {
            tenant: {
                "objects": count,
                "behind_ms": {peer: int(lag_s * 1_000) for peer, lag_s in self.lags_s(tenant).items()},
            }
            for tenant, count in counts.items()
        }
        return {
            "code": "ok",
            "tenants": tenants,
            "forks": forks,
            "damaged": self.counts["damaged"],
            "unreadable": sum(replica.counts["unreadable"] for replica in self.replicas.values()),
        }

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
