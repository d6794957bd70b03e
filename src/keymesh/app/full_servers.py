"""The servers of a mesh of ``keymesh up --full``: where each lies, how each is made and run.

Under the mesh's directory: ``infra`` (the small CA of all of them), ``control/SITE/SERVER`` for the control plane,
``regions/REGION/openbao`` and ``hsm``.  A role is given its own client certificate of that CA, and a copy of the CA's
certificate, in its own directory; it reads nothing else of these.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keymesh.adapters.files import PUBLIC_MODE, write_file
from keymesh.adapters.pkcs11_config import TOKENS_FILE, TokensFile
from keymesh.app.full_plan import CORE_ROLE, HSM_TOKEN, SITE_A, SITE_B, FullPlan
from keymesh.app.layout import Layout
from keymesh.app.servers import etcd, openbao, postgres, rabbitmq
from keymesh.app.servers.binaries import BAO, ETCD, POSTGRES, RABBITMQ, SOFTHSM
from keymesh.app.servers.infra_ca import InfraCa
from keymesh.app.servers.ownership import check_reachable, let_through
from keymesh.app.servers.plan import ServerPlan
from keymesh.app.servers.postgres import PostgresSettings
from keymesh.app.servers.rabbitmq import region_user, registry_user
from keymesh.app.servers.softhsm import SoftHsm
from keymesh.model import strict_json

BINARIES: Final = (POSTGRES, ETCD, RABBITMQ, BAO, SOFTHSM)
SEAL_FILE: Final = f"openbao-{CORE_ROLE}.pem"  # as ``openbao_descriptor`` calls it
CLIENT_FILE, CA_FILE, PASSWORD_FILE = "infra.pem", "infra-ca.pem", "postgres.password"


@dataclass(frozen=True, slots=True)
class FullServers:
    """Every server's settings."""

    infra: Path
    etcd: tuple[etcd.EtcdMember, ...]
    postgres: PostgresSettings
    standby: PostgresSettings
    openbao: dict[str, openbao.BaoSettings]
    broker: rabbitmq.RabbitSettings


def servers_of(layout: Layout, full: FullPlan) -> FullServers:
    """As the plan has them; nothing is read or written."""
    control = layout.root / "control"
    return FullServers(
        infra=layout.root / "infra",
        etcd=tuple(
            etcd.EtcdMember(
                name=f"etcd-{site}", directory=control / site / "etcd", client_port=ports.client, peer_port=ports.peer
            )
            for site, ports in sorted(full.etcd.items())
        ),
        postgres=PostgresSettings(directory=control / SITE_A / "postgres", port=full.postgres),
        standby=PostgresSettings(name="postgres-standby", directory=control / SITE_B / "postgres", port=full.standby),
        openbao={
            region: openbao.BaoSettings(
                name=f"openbao-{region}",
                directory=layout.root / "regions" / region / "openbao",
                port=ports.api,
                cluster_port=ports.cluster,
            )
            for region, ports in sorted(full.openbao.items())
        },
        broker=rabbitmq.RabbitSettings(
            directory=control / SITE_A / "rabbitmq",
            amqp_port=full.broker.amqp,
            mqtt_port=full.broker.mqtt,
            management_port=full.broker.management,
            distribution_port=full.broker.distribution,
            epmd_port=full.broker.epmd,
        ),
    )


def check_place(root: Path) -> None:
    """Before anything is made.  Raises Refused where a server that runs as another user could not come to ``root``."""
    place = next(parent for parent in (root, *root.parents) if parent.exists())
    if place == root:
        let_through(postgres.USER, root)
    for user in (postgres.USER, rabbitmq.USER):
        check_reachable(user, place)


def prepare_servers(layout: Layout, full: FullPlan, registries: Sequence[Path], *, mesh: str) -> list[ServerPlan]:
    """Directories, certificates (renewed past half of their life), configuration; safe to repeat.

    ``registries``: the directories of the Registry's replicas.

    Raises Refused where a program is missing or the place does not fit, Unavailable where a database cannot be made.
    """
    plans = prepare_control(layout, full, registries)
    servers = servers_of(layout, full)
    ca = _ca(servers)
    plans += [openbao.prepare(bao, ca) for bao in servers.openbao.values()]
    _open_way(layout.root, servers.standby.directory)
    plans.append(postgres.prepare_standby(servers.standby, servers.postgres, ca))
    users = [registry_user("registry"), *(region_user(f"core-{region}", mesh, region) for region in full.openbao)]
    plans.append(rabbitmq.prepare(servers.broker, ca, users))
    for region in full.openbao:
        equip(ca, layout.core(region), f"core-{region}")
        ca.keep(layout.core(region) / SEAL_FILE, f"core-{region}")
        make_token(hsm_of(layout, region), HSM_TOKEN, layout.core(region))
    return plans


def hsm_of(layout: Layout, region: str) -> SoftHsm:
    """The region's HSM: a library that keeps its tokens in a directory."""
    return SoftHsm(layout.root / "regions" / region / "hsm")


def make_token(hsm: SoftHsm, label: str, core: Path) -> None:
    """An empty token where there is none, and how the Core in ``core`` reaches it."""
    if hsm.pin_file(label).exists():
        return
    shutil.rmtree(hsm.tokens, ignore_errors=True)  # half made
    tokens = TokensFile(tokens=(hsm.init_token(label),))
    write_file(core / TOKENS_FILE, strict_json.dumps(tokens))


def prepare_control(layout: Layout, full: FullPlan, registries: Sequence[Path]) -> list[ServerPlan]:
    """The servers of the control plane alone, as ``prepare_servers`` does it."""
    check_place(layout.root)
    servers = servers_of(layout, full)
    ca = _ca(servers)
    _open_way(layout.root, servers.postgres.directory)
    plans = [etcd.prepare(member, servers.etcd, ca) for member in servers.etcd]
    plans.append(postgres.prepare(servers.postgres, ca))
    for directory in registries:
        equip(ca, directory, "registry")
        write_file(directory / PASSWORD_FILE, servers.postgres.password_file.read_bytes())
    return plans


def _ca(servers: FullServers) -> InfraCa:
    return InfraCa.in_directory(servers.infra, "keymesh infrastructure")


def plans_of(layout: Layout, full: FullPlan) -> list[ServerPlan]:
    """How to run what ``prepare_servers`` has made."""
    servers = servers_of(layout, full)
    return [
        *(etcd.plan(member, servers.etcd) for member in servers.etcd),
        postgres.plan(servers.postgres),
        postgres.plan(servers.standby),
        *(openbao.plan(bao) for bao in servers.openbao.values()),
        rabbitmq.plan(servers.broker),
    ]


def equip(ca: InfraCa, directory: Path, name: str) -> None:
    """Give a role what it shows to the servers, and whom it believes."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(directory / CA_FILE, ca.pem, mode=PUBLIC_MODE)
    ca.keep(directory / CLIENT_FILE, name)


def _open_way(root: Path, directory: Path) -> None:
    """Directories between ``root`` and ``directory`` may be passed through by a server's user."""
    for place in reversed([parent for parent in directory.parents if root in parent.parents]):
        place.mkdir(mode=0o711, exist_ok=True)
        let_through(postgres.USER, place)
