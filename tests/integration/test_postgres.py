"""The projection on a real PostgreSQL: refused where it must be, whole after every fault, the Registry going on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
import sqlalchemy as sa
from tests.servers.postgres import PASSWORD, Postgres, make_ca, postgres, private_directory
from tests.unit.app import founded as template
from tests.unit.app.founded import founded
from tests.unit.app.test_processes import Face, create
from tests.unit.registry.harness import MESH, run, with_tenant

from keymesh.adapters import sql_engine
from keymesh.adapters.memory_log import MemoryControlLog
from keymesh.adapters.sql_engine import SESSION, Database
from keymesh.adapters.sql_migrate import migrate
from keymesh.adapters.sql_projection import SqlProjection
from keymesh.adapters.sql_schema import META, REVISIONS
from keymesh.app import cli, read_model
from keymesh.app.config import RegistryConfig
from keymesh.app.config_database import DatabaseConfig
from keymesh.app.config_of_plan import registry_config_of
from keymesh.app.config_toml import to_toml
from keymesh.app.layout import Layout, MeshPlan
from keymesh.app.read_model import ReadModel
from keymesh.app.registry_api import RegistryApi
from keymesh.app.registry_app import RegistryProcess
from keymesh.control.entry import SignedEntry
from keymesh.model.errors import KeymeshError, Refused, Unavailable
from keymesh.registry.projection import Fenced, LogRead

COMMITS = 150
PATIENCE_S = 40.0


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


@pytest.fixture
def database(server: Postgres) -> str:
    """A migrated database's name."""
    server.start()
    name = server.new_database()
    migrate([server.url(name)])
    return name


@pytest.fixture(scope="module")
def whole() -> LogRead:
    """A log of ``COMMITS`` commits of two tenants."""
    bench = with_tenant()
    bench.tenant("globex", regions=("eu-central", "eu-west"), home="eu-central")
    while bench.state.index < COMMITS - 2:
        bench.ok(bench.label("acme", bench.state.index))
        bench.ok(bench.label("globex", bench.state.index))
    bench.ok(bench.scope_command("suspend", "service:acme/pay", "s1"))
    return run(bench.log.read(0))


@pytest.fixture
def mesh_template() -> Iterator[None]:
    """What ``founded`` copies; made here unless another suite has it."""
    mine = not template._made
    if mine:
        template.make_template()
    yield
    if mine:
        template.forget()


def config_on(server: Postgres, database: str, layout: Layout, plan: MeshPlan) -> RegistryConfig:
    """The mesh's Registry, with its projection in ``database``."""
    where = DatabaseConfig(kind="postgresql", endpoints=(server.endpoint(database, layout.registry),))
    return msgspec.structs.replace(registry_config_of(layout, plan), database=where)


def contents(projection: SqlProjection) -> dict[str, tuple[dict[str, Any], ...]]:
    """Every table, through the front door."""
    return {
        name: projection.read(name, limit=100_000).rows for name in sorted(META.tables) if name != "projection_index"
    }


@pytest.fixture(scope="module")
def right(whole: LogRead, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], ...]]:
    """What follows from ``whole``: as a SQLite projection that nothing happened to holds it."""
    projection = SqlProjection(f"sqlite:///{tmp_path_factory.mktemp('right') / 'p.db'}", mesh=MESH)
    projection.take_place()
    projection.catch_up(whole)
    found = contents(projection)
    projection.close()
    return found


def opened(*urls: str) -> SqlProjection:
    projection = SqlProjection(*urls, mesh=MESH)
    projection.take_place()
    return projection


