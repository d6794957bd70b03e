"""A Core's HTTP API for administrators and for the other Cores of a tenant's regions.

Blobs of a residency domain move only between regions that the tenant's applied policy allows; a region that does not
hold the tenant answers as if it did not exist.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec
from cryptography import x509

from keymesh.access.admit import Action, admit, require
from keymesh.access.identity import AdminIdentity, ClientIdentity, CoreIdentity, EdgeIdentity, PersonIdentity
from keymesh.adapters import key_files, pki
from keymesh.adapters.http_messages import Request, Response, Route, json_response
from keymesh.app.backup_wiring import backup_view
from keymesh.app.budget_view import show_budgets
from keymesh.app.core_seals_api import SealsApi
from keymesh.app.guarded_store import NOT_LOOKED_AT
from keymesh.app.layout import ASSIGNED
from keymesh.control.rows import L2_NAME
from keymesh.core.clients import is_ended
from keymesh.core.events import LocalRestrict
from keymesh.core.explain import explain
from keymesh.core.keystore import KeyStore
from keymesh.core.local import LOCALS_PER_NAMESPACE_MAX, TOO_MANY
from keymesh.crypto import wrap
from keymesh.crypto.chain import Chain, ChainBinding, ChainL2, ChainL3, chain_to_json
from keymesh.model.errors import Refused, Unavailable
from keymesh.model.ids import RegionId, ServiceName, TenantId, check_hex, check_label, check_tenant
from keymesh.model.scope import destruction_of, parse_kill_scope
from keymesh.model.time import Instant
from keymesh.orbital import edge_wire as wire

if TYPE_CHECKING:
    from keymesh.app.core_app import CoreProcess

CLIENTS_PATH: Final = "/v1/clients/certificates"
HOUR_MS: Final = 3_600_000
BLOB_TYPE: Final = "application/octet-stream"
LOCAL_WAIT_S: Final = 5.0
BLOBS_PER_TENANT_MAX: Final = 100_000
BLOBS_FULL_RETRY_MS: Final = 60_000


class RestrictBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``args``: the command's arguments, whole, as whoever signed ``authority`` signed them; {} for the scope alone."""

    scope: str
    action: str
    authority: tuple[dict[str, Any], ...] = ()
    args: dict[str, Any] = {}


class EnrolBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    tenant: str
    service: str
    instance: str
    csr: str


class ClientBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    tenant: str
    client: str
    csr: str


