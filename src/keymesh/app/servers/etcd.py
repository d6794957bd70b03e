"""etcd: members of one cluster, each in a private directory with a certificate of its own, mutual TLS everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from keymesh.adapters.files import PUBLIC_MODE, write_file
from keymesh.app.servers.binaries import ETCD
from keymesh.app.servers.http_probe import ask_json, client_tls
from keymesh.app.servers.infra_ca import InfraCa
from keymesh.app.servers.plan import ServerPlan

HEARTBEAT_MS, ELECTION_MS = 50, 500


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdMember:
    """One member; ``name`` is its name in the cluster."""

    name: str
    directory: Path
    client_port: int
    peer_port: int

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.client_port}"

    @property
    def peer_url(self) -> str:
        return f"https://127.0.0.1:{self.peer_port}"

    @property
    def pem(self) -> Path:
        """Key and certificate, also with which it speaks to its peers."""
        return self.directory / "member.pem"

    @property
    def ca(self) -> Path:
        return self.directory / "ca.pem"


def prepare(member: EtcdMember, cluster: Sequence[EtcdMember], ca: InfraCa, *, flags: Sequence[str] = ()) -> ServerPlan:
    """The member's directory.  Raises Refused where the program is missing."""
    ETCD.require()
    member.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(member.ca, ca.pem, mode=PUBLIC_MODE)
    ca.keep(member.pem, member.name, server=True)
    return plan(member, cluster, flags=flags)


def plan(member: EtcdMember, cluster: Sequence[EtcdMember], *, flags: Sequence[str] = ()) -> ServerPlan:
    """How to run what ``prepare`` has made.  A member that is started again finds its data, whatever the flags say."""
    pem, ca = str(member.pem), str(member.ca)
    peers = ",".join(f"{m.name}={m.peer_url}" for m in cluster)
    argv = (
        *(str(ETCD.require()), "--name", member.name, "--data-dir", str(member.directory / "data")),
        *("--log-level", "error", "--logger", "zap", "--log-outputs", "stderr"),
        *("--listen-client-urls", member.url, "--advertise-client-urls", member.url),
        *("--listen-peer-urls", member.peer_url, "--initial-advertise-peer-urls", member.peer_url),
        *("--initial-cluster", peers),
        *("--cert-file", pem, "--key-file", pem, "--trusted-ca-file", ca, "--client-cert-auth"),
        *("--peer-cert-file", pem, "--peer-key-file", pem, "--peer-trusted-ca-file", ca, "--peer-client-cert-auth"),
        *("--heartbeat-interval", str(HEARTBEAT_MS), "--election-timeout", str(ELECTION_MS)),
        *flags,
    )
    return ServerPlan(name=member.name, argv=argv, directory=member.directory, ready=partial(_is_ready, member))


def call(member: EtcdMember, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """One request to that member, as itself.  Raises OSError where it does not answer well."""
    status, answer = ask_json(member.client_port, "POST", path, body, tls=client_tls(member.ca, member.pem))
    if status != 200 or not isinstance(answer, dict):
        raise OSError(f"etcd answered {status}")
    return answer


def leader_id(member: EtcdMember) -> int:
    """Whom the member takes for the leader; 0 where it knows none.  Raises OSError."""
    return int(call(member, "/v3/maintenance/status", {}).get("leader", "0"))


def leads(member: EtcdMember) -> bool:
    """Whether that member is the leader.  Raises OSError where it does not answer."""
    status = call(member, "/v3/maintenance/status", {})
    return "leader" in status and status["leader"] == status["header"]["member_id"]


def _is_ready(member: EtcdMember) -> bool:
    try:
        return leader_id(member) != 0
    except (OSError, ValueError):
        return False
