"""The tables as release 0.1.0 made them without a revision: on its SQLite files nothing is left to do here."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def _key(name: str, kind: Any = _TEXT) -> sa.Column[Any]:
    return sa.Column(name, kind, primary_key=True, autoincrement=False)


def upgrade() -> None:
    """Every table, unless it is there."""
    op.create_table(
        "projection_index",
        _key("id", sa.Integer),
        sa.Column("idx", sa.BigInteger, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "entries",
        _key("namespace"),
        _key("seq", sa.BigInteger),
        sa.Column("idx", sa.BigInteger, nullable=False),
        sa.Column("epoch", sa.BigInteger),
        sa.Column("kind", _TEXT),
        sa.Column("actor", _TEXT),
        sa.Column("correlation_id", _TEXT),
        sa.Column("command_id", _TEXT),
        sa.Column("issued_at", sa.BigInteger),
        sa.Column("entry_hash", _TEXT),
        if_not_exists=True,
    )
    op.create_table(
        "heads",
        _key("namespace"),
        sa.Column("epoch", sa.BigInteger),
        sa.Column("seq", sa.BigInteger),
        sa.Column("entry_hash", _TEXT),
        sa.Column("state", _TEXT),
        sa.Column("idx", sa.BigInteger),
        if_not_exists=True,
    )
    op.create_table(
        "rows",
        _key("namespace"),
        _key("name"),
        sa.Column("value", sa.LargeBinary),
        if_not_exists=True,
    )
    op.create_table(
        "tenants",
        _key("tenant"),
        sa.Column("version", sa.BigInteger),
        sa.Column("home", _TEXT),
        sa.Column("domain", _TEXT),
        sa.Column("regions", _TEXT),
        sa.Column("admins", _TEXT),
        sa.Column("ttl_ms", sa.BigInteger),
        sa.Column("standby", _TEXT),
        sa.Column("labels", _TEXT),
        if_not_exists=True,
    )
    op.create_table(
        "bindings",
        _key("tenant"),
        _key("binding"),
        sa.Column("provider", _TEXT),
        sa.Column("descriptor", _TEXT),
        sa.Column("state", _TEXT),
        if_not_exists=True,
    )
    op.create_table(
        "services",
        _key("tenant"),
        _key("service"),
        sa.Column("version", sa.BigInteger),
        sa.Column("custody", _TEXT),
        sa.Column("edge_ttl_ms", sa.BigInteger),
        sa.Column("mint_budget", sa.BigInteger),
        sa.Column("open_budget", sa.BigInteger),
        if_not_exists=True,
    )
    op.create_table(
        "keys",
        _key("tenant"),
        _key("key"),
        _key("version", sa.BigInteger),
        sa.Column("kid", _TEXT),
        sa.Column("revision", sa.BigInteger),
        sa.Column("state", _TEXT),
        sa.Column("digest", _TEXT),
        sa.Column("parent", _TEXT),
        if_not_exists=True,
    )
    op.create_table(
        "restrictions",
        _key("namespace"),
        _key("scope"),
        sa.Column("state", _TEXT),
        sa.Column("seq", sa.BigInteger),
        sa.Column("command_id", _TEXT),
        if_not_exists=True,
    )
    op.create_table(
        "regions",
        _key("region"),
        sa.Column("domain", _TEXT),
        sa.Column("failure_domain", _TEXT),
        sa.Column("ca_fingerprint", _TEXT),
        sa.Column("ivk_generation", sa.BigInteger),
        if_not_exists=True,
    )
    op.create_table(
        "nodes",
        _key("region"),
        _key("node"),
        sa.Column("signing_key", _TEXT),
        if_not_exists=True,
    )
    op.create_table(
        "outbox",
        _key("namespace"),
        _key("seq", sa.BigInteger),
        _key("region"),
        sa.Column("idx", sa.BigInteger),
        sa.Column("lane", sa.Integer),
        sa.Column("correlation_id", _TEXT),
        if_not_exists=True,
    )
    op.create_table(
        "kill_records",
        _key("namespace"),
        _key("command_id"),
        sa.Column("scope", _TEXT),
        sa.Column("action", _TEXT),
        sa.Column("status", _TEXT),
        sa.Column("seq", sa.BigInteger),
        sa.Column("committed_at", sa.BigInteger),
        sa.Column("t", sa.BigInteger),
        sa.Column("certified_at", sa.BigInteger),
        sa.Column("holders", _TEXT),
        if_not_exists=True,
    )
    op.create_index("entries_idx", "entries", ["idx"], unique=False, if_not_exists=True)
    op.create_index("entries_command", "entries", ["namespace", "command_id"], unique=True, if_not_exists=True)
    op.create_index("outbox_order", "outbox", ["region", "lane", "idx"], unique=False, if_not_exists=True)
