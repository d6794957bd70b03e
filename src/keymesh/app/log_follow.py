"""Tells the Registry's machine when another replica has appended to the log.

Only a hint: the machine reads what the log holds by itself, at every heartbeat at the latest.  It is the periodic look
that DESIGN section 2 asks for behind any watch, often enough that no watch is needed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from keymesh.control.log import ControlLog
from keymesh.model.errors import Integrity, Unavailable

log = logging.getLogger("keymesh.registry")

AWAY_S: Final = 0.5


async def follow_log(
    control_log: ControlLog,
    *,
    every_ms: int,
    known: Callable[[], int],
    moved: Callable[[int], None],
    broken: Callable[[Integrity], None],
) -> None:
    """Look every ``every_ms``, for ever; ``moved`` gets an index beyond ``known()``, ``broken`` what is no log of ours.

    A log that does not answer is asked again after ``AWAY_S``.
    """
    while True:
        await asyncio.sleep(every_ms / 1000)
        try:
            index, _ = await control_log.read(known(), 1)
        except Unavailable as away:
            log.info("the log is away", extra={"fields": {"reason": away.code}})
            await asyncio.sleep(AWAY_S)
        except Integrity as bad:
            broken(bad)
            return
        else:
            if index > known():
                moved(index)
