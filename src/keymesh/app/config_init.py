"""The development ceremony for roles on hosts of their own: the same keys as ``keymesh up`` makes, a directory a role.

Each directory has its configuration, its keys and certificates and nothing else of the mesh, so that it can be carried
to its host: ``registry``, ``core-REGION``, ``edge-REGION``, ``customer-kms``; ``admin`` is the operator's (``--dir``),
``ceremony`` has what no role needs: the root keys, to be kept apart.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keymesh.adapters.files import PUBLIC_MODE, write_file
from keymesh.app import ceremony
from keymesh.app.bootstrap import DEV_MESH, bootstrap, finish
from keymesh.app.config import CoreConfig, EdgeConfig, RegistryConfig
from keymesh.app.config_database import DatabaseConfig
from keymesh.app.config_endpoint import Endpoint
from keymesh.app.config_log import LogConfig
from keymesh.app.config_parts import CoreTiming, IdentityFiles, Listen, check_host
from keymesh.app.config_toml import to_toml
from keymesh.app.layout import Layout, MeshPlan, RegionPlan, TimingPlan, registry_process
from keymesh.model.errors import Refused

KMS: Final = "customer-kms"
LOOPBACK: Final = "127.0.0.1"
REPLICAS_MAX: Final = 7
_STAGING: Final = ".making"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What the Registry's replicas share, by address; empty: one Registry with files of its own.

    Credentials come from whoever runs those servers, under these names in each replica's directory: ``etcd-ca.pem``,
    ``etcd.pem`` (certificate and key), ``postgresql-ca.pem``, ``postgresql.password``.
    """

    etcd: tuple[str, ...] = ()
    postgresql: tuple[str, ...] = ()
    user: str = "keymesh"

    def log(self, home: Path) -> LogConfig | None:
        """The section of a Registry whose files lie in ``home``."""
        ca, own = str(home / "etcd-ca.pem"), str(home / "etcd.pem")
        endpoints = tuple(Endpoint(url=url, ca_file=ca, cert_file=own) for url in self.etcd)
        return LogConfig(kind="etcd", endpoints=endpoints) if endpoints else None

    def database(self, home: Path) -> DatabaseConfig | None:
        """The section of a Registry whose files lie in ``home``."""
        ca, own = str(home / "postgresql-ca.pem"), str(home / "postgresql.password")
        endpoints = tuple(
            Endpoint(url=url, ca_file=ca, username=self.user, password_file=own) for url in self.postgresql
        )
        return DatabaseConfig(kind="postgresql", endpoints=endpoints) if endpoints else None

    def check(self, n_replicas: int) -> None:
        """Raises Refused naming the flag."""
        if not 1 <= n_replicas <= REPLICAS_MAX:
            raise Refused.bad_field("replicas", f"1 to {REPLICAS_MAX}")
        if n_replicas > 1 and not self.etcd:
            raise Refused.bad_field("etcd", "replicas have one log, in etcd: name its members")
        for flag, section in (("etcd", self.log(Path("/"))), ("postgresql", self.database(Path("/")))):
            if section is not None:
                try:
                    section.check()
                except Refused as bad:
                    raise Refused.bad_field(flag, bad.message) from bad


ALONE: Final = Shared()


def parse_hosts(text: str | None, regions: dict[str, str], *, n_replicas: int = 1) -> dict[str, str]:
    """``H`` or ``ROLE=H,...`` to a host for each Registry, the customer's KMS and each region.  Raises Refused."""
    roles = [*map(registry_process, _nodes(n_replicas)), KMS, *regions]
    if text is None or "=" not in text:
        check_host("host", text or LOOPBACK)
        return dict.fromkeys(roles, text or LOOPBACK)
    hosts: dict[str, str] = {}
    for part in text.split(","):
        role, _, host = part.strip().partition("=")
        if role not in roles or role in hosts:
            raise Refused.bad_field("host", f"ROLE=HOST,... with each of {', '.join(roles)} at most once")
        check_host("host", host)
        hosts[role] = host
    return {role: hosts.get(role, LOOPBACK) for role in roles}


