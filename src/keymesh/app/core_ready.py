"""What a Core finds when it asks itself which tenants it could serve now: on a schedule, and whenever an operator asks.

It looks, and changes nothing: the customers' L1s unwrap what is stored, each replica of each, within the budget that
routine probes have; the result is thrown away.  Results are kept in ``ready.jsonl``, the newest ``KEPT``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from keymesh.access.admit import Action, admit
from keymesh.adapters.files import write_file
from keymesh.adapters.http_messages import Request, Response, Route, json_response
from keymesh.app.layout import ASSIGNED
from keymesh.app.ready_rules import RegionFound, TenantFound, region_faults, tenant_faults
from keymesh.core.l1_lease import probe_binding
from keymesh.core.state import Holding
from keymesh.core.views import LIVE_WORDS, TenantView
from keymesh.model import strict_json
from keymesh.model.errors import KeymeshError, Refused
from keymesh.model.scope import ScopeKind

if TYPE_CHECKING:
    from keymesh.app.core_app import CoreProcess

log = logging.getLogger("keymesh.core.ready")

FILE: Final = "ready.jsonl"
KEPT: Final = 1_000
FIRST_S: Final = 60.0
EVERY_S: Final = 300.0
TENANTS_AT_ONCE: Final = 16
WHY_KEPT: Final = 20
_FILE_MAX_BYTES: Final = 16 * 1024 * 1024


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """One result, as it is kept.  ``ok``: this region could take every tenant that it holds."""

    at: int
    ok: bool
    tenants: int
    why: tuple[str, ...]


class CoreReady:
    """``run`` looks every ``EVERY_S``; ``found`` is the newest result."""

    def __init__(self, core: CoreProcess, readiness: Callable[[], list[str]]) -> None:
        """``readiness``: why this node can serve nobody."""
        self._core, self._readiness = core, readiness
        self._file = Path(core.directory) / FILE
        self._one = asyncio.Lock()
        self.found: RegionFound | None = None

    def routes(self) -> list[Route]:
        """For operators."""

        def is_operator(request: Request) -> bool:
            return admit(None, Action.MESH_READ, identity=request.identity, assigned=ASSIGNED).allowed

        return [
            Route(method="GET", path="/v1/ready", handler=self._ready, allow=is_operator),
            Route(method="GET", path="/v1/ready/kept", handler=self._kept, allow=is_operator),
        ]

    async def _ready(self, request: Request) -> Response:
        """The newest result; with ``?fresh=yes``, or where there is none, one that is made now."""
        if request.query.get("fresh", "no") not in ("yes", "no"):
            raise Refused.bad_field("fresh", "yes or no")
        found = self.found
        if found is None or request.query.get("fresh") == "yes":
            found = await self.look()
        return json_response(found)

    async def _kept(self, request: Request) -> Response:
        return json_response({"region": self._core.region, "kept": self.kept()})

    # --- looking -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """For ever: a look every ``EVERY_S``, first of all when the node has had time to hear of its tenants."""
        await asyncio.sleep(FIRST_S)
        while True:
            await self.look()
            await asyncio.sleep(EVERY_S)

    async def look(self) -> RegionFound:
        """One look at everything; whoever asks meanwhile gets the next one."""
        async with self._one:
            slots = asyncio.Semaphore(TENANTS_AT_ONCE)

            async def one(name: str) -> tuple[str, TenantFound] | None:
                async with slots:
                    try:
                        return name, await self._tenant(name)
                    except KeymeshError as bad:  # gone meanwhile, or a store that does not answer
                        log.info("tenant not looked at", extra={"fields": {"tenant": name, "reason": bad.code}})
                        return None

            names = [n for n, holding in self._core.shell.state.tenants.items() if is_to_be_served(holding)]
            looked = await asyncio.gather(*(one(name) for name in sorted(names)))
            pages, state = self._core.pages, self._core.shell.state
            missing = sum(
                len(self._live(state.tenants[name].view)) - len(state.tenants[name].loaded)
                for name in names
                if name in state.tenants
            )
            self.found = RegionFound(
                region=self._core.region,
                at=time.time_ns() // 1_000_000,
                why=tuple(self._readiness()),
                room=pages.slots_max - pages.slots_in_use,
                missing=max(0, missing),
                tenants=dict(pair for pair in looked if pair is not None),
            )
            self._keep(self.found)
            return self.found

    def _live(self, view: TenantView) -> list[Any]:
        return [(name, row) for name, row in view.keys.items() if row.state in LIVE_WORDS]

    async def _tenant(self, name: str) -> TenantFound:
        core = self._core
        view, policy = core.view(name), core.policy(name)
        live = self._live(view)
        stored = {one.kid: one.revision for one in await core.store.stored_keys(name)}
        blobs = [await core.store.get_blob(name, row.digest) is not None for _, row in live]
        binding = probe_binding(view) or ""
        return TenantFound(
            allowed=core.region in policy.regions,
            seq=core.shell.state.tenants[name].leaf.seq,
            binding=binding,
            l1=await self._ask(name, binding),
            keys=len(live),
            stored=sum(stored.get(row.kid) == row.revision for _, row in live),
            blobs=sum(blobs),
            objects_behind_s=int(core.objects.behind_s(name)),
        )

    async def _ask(self, name: str, binding: str) -> dict[str, str]:
        try:
            return await self._core.keys.ask_replicas(name, binding) if binding else {}
        except KeymeshError:  # sealed, or nothing stored: said beside it
            return {}

    # --- keeping -----------------------------------------------------------------------------------------------------

    def _keep(self, found: RegionFound) -> None:
        faults = [*region_faults(found)]
        for name, tenant in found.tenants.items():
            faults += [f"{name}: {fault}" for fault in tenant_faults(tenant)]
        made = Kept(at=found.at, ok=not faults, tenants=len(found.tenants), why=tuple(faults[:WHY_KEPT]))
        before = self.kept()
        if before and before[-1].ok != made.ok:
            log.warning("readiness changed", extra={"fields": {"ok": made.ok, "why": "; ".join(made.why)}})
        lines = [strict_json.dumps(one) for one in (*before, made)[-KEPT:]]
        try:
            write_file(self._file, b"\n".join(lines) + b"\n")
        except OSError as full:
            log.warning("readiness not kept", extra={"fields": {"reason": full.strerror or "disk"}})

    def kept(self) -> tuple[Kept, ...]:
        """What was kept, oldest first; a line that cannot be read is left out."""
        try:
            raw = self._file.read_bytes()[-_FILE_MAX_BYTES:]
        except OSError:
            return ()
        found = []
        for line in raw.splitlines():
            try:
                found.append(strict_json.decode(line, Kept, max_bytes=_FILE_MAX_BYTES))
            except Refused:
                continue
        return tuple(found)


def is_to_be_served(holding: Holding) -> bool:
    """Applied here, and neither revoked as a whole nor to be destroyed: nobody will ever take that."""
    return holding.applied is not None and not any(
        found.scope.kind is ScopeKind.DESTRUCTION or (found.state == "revoked" and found.scope.kind is ScopeKind.TENANT)
        for found in holding.restrictions.values()
    )
