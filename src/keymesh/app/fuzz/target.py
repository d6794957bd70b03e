"""What a fuzz target is: valid inputs, how to spoil them, and what must hold for whatever comes.

A target refuses bad input itself; what it lets out is a fault.  ``make`` and ``run`` depend on their arguments alone,
so an input is known by its seed and number.
"""

from __future__ import annotations

import importlib
import random
from typing import Final, Protocol

from keymesh.model.errors import Refused


class Target(Protocol):
    def make(self, rng: random.Random) -> bytes:
        """One input, valid or spoilt, of at most a few MB."""
        ...

    def run(self, data: bytes) -> None:
        """Feed it to what is tested.  Raises where that misbehaves; a documented refusal is no fault."""
        ...


TARGETS: Final = {
    "aws": "keymesh.app.fuzz.aws:AwsTarget",
    "blob": "keymesh.app.fuzz.blob:BlobTarget",
    "http": "keymesh.app.fuzz.http:HttpTarget",
    "kmip": "keymesh.app.fuzz.kmip:KmipTarget",
    "transit": "keymesh.app.fuzz.transit:TransitTarget",
    "ttlv": "keymesh.app.fuzz.ttlv:TtlvTarget",
}
"""name on the command line -> module and class."""


class Fault(Exception):
    """What was fed broke something that must hold."""


def load(place: str) -> Target:
    """The target at ``MODULE:CLASS``."""
    module, _, name = place.partition(":")
    made: Target = getattr(importlib.import_module(module), name)()
    return made


def place_of(name: str) -> str:
    """Where the target ``name`` lies.  Raises Refused naming those there are."""
    if name not in TARGETS:
        raise Refused("not-found", f"no such target: {name}; there are {', '.join(sorted(TARGETS))}", field="target")
    return TARGETS[name]


def input_of(target: Target, seed: int, number: int) -> bytes:
    """Input ``number`` of ``seed``: always the same bytes."""
    return target.make(random.Random(f"{seed}:{number}"))