class CoreApi:
    """Routes, readiness and metrics of one Core."""

    def __init__(self, core: CoreProcess) -> None:
        self._core = core

    def routes(self) -> list[Route]:
        """All of them, each with who may ask."""

        def is_core(request: Request) -> bool:
            return isinstance(request.identity, CoreIdentity)

        def is_admin(request: Request) -> bool:
            return isinstance(request.identity, AdminIdentity)

        def is_person(request: Request) -> bool:
            return isinstance(request.identity, AdminIdentity | PersonIdentity)

        def is_operator(request: Request) -> bool:
            return admit(None, Action.MESH_READ, identity=request.identity, assigned=ASSIGNED).allowed

        def is_edge(request: Request) -> bool:
            return isinstance(request.identity, EdgeIdentity)

        return [
            Route(method="GET", path="/v1/blobs/{tenant}/{digest}", handler=self._get_blob, allow=is_core),
            Route(
                method="PUT",
                path="/v1/blobs/{tenant}/{digest}",
                handler=self._put_blob,
                allow=is_core,
                content_types=(BLOB_TYPE,),
                body_max_bytes=wrap.WRAP_MAX_BYTES,
            ),
            Route(method="POST", path="/v1/restrict", handler=self._restrict, allow=is_person, takes_tokens=True),
            Route(method="POST", path="/v1/certificates", handler=self._enrol, allow=is_admin),
            Route(method="POST", path=CLIENTS_PATH, handler=self._enrol_client, allow=is_admin),
            Route(method="POST", path=wire.RENEW_PATH, handler=self._renew, allow=is_edge),
            Route(method="GET", path="/v1/tenants/{tenant}/chain", handler=self._chain, allow=is_admin),
            Route(method="GET", path="/v1/status", handler=self._status, allow=is_operator),
            Route(
                method="GET",
                path="/v1/tenants/{tenant}/budgets",
                handler=self._budgets,
                allow=is_person,
                takes_tokens=True,
            ),
            Route(method="GET", path="/v1/applied", handler=self._applied, allow=is_operator),
            *SealsApi(self._core).routes(),
        ]

    # --- blobs -----------------------------------------------------------------------------------------------------

    def _blob_name(self, request: Request) -> tuple[str, str]:
        """(tenant, digest), where both this region and the asking one are allowed the tenant."""
        tenant = check_tenant(request.params["tenant"])
        digest = check_hex("digest", request.params["digest"], hex_bytes=32)
        identity = request.identity
        assert isinstance(identity, CoreIdentity)
        regions = self._core.policy(tenant).regions
        if identity.region not in regions or self._core.region not in regions:
            raise Refused("not-found", "no such tenant here", field="tenant")
        return tenant, digest

    async def _get_blob(self, request: Request) -> Response:
        tenant, digest = self._blob_name(request)
        blob = await self._core.store.get_blob(tenant, digest)
        if blob is None:
            raise Refused("not-found", "no such blob here", field="digest")
        return Response(body=blob, content_type=BLOB_TYPE)

    async def _put_blob(self, request: Request) -> Response:
        tenant, digest = self._blob_name(request)
        if wrap.digest(request.body) != digest:
            raise Refused.bad_field("digest", "is not the body's")
        await keep_blob(self._core.store, tenant, digest, request.body)
        return Response(status=204)

    # --- restrictions ------------------------------------------------------------------------------------------------

    async def _restrict(self, request: Request) -> Response:
        """A local suspension, in force when this answers; it becomes an entry on contact with the Registry."""
        body = request.json(RestrictBody)
        scope = parse_kill_scope(body.scope)
        if body.action not in ("suspend", "revoke"):
            raise Refused.bad_field("action", "suspend or revoke")
        if body.args.get("scope", body.scope) != body.scope:
            raise Refused.bad_field("args", "must name the same scope")
        if scope.needs_four_eyes:
            raise Refused("needs-registry", f"{scope} needs the Registry, where two officers are verified")
        if request.idempotency_key is None:
            raise Refused.bad_field("idempotency-key", "required")
        actor = self._admin_of(request, str(scope.tenant), Action(body.action))
        key = f"local/{scope}/{request.idempotency_key}"
        waiter = self._core.replies[key] = asyncio.get_running_loop().create_future()
        self._core.shell.feed(
            LocalRestrict(
                command_id=request.idempotency_key,
                scope=str(scope),
                action=body.action,
                actor=actor,
                correlation_id=request.correlation_id,
                authority=body.authority,
                options={name: value for name, value in body.args.items() if name != "scope"},
            )
        )
        try:
            reply = await asyncio.wait_for(waiter, LOCAL_WAIT_S)
        except TimeoutError as late:
            raise Unavailable("no-answer", "not recorded in time; repeat with the same id") from late
        finally:
            self._core.replies.pop(key, None)
        if reply.reason == TOO_MANY:
            raise Unavailable(
                TOO_MANY, f"{LOCALS_PER_NAMESPACE_MAX} wait for the Registry; suspend the tenant as a whole"
            )
        if not reply.recorded:
            raise Unavailable("not-recorded", reply.reason or "in force, but not durable here")
        return json_response({"command_id": request.idempotency_key, "region": self._core.region, "in_force": True})

    def _admin_of(self, request: Request, tenant: str, action: Action) -> str:
        """The administrator's URI.  Raises Refused as for an unknown tenant where they are nobody to it."""
        name = check_tenant(tenant)
        decision = admit(
            self._core.policy(name),
            action,
            identity=request.identity,
            tenant=name,
            region=RegionId(self._core.region),
            assigned=ASSIGNED,
        )
        if decision.code in ("absent", "residency"):
            raise Refused("not-found", "no such tenant here", field="tenant")
        require(decision)
        return str(request.identity)

    # --- certificates ------------------------------------------------------------------------------------------------

    async def _enrol(self, request: Request) -> Response:
        """A certificate for an Edge of one service of a tenant that this region may hold."""
        body = request.json(EnrolBody)
        tenant, service = check_tenant(body.tenant), check_label("service", body.service)
        check_label("instance", body.instance)
        self._admin_of(request, tenant, Action.SERVICE_SET)
        if service not in self._core.view(tenant).services:
            raise Refused("not-found", "no such service", field="service")
        identity = EdgeIdentity(
            mesh=self._core.tls.mesh,
            region=RegionId(self._core.region),
            tenant=TenantId(tenant),
            service=ServiceName(service),
            instance=body.instance,
        )
        return self._issue(identity, body.csr)

    async def _enrol_client(self, request: Request) -> Response:
        """A certificate for a client that the tenant names, which this Core serves by itself; a new one each time."""
        body = request.json(ClientBody)
        tenant, client = check_tenant(body.tenant), check_label("client", body.client)
        self._admin_of(request, tenant, Action.CLIENT_SET)
        if client not in self._core.view(tenant).clients:
            raise Refused("not-found", "no such client", field="client")
        if is_ended(self._core.shell.state, tenant, client):
            raise Refused("restricted", f"client {tenant}/{client} is suspended or revoked", field="client")
        if (kmip := self._core.config.kmip) is None:
            raise Refused("not-served", "this Core serves no clients; its configuration has no section kmip")
        identity = ClientIdentity(
            mesh=self._core.tls.mesh, region=RegionId(self._core.region), tenant=TenantId(tenant), name=client
        )
        return self._issue(identity, body.csr, lifetime_ms=kmip.certificate_h * HOUR_MS)

    async def _renew(self, request: Request) -> Response:
        """The same identity and the same key again, for an Edge that still has its certificate."""
        identity = request.identity
        assert isinstance(identity, EdgeIdentity)
        assert request.peer is not None
        if identity.service not in self._core.view(identity.tenant).services:
            raise Refused("denied", "the service is gone")
        csr = request.json(wire.RenewRequest).csr
        return self._issue(identity, csr, same_key_as=request.peer.public_key)

    def _issue(
        self,
        identity: EdgeIdentity | ClientIdentity,
        csr: str,
        same_key_as: bytes | None = None,
        lifetime_ms: int = pki.LEAF_LIFETIME_MS,
    ) -> Response:
        if same_key_as is not None and spki_of_csr(csr) != same_key_as:
            raise Refused.bad_field("csr", "a renewal keeps its key")
        if (issuer := self._core.config.identity.issuer) is None:
            raise Refused("no-issuer", "this Core issues no certificates; another of its region, or its CA, does")
        authority = key_files.load_authority(issuer, mesh=self._core.tls.mesh)
        now = Instant(time.time_ns() // 1_000_000)
        leaf = pki.issue_from_csr(authority, csr.encode(), identity=identity, now=now, lifetime_ms=lifetime_ms)
        chain = pki.certificates_pem([leaf, authority.certificate])
        return json_response(wire.RenewAnswer(chain=chain.decode("ascii")))

    # --- no lock-in --------------------------------------------------------------------------------------------------

    async def _chain(self, request: Request) -> Response:
        """The tenant's wrapped chain: bindings under the customer's L1, services' keys under those."""
        tenant = check_tenant(request.params["tenant"])
        self._admin_of(request, tenant, Action.TENANT_EXPORT)
        view, policy = self._core.view(tenant), self._core.policy(tenant)
        if str(destruction_of(tenant)) in self._core.shell.state.tenants[tenant].restrictions:
            raise Refused("destroying", "this tenant is being destroyed, or is", field="tenant")
        l2: list[ChainL2] = []
        l3: list[ChainL3] = []
        for (key, version), row in sorted(view.keys.items()):
            blob = await self._core.store.get_blob(tenant, row.digest)
            if blob is None or wrap.digest(blob) != row.digest:
                blob = await self._core.keys.peers.fetch(tenant, row.digest)
            if key == L2_NAME:
                l2.append(ChainL2(kid=row.kid, version=version, binding_id=row.parent, blob=blob))
            else:
                service = key.removeprefix("l3/")
                l3.append(ChainL3(kid=row.kid, version=version, service=service, parent_kid=row.parent, blob=blob))
        chain = Chain(
            mesh=self._core.config.mesh,
            tenant=tenant,
            domain=policy.domain,
            bindings=tuple(
                ChainBinding(id=name, provider=row.provider, descriptor=row.descriptor)
                for name, row in sorted(view.bindings.items())
                if row.state != "retired"
            ),
            l2=tuple(l2),
            l3=tuple(l3),
        )
        return json_response({"tenant": tenant, "chain": wire.to_base64(chain_to_json(chain))})

    # --- operating ---------------------------------------------------------------------------------------------------

    async def _status(self, request: Request) -> Response:
        """Modes, leases and applied positions, each tenant's with why it is not better."""
        state, now, store = self._core.shell.state, self._core.shell.now(), self._core.region_store
        tenants = {}
        for tenant, holding in sorted(state.tenants.items()):
            if holding.applied is None:
                continue
            tenants[tenant] = {
                **msgspec.to_builtins(explain(state, now, tenant)),
                "granted_by": None if holding.lease is None else holding.lease.grantor.value,
                "lease_left_ms": None if holding.lease is None else max(0, holding.lease.until - now),
                "l1_left_ms": None if holding.l1.until is None else max(0, holding.l1.until - now),
                "epoch": holding.leaf.epoch,
                "seq": holding.leaf.seq,
                "loaded": len(holding.loaded),
                "restricted": sorted(
                    {r.text for r in holding.restrictions.values()}
                    | {f"{own.record.scope} (local)" for own in state.locals.values() if own.scope.tenant == tenant}
                ),
            }
        return json_response(
            {
                "region": self._core.region,
                "sealed": state.sealed,
                "seals": self._core.seals.show(),
                "ivk_generation": state.ivk_generation,
                "keystore": {"code": shut.code if (shut := self._core.store.shut) else "ok", "schema": store.schema},
                "keys_in_memory": len(self._core.keyring),
                "local_suspensions": len(state.locals),
                "edge_leases": len(state.edge_leases),
                "objects": self._core.objects.describe(),
                "alarms": [f"{t}/{s}: open rate" for t, s in self._core.edges.rates.standing(now)],
                "backup": backup_view(self._core.backups),
                "tenants": tenants,
                "broker": None if self._core.broker is None else self._core.broker.describe(),
            }
        )

    async def _budgets(self, request: Request) -> Response:
        """What of each budget of the tenant this region has spent in the period, and which alarms stand."""
        tenant = check_tenant(request.params["tenant"])
        self._admin_of(request, tenant, Action.TENANT_READ)
        shown = show_budgets(self._core.shell.state, self._core.shell.now(), tenant, self._core.edges.rates)
        return json_response({"tenant": tenant, "region": self._core.region, "budgets": shown})

    async def _applied(self, request: Request) -> Response:
        """Tasks taken since ``since_ns`` (wall clock), oldest first: lane, task, command, when."""
        since = request.query.get("since_ns", "0")
        if not since.isascii() or not since.isdigit():
            raise Refused.bad_field("since_ns", "a whole number of nanoseconds")
        rows = [row for row in self._core.applied if row["at_ns"] >= int(since)]
        return json_response({"applied": rows})

    def readiness(self) -> list[str]:
        """Why this Core cannot serve, in words; empty where it can."""
        state = self._core.shell.state
        reasons = []
        if state.sealed:
            reasons.append("sealed")
        if (shut := self._core.store.shut) is not None and shut is not NOT_LOOKED_AT:
            reasons.append(f"key store: {shut.code}")
        if state.mesh.lease is None or not self._core.shell.now() < state.mesh.lease.until:
            reasons.append("no governance lease")
        reasons += [] if self._core.kmip is None else self._core.kmip.readiness()
        return reasons


async def keep_blob(
    store: KeyStore, tenant: str, digest: str, blob: bytes, *, most: int = BLOBS_PER_TENANT_MAX
) -> None:
    """Keep another region's blob.  Raises Unavailable where this tenant has ``most`` already."""
    if await store.get_blob(tenant, digest) is None and await store.count_blobs(tenant) >= most:
        raise Unavailable(
            "too-many-blobs", f"at most {most} blobs of one tenant are kept", retry_after_ms=BLOBS_FULL_RETRY_MS
        )
    await store.put_blob(tenant, digest, blob)


def spki_of_csr(csr_pem: str) -> bytes:
    """The request's public key, DER.  Raises Refused."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    try:
        key = x509.load_pem_x509_csr(csr_pem.encode()).public_key()
    except ValueError as bad:
        raise Refused.bad_field("csr", "not a PEM request") from bad
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