def _nodes(n_replicas: int) -> list[str]:
    return [f"r{n}" for n in range(1, n_replicas + 1)]


def spread_plan(
    regions: dict[str, str],
    hosts: dict[str, str],
    first_port: int,
    timing: TimingPlan,
    *,
    allow_unlocked_memory: bool,
    n_replicas: int = 1,
) -> MeshPlan:
    """Ports in order: the Registry's, each Core's, each replica's of the customer's KMS, further Registries'.

    Raises Refused.
    """
    names = list(regions)
    last = 65_535 - 2 * len(names) - (n_replicas - 1)
    if not 1 <= first_port <= last:
        raise Refused.bad_field("first-port", f"1 to {last}")
    further = {node: first_port + 1 + 2 * len(names) + n for n, node in enumerate(_nodes(n_replicas)[1:])}
    return MeshPlan(
        version=1,
        mesh=DEV_MESH,
        registry_region=names[0],
        registry_port=first_port,
        regions={
            name: RegionPlan(domain=domain, failure_domain=name, port=first_port + 1 + n)
            for n, (name, domain) in enumerate(regions.items())
        },
        timing=timing,
        allow_unlocked_memory=allow_unlocked_memory,
        kms_ports={name: first_port + 1 + len(names) + n for n, name in enumerate(names)},
        hosts=hosts,
        replicas=further or None,
    )


def init_hosts(output: Path, plan: MeshPlan, shared: Shared = ALONE) -> list[Path]:
    """Make everything under ``output``; returns the directories.

    Raises Refused where something is there already: a ceremony is held once.
    """
    output = output.absolute()
    if output.exists() and any(output.iterdir()):
        raise Refused("exists", f"{output} is not empty; a ceremony is held once, into a new directory", field="out")
    staging = Layout(output / _STAGING)
    finish(staging, plan, bootstrap(staging, plan))
    _carry(_admin_files(staging, plan), output / "admin")
    _carry(_ceremony_files(staging), output / "ceremony")
    for node in plan.registry_nodes:
        home = output / registry_process(node)
        files = _registry_files(staging, node, has_log=not shared.etcd)
        _carry_role(registry_config(home, plan, node, shared), files, home)
    for region in plan.regions:
        core, edge = output / f"core-{region}", output / f"edge-{region}"
        _carry_role(core_config(core, plan, region), _core_files(staging, region), core)
        _carry_role(edge_config(edge, plan, region), _edge_files(staging, region), edge)
    staging.customer_kms.rename(output / KMS)
    shutil.rmtree(staging.root)
    return sorted(path for path in output.iterdir())


# --- configurations --------------------------------------------------------------------------------------------------


def _listen(plan: MeshPlan, role: str, port: int) -> Listen:
    """On loopback where the others reach it there, else at every address of its host."""
    host = (plan.hosts or {}).get(role, LOOPBACK)
    if host not in (LOOPBACK, "::1", "localhost"):
        host = "::" if ":" in host else "0.0.0.0"
    return Listen(port=port, host=host)


def _identity(home: Path, issuer: str) -> IdentityFiles:
    return IdentityFiles(
        tls_file=str(home / "tls.pem"),
        signing_key_file=str(home / "signing.pem"),
        ca_file=str(home / "ca.pem"),
        trust_file=str(home / "trust.json"),
        issuer_file=str(home / issuer),
    )


def registry_config(home: Path, plan: MeshPlan, node: str, shared: Shared) -> RegistryConfig:
    """Of a Registry whose files lie in ``home``."""
    return RegistryConfig(
        mesh=plan.mesh,
        node=node,
        data_dir=str(home / "data"),
        listen=_listen(plan, registry_process(node), plan.registry_nodes[node]),
        identity=_identity(home, "mesh-ca.pem"),
        log=shared.log(home),
        database=shared.database(home),
    )


