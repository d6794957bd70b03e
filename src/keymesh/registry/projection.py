"""The read model: what one entry changes in the tables that people and pages read.  Pure; a port for the adapter.

The projection decides nothing and is never asked for permission; it can be thrown away and made again from the log.
What it holds at an index follows from the log alone, so it is no matter which replica wrote it, and any replica can
tell whether it is right; ``expected`` says what follows from a namespace's rows.
Source: DESIGN section 2 ("all else is a projection of it"), section 4 (the outbox).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from keymesh.control import reduce
from keymesh.control.entry import Leaf, SignedEntry
from keymesh.control.kinds import KINDS
from keymesh.control.rows import PolicyRow, Rows, decode, get
from keymesh.model import strict_json
from keymesh.model.errors import KeymeshError
from keymesh.model.ids import MESH_NAMESPACE
from keymesh.registry.records import KillRecord

Key = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Put:
    """Write ``values`` into the row of ``table`` that ``key`` names, whatever is there."""

    table: str
    key: Key
    values: tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Delete:
    table: str
    key: Key


Change = Put | Delete


class Fenced(KeymeshError):
    """Another replica has taken the place of the writer: write nothing, or take the place anew and read the log."""


LogRead = tuple[int, Sequence[tuple[int, SignedEntry]]]
"""Index of the log, and entries in its order."""

Commit = tuple[int, Sequence[SignedEntry]]
"""Its index, and its entries."""


class Projection(Protocol):
    """Tables brought forward one commit at a time by the replica that holds the writer's place.

    Every method raises Unavailable where the database does not answer.
    """

    def index(self) -> int:
        """Of the last commit taken."""
        ...

    def take_place(self) -> int:
        """Become the one that writes; the fencing token.  Whoever had the place is fenced from now on."""
        ...

    def apply(self, index: int, entries: Sequence[SignedEntry]) -> None:
        """Take the commit at ``index``: once, in order.  Raises Fenced; Integrity where it skips or rewrites."""
        ...

    def apply_all(self, commits: Sequence[Commit]) -> None:
        """As ``apply``, of several commits in order: costs little more than one."""
        ...

    def catch_up(self, read: LogRead) -> None:
        """Take what a read of the log after ``index()`` gave.  Raises as ``apply``."""
        ...

    def verify(self, read: LogRead) -> bool:
        """Whether all that is held follows from the whole log; False where it has moved beyond ``read`` meanwhile.

        Raises Integrity, and from then on answers nobody until it is rebuilt.
        """
        ...

    def sample(self, log_index: int, heads: Mapping[str, Leaf], namespace: str) -> bool:
        """As ``verify``, of one namespace, by the log's heads."""
        ...

    def doubt(self) -> str | None:
        """Why it answers nobody; None where it does."""
        ...

    def rebuild(self, read: LogRead) -> None:
        """Make it anew from the whole log.  It answers again once all of that was taken and verified."""
        ...

    def put_kill(self, record: KillRecord) -> None:
        """Show a kill-switch record as it now stands.  Raises Fenced."""
        ...

    def delivered(self, region: str, namespace: str, seq: int) -> None:
        """Forget outbox lines that ``region`` has acknowledged, up to ``seq``.  Raises Fenced."""
        ...


def project(index: int, signed: SignedEntry, before: Rows) -> tuple[dict[str, bytes], tuple[Change, ...]]:
    """The rows after ``signed``, and what it changes in the tables.  Raises Refused where it does not fit."""
    after = reduce.apply(before, signed.entry)
    changes: list[Change] = [entry_row(index, signed), _head(index, signed)]
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old != new:
            changes.extend(_row(signed.entry.namespace, name, new))
    changes.extend(_outbox(index, signed, after))
    return after, tuple(changes)


def entry_row(index: int, signed: SignedEntry) -> Put:
    """The line of ``entries`` for ``signed``."""
    entry = signed.entry
    return Put(
        "entries",
        (("namespace", entry.namespace), ("seq", entry.seq)),
        (
            ("idx", index),
            ("epoch", entry.epoch),
            ("kind", entry.kind),
            ("actor", _cell(entry.actor)),
            ("correlation_id", entry.correlation_id),
            ("command_id", entry.command_id),
            ("issued_at", entry.issued_at),
            ("entry_hash", signed.hash),
        ),
    )


