"""The configuration of every role of ``keymesh up``, derived from the plan: processes know no other way to be told.

Pure: paths are put together, nothing is read.
"""

from __future__ import annotations

from pathlib import Path

from keymesh.app.config import CoreConfig, EdgeConfig, RegistryConfig
from keymesh.app.config_backup import BackupConfig
from keymesh.app.config_broker import CoreBroker, RegistryBroker
from keymesh.app.config_kmip import KmipConfig
from keymesh.app.config_parts import CoreTiming, IdentityFiles, Listen
from keymesh.app.full_plan import BROKER, broker_port
from keymesh.app.full_region import core_broker_of, keystore_of, registry_broker_of, seals_of
from keymesh.app.full_registry import database_of, log_of
from keymesh.app.layout import FIRST_REGISTRY, Layout, MeshPlan
from keymesh.model.errors import Refused


def registry_config_of(layout: Layout, plan: MeshPlan, node: str | None = None) -> RegistryConfig:
    """Of the mesh's Registry; ``node``: of that replica, the first for None.  Raises Refused."""
    node = node or FIRST_REGISTRY
    if node not in plan.registry_nodes:
        raise Refused("unknown-node", f"{node[:64]!r} is no Registry of this mesh's plan", field="node")
    directory = layout.registry_of(node)
    return RegistryConfig(
        mesh=plan.mesh,
        node=node,
        data_dir=str(directory),
        listen=Listen(port=plan.registry_nodes[node]),
        log=None if plan.full is None else log_of(layout, plan.full, directory, prefix=plan.log_prefix),
        database=None if plan.full is None else database_of(layout, plan.full, directory),
        identity=IdentityFiles(
            tls_file=str(directory / "tls.pem"),
            signing_key_file=str(directory / "signing.pem"),
            ca_file=str(layout.ca),
            trust_file=str(layout.trust),
            issuer_file=str(layout.pki / "mesh-ca.pem"),
        ),
        backup=_backup(layout, plan, ""),
        broker=_registry_broker(plan, directory),
    )


def core_config_of(layout: Layout, plan: MeshPlan, region: str | None) -> CoreConfig:
    """Of ``region``'s Core, which reaches the others as the plan's links have it.  Raises Refused."""
    region = check_planned(plan, region)
    directory = layout.core(region)
    return CoreConfig(
        mesh=plan.mesh,
        region=region,
        node=plan.regions[region].node,
        data_dir=str(directory),
        listen=Listen(port=plan.regions[region].port),
        identity=IdentityFiles(
            tls_file=str(directory / "tls.pem"),
            signing_key_file=str(directory / "signing.pem"),
            ca_file=str(layout.ca),
            trust_file=str(layout.trust),
            issuer_file=str(directory / "region-ca.pem"),
        ),
        registries=plan.registries(region),
        peers={other: (plan.url(region, other),) for other in sorted(plan.regions) if other != region},
        timing=CoreTiming(heartbeat_ms=plan.timing.heartbeat_ms),
        allow_unlocked_memory=plan.allow_unlocked_memory,
        backup=_backup(layout, plan, plan.regions[region].domain),
        broker=_core_broker(plan, region, directory),
        keystore=None if plan.full is None else keystore_of(plan.full, region, directory),
        seals=None if plan.full is None else seals_of(plan.full, region, directory),
        kmip=None if (port := plan.regions[region].kmip_port) is None else KmipConfig(port=port),
    )


def _backup(layout: Layout, plan: MeshPlan, domain: str) -> BackupConfig | None:
    """Into the mesh's own directory; none in a mesh that was made without recovery keys."""
    if not plan.recovery_keys:
        return None
    return BackupConfig(recipients=plan.recovery_keys, store_dir=str(layout.backups(domain)), domain=domain)


def _registry_broker(plan: MeshPlan, directory: Path) -> RegistryBroker | None:
    """The broker that the mesh was told of, else the one that it stands on."""
    if plan.broker is not None:
        return plan.broker.registry
    return None if plan.full is None else registry_broker_of(plan.full, directory)


def _core_broker(plan: MeshPlan, region: str, directory: Path) -> CoreBroker | None:
    if plan.broker is not None:
        return plan.broker.cores.get(region)
    if plan.full is None:
        return None
    port = (plan.links or {}).get(f"{region} {BROKER}", broker_port(plan.full, region))
    return core_broker_of(plan.full, region, directory, port=port)


def edge_config_of(layout: Layout, plan: MeshPlan, region: str | None) -> EdgeConfig:
    """Of ``region``'s Edge, which is beside its Core.  Raises Refused."""
    region = check_planned(plan, region)
    directory = layout.edge(region)
    return EdgeConfig(
        mesh=plan.mesh,
        region=region,
        data_dir=str(directory),
        listen_socket=str(layout.edge_socket(region)),
        cores=(plan.url(region, region),),
        elsewhere={other: (plan.url(region, other),) for other in plan.regions if plan.elsewhere and other != region},
        ca_file=str(layout.ca),
        trust_file=str(directory / "trust.json"),
        allow_unlocked_memory=plan.allow_unlocked_memory,
    )


def check_planned(plan: MeshPlan, region: str | None) -> str:
    """``region`` where it is in the plan.  Raises Refused."""
    if region is None or region not in plan.regions:
        raise Refused("unknown-region", f"{(region or '')[:64]!r} is not in this mesh's plan", field="region")
    return region
