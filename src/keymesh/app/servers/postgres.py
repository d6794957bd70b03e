"""PostgreSQL: one server in a private directory, TLS alone, passwords checked, at will a client certificate too.

The directory: ``data``, ``postgresql.conf`` and ``pg_hba.conf``, ``ca.pem``, ``server.pem`` and ``server.key``,
``password`` (of the role that owns the database), ``log``.  As root it runs as the user ``postgres``, who must be able
to enter the directory; only ``data`` is that user's to change.
"""

from __future__ import annotations

import secrets
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from keymesh.adapters.files import PUBLIC_MODE, write_file
from keymesh.app.servers.binaries import POSTGRES, postgres_program
from keymesh.app.servers.infra_ca import InfraCa
from keymesh.app.servers.ownership import check_reachable, hand_over, switches_user
from keymesh.app.servers.plan import READY_TRY_S, ServerPlan
from keymesh.model.errors import Refused, Unavailable

USER: Final = "postgres"  # of the operating system
OWNER: Final = "keymesh"  # the role, and the database that it owns
REPLICATOR: Final = "replicator"  # the role as which a standby follows
HOSTS: Final = ("127.0.0.1", "localhost")
MAKE_S: Final = 60.0

_CONF: Final = """
# written by keymesh
listen_addresses = '127.0.0.1'
port = {port}
hba_file = '{root}/pg_hba.conf'
unix_socket_directories = ''
ssl = on
ssl_ca_file = '{root}/ca.pem'
ssl_cert_file = '{root}/server.pem'
ssl_key_file = '{root}/server.key'
ssl_min_protocol_version = 'TLSv1.3'
shared_buffers = 16MB
max_connections = 100
wal_level = replica
hot_standby = on
wal_keep_size = 256MB
{more}
"""
_HBA: Final = """# written by keymesh
hostssl all all 127.0.0.1/32 scram-sha-256{client}
hostssl replication all 127.0.0.1/32 scram-sha-256{client}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresSettings:
    """``client_certificates``: a client shows one of the same CA, besides its password.  ``superuser``: the owner may
    do all (tests); ``conf``: further lines of postgresql.conf."""

    directory: Path
    port: int
    name: str = "postgres"
    client_certificates: bool = True
    superuser: bool = False
    conf: str = ""

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def conf_file(self) -> Path:
        return self.directory / "postgresql.conf"

    @property
    def password_file(self) -> Path:
        return self.directory / "password"

    @property
    def replicator_file(self) -> Path:
        """The password as which a standby follows this server; in a standby's directory its ``passfile``."""
        return self.directory / "replicator"


def prepare(settings: PostgresSettings, ca: InfraCa, *, password: str | None = None) -> ServerPlan:
    """Certificates, configuration and, the first time, an empty database of ``OWNER``.

    Raises Refused where the program is missing or its user cannot come to the directory, Unavailable where initdb
    fails.
    """
    POSTGRES.require()
    write_directory(settings, ca)
    if not (settings.data / "PG_VERSION").exists():
        write_file(settings.password_file, (password or secrets.token_urlsafe(24)).encode() + b"\n")
        try:
            _make(settings)
        except BaseException:  # a half-made cluster is made again from scratch
            shutil.rmtree(settings.data, ignore_errors=True)
            raise
    write_configuration(settings)
    return plan(settings)


def prepare_standby(settings: PostgresSettings, primary: PostgresSettings, ca: InfraCa) -> ServerPlan:
    """A copy that follows ``primary`` asynchronously, made the first time from its files while it does not run.

    It takes no writes until somebody promotes it (``pg_ctl promote``), and then only the primary's end is safe.
    """
    write_directory(settings, ca)
    if not (settings.data / "PG_VERSION").exists():
        # as its user, and in place: nothing of what that user may have put there is followed with our rights
        copy = 'rm -rf "$2"/* && cp -a "$1"/. "$2" && rm -f "$2"/postmaster.pid && touch "$2"/standby.signal'
        try:
            _run(settings, "copy", ("/bin/sh", "-c", copy, "sh", str(primary.data), str(settings.data)))
        except BaseException:  # half a copy is made again from scratch
            shutil.rmtree(settings.data, ignore_errors=True)
            raise
        secret = f"127.0.0.1:{primary.port}:*:{REPLICATOR}:{primary.replicator_file.read_text()}\n"
        write_file(settings.replicator_file, secret.encode())
        hand_over(USER, settings.replicator_file)
    root = settings.directory
    follows = (
        f"primary_conninfo = 'host=127.0.0.1 port={primary.port} user={REPLICATOR} passfile={settings.replicator_file}"
        f" sslmode=verify-full sslrootcert={root}/ca.pem sslcert={root}/server.pem sslkey={root}/server.key'"
    )
    write_configuration(replace(settings, conf=follows))
    return plan(settings)


