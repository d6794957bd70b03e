"""The last words of an Edge that has dropped everything: leases given back, usage not yet recorded.

Best effort, each once and within a short time: whoever ends waits for it, and what is lost costs no safety, only that
certificates wait for the leases' ends, and that receipts are a lower bound.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from keymesh.edge.state import EdgeState
from keymesh.edge.usage import recipient
from keymesh.model.errors import KeymeshError
from keymesh.model.machine import Address, Send

RETURN_S: Final = 0.5
LAST_USAGE_S: Final = 1.0


class Poster(Protocol):
    """What is needed of ``client_transport.CoreTransport``."""

    async def post(self, core: str, message: Any) -> Any: ...


async def say(sends: Iterable[Send], transport: Poster, urls: Mapping[Address, str]) -> None:
    """Send them, all at the same time."""
    await asyncio.gather(*(_say(send, transport, urls) for send in sends))


async def _say(send: Send, transport: Poster, urls: Mapping[Address, str]) -> None:
    with contextlib.suppress(KeymeshError, TimeoutError):
        async with asyncio.timeout(RETURN_S):
            await transport.post(urls[send.to], send.message)


async def tell_usage(
    state: EdgeState, hear: Callable[[Address, Any], None], transport: Poster, urls: Mapping[Address, str]
) -> None:
    """The report in flight, once more under its id, then what was counted since: until nothing is left to tell.

    ``hear`` gives the machine a Core's answer.
    """
    with contextlib.suppress(KeymeshError, TimeoutError):
        async with asyncio.timeout(LAST_USAGE_S):
            while (report := state.usage.in_flight) is not None:
                core = recipient(state)
                hear(core, await transport.post(urls[core], report))
                if state.usage.in_flight is report:
                    return
