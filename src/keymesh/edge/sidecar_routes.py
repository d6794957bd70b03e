"""The sidecar's HTTP API: JSON, keys and blobs in base64, the mesh's one error form.

=======  ==========================================  ===================================================
POST     /v1/{tenant}/{service}/create-key           {context?, plaintext?} -> {blob, plaintext?}
POST     /v1/{tenant}/{service}/create-keys          {count, context?, plaintext?} -> {keys}
POST     /v1/{tenant}/{service}/decrypt-key          {blob, context?} -> {plaintext}
POST     /v1/{tenant}/{service}/decrypt-keys         {blobs, context?} -> {plaintexts}
GET      /v1/identities                              -> {identities}
POST     /v1/identities                              {tenant, service} -> {uri, instance, csr}
PUT      /v1/identities/{tenant}/{service}           {chain} -> {certificate_not_after}
GET      /healthz, /readyz, /metrics
=======  ==========================================  ===================================================
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import prometheus_client as prometheus
from aiohttp import web
from msgspec import Struct
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from keymesh.crypto.blob import L4_BLOB_BYTES
from keymesh.edge.hot_lease import CreatedKey
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable
from keymesh.orbital import edge_wire as wire

if TYPE_CHECKING:
    from keymesh.edge.sidecar import Sidecar

log = logging.getLogger("keymesh.edge.sidecar")

CORRELATION_HEADER: Final = "X-Correlation-Id"
_STATUS: Final = {
    "bad-field": 400,
    "denied": 403,
    "not-found": 404,
    "method-not-allowed": 405,
    "too-large": 413,
    "bad-content-type": 415,
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
T = TypeVar("T")


class KeyRequest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Body of create-key."""

    context: dict[str, str] = {}
    plaintext: bool = False


