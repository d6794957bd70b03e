"""The process that keeps an embedded mesh running: starts every role, restarts what dies, stops all on request.

One supervisor for a directory (an advisory lock says so); where the directory goes, or becomes another's, it ends.  It
holds no keys and speaks to nobody but the CLI, over a Unix socket in the directory: one JSON object a line,
``{"do": "status" | "stop" | "kill" | "hold" | "release"}``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from keymesh.app.layout import Layout, MeshPlan, load_plan
from keymesh.app.lifeline import PARENT_ENV, READY_ENV, die_with_parent, wait_for_stop
from keymesh.app.logs import setup_logging
from keymesh.app.supervisor_client import is_in_place, take_lock

log = logging.getLogger("keymesh.supervisor")

BACKOFF_MIN_S, BACKOFF_MAX_S = 0.2, 5.0
STOP_GRACE_S = 8.0
PLACE_CHECK_S = 1.0


@dataclass(slots=True)
class Child:
    """One supervised role.  ``held``: ended on purpose, not to be restarted until released."""

    name: str
    argv: list[str]
    stage: int  # lower stages are ready before higher ones start
    process: asyncio.subprocess.Process | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    held: bool = False
    restarts: int = 0
    last_exit: int | None = None
    watcher: asyncio.Task[None] | None = None

    def describe(self) -> dict[str, Any]:
        running = self.process is not None and self.process.returncode is None
        return {
            "pid": self.process.pid if running and self.process else None,
            "ready": running and self.ready.is_set(),
            "restarts": self.restarts,
            "held": self.held,
            "last_exit": self.last_exit,
        }


def children_of(layout: Layout, plan: MeshPlan) -> list[Child]:
    """Every process of the mesh, in starting order."""
    root = str(layout.root)
    python = [sys.executable, "-m"]
    children = []
    if plan.links is not None:
        children.append(
            Child(
                "wan",
                [*python, "keymesh.app.wan", "--plan", str(layout.wan_plan), "--control", str(layout.wan_socket)],
                0,
            )
        )
    if plan.kms_ports is not None:
        pairs = ",".join(f"{name}={port}" for name, port in sorted(plan.kms_ports.items()))
        children.append(
            Child(
                "customer-kms",
                [*python, "keymesh.app.customer_kms", "--dir", str(layout.customer_kms), "--replicas", pairs],
                0,
            )
        )
    children.append(Child("registry", [*python, "keymesh.app.registry_app", "--dir", root], 0))
    for region in sorted(plan.regions):
        children.append(
            Child(f"core-{region}", [*python, "keymesh.app.core_app", "--dir", root, "--region", region], 0)
        )
        children.append(
            Child(f"edge-{region}", [*python, "keymesh.app.edge_app", "--dir", root, "--region", region], 1)
        )
    return children


class Supervisor:
    def __init__(self, layout: Layout, plan: MeshPlan) -> None:
        self.layout = layout
        self.children = {child.name: child for child in children_of(layout, plan)}
        self.stopping = False
        self.started_at = time.time()

    async def run(self, lock: IO[str]) -> None:
        """Until SIGTERM, SIGINT, ``stop``, or the directory of ``lock`` is gone; then every child is ended, and
        waited for."""
        self.layout.control_socket.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._serve, path=str(self.layout.control_socket))
        self.layout.control_socket.chmod(0o600)
        keepers = [asyncio.create_task(self._keep(child)) for child in self.children.values()]
        self._stop = asyncio.Event()
        waiter = asyncio.create_task(wait_for_stop())
        stopper = asyncio.create_task(self._stop.wait())
        place = asyncio.create_task(self._until_gone(lock))
        await asyncio.wait([waiter, stopper, place], return_when=asyncio.FIRST_COMPLETED)
        self.stopping = True
        await self._end_all()
        for task in (*keepers, waiter, stopper, place):
            task.cancel()
        await asyncio.gather(*keepers, waiter, stopper, place, return_exceptions=True)
        server.close()
        with contextlib.suppress(OSError):
            if is_in_place(lock, self.layout):  # else the socket there is another's
                self.layout.control_socket.unlink(missing_ok=True)

    async def _until_gone(self, lock: IO[str]) -> None:
        """Returns once the directory is no longer this supervisor's; while nobody can tell, it still is."""
        is_warned = False
        while True:
            await asyncio.sleep(PLACE_CHECK_S)
            try:
                if not is_in_place(lock, self.layout):
                    break
            except OSError as unknown:
                if not is_warned:
                    is_warned = True
                    log.warning(
                        "the directory cannot be looked at",
                        extra={"fields": {"dir": str(self.layout.root), "reason": unknown.strerror}},
                    )
        log.critical("the directory is gone", extra={"fields": {"dir": str(self.layout.root)}})

    async def _keep(self, child: Child) -> None:
        backoff = BACKOFF_MIN_S
        for other in self.children.values():
            if other.stage < child.stage:
                await other.ready.wait()
        while not self.stopping:
            began = time.monotonic()
            await self._start(child)
            assert child.process is not None
            child.last_exit = await child.process.wait()
            child.ready.clear()
            if self.stopping:
                return
            log.warning("process ended", extra={"fields": {"child": child.name, "exit": child.last_exit}})
            if not child.held:
                backoff = BACKOFF_MIN_S if time.monotonic() - began > 10 else min(BACKOFF_MAX_S, backoff * 2)
                await asyncio.sleep(backoff)
            if child.held:  # before it ended, or while it waited to be started again
                await child.release.wait()
                child.release.clear()
                child.held = False
                backoff = BACKOFF_MIN_S
            child.restarts += 1

    async def _start(self, child: Child) -> None:
        read_fd, write_fd = os.pipe()
        environment = {**os.environ, PARENT_ENV: str(os.getpid()), READY_ENV: str(write_fd)}
        with (self.layout.logs / f"{child.name}.log").open("ab") as output:
            child.process = await asyncio.create_subprocess_exec(
                *child.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                pass_fds=(write_fd,),
                start_new_session=True,
            )
        os.close(write_fd)
        reader = asyncio.StreamReader()
        pipe = os.fdopen(read_fd, "rb")
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )

        async def watch() -> None:
            line = await reader.readline()
            transport.close()
            if line == b"ready\n":
                child.ready.set()

        child.watcher = asyncio.create_task(watch())

    async def _end_all(self) -> None:
        running = [c.process for c in self.children.values() if c.process is not None and c.process.returncode is None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.terminate()
        waits = [asyncio.create_task(process.wait()) for process in running]
        if waits:
            await asyncio.wait(waits, timeout=STOP_GRACE_S)
        for process in running:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        await asyncio.gather(*waits)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ValueError):
            while line := await reader.readline():
                request = json.loads(line)
                answer = self._do(request) if isinstance(request, dict) else {"ok": False}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        writer.close()

    def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        child = self.children.get(str(request.get("name")))
        match request.get("do"):
            case "status":
                return {"pid": os.getpid(), "children": {n: c.describe() for n, c in sorted(self.children.items())}}
            case "stop":
                self._stop.set()
                return {"ok": True}
            case "kill" | "hold" if child is not None and child.process is not None:
                child.held = child.held or request["do"] == "hold"
                with contextlib.suppress(ProcessLookupError):
                    child.process.kill()
                return {"ok": True}
            case "release" if child is not None and child.held:
                child.release.set()
                return {"ok": True}
            case _:
                return {"ok": False}


def main(directory: str) -> int:
    die_with_parent()
    layout = Layout(Path(directory))
    setup_logging("supervisor")
    with take_lock(layout) as lock:
        asyncio.run(Supervisor(layout, load_plan(layout)).run(lock))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
