"""A real OpenBao for tests: ``app.servers.openbao``, killed, restarted and sealed at will.

``admin`` and its like hold the root token: what the customer's own people would do.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from keymesh.adapters.l1_credentials import CA_FILE, ENDPOINTS_FILE, l1_directory
from keymesh.adapters.openbao import OpenBao
from keymesh.adapters.openbao_login import Login
from keymesh.adapters.tls import Credentials
from keymesh.app.servers import openbao as servers
from keymesh.app.servers.child import ServerProcess
from keymesh.app.servers.infra_ca import InfraCa
from keymesh.app.servers.ports import free_ports

START_S: Final = 30.0
STEP_S: Final = 0.03


class CustomerCa:
    """A certificate authority of the customer's own: server and clients of their OpenBao."""

    def __init__(self, infra: InfraCa) -> None:
        self.infra: Final = infra

    @classmethod
    def make(cls, name: str) -> CustomerCa:
        return cls(InfraCa.make(name))

    @property
    def pem(self) -> str:
        return self.infra.pem.decode()

    def issue(self, path: Path, name: str, *, server: bool = False) -> Path:
        """Key and certificate of ``name`` in one private file."""
        return self.infra.issue(path, name, server=server)


class OpenBaoServer:
    """One node.  ``client_cas``: whose clients the listener lets in, besides the server's own ``ca``.

    With ``leader`` it joins that node's cluster, of the same customer, and stands by.
    """

    def __init__(
        self, directory: Path, *, client_cas: tuple[str, ...] = (), leader: OpenBaoServer | None = None
    ) -> None:
        self.directory: Final = directory
        self.ca: CustomerCa = CustomerCa.make("customer CA") if leader is None else leader.ca
        port, cluster_port = free_ports(2)
        self.settings: Final[servers.BaoSettings] = servers.BaoSettings(
            directory=directory,
            port=port,
            cluster_port=cluster_port,
            client_cas=client_cas,
            leader=None if leader is None else leader.settings,
        )
        self.port: Final = port
        self.url: Final = self.settings.url
        self.server: Final = ServerProcess(servers.prepare(self.settings, self.ca.infra))
        self.hand: Final = servers.BaoAdmin(self.settings)

    @property
    def pid(self) -> int:
        return self.server.pid

    # --- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Run the server; the first time, initialise it; unseal it; return once it serves."""
        self.server.start()

    def unseal(self) -> None:
        self.server.wait_ready()

    def seal(self) -> None:
        self.admin("PUT", "/v1/sys/seal")
        self._until(lambda: self._status() == 503)

    def kill(self) -> None:
        """``kill -9``, and the end of it."""
        self.server.kill()

    def restart(self) -> None:
        self.kill()
        self.start()

    def log_text(self) -> str:
        return self.server.last_words()

    def _status(self) -> int | None:
        assert self.server.running, self.log_text()
        try:
            return servers.health(self.settings)
        except OSError:
            return None

    def _until(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + START_S
        while not done():
            assert time.monotonic() < end, self.log_text()
            time.sleep(STEP_S)

    # --- the customer's own hand -------------------------------------------------------------------------------------

    def ask(self, method: str, path: str, body: Any = None, *, token: str | None = None) -> tuple[int, Any]:
        """(status, answer) of one call with the root token, or ``token``."""
        return self.hand.ask(method, path, body, token=token)

    def admin(self, method: str, path: str, body: Any = None) -> Any:
        """The answer of a call that must succeed."""
        return self.hand.must(method, path, body)

    def policy(self, name: str, rules: dict[str, list[str]]) -> None:
        self.hand.policy(name, rules)

    def mount(self, path: str, kind: str, options: dict[str, str] | None = None) -> None:
        self.hand.mount(path, kind, options)

    def transit_key(self, mount: str, name: str, kind: str = "aes256-gcm96") -> None:
        self.hand.transit_key(mount, name, kind)

    def delete_key(self, mount: str, name: str) -> None:
        self.admin("POST", f"/v1/{mount}/keys/{name}/config", {"deletion_allowed": True})
        self.admin("DELETE", f"/v1/{mount}/keys/{name}")

    def approle(self, name: str, *policies: str, **more: Any) -> tuple[str, str]:
        """(role id, secret id) of a new role."""
        return self.hand.approle(name, *policies, **more)

    def cert_role(self, name: str, ca_pem: str, *policies: str, **more: Any) -> None:
        self.hand.cert_role(name, ca_pem, *policies, **more)

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


def give_l1(core: Path, tenant: str, ca_pem: str, *urls: str) -> Path:
    """The directory of a tenant's credentials at a Core, made to allow ``urls`` and the CA; logins are added later."""
    directory = l1_directory(core, tenant)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, text in ((ENDPOINTS_FILE, json.dumps({"urls": urls})), (CA_FILE, ca_pem)):
        (directory / name).touch(mode=0o600)
        (directory / name).write_text(text)
    return directory


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
