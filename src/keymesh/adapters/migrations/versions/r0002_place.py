"""The place: who may write the projection, under which fencing token, of which mesh, and whether it may answer.

The existing row keeps its index; its place is free.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Four columns beside the index."""
    op.add_column("projection_index", sa.Column("token", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("projection_index", sa.Column("holder", _TEXT, nullable=False, server_default=""))
    op.add_column("projection_index", sa.Column("mesh", _TEXT, nullable=False, server_default=""))
    op.add_column("projection_index", sa.Column("doubt", _TEXT))
