"""A PostgreSQL of the test's own: private directory, free port on loopback, TLS only, ended by process id.

``postgres`` refuses to run as root; then it runs as the user ``postgres``, as a direct child, so that it can be killed
and started again at once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

USER: Final = "postgres"  # of the operating system
OWNER, PASSWORD = "keymesh", "correct horse/battery@staple"
START_S: Final = 20.0

_CONF: Final = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
ssl = on
ssl_cert_file = '{root}/server.pem'
ssl_key_file = '{root}/server.key'
ssl_min_protocol_version = 'TLSv1.3'
shared_buffers = 16MB
max_connections = 40
wal_level = replica
hot_standby = on
autovacuum = off
"""
_HBA: Final = """
hostssl all all 127.0.0.1/32 scram-sha-256
hostssl replication all 127.0.0.1/32 scram-sha-256
"""


def program(name: str) -> str:
    """The newest installed ``name``; where there is none the test fails and says what installs it."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4].split(".")[0]))
    if not found:
        pytest.fail("PostgreSQL is missing: apt-get install -y postgresql")
    return str(found[-1])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _as_owner() -> dict[str, Any]:
    return {"user": USER, "group": USER, "extra_groups": []} if os.geteuid() == 0 else {}


def make_ca(directory: Path, name: str = "ca") -> tuple[Any, x509.Certificate]:
    """A certificate authority; its certificate is ``name``.pem."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"test {name}")])
    made = _certificate(subject, subject, key.public_key(), key, ca=True)
    (directory / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return key, made


def _certificate(subject: x509.Name, issuer: x509.Name, public: Any, signer: Any, *, ca: bool) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if not ca:
        names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(signer, hashes.SHA256())


@dataclass
class Postgres:
    """One server.  ``root`` holds its data, its certificate and the CA's."""

    root: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    databases: int = 0

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def ca(self) -> Path:
        return self.root / "ca.pem"

    # --- making --------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Certificates, and a directory that the server's user owns."""
        self.root.chmod(0o755)
        key, ca = make_ca(self.root)
        own = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        certificate = _certificate(subject, ca.subject, own.public_key(), key, ca=False)
        (self.root / "server.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        secret = self.root / "server.key"
        secret.write_bytes(
            own.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        secret.chmod(0o600)
        self.data.mkdir(mode=0o700)
        if os.geteuid() == 0:
            for path in (secret, self.data):
                shutil.chown(path, USER, USER)

    def init(self) -> None:
        """A new, empty cluster."""
        self.prepare()
        secret = self.root / "password"
        secret.write_text(PASSWORD + "\n")
        self._run(
            "initdb", "-D", self.data, "-U", OWNER, "-A", "scram-sha-256", "--pwfile", secret, "-E", "UTF8", "-N", "-k",
            "--locale=C.UTF-8",
        )  # fmt: skip
        self._configure()

    def _configure(self) -> None:
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.write(_CONF.format(root=self.root))
        (self.data / "pg_hba.conf").write_text(_HBA)

    def _environment(self) -> dict[str, str]:
        """Nothing of the test's own: it has variables, and a home, that are not the server's."""
        return {"PATH": os.defpath, "HOME": str(self.root), "LANG": "C.UTF-8"}

    def _run(self, name: str, *words: str | Path) -> None:
        done = subprocess.run(
            [program(name), *map(str, words)], capture_output=True, text=True, env=self._environment(), **_as_owner()
        )
        assert done.returncode == 0, done.stderr

    # --- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Returns once it answers.  A lock that a killed server left is waited for."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self.process is None or self.process.poll() is not None:
                with (self.root / "log").open("ab") as log:
                    self.process = subprocess.Popen(
                        [program("postgres"), "-D", str(self.data), "-p", str(self.port)],
                        stdout=log,
                        stderr=log,
                        stdin=subprocess.DEVNULL,
                        cwd="/",
                        env=self._environment(),
                        start_new_session=True,
                        **_as_owner(),
                    )
            with contextlib.suppress(psycopg.OperationalError):
                self.connect("postgres").close()
                return
            time.sleep(0.02)
        raise AssertionError((self.root / "log").read_text()[-2_000:])

    def kill(self) -> None:
        """As the kernel would: nothing is flushed, nobody is told."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """At once: what it leaves is thrown away."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()

    def standby(self, root: Path) -> Postgres:
        """A running copy that follows this server."""
        other = Postgres(root)
        other.root.chmod(0o755)
        for name in ("ca.pem", "server.pem", "server.key"):
            shutil.copy2(self.root / name, root / name)
        other.data.mkdir(mode=0o700)
        if os.geteuid() == 0:
            for path in (root / "server.key", other.data):
                shutil.chown(path, USER, USER)
        self._run(
            "pg_basebackup", "-d", self.conninfo("postgres"), "-D", other.data, "-R", "-X", "stream", "-c", "fast"
        )
        with (other.data / "postgresql.conf").open("a") as conf:
            conf.write(_CONF.format(root=root))
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
