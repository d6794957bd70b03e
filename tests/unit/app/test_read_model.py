"""The read model beside a machine, on SQLite: what goes wrong is made good from the log, and nobody waits."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.unit.registry.harness import MESH, Bench, run, with_tenant

from keymesh.adapters.memory_log import MemoryControlLog
from keymesh.adapters.sql_projection import SqlProjection
from keymesh.app import read_model
from keymesh.app.read_model import ReadModel
from keymesh.model.errors import Integrity, Refused, Unavailable
from keymesh.registry import killswitch
from keymesh.registry.projection import Fenced, LogRead


@pytest.fixture
def bench() -> Bench:
    bench = with_tenant()
    for n in range(10):
        bench.ok(bench.label("acme", n))
    bench.ok(bench.scope_command("suspend", "service:acme/pay", "s1"))
    return bench


@pytest.fixture
def whole(bench: Bench) -> LogRead:
    return run(bench.log.read(0))


@asynccontextmanager
async def started(path: Path, log: MemoryControlLog) -> AsyncIterator[ReadModel]:
    model = ReadModel(SqlProjection(f"sqlite:///{path / 'projection.db'}", mesh=MESH), log)
    await model.start()
    yield model
    await model.close()


async def done(model: ReadModel, index: int) -> bool:
    try:
        return await model.index() == index
    except Unavailable:
        return False


async def put(log: MemoryControlLog, whole: LogRead, first: int, last: int, model: ReadModel | None = None) -> None:
    for index, signed in whole[1][first:last]:
        await log.append([signed])
        if model is not None:
            model.offer(index, [signed])


async def test_a_read_sees_what_was_offered_before_it(whole: LogRead, tmp_path: Path) -> None:
    log = MemoryControlLog(MESH)
    async with started(tmp_path, log) as model:
        await put(log, whole, 0, 9, model)
        assert (await model.read("tenants")).index == 9


async def test_a_gap_is_read_on_from_the_log(whole: LogRead, tmp_path: Path) -> None:
    log = MemoryControlLog(MESH)
    async with started(tmp_path, log) as model:
        await put(log, whole, 0, 3)
        await put(log, whole, 3, 6, model)
        await model.index()
        await model.tick()
        assert await model.index() == 6
        generation = model.generation
        await put(log, whole, 6, 9, model)
        await model.tick()
        assert (await model.index(), model.generation) == (9, generation)


async def test_what_is_waiting_is_bounded(whole: LogRead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_model, "PENDING_MAX", 2)
    log = MemoryControlLog(MESH)
    async with started(tmp_path, log) as model:
        gate = threading.Event()
        model._thread.submit(gate.wait, 20)
        await put(log, whole, 0, 9, model)
        assert model._pending == 2
        gate.set()
        assert await model.index() == 2
        await model.tick()
        assert await model.index() == 9


async def test_a_projection_ahead_of_its_log_is_made_anew(whole: LogRead, tmp_path: Path) -> None:
    log = MemoryControlLog(MESH)
    await put(log, whole, 0, 9)
    async with started(tmp_path, log) as model:
        assert await model.index() == 9
    shorter = MemoryControlLog(MESH)
    await put(shorter, whole, 0, 4)
    async with started(tmp_path, shorter) as model:
        assert (await model.read("entries")).index == 4


async def test_who_looks_on_takes_over_only_where_nothing_moves(
    bench: Bench, whole: LogRead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_model, "GRACE_S", 0.05)
    log = MemoryControlLog(MESH)
    record = killswitch.record_of(bench.state, "acme", "s1")
    assert record is not None
    async with started(tmp_path, log) as first, started(tmp_path, log) as second:
        await put(log, whole, 0, 4, second)
        assert await second.index() == 4
        for _ in range(3):
            with pytest.raises(Fenced):
                await first.put_kill(record)
            await first.tick()
            await asyncio.sleep(0.06)
        await second.put_kill(record)  # it was left in its place
        await put(log, whole, 4, 9)
        for _ in range(3):
            await first.tick()
            await asyncio.sleep(0.06)
        assert await first.index() == 9
        await first.put_kill(record)
        with pytest.raises(Fenced):
            await second.delivered("us-east", "acme", 1)


async def test_what_one_replica_finds_the_one_with_the_place_makes_whole(
    whole: LogRead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_model, "SAMPLE_S", 0.0)
    log = MemoryControlLog(MESH)
    await put(log, whole, 0, 9)
    async with started(tmp_path, log) as first, started(tmp_path, log) as second:
        with sqlite3.connect(tmp_path / "projection.db") as db:
            db.execute("UPDATE tenants SET home = 'us-west'")
        db.close()
        await first.tick()
        with pytest.raises(Unavailable):
            await second.read("tenants")
        for _ in range(2):
            await second.tick()
        assert (await first.read("tenants")).rows[0]["home"] == "us-east"


async def test_making_it_anew_is_not_tried_all_the_time(
    whole: LogRead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[LogRead] = []

    def fails(projection: SqlProjection, read: LogRead) -> None:
        tries.append(read)
        raise Integrity("projection-wrong", "still wrong")

    log = MemoryControlLog(MESH)
    await put(log, whole, 0, 9)
    async with started(tmp_path, log) as model:
        with sqlite3.connect(tmp_path / "projection.db") as db:
            db.execute("UPDATE projection_index SET doubt = 'something'")
        db.close()
        monkeypatch.setattr(SqlProjection, "rebuild", fails)
        model._behind = True
        for _ in range(5):
            await model.tick()
        assert len(tries) == 1 and model.behind


async def test_a_database_that_comes_later_is_waited_for(whole: LogRead, tmp_path: Path) -> None:
    log = MemoryControlLog(MESH)
    await put(log, whole, 0, 5)
    place = tmp_path / "later"
    async with started(place, log) as model:
        with pytest.raises(Unavailable):
            await model.read("tenants")
        assert model.behind
        place.mkdir()
        for _ in range(200):
            await model.tick()
            if await done(model, 5):
                break
            await asyncio.sleep(0.05)
        assert (await model.read("tenants")).index == 5
        assert not model.behind


async def test_a_reader_does_not_wait_for_ever(whole: LogRead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_model, "READ_S", 0.05)
    log = MemoryControlLog(MESH)
    async with started(tmp_path, log) as model:
        gate = threading.Event()
        model._thread.submit(gate.wait, 20)
        with pytest.raises(Unavailable):
            await model.read("tenants")
        gate.set()


async def test_another_meshs_database_ends_the_start(whole: LogRead, tmp_path: Path) -> None:
    log = MemoryControlLog(MESH)
    async with started(tmp_path, log):
        pass
    model = ReadModel(SqlProjection(f"sqlite:///{tmp_path / 'projection.db'}", mesh="another"), log)
    with pytest.raises(Refused):
        await model.start()
    await model.close()