def _head(index: int, signed: SignedEntry) -> Put:
    entry = signed.entry
    values = (
        ("epoch", entry.epoch),
        ("seq", entry.seq),
        ("entry_hash", signed.hash),
        ("state", entry.state),
        ("idx", index),
    )
    return Put("heads", (("namespace", entry.namespace),), values)


def _row(namespace: str, name: str, raw: bytes | None) -> list[Change]:
    """A desired-state row: as it is, and typed, where there is a table for it."""
    plain: Key = (("namespace", namespace), ("name", name))
    if raw is None:
        typed = _typed_key(namespace, name)
        return [Delete("rows", plain), *([Delete(*typed)] if typed else [])]
    changes: list[Change] = [Put("rows", plain, (("value", raw),))]
    typed = _typed_key(namespace, name)
    if typed is not None:
        fields = msgspec.to_builtins(decode(name, raw))
        values = tuple(sorted((_COLUMNS.get(k, k), _cell(v)) for k, v in fields.items() if not _is_whole_only(name, k)))
        changes.append(Put(typed[0], typed[1], values))
    return changes


def expected(namespace: str, rows: Rows) -> dict[tuple[str, Key], dict[str, Any]]:
    """Every typed row that follows from the desired state ``rows``: (table, key) -> values, those not null."""
    found: dict[tuple[str, Key], dict[str, Any]] = {}
    for name, raw in rows.items():
        for change in _row(namespace, name, raw):
            if isinstance(change, Put) and change.table != "rows":
                found.setdefault((change.table, change.key), {}).update(change.values)
    return found


_WHOLE_ONLY: Final = frozenset({"keystore_schema"})
"""Fields that came after the tables did and that nobody looks rows up by: they are read from the whole row."""


def _is_whole_only(name: str, field: str) -> bool:
    return field in _WHOLE_ONLY or (name == "standby" and field == "seq")


_COLUMNS: Final = {"keys": "key_set"}
_SINGLE: Final = {"policy": "tenants", "standby": "tenants", "labels": "tenants"}
"""The signers' word on Standby stands in place of the policy's, which it sorts after."""


def _cell(value: Any) -> Any:
    """As a column holds it.  No NUL: PostgreSQL takes none in text, and an entry must not stop the projection."""
    if isinstance(value, list | tuple | dict):
        return strict_json.dumps(value).decode()
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value


def _typed_key(namespace: str, name: str) -> tuple[str, Key] | None:
    """(table, key) of the typed row for ``name``, None where only the plain one is kept."""
    head, _, rest = name.partition("/")
    tenant = (("tenant", namespace),)
    if namespace == MESH_NAMESPACE:
        match head:
            case "region":
                return "regions", (("region", rest),)
            case "node":
                region, _, node = rest.partition("/")
                return "nodes", (("region", region), ("node", node))
            case "restriction":
                return "restrictions", (("namespace", namespace), ("scope", rest))
        return None
    match head:
        case "policy" | "standby" | "labels":
            return _SINGLE[head], tenant
        case "binding":
            return "bindings", (*tenant, ("binding", rest))
        case "service":
            return "services", (*tenant, ("service", rest))
        case "key":
            key, _, version = rest.rpartition("/")
            return "keys", (*tenant, ("key", key), ("version", int(version)))
        case "restriction":
            return "restrictions", (("namespace", namespace), ("scope", rest))
    return None


def _outbox(index: int, signed: SignedEntry, rows: Rows) -> list[Change]:
    """One line for each region that is to hear of the entry; by residency, ``*`` for all."""
    entry = signed.entry
    policy = get(rows, "policy", PolicyRow)
    regions = ("*",) if entry.namespace == MESH_NAMESPACE or policy is None else policy.regions
    return [
        Put(
            "outbox",
            (("namespace", entry.namespace), ("seq", entry.seq), ("region", region)),
            (("idx", index), ("lane", int(KINDS[entry.kind].lane)), ("correlation_id", entry.correlation_id)),
        )
        for region in regions
    ]
