"""One process under the supervisor: a role of ours, a server of ``app.servers``, or work that is done once.

A role says by a pipe when it serves; a server is asked by its plan; what runs ``once`` is ready when it has ended well.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from keymesh.app.lifeline import PARENT_ENV, READY_ENV
from keymesh.app.servers.ownership import open_log
from keymesh.app.servers.plan import ServerPlan

ASK_S: Final = 0.1
_ASKING: Final = ThreadPoolExecutor(16, thread_name_prefix="ready")


@dataclass(slots=True)
class Child:
    """``stage``: lower ones are ready before higher ones start, and end after them.  ``held``: ended on purpose, not to
    be restarted until released."""

    name: str
    argv: list[str]
    stage: int
    server: ServerPlan | None = None
    once: bool = False
    process: asyncio.subprocess.Process | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    held: bool = False
    restarts: int = 0
    last_exit: int | None = None
    watcher: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.returncode is None

    def describe(self) -> dict[str, Any]:
        return {
            "pid": self.process.pid if self.running and self.process else None,
            "ready": self.ready.is_set() and (self.running or self.once),
            "restarts": self.restarts,
            "held": self.held,
            "last_exit": self.last_exit,
        }

    async def start(self, logs: Path) -> None:
        """Run it; ``ready`` is set once it serves."""
        if self.server is not None:
            await self._start_server(self.server)
        else:
            await self._start_role(logs)

    async def wait(self) -> int:
        """Its exit code, once it and all of its group have ended."""
        assert self.process is not None
        self.last_exit = await self.process.wait()
        if self.watcher is not None and self.server is not None:
            self.watcher.cancel()
        if self.once and self.last_exit == 0:
            self.ready.set()
        else:
            self.ready.clear()
        if self.server is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        return self.last_exit

    def kill(self) -> None:
        """``kill -9``: of a server with all of its group."""
        if not self.running or self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            if self.server is not None:
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()

    def ask_to_end(self) -> None:
        """In order; also where it stands still."""
        if not self.running or self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(signal.SIGTERM if self.server is None else self.server.stop)

    # --- starting --------------------------------------------------------------------------------------------------

    async def _start_server(self, server: ServerPlan) -> None:
        with open_log(server.log) as output:
            self.process = await asyncio.create_subprocess_exec(
                *server.command(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=server.environment(),
                cwd=server.directory,
                start_new_session=True,
            )
        self.watcher = asyncio.create_task(self._ask(server))

    async def _ask(self, server: ServerPlan) -> None:
        loop = asyncio.get_running_loop()
        while not await loop.run_in_executor(_ASKING, server.ready):  # noqa: ASYNC110  nothing tells us
            await asyncio.sleep(ASK_S)
        self.ready.set()

    async def _start_role(self, logs: Path) -> None:
        read_fd, write_fd = os.pipe()
        environment = {**os.environ, PARENT_ENV: str(os.getpid()), READY_ENV: str(write_fd)}
        pipe = os.fdopen(read_fd, "rb")
        try:
            with (logs / f"{self.name}.log").open("ab") as output:
                self.process = await asyncio.create_subprocess_exec(
                    *self.argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environment,
                    pass_fds=(write_fd,),
                    start_new_session=True,
                )
        except BaseException:
            pipe.close()
            raise
        finally:
            os.close(write_fd)
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )

        async def watch() -> None:
            line = await reader.readline()
            transport.close()
            if line == b"ready\n":
                self.ready.set()

        self.watcher = asyncio.create_task(watch())
