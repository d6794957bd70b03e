"""PyKMIP's client in a test's hands: enrolled by the command line, one connection, what it was refused and why."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kmip import enums
from kmip.pie.client import ProxyKmipClient
from kmip.pie.exceptions import KmipOperationFailure
from tests.integration.mesh.live import PATIENCE_S, LiveMesh

T = TypeVar("T")

CBC = {
    "cryptographic_algorithm": enums.CryptographicAlgorithm.AES,
    "block_cipher_mode": enums.BlockCipherMode.CBC,
    "padding_method": enums.PaddingMethod.PKCS5,
}
USES = [enums.CryptographicUsageMask.ENCRYPT, enums.CryptographicUsageMask.DECRYPT]
HUNG_UP = "hung-up"
NOT_NOW = ("not permitted", "not available now; ask again later")


@dataclass(slots=True)
class KmipUser:
    """One enrolled client."""

    config: Path

    def connected(self) -> ProxyKmipClient:
        return ProxyKmipClient(config_file=str(self.config))

    async def do(self, work: Callable[[ProxyKmipClient], T]) -> T:
        """``work`` over a connection of its own; again where it is not served just now: on a slow machine a lease may
        run out."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await asyncio.to_thread(self._once, work)
            except KmipOperationFailure as no:
                if no.message not in NOT_NOW or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.2)

    def _once(self, work: Callable[[ProxyKmipClient], T]) -> T:
        with self.connected() as client:
            return work(client)

    async def refusal(self, work: Callable[[ProxyKmipClient], Any]) -> str:
        """The reason that the server gives, ``hung-up`` where it gives none, "" where it serves."""
        try:
            await asyncio.to_thread(self._once, work)
        except KmipOperationFailure as no:
            return f"{no.reason.name}: {no.message}"
        except (OSError, Exception) as gone:  # PyKMIP raises whatever a connection that ended looks like to it
            assert not isinstance(gone, AssertionError), gone
            return HUNG_UP
        return ""


async def enrol(mesh: LiveMesh, name: str, tenant: str, service: str, where: Path, *more: str) -> KmipUser:
    """A client of that service, by the command line."""
    out = where / f"{tenant}-{name}"
    words = ("kmip", "client", "add", name, "--tenant", tenant, "--service", service, "--out", out)
    shown = await mesh.cli(*words, *more)
    assert (shown["client"], shown["service"]) == (name, service)
    return KmipUser(out / "pykmip.conf")


def make(client: ProxyKmipClient, name: str | None = None) -> tuple[str, bytes]:
    """A new active AES key: (identifier, its bytes).  A name that this service has already is taken up again: the test
    may have been stopped half-way (``KmipUser.do``)."""
    found = [] if name is None else named(client, name)
    if found:
        with contextlib.suppress(KmipOperationFailure):  # it is active
            client.activate(found[0])
        return found[0], client.get(found[0]).value
    return new(client, name)


def new(client: ProxyKmipClient, name: str | None = None) -> tuple[str, bytes]:
    """As ``make``, of a name that must be free."""
    uid = client.create(enums.CryptographicAlgorithm.AES, 256, name=name, cryptographic_usage_mask=USES)
    client.activate(uid)
    return uid, client.get(uid).value


def sealed(client: ProxyKmipClient, uid: str, data: bytes, iv: bytes) -> bytes:
    found, _ = client.encrypt(data, uid=uid, cryptographic_parameters=CBC, iv_counter_nonce=iv)
    return bytes(found)


def opened(client: ProxyKmipClient, uid: str, data: bytes, iv: bytes) -> bytes:
    return bytes(client.decrypt(data, uid=uid, cryptographic_parameters=CBC, iv_counter_nonce=iv))


def named(client: ProxyKmipClient, name: str) -> list[str]:
    """Identifiers of the objects of a name."""
    from kmip.core.factories.attributes import AttributeFactory

    wanted = AttributeFactory().create_attribute(enums.AttributeType.NAME, name_of(name))
    return list(client.locate(attributes=[wanted]))


def name_of(text: str) -> Any:
    from kmip.core.attributes import Name

    return Name.create(text, enums.NameType.UNINTERPRETED_TEXT_STRING)
