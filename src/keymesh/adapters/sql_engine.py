"""Connections to the read model's database: which, how safe, how long to wait, and what a failure means to callers.

A database is one SQLite file, or PostgreSQL as an ordered list of endpoints: each new connection goes to the first
that takes writes, so a standby is passed over until it is promoted; and it is kept to while it answers, so that a
former primary that comes back is not mixed with its successor.  PostgreSQL is spoken to over TLS with a CA that is
named and a host name that is checked, or over a Unix socket; passwords come from a file (``passfile``) or the URL.
After a failure nothing is tried for a while that doubles up to ``BACKOFF_MAX_S``, so that callers hear at once.  A
server that stands still keeps its connections open and says nothing: ``interrupt_if_stuck`` shuts them from outside.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final
from weakref import WeakSet

import sqlalchemy as sa
from sqlalchemy import exc

from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable

CONNECT_TIMEOUT_S: Final = 3
BACKOFF_MIN_S, BACKOFF_MAX_S = 0.1, 5.0
STUCK_S = 20.0
"""Longer than any statement may take."""
SESSION: Final = {
    "statement_timeout": "15s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "10s",
    "timezone": "UTC",
}
"""Of every PostgreSQL session.  A replica that stands still inside a transaction loses its locks with its session."""

_PG_OPTIONS: Final = frozenset({"sslmode", "sslrootcert", "sslcert", "sslkey", "passfile"})
_DAMAGED: Final = frozenset({"XX001", "XX002"})  # data_corrupted, index_corrupted


def sql_engine(urls: Sequence[str], connect: Callable[[Sequence[dict[str, Any]]], Any]) -> sa.Engine:
    """An engine that has not connected yet; ``connect`` is given PostgreSQL's endpoints.

    Raises Refused for URLs that are not as the module says.
    """
    parsed = [_parsed(url) for url in urls]
    if not parsed:
        raise Refused.bad_field("database", "at least one URL")
    if len(parsed) == 1 and parsed[0].get_backend_name() == "sqlite":
        engine = sa.create_engine(parsed[0])
        sa.event.listen(engine, "connect", _tune_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    if any(url.get_backend_name() != "postgresql" for url in parsed):
        raise Refused.bad_field("database", "one sqlite:///FILE, or postgresql:// URLs only")
    endpoints = [_endpoint(url) for url in parsed]
    try:
        return sa.create_engine(
            "postgresql+psycopg://",
            creator=lambda: connect(endpoints),
            pool_size=2,
            max_overflow=4,
            pool_timeout=CONNECT_TIMEOUT_S,
            pool_pre_ping=True,
        )
    except ImportError as missing:
        raise Refused(
            "missing-extra", "PostgreSQL needs what `pip install 'keymesh[full]'` installs", field="database"
        ) from missing


def shown(url: str) -> str:
    """``url`` for people: no password."""
    return _parsed(url).render_as_string(hide_password=True)


def _parsed(url: str) -> sa.URL:
    try:
        return sa.make_url(url)
    except exc.ArgumentError as bad:
        raise Refused.bad_field("database", "a URL, as in postgresql://USER@HOST/NAME?sslrootcert=CA.pem") from bad


def _endpoint(url: sa.URL) -> dict[str, Any]:
    """What psycopg is given for ``url``.  Nothing that decides about trust is left to the environment."""
    options = dict(url.query)
    unknown = sorted(options.keys() - _PG_OPTIONS)
    if unknown:
        raise Refused.bad_field("database", f"{unknown[0][:64]!r} is not one of {', '.join(sorted(_PG_OPTIONS))}")
    if not url.host or not url.database or not url.username:
        raise Refused.bad_field("database", "host, user and database name are all given")
    local = url.host.startswith("/")
    if local:
        options["sslmode"] = "disable"
    elif options.setdefault("sslmode", "verify-full") != "verify-full" or options.get("sslrootcert", "system") in (
        "system",
        "",
    ):
        raise Refused.bad_field("database", "sslmode is verify-full, and sslrootcert names the CA's file")
    return {
        "host": url.host,
        "port": url.port or 5432,
        "user": url.username,
        "password": url.password or "",
        "dbname": url.database,
        "connect_timeout": CONNECT_TIMEOUT_S,
        "target_session_attrs": "read-write",
        "gssencmode": "disable",
        "ssl_min_protocol_version": "TLSv1.3",
        "client_encoding": "utf8",
        "application_name": "keymesh-registry",
        "tcp_user_timeout": 10_000,
        "keepalives_idle": 10,
        "keepalives_interval": 3,
        "keepalives_count": 3,
        **options,
    }


def _tune_sqlite(connection: Any, _record: Any) -> None:
    """The log is the truth, so the projection may lose its last commits at a power cut, never its consistency."""
    connection.isolation_level = None  # transactions are begun below
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA busy_timeout=5000")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")


class Database:
    """Transactions on one engine; counts failures, and fails at once while it waits after one."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._connections: WeakSet[Any] = WeakSet()
        self._found: dict[str, Any] | None = None
        self._progress: dict[int, float] = {}  # of each thread in a transaction: when it last got on
        self.engine = sql_engine(urls, self._connect)
        self.dialect = self.engine.dialect.name
        self._delay_s = 0.0
        self._not_before = 0.0
        for event in ("before_cursor_execute", "after_cursor_execute", "commit"):
            sa.event.listen(self.engine, event, self._got_on)

    def _connect(self, endpoints: Sequence[dict[str, Any]]) -> Any:
        """A connection to the first endpoint that takes writes; once one was found it stays the first.

        Raises psycopg.OperationalError where none does.
        """
        import psycopg  # imported where PostgreSQL is used: it comes with an extra

        session = " ".join(f"-c {name}={value}" for name, value in SESSION.items())
        failures = []
        for endpoint in sorted(endpoints, key=lambda endpoint: endpoint is not self._found):
            self._got_on()
            try:
                made = psycopg.connect(**endpoint, options=session)
            except psycopg.OperationalError as failed:
                failures.append(failed)
            else:
                self._connections.add(made)
                self._found = endpoint
                return made
        raise failures[0]

    def _got_on(self, *_: Any) -> None:
        self._progress[threading.get_ident()] = time.monotonic()

    def interrupt_if_stuck(self) -> None:
        """Any thread: shut every connection where a transaction has waited ``STUCK_S`` for a server that is silent."""
        now = time.monotonic()
        if any(now - since >= STUCK_S for since in list(self._progress.values())):
            for connection in list(self._connections):
                with suppress(Exception):  # closed meanwhile: as wanted
                    with socket.socket(fileno=os.dup(connection.fileno())) as wire:
                        wire.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """One transaction that may write; committed at the end, or nothing of it is.

        Raises Unavailable where the database does not answer, or the outcome of the commit is open.
        """
        with self._guarded(), self.engine.execution_options(writes=True).begin() as db:
            yield db

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """One transaction that sees one state.  Raises Unavailable."""
        options: dict[str, Any] = {}
        if self.dialect == "postgresql":
            options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        with self._guarded(), self.engine.execution_options(**options).begin() as db:
            yield db

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        left_s = self._not_before - time.monotonic()
        if left_s > 0:
            raise _away(retry_after_ms=int(left_s * 1000) + 1)
        self._got_on()
        try:
            yield
        except (exc.DBAPIError, exc.TimeoutError) as failed:
            error = translated(failed)
            if isinstance(error, Unavailable):
                self._delay_s = min(BACKOFF_MAX_S, max(BACKOFF_MIN_S, 2 * self._delay_s))
                self._not_before = time.monotonic() + self._delay_s
            raise error from failed
        finally:
            self._progress.pop(threading.get_ident(), None)
        self._delay_s = 0.0

    def close(self) -> None:
        self.engine.dispose()


def translated(failed: exc.SQLAlchemyError) -> KeymeshError:
    """What a caller is told: stored data that cannot be right is Integrity; all else may pass, Unavailable."""
    origin = getattr(failed, "orig", None)
    plain_sqlite = type(failed) is exc.DatabaseError and type(origin).__module__ == "sqlite3"
    if isinstance(failed, exc.IntegrityError) or plain_sqlite or getattr(origin, "sqlstate", None) in _DAMAGED:
        return Integrity("projection-damaged", "the read model's database holds what it cannot hold", field="database")
    return _away()


def _away(retry_after_ms: int = 1_000) -> Unavailable:
    return Unavailable("projection", "the read model's database does not answer", retry_after_ms=retry_after_ms)
