"""Ports on loopback."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path
from typing import Final

LOWEST: Final = 10_240
_EPHEMERAL: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_EPHEMERAL_LOW_DEFAULT: Final = 32_768
_PORTS: Final = 65_536
_drawn: Final[set[int]] = set()


def free_ports(count: int) -> list[int]:
    """Distinct ports that were free on loopback just now, and that no outgoing connection will be given.

    Those come from a range of the system's own above; between the choice and the server's start, which may be a minute
    apart, any connection on this machine could have taken such a port.  What this process has drawn before it does not
    draw again: a mesh draws several times before anything listens.
    """
    drawn = random.SystemRandom()
    above = min(max(ephemeral_low(), LOWEST + 8 * count + 1_024), _PORTS)
    found: list[int] = []
    with contextlib.ExitStack() as held:
        for port in drawn.sample(range(LOWEST, above), above - LOWEST):
            if len(found) == count:
                return found
            one = held.enter_context(socket.socket())
            if port in _drawn:
                continue
            with contextlib.suppress(OSError):
                one.bind(("127.0.0.1", port))
                found.append(port)
                _drawn.add(port)
    raise OSError(f"no {count} free ports from {LOWEST} to {above}")


def ephemeral_low() -> int:
    """The first port that the system gives to outgoing connections."""
    try:
        return int(_EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _EPHEMERAL_LOW_DEFAULT
