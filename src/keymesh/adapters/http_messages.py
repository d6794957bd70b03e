"""Requests, answers and errors as every HTTP face of the mesh speaks them.

Decides the shape of a route, the limits on what comes in, and the one mapping between our errors and HTTP:
``{"error": {"code", "message", "field"}, "correlation_id"}``.  A failed unwrap is one opaque answer.  Bytes are moved
by ``http_server`` and ``http_client``.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NoReturn, TypeAlias, TypeVar

import msgspec

from keymesh.access.identity import Identity
from keymesh.adapters.tls import Peer
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable
from keymesh.model.ids import CorrelationId, check_token
from keymesh.model.limits import HTTP_BODY_MAX_BYTES

CORRELATION_HEADER: Final = "X-Correlation-Id"
IDEMPOTENCY_HEADER: Final = "Idempotency-Key"
JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
OCTETS: Final = "application/octet-stream"
LINE_MAX_BYTES: Final = 1024 * 1024

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request within the limits; header names are lower case.

    ``peer``: who the certificate names; None on a Unix socket, and where a token came instead.  ``bearer``: who the
    token names, where the route takes tokens; where both are there, they agree.
    """

    method: str
    path: str
    params: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    peer: Peer | None
    correlation_id: CorrelationId
    idempotency_key: str | None
    bearer: Identity | None = None

    @property
    def identity(self) -> Identity | None:
        if self.bearer is not None:
            return self.bearer
        return None if self.peer is None else self.peer.identity

    def json(self, shape: type[T]) -> T:
        """The body as a ``shape``.  Raises Refused naming the field."""
        return strict_json.decode(self.body, shape, max_bytes=HTTP_BODY_MAX_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    status: int = 200
    body: bytes = field(default=b"", repr=False)
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer of lines, each sent as it comes, until the iterator ends or the peer goes (which closes it)."""

    lines: AsyncIterator[bytes]


def json_response(value: object, *, status: int = 200) -> Response:
    return Response(status=status, body=strict_json.dumps(value))


Handler: TypeAlias = Callable[[Request], Awaitable[Response | Stream]]

_SEGMENT: Final = r"[A-Za-z0-9._:@~-]{1,255}"
_PATH: Final = re.compile(rf"/|(?:/{_SEGMENT})+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """``path`` is a template: ``/v1/tenants/{tenant}``; each ``{name}`` takes one segment.

    ``allow`` sees the whole request before the handler does; a False is 403 ``denied``.  A handler that only reads or
    waits (by default: GET) is cancelled when its client goes; another one runs to its end.  ``quiet``: machines talk
    here all the time, so its answered requests are logged at debug level.  ``takes_tokens``: whoever has no
    certificate may show a bearer token here, where the server checks them.
    """

    method: str
    path: str
    handler: Handler
    allow: Callable[[Request], bool] | None = None
    content_types: tuple[str, ...] = (JSON,)
    cancel_on_disconnect: bool | None = None
    body_max_bytes: int = HTTP_BODY_MAX_BYTES
    quiet: bool = False
    takes_tokens: bool = False

    @property
    def is_cancelled_with_client(self) -> bool:
        return self.method == "GET" if self.cancel_on_disconnect is None else self.cancel_on_disconnect


def check_path(path: str) -> str:
    """``path`` where it is canonical: no percent-encoding, no empty, ``.`` or ``..`` segment.  Raises Refused."""
    if not _PATH.fullmatch(path) or any(segment in (".", "..") for segment in path.split("/")):
        raise Refused("not-found", "no such path")
    return path


class Router:
    """Finds the route of a path; longer literal matches need no order, since templates never overlap by segment."""

    def __init__(self, routes: list[Route]) -> None:
        self._literal: dict[str, dict[str, Route]] = {}
        self._templates: list[tuple[re.Pattern[str], dict[str, Route]]] = []
        by_path: dict[str, dict[str, Route]] = {}
        for route in routes:
            methods = by_path.setdefault(route.path, {})
            if route.method in methods:
                raise ValueError(f"two routes for {route.method} {route.path}")
            methods[route.method] = route
        for path, methods in by_path.items():
            if "{" in path:
                pattern = re.sub(r"\\\{(\w+)\\\}", rf"(?P<\1>{_SEGMENT})", re.escape(path))
                self._templates.append((re.compile(pattern), methods))
            else:
                self._literal[path] = methods

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """The route and its parameters.  Raises Refused ``not-found`` or ``method-not-allowed``."""
        check_path(path)
        methods, params = self._literal.get(path), {}
        if methods is None:
            for pattern, candidates in self._templates:
                if found := pattern.fullmatch(path):
                    methods, params = candidates, found.groupdict()
                    break
        if methods is None:
            raise Refused("not-found", "no such path")
        if method not in methods:
            raise Refused("method-not-allowed", f"allowed: {', '.join(sorted(methods))}", field="method")
        return methods[method], params


# --- errors ----------------------------------------------------------------------------------------------------

UNAUTHENTICATED: Final = 401
_STATUS: Final = {
    "bad-field": 400,
    "unauthenticated": UNAUTHENTICATED,
    "denied": 403,
    "disabled": 403,
    "not-found": 404,
    "no-such-key": 404,
    "method-not-allowed": 405,
    "request-timeout": 408,
    "conflict": 409,
    "too-large": 413,
    "bad-content-type": 415,
}


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """The inside of ``error``; unknown fields are passed over, so that newer servers may say more."""

    code: str
    message: str
    field: str | None = None
    retry_after_ms: int | None = None


class ProblemBody(msgspec.Struct, frozen=True, kw_only=True):
    """What every answer outside 2xx holds."""

    error: Problem
    correlation_id: str


_BUSY: Final = {"busy": 429, "budget-spent": 429}


def status_of(error: KeymeshError) -> int:
    match error:
        case Unavailable():
            return _BUSY.get(error.code, 503)
        case Refused():
            return _STATUS.get(error.code, 422)
    return 422


def problem_response(error: KeymeshError, correlation_id: str) -> Response:
    """``error`` as an answer; an Integrity error says the same whatever it was."""
    retry: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    if isinstance(error, Integrity):
        error = Integrity.opaque()
    elif isinstance(error, Unavailable):
        retry = error.retry_after_ms
        headers = (("Retry-After", str(max(1, -(-retry // 1_000)))),)
    elif error.code == "unauthenticated":
        headers = (("WWW-Authenticate", "Bearer"), ("Connection", "close"))
    problem = Problem(code=error.code, message=error.message, field=error.field, retry_after_ms=retry)
    body = strict_json.dumps(ProblemBody(error=problem, correlation_id=correlation_id))
    return Response(status=status_of(error), body=body, headers=headers)


def bug_response(correlation_id: str) -> Response:
    """What a client learns of a bug of ours: that there is one, and the id under which the log has it."""
    problem = Problem(code="internal", message="internal error")
    return Response(status=500, body=strict_json.dumps(ProblemBody(error=problem, correlation_id=correlation_id)))


def raise_problem(status: int, body: bytes) -> NoReturn:
    """Turn a peer's answer outside 2xx into the error that it stands for.

    Raises Integrity, Refused, or Unavailable: also for 429, for any 5xx, and for whatever is no problem at all.
    """
    try:
        problem = strict_json.decode(body, ProblemBody, max_bytes=HTTP_BODY_MAX_BYTES).error
        check_token("code", problem.code)
    except Refused as bad:
        raise Unavailable("peer-answer", f"the peer answered {status} without a problem body") from bad
    if status >= 500 or status == 429:
        raise Unavailable(problem.code, problem.message, retry_after_ms=max(1, problem.retry_after_ms or 1_000))
    if status == 422 and problem.code == "integrity":
        raise Integrity.opaque()
    if 400 <= status < 500:
        raise Refused(problem.code, problem.message, field=problem.field)
    raise Unavailable("peer-answer", f"the peer answered {status}")
