"""Where everything of an embedded mesh lies under its directory, and the plan that says what the mesh is.

``mesh.json`` is written once by ``keymesh up``; every process reads its own part of the directory only.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from msgspec import Struct

from keymesh.access.roles import Role
from keymesh.adapters.files import write_file
from keymesh.app.config_broker import BrokerPlan
from keymesh.app.full_plan import FullPlan
from keymesh.model import strict_json
from keymesh.model.errors import Refused

DIR_ENV = "KEYMESH_DIR"
DEFAULT_DIR = ".keymesh"
ASSIGNED: Final = {"operator": frozenset({Role.OPERATOR})}
"""Mesh-wide roles of an embedded mesh: its one administrator."""

FIRST_REGISTRY: Final = "r1"
SECOND_REGISTRY: Final = "r2"
_PLAN_MAX_BYTES = 1024 * 1024


class RegionPlan(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``domain``: residency domain.  ``port``: of its Core on loopback; ``kmip_port``: where that serves KMIP."""

    domain: str
    failure_domain: str
    port: int
    kmip_port: int | None = None
    node: str = "n1"


class TimingPlan(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All in ms; the meaning of each is in ``control.rows.SettingsRow``."""

    ttl_ms: int
    heartbeat_ms: int
    edge_ttl_ms: int
    l1_probe_ms: int
    l1_ttl_ms: int
    snapshot_ms: int


class MeshPlan(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``full``: the servers under it; None: it is embedded.  ``links``: cross-region connections go through relays that
    can be cut: "<src> <dst>" -> relay port.  ``recovery_keys``: public ones that backups are sealed to; none: no
    backups.  ``replicas``: the Registry's beside ``r1``, name -> port.  ``broker``: what each role is told of a message
    broker.  ``elsewhere``: Edges may go to other regions' Cores.  ``hosts``: where the Registry (``registry``) and each
    region's Core are to be reached, where they have hosts of their own and configuration files (``registry-r2``: that
    replica); None: all are on this machine.  ``log_prefix``: under which etcd has the log once it was restored."""

    version: int
    mesh: str
    registry_region: str
    registry_port: int
    regions: dict[str, RegionPlan]
    timing: TimingPlan
    allow_unlocked_memory: bool = False
    links: dict[str, int] | None = None
    kms_ports: dict[str, int] | None = None
    hosts: dict[str, str] | None = None
    full: FullPlan | None = None
    recovery_keys: tuple[str, ...] = ()
    replicas: dict[str, int] | None = None
    broker: BrokerPlan | None = None
    elsewhere: bool = False
    log_prefix: str = ""

    @property
    def registry_nodes(self) -> dict[str, int]:
        """Every replica of the Registry, in the order to try them: name -> port."""
        return {FIRST_REGISTRY: self.registry_port, **dict(sorted((self.replicas or {}).items()))}

    @property
    def registry_addresses(self) -> tuple[str, ...]:
        """Base URLs of the Registry's replicas themselves, in the order to try them."""
        return tuple(
            f"https://{self._host(registry_process(node))}:{port}" for node, port in self.registry_nodes.items()
        )

    def registries(self, src: str) -> tuple[str, ...]:
        """Base URLs of the Registry's replicas as processes of region ``src`` reach them, in the order to try them."""
        links = self.links or {}
        ports = [links.get(f"{src} {registry_process(node)}") for node in self.registry_nodes]
        return tuple(
            direct if port is None else f"https://127.0.0.1:{port}"
            for direct, port in zip(self.registry_addresses, ports, strict=True)
        )

    def url(self, src: str, dst: str) -> str:
        """Base URL of ``dst`` (``registry`` or a region) as processes of region ``src`` reach it.

        Raises Refused for a region that is not in the plan.
        """
        if self.links is not None:
            port = self.links.get(f"{src} {dst}")
            if port is not None:
                return f"https://127.0.0.1:{port}"
        return self.address(dst)

    def address(self, target: str) -> str:
        """Base URL of the Registry or a region's Core itself.  Raises Refused for a region that is not in the plan."""
        if target != "registry" and target not in self.regions:
            raise Refused("unknown-region", f"{target[:64]!r} is not in this mesh's plan", field="region")
        port = self.registry_port if target == "registry" else self.regions[target].port
        return f"https://{self._host(target)}:{port}"

    def _host(self, target: str) -> str:
        host = (self.hosts or {}).get(target, "127.0.0.1")
        return f"[{host}]" if ":" in host else host


def registry_process(node: str) -> str:
    """What the process of that replica is called, its directory, the link to it, and its place among ``hosts``."""
    return "registry" if node == FIRST_REGISTRY else f"registry-{node}"


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths under the mesh directory ``root``."""

    root: Path

    @property
    def plan(self) -> Path:
        return self.root / "mesh.json"

    @property
    def lock(self) -> Path:
        return self.root / "supervisor.lock"

    @property
    def control_socket(self) -> Path:
        return self.root / "supervisor.sock"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def keys(self) -> Path:
        return self.root / "keys"

    def shares(self, region: str) -> Path:
        return self.keys / "shares" / region

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def ca(self) -> Path:
        return self.pki / "ca.pem"

    @property
    def trust(self) -> Path:
        return self.root / "trust.json"

    @property
    def genesis(self) -> Path:
        """The mesh's first entry, signed: what its log begins with."""
        return self.root / "genesis.json"

    @property
    def admin(self) -> Path:
        return self.root / "admin"

    @property
    def registry(self) -> Path:
        return self.root / "registry"

    def registry_of(self, node: str) -> Path:
        """The directory of one of the Registry's replicas."""
        return self.root / registry_process(node)

    def core(self, region: str) -> Path:
        return self.root / "regions" / region / "core"

    def edge(self, region: str) -> Path:
        return self.root / "regions" / region / "edge"

    def edge_socket(self, region: str) -> Path:
        return self.edge(region) / "edge.sock"

    @property
    def customer_kms(self) -> Path:
        return self.root / "customer-kms"

    def backups(self, domain: str) -> Path:
        """Store of a residency domain's backups; of the Registry's where ``domain`` is empty."""
        return self.root / "backups" / (f"domain-{domain}" if domain else "registry")

    @property
    def recovery_key(self) -> Path:
        return self.keys / "recovery-1.pem"

    @property
    def wan_plan(self) -> Path:
        return self.root / "wan.json"

    @property
    def wan_socket(self) -> Path:
        return self.root / "wan.sock"


def resolve_dir(given: str | None) -> Path:
    """The mesh directory: ``--dir``, else $KEYMESH_DIR, else ``.keymesh`` here."""
    return Path(given or os.environ.get(DIR_ENV) or DEFAULT_DIR).resolve()


def load_plan(layout: Layout) -> MeshPlan:
    """Raises Refused where there is no mesh in that directory."""
    try:
        raw = layout.plan.read_bytes()
    except FileNotFoundError as missing:
        raise Refused(
            "not-found", f"no mesh in {layout.root}; `keymesh up --dir {layout.root}` makes one", field="dir"
        ) from missing
    return strict_json.decode(raw, MeshPlan, max_bytes=_PLAN_MAX_BYTES)


def save_plan(layout: Layout, plan: MeshPlan) -> None:
    write_file(layout.plan, strict_json.dumps(plan))
