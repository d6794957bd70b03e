"""The supervisor's orders and its lock; its processes are started elsewhere."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from tests.unit.app.founded import plan_for

from keymesh.app.layout import Layout
from keymesh.app.supervisor import Supervisor, children_of
from keymesh.app.supervisor_client import is_in_place, take_lock
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
    assert all(child.argv[:2] == [sys.executable, "-m"] for child in children)
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


def test_one_supervisor_for_a_directory(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    with take_lock(layout):
        with pytest.raises(Refused) as refused:
            take_lock(layout)
        assert (refused.value.code, refused.value.field) == ("already-running", "dir")
    take_lock(layout).close()
