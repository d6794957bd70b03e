"""One child under the supervisor: servers by their plan, work that is done once, the order of the end."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.app.founded import plan_for, short_dir

from keymesh.app.layout import Layout
from keymesh.app.servers.plan import ServerPlan
from keymesh.app.supervised import Child
from keymesh.app.supervisor import Supervisor
from keymesh.app.supervisor_client import ask_supervisor, take_lock

SERVES = "import os, signal, sys, time\nopen('pid', 'w').write(str(os.getpid()))\nopen('up', 'w').close()\n"
SAYS_WHEN = (
    SERVES + "def end(*_):\n    open(sys.argv[1], 'a').write(sys.argv[2] + chr(10)); sys.exit(0)\n"
    "signal.signal(signal.SIGTERM, end); signal.signal(signal.SIGINT, end)\ntime.sleep(60)"
)


def server(directory: Path, name: str, *more: str, script: str = SAYS_WHEN) -> ServerPlan:
    home = directory / name
    home.mkdir()
    return ServerPlan(name, (sys.executable, "-c", script, *more), home, (home / "up").exists)


async def until(true: object) -> None:
    deadline = time.monotonic() + 20
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_servers_first_then_work_then_roles_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A role starts when what it depends on serves, a server ends after the roles."""
    with short_dir() as path:
        layout = Layout(path)
        layout.logs.mkdir()
        ends = path / "ends"
        boss = Supervisor(layout, plan_for())
        monkeypatch.setattr("keymesh.app.supervised.ASK_S", 0.01)
        work = f"assert open({str(path / 's' / 'up')!r}).read() == ''; open({str(path / 'worked')!r}, 'w').close()"
        role = (
            f"import os, sys, time; assert os.path.exists({str(path / 'worked')!r})\n"
            "from keymesh.app.lifeline import say_ready; say_ready()\n" + SAYS_WHEN.replace(SERVES, "import signal\n")
        )
        boss.children = {
            "role": Child("role", [sys.executable, "-c", role, str(ends), "role"], 0),
            "work": Child("work", [sys.executable, "-c", work], -1, once=True),
            "s": Child("s", [], -2, server=server(path, "s", str(ends), "server")),
        }
        with take_lock(layout) as lock:
            running = asyncio.create_task(boss.run(lock))
            await until(lambda: boss.children["role"].ready.is_set())
            status = await asyncio.to_thread(ask_supervisor, layout, {"do": "status"})
            assert status is not None
            told = status["children"]
            assert {name: child["ready"] for name, child in told.items()} == dict.fromkeys(("role", "work", "s"), True)
            assert (told["work"]["pid"], told["work"]["last_exit"], told["work"]["restarts"]) == (None, 0, 0)
            await asyncio.to_thread(ask_supervisor, layout, {"do": "stop"})
            await asyncio.wait_for(running, 20)
        assert ends.read_text().split() == ["role", "server"]


async def test_a_killed_server_comes_back_and_is_not_ready_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    with short_dir() as path:
        layout = Layout(path)
        layout.logs.mkdir()
        monkeypatch.setattr("keymesh.app.supervisor.BACKOFF_MIN_S", 0.01)
        boss = Supervisor(layout, plan_for())
        plan = server(path, "s", str(path / "ends"), "s")
        child = Child("s", [], 0, server=plan)
        boss.children = {"s": child}
        with take_lock(layout) as lock:
            running = asyncio.create_task(boss.run(lock))
            await until(child.ready.is_set)
            (plan.directory / "up").unlink()
            boss._do({"do": "kill", "name": "s"})
            await until(lambda: child.restarts == 1)
            await until(child.ready.is_set)
            assert child.restarts == 1 and child.last_exit == -9
            await asyncio.to_thread(ask_supervisor, layout, {"do": "stop"})
            await asyncio.wait_for(running, 20)
        assert not child.running


async def test_work_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with short_dir() as path:
        layout = Layout(path)
        layout.logs.mkdir()
        monkeypatch.setattr("keymesh.app.supervisor.BACKOFF_MIN_S", 0.01)
        boss = Supervisor(layout, plan_for())
        tried = (
            f"import os, sys; p = {str(path / 'tried')!r}; done = os.path.exists(p); open(p, 'w'); sys.exit(not done)"
        )
        child = Child("work", [sys.executable, "-c", tried], 0, once=True)
        boss.children = {"work": child}
        with take_lock(layout) as lock:
            running = asyncio.create_task(boss.run(lock))
            await until(child.ready.is_set)
            assert (child.restarts, child.last_exit) == (1, 0)
            await asyncio.to_thread(ask_supervisor, layout, {"do": "stop"})
            await asyncio.wait_for(running, 20)


async def test_what_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that an upgrade took away for a moment, a log that is a link, no directory for a role's log."""
    with short_dir() as path:
        layout = Layout(path)
        monkeypatch.setattr("keymesh.app.supervisor.BACKOFF_MIN_S", 0.01)
        monkeypatch.setattr("keymesh.app.supervisor.BACKOFF_MAX_S", 0.02)
        boss = Supervisor(layout, plan_for())
        gone, linked = server(path, "gone", str(path / "ends"), "gone"), server(path, "linked", str(path / "e"), "x")
        program = path / "program"
        gone = replace(gone, argv=(str(program), *gone.argv[1:]))
        linked.log.symlink_to(path / "elsewhere")
        work = Child("work", [sys.executable, "-c", "pass"], 0, once=True)
        boss.children = {"gone": Child("gone", [], 0, server=gone), "linked": Child("linked", [], 0, server=linked)}
        boss.children["work"] = work
        with take_lock(layout) as lock:
            running = asyncio.create_task(boss.run(lock))
            await until(lambda: all(child.restarts >= 3 for child in boss.children.values()))
            open_before = len(os.listdir("/proc/self/fd"))
            await until(lambda: work.restarts >= 6)
            assert len(os.listdir("/proc/self/fd")) <= open_before + 1
            assert not (path / "elsewhere").exists()
            program.symlink_to(sys.executable)
            linked.log.unlink()
            layout.logs.mkdir()
            await until(lambda: all(child.ready.is_set() for child in boss.children.values()))
            await asyncio.to_thread(ask_supervisor, layout, {"do": "stop"})
            await asyncio.wait_for(running, 20)


async def test_what_a_server_leaves_of_its_group_is_ended_with_it(tmp_path: Path) -> None:
    """The main process alone is killed, as by an operator: its own children must not hold ports or locks."""
    inner = "import os, time; open('inner', 'w').write(str(os.getpid())); time.sleep(60)"
    script = f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {inner!r}])\n" + SERVES
    plan = server(tmp_path, "s", script=script + "time.sleep(60)")
    child = Child("s", [], 0, server=plan)
    await child.start(tmp_path)
    await until(lambda: (plan.directory / "inner").exists() and (plan.directory / "inner").read_text())
    assert child.process is not None
    os.kill(child.process.pid, 9)
    assert await child.wait() == -9
    left = Path(f"/proc/{(plan.directory / 'inner').read_text()}/stat")
    await until(lambda: not left.exists() or left.read_text().split()[2] == "Z")
    child.kill()
    child.ask_to_end()
