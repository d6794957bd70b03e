"""The suites of clients that nobody here wrote, against a live Core: PyKMIP's and MongoDB's."""

from __future__ import annotations

import asyncio
import configparser
from collections.abc import Callable
from pathlib import Path

from kmip.core.enums import KMIPVersion
from tests.integration.kmip_clients import test_mongodb, test_pykmip
from tests.integration.kmip_clients.served import Served
from tests.integration.mesh.kmip_user import enrol
from tests.integration.mesh.live import FILES, US, LiveMesh

VERSIONS = (KMIPVersion.KMIP_1_1, KMIPVersion.KMIP_1_4, KMIPVersion.KMIP_2_0)
PYKMIP: tuple[Callable[[Served, KMIPVersion], None], ...] = (
    test_pykmip.test_a_key_from_its_making_to_its_end,
    test_pykmip.test_what_is_registered_comes_back,
    test_pykmip.test_a_key_is_given_out_wrapped,
    test_pykmip.test_attributes,
    test_pykmip.test_locate_by_what_a_key_is,
    test_pykmip.test_refusals_as_the_client_tells_them,
    test_pykmip.test_a_password_beside_the_certificate,
)
USES = (test_pykmip.test_encrypt_and_decrypt, test_pykmip.test_mac)


async def client_of(mesh: LiveMesh, name: str, where: Path) -> Served:
    """An enrolled client and the Core that serves it."""
    user = await enrol(mesh, name, US, FILES, where)
    said = configparser.ConfigParser()
    said.read(user.config)
    client = said["client"]
    identity = where / f"{name}.pem"
    identity.write_bytes(Path(client["keyfile"]).read_bytes() + Path(client["certfile"]).read_bytes())
    port, ca_file = int(client["port"]), Path(client["ca_certs"])
    return Served(client["host"], port, identity, ca_file, name, says_host=False)


async def test_pykmip_in_several_versions(mesh: LiveMesh, tmp_path: Path) -> None:
    served = await client_of(mesh, "suite-pykmip", tmp_path)
    for version in VERSIONS:
        for work in (*PYKMIP, *(USES if version in test_pykmip.USING else ())):
            await asyncio.to_thread(work, served, version)


async def test_mongodb_in_both_modes(mesh: LiveMesh, tmp_path: Path) -> None:
    served = await client_of(mesh, "suite-mongodb", tmp_path)
    for mode in ({}, {"delegated": True}):
        await asyncio.to_thread(test_mongodb.test_a_data_key_is_made_wrapped_and_opened_by_another_client, served, mode)
        await asyncio.to_thread(test_mongodb.test_what_the_kms_refuses_stays_closed, served, mode)
