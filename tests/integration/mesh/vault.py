"""A Vault face on the running mesh, in a process of its own, and hvac's client of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import hvac
from tests.integration.mesh.aws import free_port
from tests.integration.mesh.live import keymesh

from keymesh.app.layout import Layout

REGION = "us-east"
PATIENCE_S = 90.0
T = TypeVar("T")
RIGHTS = ("encrypt", "decrypt", "rewrap", "datakey", "read", "create", "rotate")


@dataclass(slots=True)
class Face:
    """A running ``keymesh edge vault-transit``."""

    layout: Layout
    where: Path
    port: int

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca(self) -> str:
        return str(self.where / "state" / "tls" / "ca.pem")

    def login(self, kind: str, name: str, tenant: str, *words: str, rights: tuple[str, ...] = RIGHTS) -> Any:
        """A new one, as the operator writes it."""
        file = str(self.where / "logins.json")
        line = ["edge", "vault-login", kind, name, "--file", file, "--tenant", tenant, "--json"]
        for right in rights:
            line += ["--right", right]
        done = keymesh(*line, *words)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def client(self, token: str | None = None, **more: Any) -> Any:
        """hvac's, unmodified."""
        return hvac.Client(self.url, token=token, verify=self.ca, timeout=PATIENCE_S, **more)


@contextmanager
def face_process(layout: Layout, where: Path) -> Iterator[Face]:
    """Serving for the logins in ``logins.json``.  Ends it, and checks that it ended well."""
    face = Face(layout, where, free_port())
    face.login("token", "first", "nobody")
    program = [sys.executable, "-c", "import sys; from keymesh.app.cli import main; sys.exit(main())"]
    line = ["edge", "vault-transit", "--listen", f"127.0.0.1:{face.port}", "--region", REGION]
    line += ["--state", str(where / "state"), "--logins", str(where / "logins.json"), "--dir", str(layout.root)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with (where / "face.log").open("w") as log:
        words = [*program, *line, "--allow-unlocked-memory"]
        process = subprocess.Popen(words, stderr=log, env=environment)
        try:
            deadline = time.monotonic() + PATIENCE_S
            while "serving vault-transit" not in (where / "face.log").read_text():
                assert process.poll() is None, (where / "face.log").read_text()
                assert time.monotonic() < deadline, "the face never served"
                time.sleep(0.1)
            yield face
        finally:
            process.terminate()
            code = process.wait(30)
        said = (where / "face.log").read_text()
        assert code == 0 and "Traceback" not in said, said


def patiently(work: Callable[[], T], *errors: type[Exception]) -> T:
    """What ``work`` comes to once it raises none of ``errors``: a face learns of things within a second or so."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return work()
        except errors:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def until_raises(work: Callable[[], Any], error: type[Exception]) -> Exception:
    """What ``work`` comes to raise."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            work()
        except error as seen:
            return seen
        time.sleep(0.2)
    raise AssertionError(f"never raised {error.__name__}")
