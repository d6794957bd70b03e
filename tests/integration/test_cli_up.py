"""`keymesh up` and `down` as a user meets them: twice, on taken ports, after a crash of the supervisor or of itself."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.mesh.live import keymesh

from keymesh.app import cli
from keymesh.app.bootstrap import bootstrap, make_plan, parse_regions
from keymesh.app.layout import Layout, TimingPlan, load_plan
from keymesh.app.supervisor_client import ask_supervisor, stop_mesh

FLAGS = ("--heartbeat", "500ms", "--ttl", "6s", "--edge-ttl", "2s", "--allow-unlocked-memory")
TIMING = TimingPlan(
    ttl_ms=6_000, heartbeat_ms=500, edge_ttl_ms=2_000, l1_probe_ms=1_000, l1_ttl_ms=6_000, snapshot_ms=2_000
)


@pytest.fixture
def layout() -> Iterator[Layout]:
    """A short directory; whatever runs in it in the end is stopped."""
    root = Path(tempfile.mkdtemp(prefix="km", dir="/tmp"))
    layout = Layout(root / "m")
    yield layout
    if layout.control_socket.exists():
        stop_mesh(layout)
    shutil.rmtree(root, ignore_errors=True)


def here(layout: Layout, *words: str, code: int = 0) -> Any:
    """The parsed ``--json`` output of a command that must end with ``code``."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        ended = cli.main([*words, "--dir", str(layout.root), "--json"])
    assert ended == code, (words, ended, said.getvalue())
    return json.loads(said.getvalue())


def up(layout: Layout, *more: str, code: int = 0) -> Any:
    return here(layout, "up", *FLAGS, *more, code=code)


def make_tenant(layout: Layout) -> None:
    """One tenant, made."""
    here(layout, "tenant", "create", "acme", "--home", "solo")


def children(layout: Layout) -> dict[str, int]:
    answer = ask_supervisor(layout, {"do": "status"})
    assert answer is not None
    return {name: child["pid"] for name, child in answer["children"].items()}


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def until(check: Any, what: str, within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_the_life_of_a_small_mesh(layout: Layout) -> None:
    """Up, twice, killed, up again, down, up on a taken port: what was made stays."""
    made = up(layout, "--regions", "solo")
    assert (made["made"], made["regions"], made["processes"]) == (True, ["solo"], 4)
    make_tenant(layout)
    began = children(layout)

    refused = up(layout, code=1)
    assert refused["error"]["code"] == "already-running" and str(layout.root) in refused["error"]["message"]
    asyncio.run(nonsense(layout))
    assert children(layout) == began

    os.kill(made["pid"], signal.SIGKILL)
    until(lambda: all(gone(pid) for pid in began.values()), "children ending with their supervisor")
    assert here(layout, "down")["stopped"] is False
    assert here(layout, "status", code=3)["running"] is False
    here(layout, "tenant", "list", code=3)

    again = up(layout)
    assert again["made"] is False
    assert here(layout, "tenant", "show", "acme")["bindings"][0]["state"] == "active"
    assert up(layout, "--regions", "other", code=1)["error"]["code"] in ("bad-field", "already-running")

    pids = children(layout)
    os.kill(again["pid"], signal.SIGTERM)
    until(lambda: gone(again["pid"]), "the supervisor ending on SIGTERM")
    assert all(gone(pid) for pid in pids.values())
    assert not layout.control_socket.exists()
    assert up(layout, "--regions", "other", code=1)["error"]["field"] == "regions"

    plan = load_plan(layout)
    for port, what in ((plan.registry_port, "registry"), (plan.regions["solo"].port, "core of solo")):
        with socket.socket() as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(("127.0.0.1", port))
            taken.listen()
            refused = up(layout, code=3)
            assert refused["error"]["code"] == "port-taken"
            assert str(port) in refused["error"]["message"] and what in refused["error"]["message"]


def test_a_mesh_whose_directory_was_deleted_ends_and_leaves_its_successor_alone(layout: Layout) -> None:
    began = up(layout, "--regions", "solo")
    old = [began["pid"], *children(layout).values()]
    shutil.rmtree(layout.root)
    again = up(layout, "--regions", "solo")
    assert again["made"] is True
    until(lambda: all(gone(pid) for pid in old), "the old mesh ending", within_s=15)
    new = children(layout)  # its socket is where it was
    assert not set(new.values()) & set(old)
    make_tenant(layout)
    assert here(layout, "down")["stopped"] is True
    assert all(gone(pid) for pid in new.values())

    final = [up(layout)["pid"], *children(layout).values()]
    layout.root.rename(layout.root.with_name("away"))
    until(lambda: all(gone(pid) for pid in final), "the moved mesh ending", within_s=15)
    log = (layout.root.with_name("away") / "logs" / "supervisor.log").read_text()
    assert "the directory is gone" in log and "exception" not in log
    layout.root.with_name("away").rename(layout.root)
    up(layout)
    assert here(layout, "tenant", "show", "acme")["state"] == "active"


def test_two_at_once_make_one_mesh(layout: Layout) -> None:
    program = [sys.executable, "-c", "import sys; from keymesh.app.cli import main; sys.exit(main())"]
    line = [*program, "up", "--dir", str(layout.root), "--regions", "solo", *FLAGS]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    both = [
        subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=90) for process in both]
    assert sorted(process.returncode for process in both) in ([0, 1], [0, 3]), said
    assert not any("Traceback" in err for _, err in said), said
    assert len(children(layout)) == 4


