"""What every long-running process does first: die with its parent, say when it is ready, stop on SIGTERM."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
PARENT_ENV = "KEYMESH_PARENT_PID"
READY_ENV = "KEYMESH_READY_FD"


def die_with_parent() -> None:
    """Have the kernel end this process when the supervisor that started it is gone; nothing where none did."""
    parent = os.environ.get(PARENT_ENV)
    if parent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):
        sys.exit("the supervisor is gone")


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
