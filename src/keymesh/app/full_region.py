"""What a region's Core is told of the servers of a full mesh: its key store, its seals, the message broker.

Pure: paths and addresses are put together.
"""

from __future__ import annotations

from pathlib import Path

from keymesh.app.config_broker import CoreBroker, RegistryBroker
from keymesh.app.config_endpoint import Endpoint
from keymesh.app.config_keystore import KeyStoreConfig
from keymesh.app.config_seals import SealsConfig
from keymesh.app.full_plan import CORE_ROLE, HSM_TOKEN, KV_MOUNT, MASTER_KEY, TRANSIT_MOUNT, FullPlan, protocols_of
from keymesh.app.full_servers import CA_FILE, CLIENT_FILE
from keymesh.app.servers.rabbitmq import VHOST

HSM_KEY = f"pkcs11:token={HSM_TOKEN};object={MASTER_KEY}"


def keystore_of(full: FullPlan, region: str, directory: Path) -> KeyStoreConfig:
    """The region's own OpenBao, by the certificate that the Core in ``directory`` was given."""
    endpoint = _endpoint(f"https://127.0.0.1:{full.openbao[region].api}", directory)
    return KeyStoreConfig(kind="openbao", endpoints=(endpoint,), mount=KV_MOUNT, prefix="core", role=CORE_ROLE)


def seals_of(full: FullPlan, region: str, directory: Path) -> SealsConfig:
    """The region's HSM, and its OpenBao's transit: either opens."""
    bao = f"https://127.0.0.1:{full.openbao[region].api}/{TRANSIT_MOUNT}/{MASTER_KEY}"
    return SealsConfig(initial=(HSM_KEY, f"openbao:{bao}?ca={directory / CA_FILE}&cert={CORE_ROLE}"))


def core_broker_of(full: FullPlan, region: str, directory: Path, *, port: int) -> CoreBroker:
    """How the region receives; ``port``: where it reaches the broker."""
    protocol = protocols_of(full)[region]
    endpoint = _endpoint(f"{protocol}s://127.0.0.1:{port}/{VHOST}", directory)
    return CoreBroker(protocol=protocol, endpoints=(endpoint,))


def registry_broker_of(full: FullPlan, directory: Path) -> RegistryBroker:
    """Where the replica in ``directory`` publishes."""
    endpoint = _endpoint(f"amqps://127.0.0.1:{full.broker.amqp}/{VHOST}", directory)
    return RegistryBroker(endpoints=(endpoint,), regions=protocols_of(full))


def _endpoint(url: str, directory: Path) -> Endpoint:
    return Endpoint(url=url, ca_file=str(directory / CA_FILE), cert_file=str(directory / CLIENT_FILE))
