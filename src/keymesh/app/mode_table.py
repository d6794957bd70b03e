"""The mode table of ``docs/resilience.md``, made by asking ``core.may`` itself: ``python -m keymesh.app.mode_table``.

With a file's name it puts the tables into that page, between its two markers; without, it prints them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace

from keymesh.core.may import FRESH_INTERVALS, Grantor, MayContext, may
from keymesh.model.states import KeyState, Mode, Operation
from keymesh.model.time import Instant

BEGIN: Final = "<!-- mode table: made by python -m keymesh.app.mode_table docs/resilience.md -->"
END: Final = "<!-- end of the mode table -->"

_NOW: Final = Instant(1_000_000)
_LIVE: Final = Instant(_NOW + 1)
_OVER: Final = _NOW  # a deadline's own instant is expired
_INTERVAL_MS: Final = 10_000
_SILENT: Final = Instant(_NOW - FRESH_INTERVALS * _INTERVAL_MS - 1)
_SYNCED: Final = MayContext(
    sealed=False,
    closed=False,
    restricted_mesh=False,
    restricted_region=False,
    restricted_tenant=False,
    restricted_service=False,
    restricted_key=False,
    restricted_local=False,
    lease_until=_LIVE,
    grantor=Grantor.REGISTRY,
    mesh_lease_until=_LIVE,
    l1_until=_LIVE,
    answered_sent_at=_NOW,
    interval_ms=_INTERVAL_MS,
    key_state=KeyState.ACTIVE,
)
_COLUMNS: Final = {
    Operation.UNWRAP: "decrypt",
    Operation.WRAP: "encrypt, mint",
    Operation.LEASE: "Edge leases",
    Operation.EXPORT: "export",
    Operation.GRANT: "grants",
    Operation.RESTRICT: "restrictions",
}
_WHEN: Final[dict[Mode, tuple[str, dict[str, Any]]]] = {
    Mode.SYNCED: ("lease from the Registry, and it answers", {}),
    Mode.AUTONOMOUS: (
        f"lease from the Registry, which has not answered for {FRESH_INTERVALS} heartbeats",
        {"answered_sent_at": _SILENT},
    ),
    Mode.STANDBY: (
        "lease from a majority of the voters",
        {"answered_sent_at": _SILENT, "grantor": Grantor.VOTERS},
    ),
    Mode.CLOSED: ("no valid lease", {"lease_until": _OVER}),
    Mode.SEALED: ("no MasterKey", {"sealed": True}),
}
_OTHERWISE: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("nobody knows whether it is sealed", {"sealed": None}),
    ("a fork, an unknown kind, L1 denied, a restriction that could not be recorded", {"closed": True}),
    ("the tenant's governance lease is over", {"lease_until": _OVER}),
    ("the mesh's own lease is over", {"mesh_lease_until": _OVER}),
    ("the L1 lease is over: L1 unreachable for its ttl", {"l1_until": _OVER}),
    ("nobody knows who granted the lease", {"grantor": None}),
    ("the Registry is silent", {"answered_sent_at": _SILENT}),
    ("the mesh is suspended or revoked", {"restricted_mesh": True}),
    ("the region is", {"restricted_region": True}),
    ("the tenant is", {"restricted_tenant": True}),
    ("the service is", {"restricted_service": True}),
    ("the key version is", {"restricted_key": True}),
    ("a suspension that was issued at this region", {"restricted_local": True}),
    ("the key version is Deactivated", {"key_state": KeyState.DEACTIVATED}),
    ("the key version is Compromised", {"key_state": KeyState.COMPROMISED}),
)


def _row(first: str, changes: dict[str, Any], *, names_mode: bool) -> list[str]:
    ctx = replace(_SYNCED, **changes)
    verdicts = {operation: may(ctx, operation, _NOW) for operation in _COLUMNS}
    modes = {verdict.mode for verdict in verdicts.values()}
    assert len(modes) == 1, "a mode does not depend on the operation"
    reasons = sorted({verdict.reason for verdict in verdicts.values()} - {""})
    mode = modes.pop().name
    head = [first, mode, ", ".join(f"`{reason}`" for reason in reasons)] if names_mode else [mode, first]
    return [*head, *("yes" if verdicts[operation].allowed else "no" for operation in _COLUMNS)]


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def tables() -> str:
    """Markdown: what each mode allows, then what one thing that is not as in SYNCED does."""
    columns = list(_COLUMNS.values())
    modes = [_row(when, changes, names_mode=False) for when, changes in _WHEN.values()]
    one = [_row(what, changes, names_mode=True) for what, changes in _OTHERWISE]
    lines = _table(["mode", "when", *columns], modes)
    lines += ["", "One thing is not as in SYNCED:", ""]
    lines += _table(["what", "mode", "the refusal says", *columns], one)
    return "\n".join(lines)


def put_into(page: str) -> str:
    """``page`` with the tables as they are now.  Raises ValueError where its markers are not there, in order."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page needs the lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


def main(argv: list[str]) -> int:
    if not argv:
        print(tables())
        return 0
    page = Path(argv[0])
    page.write_text(put_into(page.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
