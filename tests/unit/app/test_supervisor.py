"""The supervisor's orders and its lock; its processes are started elsewhere."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.unit.app.founded import plan_for, short_dir

from keymesh.app.layout import Layout
from keymesh.app.supervisor import Supervisor, children_of
from keymesh.app.supervisor_client import ask_supervisor, is_in_place, take_lock
from keymesh.model.errors import Refused


def supervisor(tmp_path: Path) -> Supervisor:
    return Supervisor(Layout(tmp_path), plan_for())


def test_every_role_has_a_process_and_edges_come_last(tmp_path: Path) -> None:
    plan = plan_for(links=True)
    children = children_of(Layout(tmp_path), plan)
    names = [child.name for child in children]
    assert set(names) == {"wan", "customer-kms", "registry"} | {
        f"{role}-{region}" for role in ("core", "edge") for region in plan.regions
    }
    assert len(set(names)) == len(names)
    assert {child.stage for child in children if child.name.startswith("edge-")} == {1}
    assert {child.stage for child in children if not child.name.startswith("edge-")} == {0}
    assert all(child.argv[:3] == [sys.executable, "-P", "-m"] for child in children)
    plain = {child.name for child in children_of(Layout(tmp_path), plan_for())}
    assert plain == set(names) - {"wan"}


def test_orders(tmp_path: Path) -> None:
    boss = supervisor(tmp_path)
    status = boss._do({"do": "status"})
    assert set(status["children"]) == set(boss.children)
    assert status["children"]["registry"] == {
        "pid": None,
        "ready": False,
        "restarts": 0,
        "held": False,
        "last_exit": None,
    }
    for order in (
        {},
        {"do": "dance"},
        {"do": "kill"},
        {"do": "kill", "name": "nobody"},
        {"do": "kill", "name": "registry"},  # not started yet
        {"do": "hold", "name": "registry"},
        {"do": "release", "name": "registry"},
        {"do": ["status"]},
        {"do": "kill", "name": ["registry"]},
    ):
        assert boss._do(order) == {"ok": False}, order


async def test_a_kill_of_what_is_held_leaves_it_held(tmp_path: Path) -> None:
    boss = supervisor(tmp_path)
    child = boss.children["registry"]
    child.process = await asyncio.create_subprocess_exec("true")
    await child.process.wait()
    assert boss._do({"do": "hold", "name": "registry"}) == {"ok": True}
    assert boss._do({"do": "kill", "name": "registry"}) == {"ok": True}
    assert child.held
    assert boss._do({"do": "release", "name": "registry"}) == {"ok": True}
    assert child.release.is_set()


def test_a_lock_knows_its_directory(tmp_path: Path) -> None:
    layout, elsewhere = Layout(tmp_path / "m"), tmp_path / "elsewhere"
    layout.root.mkdir()
    with take_lock(layout) as lock:
        assert is_in_place(lock, layout)
        layout.root.rename(elsewhere)
        assert not is_in_place(lock, layout)
        layout.root.mkdir()
        assert not is_in_place(lock, layout)
        with take_lock(layout) as other:  # the same path, another directory
            assert is_in_place(other, layout) and not is_in_place(lock, layout)
        layout.lock.unlink()
        layout.root.rmdir()
        elsewhere.rename(layout.root)
        assert is_in_place(lock, layout)
        layout.lock.unlink()
        assert not is_in_place(lock, layout)
        layout.root.rmdir()
        layout.root.write_text("")
        assert not is_in_place(lock, layout)


async def test_a_directory_that_cannot_be_looked_at_is_still_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("keymesh.app.supervisor.PLACE_CHECK_S", 0.001)
    boss = supervisor(tmp_path / "m")
    boss.layout.root.mkdir()
    stat = Path.stat
    looked = 0

    def failing(path: Path, **how: Any) -> os.stat_result:
        nonlocal looked
        if path != boss.layout.lock:
            return stat(path, **how)
        looked += 1
        code = (errno.EACCES, errno.ESTALE, errno.EIO)[looked % 3]
        raise OSError(code, os.strerror(code), str(path))

    with take_lock(boss.layout) as lock:
        watching = asyncio.create_task(boss._until_gone(lock))
        with monkeypatch.context() as broken:
            broken.setattr(Path, "stat", failing)
            await asyncio.sleep(0.1)
            assert not watching.done()
            assert looked > 3
            assert [r.levelname for r in caplog.records if "cannot be looked at" in r.message] == ["WARNING"]
        await asyncio.sleep(0.02)
        assert not watching.done()  # it can be told again
        boss.layout.root.rename(tmp_path / "elsewhere")
        await asyncio.wait_for(watching, 5)


async def test_a_supervisor_ends_in_order_where_its_directory_cannot_be_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with short_dir() as path:
        boss = supervisor(path)
        boss.children.clear()
        stat = Path.stat

        def failing(looked_at: Path, **how: Any) -> os.stat_result:
            if looked_at == boss.layout.lock:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(looked_at))
            return stat(looked_at, **how)

        with take_lock(boss.layout) as lock:
            monkeypatch.setattr(Path, "stat", failing)
            running = asyncio.create_task(boss.run(lock))
            status = None
            for _ in range(500):
                await asyncio.sleep(0.01)
                status = await asyncio.to_thread(ask_supervisor, boss.layout, {"do": "status"})
                if status is not None:
                    break
            assert status is not None
            assert status["children"] == {}
            await asyncio.to_thread(ask_supervisor, boss.layout, {"do": "stop"})
            await asyncio.wait_for(running, 5)


def test_one_supervisor_for_a_directory(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    with take_lock(layout):
        with pytest.raises(Refused) as refused:
            take_lock(layout)
        assert (refused.value.code, refused.value.field) == ("already-running", "dir")
    take_lock(layout).close()
