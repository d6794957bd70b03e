"""Which schema a database has, and how it gets the one that this release needs.

SQLite is brought forward when it is opened: a new file is made at the last revision without Alembic, an older one runs
the revisions, or, where Alembic is not installed, is made anew and filled from the log.  PostgreSQL is shared, so only
``keymesh registry migrate`` changes it: an older schema is refused with that command, a newer one before anything is
touched.  Alembic takes half a second to import and is imported only where revisions run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from keymesh.adapters.sql_engine import Database, shown
from keymesh.adapters.sql_schema import META, PLACE, REVISIONS
from keymesh.model.errors import Refused

_LOCK: Final = 0x6B65796D657368  # one migration at a time; "keymesh"
_VERSION: Final = sa.table("alembic_version", sa.column("version_num"))


@dataclass(frozen=True, slots=True)
class Migrated:
    """``before`` and ``after``: revisions, None for a database without any; ``applied`` in order."""

    database: str
    before: str | None
    after: str
    applied: tuple[str, ...]


def revision_of(db: sa.Connection) -> str | None:
    """The revision of the schema, None where there is none.  Raises Refused for one that this release does not know."""
    if not sa.inspect(db).has_table("alembic_version"):
        return None
    found = db.execute(sa.select(_VERSION.c.version_num)).scalar()
    if found is not None and found not in REVISIONS:
        raise Refused(
            "schema-newer", f"the database has schema {str(found)[:32]!r}, of a newer release", field="database"
        )
    return None if found is None else str(found)


def require_schema(database: Database) -> None:
    """Make sure that the tables are this release's.  Raises Refused ``schema-newer`` or ``schema-older``, Unavailable.

    SQLite is changed where it must be; PostgreSQL never is.
    """
    with database.reading() as db:
        found = revision_of(db)
        used = found is not None or sa.inspect(db).has_table(PLACE.name)
    if found == REVISIONS[-1]:
        return
    if database.dialect == "postgresql":
        raise Refused(
            "schema-older",
            f"the database has schema {found or 'none'}, not {REVISIONS[-1]}; "
            "run `keymesh registry migrate --database URL`",
            field="database",
        )
    with database.writing() as db:
        if used and find_spec("alembic") is not None:
            _upgrade(db)
        else:
            _make_anew(db)


def migrate(urls: Sequence[str]) -> Migrated:
    """Bring the schema to this release's, in one transaction.  Raises Refused where it is newer, Unavailable."""
    if find_spec("alembic") is None:
        raise Refused("missing-extra", "migrations need what `pip install 'keymesh[full]'` installs")
    database = Database(urls)
    try:
        with database.writing() as db:
            if database.dialect == "postgresql":
                db.execute(sa.text("SET LOCAL statement_timeout = 0"))
                db.execute(sa.text("SET LOCAL idle_in_transaction_session_timeout = 0"))
                db.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            before = revision_of(db)
            if before != REVISIONS[-1]:
                _upgrade(db)
    finally:
        database.close()
    done = 0 if before is None else REVISIONS.index(before) + 1
    return Migrated(shown(urls[0]), before, REVISIONS[-1], REVISIONS[done:])


def _make_anew(db: sa.Connection) -> None:
    """Empty tables at the last revision; the log fills them."""
    META.drop_all(db)
    META.create_all(db)
    db.execute(sa.text("CREATE TABLE IF NOT EXISTS alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
    db.execute(sa.delete(_VERSION))
    db.execute(sa.insert(_VERSION).values(version_num=REVISIONS[-1]))


def _upgrade(db: sa.Connection) -> None:
    """Run the revisions that are missing, on ``db`` and in its transaction."""
    from alembic import command  # see the module: slow, and optional
    from alembic.config import Config

    config = Config(attributes={"connection": db})
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    command.upgrade(config, REVISIONS[-1])
