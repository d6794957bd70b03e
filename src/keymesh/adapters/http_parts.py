"""Pieces of an HTTP request, each strict or refused, and what a server listens on.

Decides which headers and queries are well formed; ``http_server`` asks in what order.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl

import prometheus_client as prometheus
from aiohttp import web

from keymesh.adapters.http_messages import (
    CORRELATION_HEADER,
    IDEMPOTENCY_HEADER,
    Request,
    Response,
    Route,
    json_response,
)
from keymesh.model.errors import Refused
from keymesh.model.ids import check_token

_QUERY_MAX_FIELDS: Final = 32
_SINGLE: Final = frozenset(
    {"authorization", "content-type", "content-encoding", CORRELATION_HEADER.lower(), IDEMPOTENCY_HEADER.lower()}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """``idle_s`` bounds the wait for a complete header, on a new connection and between requests."""

    connections: int = 1_024
    handshake_s: float = 5.0
    idle_s: float = 30.0
    body_s: float = 10.0
    write_s: float = 10.0
    close_s: float = 5.0
    header_line_bytes: int = 8_190
    headers: int = 64


def health_routes(
    readiness: Callable[[], Sequence[str]],
    registry: prometheus.CollectorRegistry,
    warnings: Callable[[], Sequence[str]] = tuple,
) -> list[Route]:
    """/healthz, /readyz and /metrics, for whoever the server knows.  ``warnings`` are told and keep nobody away."""

    async def healthz(request: Request) -> Response:
        return json_response({"ok": True})

    async def readyz(request: Request) -> Response:
        reasons = list(readiness())
        told = {"ready": not reasons, "reasons": reasons}
        if warned := list(warnings()):
            told["warnings"] = warned
        return json_response(told, status=503 if reasons else 200)

    async def metrics(request: Request) -> Response:
        return Response(body=prometheus.generate_latest(registry), content_type=prometheus.CONTENT_TYPE_LATEST)

    handlers = {"/healthz": healthz, "/readyz": readyz, "/metrics": metrics}
    return [Route(method="GET", path=path, handler=handler, takes_tokens=True) for path, handler in handlers.items()]


def new_id() -> str:
    return secrets.token_hex(16)


def correlation_id_of(request: web.BaseRequest) -> str:
    """The caller's id where it is one well-formed token, else a new one."""
    given = request.headers.getall(CORRELATION_HEADER, [])
    if len(given) == 1:
        with contextlib.suppress(Refused):
            return check_token("correlation id", given[0])
    return new_id()


def known_method(method: str) -> str:
    return method if method in ("GET", "PUT", "POST", "DELETE", "PATCH") else "other"


def headers_of(request: web.BaseRequest) -> dict[str, str]:
    """Lower-case names; the ones that decide something come once.  Raises Refused."""
    headers: dict[str, str] = {}
    for name, value in request.headers.items():
        name = name.lower()
        if name in headers and name in _SINGLE:
            raise Refused.bad_field(name, "given twice")
        headers[name] = value
    return headers


def check_body_headers(request: web.BaseRequest, headers: Mapping[str, str], route: Route) -> None:
    if "content-encoding" in headers or "expect" in headers or "upgrade" in headers:
        raise Refused("bad-content-type", "content encodings, expectations and upgrades are not supported")
    if not request.body_exists:
        return
    if (request.content_length or 0) > route.body_max_bytes:
        raise Refused("too-large", f"at most {route.body_max_bytes} bytes", field="body")
    if headers.get("content-type", "").partition(";")[0].strip().lower() not in route.content_types:
        raise Refused("bad-content-type", f"one of {', '.join(route.content_types)}", field="content-type")


def query_of(request: web.BaseRequest) -> dict[str, str]:
    _, found, text = request.raw_path.partition("?")
    if not found:
        return {}
    try:
        pairs = parse_qsl(
            text, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=_QUERY_MAX_FIELDS
        )
    except (ValueError, UnicodeError) as bad:
        raise Refused.bad_field("query", f"at most {_QUERY_MAX_FIELDS} name=value pairs in UTF-8") from bad
    query = dict(pairs)
    if len(query) != len(pairs):
        raise Refused.bad_field("query", "duplicate names are refused")
    return query


def to_web(answer: Response, correlation_id: str) -> web.Response:
    headers = {CORRELATION_HEADER: correlation_id, "Content-Type": answer.content_type, "Cache-Control": "no-store"}
    return web.Response(status=answer.status, body=answer.body, headers=headers | dict(answer.headers))
