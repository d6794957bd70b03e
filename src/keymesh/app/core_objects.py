"""The sealed KMIP objects of one Core: read here, changed by their writer, kept in a file of their own.

Decides nothing about an object's content, and asks no kill switch: whoever releases something does.  A region that the
tenant does not allow neither reads nor writes.  Where the file is damaged or away, objects are, and all else goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from keymesh.adapters.sqlite_objects import SqliteObjects
from keymesh.control.rows import PolicyRow
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable
from keymesh.model.limits import OBJECTS_FOUND_MAX
from keymesh.orbital.objects import Changes, SealedObject, at_home, check_changes, plan_writer

log = logging.getLogger("keymesh.core.objects")

FILE: Final = "objects.db"
DURABILITIES: Final = ("async", "peer")
FIND_STEP: Final = 100
PURGE_STEP: Final = 1_000


class CoreObjects:
    """``policy_of(tenant)``: as applied here; raises Refused ``not-found``.  ``new_origin``: names a file made anew."""

    def __init__(self, *, region: str, directory: Path, policy_of: Callable[[str], PolicyRow], new_origin: str) -> None:
        self.region = region
        self._policy_of = policy_of
        self._store: SqliteObjects | None = None
        self.fault: KeymeshError | None = None
        self.writing = asyncio.Lock()
        self.damaged = 0
        try:
            self._store = SqliteObjects(directory / FILE, new_origin=new_origin)
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

    def durability_of(self, namespace: str, service: str) -> str:
        """What a commit of that service waits for."""
        return "async"

    def policy(self, namespace: str) -> PolicyRow:
        """Raises Refused ``not-found`` where this region may not hold the tenant."""
        policy = self._policy_of(namespace)
        if self.region not in policy.regions:
            raise Refused("not-found", "no such tenant here", field="tenant")
        return policy

    # --- what the KMIP side calls --------------------------------------------------------------------------------

    async def get(self, namespace: str, service: str, uid: str) -> SealedObject | None:
        """The newest version that this region has.  Raises Integrity where it is damaged."""
        self.policy(namespace)
        return self.store.get(namespace, service, uid)

    async def find(self, namespace: str, service: str, name: bytes | None) -> Sequence[SealedObject]:
        """All of the service, or those with that name's token, destroyed ones too, in the order in which they came to
        this region; damaged ones are passed over.  Raises Refused ``too-many``."""
        found: list[SealedObject] = []
        after, rest = 0, True
        while rest:
            self.policy(namespace)
            page, upto, damaged = self.store.find(namespace, service, name, after=after, most=FIND_STEP)
            self.damaged += damaged
            found += page
            if len(found) > OBJECTS_FOUND_MAX:
                raise Refused("too-many", f"more than {OBJECTS_FOUND_MAX} objects; name the one that is meant")
            after, rest = upto, upto > after
            await asyncio.sleep(0)
        return found

    async def commit(self, namespace: str, service: str, changes: Changes, *, durability: str) -> None:
        """All of ``changes`` or nothing, durable on return; ``home`` is set here.

        ``durability``: ``async``, or ``peer``: another allowed region has it as well on return.  Raises Conflict,
        Refused, Unavailable, Integrity.
        """
        if durability not in DURABILITIES:
            raise ValueError(durability)
        check_changes(namespace, service, changes)
        policy = self.policy(namespace)
        uids = [after.uid for expected, after in changes if expected]
        held = {uid: one for uid in uids if (one := self.store.get(namespace, service, uid)) is not None}
        by = plan_writer(changes, held, policy, here=self.region)
        if by != self.region:
            raise Unavailable("writer-away", f"these objects are changed in region {by}, which is not reached")
        async with self.writing:
            self.store.commit(namespace, service, at_home(changes, self.region))

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

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
