"""What an embedded mesh and a RabbitMQ of its own are told of each other: users by certificate, their rights, the plan.

Each role proves itself by a client certificate of the broker's small CA, whose common name is the user's: no password
lies anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from keymesh.adapters.files import PUBLIC_MODE, write_file
from keymesh.app.config_broker import BrokerPlan, CoreBroker, RegistryBroker
from keymesh.app.config_endpoint import Endpoint
from keymesh.app.servers.infra_ca import InfraCa
from keymesh.app.servers.rabbitmq import BrokerUser, RabbitSettings, region_user, registry_user
from keymesh.orbital.broker import Protocol

REGISTRY_USER = "registry"


def users_of(mesh: str, regions: Mapping[str, Protocol]) -> list[BrokerUser]:
    """The Registry's, and one for each of ``regions``, with no more rights than each needs."""
    return [registry_user(REGISTRY_USER), *(region_user(f"core-{region}", mesh, region) for region in sorted(regions))]


def plan_of(settings: RabbitSettings, ca: InfraCa, directory: Path, regions: Mapping[str, Protocol]) -> BrokerPlan:
    """The sections of every role, with their certificates in ``directory``."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(directory / "ca.pem", ca.pem, mode=PUBLIC_MODE)

    def endpoint(user: str, protocol: Protocol) -> Endpoint:
        port = settings.amqp_port if protocol is Protocol.AMQP else settings.mqtt_port
        return Endpoint(
            url=f"{protocol.value}s://127.0.0.1:{port}/{settings.vhost}",
            ca_file=str(directory / "ca.pem"),
            cert_file=str(ca.keep(directory / f"{user}.pem", user)),
        )

    cores = {
        region: CoreBroker(protocol=protocol.value, endpoints=(endpoint(f"core-{region}", protocol),))
        for region, protocol in sorted(regions.items())
    }
    registry = RegistryBroker(
        endpoints=(endpoint(REGISTRY_USER, Protocol.AMQP),),
        regions={region: core.protocol for region, core in cores.items()},
    )
    return BrokerPlan(registry=registry, cores=cores)
