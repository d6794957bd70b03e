"""What every long-running process does first: die with its parent, say when it is ready, stop on SIGTERM."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
import threading
import time
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
ORPHAN_GRACE_S: Final = 15.0
"""How long an orderly end may take once the supervisor is gone: longer than the supervisor itself would wait."""
ORPHAN_LOOK_S: Final = 1.0
PARENT_ENV = "KEYMESH_PARENT_PID"
READY_ENV = "KEYMESH_READY_FD"


def die_with_parent(grace_s: float = ORPHAN_GRACE_S) -> None:
    """Have the kernel end this process when the supervisor that started it is gone; nothing where none did.

    The kernel asks (SIGTERM).  Nobody is left to insist, and what an orderly end waits for (a database, a broker) may
    have died at the same moment: so a thread ends the process ``grace_s`` later, whatever it waits for.
    """
    parent = os.environ.get(PARENT_ENV)
    if parent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):
        sys.exit("the supervisor is gone")
    threading.Thread(target=_end_an_orphan, args=(int(parent), grace_s), name="lifeline", daemon=True).start()


def _end_an_orphan(parent: int, grace_s: float) -> None:
    while os.getppid() == parent:
        time.sleep(ORPHAN_LOOK_S)
    time.sleep(grace_s)
    sys.stderr.write(f"the supervisor is gone, and an orderly end took more than {grace_s:g} s\n")
    sys.stderr.flush()
    os._exit(70)


def say_ready() -> None:
    """Tell the supervisor, once, that this process serves."""
    fd = os.environ.pop(READY_ENV, None)
    if fd is not None:
        os.write(int(fd), b"ready\n")
        os.close(int(fd))


async def wait_for_stop() -> None:
    """Returns on SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()


def die(what: str, failed: BaseException) -> None:
    """Our bug: end the process at once rather than go on from a state that nobody planned."""
    logging.getLogger("keymesh").critical(what, exc_info=failed)
    logging.shutdown()
    sys.stderr.flush()
    os._exit(70)
