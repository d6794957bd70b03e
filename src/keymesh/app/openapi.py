"""An OpenAPI document from a server's own table of operations and its own types, so that none of them can disagree."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from keymesh import __version__
from keymesh.access.admit import action_of
from keymesh.adapters.http_messages import Handler, ProblemBody
from keymesh.app.registry_bodies import BatchItem, CommandBody
from keymesh.control.kinds import KINDS, Kind

_PARAMETER: Final = re.compile(r"\{([a-z_]+)\}")
_REF: Final = "#/components/schemas/{name}"
_DESCRIPTION: Final = (
    "For administrators: TLS with a client certificate of the mesh.  What a POST does is done once for each "
    "Idempotency-Key: the same again answers the same, another body is a conflict.  Every answer outside 2xx is a "
    "ProblemBody; after 503 the same request may be sent again."
)


@dataclass(frozen=True, slots=True)
class Query:
    """``name`` in the query string, always optional; ``type`` as JSON Schema calls it."""

    name: str
    type: str
    description: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One route: who answers it, and what it takes and gives.  ``answer`` None: any object."""

    method: str
    path: str
    handler: Handler
    answer: type[msgspec.Struct] | None
    body: type[msgspec.Struct] | None = None
    query: tuple[Query, ...] = ()


def openapi_of(title: str, operations: Sequence[Operation]) -> dict[str, Any]:
    """The document.  Commands are told apart by their ``kind``: each one's arguments are in it."""
    kinds = [kind for kind in KINDS.values() if action_of(kind.name) is not None]
    types = [t for o in operations for t in (o.answer, o.body) if t is not None]
    types += [ProblemBody, CommandBody, BatchItem, *(kind.args for kind in kinds)]
    _, schemas = msgspec.json.schema_components(dict.fromkeys(types), ref_template=_REF)
    for command in (CommandBody, BatchItem):
        schemas[command.__name__] |= {"oneOf": [_arguments(kind) for kind in kinds]}
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _describe(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": __version__, "description": _DESCRIPTION},
        "security": [{"certificate": []}, {"token": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "certificate": {"type": "mutualTLS"},
                "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
            },
            "responses": {
                "problem": {"description": "refused, or not possible now", "content": _content(_ref(ProblemBody))}
            },
        },
    }


def _ref(shape: type) -> dict[str, str]:
    return {"$ref": _REF.format(name=shape.__name__)}


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _arguments(kind: Kind) -> dict[str, Any]:
    return {"properties": {"kind": {"const": kind.name}, "args": _ref(kind.args)}}


def _describe(operation: Operation) -> dict[str, Any]:
    answer: dict[str, Any] = {"type": "object"} if operation.answer is None else _ref(operation.answer)
    described: dict[str, Any] = {
        "operationId": getattr(operation.handler, "__name__", operation.path).lstrip("_"),
        "summary": " ".join((operation.handler.__doc__ or "").split()),
        "parameters": _parameters(operation),
        "responses": {
            "200": {"description": "done", "content": _content(answer)},
            "default": {"$ref": "#/components/responses/problem"},
        },
    }
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _content(_ref(operation.body))}
    return described


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    named = _PARAMETER.findall(operation.path)
    out: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in named
    ]
    out += [
        {"name": q.name, "in": "query", "description": q.description, "schema": {"type": q.type}}
        for q in operation.query
    ]
    if operation.body is CommandBody:
        out.append({"name": "Idempotency-Key", "in": "header", "required": True, "schema": {"type": "string"}})
    return out
