"""A deployment as ``docs/deploy.md`` tells: its shell blocks, run in a directory and on ports of the test's own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from keymesh.adapters.customer_kms import INFO_FILE

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "deploy.md"
FIRST_PORT, PORTS = 7600, 5
PATIENCE_S = 60.0


def free_range(count: int) -> int:
    """The first of ``count`` ports in a row that were free on loopback just now."""
    for first in range(21_600 + os.getpid() % 1_800 * count, 32_700, count):  # two test runs, two ranges
        with contextlib.ExitStack() as held:
            try:
                for port in range(first, first + count):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")


def blocks(heading: str, first_port: int, others: Mapping[str, int] | None = None) -> list[str]:
    """The shell blocks under a heading, on other ports."""
    sections = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL))
    found = re.findall(r"```sh\n(.*?)```", sections[heading], re.DOTALL)
    moved = [re.sub(r"\b76\d\d\b", lambda m: str(first_port + int(m[0]) - FIRST_PORT), block) for block in found]
    for port, own in (others or {}).items():
        moved = [re.sub(rf"\b{port}\b", str(own), block) for block in moved]
    return moved


@dataclass(slots=True)
class Host:
    """A process in the foreground of one block; ``block`` starts it again."""

    block: str
    process: subprocess.Popen[bytes]
    ports: list[int]
    socket: Path | None
    note: Path | None  # written once it serves


@dataclass(slots=True)
class Deployment:
    home: Path
    environment: dict[str, str]
    hosts: dict[str, Host] = field(default_factory=dict)

    def follow(self, block: str) -> None:
        """Do it, or start it and leave it running."""
        if " run " in block.strip().splitlines()[-1]:
            self.start(block)
        else:
            self.do(block)

    def do(self, block: str) -> str:
        """What a block prints, once it has ended well."""
        done = subprocess.run(
            ["bash", "-e", "-c", block],
            cwd=self.home,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}\n{self.logs()}"
        return done.stdout

    def refused(self, block: str) -> str:
        """What a block says that must be refused."""
        done = subprocess.run(
            ["bash", "-e", "-c", block], cwd=self.home, env=self.environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 1 and done.stderr.startswith("error: "), (block, done)
        return done.stderr

    def start(self, block: str) -> None:
        """Start a block that does not end, and wait until it takes connections."""
        name = re.search(r"cd hosts/([\w-]+)", block)
        assert name is not None
        lines = block.strip().splitlines()
        script = "\n".join([*lines[:-1], f"exec {lines[-1]}"])
        with (self.home / f"{name[1]}.log").open("ab") as log:
            process = subprocess.Popen(
                ["bash", "-e", "-c", script], cwd=self.home, env=self.environment, stdout=log, stderr=log
            )
        listening = {"registry": ["registry"], "core": ["core"], "edge": [], "customer": ["kms"]}[name[1].split("-")[0]]
        ports = [int(p) for p in re.findall(r"=(\d+)", lines[-1])] if listening == ["kms"] else []
        unix = self.home / "hosts" / name[1] / "edge.sock" if not listening else None
        if listening in (["registry"], ["core"]):
            text = (self.home / "hosts" / name[1] / f"{listening[0]}.toml").read_text()
            ports = [int(port) for port in re.findall(r"^port = (\d+)", text, re.MULTILINE)]
        note = self.home / "hosts" / name[1] / INFO_FILE if listening == ["kms"] else None
        self.hosts[name[1]] = Host(block, process, ports, unix, note)
        self._await(name[1])

    def _await(self, name: str) -> None:
        host = self.hosts[name]
        deadline = time.monotonic() + PATIENCE_S
        assert host.ports or host.socket
        while not all(self._answers(host)):
            assert host.process.poll() is None, f"{name} ended\n{self.logs()}"
            assert time.monotonic() < deadline, f"{name} does not serve\n{self.logs()}"
            time.sleep(0.05)

    @staticmethod
    def _answers(host: Host) -> Iterator[bool]:
        for port in host.ports:
            with socket.socket() as probe:
                yield probe.connect_ex(("127.0.0.1", port)) == 0
        if host.note is not None:
            yield host.note.exists()
        if host.socket is not None:
            with socket.socket(socket.AF_UNIX) as probe:
                yield probe.connect_ex(str(host.socket)) == 0

    def end(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        self.hosts[name].process.send_signal(number)
        self.hosts[name].process.wait(30)

    def stop(self) -> None:
        for host in self.hosts.values():
            host.process.send_signal(signal.SIGTERM)
        for host in self.hosts.values():
            try:
                host.process.wait(20)
            except subprocess.TimeoutExpired:
                host.process.kill()
                host.process.wait(10)

    def logs(self) -> str:
        """The last lines of every host, for a failure."""
        return "\n".join(f"{log.name}: {log.read_text()[-600:]}" for log in sorted(self.home.glob("*.log")))


@contextlib.contextmanager
def deployment() -> Iterator[Deployment]:
    """An empty one; whatever runs in it is ended, and all of it removed."""
    home = Path(tempfile.mkdtemp(prefix="kmd", dir="/tmp"))
    try:
        tools = home / "bin"
        tools.mkdir()
        program = "import sys; from keymesh.app.cli import main; sys.exit(main())"
        (tools / "keymesh").write_text(f"#!/bin/sh\nexec {sys.executable} -c '{program}' \"$@\"\n")
        (tools / "keymesh").chmod(0o755)
        clean = {k: v for k, v in os.environ.items() if not k.startswith("KEYMESH_")}
        path = os.pathsep.join(p for p in sys.path if p)
        environment = {**clean, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": path}
        made = Deployment(home, environment)
        try:
            yield made
        finally:
            made.stop()
    finally:
        shutil.rmtree(home, ignore_errors=True)
