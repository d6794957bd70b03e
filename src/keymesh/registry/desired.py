"""When a key version may be used, and when an old binding may go: pure rules over who holds and reports what.

A version stays Pre-Active until two regions that the tenant allows hold its blob (one, where it allows only one), and
becomes Active, and the wrapping version, once every reachable allowed region has loaded it, or after ten minutes.
Source: DESIGN section 1.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from keymesh.control.draft import is_live, key_rows
from keymesh.control.rows import L2_NAME, BindingRow, Rows, get
from keymesh.model.states import KeyState

ACTIVATE_AFTER_MS: Final = 600_000
HOLDERS_MIN: Final = 2


@dataclass(frozen=True, slots=True)
class RegionReport:
    """What one region says: is it reachable, and do all its reachable nodes have what is asked about."""

    reachable: bool
    has: bool


def holders_suffice(allowed: Collection[str], holders: Collection[str]) -> bool:
    """Two allowed regions hold the blob; one, where the tenant allows only one."""
    return len(set(allowed) & set(holders)) >= min(HOLDERS_MIN, len(set(allowed)))


def may_activate(
    allowed: Collection[str], holders: Collection[str], reports: Mapping[str, RegionReport], *, age_ms: int
) -> bool:
    """Whether a Pre-Active version may become Active now."""
    loaded = {region for region, report in reports.items() if report.has}
    if not holders_suffice(allowed, set(holders) | loaded):
        return False
    return age_ms >= ACTIVATE_AFTER_MS or all(r.has for r in reports.values() if r.reachable)


def is_newest(rows: Rows, key: str, version: int) -> bool:
    """Whether no newer usable version of ``key`` exists."""
    usable = (KeyState.PRE_ACTIVE.value, KeyState.ACTIVE.value)
    return all(v <= version for v, row in key_rows(rows, key).items() if row.state in usable)


def retirable(rows: Rows) -> tuple[str, ...]:
    """Bindings in state ``retiring`` under which no live L2 version is wrapped any more."""
    used = {row.parent for row in key_rows(rows, L2_NAME).values() if is_live(row)}
    out = []
    for name in sorted(rows):
        if name.startswith("binding/"):
            row = get(rows, name, BindingRow)
            binding = name.removeprefix("binding/")
            if row is not None and row.state == "retiring" and binding not in used:
                out.append(binding)
    return tuple(out)


def has_retiring(rows: Rows) -> bool:
    names = (n for n in rows if n.startswith("binding/"))
    return any(row is not None and row.state == "retiring" for row in (get(rows, n, BindingRow) for n in names))