def test_a_bootstrap_cut_short_is_made_again_from_scratch(layout: Layout) -> None:
    plan = make_plan(parse_regions("solo"), TIMING, links=False, allow_unlocked_memory=True)
    bootstrap(layout, plan)  # and nothing after it: the plan, written last, is missing
    (layout.registry / "log.db").write_bytes(b"torn")
    assert not layout.plan.exists()
    said = keymesh("status", "--dir", layout.root)
    assert said.returncode == 1 and "keymesh up" in said.stderr
    program = [sys.executable, "-c", "import sys; from keymesh.app.cli import main; sys.exit(main())"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    line = [*program, "up", "--dir", str(layout.root), "--regions", "solo", *FLAGS]
    for delay_s in (0.45, 0.6, 0.75):  # and `up` itself killed while it works
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        time.sleep(delay_s)
        process.kill()
        process.wait()
        if ask_supervisor(layout, {"do": "status"}) is not None:
            stop_mesh(layout)
    deadline = time.monotonic() + 60
    while (done := keymesh("up", "--dir", layout.root, "--regions", "solo", *FLAGS)).returncode != 0:
        assert done.returncode == 1 and "already-running" in done.stderr, done  # one of the killed had come that far
        stop_mesh(layout)
        assert time.monotonic() < deadline
    make_tenant(layout)


def test_a_damaged_log_is_not_served(layout: Layout) -> None:
    """The Registry refuses a log that was altered while it was down; nothing is silently forgotten."""
    up(layout, "--regions", "solo")
    make_tenant(layout)
    assert here(layout, "down")["stopped"] is True
    log = layout.registry / "log.db"
    raw = log.read_bytes()
    where = raw.index(b'"payload"') + 40
    log.write_bytes(raw[:where] + bytes([raw[where] ^ 1]) + raw[where + 1 :])
    done = keymesh("up", "--dir", layout.root, *FLAGS)
    assert done.returncode in (3, 4), done
    assert "Traceback" not in done.stderr and "registry" in done.stderr
    log.write_bytes(raw)
    up(layout)
    assert here(layout, "tenant", "show", "acme")["state"] == "active"


async def nonsense(layout: Layout) -> None:
    """On the supervisor's socket."""
    lines = (b"\n", b"{}\n", b"[]\n", b"5\n", b"not json\n", b'{"do":5}\n', b"x" * 200_000)
    for line in (*lines, b'{"do":"kill","name":"nosuch"}\n'):
        reader, writer = await asyncio.open_unix_connection(str(layout.control_socket))
        writer.write(line)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
            writer.write_eof()
            await asyncio.wait_for(reader.read(), 5)
        writer.close()
    assert len(children(layout)) == 4
    assert "exception" not in (layout.logs / "supervisor.log").read_text().lower()
