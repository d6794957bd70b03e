"""Run by Alembic: the revisions, in the transaction that ``sql_migrate`` has begun."""

from __future__ import annotations

from alembic import context

from keymesh.adapters.sql_schema import META

context.configure(connection=context.config.attributes["connection"], target_metadata=META)
with context.begin_transaction():
    context.run_migrations()
