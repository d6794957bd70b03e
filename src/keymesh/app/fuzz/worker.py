"""The process that feeds a target: says before each input which one it is, and lives through what can be lived through.

Usage: ``python -m keymesh.app.fuzz.worker PARENT PLACE SEED START END PROGRESS``.  PROGRESS is a file of 8 bytes, the
number of the input that is being fed plus one, big-endian, which outlives whatever the input does to this process.
Standard output: a line of JSON for each fault, and one for memory at the end.
"""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Final

from keymesh.app.fuzz.target import Fault, input_of, load

WARM_MAX: Final = 5_000
FAULTS_MAX: Final = 20
_PR_SET_PDEATHSIG: Final = 1
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def main(argv: list[str]) -> None:
    parent, place, *numbers, progress = argv
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):
        sys.exit("the process that started this one is gone")
    seed, start, end = map(int, numbers)
    with Path(progress).open("r+b") as file, mmap.mmap(file.fileno(), 8) as shared:
        _feed(place, seed, range(start, end), shared)


def _feed(place: str, seed: int, numbers: range, shared: mmap.mmap) -> None:
    target = load(place)
    warm_at = numbers.start + min(WARM_MAX, len(numbers) // 5)
    warm = faults = 0
    for number in numbers:
        if number == warm_at:
            warm = resident_bytes()
        shared[:8] = (number + 1).to_bytes(8, "big")
        try:
            target.run(input_of(target, seed, number))
        except Exception as error:
            faults += 1
            _say({"input": number, "error": _told(error)})
            if faults >= FAULTS_MAX:
                return
    _say({"rss_growth_bytes": resident_bytes() - warm})


def resident_bytes() -> int:
    """What this process holds in memory, its garbage collected."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES


def _told(error: Exception) -> str:
    """One line: what, and where it came from."""
    if isinstance(error, Fault):
        return str(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"[:500]


def _say(value: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
