"""The read model's tables, for SQLite and PostgreSQL alike, and the revisions that led to them.

Text has no length of its own: what the log took must fit here.  On PostgreSQL it is compared by its bytes, as SQLite
does it: pages come in one order everywhere, and no index depends on the version of an operating system's locales.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

REVISIONS: Final = ("0001", "0002")
"""Oldest first; each is a file of ``migrations/versions``.  The last one makes the tables below."""

META: Final = sa.MetaData()
_TEXT: Final = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_BIG: Final = sa.BigInteger


def _table(name: str, *columns: sa.Column[Any]) -> sa.Table:
    return sa.Table(name, META, *columns)


def _key(name: str, kind: Any = _TEXT) -> sa.Column[Any]:
    return sa.Column(name, kind, primary_key=True, autoincrement=False)


def _col(name: str, kind: Any = _TEXT, *, null: bool = True) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=null)


PLACE: Final = _table(
    "projection_index",
    _key("id", sa.Integer),
    _col("idx", _BIG, null=False),
    sa.Column("token", _BIG, nullable=False, server_default="0"),
    sa.Column("holder", _TEXT, nullable=False, server_default=""),
    sa.Column("mesh", _TEXT, nullable=False, server_default=""),
    _col("doubt"),
)
"""One row: index of the last commit taken; who may write, under which fencing token; of which mesh;
why no answer is given, if so."""
ENTRIES: Final = _table(
    "entries",
    _key("namespace"),
    _key("seq", _BIG),
    _col("idx", _BIG, null=False),
    _col("epoch", _BIG),
    _col("kind"),
    _col("actor"),
    _col("correlation_id"),
    _col("command_id"),
    _col("issued_at", _BIG),
    _col("entry_hash"),
)
sa.Index("entries_idx", ENTRIES.c.idx)
sa.Index("entries_command", ENTRIES.c.namespace, ENTRIES.c.command_id, unique=True)
HEADS: Final = _table(
    "heads",
    _key("namespace"),
    _col("epoch", _BIG),
    _col("seq", _BIG),
    _col("entry_hash"),
    _col("state"),
    _col("idx", _BIG),
)
ROWS: Final = _table("rows", _key("namespace"), _key("name"), _col("value", sa.LargeBinary))
TENANTS: Final = _table(
    "tenants",
    _key("tenant"),
    _col("version", _BIG),
    _col("home"),
    _col("domain"),
    _col("regions"),
    _col("admins"),
    _col("ttl_ms", _BIG),
    _col("standby"),
    _col("labels"),
)
BINDINGS: Final = _table(
    "bindings", _key("tenant"), _key("binding"), _col("provider"), _col("descriptor"), _col("state")
)
SERVICES: Final = _table(
    "services",
    _key("tenant"),
    _key("service"),
    _col("version", _BIG),
    _col("custody"),
    _col("edge_ttl_ms", _BIG),
    _col("mint_budget", _BIG),
    _col("open_budget", _BIG),
)
KEYS: Final = _table(
    "keys",
    _key("tenant"),
    _key("key"),
    _key("version", _BIG),
    _col("kid"),
    _col("revision", _BIG),
    _col("state"),
    _col("digest"),
    _col("parent"),
)
RESTRICTIONS: Final = _table(
    "restrictions",
    _key("namespace"),
    _key("scope"),
    _col("state"),
    _col("seq", _BIG),
    _col("command_id"),
)
REGIONS: Final = _table(
    "regions",
    _key("region"),
    _col("domain"),
    _col("failure_domain"),
    _col("ca_fingerprint"),
    _col("ivk_generation", _BIG),
)
NODES: Final = _table("nodes", _key("region"), _key("node"), _col("signing_key"))
OUTBOX: Final = _table(
    "outbox",
    _key("namespace"),
    _key("seq", _BIG),
    _key("region"),
    _col("idx", _BIG),
    _col("lane", sa.Integer),
    _col("correlation_id"),
)
sa.Index("outbox_order", OUTBOX.c.region, OUTBOX.c.lane, OUTBOX.c.idx)
KILLS: Final = _table(
    "kill_records",
    _key("namespace"),
    _key("command_id"),
    _col("scope"),
    _col("action"),
    _col("status"),
    _col("seq", _BIG),
    _col("committed_at", _BIG),
    _col("t", _BIG),
    _col("certified_at", _BIG),
    _col("holders"),
)
