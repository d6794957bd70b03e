"""The Registry's and a Core's HTTP API from outside: identities that are not enough, bodies that are not right."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.integration.mesh.live import EU, FILES, MAIL, US, LiveMesh

from keymesh.access.identity import AdminIdentity, CoreIdentity, EdgeIdentity, Identity, RegistryIdentity
from keymesh.adapters import key_files, pki
from keymesh.model.ids import MeshName, NodeId, RegionId, ServiceName, TenantId
from keymesh.model.limits import HTTP_BODY_MAX_BYTES
from keymesh.model.time import Instant

DEV = MeshName("dev")
OPERATOR = AdminIdentity(mesh=DEV, name="operator")


class Outsider:
    """One certificate, plain HTTP over it."""

    def __init__(self, mesh: LiveMesh, identity_file: Path | None) -> None:
        context = ssl.create_default_context(cafile=str(mesh.layout.ca))
        context.check_hostname = False  # the mesh's names are URIs
        if identity_file is not None:
            context.load_cert_chain(str(identity_file))
        self._ports = {"registry": mesh.plan.registry_port} | {r: p.port for r, p in mesh.plan.regions.items()}
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context, force_close=True))

    async def __call__(self, method: str, path: str, body: Any = None, *, to: str = "registry", **given: Any) -> Any:
        """(status, parsed body); status 0 where no TLS connection came about."""
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **given.pop("headers", {})}
        url = f"https://127.0.0.1:{self._ports[to]}{path}"
        try:
            async with self._session.request(method, url, data=raw, headers=headers, **given) as answer:
                return answer.status, json.loads(await answer.read() or b"null")
        except (aiohttp.ClientError, ConnectionError, ssl.SSLError):
            return 0, None

    async def close(self) -> None:
        await self._session.close()


@asynccontextmanager
async def outsider(mesh: LiveMesh, file: Path | None) -> AsyncIterator[Outsider]:
    one = Outsider(mesh, file)
    try:
        yield one
    finally:
        await one.close()


@pytest.fixture
async def operator(mesh: LiveMesh) -> AsyncIterator[Outsider]:
    async with outsider(mesh, mesh.layout.admin / "operator.pem") as one:
        yield one


def certify(
    mesh: LiveMesh, directory: Path, identity: Identity, *, age_ms: int = 0, lifetime_ms: int = 3_600_000
) -> Path:
    """A certificate of the mesh's own CAs for whoever asks, made ``age_ms`` ago."""
    if isinstance(identity, CoreIdentity | EdgeIdentity):
        file = mesh.layout.core(identity.region) / "region-ca.pem"
    else:
        file = mesh.layout.pki / "mesh-ca.pem"
    authority = key_files.load_authority(file, mesh=DEV)
    return write(directory, authority, identity, age_ms=age_ms, lifetime_ms=lifetime_ms)


