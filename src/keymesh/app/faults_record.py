"""What a client of a mesh under faults was told, and what it finds of it afterwards.

The record is the client's own: it believes no component about itself.  A command counts once its answer has come; a
data key once its blob has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

KEEP_MAX: Final = 4_000
"""Blobs remembered for each service: the first ones, then a thinning sample of the rest."""


@dataclass(frozen=True, slots=True)
class Done:
    """An acknowledged command: its place in its namespace."""

    command_id: str
    namespace: str
    kind: str
    seq: int


@dataclass(slots=True)
class Record:
    """``acknowledged`` counts commands and data keys; ``violations`` says in words what must not be."""

    commands: list[Done] = field(default_factory=list)
    minted: dict[tuple[str, str], list[tuple[str, str]]] = field(default_factory=dict)
    keys: int = 0
    uses: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    checked: int = 0
    """How many of ``commands`` have been looked up since they were acknowledged."""

    @property
    def acknowledged(self) -> int:
        return len(self.commands) + self.keys

    def acknowledge(self, done: Done) -> None:
        self.commands.append(done)

    def mint(self, tenant: str, service: str, blob: str, key: str) -> None:
        """One more data key that an Edge gave out."""
        self.keys += 1
        kept = self.minted.setdefault((tenant, service), [])
        if len(kept) < KEEP_MAX:
            kept.append((blob, key))
        elif self.keys % 16 == 0:
            kept[self.keys // 16 % KEEP_MAX] = (blob, key)

    def unchecked(self) -> list[Done]:
        return self.commands[self.checked :]


def twice(commands: Iterable[Done]) -> list[str]:
    """Places in the log that two commands were given, in words."""
    seen: dict[tuple[str, int], str] = {}
    found = []
    for done in commands:
        other = seen.setdefault((done.namespace, done.seq), done.command_id)
        if other != done.command_id:
            found.append(f"{done.namespace}:{done.seq} was given to {other} and to {done.command_id}")
    return found


def sample(kept: list[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """``count`` of them, spread evenly, the newest included."""
    if len(kept) <= count:
        return list(kept)
    step = len(kept) / count
    return [kept[len(kept) - 1 - int(n * step)] for n in range(count)]
