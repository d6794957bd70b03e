"""Links to a broker that are lost are made again, after a jittered pause that grows while links do not last."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, Never

from keymesh.model.errors import Integrity, Refused, Unavailable
from keymesh.model.states import Lane

log = logging.getLogger("keymesh.broker")

BACKOFF_MIN_S, BACKOFF_MAX_S = 0.1, 5.0
LASTING_S: Final = 10.0
"""A link that lasted so long was a good one: the next pause is the shortest again."""


async def keep_linked(lane: Lane, once: Callable[[], Awaitable[None]], *, lost: str) -> Never:
    """For ever.  ``once`` makes a link, serves it and ends it; ``lost`` is what is logged when it raises.

    A reason is said once while links do not last.  Raises what is no outage, refusal or damage.
    """
    pause_s, said = BACKOFF_MIN_S, ""
    while True:
        began = time.monotonic()
        try:
            await once()
        except (Unavailable, Refused, Integrity) as reason:
            if time.monotonic() - began > LASTING_S:
                pause_s, said = BACKOFF_MIN_S, ""
            if reason.message != said:
                said = reason.message
                log.warning(lost, extra={"fields": {"lane": int(lane), "code": reason.code, "reason": said}})
        await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
        pause_s = min(BACKOFF_MAX_S, pause_s * 2)
