"""A mesh's supervisor as the others see it: whether one runs, what it says, and its end."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from typing import IO, Any, Final

from keymesh.app.layout import Layout
from keymesh.model.errors import Refused, Unavailable

DOWN_TIMEOUT_S: Final = 40.0
NOT_RUNNING: Final = "the mesh is not running; `keymesh up` starts it"


def take_lock(layout: Layout) -> IO[str]:
    """The directory's lock, held until the file is closed.  Raises Refused where another supervisor has it."""
    handle = layout.lock.open("a")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as taken:
        handle.close()
        raise Refused(
            "already-running", f"a mesh is already running in {layout.root}; `keymesh down` stops it", field="dir"
        ) from taken
    return handle


def is_in_place(lock: IO[str], layout: Layout) -> bool:
    """Whether ``lock`` is still the directory's: not where that was deleted or moved, or made again by another.

    Raises OSError where that cannot be told.
    """
    held = os.fstat(lock.fileno())
    try:
        there = layout.lock.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)


def ask_supervisor(layout: Layout, request: dict[str, Any]) -> dict[str, Any] | None:
    """The supervisor's answer, or None where none is listening."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        try:
            connection.connect(str(layout.control_socket))
            connection.sendall(json.dumps(request).encode() + b"\n")
            line = connection.makefile("rb").readline()
        except (FileNotFoundError, ConnectionError, TimeoutError):
            return None
    answer = json.loads(line) if line else None
    return answer if isinstance(answer, dict) else None


def stop_mesh(layout: Layout) -> bool:
    """Ask the supervisor to end everything and wait until it has; False where none was running."""
    answer = ask_supervisor(layout, {"do": "status"})
    if answer is None:
        return False
    ask_supervisor(layout, {"do": "stop"})
    deadline = time.monotonic() + DOWN_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            take_lock(layout).close()
        except Refused:
            time.sleep(0.05)
            continue
        return True
    raise Unavailable("stop", f"the supervisor (pid {answer['pid']}) did not end within {DOWN_TIMEOUT_S:.0f} s")


def running_pid(layout: Layout, name: str) -> int:
    """Process id of the role ``name``.  Raises Unavailable where it is not running."""
    answer = ask_supervisor(layout, {"do": "status"}) or {}
    pid = answer.get("children", {}).get(name, {}).get("pid")
    if not isinstance(pid, int):
        raise Unavailable("not-running", f"{name} is not running")
    os.kill(pid, 0)
    return pid