def eventually(work: Callable[[], Any]) -> Any:
    """What ``work`` gives once it is not Unavailable."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return work()
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


# --- the door --------------------------------------------------------------------------------------------------------


def refusal(url: str) -> str:
    """How a use of ``url`` fails, in full."""
    with pytest.raises(Unavailable) as refused:
        SqlProjection(url, mesh=MESH).take_place()
    return repr(refused.value) + refused.value.message


def test_a_wrong_password_is_refused_and_repeated_nowhere(server: Postgres, database: str) -> None:
    assert "hunter2" not in refusal(server.url(database, password="hunter2"))
    shown = migrate([server.url(database)]).database
    assert PASSWORD not in shown and "***" in shown


def test_a_password_may_lie_in_a_file(server: Postgres, database: str, tmp_path: Path) -> None:
    file = tmp_path / "pass file"
    file.write_text(f"localhost:{server.port}:*:keymesh:{PASSWORD}\n")
    file.chmod(0o600)
    url = server.url(database).replace(f":{quote(PASSWORD, safe='')}@", "@") + f"&passfile={quote(str(file))}"
    assert PASSWORD not in url
    projection = opened(url)
    assert projection.index() == 0
    projection.close()


def test_another_ca_or_name_or_no_tls_is_refused(
    server: Postgres, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_ca(tmp_path, "other")
    refusal(server.url(database, ca=tmp_path / "other.pem"))
    refusal(server.url(database, ca=tmp_path / "missing.pem"))
    monkeypatch.setenv("PGHOSTADDR", "127.0.0.1")  # where it leads is the environment's; whom it believes is not
    refusal(server.url(database, host="elsewhere.example"))
    monkeypatch.setenv("PGSSLMODE", "disable")
    assert opened(server.url(database)).index() == 0


@pytest.mark.parametrize(
    "change",
    [
        ("?sslrootcert=", "?sslmode=require&sslrootcert="),
        ("?sslrootcert=", "?sslmode=disable&sslrootcert="),
        ("?sslrootcert=", "?sslcert="),
        ("?sslrootcert=", "?service=x&sslrootcert="),
        ("?sslrootcert=", "?target_session_attrs=any&sslrootcert="),
        ("postgresql://", "mysql://"),
        ("postgresql://keymesh", "postgresql://"),
    ],
)
def test_a_url_that_would_weaken_it_is_refused(server: Postgres, change: tuple[str, str]) -> None:
    with pytest.raises(Refused) as refused:
        SqlProjection(server.url("x").replace(*change), mesh=MESH)
    assert refused.value.field == "database"


# --- the schema ------------------------------------------------------------------------------------------------------


def keymesh(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    code = cli.main([*words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_an_older_schema_is_refused_with_the_command_that_helps(
    server: Postgres, capsys: pytest.CaptureFixture[str]
) -> None:
    name = server.new_database()
    url = server.url(name)
    with pytest.raises(Refused) as refused:
        opened(url)
    assert refused.value.code == "schema-older" and "keymesh registry migrate" in refused.value.message
    assert server.ask(name, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]
    code, shown = keymesh(capsys, "registry", "migrate", "--database", url)
    assert (code, shown["before"], shown["after"], shown["applied"]) == (0, None, REVISIONS[-1], list(REVISIONS))
    assert PASSWORD not in json.dumps(shown)
    opened(url).close()
    for column in ("token", "holder", "mesh", "doubt"):
        server.ask(name, f"ALTER TABLE projection_index DROP COLUMN {column}")
    server.ask(name, "UPDATE alembic_version SET version_num = '0001'")
    with pytest.raises(Refused) as refused:
        opened(url)
    assert refused.value.code == "schema-older"
    assert keymesh(capsys, "registry", "migrate", "--database", url)[1]["applied"] == ["0002"]
    opened(url).close()
    assert keymesh(capsys, "registry", "migrate", "--database", url)[1]["applied"] == []


def test_a_newer_schema_is_refused_before_anything_is_changed(
    server: Postgres, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.ask(database, "UPDATE alembic_version SET version_num = '0099'")
    server.ask(database, "ALTER TABLE rows RENAME TO cells")
    code, shown = keymesh(capsys, "registry", "migrate", "--database", server.url(database))
    assert (code, shown["error"]["code"]) == (1, "schema-newer")
    with pytest.raises(Refused) as refused:
        opened(server.url(database))
    assert refused.value.code == "schema-newer"
    assert server.ask(database, "SELECT count(*) FROM projection_index") == [(0,)]
    assert server.ask(database, "SELECT version_num FROM alembic_version") == [("0099",)]


def test_the_revisions_make_the_schema_that_the_code_uses(server: Postgres, database: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    held = Database([server.url(database)])
    with held.reading() as db:
        assert compare_metadata(MigrationContext.configure(db, opts={"compare_type": True}), META) == []
        kinds = sa.inspect(db).get_columns("entries")
    assert {str(c["type"].collation) for c in kinds if isinstance(c["type"], sa.Text)} == {"C"}
    held.close()


def test_two_migrations_at_once_are_one(server: Postgres) -> None:
    url = server.url(server.new_database())
    done: list[Any] = []
    threads = [threading.Thread(target=lambda: done.append(migrate([url]).applied)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [(), REVISIONS]


@pytest.mark.usefixtures("mesh_template")
def test_a_registry_does_not_start_on_a_schema_that_it_does_not_know(server: Postgres) -> None:
    with founded() as (layout, plan):
        config = config_on(server, server.new_database(), layout, plan)
        file = layout.root / "registry.toml"
        file.write_text(to_toml(config, layout.root, comment="on PostgreSQL"))
        done = subprocess.run(
            [sys.executable, "-m", "keymesh.app.registry_app", "--config", str(file)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    assert "keymesh registry migrate" in done.stderr + done.stdout
    assert PASSWORD not in done.stderr + done.stdout


# --- faults ----------------------------------------------------------------------------------------------------------


def test_killed_in_the_middle_it_has_every_entry_once(
    server: Postgres, database: str, whole: LogRead, right: dict[str, Any]
) -> None:
    projection = opened(server.url(database))
    index, entries = whole
    killed = threading.Event()
    kills = iter((20, 60, 100))

    def kill() -> None:
        server.kill()
        server.start()
        killed.set()

    next_kill, killer, lost = next(kills), None, 0
    at = 0
    while at < index:
        if at >= next_kill:
            killer, next_kill = threading.Thread(target=kill), next(kills, index + 1)
            killer.start()
        try:
            at += 1
            projection.apply(at, [signed for n, signed in entries if n == at])
        except Unavailable:
            lost += 1
            at = eventually(projection.index)
    if killer is not None:
        killer.join()
    assert killed.is_set() and lost
    assert eventually(lambda: projection.verify(whole))
    assert contents(projection) == right
    projection.close()


class Standing(Sequence[SignedEntry]):
    """Entries that are looked at only when the test lets them: a replica that stands still inside its transaction."""

    def __init__(self, *entries: SignedEntry) -> None:
        self.entries = entries
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, at: Any) -> Any:
        return self.entries[at]

    def __iter__(self) -> Iterator[SignedEntry]:
        self.reached.set()
        assert self.go_on.wait(PATIENCE_S)
        return iter(self.entries)


def test_a_replica_that_stands_still_in_a_write_loses_its_locks_and_writes_nothing(
    server: Postgres, database: str, whole: LogRead, right: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SESSION, "idle_in_transaction_session_timeout", "700ms")
    _, entries = whole
    paused = opened(server.url(database))
    paused.catch_up((9, entries[:9]))
    standing = Standing(entries[9][1])
    outcome: list[BaseException] = []

    def write() -> None:
        try:
            paused.apply(10, standing)
        except KeymeshError as failed:
            outcome.append(failed)

    thread = threading.Thread(target=write)
    thread.start()
    assert standing.reached.wait(PATIENCE_S)
    other = SqlProjection(server.url(database), mesh=MESH)
    eventually(other.take_place)
    other.catch_up((other.index(), entries[9:40]))
    standing.go_on.set()
    thread.join(PATIENCE_S)
    assert [type(failed) for failed in outcome] == [Unavailable]
    with pytest.raises(Fenced):
        eventually(lambda: paused.apply(41, [entries[40][1]]))
    other.catch_up((whole[0], entries[40:]))
    assert paused.verify(whole)
    assert contents(other) == right
    paused.close()
    other.close()


def test_a_lost_connection_is_waited_for_longer_each_time(server: Postgres, database: str) -> None:
    projection = opened(server.url(database))
    server.kill()
    waits = []
    for _ in range(6):
        with pytest.raises(Unavailable) as away:
            projection.index()
        waits.append(away.value.retry_after_ms)
        time.sleep(0.15)
    started = time.monotonic()
    with pytest.raises(Unavailable):
        projection.index()
    assert time.monotonic() - started < 0.05  # nobody waits for what was found away just now
    server.start()
    assert eventually(projection.index) == 0
    projection.close()


def test_a_lagging_standby_that_takes_over_is_brought_forward_from_the_log(
    whole: LogRead, right: dict[str, Any]
) -> None:
    index, entries = whole
    with postgres() as primary, private_directory() as root:
        name = primary.new_database()
        migrate([primary.url(name)])
        standby = primary.standby(root)
        try:
            urls = (primary.url(name), standby.url(name))
            projection = opened(*urls)
            projection.catch_up((50, entries[:50]))
            deadline = time.monotonic() + PATIENCE_S
            while standby.ask(name, "SELECT idx FROM projection_index") != [(50,)]:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            standby.ask("postgres", "ALTER SYSTEM SET primary_conninfo = ''")
            standby.ask("postgres", "SELECT pg_reload_conf()")
            while standby.ask(name, "SELECT count(*) FROM pg_stat_wal_receiver") != [(0,)]:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert projection.take_place() == 2  # a token that the standby never hears of
            projection.catch_up((100, entries[50:100]))
            assert projection.read("tenants", at_least=100).index == 100
            primary.kill()
            with pytest.raises(Unavailable):  # a standby is nobody to write to, nor to read from
                projection.index()
            standby.ask("postgres", "SELECT pg_promote()")
            assert eventually(projection.index) == 50
            with pytest.raises(Unavailable) as behind:
                projection.read("tenants", at_least=100)
            assert behind.value.code == "behind"
            with pytest.raises(Fenced):
                projection.apply(51, [entries[50][1]])
            assert projection.take_place() == 3
            projection.catch_up((index, entries[50:]))
            assert projection.verify(whole)
            assert contents(projection) == right
            projection.close()
        finally:
            standby.stop()


def test_pages_that_cannot_be_read_are_thrown_away(
    server: Postgres, database: str, whole: LogRead, right: dict[str, Any]
) -> None:
    projection = opened(server.url(database))
    projection.catch_up(whole)
    server.ask(database, "CHECKPOINT")
    ((file,),) = server.ask(database, "SELECT pg_relation_filepath('rows')")
    server.kill()
    path = server.data / file
    content = bytearray(path.read_bytes())
    content[8_100:8_132] = bytes(byte ^ 0xFF for byte in content[8_100:8_132])
    path.write_bytes(content)
    server.start()
    with pytest.raises(KeymeshError) as refused:
        eventually(lambda: projection.verify(whole))
    assert refused.value.code == "projection-damaged"
    projection.rebuild(whole)
    assert contents(projection) == right
    projection.close()


# --- beside a Registry -----------------------------------------------------------------------------------------------


@asynccontextmanager
async def replica(log: MemoryControlLog, *urls: str) -> AsyncIterator[ReadModel]:
    """A replica's read model, ticking faster than in life."""
    model = ReadModel(SqlProjection(*urls, mesh=MESH), log)
    await model.start()

    async def keep() -> None:
        while True:
            await asyncio.sleep(0.05)
            await model.tick()

    keeper = asyncio.create_task(keep())
    try:
        yield model
    finally:
        keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeper
        await model.close()


