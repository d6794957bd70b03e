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
from keymesh.model import strict_json
from keymesh.model.errors import Refused

DIR_ENV = "KEYMESH_DIR"
DEFAULT_DIR = ".keymesh"
ASSIGNED: Final = {"operator": frozenset({Role.OPERATOR})}
"""Mesh-wide roles of an embedded mesh: its one administrator."""

_PLAN_MAX_BYTES = 1024 * 1024


class RegionPlan(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``domain``: residency domain.  ``port``: of its Core on loopback."""

    domain: str
    failure_domain: str
    port: int
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
    """``links``: cross-region connections go through relays that can be cut: "<src> <dst>" -> relay port."""

    version: int
    mesh: str
    registry_region: str
    registry_port: int
    regions: dict[str, RegionPlan]
    timing: TimingPlan
    allow_unlocked_memory: bool = False
    links: dict[str, int] | None = None
    kms_ports: dict[str, int] | None = None

    def url(self, src: str, dst: str) -> str:
        """Base URL of ``dst`` (``registry`` or a region) as processes of region ``src`` reach it.

        Raises Refused for a region that is not in the plan.
        """
        if dst != "registry" and dst not in self.regions:
            raise Refused("unknown-region", f"{dst[:64]!r} is not in this mesh's plan", field="region")
        port = self.registry_port if dst == "registry" else self.regions[dst].port
        if self.links is not None:
            port = self.links.get(f"{src} {dst}", port)
        return f"https://127.0.0.1:{port}"


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
    def admin(self) -> Path:
        return self.root / "admin"

    @property
    def registry(self) -> Path:
        return self.root / "registry"

    def core(self, region: str) -> Path:
        return self.root / "regions" / region / "core"

    def edge(self, region: str) -> Path:
        return self.root / "regions" / region / "edge"

    def edge_socket(self, region: str) -> Path:
        return self.edge(region) / "edge.sock"

    @property
    def customer_kms(self) -> Path:
        return self.root / "customer-kms"

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