def core_config(home: Path, plan: MeshPlan, region: str) -> CoreConfig:
    """Of ``region``'s Core, whose files lie in ``home``."""
    return CoreConfig(
        mesh=plan.mesh,
        region=region,
        node=plan.regions[region].node,
        data_dir=str(home / "data"),
        listen=_listen(plan, region, plan.regions[region].port),
        identity=_identity(home, "region-ca.pem"),
        registries=plan.registry_addresses,
        peers={other: (plan.address(other),) for other in sorted(plan.regions) if other != region},
        timing=CoreTiming(heartbeat_ms=plan.timing.heartbeat_ms),
        allow_unlocked_memory=plan.allow_unlocked_memory,
    )


def edge_config(home: Path, plan: MeshPlan, region: str) -> EdgeConfig:
    """Of an Edge of ``region``, whose files lie in ``home``."""
    return EdgeConfig(
        mesh=plan.mesh,
        region=region,
        data_dir=str(home / "data"),
        listen_socket=str(home / "edge.sock"),
        cores=(plan.address(region),),
        ca_file=str(home / "ca.pem"),
        trust_file=str(home / "trust.json"),
        allow_unlocked_memory=plan.allow_unlocked_memory,
    )


# --- files -----------------------------------------------------------------------------------------------------------

Files = Iterator[tuple[Path, str]]
"""What is carried, and its place in the new directory."""


def _registry_files(staging: Layout, node: str, *, has_log: bool) -> Files:
    """``has_log``: the log is a file, which has begun; else `keymesh registry init` begins it from ``genesis.json``."""
    yield staging.registry_of(node) / "tls.pem", "tls.pem"
    yield staging.registry_of(node) / "signing.pem", "signing.pem"
    yield staging.pki / "mesh-ca.pem", "mesh-ca.pem"
    yield from [(staging.registry / "log.db", "data/log.db")] if has_log else [(staging.genesis, "genesis.json")]
    yield from _trust_files(staging)


def _core_files(staging: Layout, region: str) -> Files:
    for name in ("tls.pem", "signing.pem", "region-ca.pem"):
        yield staging.core(region) / name, name
    yield from _trust_files(staging)


def _edge_files(staging: Layout, region: str) -> Files:
    yield staging.ca, "ca.pem"
    yield staging.edge(region) / "trust.json", "trust.json"


def _trust_files(staging: Layout) -> Files:
    yield staging.ca, "ca.pem"
    yield staging.trust, "trust.json"


def _admin_files(staging: Layout, plan: MeshPlan) -> Files:
    """Where ``Layout`` has them, so that the directory is one for ``--dir``."""
    files = [staging.plan, staging.trust, staging.ca, staging.pki / "mesh-ca.pem", staging.admin / "operator.pem"]
    files += [staging.keys / name for name in ("DEVELOPMENT-KEYS.txt", "tenant-admin.pem")]
    files += sorted(staging.keys.glob("officer-*.pem"))
    files += [staging.edge(region) / "trust.json" for region in plan.regions]
    for path in files:
        yield path, str(path.relative_to(staging.root))


def _ceremony_files(staging: Layout) -> Files:
    yield staging.keys / "DEVELOPMENT-KEYS.txt", "DEVELOPMENT-KEYS.txt"
    yield staging.pki / "root-ca.pem", "root-ca.pem"
    for path in (staging.keys / ceremony.FILE, *sorted(staging.keys.glob("root-*.pem"))):
        yield path, path.name


def _carry(files: Files, home: Path) -> None:
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    for source, place in files:
        target = home / place
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_file(target, source.read_bytes(), mode=source.stat().st_mode & 0o777)


def _carry_role(config: RegistryConfig | CoreConfig | EdgeConfig, files: Files, home: Path) -> None:
    _carry(files, home)
    comment = f"keymesh {config.role}.  Fields: docs/deploy.md, `keymesh config check {config.role}.toml`."
    text = to_toml(config, home, comment=comment)
    write_file(home / f"{config.role}.toml", text.encode(), mode=PUBLIC_MODE)
