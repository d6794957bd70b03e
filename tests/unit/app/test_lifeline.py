"""A process ends with the one that started it, also where its own orderly end gets stuck."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

PATIENCE_S = 30.0
PARENT = """
import os, subprocess, sys
child = subprocess.Popen(
    [sys.executable, "-c", sys.argv[1]],
    env={**os.environ, "KEYMESH_PARENT_PID": str(os.getpid())},
    stdout=subprocess.PIPE,
    text=True,
)
print(child.pid, child.stdout.readline().strip(), flush=True)
"""
CHILD = """
import signal, time
from keymesh.app.lifeline import die_with_parent
{handling}
die_with_parent(0.2)
print("tied", flush=True)
time.sleep(120)
"""


@pytest.mark.parametrize("handling", ["", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"], ids=["asked", "deaf"])
def test_the_child_is_gone_soon_after_its_parent(handling: str) -> None:
    shown = subprocess.run(
        [sys.executable, "-c", PARENT, CHILD.format(handling=handling)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_S,
    ).stdout.split()
    assert shown[1] == "tied"
    deadline = time.monotonic() + PATIENCE_S
    while _lives(int(shown[0])):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:  # a zombie that nobody collects is gone, too
        return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
