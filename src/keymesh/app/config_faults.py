"""What is wrong with a configuration: every fault with its field, the line where it stands and the reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from keymesh.model.errors import Refused

FAULTS_MAX = 100


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """``field``: dotted place, empty for the file as a whole.  ``line``: from 1, None where it stands in none.

    ``reason`` never quotes a value: what was written in the wrong place may be a secret.
    """

    field: str
    line: int | None
    reason: str

    def __str__(self) -> str:
        where = "" if self.line is None else f"line {self.line}: "
        return f"{where}{self.field}: {self.reason}" if self.field else f"{where}{self.reason}"


class BadConfig(Refused):
    """A configuration with faults, in the order of their lines."""

    def __init__(self, source: str, faults: Iterable[Fault]) -> None:
        unique = dict.fromkeys(faults)
        self.faults = tuple(sorted(unique, key=lambda f: (f.line is None, f.line or 0, f.field)))[:FAULTS_MAX]
        more = f" (and {len(self.faults) - 1} more)" if len(self.faults) > 1 else ""
        super().__init__("bad-config", f"{source}: {self.faults[0]}{more}", field=self.faults[0].field or None)
