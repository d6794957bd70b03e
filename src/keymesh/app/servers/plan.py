"""How one server is started: what ``keymesh up --full``, the benches and the tests have in common."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

READY_TRY_S: Final = 2.0
START_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """A server as a direct child, in a process group of its own: end it, start it again, and it serves again.

    ``directory``: everything it writes is in there; its output goes to ``log`` in it.  ``ready``: one try, of at most
    about ``READY_TRY_S``, to find it in service; it may do what a start needs (unseal), raises nothing, and is called
    again until it says yes.  ``env``: all that it gets; nothing is inherited.  ``user``: whom it runs as where we are
    root (None: as we are).  ``stop``: the signal that ends it in order.  ``start_s``: after which a start has failed.
    """

    name: str
    argv: tuple[str, ...]
    directory: Path
    ready: Callable[[], bool]
    env: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    stop: signal.Signals = signal.SIGTERM
    start_s: float = START_S

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def command(self) -> list[str]:
        """The argv that runs it from this process: as its user, and ended by the kernel when we are gone."""
        user = self.user if self.user is not None and os.geteuid() == 0 else ""
        return [sys.executable, "-P", "-m", "keymesh.app.servers.launch", str(os.getpid()), user, *self.argv]

    def environment(self) -> dict[str, str]:
        return {"PATH": os.defpath, "HOME": str(self.directory), "LANG": "C.UTF-8", **self.env}
