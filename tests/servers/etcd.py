"""Real etcd members for tests: ``app.servers.etcd`` on private directories and ports, and a hand on their data."""

from __future__ import annotations

import base64
import contextlib
import signal
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from keymesh.adapters.etcd_client import EtcdClient, client_context
from keymesh.app.servers import etcd
from keymesh.app.servers.child import ServerProcess
from keymesh.app.servers.infra_ca import InfraCa
from keymesh.app.servers.ports import free_ports


class TestCA:
    """A root that signs leaves for 127.0.0.1."""

    __test__ = False

    def __init__(self, name: str) -> None:
        self.infra = InfraCa.make(name)
        self.pem = self.infra.pem

    def leaf(self, path: Path, *, expired: bool = False) -> Path:
        """``path``: key and certificate, fit for client and server."""
        return self.infra.issue(path, path.stem, server=True, lifetime=timedelta(minutes=-1) if expired else None)


@dataclass(slots=True)
class Member:
    """One member and, while it runs, its process."""

    settings: etcd.EtcdMember
    server: ServerProcess

    @property
    def url(self) -> str:
        return self.settings.url

    @property
    def directory(self) -> Path:
        return self.settings.directory


class EtcdCluster:
    """``size`` members; ``start`` waits until all serve.  End it with ``stop``."""

    def __init__(self, directory: Path, *, size: int = 1, flags: tuple[str, ...] = ()) -> None:
        self.directory = directory
        self.ca = TestCA("etcd test root")
        (directory / "ca.pem").write_bytes(self.ca.pem)
        self.identity = self.ca.leaf(directory / "client.pem")
        ports = free_ports(2 * size)
        settings = [
            etcd.EtcdMember(
                name=f"n{n}", directory=directory / f"n{n}", client_port=ports[2 * n], peer_port=ports[2 * n + 1]
            )
            for n in range(size)
        ]
        plans = [etcd.prepare(one, settings, self.ca.infra, flags=flags) for one in settings]
        self.members = [Member(one, ServerProcess(plan)) for one, plan in zip(settings, plans, strict=True)]
        self._context = client_context(trust_pem=self.ca.pem, identity_file=self.identity)

    @property
    def urls(self) -> list[str]:
        return [member.url for member in self.members]

    def client(self, urls: list[str] | None = None, **how: Any) -> EtcdClient:
        return EtcdClient(urls or self.urls, tls=how.pop("tls", self._context), **how)

    def start(self) -> None:
        for n in range(len(self.members)):
            self.launch(n)
        for n in range(len(self.members)):
            self.wait(n)

    def launch(self, n: int) -> None:
        """Start a member that is down; it finds its directory again."""
        self.members[n].server.spawn()

    def wait(self, n: int) -> None:
        """Until the member answers and knows a leader."""
        self.members[n].server.wait_ready()

    def call(self, n: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """One request to one member, beside the client under test."""
        return etcd.call(self.members[n].settings, path, body)

    def put(self, key: str, value: bytes) -> None:
        self.call(0, "/v3/kv/put", {"key": b64(key.encode()), "value": b64(value)})

    def get(self, key: str) -> bytes | None:
        kvs = self.call(0, "/v3/kv/range", {"key": b64(key.encode())}).get("kvs", [])
        return base64.b64decode(kvs[0].get("value", "")) if kvs else None

    def delete(self, key: str, *, all_under: bool = False) -> int:
        body = {"key": b64(key.encode())}
        if all_under:
            body["range_end"] = b64(key[:-1].encode() + bytes([ord(key[-1]) + 1]))
        return int(self.call(0, "/v3/kv/deleterange", body).get("deleted", "0"))

    def leader(self) -> int:
        """Which member leads, as seen by one that runs."""
        names: dict[str, int] = {}
        leader = ""
        for n, member in enumerate(self.members):
            if member.server.running:
                with contextlib.suppress(OSError):
                    status = self.call(n, "/v3/maintenance/status", {})
                    names[status["header"]["member_id"]] = n
                    leader = status.get("leader", leader)
        return names[leader]

    def signal(self, n: int, number: signal.Signals) -> None:
        self.members[n].server.signal(number)

    def kill(self, n: int) -> None:
        """SIGKILL, and gone when this returns."""
        self.members[n].server.kill()

    def stop(self) -> None:
        for member in self.members:
            member.server.kill()


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


@contextlib.contextmanager
def running(directory: Path, *, size: int = 1, flags: tuple[str, ...] = ()) -> Iterator[EtcdCluster]:
    cluster = EtcdCluster(directory, size=size, flags=flags)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def other_context(ca: TestCA, identity: Path) -> ssl.SSLContext:
    return client_context(trust_pem=ca.pem, identity_file=identity)
