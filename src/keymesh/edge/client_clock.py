"""The raw clocks of an Edge, and which boot of the kernel this is.

Of the library's own I/O: reads, and decides nothing.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

Clock = Callable[[], int]

boot_ns: Final[Clock] = functools.partial(time.clock_gettime_ns, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
wall_ns: Final[Clock] = time.time_ns


@functools.cache
def boot_id() -> str:
    """The kernel's; where it has none, one of this process."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown-" + os.urandom(8).hex()