def write(directory: Path, authority: pki.Authority, identity: Identity, *, age_ms: int, lifetime_ms: int) -> Path:
    key = pki.new_tls_key()
    made_at = Instant(time.time_ns() // 1_000_000 - age_ms)
    leaf = pki.issue_leaf(
        authority, identity=identity, public_key=key.public_key(), now=made_at, lifetime_ms=lifetime_ms
    )
    path = directory / f"{time.time_ns()}.pem"
    key_files.write_identity(path, key, [leaf, authority.certificate])
    return path


async def test_certificates_that_are_expired_early_foreign_or_missing_get_no_connection(
    mesh: LiveMesh, tmp_path: Path, operator: Outsider
) -> None:
    now = Instant(time.time_ns() // 1_000_000)
    root = pki.create_root(DEV, now=now)  # same name, another key
    foreign = pki.create_intermediate(root, None, now=now)
    day = 24 * 3_600_000
    files = (
        None,
        certify(mesh, tmp_path, OPERATOR, age_ms=2 * day, lifetime_ms=day),
        certify(mesh, tmp_path, OPERATOR, age_ms=-day),
        write(tmp_path, foreign, OPERATOR, age_ms=0, lifetime_ms=day),
        mesh.layout.customer_kms / "owner.pem",
    )
    for file in files:
        async with outsider(mesh, file) as one:
            for to in ("registry", "us-east"):
                assert (await one("GET", "/v1/status", to=to))[0] == 0, (file, to)
    assert (await operator("GET", "/v1/status"))[0] == 200


async def test_good_certificates_of_the_wrong_kind_are_told_no(mesh: LiveMesh, tmp_path: Path) -> None:
    edge = EdgeIdentity(
        mesh=DEV, region=RegionId("us-east"), tenant=TenantId(US), service=ServiceName(FILES), instance="i1"
    )
    core = CoreIdentity(mesh=DEV, region=RegionId("us-east"), node=NodeId("n1"))
    mallory = AdminIdentity(mesh=DEV, name="mallory")
    suspend = {"namespace": US, "kind": "suspend", "args": {"scope": f"tenant:{US}"}}
    asked: tuple[tuple[Identity, str, str, str, Any], ...] = (
        (edge, "registry", "GET", "/v1/status", None),
        (edge, "us-east", "GET", "/v1/status", None),
        (edge, "us-east", "GET", f"/v1/tenants/{US}/chain", None),
        (edge, "us-east", "POST", "/v1/restrict", {"scope": f"tenant:{US}", "action": "suspend"}),
        (edge, "us-east", "GET", f"/v1/blobs/{US}/{'0' * 64}", None),
        (core, "registry", "POST", "/v1/commands", suspend),
        (core, "registry", "GET", "/v1/tenants", None),
        (core, "us-east", "GET", f"/v1/tenants/{US}/chain", None),
        (core, "eu-west", "GET", f"/v1/blobs/{EU}/{'0' * 64}", None),  # an allowed machine, not an allowed region
        (mallory, "registry", "POST", "/v1/commands", suspend),
        (mallory, "registry", "GET", f"/v1/tenants/{US}", None),
        (mallory, "registry", "GET", "/v1/status", None),
        (mallory, "us-east", "POST", "/v1/restrict", {"scope": f"tenant:{US}", "action": "suspend"}),
        (mallory, "us-east", "GET", f"/v1/tenants/{US}/chain", None),
        (RegistryIdentity(mesh=DEV, node=NodeId("r9")), "registry", "POST", "/v1/commands", suspend),
    )
    for identity, to, method, path, body in asked:
        async with outsider(mesh, certify(mesh, tmp_path, identity)) as one:
            status, said = await one(method, path, body, to=to, headers={"Idempotency-Key": f"no-{time.time_ns()}"})
            assert status in (0, 403, 404), (str(identity), path, status, said)
    assert (await mesh.client.call("GET", f"/v1/tenants/{US}"))["state"] == "active"
    async with outsider(mesh, certify(mesh, tmp_path, mallory)) as one:
        shown = await one("GET", "/v1/tenants")
        assert shown[0] != 200 or shown[1]["tenants"] == []
        absent, present = await one("GET", "/v1/tenants/nosuchtenant"), await one("GET", f"/v1/tenants/{US}")
        assert strip(absent) == strip(present)  # another's tenant looks like none


def strip(answer: Any) -> Any:
    status, body = answer
    return status, {k: v for k, v in body.items() if k != "correlation_id"}


async def test_the_same_command_again_is_the_same_and_another_body_is_409(operator: Outsider) -> None:
    key = {"Idempotency-Key": f"twice-{time.time_ns()}"}
    body = {"namespace": US, "kind": "suspend", "args": {"scope": f"service:{US}/{MAIL}"}}
    status, first = await operator("POST", "/v1/commands", body, headers=key)
    assert (status, first["duplicate"]) == (200, False)
    status, again = await operator("POST", "/v1/commands", body, headers=key)
    assert (status, again["duplicate"]) == (200, True)
    assert (again["seq"], again["index"]) == (first["seq"], first["index"])
    other = {**body, "args": {"scope": f"tenant:{US}"}}
    status, refused = await operator("POST", "/v1/commands", other, headers=key)
    assert (status, refused["error"]["code"]) == (409, "conflict")
    status, resumed = await operator(
        "POST", "/v1/commands", {**body, "kind": "resume"}, headers={"Idempotency-Key": f"up-{time.time_ns()}"}
    )
    assert status == 200
    status, again = await operator("POST", "/v1/commands", body, headers=key)  # a late repeat suspends nothing anew
    assert (status, again["duplicate"], again["seq"]) == (200, True, first["seq"])
    assert (await operator("GET", f"/v1/tenants/{US}/services/{MAIL}"))[1]["state"] == "active"
    new = {"Idempotency-Key": f"anew-{time.time_ns()}"}
    status, anew = await operator("POST", "/v1/commands", body, headers=new)  # a new command is never swallowed
    assert (status, anew["duplicate"]) == (200, False) and anew["seq"] > resumed["seq"]
    body["kind"] = "resume"
    assert (await operator("POST", "/v1/commands", body, headers={"Idempotency-Key": f"d-{time.time_ns()}"}))[0] == 200


async def test_fifty_at_once_with_one_idempotency_key_are_one_command(mesh: LiveMesh, operator: Outsider) -> None:
    key = {"Idempotency-Key": f"many-{time.time_ns()}"}
    body = {"namespace": US, "kind": "suspend", "args": {"scope": f"service:{US}/{MAIL}"}}
    answers = await asyncio.gather(*(operator("POST", "/v1/commands", body, headers=key) for _ in range(50)))
    assert {status for status, _ in answers} == {200}
    assert len({said["seq"] for _, said in answers}) == 1
    assert mesh.log_entries(US)[key["Idempotency-Key"]] == [answers[0][1]["seq"]]
    await mesh.resume(f"service:{US}/{MAIL}", US)


def deep() -> bytes:
    return b'{"namespace":"x","kind":"suspend","args":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}"


BAD_BODIES: tuple[tuple[str, Callable[[], bytes]], ...] = (
    ("empty", lambda: b""),
    ("no JSON", lambda: b"\xff\xfe"),
    ("null", lambda: b"null"),
    ("array", lambda: b"[]"),
    ("duplicate key", lambda: b'{"namespace":"a","namespace":"b","kind":"suspend","args":{}}'),
    ("unknown field", lambda: b'{"namespace":"a","kind":"suspend","args":{},"force":true}'),
    ("missing field", lambda: b'{"namespace":"a","args":{}}'),
    ("not a number", lambda: b'{"namespace":"a","kind":"suspend","args":{"n":NaN}}'),
    ("huge number", lambda: b'{"namespace":"a","kind":"suspend","args":{"n":1e999}}'),
    ("long integer", lambda: b'{"namespace":"a","kind":"suspend","args":{"n":' + b"9" * 5_000 + b"}}"),
    ("lone surrogate", lambda: b'{"namespace":"\\ud800","kind":"suspend","args":{}}'),
    ("BOM", lambda: b'\xef\xbb\xbf{"namespace":"a","kind":"suspend","args":{}}'),
    ("trailing bytes", lambda: b'{"namespace":"a","kind":"suspend","args":{}} x'),
    ("deep", deep),
    ("upper case", lambda: b'{"namespace":"ACME","kind":"suspend","args":{"scope":"tenant:ACME"}}'),
    ("path", lambda: b'{"namespace":"../mesh","kind":"suspend","args":{"scope":"mesh"}}'),
    ("empty name", lambda: b'{"namespace":"","kind":"suspend","args":{"scope":"tenant:"}}'),
    ("long name", lambda: json.dumps({"namespace": "a" * 64, "kind": "suspend", "args": {}}).encode()),
    ("dotless i", lambda: '{"namespace":"acme\u0131","kind":"suspend","args":{}}'.encode()),
    ("line break", lambda: b'{"namespace":"a\\r\\nb","kind":"suspend","args":{}}'),
    ("NUL", lambda: b'{"namespace":"a\\u0000","kind":"suspend","args":{}}'),
)


@pytest.mark.parametrize("body", [make for _, make in BAD_BODIES], ids=[name for name, _ in BAD_BODIES])
async def test_bad_bodies_are_one_clear_400(mesh: LiveMesh, operator: Outsider, body: Callable[[], bytes]) -> None:
    status, said = await operator("POST", "/v1/commands", body(), headers={"Idempotency-Key": f"bad-{time.time_ns()}"})
    assert status in (400, 404, 422), said
    assert said["error"]["code"] and said["correlation_id"]
    assert "Traceback" not in json.dumps(said)


async def test_limits_and_headers(operator: Outsider) -> None:
    body = {"namespace": US, "kind": "suspend", "args": {"scope": f"tenant:{US}"}}
    big = {**body, "args": {"scope": f"tenant:{US}", "reason": "x" * (HTTP_BODY_MAX_BYTES + 1)}}
    ok = {"Idempotency-Key": f"limits-{time.time_ns()}"}
    assert (await operator("POST", "/v1/commands", big, headers=ok))[0] in (0, 413)
    wide = {**body, "args": {"scope": f"tenant:{US}", "reason": "x" * 100_000}}  # a body, and no entry
    assert 400 <= (await operator("POST", "/v1/commands", wide, headers=ok))[0] < 500
    for key in ("", "a b", "x" * 129, "..", "a/b", "ä", "-x"):
        status, _ = await operator("POST", "/v1/commands", body, headers={"Idempotency-Key": key})
        assert status in (0, 400), key
    status, said = await operator("POST", "/v1/commands", body)
    assert (status, said["error"]["field"]) == (400, "idempotency-key")
    assert (await operator("POST", "/v1/commands", body, headers={**ok, "Content-Type": "text/plain"}))[0] == 415
    assert (await operator("DELETE", "/v1/commands", headers=ok))[0] == 405
    many = {"commands": [{**body, "command_id": f"b{n}"} for n in range(33)]}
    assert (await operator("POST", "/v1/commands/batch", many))[0] == 400
    assert (await operator("POST", "/v1/commands/batch", {"commands": []}))[0] == 400
    status, said = await operator("GET", "/v1/tenants", headers={"X-Correlation-Id": "bad id\x09"})
    assert status in (0, 200, 400)
    for path in (
        "/v1/tenants/..",
        "/v1/tenants/%2e%2e/keys",
        f"/v1/tenants/{US.upper()}",
        f"/v1/tenants/{US}%00",
        f"/v1/tenants/{'x' * 300}",
        "/v1/commands/acme/nosuch",
        "/v1/certificates/nosuch",
        "/v1/regions/nosuch",
        "/v1/nothing",
        "/v1/tenants?at_least=-1",
        "/v1/tenants?at_least=1e9",
        f"/v1/tenants?at_least={'9' * 30}",
    ):
        status, said = await operator("GET", path)
        assert status in (400, 404), (path, status)
        assert said["error"]["message"]
    assert (await operator("GET", f"/v1/tenants/{US}"))[1]["state"] == "active"


async def test_a_region_that_is_not_there_is_refused_with_those_that_are(mesh: LiveMesh, operator: Outsider) -> None:
    officers = tuple(mesh.layout.keys / f"officer-{n}.pem" for n in (1, 2))
    args = {"scope": "region:mars", "reason": "", "abandon_children": False, "upto_seq": 0}
    for kind in ("suspend", "revoke", "resume"):
        key = f"mars-{kind}-{time.time_ns()}"
        body = {
            "namespace": "mesh",
            "kind": kind,
            "args": args,
            "authority": mesh.client.authority("mesh", kind, args, key, officers),
        }
        status, said = await operator("POST", "/v1/commands", body, headers={"Idempotency-Key": key})
        assert (status, said["error"]["code"], said["error"]["field"]) == (400, "bad-field", "scope")
        assert all(region in said["error"]["message"] for region in mesh.plan.regions)
    _, shown = await operator("GET", "/v1/restrictions/mesh")
    assert "region:mars" not in {r["scope"] for r in shown["restrictions"]}


async def test_each_command_of_a_batch_stands_for_itself(mesh: LiveMesh, operator: Outsider) -> None:
    stamp = time.time_ns()
    commands = [
        {"command_id": f"ok-{stamp}", "namespace": US, "kind": "suspend", "args": {"scope": f"service:{US}/{MAIL}"}},
        {"command_id": f"no-{stamp}", "namespace": "nobody", "kind": "suspend", "args": {"scope": "tenant:nobody"}},
        {"command_id": f"up-{stamp}", "namespace": US, "kind": "resume", "args": {"scope": f"service:{US}/{MAIL}"}},
    ]
    status, said = await operator("POST", "/v1/commands/batch", {"commands": commands})
    assert status == 200
    first, second, third = said["results"]
    assert "seq" in first and "error" in second and third["seq"] > first["seq"]
    await mesh.committed(US, f"up-{stamp}")


async def test_openapi_names_every_route_and_reads_say_their_index(operator: Outsider) -> None:
    status, openapi = await operator("GET", "/v1/openapi.json")
    assert status == 200 and "/v1/commands" in openapi["paths"]
    index = (await operator("GET", "/v1/status"))[1]["index"]
    status, read = await operator("GET", f"/v1/tenants?at_least={index}")
    assert status == 200 and read["index"] >= index
