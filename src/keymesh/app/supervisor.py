"""The process that keeps a mesh running: starts its servers and roles, restarts what dies, stops all on request.

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
import sys
import time
from pathlib import Path
from typing import IO, Any

from keymesh.app.full_servers import plans_of
from keymesh.app.layout import Layout, MeshPlan, load_plan, registry_process
from keymesh.app.lifeline import die_with_parent, wait_for_stop
from keymesh.app.logs import setup_logging
from keymesh.app.supervised import Child
from keymesh.app.supervisor_client import is_in_place, take_lock
from keymesh.model.errors import KeymeshError

log = logging.getLogger("keymesh.supervisor")

BACKOFF_MIN_S, BACKOFF_MAX_S = 0.2, 5.0
STOP_GRACE_S = 8.0
ORPHAN_GRACE_S = 60.0
"""For a supervisor whose own parent is gone: every stage of children has its grace first."""
PLACE_CHECK_S = 1.0
SERVERS, SETUP = -2, -1  # stages before those of the roles


def children_of(layout: Layout, plan: MeshPlan) -> list[Child]:
    """Every process of the mesh, in starting order."""
    root = str(layout.root)
    python = [sys.executable, "-P", "-m"]  # -P: nothing is imported from where we were started
    children = []
    if plan.full is not None:
        children += [Child(s.name, [], SERVERS, server=s) for s in plans_of(layout, plan.full)]
        children.append(Child("setup", [*python, "keymesh.app.full_setup", "--dir", root], SETUP, once=True))
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
    for node in plan.registry_nodes:
        children.append(
            Child(registry_process(node), [*python, "keymesh.app.registry_app", "--dir", root, "--node", node], 0)
        )
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
            ended = await self._lived(child)
            if child.once and ended == 0:
                return
            if self.stopping:
                return
            log.warning("process ended", extra={"fields": {"child": child.name, "exit": ended}})
            if not child.held:
                backoff = BACKOFF_MIN_S if time.monotonic() - began > 10 else min(BACKOFF_MAX_S, backoff * 2)
                await asyncio.sleep(backoff)
            if child.held:  # before it ended, or while it waited to be started again
                await child.release.wait()
                child.release.clear()
                child.held = False
                backoff = BACKOFF_MIN_S
            child.restarts += 1

    async def _lived(self, child: Child) -> int | None:
        """Its exit code once it has ended; None where it could not be started, which the next try may."""
        try:
            await child.start(self.layout.logs)
        except (OSError, KeymeshError) as failed:
            log.error("process not started", extra={"fields": {"child": child.name, "reason": str(failed)}})
            return None
        return await child.wait()

    async def _end_all(self) -> None:
        """The highest stage first: what others depend on goes last."""
        for stage in sorted({child.stage for child in self.children.values()}, reverse=True):
            ending = [c for c in self.children.values() if c.stage == stage and c.process is not None]
            waits = [asyncio.create_task(child.process.wait()) for child in ending if child.process is not None]
            for child in ending:
                child.ask_to_end()
            if waits:
                await asyncio.wait(waits, timeout=STOP_GRACE_S)
            for child in ending:
                child.kill()
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
                child.kill()
                return {"ok": True}
            case "release" if child is not None and child.held:
                child.release.set()
                return {"ok": True}
            case _:
                return {"ok": False}


def main(directory: str) -> int:
    die_with_parent(ORPHAN_GRACE_S)
    layout = Layout(Path(directory))
    setup_logging("supervisor")
    with take_lock(layout) as lock:
        asyncio.run(Supervisor(layout, load_plan(layout)).run(lock))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
