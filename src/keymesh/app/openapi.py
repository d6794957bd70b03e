"""An OpenAPI document from a server's own route table, so that the two cannot disagree."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from keymesh import __version__

_PARAMETER = re.compile(r"\{([a-z_]+)\}")
_PROBLEM = {
    "type": "object",
    "required": ["error", "correlation_id"],
    "properties": {
        "correlation_id": {"type": "string"},
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "field": {"type": "string", "nullable": True},
            },
        },
    },
}


def openapi_of(title: str, routes: Iterable[tuple[str, str, str]]) -> dict[str, Any]:
    """``routes`` are (method, path template, description)."""
    paths: dict[str, dict[str, Any]] = {}
    for method, path, description in routes:
        parameters: list[dict[str, Any]] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in _PARAMETER.findall(path)
        ]
        if method == "POST":
            parameters.append({"name": "Idempotency-Key", "in": "header", "schema": {"type": "string"}})
        paths.setdefault(path, {})[method.lower()] = {
            "summary": " ".join(description.split()),
            "parameters": parameters,
            "responses": {
                "200": {"description": "done", "content": {"application/json": {}}},
                "default": {"description": "refused", "content": {"application/json": {"schema": _PROBLEM}}},
            },
        }
    return {
        "openapi": "3.0.3",
        "info": {"title": title, "version": __version__},
        "paths": paths,
    }
