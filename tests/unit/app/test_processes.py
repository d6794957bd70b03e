"""A Registry and a Core put together from a founded directory, in this process, without their sockets."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from tests.unit.app.founded import founded
from tests.unit.registry.harness import node, with_tenant

from keymesh.access.identity import Identity, parse_identity
from keymesh.adapters import pki, seals
from keymesh.adapters.http_messages import JSON, OCTETS, Request, Response, Router, problem_response
from keymesh.adapters.http_server import serve
from keymesh.adapters.sql_projection import SqlProjection
from keymesh.adapters.tls import Credentials, MeshTls, Peer
from keymesh.app.channels import split_messages
from keymesh.app.config_of_plan import core_config_of, registry_config_of
from keymesh.app.core_api import CoreApi
from keymesh.app.core_app import CoreProcess
from keymesh.app.core_snapshot import take_snapshot
from keymesh.app.layout import Layout, MeshPlan
from keymesh.app.metrics import CoreCollector, RegistryCollector
from keymesh.app.read_model import ReadModel
from keymesh.app.registry_api import RegistryApi
from keymesh.app.registry_app import RegistryProcess
from keymesh.app.signing_keys import load_signer
from keymesh.control.entry import parse_entry
from keymesh.control.kinds import TenantCreate
from keymesh.control.rows import PolicyRow, SignersRow
from keymesh.control.trust import make_authority
from keymesh.core.events import Reconnected
from keymesh.crypto.dsse import envelope_from_json, envelope_to_json
from keymesh.crypto.wrap import digest
from keymesh.model import strict_json
from keymesh.model.errors import Refused, Unavailable
from keymesh.model.ids import CorrelationId, MeshName
from keymesh.model.time import Instant
from keymesh.orbital import edge_wire
from keymesh.orbital.edge_messages import UsageReport
from keymesh.orbital.messages import Hello, Task
from keymesh.orbital.wire import MESSAGES
from keymesh.registry.events import Command, CommandDone

pytestmark = pytest.mark.usefixtures("template")

OPERATOR = "spiffe://dev/admin/operator"
STRANGER = "spiffe://dev/admin/mallory"
CORE = "spiffe://us-east.dev/core/n1"
FOREIGN_CORE = "spiffe://eu-central.dev/core/n1"
EDGE = "spiffe://us-east.dev/tenant/acme/edge/pay/i1"
FAR_MS = 2**52


def request(
    method: str,
    path: str,
    uri: str,
    body: Any = None,
    *,
    key: str | None = None,
    content_type: str = JSON,
    **query: str,
) -> Request:
    """As the server would hand it on; routes fill ``params``."""
    identity: Identity = parse_identity(uri, MeshName("dev"))
    raw = body if isinstance(body, bytes) else b"" if body is None else strict_json.dumps(body)
    return Request(
        method=method,
        path=path,
        params={},
        query=query,
        headers={"content-type": content_type},
        body=raw,
        peer=Peer(uri=uri, identity=identity, chain=("a", "b", "c"), not_after=Instant(2**60), public_key=b"k"),
        correlation_id=CorrelationId("corr-1"),
        idempotency_key=key,
    )


class Face:
    """The routes of a process, asked without a network; what the route does not allow is ``denied``."""

    def __init__(self, routes: list[Any]) -> None:
        self.routes = routes
        self._router = Router(routes)

    async def ask(self, method: str, path: str, uri: str = OPERATOR, body: Any = None, **more: Any) -> Any:
        route, params = self._router.find(method, path)
        asked = replace(request(method, path, uri, body, **more), params=params)
        if route.allow is not None and not route.allow(asked):
            raise Refused("denied", "not for you")
        answer = await route.handler(asked)
        assert isinstance(answer, Response)
        return json.loads(answer.body) if answer.body and answer.content_type == JSON else answer


# --- the Registry ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def life_of_registry(
    layout: Layout, plan: MeshPlan, *, boot: bool = True
) -> AsyncIterator[tuple[RegistryProcess, Face]]:
    process = RegistryProcess(registry_config_of(layout, plan))
    face = Face(RegistryApi(process).routes())
    try:
        if boot:
            await process.read_model.start()
            process.shell.boot()
            await asyncio.gather(*process.tasks)  # the log is read
            assert process.shell.state.booted
        yield process, face
    finally:
        process.shell.stop()
        await asyncio.gather(*process.tasks, return_exceptions=True)
        process.records.close()
        await process.read_model.close()
        process.receipts.close()
        await process.log.control.close()


@asynccontextmanager
async def registry(*, boot: bool = True) -> AsyncIterator[tuple[RegistryProcess, Face]]:
    with founded() as (layout, plan):
        async with life_of_registry(layout, plan, boot=boot) as living:
            yield living


def creation(process: RegistryProcess, tenant: str, command_id: str, **changes: Any) -> dict[str, Any]:
    """The body of a tenant's creation, signed by the development mesh's tenant admin."""
    signer = load_signer(Path(process.config.data_dir).parent / "keys" / "tenant-admin.pem")
    policy = PolicyRow(version=1, home="us-east", domain="us", regions=("us-east", "us-west"), admins=("operator",))
    args = msgspec.to_builtins(
        TenantCreate(
            policy=policy,
            signers=SignersRow(keys={signer.key_id: signer.public_hex}, threshold=1),
            binding_id="b1",
            provider="keymesh-kms",
            descriptor={"key": "k", "replicas": {"us-east": "https://h:1"}},
        )
    )
    args |= changes
    envelope = make_authority(
        mesh="dev",
        namespace=tenant,
        command_id=command_id,
        kind="tenant.create",
        args=args,
        not_after=FAR_MS,
        signers=[signer.signer],
    )
    authority = [json.loads(envelope_to_json(envelope))]
    return {"namespace": tenant, "kind": "tenant.create", "args": args, "authority": authority}


async def create(process: RegistryProcess, face: Face, tenant: str = "acme") -> Any:
    return await face.ask("POST", "/v1/commands", body=creation(process, tenant, f"c-{tenant}"), key=f"c-{tenant}")


async def test_a_command_is_committed_once_and_read_back() -> None:
    async with registry() as (process, face):
        done = await create(process, face)
        assert (done["seq"], done["index"], done["duplicate"], done["correlation_id"]) == (1, 2, False, "corr-1")
        again = await create(process, face)
        assert (again["seq"], again["index"], again["duplicate"]) == (1, 2, True)
        shown = await face.ask("GET", "/v1/tenants/acme", at_least="2")
        assert (shown["state"], shown["home"], shown["index"]) == ("active", "us-east", 2)
        assert [t["tenant"] for t in (await face.ask("GET", "/v1/tenants"))["tenants"]] == ["acme"]
        assert (await face.ask("GET", "/v1/commands/acme/c-acme"))["committed"]
        assert (await face.ask("GET", "/v1/tenants/acme/keys"))["keys"] == []
        assert (await face.ask("GET", "/v1/tenants/acme/services"))["services"] == []
        status = await face.ask("GET", "/v1/status")
        assert (status["tenants"], status["index"], sorted(status["regions"])) == (
            1,
            2,
            ["eu-central", "us-east", "us-west"],
        )
        assert (await face.ask("GET", "/v1/regions/us-east"))["reachable"] is False


async def test_the_same_id_with_another_body_is_a_conflict_also_while_the_first_is_on_its_way() -> None:
    async with registry() as (process, face):
        await create(process, face)

        def labels(text: str) -> Any:
            body = {"namespace": "acme", "kind": "tenant.labels", "args": {"labels": {"x": text}}}
            return face.ask("POST", "/v1/commands", body=body, key="same")

        asked = (labels("a"), labels("a"), labels("b"))
        first, twin, other = list[Any](await asyncio.gather(*asked, return_exceptions=True))
        assert isinstance(first, dict)
        assert isinstance(twin, dict)
        assert (first["seq"], twin["seq"]) == (2, 2)
        assert isinstance(other, Refused)
        assert other.code == "conflict"
        with pytest.raises(Refused) as later:
            await labels("b")
        assert later.value.code == "conflict"
        assert process.waiting == {}
        assert (await labels("a"))["duplicate"]


async def test_a_refused_command_is_refused_each_time_and_leaves_nothing_waiting() -> None:
    async with registry() as (process, face):
        for _ in range(2):
            bad = {"namespace": "acme", "kind": "tenant.labels", "args": {"labels": {}}}
            with pytest.raises(Refused):
                await face.ask("POST", "/v1/commands", body=bad, key="c-1")
        unsigned = creation(process, "acme", "c-2") | {"authority": []}
        with pytest.raises(Refused) as refused:
            await face.ask("POST", "/v1/commands", body=unsigned, key="c-2")
        assert refused.value.code == "below-threshold"
        for wrong_id in ("c-4",):  # signed for another command
            with pytest.raises(Refused):
                await face.ask("POST", "/v1/commands", body=creation(process, "acme", "c-3"), key=wrong_id)
        assert process.waiting == {}
        assert process.shell.state.index == 1


async def test_a_batch_answers_each_of_its_own() -> None:
    async with registry() as (process, face):
        await create(process, face)
        labels = [
            {"command_id": f"l{n}", "namespace": "acme", "kind": "tenant.labels", "args": {"labels": {"n": str(n)}}}
            for n in range(3)
        ]
        labels.insert(1, labels[0] | {"command_id": "bad", "namespace": "nobody"})
        answer = (await face.ask("POST", "/v1/commands/batch", body={"commands": labels}))["results"]
        assert [("error" in one, one.get("seq")) for one in answer] == [
            (False, 2),
            (True, None),
            (False, 3),
            (False, 4),
        ]
        for count in (0, 33):
            with pytest.raises(Refused):
                await face.ask("POST", "/v1/commands/batch", body={"commands": labels[:1] * count})


async def test_what_is_not_asked_in_its_form_is_refused() -> None:
    async with registry() as (process, face):
        good = creation(process, "acme", "c-1")
        for body, key in (
            (good, None),
            (good | {"more": 1}, "c-1"),
            ({k: v for k, v in good.items() if k != "kind"}, "c-1"),
            (good | {"args": []}, "c-1"),
            (b"[]", "c-1"),
            (b"\xef\xbb\xbf{}", "c-1"),
            (good | {"kind": "no.such"}, "c-1"),
            (good | {"namespace": "Mesh"}, "c-1"),
        ):
            with pytest.raises(Refused):
                await face.ask("POST", "/v1/commands", body=body, key=key)
        for path, query in (
            ("/v1/tenants", {"at_least": "-1"}),
            ("/v1/tenants", {"at_least": "x"}),
            ("/v1/certificates/c-1", {"wait_ms": "99999999"}),
            ("/v1/certificates/c-1", {}),
            ("/v1/commands/acme/c-1", {}),
            ("/v1/commands/mesh/c-1", {}),
            ("/v1/regions/mars", {}),
            ("/v1/regions/Mars", {}),
            ("/v1/tenants/acme", {}),
        ):
            with pytest.raises(Refused):
                await face.ask("GET", path, **query)


async def test_a_read_that_is_ahead_of_the_log_waits_and_then_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async with registry() as (process, face):
        waiting = asyncio.create_task(face.ask("GET", "/v1/tenants", at_least="2"))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await create(process, face)
        assert len((await waiting)["tenants"]) == 1


async def test_others_see_nothing_and_machines_are_not_administrators() -> None:
    async with registry() as (process, face):
        await create(process, face)
        absent: dict[str, str] = {}
        for path in ("/v1/tenants/acme", "/v1/tenants/acme/keys", "/v1/commands/acme/c-acme", "/v1/tenants/nobody"):
            with pytest.raises(Refused) as refused:
                await face.ask("GET", path, STRANGER)
            absent[path] = refused.value.code
        assert set(absent.values()) == {"not-found"}  # as if it were not there
        assert (await face.ask("GET", "/v1/tenants", STRANGER))["tenants"] == []
        for path in ("/v1/status", "/v1/regions", "/v1/regions/us-east"):
            with pytest.raises(Refused) as refused:
                await face.ask("GET", path, STRANGER)
            assert refused.value.code == "denied"
        body = {"namespace": "acme", "kind": "tenant.labels", "args": {"labels": {}}}
        with pytest.raises(Refused) as refused:
            await face.ask("POST", "/v1/commands", STRANGER, body, key="x")
        assert refused.value.code == "not-found"
        for machine in (CORE, EDGE):
            for route in face.routes:
                with pytest.raises(Refused) as refused:
                    await face.ask(route.method, re.sub(r"\{\w+\}", "acme", route.path), machine)
                assert refused.value.code == "denied"


async def test_before_the_log_is_read_the_answer_is_not_now() -> None:
    async with registry(boot=False) as (_, face):
        for route in face.routes:
            with pytest.raises(Unavailable) as early:
                await face.ask(route.method, re.sub(r"\{\w+\}", "acme", route.path))
            assert early.value.code == "booting"


async def test_a_projection_that_contradicts_the_log_is_made_anew() -> None:
    async with registry() as (process, face):
        await create(process, face)
        path = Path(process.config.data_dir) / "projection.db"
        await process.read_model.close()
        path.write_bytes(b"no database at all" * 100)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        process.read_model = ReadModel(
            SqlProjection(f"sqlite:///{path}", mesh=process.config.mesh), process.log.control
        )
        await process.read_model.start()
        assert await process.read_model.index() == 2
        assert (await face.ask("GET", "/v1/tenants/acme"))["tenant"] == "acme"


async def test_a_restart_knows_what_was_committed() -> None:
    with founded() as (layout, plan):
        async with life_of_registry(layout, plan) as (process, face):
            await create(process, face)
        for file in layout.registry.glob("projection.db*"):
            file.unlink()  # a projection is nothing that has to be kept
        async with life_of_registry(layout, plan) as (process, face):
            assert (await create(process, face))["duplicate"]
            assert (await face.ask("GET", "/v1/tenants/acme"))["index"] == 2


async def test_nodes_speak_in_messages_and_listen_on_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keymesh.app.registry_app.POLL_S", 0.02)
    async with registry() as (process, _):
        hello = MESSAGES.encode(Hello(region="us-east", node="n1", boot_id="b"))
        assert (await process.node_messages(request("POST", "/v1/messages", CORE, hello))).status == 204
        for body in (b"", b"{}", b'{"t":"Hello","v":{}}', hello + b"x"):
            with pytest.raises(Refused):
                await process.node_messages(request("POST", "/v1/messages", CORE, body))

        async def poll(channel: str) -> bytes:
            asked = replace(request("GET", f"/v1/channels/{channel}", CORE), params={"channel": channel})
            return (await process.channel(asked)).body

        assert await poll("lane2") == b"[]"
        process._send("node:us-east/n1", Hello(region="a", node="b", boot_id="c"))
        process._send("node:us-west/n1", Hello(region="x", node="y", boot_id="z"))
        assert split_messages(await poll("lane0")) == []
        body = await poll("control")
        assert [MESSAGES.from_plain(one) for one in split_messages(body)] == [Hello(region="a", node="b", boot_id="c")]
        with pytest.raises(Refused):
            await poll("lane3")


async def test_many_messages_may_come_in_one_request_and_a_bad_one_spoils_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with registry() as (process, _):
        heard: list[Any] = []
        monkeypatch.setattr(process.shell, "feed", lambda event: heard.append(event.message))
        hello = MESSAGES.encode(Hello(region="us-east", node="n1", boot_id="b"))
        other = MESSAGES.encode(Hello(region="us-east", node="n1", boot_id="c"))
        body = b"[" + b",".join([hello, b'{"t":"Sabotage","v":{}}', b"3", other]) + b"]"
        assert (await process.node_messages(request("POST", "/v1/messages", CORE, body))).status == 204
        assert [message.boot_id for message in heard] == ["b", "c"]
        for spoiled in (body + b"x", b"[" + hello, b"[" * 100_000):
            with pytest.raises(Refused):
                await process.node_messages(request("POST", "/v1/messages", CORE, spoiled))
        assert len(heard) == 2


async def test_a_new_restriction_does_not_wait_behind_copies_of_old_ones() -> None:
    """A node that was away for an hour: each restriction waits for it once, and one poll brings them."""
    bench = with_tenant()
    async with registry() as (process, _):
        face = Face(process.node_routes())

        def deliver() -> int:
            sent = [(to, m) for to, m in bench.sent if to == node("us-east") and isinstance(m, Task)]
            bench.sent.clear()
            for to, message in sent:
                process._send(to, message)
            return len(sent)

        bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
        deliver()
        bench.advance(3_600_000)
        assert deliver() > 100
        bench.ok(bench.scope_command("suspend", "service:acme/pay", "s2"))
        deliver()
        tasks = [MESSAGES.from_plain(one) for one in await face.ask("GET", "/v1/channels/lane0", CORE)]
        assert [task.state.head.entry.command_id for task in tasks] == ["s1", "s2"]
        assert await face.ask("GET", "/v1/channels/lane0", CORE, wait="no") == []


async def test_entries_go_to_regions_that_may_hold_them_and_to_no_other() -> None:
    async with registry() as (process, face):
        await face.ask("POST", "/v1/commands", OPERATOR, creation(process, "acme", "c1"), key="c1")
        nodes = Face(process.node_routes())
        mine = await nodes.ask("GET", "/v1/entries/acme", CORE, after="0", most="9")
        (entry,) = mine["entries"]
        assert parse_entry(envelope_from_json(base64.b64decode(entry))).entry.command_id == "c1"
        assert (await nodes.ask("GET", "/v1/entries/acme", CORE, after="1"))["entries"] == []
        assert (await nodes.ask("GET", "/v1/entries/mesh", FOREIGN_CORE))["entries"]
        for path, uri, query in (
            ("/v1/entries/acme", FOREIGN_CORE, {}),
            ("/v1/entries/nobody", CORE, {}),
            ("/v1/entries/acme", CORE, {"after": "-1"}),
            ("/v1/entries/acme", CORE, {"most": "257"}),
        ):
            with pytest.raises(Refused):
                await nodes.ask("GET", path, uri, **query)


async def test_a_greeting_voids_what_waits_in_the_lower_lanes_alone() -> None:
    async with registry() as (process, _):
        for lane in ("lane0", "lane1", "lane2", "control"):
            process.mailboxes.of("node:us-east/n1", lane).put(b"old")
        hello = MESSAGES.encode(Hello(region="us-east", node="n1", boot_id="b"))
        await process.node_messages(request("POST", "/v1/messages", CORE, hello))
        left = {lane: process.mailboxes.of("node:us-east/n1", lane).is_empty() for lane in ("lane0", "lane1", "lane2")}
        assert left["lane0"] is False
        assert b"old" not in await process.mailboxes.of("node:us-east/n1", "lane1").take(timeout_s=0)
        assert b"old" not in await process.mailboxes.of("node:us-east/n1", "lane2").take(timeout_s=0)


async def test_a_registry_that_still_reads_its_log_keeps_no_node_waiting_and_takes_nothing_from_it() -> None:
    async with registry(boot=False) as (process, _):
        face = Face(process.node_routes())
        hello = MESSAGES.encode(Hello(region="us-east", node="n1", boot_id="b"))
        for method, path, body in (
            ("POST", "/v1/messages", hello),
            *(("GET", f"/v1/channels/{name}", None) for name in ("lane0", "lane1", "lane2", "control")),
        ):
            async with asyncio.timeout(5):
                with pytest.raises(Unavailable) as early:
                    await face.ask(method, path, CORE, body)
            assert early.value.code == "booting"
            answer = problem_response(early.value, "c")
            assert (answer.status, dict(answer.headers)) == (503, {"Retry-After": "1"})


async def test_a_core_greets_a_registry_once_it_is_there_and_not_before() -> None:
    """Over the wire: refused while the log is read, the greeting comes with the first answer, and only with that."""
    with founded() as (layout, plan):
        async with life_of_registry(layout, plan, boot=False) as (process, _):
            tls = MeshTls(Credentials(layout.registry / "tls.pem"), MeshName(plan.mesh), layout.ca.read_bytes())
            server = await serve(
                process.node_routes(), tls=tls.server(lambda i: True), port=plan.registry_port, readiness=list
            )
            node_of_us = CoreProcess(core_config_of(layout, plan, "us-east"))
            greetings: list[Any] = []
            greeted = asyncio.Event()
            feed = node_of_us.shell.feed

            def watched(event: Any) -> None:
                feed(event)
                if event == Reconnected():
                    greetings.append(event)
                    greeted.set()

            node_of_us.shell.feed = watched  # type: ignore[method-assign]
            node_of_us.voter.boot()
            node_of_us.shell.boot()
            (following,) = [
                asyncio.create_task(poll)
                for poll in node_of_us.registries.follows(
                    receive=node_of_us._receive_all, on_return=lambda: watched(Reconnected()), channels=("lane0",)
                )
            ]
            try:
                await asyncio.sleep(0.5)  # several tries
                assert not greetings
                await process.read_model.start()
                process.shell.boot()
                await asyncio.gather(*process.tasks)
                async with asyncio.timeout(10):
                    await greeted.wait()
                await asyncio.sleep(0.3)
                assert len(greetings) == 1
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
                await close_core(node_of_us)
                await server.close()


async def test_when_entries_were_appended_is_kept_of_the_newest_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keymesh.app.registry_log.APPEND_TIMES_MAX", 3)
    async with registry() as (process, face):
        for n in range(5):
            await create(process, face, f"t{n}")
        for times in (process.log.append_started, process.log.appended):
            assert list(times) == [(f"t{n}", f"c-t{n}") for n in (2, 3, 4)]


def test_an_answer_that_is_no_array_of_messages_is_refused() -> None:
    assert split_messages(b"") == []
    for body in (b"{}", b"1", b"[", b"[1.5]", b'"x"', b"null"):
        with pytest.raises(Refused):
            split_messages(body)


async def test_the_registrys_metrics() -> None:
    async with registry() as (process, face):
        await create(process, face)
        seen = CollectorRegistry()
        seen.register(RegistryCollector(process))
        text = generate_latest(seen).decode()
        assert "keymesh_registry_index 2.0" in text
        assert "keymesh_registry_halted 0.0" in text
        assert "keymesh_registry_read_model_behind 0.0" in text
        assert RegistryApi(process).readiness() == []


async def test_a_command_that_the_log_does_not_answer_is_unknown_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with registry() as (process, _):
        monkeypatch.setattr(process.shell, "_step", lambda state, now, event: [])
        real = asyncio.wait_for

        async def soon(work: Any, timeout_s: float) -> Any:
            return await real(work, 0.01)

        monkeypatch.setattr(asyncio, "wait_for", soon)
        asked = Command(
            command_id="c", namespace="acme", kind="tenant.labels", args={}, actor="a", correlation_id="x", authority=()
        )
        with pytest.raises(Unavailable) as unknown:
            await process.command(asked)
        assert unknown.value.code == "unknown-outcome"
        late = asyncio.create_task(process.command(asked))  # the same again takes part in the same outcome
        await asyncio.sleep(0)
        process._command_done(CommandDone("c", "acme", 1, 2, 3))
        assert (await late).seq == 2


# --- a Core ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def core(region: str = "us-east") -> AsyncIterator[tuple[CoreProcess, Face]]:
    with founded() as (layout, plan):
        process = CoreProcess(core_config_of(layout, plan, region))
        process.voter.boot()
        process.shell.boot()
        await process.region_store.check()
        try:
            yield process, Face([*process.edges.routes(), *CoreApi(process).routes()])
        finally:
            await close_core(process)


async def opened(process: CoreProcess) -> None:
    """By a seal, and then by the key store."""
    assert await process.seals.start()
    assert process.opening is not None
    await process.opening


async def close_core(process: CoreProcess) -> None:
    process.shell.stop()
    process.voter.stop()
    for task in process.tasks:
        task.cancel()
    await asyncio.gather(*process.tasks, return_exceptions=True)
    await process.keys.close()
    await process.registries.close()
    for link in process._peers.values():
        await link.close()
    process.records.close()
    process.voter_records.close()
    process.receipts.close()
    await process.store.close()


async def test_a_core_makes_its_seal_at_the_first_start_and_opens_it_at_the_next() -> None:
    async with core() as (process, face):
        assert (await face.ask("GET", "/v1/status"))["sealed"]
        assert CoreApi(process).readiness() == ["sealed", "no governance lease", "KMIP: not listening"]
        await opened(process)
        shown = await face.ask("GET", "/v1/status")
        assert (shown["sealed"], shown["ivk_generation"], shown["tenants"]) == (False, 1, {})
        first = process.keyring.master.kid
        process.seal()
        await opened(process)
        assert process.keyring.master.kid == first
        assert len(await process.store.ivks()) == 1
        seen = CollectorRegistry()
        seen.register(CoreCollector(process))
        text = generate_latest(seen).decode()
        assert "keymesh_core_sealed 0.0" in text
        assert 'kind="file"' in text and "keymesh_core_seal_opens" in text
        assert "keymesh_core_keys_in_memory 1.0" in text
        assert "keymesh_core_keystore_open 1.0" in text
        assert "keymesh_core_keystore_schema 2.0" in text


async def test_a_region_sealed_by_shares_waits_for_them() -> None:
    async with core() as (process, face):
        shares = seals.found_by_shares(process.directory, "us-east", process.pages, threshold=2, n_shares=3)
        await process.seals.start()
        assert (await face.ask("GET", "/v1/status"))["sealed"]
        for given in ((), shares[:1], shares[:1] * 2, ("x",), shares * 6):
            with pytest.raises(Refused):
                await face.ask("POST", "/v1/unseal", body={"shares": list(given)})
        with pytest.raises(Refused) as refused:
            await face.ask("POST", "/v1/unseal", STRANGER, {"shares": list(shares)})
        assert refused.value.code == "denied"
        answer = await face.ask("POST", "/v1/unseal", body={"shares": list(shares[1:])})
        assert answer == {"region": "us-east", "sealed": False}
        with pytest.raises(Refused) as twice:
            await face.ask("POST", "/v1/unseal", body={"shares": list(shares)})
        assert twice.value.code == "not-sealed"


async def test_a_tenant_that_is_not_held_here_looks_absent_to_everyone() -> None:
    async with core() as (process, face):
        await opened(process)
        name = "0f" * 32
        csr = pki.make_csr(pki.new_tls_key(), parse_identity(EDGE, MeshName("dev"))).decode()
        restrict = {"scope": "tenant:acme", "action": "suspend"}
        enrol = {"tenant": "acme", "service": "pay", "instance": "i1", "csr": csr}
        for method, path, uri, body in (
            ("GET", f"/v1/blobs/acme/{name}", FOREIGN_CORE, None),
            ("PUT", f"/v1/blobs/acme/{name}", FOREIGN_CORE, b"x"),
            ("GET", "/v1/tenants/acme/chain", OPERATOR, None),
            ("POST", "/v1/restrict", OPERATOR, restrict),
            ("POST", "/v1/restrict", STRANGER, restrict),
            ("POST", "/v1/certificates", OPERATOR, enrol),
            ("POST", edge_wire.RENEW_PATH, EDGE, {"csr": csr}),
        ):
            with pytest.raises(Refused) as refused:
                await face.ask(method, path, uri, body, key="k")
            assert refused.value.code == "not-found", path


async def test_each_route_is_for_its_own_kind_of_peer() -> None:
    async with core() as (_, face):
        allowed = {
            "/v1/blobs/{tenant}/{digest}": {CORE, FOREIGN_CORE},
            "/v1/restrict": {OPERATOR, STRANGER},
            "/v1/certificates": {OPERATOR, STRANGER},
            "/v1/clients/certificates": {OPERATOR, STRANGER},
            "/v1/tenants/{tenant}/chain": {OPERATOR, STRANGER},
            "/v1/tenants/{tenant}/budgets": {OPERATOR, STRANGER},
            "/v1/status": {OPERATOR},
            "/v1/applied": {OPERATOR},
            "/v1/seal": {OPERATOR},
            "/v1/seals": {OPERATOR},
            "/v1/seals/confirm": {OPERATOR},
            "/v1/seals/remove": {OPERATOR},
            "/v1/unseal": {OPERATOR},
            edge_wire.RENEW_PATH: {EDGE, EDGE.replace("us-east", "us-west")},
        }
        for_edges = {edge_wire.MESSAGES_PATH, edge_wire.STREAM_PATH, edge_wire.CREATE_PATH, edge_wire.OPEN_PATH}
        everyone = {OPERATOR, STRANGER, CORE, FOREIGN_CORE, EDGE, EDGE.replace("us-east", "us-west")}
        for route in face.routes:
            assert route.allow is not None
            may = {uri for uri in everyone if route.allow(request(route.method, "/", uri))}
            assert may == allowed.get(route.path, {EDGE} if route.path in for_edges else set()), route.path


async def test_restrictions_and_queries_out_of_form_are_refused() -> None:
    async with core() as (_, face):
        for body, key in (
            ({"scope": "mesh", "action": "suspend"}, "k"),
            ({"scope": "region:us-east", "action": "suspend"}, "k"),
            ({"scope": "tenant:acme", "action": "resume"}, "k"),
            ({"scope": "tenant:acme", "action": "suspend"}, None),
            ({"scope": "acme", "action": "suspend"}, "k"),
            ({"scope": "tenant:acme"}, "k"),
        ):
            with pytest.raises(Refused):
                await face.ask("POST", "/v1/restrict", body=body, key=key)
        assert (await face.ask("GET", "/v1/applied", since_ns="5"))["applied"] == []
        for since in ("-1", "x", "²", ""):
            with pytest.raises(Refused):
                await face.ask("GET", "/v1/applied", since_ns=since)


async def test_a_blob_must_be_what_its_name_says() -> None:
    async with core() as (process, face):

        class Policy:
            regions = ("us-east", "us-west")

        process.policy = lambda namespace: Policy  # type: ignore[method-assign]
        blob = b"\x02\x02 a wrap"
        own, west = digest(blob), CORE.replace("us-east", "us-west")
        with pytest.raises(Refused, match="is not the body's"):
            await face.ask("PUT", f"/v1/blobs/acme/{'0' * 64}", west, blob, content_type=OCTETS)
        answer = await face.ask("PUT", f"/v1/blobs/acme/{own}", west, blob, content_type=OCTETS)
        assert answer.status == 204
        assert (await face.ask("GET", f"/v1/blobs/acme/{own}", west)).body == blob
        for path, uri in (
            (f"/v1/blobs/acme/{own}", FOREIGN_CORE),  # a region that the tenant does not allow
            (f"/v1/blobs/other/{own}", west),
            (f"/v1/blobs/acme/{'1' * 64}", west),
            (f"/v1/blobs/acme/{own.upper()}", west),
            ("/v1/blobs/acme/x", west),
        ):
            with pytest.raises(Refused):
                await face.ask("GET", path, uri)


async def test_usage_is_counted_once_and_receipted() -> None:
    async with core() as (process, face):

        def report(**fields: Any) -> bytes:
            whole: dict[str, Any] = {
                "report_id": "r1",
                "tenant": "acme",
                "service": "pay",
                "minted": 3,
                "opened": 2,
                "refused": 1,
            }
            return MESSAGES.encode(UsageReport(**whole | fields))

        for _ in range(3):
            await face.ask("POST", edge_wire.MESSAGES_PATH, EDGE, report())
        await face.ask("POST", edge_wire.MESSAGES_PATH, EDGE.replace("/i1", "/i2"), report())
        assert (process.edges.minted, process.edges.opened) == (6, 4)
        assert process.receipts.lamport == 2
        for bad in (
            report(report_id="r2", tenant="other"),
            report(report_id="r2", service="mail"),
            report(report_id="r2", minted=-1),
            report(report_id="r2", opened=-1),
            report(report_id="r2", refused=-5),
            report(report_id=""),
            report(report_id="x" * 500),
            MESSAGES.encode(Hello(region="a", node="b", boot_id="c"))[:-1],
            b"",
        ):
            with pytest.raises(Refused):
                await face.ask("POST", edge_wire.MESSAGES_PATH, EDGE, bad)
        assert (process.edges.minted, process.edges.opened, process.receipts.lamport) == (6, 4, 2)


async def test_a_lease_for_another_service_is_refused_at_the_door() -> None:
    async with core() as (_, face):
        from keymesh.orbital.edge_messages import LeaseRequest

        asked = LeaseRequest(tenant="acme", service="mail", nonce="n", signing_key="0" * 64, policy_version=0)
        with pytest.raises(Refused) as refused:
            await face.ask("POST", edge_wire.MESSAGES_PATH, EDGE, MESSAGES.encode(asked))
        assert refused.value.code == "denied"


async def test_a_snapshot_that_cannot_be_taken_is_no_end_of_the_process(caplog: pytest.LogCaptureFixture) -> None:
    async with core() as (process, _):

        def broken(states: Any) -> Any:
            raise Unavailable("storage", "the disk is full")

        process.keys.cascades.snapshot = broken  # type: ignore[method-assign]
        await take_snapshot(process)
        assert "snapshot not taken" in [r.message for r in caplog.records]