class BlobRequest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Body of decrypt-key."""

    blob: str
    context: dict[str, str] = {}


class IdentityRequest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    tenant: str
    service: str


class ChainRequest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    chain: str


def make_app(sidecar: Sidecar) -> web.Application:
    """The routes over ``sidecar``."""
    app = web.Application(middlewares=[_errors], client_max_size=wire.BATCH_BODY_MAX_BYTES)
    routes = _Routes(sidecar)
    app.add_routes(
        [
            web.post("/v1/identities", routes.request_identity),
            web.get("/v1/identities", routes.identities),
            web.put("/v1/identities/{tenant}/{service}", routes.install),
            web.post("/v1/{tenant}/{service}/create-key", routes.create_key),
            web.post("/v1/{tenant}/{service}/create-keys", routes.create_keys),
            web.post("/v1/{tenant}/{service}/decrypt-key", routes.decrypt_key),
            web.post("/v1/{tenant}/{service}/decrypt-keys", routes.decrypt_keys),
            web.get("/healthz", routes.healthz),
            web.get("/readyz", routes.readyz),
            web.get("/metrics", routes.metrics),
        ]
    )
    return app


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    correlation_id = request.headers.get(CORRELATION_HEADER, "")[:128] or os.urandom(16).hex()
    try:
        return await handler(request)
    except KeymeshError as error:
        return _problem(error, correlation_id)
    except web.HTTPException as bad:
        codes = {404: "not-found", 405: "method-not-allowed", 413: "too-large"}
        return _problem(Refused(codes.get(bad.status, "bad-field"), bad.reason), correlation_id)
    except Exception:
        log.exception("bug", extra={"correlation_id": correlation_id})
        body = {"error": {"code": "internal", "message": "internal error"}, "correlation_id": correlation_id}
        return _json(body, status=500)


def _json(value: object, *, status: int = 200) -> web.Response:
    return web.Response(
        status=status,
        body=strict_json.dumps(value),
        content_type=wire.JSON_TYPE,
        headers={"Cache-Control": "no-store"},
    )


def _problem(error: KeymeshError, correlation_id: str) -> web.Response:
    problem: dict[str, object] = {"code": error.code, "message": error.message}
    status = 422
    if isinstance(error, Integrity):
        problem = {"code": "integrity", "message": Integrity.opaque().message}
    elif isinstance(error, Unavailable):
        problem["retry_after_ms"] = error.retry_after_ms
        status = 503
    else:
        problem["field"] = error.field
        status = _STATUS.get(error.code, 422)
    return _json({"error": problem, "correlation_id": correlation_id}, status=status)


class _Routes:
    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar
        self._registry = prometheus.CollectorRegistry()
        self._registry.register(_Collector(sidecar))

    # --- keys ------------------------------------------------------------------------------------------------------

    async def create_key(self, request: web.Request) -> web.StreamResponse:
        """One new data key."""
        asked = await _body(request, KeyRequest)
        return _json(_created(await self._edge(request).create_key(asked.context, plaintext=asked.plaintext)))

    async def create_keys(self, request: web.Request) -> web.StreamResponse:
        """Many, under one context."""
        asked = await _body(request, wire.CreateRequest)
        made = await self._edge(request).create_keys(asked.count, asked.context, plaintext=asked.plaintext)
        return _json({"keys": [_created(key) for key in made]})

    async def decrypt_key(self, request: web.Request) -> web.StreamResponse:
        """The key in one blob."""
        asked = await _body(request, BlobRequest)
        blob = wire.from_base64("blob", asked.blob, max_bytes=L4_BLOB_BYTES)
        return _json({"plaintext": wire.to_base64(await self._edge(request).decrypt_key(blob, asked.context))})

    async def decrypt_keys(self, request: web.Request) -> web.StreamResponse:
        """The keys in many blobs, in their order: all or none."""
        asked = await _body(request, wire.OpenRequest)
        blobs = [wire.from_base64(f"blobs[{n}]", b, max_bytes=L4_BLOB_BYTES) for n, b in enumerate(asked.blobs)]
        opened = await self._edge(request).decrypt_keys(blobs, asked.context)
        return _json({"plaintexts": [wire.to_base64(key) for key in opened]})

    def _edge(self, request: web.Request) -> Any:
        return self._sidecar.edge(request.match_info["tenant"], request.match_info["service"])

    # --- identities ----------------------------------------------------------------------------------------------

    async def identities(self, request: web.Request) -> web.StreamResponse:
        return _json({"identities": self._sidecar.identities()})

    async def request_identity(self, request: web.Request) -> web.StreamResponse:
        """The certificate request of a new or known identity."""
        asked = await _body(request, IdentityRequest)
        csr = self._sidecar.request_identity(asked.tenant, asked.service)
        store = self._sidecar.store
        return _json({"uri": store.uri(asked.tenant, asked.service), "instance": store.instance, "csr": csr})

    async def install(self, request: web.Request) -> web.StreamResponse:
        """The certificate for a request made here."""
        asked = await _body(request, ChainRequest)
        names = request.match_info
        lifetime = await self._sidecar.install_certificate(names["tenant"], names["service"], asked.chain)
        return _json({"certificate_not_after": lifetime.not_after})

    # --- the process ---------------------------------------------------------------------------------------------

    async def healthz(self, request: web.Request) -> web.StreamResponse:
        return _json({"ok": True})

    async def readyz(self, request: web.Request) -> web.StreamResponse:
        reasons = self._sidecar.not_ready()
        return _json({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        body = prometheus.generate_latest(self._registry)
        return web.Response(body=body, headers={"Content-Type": prometheus.CONTENT_TYPE_LATEST})


class _Collector(prometheus.registry.Collector):
    """Reads the Edges when it is asked; nothing is counted on the hot path for its sake."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar

    def collect(self) -> Any:
        """Keys used by operation, seconds of lease left."""
        used = CounterMetricFamily(
            "keymesh_edge_keys", "Data keys minted, opened and refused.", labels=["tenant", "service", "operation"]
        )
        left = GaugeMetricFamily("keymesh_edge_lease_seconds", "Left of the lease.", labels=["tenant", "service"])
        for identity in self._sidecar.identities():
            names = [identity["tenant"], identity["service"]]
            edge = identity["edge"]
            for operation in ("minted", "opened", "refused"):
                used.add_metric([*names, operation], edge.get("used", {}).get(operation, 0))
            left.add_metric(names, (edge.get("lease_ms_left") or 0) / 1_000)
        yield used
        yield left


def _created(made: CreatedKey) -> dict[str, str]:
    shown = {"blob": wire.to_base64(made.blob)}
    if made.plaintext is not None:
        shown["plaintext"] = wire.to_base64(made.plaintext)
    return shown


async def _body(request: web.Request, shape: type[T]) -> T:
    """Raises Refused naming the field or the limit."""
    if request.content_type != wire.JSON_TYPE:
        raise Refused("bad-content-type", f"only {wire.JSON_TYPE}", field="content-type")
    return strict_json.decode(await request.read(), shape, max_bytes=wire.BATCH_BODY_MAX_BYTES)
