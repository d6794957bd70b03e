"""The Registry's OpenAPI document: every route and no other, every body of a type, real answers of those types."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from tests.unit.app.test_processes import create, registry

from keymesh.access.admit import action_of
from keymesh.adapters.http_messages import ProblemBody, problem_response
from keymesh.app.openapi import Operation, Query, openapi_of
from keymesh.app.registry_api import RegistryApi
from keymesh.app.registry_bodies import BatchBody, CommandBody, TenantsAnswer
from keymesh.control.kinds import KINDS
from keymesh.control.rows import ServiceRow
from keymesh.model.errors import Refused, Unavailable

pytestmark = pytest.mark.usefixtures("template")

SERVICE = {"service": "pay", "row": msgspec.to_builtins(ServiceRow(version=1, custody="leased", edge_ttl_ms=60_000))}


def references(value: Any) -> Iterator[str]:
    """Every ``$ref`` under ``value``."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def at(document: Any, reference: str) -> Any:
    """What ``reference`` points to in ``document``."""
    found = document
    for step in reference.removeprefix("#/").split("/"):
        found = found[step]
    return found


def operations(document: Any) -> dict[tuple[str, str], Any]:
    return {(m.upper(), path): o for path, methods in document["paths"].items() for m, o in methods.items()}


async def test_the_document_lists_exactly_the_routes_that_are_mounted() -> None:
    async with registry() as (_, face):
        document = await face.ask("GET", "/v1/openapi.json")
        assert operations(document).keys() == {(route.method, route.path) for route in face.routes}
        assert json.loads(json.dumps(document)) == document
        assert document["openapi"].startswith("3.1.")


async def test_every_operation_says_what_it_takes_and_gives() -> None:
    async with registry() as (_, face):
        document = await face.ask("GET", "/v1/openapi.json")
    named = operations(document)
    ids = [operation["operationId"] for operation in named.values()]
    assert len(set(ids)) == len(ids)
    for (method, path), operation in named.items():
        parameters = [(p["in"], p["name"]) for p in operation["parameters"]]
        assert len(set(parameters)) == len(parameters), path
        assert [n for where, n in parameters if where == "path"] == re.findall(r"\{(\w+)\}", path), path
        assert operation["summary"], path
        assert ("requestBody" in operation) == (method == "POST"), path
        answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
        assert path.endswith("openapi.json") or at(document, answer["$ref"])["properties"], path
        problem = at(document, operation["responses"]["default"]["$ref"])
        assert problem["content"]["application/json"]["schema"]["$ref"].endswith("/ProblemBody")
    used = set(references(document))
    assert all(at(document, reference) for reference in used)
    components = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert components <= used, "a type that nothing refers to"


async def test_every_kind_of_command_has_its_arguments() -> None:
    async with registry() as (_, face):
        schemas = (await face.ask("GET", "/v1/openapi.json"))["components"]["schemas"]
    wanted = {kind.name: kind.args.__name__ for kind in KINDS.values() if action_of(kind.name) is not None}
    assert {"suspend", "tenant.create", "service.set"} <= wanted.keys()
    for shape in ("CommandBody", "BatchItem"):
        told = [one["properties"] for one in schemas[shape]["oneOf"]]
        assert {p["kind"]["const"]: p["args"]["$ref"].rpartition("/")[2] for p in told} == wanted
    assert "command_id" not in schemas["CommandBody"]["properties"]
    assert "command_id" in schemas["BatchItem"]["required"]
    assert schemas["ScopeArgs"]["required"] == ["scope"]
    assert schemas["ProblemBody"]["properties"]["error"]["$ref"].endswith("/Problem")


async def test_real_answers_are_of_the_types_in_the_document() -> None:
    """Each operation is asked, and what it says is read back by its own schema's names and nothing else."""
    async with registry() as (process, face):
        api = RegistryApi(process)
        api.routes()
        answers = {(o.method, o.path): o.answer for o in api._table}
        await create(process, face)
        service = {"namespace": "acme", "kind": "service.set", "args": SERVICE}
        suspend = {"namespace": "acme", "kind": "suspend", "args": {"scope": "service:acme/pay"}}
        asked: dict[tuple[str, str], Any] = {}
        asked["POST", "/v1/commands"] = await face.ask("POST", "/v1/commands", body=service, key="s1")
        both = [suspend | {"command_id": "k1"}, suspend | {"command_id": "k2", "namespace": "nobody"}]
        asked["POST", "/v1/commands/batch"] = await face.ask("POST", "/v1/commands/batch", body={"commands": both})
        names = {
            "namespace": "acme",
            "command_id": "k1",
            "tenant": "acme",
            "service": "pay",
            "region": "us-east",
        }
        for method, path in answers:
            if method == "GET":
                asked[method, path] = await face.ask(method, path.format(**names))
        assert asked.keys() == answers.keys()
        for key, shape in answers.items():
            if shape is not None:
                again = msgspec.json.encode(msgspec.convert(asked[key], shape))
                assert json.loads(again) == asked[key], key  # nothing in it that the type does not have
        assert [("error" in one) for one in asked["POST", "/v1/commands/batch"]["results"]] == [False, True]
        assert asked["GET", "/v1/tenants/{tenant}/services/{service}"]["state"] == "suspended"


def test_every_problem_is_of_the_type_in_the_document() -> None:
    for error in (Refused("not-found", "no such tenant", field="tenant"), Unavailable("booting", "not yet")):
        plain = json.loads(problem_response(error, "c-1").body)
        assert msgspec.to_builtins(msgspec.convert(plain, ProblemBody)) == plain


def test_a_document_of_other_operations() -> None:
    async def says(request: Any) -> Any:
        """Says
        what."""

    document = openapi_of(
        "T",
        [
            Operation("GET", "/a/{b}/{c}", says, TenantsAnswer, query=(Query("q", "integer", "why"),)),
            Operation("POST", "/a/{b}/{c}", says, None, body=CommandBody),
            Operation("POST", "/d", says, None, body=BatchBody),
        ],
    )
    assert list(document["paths"]) == ["/a/{b}/{c}", "/d"]
    get, post = (document["paths"]["/a/{b}/{c}"][method] for method in ("get", "post"))
    assert get["summary"] == "Says what."
    assert [p["name"] for p in get["parameters"]] == ["b", "c", "q"]
    assert [p["name"] for p in post["parameters"]] == ["b", "c", "Idempotency-Key"]
    assert document["paths"]["/d"]["post"]["parameters"] == []
    assert get["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/TenantsAnswer")