def plan(settings: PostgresSettings) -> ServerPlan:
    """How to run what ``prepare`` has made."""
    return ServerPlan(
        name=settings.name,
        argv=(str(POSTGRES.require()), "-D", str(settings.data), "-c", f"config_file={settings.conf_file}"),
        directory=settings.directory,
        ready=partial(_is_ready, settings),
        user=USER,
        stop=signal.SIGINT,  # SIGTERM would wait for the clients
    )


def write_directory(settings: PostgresSettings, ca: InfraCa) -> None:
    """The directory, its CA and the server's certificate."""
    root = settings.directory
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if switches_user(USER):
        root.chmod(0o755)
    check_reachable(USER, root)
    write_file(root / "ca.pem", ca.pem, mode=PUBLIC_MODE)
    pem = ca.keep(root / "server.pem", settings.name, server=True, hosts=HOSTS).read_bytes()
    write_file(root / "server.key", pem)
    hand_over(USER, root / "server.pem", root / "server.key")
    settings.data.mkdir(mode=0o700, exist_ok=True)
    hand_over(USER, settings.data)


def write_configuration(settings: PostgresSettings) -> None:
    """Beside the data, which are its user's to exchange, not in them; written again at every start."""
    root = settings.directory
    conf = _CONF.format(port=settings.port, root=root, more=settings.conf)
    hba = _HBA.format(client=" clientcert=verify-ca" if settings.client_certificates else "")
    write_file(settings.conf_file, conf.encode(), mode=PUBLIC_MODE)
    write_file(root / "pg_hba.conf", hba.encode(), mode=PUBLIC_MODE)


def _make(settings: PostgresSettings) -> None:
    """initdb, then the owner and its database in single-user mode: no server has listened by then."""
    hand_over(USER, settings.password_file)
    run_program(
        settings, "initdb", "-D", settings.data, "-U", "admin", "-A", "scram-sha-256", "--pwfile",
        settings.password_file, "-E", "UTF8", "-k", "--locale=C.UTF-8",
    )  # fmt: skip
    replicator = secrets.token_urlsafe(24)
    write_file(settings.replicator_file, replicator.encode())
    password = settings.password_file.read_text().rstrip("\n").replace("'", "''")
    sql = (
        f"CREATE ROLE {OWNER} LOGIN {'SUPERUSER ' if settings.superuser else ''}PASSWORD '{password}';\n"
        f"CREATE DATABASE {OWNER} OWNER {OWNER};\n"
        f"CREATE ROLE {REPLICATOR} LOGIN REPLICATION PASSWORD '{replicator}';\n"
        "ALTER ROLE admin NOLOGIN;\n"
    )
    done = run_program(settings, "postgres", "--single", "-D", settings.data, "postgres", told=sql)
    if "ERROR" in done:
        raise Unavailable("make-database", f"the owner's role could not be made: {done[-500:]}")


def run_program(settings: PostgresSettings, name: str, *words: str | Path, told: str = "") -> str:
    """What a program of PostgreSQL says, run as the server's user.  Raises Unavailable where it fails."""
    program = postgres_program(name)
    if program is None:
        raise Refused("missing-binary", f"{name} is missing; install it with: {POSTGRES.install}", field=name)
    return _run(settings, name, (str(program), *map(str, words)), told)


def _run(settings: PostgresSettings, name: str, argv: Sequence[str], told: str = "") -> str:
    base = plan(settings)
    whose: dict[str, Any] = {"user": USER, "group": USER, "extra_groups": []} if switches_user(USER) else {}
    done = subprocess.run(
        argv,
        input=told,
        capture_output=True,
        text=True,
        env=base.environment(),
        cwd=settings.directory,
        timeout=MAKE_S,
        check=False,
        **whose,
    )
    if done.returncode != 0:
        raise Unavailable(name, f"{name} failed: {done.stderr[-500:]}")
    return f"{done.stdout}{done.stderr}"


def _is_ready(settings: PostgresSettings) -> bool:
    probe = postgres_program("pg_isready")
    if probe is None:
        return False
    words = [str(probe), "-q", "-h", "127.0.0.1", "-p", str(settings.port), "-t", "1"]
    try:
        return subprocess.run(words, env={}, timeout=READY_TRY_S, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False