async def at_index(model: ReadModel, index: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            await model.read("tenants", at_least=index)
            return
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.02)


async def commit(log: MemoryControlLog, entries: Sequence[tuple[int, SignedEntry]], *models: ReadModel) -> None:
    for index, signed in entries:
        assert await log.append([signed]) == index
        for model in models:
            model.offer(index, [signed])
        await asyncio.sleep(0)


def log_of(whole: LogRead) -> MemoryControlLog:
    return MemoryControlLog(whole[1][0][1].entry.mesh)


async def test_two_replicas_project_one_log(
    server: Postgres, database: str, whole: LogRead, right: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_model, "GRACE_S", 0.2)
    monkeypatch.setattr(read_model, "SAMPLE_S", 0.1)
    url, log, entries = server.url(database), log_of(whole), whole[1]
    async with replica(log, url) as first:
        async with replica(log, url) as second:  # it came later, so it has the place
            await commit(log, entries[:80], first, second)
            await at_index(first, 80)
            await at_index(second, 80)
            await commit(log, entries[80:90], first)  # as if the second were cut off from the news
            await at_index(second, 90)
        await commit(log, entries[90:], first)  # the second is gone: the first takes the place
        await at_index(first, whole[0])
    check = opened(url)
    assert check.verify(whole) and check.doubt() is None
    assert contents(check) == right
    check.close()


