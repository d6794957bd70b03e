"""One planned server run by this process: for tests and benches.  (A mesh's own are run by its supervisor.)"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from keymesh.app.servers.ownership import open_log
from keymesh.app.servers.plan import ServerPlan
from keymesh.model.errors import Unavailable

POLL_S: Final = 0.03
STOP_S: Final = 10.0
_LAST_WORDS_CHARS: Final = 2_000
_STARTER: Final = ThreadPoolExecutor(1, thread_name_prefix="servers")
"""The kernel ends a server with the *thread* that started it: this one lasts as long as the process."""


class ServerProcess:
    """Not running until ``start``; may be killed, stopped and started again, from any thread."""

    def __init__(self, plan: ServerPlan) -> None:
        self.plan = plan
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        """Raises Unavailable where it does not run."""
        if self.process is None or self.process.poll() is not None:
            raise Unavailable("not-running", f"{self.plan.name} is not running")
        return self.process.pid

    def start(self) -> None:
        """Run it, and return once it serves.  Raises Unavailable with its last words."""
        self.spawn()
        self.wait_ready()

    def spawn(self) -> None:
        """Run it, without waiting."""
        self.process = _STARTER.submit(self._spawn).result()

    def _spawn(self) -> subprocess.Popen[bytes]:
        with open_log(self.plan.log) as log:
            return subprocess.Popen(
                self.plan.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.plan.environment(),
                cwd=self.plan.directory,
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        """Until it serves.  Raises Unavailable where it ends, or takes longer than its plan allows."""
        deadline = time.monotonic() + self.plan.start_s
        while True:
            if not self.running:
                raise Unavailable("start", f"{self.plan.name} ended: {self.last_words()}")
            if self.plan.ready():
                return
            if time.monotonic() >= deadline:
                raise Unavailable("start", f"{self.plan.name} does not serve: {self.last_words()}")
            time.sleep(POLL_S)

    def signal(self, number: signal.Signals) -> None:
        """To the server's own process, not to its group."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """``kill -9`` of the whole group, and gone when this returns; nothing where it does not run."""
        process, self.process = self.process, None
        if process is None:
            return
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        """In order, within ``STOP_S``; then as ``kill``."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(self.plan.stop)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_S)
        self.kill()

    def last_words(self) -> str:
        with contextlib.suppress(OSError):
            return self.plan.log.read_text(errors="replace")[-_LAST_WORDS_CHARS:]
        return ""
