"""The Registry's HTTP API for administrators: commands in, reads out, certificates awaited.

Every read carries the log index that it reflects; ``?at_least=N`` waits until the projection is there.  Another
tenant's ids look like absent ones.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import asdict

from keymesh import __version__
from keymesh.access.admit import Action, action_of, admit, require
from keymesh.access.identity import AdminIdentity, PersonIdentity
from keymesh.adapters.http_messages import Handler, Request, Response, Route, Stream, json_response
from keymesh.adapters.sql_projection import Read
from keymesh.app.backup_wiring import backup_view
from keymesh.app.openapi import Operation, Query, openapi_of
from keymesh.app.registry_bodies import (
    BatchAnswer,
    BatchBody,
    BatchProblem,
    BatchResult,
    CertificateAnswer,
    CommandAnswer,
    CommandBody,
    CommandStatus,
    KeysAnswer,
    RegionAnswer,
    RegionsAnswer,
    RegionView,
    RestrictionsAnswer,
    ServiceAnswer,
    ServicesAnswer,
    StatusAnswer,
    TenantAnswer,
    TenantsAnswer,
)
from keymesh.app.registry_clients import ClientsAnswer, show_clients
from keymesh.app.registry_regions import show_region
from keymesh.app.registry_views import TenantRows, show_keys, show_kill, show_scopes, show_service, show_tenant
from keymesh.control.rows import PolicyRow, policy_in
from keymesh.model.errors import Refused, Unavailable
from keymesh.model.ids import MESH_NAMESPACE, TenantId, check_label, check_region, check_tenant, check_token
from keymesh.model.limits import COMMIT_MAX_ENTRIES
from keymesh.registry import killswitch
from keymesh.registry.events import Command
from keymesh.registry.state import Space

if TYPE_CHECKING:
    from keymesh.app.registry_app import RegistryProcess

WAIT_MAX_MS: Final = 30_000
ROWS_MAX: Final = 100_000

_READ: Final = (Query("at_least", "integer", "answer at this log index or a later one; waits up to 5 s for it"),)
_WHICH: Final = (
    Query("wait_ms", "integer", f"wait so long for the certificate, at most {WAIT_MAX_MS}"),
    Query("namespace", "string", "whose command, where tenants have used the same id"),
)


class RegistryApi:
    """Routes, readiness and metrics of the Registry."""

    def __init__(self, process: RegistryProcess) -> None:
        self._process = process

    def routes(self) -> list[Route]:
        """All of them, for administrators; the OpenAPI document is made from the same table."""

        def admin(request: Request) -> bool:
            return isinstance(request.identity, AdminIdentity | PersonIdentity)

        self._table = (
            Operation("POST", "/v1/commands", self._command, CommandAnswer, body=CommandBody),
            Operation("POST", "/v1/commands/batch", self._batch, BatchAnswer, body=BatchBody),
            Operation("GET", "/v1/commands/{namespace}/{command_id}", self._command_status, CommandStatus),
            Operation("GET", "/v1/certificates/{command_id}", self._certificate, CertificateAnswer, query=_WHICH),
            Operation("GET", "/v1/restrictions/{namespace}", self._restrictions, RestrictionsAnswer),
            Operation("GET", "/v1/tenants", self._tenants, TenantsAnswer, query=_READ),
            Operation("GET", "/v1/tenants/{tenant}", self._tenant, TenantAnswer, query=_READ),
            Operation("GET", "/v1/tenants/{tenant}/services", self._services, ServicesAnswer, query=_READ),
            Operation("GET", "/v1/tenants/{tenant}/services/{service}", self._service, ServiceAnswer, query=_READ),
            Operation("GET", "/v1/tenants/{tenant}/clients", self._clients, ClientsAnswer, query=_READ),
            Operation("GET", "/v1/tenants/{tenant}/keys", self._keys, KeysAnswer, query=_READ),
            Operation("GET", "/v1/regions", self._regions, RegionsAnswer),
            Operation("GET", "/v1/regions/{region}", self._region, RegionAnswer),
            Operation("GET", "/v1/status", self._status, StatusAnswer),
            Operation("GET", "/v1/openapi.json", self._openapi, None),
        )
        current = self._process.log.current
        every: Any = {"allow": admin, "takes_tokens": True}
        return [
            Route(method=o.method, path=o.path, handler=self.once_booted(current(o.handler, o.method)), **every)
            for o in self._table
        ]

    def once_booted(self, handler: Handler) -> Handler:
        """Until the log has been read nothing is known to be absent: not now, rather than a final no."""

        async def handle(request: Request) -> Response | Stream:
            if not self._process.shell.state.booted:
                raise Unavailable("booting", "the control log is still being read")
            return await handler(request)

        return handle

    # --- commands ----------------------------------------------------------------------------------------------------

    async def _command(self, request: Request) -> Response:
        """Commit one command; the Idempotency-Key is its id: the same again answers the same, another body 409."""
        body = request.json(CommandBody)
        if request.idempotency_key is None:
            raise Refused.bad_field("idempotency-key", "required")
        return json_response(await self._commit(request, request.idempotency_key, body))

    async def _batch(self, request: Request) -> Response:
        """Up to 32 commands at once, so that they share commits; answers in their order."""
        items = request.json(BatchBody).commands
        if not 0 < len(items) <= COMMIT_MAX_ENTRIES:
            raise Refused.bad_field("commands", f"1 to {COMMIT_MAX_ENTRIES}")
        results = await asyncio.gather(
            *(self._commit(request, check_token("command_id", i.command_id), i) for i in items), return_exceptions=True
        )
        out: list[BatchResult] = []
        for result in results:
            if isinstance(result, Refused):
                problem = BatchProblem(code=result.code, message=result.message, field=result.field)
                out.append(BatchResult(error=problem))
            elif isinstance(result, BaseException):
                raise result
            else:
                out.append(BatchResult(**asdict(result)))
        return json_response(BatchAnswer(results=tuple(out)))

    async def _commit(self, request: Request, command_id: str, body: CommandBody) -> CommandAnswer:
        return await self._process.log.for_command(body.kind, lambda: self._commit_once(request, command_id, body))

    async def _commit_once(self, request: Request, command_id: str, body: CommandBody) -> CommandAnswer:
        self._authorise(request, body)
        done = await self._process.command(
            Command(
                command_id=command_id,
                namespace=body.namespace,
                kind=body.kind,
                args=body.args,
                actor=str(request.identity),
                correlation_id=request.correlation_id,
                authority=body.authority,
                words=body.words,
            )
        )
        return CommandAnswer(
            command_id=command_id,
            namespace=body.namespace,
            epoch=done.epoch,
            seq=done.seq,
            index=done.index,
            duplicate=done.duplicate,
            correlation_id=request.correlation_id,
        )

    def _authorise(self, request: Request, body: CommandBody) -> None:
        """Whether this administrator may ask for it; a tenant of others looks absent."""
        action = action_of(body.kind)
        if body.kind == "tenant.create" or body.namespace == MESH_NAMESPACE:  # no tenant there (yet) to look up
            require(admit(None, action, identity=request.identity, assigned=self._process.assigned))
        else:
            tenant = check_tenant(body.namespace)
            space = self._process.shell.state.spaces.get(tenant)
            self._require(request, action, tenant, None if space is None else space.policy)

    def _require(self, request: Request, action: Action | None, tenant: str, policy: PolicyRow | None) -> None:
        decision = admit(
            policy, action, identity=request.identity, tenant=TenantId(tenant), assigned=self._process.assigned
        )
        if decision.code in ("absent", "residency"):
            raise Refused("not-found", "no such tenant", field="tenant")
        require(decision)

    def _see(self, request: Request, namespace: str) -> None:
        """Whether this administrator may see commands of ``namespace``."""
        if namespace == MESH_NAMESPACE:
            self._require_mesh(request)
        else:
            space = self._process.shell.state.spaces.get(check_tenant(namespace))
            policy = None if space is None else space.policy
            self._require(request, Action.CERTIFICATE_READ, namespace, policy)

    def _may_see(self, request: Request, namespace: str) -> bool:
        try:
            self._see(request, namespace)
        except Refused:
            return False
        return True

    def _require_mesh(self, request: Request) -> None:
        require(admit(None, Action.MESH_READ, identity=request.identity, assigned=self._process.assigned))

    async def _command_status(self, request: Request) -> Response:
        """Where a command stands: its position, and whether a majority of voters has it."""
        namespace = request.params["namespace"]
        command_id = check_token("command_id", request.params["command_id"])
        self._see(request, namespace)
        done = self._process.shell.state.done.get((namespace, command_id))
        if done is None:
            raise Refused("not-found", "no such command", field="command_id")
        seq, index = done
        space = self._process.shell.state.spaces[namespace]
        waiting = seq in space.uncommitted
        return json_response(
            CommandStatus(command_id=command_id, namespace=namespace, seq=seq, index=index, committed=not waiting)
        )

    async def _certificate(self, request: Request) -> Response:
        """The kill-switch record of a command; ``?wait_ms=N`` waits for its certificate.

        ``?namespace=T`` says whose command, where tenants have used the same id.
        """
        command_id = check_token("command_id", request.params["command_id"])
        wait_ms = number_in(request, "wait_ms", default=0, most=WAIT_MAX_MS)
        deadline = time.monotonic() + wait_ms / 1000
        while True:
            state = self._process.shell.state
            found = killswitch.find(
                state,
                command_id,
                namespace=request.query.get("namespace"),
                may_see=lambda namespace: self._may_see(request, namespace),
            )
            kill = state.kills[found]
            left = deadline - time.monotonic()
            if kill.record.status not in (killswitch.REVOKING, killswitch.PENDING) or left <= 0:
                break
            async with self._process.certified:
                try:
                    await asyncio.wait_for(self._process.certified.wait(), min(left, 1.0))
                except TimeoutError:
                    continue
        log, key = self._process.log, (kill.record.namespace, command_id)
        return json_response(
            show_kill(
                state,
                kill,
                self._process.shell.now(),
                append_started_ns=log.append_started.get(key),
                appended_ns=log.appended.get(key),
            )
        )

    async def _restrictions(self, request: Request) -> Response:
        """What is restricted in a namespace, each scope with the seq that a resume of a wide one must name."""
        self._see(request, request.params["namespace"])
        space = self._process.shell.state.spaces.get(request.params["namespace"])
        shown = () if space is None else show_scopes(space.rows)
        return json_response(RestrictionsAnswer(restrictions=shown, index=self._process.shell.state.index))

    # --- reads -------------------------------------------------------------------------------------------------------

    async def _read(self, request: Request, table: str, **equal: Any) -> Read:
        """Rows of the projection, at the index that the client asked for at least; waits up to 5 s for it.

        Where another replica may be the one that writes it: at what this one has acknowledged, at least.
        """
        state = self._process.shell.state
        wanted = number_in(request, "at_least", default=state.index if self._process.log.shared else 0, most=2**53)
        deadline = time.monotonic() + 5.0
        while True:
            try:
                return await self._process.read_model.read(table, at_least=wanted, limit=ROWS_MAX, **equal)
            except Unavailable as behind:
                if behind.code != "behind" or time.monotonic() >= deadline:
                    raise
                await asyncio.sleep(0.02)

    async def _tenants(self, request: Request) -> Response:
        """The tenants that this administrator may see."""
        found = await self._read(request, "tenants")
        shown = []
        for row in found.rows:
            try:
                shown.append(show_tenant(await self._named(request, row["tenant"]), self._process.shell.state))
            except Refused:
                continue
        return json_response(TenantsAnswer(tenants=tuple(shown), index=found.index))

    async def _tenant(self, request: Request) -> Response:
        """One tenant: where it may be, under which root keys, with which services."""
        space = await self._named(request)
        return json_response(TenantAnswer(**asdict(show_tenant(space, self._process.shell.state)), index=space.index))

    async def _named(self, request: Request, name: str | None = None) -> TenantRows:
        """The tenant in the path, from the projection.  Raises Refused as for an absent one."""
        tenant = check_tenant(name or request.params["tenant"])
        found = await self._read(request, "rows", namespace=tenant)
        rows = {row["name"]: bytes(row["value"]) for row in found.rows}
        policy = policy_in(rows)
        self._require(request, Action.TENANT_READ, tenant, policy)
        assert policy is not None
        return TenantRows(tenant, policy, rows, found.index)

    async def _services(self, request: Request) -> Response:
        """The tenant's services."""
        space = await self._named(request)
        names = sorted(name.removeprefix("service/") for name in space.rows if name.startswith("service/"))
        shown = tuple(show_service(space, name) for name in names)
        return json_response(ServicesAnswer(services=shown, index=space.index))

    async def _service(self, request: Request) -> Response:
        """One service: custody, budgets, wrapping version, state."""
        space = await self._named(request)
        name = check_label("service", request.params["service"])
        if f"service/{name}" not in space.rows:
            raise Refused("not-found", "no such service", field="service")
        return json_response(ServiceAnswer(**asdict(show_service(space, name)), index=space.index))

    async def _clients(self, request: Request) -> Response:
        """Every client of the tenant that Cores serve by themselves, and its service."""
        space = await self._named(request)
        return json_response(ClientsAnswer(clients=show_clients(space), index=space.index))

    async def _keys(self, request: Request) -> Response:
        """Every key version of the tenant; digests and kids, never key bytes."""
        space = await self._named(request)
        return json_response(KeysAnswer(keys=show_keys(space), index=space.index))

    async def _regions(self, request: Request) -> Response:
        """All regions."""
        self._require_mesh(request)
        state = self._process.shell.state
        names = sorted(n.removeprefix("region/") for n in self._mesh().rows if n.startswith("region/"))
        shown = tuple(self._shown_region(name) for name in names)
        return json_response(RegionsAnswer(regions=shown, halted=state.halted, index=state.index))

    async def _region(self, request: Request) -> Response:
        """One region: freshness, drift, lanes, internal key."""
        self._require_mesh(request)
        name = check_region(request.params["region"])
        if f"region/{name}" not in self._mesh().rows:
            raise Refused("not-found", "no such region", field="region")
        return json_response(RegionAnswer(**asdict(self._shown_region(name)), index=self._process.shell.state.index))

    def _shown_region(self, name: str) -> RegionView:
        return show_region(self._process.shell.state, self._process.shell.now(), self._mesh().rows, name)

    def _mesh(self) -> Space:
        space: Space | None = self._process.shell.state.spaces.get(MESH_NAMESPACE)
        if space is None:
            raise Unavailable("booting", "the control log is still being read")
        return space

    async def _status(self, request: Request) -> Response:
        """Index, what waits, and every region."""
        self._require_mesh(request)
        state = self._process.shell.state
        names = sorted(n.removeprefix("region/") for n in self._mesh().rows if n.startswith("region/"))
        return json_response(
            StatusAnswer(
                mesh=self._process.config.mesh,
                version=__version__,
                halted=state.halted,
                tenants=sum(s.policy is not None for s in state.spaces.values()),
                uncommitted=sum(len(s.uncommitted) for s in state.spaces.values()),
                open_kill_switches=len(state.open_kills),
                regions={name: self._shown_region(name) for name in names},
                backup=backup_view(self._process.backups),
                index=state.index,
                broker=None if self._process.broker is None else self._process.broker.describe(),
            )
        )

    async def _openapi(self, request: Request) -> Response:
        """This document."""
        return json_response(openapi_of("keymesh Registry", self._table))

    # --- health ------------------------------------------------------------------------------------------------------

    def readiness(self) -> list[str]:
        """Why the Registry cannot serve; empty where it can."""
        state = self._process.shell.state
        if state.halted:
            return [f"halted: {state.halted}"]
        return [] if state.booted else ["reading the control log"]


def number_in(request: Request, name: str, *, default: int, most: int) -> int:
    text = request.query.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 16 or int(text) > most:
        raise Refused.bad_field(name, f"a whole number up to {most}")
    return int(text)
