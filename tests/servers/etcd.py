"""Real etcd members for tests: private directories and ports, TLS with client certificates on every connection."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import ipaddress
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from keymesh.adapters.etcd_client import EtcdClient, client_context

INSTALL = "etcd is missing: apt-get install -y etcd-server etcd-client"
READY_S = 30.0
_BOTH = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])


class TestCA:
    """A root that signs leaves for 127.0.0.1."""

    __test__ = False

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        key_id = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        made = self._builder(self._name, self._key, timedelta(minutes=-5), timedelta(days=1))
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        made = made.add_extension(usage, critical=True).add_extension(key_id, critical=False)
        self._issuer_id = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id)
        self.pem = made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _builder(
        self, name: x509.Name, key: ec.EllipticCurvePrivateKey, since: timedelta, until: timedelta
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        made = x509.CertificateBuilder().subject_name(name).issuer_name(self._name).public_key(key.public_key())
        made = made.serial_number(x509.random_serial_number())
        return made.not_valid_before(now + since).not_valid_after(now + until)

    def leaf(self, path: Path, *, expired: bool = False) -> Path:
        """``path``: key and certificate, fit for client and server."""
        key = ec.generate_private_key(ec.SECP256R1())
        until = timedelta(minutes=-1) if expired else timedelta(days=1)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, path.stem)])
        made = self._builder(name, key, timedelta(minutes=-5), until)
        names = x509.SubjectAlternativeName(
            [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
        )
        made = made.add_extension(names, critical=False).add_extension(_BOTH, critical=False)
        made = made.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        made = made.add_extension(
            x509.KeyUsage(True, False, False, False, False, False, False, False, False), critical=True
        )
        made = made.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        made = made.add_extension(self._issuer_id, critical=False)
        pem = made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        path.touch(mode=0o600)
        path.write_bytes(key.private_bytes(*form) + pem)
        return path


@dataclass(slots=True)
class Member:
    name: str
    directory: Path
    client_port: int
    peer_port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.client_port}"


class EtcdCluster:
    """``size`` members; ``start`` waits until all serve.  End it with ``stop``."""

    def __init__(self, directory: Path, *, size: int = 1, flags: tuple[str, ...] = ()) -> None:
        if shutil.which("etcd") is None:
            raise RuntimeError(INSTALL)
        self.directory = directory
        self.ca = TestCA("etcd test root")
        (directory / "ca.pem").write_bytes(self.ca.pem)
        self.identity = self.ca.leaf(directory / "client.pem")
        self.ca.leaf(directory / "server.pem")
        self._flags = flags
        ports = _free_ports(2 * size)
        self.members = [
            Member(f"n{n}", directory / f"n{n}", client_port=ports[2 * n], peer_port=ports[2 * n + 1])
            for n in range(size)
        ]
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
        member = self.members[n]
        pem, ca = str(self.directory / "server.pem"), str(self.directory / "ca.pem")
        peer = f"https://127.0.0.1:{member.peer_port}"
        peers = ",".join(f"{m.name}=https://127.0.0.1:{m.peer_port}" for m in self.members)
        command = [
            *("etcd", "--name", member.name, "--data-dir", str(member.directory), "--log-level", "error"),
            *("--logger", "zap", "--log-outputs", "stderr"),
            *("--listen-client-urls", member.url, "--advertise-client-urls", member.url),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", peers),
            *("--cert-file", pem, "--key-file", pem, "--trusted-ca-file", ca, "--client-cert-auth"),
            *("--peer-cert-file", pem, "--peer-key-file", pem, "--peer-trusted-ca-file", ca, "--peer-client-cert-auth"),
            *("--heartbeat-interval", "50", "--election-timeout", "500", *self._flags),
        ]
        with (self.directory / f"{member.name}.log").open("ab") as log:
            member.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={"PATH": os.environ["PATH"]}, preexec_fn=_die_with_parent
            )

    def wait(self, n: int) -> None:
        """Until the member answers and knows a leader."""
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            with contextlib.suppress(OSError, ValueError):
                if int(self.call(n, "/v3/maintenance/status", {}).get("leader", "0")):
                    return
            process = self.members[n].process
            if process is None or process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError((self.directory / f"{self.members[n].name}.log").read_text()[-2_000:])

    def call(self, n: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """One request to one member, beside the client under test."""
        request = urllib.request.Request(self.members[n].url + path, json.dumps(body).encode())
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self._context)
        )
        with opener.open(request, timeout=2.0) as answer:
            found: dict[str, Any] = json.loads(answer.read())
        return found

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
            if member.process is not None:
                with contextlib.suppress(OSError):
                    status = self.call(n, "/v3/maintenance/status", {})
                    names[status["header"]["member_id"]] = n
                    leader = status.get("leader", leader)
        return names[leader]

    def signal(self, n: int, number: signal.Signals) -> None:
        process = self.members[n].process
        assert process is not None
        process.send_signal(number)

    def kill(self, n: int) -> None:
        """SIGKILL, and gone when this returns."""
        self.signal(n, signal.SIGKILL)
        process, self.members[n].process = self.members[n].process, None
        assert process is not None
        process.wait(10)

    def stop(self) -> None:
        for n, member in enumerate(self.members):
            if member.process is not None:
                self.kill(n)


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


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


_LIBC = ctypes.CDLL(None)


def _die_with_parent() -> None:
    _LIBC.prctl(1, signal.SIGKILL)
