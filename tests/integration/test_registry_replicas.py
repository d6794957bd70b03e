"""Two Registry replicas on a real etcd and PostgreSQL: they race, die, lose the log's leader and their database."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from tests.integration.replicas_mesh import ReplicasMesh, both, patiently, replicas_mesh, until
from tests.servers.postgres import postgres, private_directory

from keymesh.adapters.sql_migrate import migrate
from keymesh.app.admin_client import AdminClient
from keymesh.app.bench_control_registry import BenchRegistry, bench_registry
from keymesh.app.bootstrap import bootstrap
from keymesh.app.cli import main
from keymesh.app.config_database import DatabaseConfig
from keymesh.app.config_of_plan import registry_config_of
from keymesh.app.config_toml import to_toml
from keymesh.app.control_logs import found, make_log
from keymesh.app.genesis_file import load_genesis
from keymesh.app.layout import Layout
from keymesh.model.errors import ExitCode, Refused, Unavailable

pytestmark = pytest.mark.slow
COMMANDS = 24


@pytest.fixture(scope="module")
def mesh() -> Iterator[ReplicasMesh]:
    with replicas_mesh() as running:
        asyncio.run(running.until_serving())
        yield running


class Record:
    """What the clients were told, by command id: kept outside of everything that is killed."""

    def __init__(self) -> None:
        self.told: dict[str, set[int]] = {}
        self.refused: Counter[str] = Counter()

    async def ask(self, client: AdminClient, command_id: str, label: str) -> None:
        args = {"labels": {"v": label}}
        try:
            done = await patiently(lambda: client.command("acme", "tenant.labels", args, command_id=command_id))
        except Refused as refused:
            self.refused[refused.code] += 1
        else:
            self.told.setdefault(command_id, set()).add(done["seq"])


async def test_they_race_on_one_tenant_and_one_dies_and_the_logs_leader_too(mesh: ReplicasMesh) -> None:
    record = Record()
    async with both(mesh) as (first, second):
        await mesh.create_tenant(first, "acme")

        async def own(name: str, client: AdminClient) -> None:
            for n in range(COMMANDS):
                await record.ask(client, f"own-{name}-{n}", str(n))

        async def same(client: AdminClient) -> None:
            for n in range(COMMANDS):
                await record.ask(client, f"same-{n}", str(n))

        async def different(name: str, client: AdminClient) -> None:
            for n in range(COMMANDS // 2):
                await record.ask(client, f"either-{n}", f"{name}-{n}")

        async def disturb() -> None:
            await until(lambda: _reached(record, COMMANDS), "the race goes on")
            mesh.kill("r2")
            mesh.launch("r2")
            await until(lambda: _reached(record, 2 * COMMANDS), "the race goes on without one")
            leader = mesh.etcd_leader()
            await asyncio.to_thread(leader.kill)
            await asyncio.to_thread(leader.start)

        pairs = (("r1", first), ("r2", second))
        writers = [w for name, c in pairs for w in (own(name, c), same(c), different(name, c))]
        await asyncio.gather(disturb(), *writers)
    rows = [(at, signed) for at, signed in await mesh.entries() if signed.entry.namespace == "acme"]
    stood = Counter(signed.entry.command_id for _, signed in rows)
    assert [name for name, times in stood.items() if times > 1] == []
    seqs = {signed.entry.command_id: signed.entry.seq for _, signed in rows}
    assert {name: seen for name, seen in record.told.items() if seen != {seqs.get(name)}} == {}, "lost, or told apart"
    expected = {f"own-{r}-{n}" for r in ("r1", "r2") for n in range(COMMANDS)} | {f"same-{n}" for n in range(COMMANDS)}
    assert expected <= record.told.keys(), "every writer was answered in the end"
    assert record.refused == {"conflict": COMMANDS // 2}, "one id for two commands: one of them, and the other is told"
    assert set(stood) == record.told.keys() | {"create-acme"}


async def _reached(record: Record, count: int) -> bool:
    return len(record.told) >= count


async def test_a_kill_switch_is_certified_by_the_other_when_the_first_dies_for_good(mesh: ReplicasMesh) -> None:
    await mesh.until_serving()
    async with both(mesh) as (first, second):
        await mesh.create_tenant(first, "globex")
        done = await first.command("globex", "suspend", {"scope": "tenant:globex"}, command_id="stop-globex")
        mesh.kill("r1")

        async def certified() -> bool:
            shown = await patiently(lambda: second.call("GET", "/v1/certificates/stop-globex?wait_ms=5000"))
            assert (shown["scope"], shown["status"]) in (
                ("tenant:globex", "pending"),
                ("tenant:globex", "revoking"),
                ("tenant:globex", "certified"),
            )
            return bool(shown["status"] == "certified")

        await until(certified, "a certificate from the replica that is left")
        status = await second.call("GET", "/v1/commands/globex/stop-globex")
        assert (status["seq"], status["committed"]) == (done["seq"], True)
        async with mesh.client() as whichever:  # as the CLI asks: the next where one is away
            again = await whichever.command("globex", "suspend", {"scope": "tenant:globex"}, command_id="stop-globex")
            assert (again["duplicate"], again["seq"]) == (True, done["seq"])
            resumed = await whichever.command("globex", "resume", {"scope": "tenant:globex"}, command_id="go-globex")
        mesh.launch("r1")
        await mesh.until_serving("r1")
        shown = await patiently(lambda: first.call("GET", "/v1/commands/globex/go-globex"))
        assert shown["seq"] == resumed["seq"]


async def test_what_one_has_acknowledged_the_other_reads_at_once(mesh: ReplicasMesh) -> None:
    await mesh.until_serving()
    async with both(mesh) as (first, second):
        for n in range(5):
            await mesh.create_tenant(first, f"fresh-{n}")
            assert (await second.call("GET", f"/v1/tenants/fresh-{n}"))["tenant"] == f"fresh-{n}"


async def test_an_etcd_of_another_mesh_is_refused_before_anything_is_changed(mesh: ReplicasMesh) -> None:
    """Of the same name, so that only its first entry tells."""
    plan = msgspec.structs.replace(mesh.plan, full=None, replicas=None)
    layout = Layout(mesh.layout.root.parent / "other")  # a short path
    bootstrap(layout, plan)
    config = msgspec.structs.replace(
        registry_config_of(layout, plan), log=mesh.registry_config("r1").log, backup=None, broker=None
    )
    path = layout.root / "registry.toml"
    path.write_text(to_toml(config, layout.root, comment="another mesh's"))
    before = await mesh.entries()
    words = [sys.executable, "-m", "keymesh.app.registry_app", "--config", str(path)]
    done = await asyncio.to_thread(subprocess.run, words, capture_output=True, timeout=60, check=False)
    assert done.returncode == ExitCode.INTEGRITY
    assert b"foreign-mesh" in done.stdout + done.stderr
    assert list(layout.registry.glob("projection.db*")) == []
    words = ["registry", "init", "--config", str(path), "--genesis", str(layout.genesis)]
    assert await asyncio.to_thread(main, words) == ExitCode.INTEGRITY
    after = await mesh.entries()
    assert after[: len(before)] == before
    assert {signed.entry.namespace for _, signed in after} == {signed.entry.namespace for _, signed in before}


async def test_a_database_that_lags_takes_over_and_is_brought_forward_from_etcd(mesh: ReplicasMesh) -> None:
    """Asynchronous replication: what the old primary alone had is replayed from the log."""
    with postgres() as primary, private_directory() as root, private_directory() as own:
        name = primary.new_database()
        await asyncio.to_thread(migrate, [primary.url(name)])
        standby = await asyncio.to_thread(primary.standby, root)
        try:
            config = mesh.registry_config("r1")
            assert config.log is not None
            config = msgspec.structs.replace(
                config, log=msgspec.structs.replace(config.log, prefix="failover/"), data_dir=str(own)
            )
            log = make_log(config.log, mesh=config.mesh, directory=own, may_found=True)
            assert await found(log, load_genesis(mesh.layout.genesis))
            await log.close()
            endpoints = tuple(server.endpoint(name, own) for server in (primary, standby))
            config = msgspec.structs.replace(config, database=DatabaseConfig(kind="postgresql", endpoints=endpoints))
            async with bench_registry(mesh.layout, config, 5) as registry:
                await until(lambda: _standby_at(standby, name, 6), "replication")
                standby.ask("postgres", "ALTER SYSTEM SET primary_conninfo = ''")
                standby.ask("postgres", "SELECT pg_reload_conf()")
                await until(lambda: _cut_off(standby, name), "the end of replication")
                for n in range(20):
                    await registry.label(n % 5)
                await registry.projected()
                await asyncio.to_thread(primary.kill)
                for n in range(5):  # commands go on without any database
                    await registry.label(n)
                standby.ask("postgres", "SELECT pg_promote()")
                await until(lambda: _projected(registry), "the projection at the log's end")
                assert standby.ask(name, "SELECT idx FROM projection_index") == [(registry.last,)]
                assert standby.ask(name, "SELECT count(*) FROM entries") == [(31,)]
        finally:
            await asyncio.to_thread(standby.stop)


async def _standby_at(standby: Any, name: str, entries: int) -> bool:
    return bool(standby.ask(name, "SELECT count(*) FROM entries") == [(entries,)])


async def _cut_off(standby: Any, name: str) -> bool:
    return bool(standby.ask(name, "SELECT count(*) FROM pg_stat_wal_receiver") == [(0,)])


async def _projected(registry: BenchRegistry) -> bool:
    try:
        return await registry.index() >= registry.last
    except Unavailable:
        return False
