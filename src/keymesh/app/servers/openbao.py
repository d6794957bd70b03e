"""OpenBao: one node with raft storage in a private directory, mutual TLS, initialised and unsealed by its own plan.

The directory: ``config.json``, ``data``, ``ca.pem`` and ``clients.pem``, ``server.pem``, ``admin.pem``, ``init.json``
(root token and unseal key: development only, as everything that ``keymesh up`` writes), ``log``.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from keymesh.adapters.files import PUBLIC_MODE, write_file
from keymesh.adapters.key_files import read_private
from keymesh.app.servers.binaries import BAO
from keymesh.app.servers.http_probe import ask_json, client_tls
from keymesh.app.servers.infra_ca import InfraCa
from keymesh.app.servers.plan import ServerPlan
from keymesh.model.errors import Unavailable

ADMIN_S: Final = 10.0
SERVING, STANDING_BY = 200, 429


@dataclass(frozen=True, slots=True, kw_only=True)
class BaoSettings:
    """``client_cas``: PEM of further CAs whose clients the listener lets in.  ``leader``: it joins that node's cluster
    and stands by."""

    directory: Path
    port: int
    cluster_port: int
    name: str = "openbao"
    client_cas: tuple[str, ...] = ()
    leader: BaoSettings | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca(self) -> Path:
        return self.directory / "ca.pem"

    @property
    def admin(self) -> Path:
        return self.directory / "admin.pem"

    @property
    def secrets(self) -> Path:
        """Root token and unseal key of the cluster."""
        return (self.directory if self.leader is None else self.leader.directory) / "init.json"


def prepare(settings: BaoSettings, ca: InfraCa) -> ServerPlan:
    """The node's directory.  Raises Refused where the program is missing."""
    BAO.require()
    root = settings.directory
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    (root / "data").mkdir(mode=0o700, exist_ok=True)
    write_file(settings.ca, ca.pem, mode=PUBLIC_MODE)
    write_file(root / "clients.pem", ca.pem + "".join(settings.client_cas).encode(), mode=PUBLIC_MODE)
    ca.keep(root / "server.pem", settings.name, server=True)
    ca.keep(settings.admin, "admin")
    write_file(root / "config.json", json.dumps(_configuration(settings), indent=1).encode())
    return plan(settings)


def plan(settings: BaoSettings) -> ServerPlan:
    """How to run what ``prepare`` has made."""
    return ServerPlan(
        name=settings.name,
        argv=(str(BAO.require()), "server", f"-config={settings.directory / 'config.json'}"),
        directory=settings.directory,
        ready=partial(_bring_up, settings),
    )


def _configuration(settings: BaoSettings) -> dict[str, Any]:
    root = settings.directory
    pem = str(root / "server.pem")
    raft: dict[str, Any] = {
        "path": str(root / "data"),
        "node_id": f"node-{settings.port}",
        "performance_multiplier": "1",
    }
    if settings.leader is not None:
        raft["retry_join"] = [
            {
                "leader_api_addr": settings.leader.url,
                "leader_ca_cert_file": str(settings.ca),
                "leader_client_cert_file": str(settings.admin),
                "leader_client_key_file": str(settings.admin),
            }
        ]
    listener = {
        "address": f"127.0.0.1:{settings.port}",
        "cluster_address": f"127.0.0.1:{settings.cluster_port}",
        "tls_cert_file": pem,
        "tls_key_file": pem,
        "tls_client_ca_file": str(root / "clients.pem"),
        "tls_require_and_verify_client_cert": True,
        "tls_min_version": "tls13",
    }
    return {
        "storage": {"raft": raft},
        "listener": {"tcp": listener},
        "api_addr": settings.url,
        "cluster_addr": f"https://127.0.0.1:{settings.cluster_port}",
        "log_level": "warn",
        "default_lease_ttl": "1h",
    }


# --- life --------------------------------------------------------------------------------------------------------


def health(settings: BaoSettings) -> int:
    """Status of the health call: 200 serves, 429 stands by, 501 is new, 503 is sealed.  Raises OSError."""
    return ask_json(settings.port, "GET", "/v1/sys/health", tls=client_tls(settings.ca, settings.admin))[0]


def unseal_key(settings: BaoSettings) -> str:
    return str(_read_secrets(settings)["unseal_key"])


def _read_secrets(settings: BaoSettings) -> dict[str, str]:
    found: dict[str, str] = json.loads(read_private(settings.secrets))
    return found


