"""A PostgreSQL of the test's own: ``app.servers.postgres`` with an owner who may do all, ended by process id."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import psycopg

from keymesh.app.config_endpoint import Endpoint
from keymesh.app.servers import postgres as servers
from keymesh.app.servers.child import ServerProcess
from keymesh.app.servers.infra_ca import InfraCa
from keymesh.app.servers.ports import free_ports

OWNER, PASSWORD = servers.OWNER, "correct horse/battery@staple"
_CONF: Final = "autovacuum = off"


def make_ca(directory: Path, name: str = "ca") -> InfraCa:
    """A certificate authority; its certificate is ``name``.pem."""
    made = InfraCa.make(f"test {name}")
    (directory / f"{name}.pem").write_bytes(made.pem)
    return made


class Postgres:
    """One server.  ``root`` holds its data, its certificate and the CA's."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.port = free_ports(1)[0]
        self.settings = servers.PostgresSettings(
            directory=root, port=self.port, client_certificates=False, superuser=True, conf=_CONF
        )
        self.server: ServerProcess | None = None
        self.databases = 0
        self._infra: InfraCa | None = None

    @property
    def data(self) -> Path:
        return self.settings.data

    @property
    def ca(self) -> Path:
        return self.root / "ca.pem"

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        return None if self.server is None else self.server.process

    # --- making --------------------------------------------------------------------------------------------------

    def init(self) -> None:
        """A new, empty cluster."""
        self._infra = InfraCa.make("test ca")
        self.server = ServerProcess(servers.prepare(self.settings, self._infra, password=PASSWORD))

    # --- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Returns once it answers."""
        assert self.server is not None
        if not self.server.running:
            self.server.spawn()
        self.server.wait_ready()

    def kill(self) -> None:
        """As the kernel would: nothing is flushed, nobody is told."""
        assert self.server is not None
        self.server.signal(signal.SIGKILL)
        self.server.kill()

    def stop(self) -> None:
        """At once: what it leaves is thrown away."""
        if self.server is not None:
            self.server.kill()

    def standby(self, root: Path) -> Postgres:
        """A running copy that follows this server."""
        assert self._infra is not None
        other = Postgres(root)
        servers.write_directory(other.settings, self._infra)
        servers.run_program(
            self.settings, "pg_basebackup", "-d", self.conninfo("postgres"), "-D", other.data, "-R", "-X", "stream",
            "-c", "fast",
        )  # fmt: skip
        servers.write_configuration(other.settings)
        other.server = ServerProcess(servers.plan(other.settings))
        other.start()
        return other

    # --- use -----------------------------------------------------------------------------------------------------

    def conninfo(self, database: str) -> str:
        return psycopg.conninfo.make_conninfo(
            host="localhost",
            port=self.port,
            user=OWNER,
            password=PASSWORD,
            dbname=database,
            sslmode="verify-full",
            sslrootcert=str(self.ca),
            connect_timeout=2,
        )

    def connect(self, database: str) -> psycopg.Connection[Any]:
        return psycopg.connect(self.conninfo(database), autocommit=True)

    def ask(self, database: str, query: str, *values: Any) -> list[Any]:
        """Rows of one statement, as the owner."""
        with self.connect(database) as db:
            done = db.execute(query, values)
            return done.fetchall() if done.description else []

    def new_database(self) -> str:
        """An empty database; its name."""
        self.databases += 1
        name = f"d{os.getpid()}_{self.databases}"
        self.ask("postgres", f"CREATE DATABASE {name}")
        return name

    def url(self, database: str, *, password: str = PASSWORD, ca: Path | None = None, host: str = "localhost") -> str:
        return (
            f"postgresql://{OWNER}:{quote(password, safe='')}@{host}:{self.port}/{database}"
            f"?sslrootcert={quote(str(ca or self.ca))}"
        )

    def endpoint(self, database: str, directory: Path) -> Endpoint:
        """As a Registry's configuration names it; the password's file is put into ``directory``."""
        password = directory / "password"
        password.write_text(PASSWORD)
        password.chmod(0o600)
        return Endpoint(
            url=f"postgresql://localhost:{self.port}/{database}", ca_file=str(self.ca), username=OWNER,
            password_file=str(password),
        )  # fmt: skip


@contextmanager
def private_directory() -> Iterator[Path]:
    """Where the server's user can go too, unlike pytest's own."""
    root = Path(tempfile.mkdtemp(prefix="kmpg", dir="/tmp"))
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A running server."""
    with private_directory() as root:
        server = Postgres(root)
        server.init()
        try:
            server.start()
            yield server
        finally:
            server.stop()
