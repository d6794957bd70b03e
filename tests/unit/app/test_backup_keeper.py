"""The schedule: a store that is away, full, slow or hanging delays nobody, and shows."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from tests.unit.app.backup_world import World, manifest_of

from keymesh.adapters.backup_directory import DirectoryStore
from keymesh.app.backup_keeper import BackupKeeper
from keymesh.app.backup_wiring import BackupCollector, backup_view, backup_warnings, start_backups
from keymesh.control import backup_manifest as bm
from keymesh.model.errors import Integrity, KeymeshError, Unavailable


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    made.mesh.furnished()
    await made.sync()
    yield made
    await made.close()


class Moody(DirectoryStore):
    """``mood`` is called before each put."""

    mood: Any = staticmethod(lambda: None)

    def put(self, name: str, content: bytes) -> bool:
        self.mood()
        return super().put(name, content)


def away() -> None:
    raise Unavailable("store-away", "unplugged")


async def until(check: Any) -> None:
    deadline = time.monotonic() + 20
    while not check():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def test_a_store_that_is_away_is_an_alarm_said_once_and_tried_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    store = Moody(world.root / "registry")
    store.mood = away
    keeper = world.registry(store)
    task = asyncio.create_task(keeper.run())
    with caplog.at_level(logging.INFO, "keymesh.backup"):
        await until(lambda: keeper.failures["store-away"] >= 3)
        assert keeper.failing == "store-away"
        assert backup_warnings(keeper) == ["backups fail: store-away"]
        store.mood = lambda: None
        await until(lambda: keeper.written == 1)
        await until(lambda: not keeper.failing)
    task.cancel()
    assert [r.message for r in caplog.records] == ["backups fail", "backups work again"]
    assert backup_warnings(keeper) == []
    world.verify()


async def test_what_is_not_what_was_written_is_said_as_loud_as_can_be(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await world.registry().once()
    (world.root / "registry" / bm.manifest_name("registry", 1)).unlink()
    with caplog.at_level(logging.INFO, "keymesh.backup"), pytest.raises(Integrity):
        await world.registry().once()
    assert [r.levelno for r in caplog.records] == [logging.CRITICAL]


async def test_a_store_that_hangs_holds_up_nobody_and_is_left_alone_until_it_answers(world: World) -> None:
    answer, asked = threading.Event(), threading.Event()

    def hang() -> None:
        asked.set()
        assert answer.wait(30)

    store = Moody(world.root / "registry")
    store.mood = hang
    keeper = world.registry(store, call_max_s=1.0)
    turn = asyncio.create_task(keeper.once())
    await asyncio.to_thread(asked.wait, 30)
    ticks = 0
    while not turn.done():
        await asyncio.sleep(0.001)
        ticks += 1
    assert ticks > 5  # the loop went on
    with pytest.raises(Unavailable) as failed:
        await turn
    assert failed.value.code == "store-stuck"
    with pytest.raises(Unavailable) as failed:
        await keeper.once()
    assert (failed.value.code, keeper.failures) == ("store-stuck", {"store-stuck": 2})
    assert sum(t.name == "backup" for t in threading.enumerate()) == 1
    store.mood = lambda: None
    answer.set()
    await until(lambda: not any(t.name == "backup" for t in threading.enumerate()))
    keeper._call_max_s = 60.0
    await keeper.once()
    world.verify()


async def test_a_cancelled_turn_leaves_no_second_writer_behind(world: World) -> None:
    answer, asked = threading.Event(), threading.Event()

    def hang() -> None:
        asked.set()
        assert answer.wait(30)

    store = Moody(world.root / "registry")
    store.mood = hang
    keeper = world.registry(store)
    turn = asyncio.create_task(keeper.once())
    await asyncio.to_thread(asked.wait, 30)
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    with pytest.raises(Unavailable):
        await keeper.once()
    answer.set()
    await until(lambda: not any(t.name == "backup" for t in threading.enumerate()))


async def test_others_that_are_always_first_are_given_way_to(world: World) -> None:
    await world.registry().once()

    class Late(DirectoryStore):
        def put(self, name: str, content: bytes) -> bool:
            return not name.startswith("manifests/") and super().put(name, content)

    world.mesh.service("acme", "mail")
    await world.sync()
    keeper = world.registry(Late(world.root / "registry"))
    with pytest.raises(Unavailable) as failed:
        await keeper.once()
    assert failed.value.code == "raced"


async def test_two_replicas_that_take_turns_come_to_rest(world: World) -> None:
    """Neither sends again, because of the other's backup, what it had sent before."""
    from keymesh.registry.records import KillRecord

    state = world.mesh.restrict("suspend", "tenant:acme")
    await world.sync()
    entry = state.head.entry
    world.kills.append(
        KillRecord(
            command_id=entry.command_id,
            correlation_id="c",
            namespace="acme",
            seq=entry.seq,
            entry_hash=state.head.hash,
            scope="tenant:acme",
            action="suspend",
        )
    )
    one, two = world.registry(memory="one"), world.registry(memory="two")
    for _ in range(4):
        await one.once()
        await two.once()
    assert (one.written, two.written) == (1, 1)
    world.mesh.service("acme", "mail")
    await world.sync()
    for _ in range(3):
        await two.once()
        await one.once()
    assert (one.written, two.written) == (1, 2)
    store = world.root / "registry"
    assert [c.kind for c in manifest_of(store, 3).chunks] == [bm.LOG]
    await one.once(full=True)
    for _ in range(3):
        await two.once()
        await one.once()
    assert (one.written, two.written) == (2, 3)
    world.verify()


