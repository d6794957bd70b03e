"""The door of a Core for KMIP, on loopback: whom it lets in, what it shows, what it says where it cannot listen."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.unit.app.kmip_core import KmipCore
from tests.unit.core.bench import REGION, TENANT
from tests.unit.kmip.support import batch_item, message, parsed

from keymesh.access.identity import ClientIdentity, CoreIdentity, Identity
from keymesh.adapters import key_files, pki
from keymesh.adapters.tls import Credentials, MeshTls
from keymesh.app.config_kmip import KmipConfig
from keymesh.app.servers.infra_ca import InfraCa
from keymesh.app.servers.ports import free_ports
from keymesh.kmip.enums import Operation
from keymesh.kmip.ttlv import HEADER_BYTES, message_bytes
from keymesh.model.errors import Unavailable
from keymesh.model.ids import MeshName, Namespace, NodeId, RegionId, TenantId
from keymesh.model.time import Instant

MESH, WHERE = MeshName("dev"), RegionId(REGION)
NOW = Instant(time.time_ns() // 1_000_000)
ROOT = pki.create_root(MESH, now=NOW)
CA = pki.create_intermediate(ROOT, REGION, now=NOW)
ROOT_PEM = pki.certificates_pem([ROOT.certificate])
APP = ClientIdentity(mesh=MESH, region=WHERE, tenant=TenantId(Namespace(TENANT)), name="app")
DISCOVER = message((1, 4), batch_item(Operation.DiscoverVersions))


def identity_file(path: Path, identity: Identity) -> Path:
    key = pki.new_tls_key()
    leaf = pki.issue_leaf(CA, identity=identity, public_key=key.public_key(), now=NOW)
    key_files.write_identity(path, key, [leaf, CA.certificate])
    return path


@dataclass
class House:
    core: KmipCore
    config: KmipConfig
    shown: InfraCa
    directory: Path

    async def ask(self, identity: Identity = APP, *, newest: ssl.TLSVersion | None = None) -> bytes:
        """The answer to one request; empty where the door hangs up."""
        context = ssl.create_default_context(cadata=self.shown.pem.decode())  # looks for the host name
        context.load_cert_chain(identity_file(self.directory / "peer.pem", identity))
        if newest is not None:
            context.maximum_version = newest
        async with asyncio.timeout(30):
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.config.port, ssl=context)
                writer.write(DISCOVER)
                head = await reader.readexactly(HEADER_BYTES)
                return head + await reader.readexactly(message_bytes(head) - HEADER_BYTES)
            except (OSError, EOFError):
                return b""


def house(directory: Path, config: KmipConfig) -> KmipCore:
    core = CoreIdentity(mesh=MESH, region=WHERE, node=NodeId("n1"))
    directory.mkdir()
    tls = MeshTls(Credentials(identity_file(directory / "core.pem", core)), MESH, ROOT_PEM)
    return KmipCore(directory, config=config, tls=tls)


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[House]:
    """With a certificate of the operator's own to show, as clients that look for a host name want."""
    shown = InfraCa.make("operator")
    own = shown.issue(tmp_path / "own.pem", "kms.example", server=True)
    config = KmipConfig(port=free_ports(1)[0], tls_file=str(own))
    found = House(house(tmp_path / "one", config), config, shown, tmp_path)
    assert found.core.door.readiness() == ["KMIP: not listening"]
    await found.core.door.open()
    try:
        yield found
    finally:
        await found.core.door.close()


async def test_a_named_client_is_answered_and_nobody_else(made: House) -> None:
    assert made.core.door.readiness() == []
    _, (answer,) = parsed(await made.ask())
    assert answer.reason is None
    for other in (
        ClientIdentity(mesh=MESH, region=WHERE, tenant=APP.tenant, name="unnamed"),
        CoreIdentity(mesh=MESH, region=WHERE, node=NodeId("n2")),
    ):
        assert await made.ask(other) == b""
    assert made.core.door.records.denied["no-such-client"] == 1
    made.core.restrict(f"client:{TENANT}/app")
    assert await made.ask() == b""
    assert made.core.door.connections == 0


async def test_tls_1_2_only_where_it_is_configured(made: House, tmp_path: Path) -> None:
    assert await made.ask(newest=ssl.TLSVersion.TLSv1_2) == b""
    config = KmipConfig(port=free_ports(1)[0], tls_file=made.config.tls_file, min_tls="1.2")
    older = House(house(tmp_path / "two", config), config, made.shown, tmp_path)
    await older.core.door.open()
    try:
        assert await older.ask(newest=ssl.TLSVersion.TLSv1_2) != b""
    finally:
        await older.core.door.close()


async def test_an_address_that_is_taken_is_said(made: House, tmp_path: Path) -> None:
    second = house(tmp_path / "two", made.config)
    with pytest.raises(Unavailable, match=str(made.config.port)):
        await second.door.open()
    assert second.door.readiness() == ["KMIP: not listening"]