async def test_killed_under_a_registry_it_catches_up(
    server: Postgres, database: str, whole: LogRead, right: dict[str, Any]
) -> None:
    url, log, entries = server.url(database), log_of(whole), whole[1]
    async with replica(log, url) as model:
        for start in range(0, len(entries), 50):
            commits = asyncio.create_task(commit(log, entries[start : start + 50], model))
            await asyncio.sleep(0.01)
            server.kill()
            await commits
            with pytest.raises(Unavailable):
                await model.read("tenants", at_least=whole[0] + 1)
            await asyncio.to_thread(server.start)
        await at_index(model, whole[0])
    check = opened(url)
    assert check.verify(whole)
    assert contents(check) == right
    check.close()


async def test_a_corrupted_row_is_noticed_refused_and_made_whole(
    server: Postgres, database: str, whole: LogRead, right: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_model, "SAMPLE_S", 0.1)
    url, log, entries = server.url(database), log_of(whole), whole[1]
    gate = threading.Event()
    rebuild = SqlProjection.rebuild

    def later(projection: SqlProjection, read: LogRead) -> None:
        assert gate.wait(PATIENCE_S)
        rebuild(projection, read)

    monkeypatch.setattr(SqlProjection, "rebuild", later)
    async with replica(log, url) as model:
        await commit(log, entries, model)
        await at_index(model, whole[0])
        server.ask(database, "UPDATE tenants SET home = 'eu-west' WHERE tenant = 'acme'")
        other, deadline = SqlProjection(url, mesh=MESH), time.monotonic() + PATIENCE_S
        while await asyncio.to_thread(other.doubt) is None:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        with pytest.raises(Unavailable) as refused:
            other.read("tenants")
        assert refused.value.code == "doubted"
        gate.set()
        await at_index(model, whole[0])
        assert contents(other) == right
        other.close()


