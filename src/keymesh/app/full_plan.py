"""Which servers stand under a mesh of ``keymesh up --full``, and on which ports of loopback: part of its plan.

Two full sites hold the control plane, a witness holds etcd only; OpenBao stands in each region.
"""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct

from keymesh.app.servers.ports import free_ports

SITE_A, SITE_B, WITNESS = "site-a", "site-b", "witness"
SITES: Final = (SITE_A, SITE_B, WITNESS)
BROKER: Final = "rabbitmq"  # as links name it
KV_MOUNT, CORE_ROLE = "kv", "core"  # in a region's OpenBao
TRANSIT_MOUNT, MASTER_KEY, HSM_TOKEN = "transit", "master", "keymesh"  # seals, in OpenBao and in the region's HSM


class EtcdPorts(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    client: int
    peer: int


class BaoPorts(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    api: int
    cluster: int


class BrokerPorts(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """As ``servers.rabbitmq`` needs them."""

    amqp: int
    mqtt: int
    management: int
    distribution: int
    epmd: int


class FullPlan(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``etcd``: by site.  ``postgres``, ``broker``: in the first site.  ``standby``: of the second site's PostgreSQL,
    which follows the first's.  ``openbao``: by region."""

    etcd: dict[str, EtcdPorts]
    postgres: int
    standby: int
    openbao: dict[str, BaoPorts]
    broker: BrokerPorts


def make_full_plan(regions: list[str]) -> FullPlan:
    """With ports that were free just now."""
    ports = iter(free_ports(2 * len(SITES) + 7 + 2 * len(regions)))
    return FullPlan(
        etcd={site: EtcdPorts(client=next(ports), peer=next(ports)) for site in SITES},
        postgres=next(ports),
        standby=next(ports),
        openbao={region: BaoPorts(api=next(ports), cluster=next(ports)) for region in regions},
        broker=BrokerPorts(**dict(zip(BrokerPorts.__struct_fields__, ports, strict=True))),
    )


def protocols_of(full: FullPlan) -> dict[str, Literal["amqp", "mqtt"]]:
    """How each region receives from the broker: they take turns."""
    return {region: "mqtt" if n % 2 else "amqp" for n, region in enumerate(sorted(full.openbao))}


def broker_port(full: FullPlan, region: str) -> int:
    """Where the broker listens for that region's protocol."""
    return full.broker.amqp if protocols_of(full)[region] == "amqp" else full.broker.mqtt


def named_ports(full: FullPlan) -> dict[str, int]:
    """What is listened on, by whom."""
    found = {"PostgreSQL": full.postgres, "PostgreSQL, the standby": full.standby}
    for site, etcd in full.etcd.items():
        found |= {f"etcd of {site}": etcd.client, f"etcd of {site}, to its peers": etcd.peer}
    for region, bao in full.openbao.items():
        found |= {f"OpenBao of {region}": bao.api, f"OpenBao of {region}, cluster": bao.cluster}
    found |= {f"RabbitMQ, {name}": getattr(full.broker, name) for name in BrokerPorts.__struct_fields__}
    return found
