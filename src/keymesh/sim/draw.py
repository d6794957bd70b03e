"""Randomness by hashing: the n-th draw of one link does not depend on what happens anywhere else.

So a plan item can be deleted and all other draws stay what they were, which is what makes failures shrink.
Integers only, so that no seed depends on PYTHONHASHSEED.
"""

from __future__ import annotations

import zlib
from typing import Final

_MASK: Final = 2**64 - 1
_A: Final = 0x9E3779B97F4A7C15
_B: Final = 0xBF58476D1CE4E5B9
_C: Final = 0x94D049BB133111EB


def mix(seed: int, stream: int, n: int) -> int:
    """64 well-mixed bits for draw ``n`` of ``stream`` (splitmix64's finaliser)."""
    z = (seed * _C + stream * _B + n * _A + _A) & _MASK
    z = ((z ^ (z >> 30)) * _B) & _MASK
    z = ((z ^ (z >> 27)) * _C) & _MASK
    return z ^ (z >> 31)


def stream_of(*words: str) -> int:
    """A stream number for a name."""
    return zlib.crc32("/".join(words).encode())