def _bring_up(settings: BaoSettings) -> bool:
    """Whether it serves or stands by; initialises it the first time, unseals it at every start."""
    tls = client_tls(settings.ca, settings.admin)
    try:
        status = health(settings)
        if status == 501 and settings.leader is None:
            made = ask_json(
                settings.port, "PUT", "/v1/sys/init", {"secret_shares": 1, "secret_threshold": 1},
                tls=tls, timeout_s=ADMIN_S,
            )[1]  # fmt: skip
            kept = {"root_token": made["root_token"], "unseal_key": made["keys"][0]}
            write_file(settings.secrets, json.dumps(kept).encode())
        if status in (501, 503):  # a node that joins another is new until it has
            ask_json(settings.port, "PUT", "/v1/sys/unseal", {"key": unseal_key(settings)}, tls=tls, timeout_s=ADMIN_S)
            status = health(settings)
        return status == SERVING or (status == STANDING_BY and _follows(settings))
    except OSError:
        return False


def _follows(settings: BaoSettings) -> bool:
    """Whether another node of its cluster leads; a node that stands by for want of any leader serves nobody."""
    tls = client_tls(settings.ca, settings.admin)
    leader = ask_json(settings.port, "GET", "/v1/sys/leader", tls=tls)[1] or {}
    return leader.get("leader_address", "") not in ("", settings.url)


# --- administration ----------------------------------------------------------------------------------------------


class BaoAdmin:
    """Calls with the root token: what the owner of that OpenBao would do by hand."""

    def __init__(self, settings: BaoSettings) -> None:
        self._settings = settings
        self._tls = client_tls(settings.ca, settings.admin)

    def ask(self, method: str, path: str, body: Any = None, *, token: str | None = None) -> tuple[int, Any]:
        """(status, answer), with ``token`` instead of the root token where given.  Raises OSError."""
        shown = token
        if shown is None:
            shown = _read_secrets(self._settings)["root_token"] if self._settings.secrets.exists() else ""
        headers = {"X-Vault-Token": shown}
        return ask_json(self._settings.port, method, path, body, tls=self._tls, headers=headers, timeout_s=ADMIN_S)

    def must(self, method: str, path: str, body: Any = None) -> Any:
        """The answer of a call that must succeed.  Raises Unavailable where it does not."""
        try:
            status, answer = self.ask(method, path, body)
        except OSError as silent:
            raise Unavailable("openbao", f"{method} {path}: {silent}") from silent
        if not 200 <= status < 300:
            raise Unavailable("openbao", f"{method} {path} answered {status}: {str(answer)[:300]}")
        return answer

    def policy(self, name: str, rules: dict[str, list[str]]) -> None:
        paths = {path: {"capabilities": able} for path, able in rules.items()}
        self.must("PUT", f"/v1/sys/policies/acl/{name}", {"policy": json.dumps({"path": paths})})

    def mount(self, path: str, kind: str, options: dict[str, str] | None = None) -> None:
        """Nothing where something is mounted there."""
        if f"{path}/" not in self.must("GET", "/v1/sys/mounts")["data"]:
            self.must("POST", f"/v1/sys/mounts/{path}", {"type": kind, "options": options or {}})
        deadline = time.monotonic() + ADMIN_S
        while kind == "kv" and self.ask("GET", f"/v1/{path}/config")[0] != 200:  # version 2 upgrades itself at first
            if time.monotonic() >= deadline:
                raise Unavailable("openbao", f"the mount {path!r} does not come up")
            time.sleep(0.03)

    def transit_key(self, mount: str, name: str, kind: str = "aes256-gcm96") -> None:
        self.must("POST", f"/v1/{mount}/keys/{name}", {"type": kind})

    def approle(self, name: str, *policies: str, **more: Any) -> tuple[str, str]:
        """(role id, secret id) of a new role."""
        self._auth("approle")
        self.must("POST", f"/v1/auth/approle/role/{name}", {"token_policies": list(policies), **more})
        role = self.must("GET", f"/v1/auth/approle/role/{name}/role-id")["data"]["role_id"]
        secret = self.must("POST", f"/v1/auth/approle/role/{name}/secret-id", {})["data"]["secret_id"]
        return role, secret

    def cert_role(self, name: str, ca_pem: str, *policies: str, **more: Any) -> None:
        """A role for clients whose certificate ``ca_pem`` has signed."""
        self._auth("cert")
        body = {"certificate": ca_pem, "token_policies": list(policies), **more}
        self.must("POST", f"/v1/auth/cert/certs/{name}", body)

    def _auth(self, kind: str) -> None:
        if f"{kind}/" not in self.must("GET", "/v1/sys/auth")["data"]:
            self.must("POST", f"/v1/sys/auth/{kind}", {"type": kind})
