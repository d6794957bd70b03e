"""Changes to bytes that know nothing of their form: what every target does beside its own."""

from __future__ import annotations

import random
from typing import Final

INTERESTING: Final = (0x00, 0x01, 0x07, 0x08, 0x0A, 0x0D, 0x20, 0x7F, 0x80, 0xFE, 0xFF)
GROWTH_MAX_BYTES: Final = 4_096


def spoil(rng: random.Random, data: bytes, *, changes_max: int = 4) -> bytes:
    """``data`` with one or more changes: bits, bytes, cuts, repeats, insertions, swaps."""
    spoilt = bytearray(data)
    for _ in range(rng.randint(1, changes_max)):
        at = rng.randrange(len(spoilt) + 1)
        end = min(len(spoilt), at + rng.randint(1, 16))
        match rng.randrange(8):
            case 0 if at < len(spoilt):
                spoilt[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(spoilt):
                spoilt[at] = rng.choice(INTERESTING)
            case 2:
                del spoilt[at:end]
            case 3:
                spoilt[at:at] = rng.randbytes(rng.randint(1, 16))
            case 4:
                spoilt[at:at] = spoilt[at:end] * rng.randint(1, 8)
            case 5:
                del spoilt[at:]
            case 6:
                spoilt[at:at] = bytes((rng.choice(INTERESTING),)) * rng.randint(1, GROWTH_MAX_BYTES)
            case _:
                other = rng.randrange(len(spoilt) + 1)
                spoilt[at:end], spoilt[other : other + end - at] = (
                    spoilt[other : other + end - at],
                    spoilt[at:end],
                )
    return bytes(spoilt)