def metrics_of(keeper: BackupKeeper) -> dict[str, float]:
    registry = prometheus_client.CollectorRegistry()
    registry.register(BackupCollector(keeper))
    return {
        sample.name + "".join(sample.labels.values()): sample.value
        for family in registry.collect()
        for sample in family.samples
    }


async def test_age_and_failures_are_metrics_and_in_the_status(world: World) -> None:
    store = Moody(world.root / "registry")
    keeper = world.registry(store)
    keeper._current_at -= 100
    store.mood = away
    with pytest.raises(KeymeshError):
        await keeper.once()
    shown = metrics_of(keeper)
    assert shown["keymesh_backup_age_seconds"] >= 100
    assert shown["keymesh_backup_failing"] == 1
    assert shown["keymesh_backup_failures_totalstore-away"] == 1
    view = backup_view(keeper)
    assert view is not None
    assert (view.seq, view.failing, view.age_ms >= 100_000) == (0, "store-away", True)
    store.mood = lambda: None
    await keeper.once()
    shown = metrics_of(keeper)
    assert shown["keymesh_backup_age_seconds"] < 100
    assert shown["keymesh_backup_failing"] == 0
    assert shown["keymesh_backup_index"] == (await world.log.heads())[0]
    view = backup_view(keeper)
    assert view is not None
    assert (view.seq, view.index, view.failing) == (1, shown["keymesh_backup_index"], "")
    assert backup_view(None) is None


async def test_the_schedule_is_a_task_that_ends_with_the_process(world: World) -> None:
    ended: list[Any] = []
    assert start_backups(None, prometheus_client.CollectorRegistry(), ended.append) == []
    keeper = world.registry()
    (task,) = start_backups(keeper, prometheus_client.CollectorRegistry(), ended.append)
    await until(lambda: keeper.written == 1)
    world.mesh.service("acme", "mail")
    await world.sync()
    await until(lambda: keeper.written == 2)
    task.cancel()
    await asyncio.wait([task])
    assert ended == [task]


async def test_where_what_was_backed_up_cannot_be_remembered_nothing_is_said_to_be_safe(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("keymesh.app.backup_writer.write_file", full)
    keeper = world.registry()
    with pytest.raises(Unavailable) as failed:
        await keeper.once()
    assert (failed.value.code, keeper.failing) == ("storage", "storage")
    monkeypatch.undo()
    await keeper.once()
    (world.root / "memory-registry.json").unlink()
    (world.root / "memory-registry.json").mkdir()
    with pytest.raises(Unavailable):
        await world.registry().once()


async def test_receipts_that_cannot_be_read_are_no_empty_ones(world: World) -> None:
    (world.root / "receipts.jsonl").mkdir()
    with pytest.raises(Unavailable):
        await world.registry().once()


async def test_every_line_in_the_store_is_named_by_its_newest_manifest(world: World) -> None:
    keeper = world.registry()
    with pytest.raises(Unavailable):  # not mounted, perhaps: that is not none
        await keeper.lines()
    await keeper.once()
    world.mesh.service("acme", "mail")
    await world.sync()
    position = await keeper.once(full=True)
    (line,) = await keeper.lines()
    assert (line.origin, line.first, line.last) == ("registry", 1, position.manifest.seq)
    assert (line.digest, line.kept_until, line.store) == (position.hash, 0, keeper.view().store)


async def test_lines_of_a_store_that_is_away_are_not_made_up(world: World) -> None:
    class Away(DirectoryStore):
        def names(self, prefix: str, *, after: str = "") -> tuple[str, ...]:
            raise Unavailable("store-away", "unplugged")

    with pytest.raises(Unavailable):
        await world.registry(Away(world.root / "registry")).lines()
