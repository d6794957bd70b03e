"""An AWS face on the running mesh, in a process of its own, and clients that nobody here wrote."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from tests.integration.mesh.live import keymesh

from keymesh.app.layout import Layout

REGION = "us-east"
PATIENCE_S = 60.0


@dataclass(slots=True)
class Face:
    """A running ``keymesh edge aws-kms``."""

    layout: Layout
    where: Path
    port: int

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca(self) -> Path:
        return self.where / "state" / "tls" / "ca.pem"

    def credential(self, tenant: str, *words: str) -> dict[str, Any]:
        """A new access key."""
        file = self.where / "credentials.json"
        done = keymesh("edge", "aws-credential", "add", "--file", file, "--tenant", tenant, *words, "--json")
        assert done.returncode == 0, done.stderr
        made: dict[str, Any] = json.loads(done.stdout)
        return made

    def client(self, credential: dict[str, Any], *, retries: int = 8, **changes: Any) -> Any:
        """boto3's, unmodified but for its endpoint."""
        return boto3.client(
            "kms",
            endpoint_url=self.url,
            region_name=changes.get("region", REGION),
            aws_access_key_id=credential["access_key_id"],
            aws_secret_access_key=changes.get("secret", credential["secret_access_key"]),
            verify=str(self.ca),
            config=Config(retries={"total_max_attempts": retries, "mode": "standard"}, read_timeout=90),
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def face_process(layout: Layout, where: Path, *words: str) -> Iterator[Face]:
    """Serving; its credentials file exists.  Ends it, and checks that it ended well."""
    face = Face(layout, where, free_port())
    program = [sys.executable, "-c", "import sys; from keymesh.app.cli import main; sys.exit(main())"]
    line = ["edge", "aws-kms", "--listen", f"127.0.0.1:{face.port}", "--region", REGION, "--state", where / "state"]
    line += ["--credentials", where / "credentials.json", "--dir", layout.root, "--allow-unlocked-memory", *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with (where / "face.log").open("w") as log:
        process = subprocess.Popen([*program, *map(str, line)], stderr=log, env=environment)
        try:
            deadline = time.monotonic() + PATIENCE_S
            while "serving aws-kms" not in (where / "face.log").read_text():
                assert process.poll() is None, (where / "face.log").read_text()
                assert time.monotonic() < deadline, "the face never served"
                time.sleep(0.1)
            yield face
        finally:
            process.terminate()
            code = process.wait(30)
        assert code == 0
