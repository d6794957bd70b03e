"""The sidecar's HTTP API: JSON or MessagePack, the mesh's one error form.

=======  ==========================================  ===================================================
POST     /v1/{tenant}/{service}/create-key           {context?, plaintext?} -> {blob, plaintext?}
POST     /v1/{tenant}/{service}/create-keys          {count, context?, plaintext?} -> {keys}
POST     /v1/{tenant}/{service}/decrypt-key          {blob, context?} -> {plaintext}
POST     /v1/{tenant}/{service}/decrypt-keys         {blobs, context?} -> {plaintexts}
GET      /v1/identities                              -> {identities}
POST     /v1/identities                              {tenant, service, region?} -> {uri, instance, csr}
PUT      /v1/identities/{tenant}/{service}           {chain, region?} -> {certificate_not_after}
GET      /healthz, /readyz, /metrics
=======  ==========================================  ===================================================

One key is made or opened before anything else happens; a batch takes its turn, and what waits for the network waits
beside the others.  Identities are their host's owner's; a caller uses the services that it was given.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

import prometheus_client as prometheus
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from keymesh.access.callers import Names
from keymesh.edge.client import worth_waiting
from keymesh.edge.hot_lease import CoreHeld
from keymesh.edge.http1 import Later, Request
from keymesh.edge.http_answers import JSON, Answer, Heads
from keymesh.edge.sidecar_callers import Caller
from keymesh.edge.sidecar_wire import (
    ChainRequest,
    IdentityRequest,
    KeysRequest,
    Memory,
    Writer,
    decode,
    kind_of,
    many_blobs,
    one_blob,
)
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable

if TYPE_CHECKING:
    from keymesh.edge.client import Edge
    from keymesh.edge.sidecar import Sidecar

log = logging.getLogger("keymesh.edge.sidecar")

ROUTES_MAX: Final = 4_096
RETRY_AFTER_S: Final = 1
_STATUS: Final = {
    "bad-field": 400,
    "denied": 403,
    "not-found": 404,
    "method-not-allowed": 405,
    "timeout": 408,
    "too-large": 413,
    "bad-content-type": 415,
    "budget-spent": 429,
    "busy": 429,
}
_PROMETHEUS: Final = prometheus.CONTENT_TYPE_LATEST.encode("ascii")

There = Callable[[Coroutine[Any, Any, Any]], Coroutine[Any, Any, Any]]
Use = Callable[["Edge", bytes, bytes], "Answer | Later"]
"""(Edge, kind of body, body) -> the answer."""


class Routes:
    """The API over ``sidecar``: ``handle`` for the server's connections.  Raises nothing."""

    def __init__(self, sidecar: Sidecar, heads: Heads, *, there: There) -> None:
        """``there`` has a coroutine run where the sidecar runs."""
        self._sidecar = sidecar
        self._there = there
        self._write = Writer(heads)
        self._memory = Memory()
        self._registry = prometheus.CollectorRegistry()
        self._registry.register(_Collector(sidecar))
        self._known: dict[bytes, tuple[Names, Use]] = {}
        self._uses: dict[bytes, Use] = {
            b"create-key": self._create_key,
            b"create-keys": self._create_keys,
            b"decrypt-key": self._decrypt_key,
            b"decrypt-keys": self._decrypt_keys,
        }

    def handle(self, asked: Request) -> Answer | Later:
        """The answer, or a coroutine that has it later."""
        try:
            found = self._known.get(asked.path) or self._find(asked.path)
            if found is None:
                answer = self._other(asked)
            else:
                names, use = found
                if asked.method != b"POST":
                    raise Refused("method-not-allowed", "POST", field="method")
                caller: Caller = asked.peer
                if not caller.may_use(names):
                    raise Refused("denied", "not one of this caller's services", field="service")
                kind, edge = kind_of(asked.content_type), self._sidecar.edge_of(names)
                if edge is None:
                    answer = self._found_late(names, use, kind, asked.body)
                else:
                    answer = use(edge, kind, asked.body)
        except Exception as error:
            return self._problem(error, asked.correlation_id)
        return answer if isinstance(answer, bytes) else self._later(answer, asked.correlation_id)

    async def _found_late(self, names: Names, use: Use, kind: bytes, body: bytes) -> Answer:
        """An identity that came since, or an error that says which is missing."""
        answer = use(await self._ask(self._sidecar.edge, *names), kind, body)
        return answer if isinstance(answer, bytes) else await answer

    async def _ask(self, what: Callable[..., Any], *args: Any) -> Any:
        """What ``what`` says, where the sidecar runs."""

        async def asked() -> Any:
            return what(*args)

        return await self._there(asked())

    def refuse(self, status: int, code: str, message: str) -> Answer:
        """What the server itself has to say."""
        return self._error(status, {"code": code, "message": message, "field": None}, b"")

    async def _later(self, answer: Later, correlation_id: bytes) -> Answer:
        try:
            return await answer
        except Exception as error:
            return self._problem(error, correlation_id)

    def _find(self, path: bytes) -> tuple[Names, Use] | None:
        """``/v1/{tenant}/{service}/{use}``, remembered.  Raises Refused."""
        parts = path.split(b"/")
        if len(parts) != 5 or parts[:2] != [b"", b"v1"] or (use := self._uses.get(parts[4])) is None:
            return None
        try:
            names = parts[2].decode("ascii"), parts[3].decode("ascii")
        except UnicodeDecodeError:
            raise Refused("not-found", "no such identity here", field="service") from None
        if len(self._known) >= ROUTES_MAX:
            self._known.clear()
        self._known[path] = names, use
        return names, use

    # --- keys ------------------------------------------------------------------------------------------------------

    def _create_key(self, edge: Edge, kind: bytes, body: bytes) -> Answer | Later:
        """One new data key."""
        asked = self._memory.key_request(kind, body)
        try:
            made = edge.hot.create_key(asked.context, asked.plaintext)
        except (CoreHeld, Unavailable) as why:
            if not worth_waiting(why):
                raise
            return self._created_slowly(edge, kind, why, asked.context, plaintext=asked.plaintext)
        return self._write.created(kind, made)

    async def _created_slowly(
        self, edge: Edge, kind: bytes, why: CoreHeld | Unavailable, context: dict[str, str], *, plaintext: bool
    ) -> Answer:
        made = await self._there(edge.create_slowly(why, 1, context, plaintext=plaintext))
        return self._write.created(kind, made[0])

    async def _create_keys(self, edge: Edge, kind: bytes, body: bytes) -> Answer:
        """Many, under one context."""
        asked = decode(kind, body, KeysRequest)
        try:
            made = edge.hot.create_keys(asked.count, asked.context, asked.plaintext)
        except (CoreHeld, Unavailable) as why:
            slowly = edge.create_slowly(why, asked.count, asked.context, plaintext=asked.plaintext)
            made = await self._there(slowly)
        return self._write.all_created(kind, made)

    def _decrypt_key(self, edge: Edge, kind: bytes, body: bytes) -> Answer | Later:
        """The key in one blob."""
        blob, context = one_blob(kind, body)
        try:
            key = edge.hot.decrypt_key(blob, context)
        except (CoreHeld, Unavailable) as why:
            if not worth_waiting(why):
                raise
            return self._opened_slowly(edge, kind, why, blob, context)
        return self._write.opened(kind, key)

    async def _opened_slowly(
        self, edge: Edge, kind: bytes, why: CoreHeld | Unavailable, blob: bytes, context: dict[str, str]
    ) -> Answer:
        return self._write.opened(kind, (await self._there(edge.open_slowly(why, (blob,), context)))[0])

    async def _decrypt_keys(self, edge: Edge, kind: bytes, body: bytes) -> Answer:
        """The keys in many blobs, in their order: all or none."""
        blobs, context = many_blobs(kind, body)
        try:
            opened = edge.hot.decrypt_keys(blobs, context)
        except (CoreHeld, Unavailable) as why:
            opened = await self._there(edge.open_slowly(why, tuple(blobs), context))
        return self._write.all_opened(kind, opened)

    # --- everything else -------------------------------------------------------------------------------------------

    def _other(self, asked: Request) -> Answer | Later:
        match asked.path:
            case b"/healthz":
                _need(asked, b"GET", b"HEAD")
                return self._write.value(JSON, {"ok": True})
            case b"/readyz":
                _need(asked, b"GET", b"HEAD")
                return self._readyz(asked)
            case b"/metrics":
                _need_owner(asked)
                _need(asked, b"GET", b"HEAD")
                return self._metrics()
            case b"/v1/identities":
                _need_owner(asked)
                _need(asked, b"GET", b"POST")
                return self._identities() if asked.method == b"GET" else self._request(asked)
            case path if path.startswith(b"/v1/identities/"):
                _need_owner(asked)
                _need(asked, b"PUT")
                return self._install(asked)
        raise Refused("not-found", "no such path", field="path")

    async def _readyz(self, asked: Request) -> Answer:
        """Why not, of the caller's own services: what else is hosted here is not its business."""
        waiting = await self._ask(self._sidecar.not_ready)
        shown = [f"{'/'.join(names)}: {why}" for names, why in waiting.items() if asked.peer.may_use(names)]
        return self._write.value(JSON, {"ready": not waiting, "reasons": shown}, status=503 if waiting else 200)

    async def _metrics(self) -> Answer:
        return self._write.raw(_PROMETHEUS, await self._ask(prometheus.generate_latest, self._registry))

    async def _identities(self) -> Answer:
        return self._write.value(JSON, {"identities": await self._ask(self._sidecar.identities)})

    async def _request(self, asked: Request) -> Answer:
        """The certificate request of a new or known identity."""
        wanted = decode(kind_of(asked.content_type), asked.body, IdentityRequest)
        csr = await self._ask(self._sidecar.request_identity, wanted.tenant, wanted.service, wanted.region)
        store = self._sidecar.store_of(wanted.region)
        return self._write.value(
            JSON, {"uri": store.uri(wanted.tenant, wanted.service), "instance": store.instance, "csr": csr}
        )

    async def _install(self, asked: Request) -> Answer:
        """The certificate for a request made here."""
        names = asked.path.decode("ascii", "replace").split("/")
        if len(names) != 5:
            raise Refused("not-found", "no such path", field="path")
        given = decode(kind_of(asked.content_type), asked.body, ChainRequest)
        installing = self._sidecar.install_certificate(names[3], names[4], given.chain, given.region)
        lifetime = await self._there(installing)
        return self._write.value(JSON, {"certificate_not_after": lifetime.not_after})

    # --- errors ----------------------------------------------------------------------------------------------------

    def _problem(self, error: Exception, correlation_id: bytes) -> Answer:
        if not isinstance(error, KeymeshError):
            log.error("bug", exc_info=error, extra={"correlation_id": _shown(correlation_id)})
            return self._error(500, {"code": "internal", "message": "internal error"}, correlation_id)
        problem: dict[str, object] = {"code": error.code, "message": error.message}
        status = 422
        if isinstance(error, Integrity):
            problem = {"code": "integrity", "message": Integrity.opaque().message}
        elif isinstance(error, Unavailable):
            problem["retry_after_ms"] = error.retry_after_ms
            status = _STATUS.get(error.code, 503)
        else:
            problem["field"] = error.field
            status = _STATUS.get(error.code, 422)
        return self._error(status, problem, correlation_id)

    def _error(self, status: int, problem: dict[str, object], correlation_id: bytes) -> Answer:
        body = {"error": problem, "correlation_id": _shown(correlation_id)}
        wait_ms = problem.get("retry_after_ms")
        wait_s = -(-wait_ms // 1_000) if isinstance(wait_ms, int) else RETRY_AFTER_S
        more = b"Retry-After: %d\r\n" % max(1, wait_s) if status == 429 else b""
        return self._write.value(JSON, body, status=status, more=more)


def _need(asked: Request, *methods: bytes) -> None:
    if asked.method not in methods:
        words = " or ".join(method.decode() for method in methods)
        raise Refused("method-not-allowed", words, field="method")


def _need_owner(asked: Request) -> None:
    caller: Caller = asked.peer
    if not caller.is_owner:
        raise Refused("denied", "only this host's owner", field="caller")


def _shown(correlation_id: bytes) -> str:
    return correlation_id[:128].decode("ascii", "replace") or os.urandom(16).hex()


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