async def test_at_start_all_of_it_is_looked_at(
    server: Postgres, database: str, whole: LogRead, right: dict[str, Any]
) -> None:
    url, log = server.url(database), log_of(whole)
    await commit(log, whole[1])
    async with replica(log, url) as model:
        await at_index(model, whole[0])
    server.ask(database, "UPDATE entries SET actor = 'somebody else' WHERE seq = 7")
    async with replica(log, url) as model:
        await at_index(model, whole[0])
    check = opened(url)
    assert contents(check) == right
    check.close()


async def test_a_server_that_stands_still_holds_up_nobody(
    server: Postgres, database: str, whole: LogRead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_engine, "STUCK_S", 1.0)
    monkeypatch.setattr(read_model, "WATCH_S", 0.2)
    url, log = server.url(database), log_of(whole)
    gaps: list[float] = []

    async def feel() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            gaps.append(time.monotonic() - before)

    async with replica(log, url) as model:
        await commit(log, whole[1][:20], model)
        await at_index(model, 20)
        feeling = asyncio.create_task(feel())
        for backend in server_processes(server):
            os.kill(backend, signal.SIGSTOP)
        try:
            started = time.monotonic()
            await commit(log, whole[1][20:40], model)
            with pytest.raises(Unavailable):
                await model.read("tenants", at_least=40)
            assert time.monotonic() - started < 11
        finally:
            for backend in server_processes(server):
                os.kill(backend, signal.SIGCONT)
        await at_index(model, 40)
        feeling.cancel()
    assert max(gaps) < 1.0


def server_processes(server: Postgres) -> list[int]:
    """The server and its children."""
    assert server.process is not None
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    return [server.process.pid, *map(int, children)]


@pytest.mark.usefixtures("mesh_template")
async def test_the_registry_commits_while_its_database_is_away(server: Postgres, database: str) -> None:
    with founded() as (layout, plan):
        server.kill()
        process = RegistryProcess(config_on(server, database, layout, plan))
        face = Face(RegistryApi(process).routes())
        try:
            await process.read_model.start()
            process.shell.boot()
            await asyncio.gather(*process.tasks)
            done = await create(process, face)
            with pytest.raises(Unavailable):
                await face.ask("GET", "/v1/tenants/acme")
            await asyncio.to_thread(server.start)
            deadline = time.monotonic() + PATIENCE_S
            shown: Any = None
            while shown is None:
                await process.read_model.tick()
                try:
                    shown = await face.ask("GET", "/v1/tenants/acme", at_least=str(done["index"]))
                except Unavailable:
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.05)
            assert (shown["tenant"], shown["index"]) == ("acme", done["index"])
        finally:
            process.shell.stop()
            await asyncio.gather(*process.tasks, return_exceptions=True)
            process.records.close()
            await process.read_model.close()
            process.receipts.close()
            await process.log.control.close()
