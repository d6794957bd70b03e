"""moto's S3 server for tests: TLS on a port of 127.0.0.1 chosen at start, in a process of its own.

It keeps Object Lock's rules as far as these tests ask for them; it is not AWS, and does not check signatures.
"""

from __future__ import annotations

import datetime as dt
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import boto3
from botocore.config import Config

from keymesh.app.servers.infra_ca import InfraCa

START_S: Final = 30.0


def make_ca(directory: Path, name: str, *, days: int = 1) -> tuple[Path, Path]:
    """(CA, the server's certificate with its key), PEM; ``days`` below 0: expired."""
    ca = InfraCa.make(f"{name} CA")
    ca_file = directory / f"{name}-ca.pem"
    ca_file.write_bytes(ca.pem)
    return ca_file, ca.issue(directory / f"{name}.pem", name, server=True, lifetime=dt.timedelta(days=days))


@dataclass(frozen=True, slots=True)
class S3Server:
    """``admin``: what the bucket's owner could do."""

    url: str
    ca_file: Path
    process: subprocess.Popen[bytes]

    def admin(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            verify=str(self.ca_file),
            aws_access_key_id="admin",
            aws_secret_access_key="admin",
            region_name="us-east-1",
            config=Config(proxies={}, s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
        )

    def bucket(self, name: str, *, lock: bool = True) -> str:
        self.admin().create_bucket(Bucket=name, ObjectLockEnabledForBucket=lock)
        return name


@contextmanager
def s3_server(directory: Path, *, days: int = 1) -> Iterator[S3Server]:
    """A running one; killed at the end.  Its objects are in its memory."""
    directory.mkdir(parents=True, exist_ok=True)
    ca_file, identity = make_ca(directory, "s3", days=days)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    words = ["-m", "moto.server", "-H", "127.0.0.1", "-p", str(port), "-c", str(identity), "-k", str(identity)]
    with (directory / "s3.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, *words], stdout=log, stderr=log)
    try:
        _wait(process, port, directory / "s3.log")
        yield S3Server(f"https://127.0.0.1:{port}", ca_file, process)
    finally:
        process.kill()
        process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"moto's server does not answer: {log.read_text()[-500:]}")
