"""A real lease without a network, for benches: the machine asks, and this process grants on a key of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keymesh.control.entry import ENTRY_PAYLOAD_TYPE, Body, Entry, encode_entry
from keymesh.control.rows import ServiceRow
from keymesh.control.signing import DsseSuite
from keymesh.crypto.dsse import Ed25519Signer
from keymesh.crypto.kid import kid_of
from keymesh.crypto.pages import KeyPages
from keymesh.edge.client_shell import EdgeShell, addresses
from keymesh.edge.client_transport import GrantedKeys
from keymesh.edge.policy import policy_verifier
from keymesh.edge.snapshot import EdgeConfig
from keymesh.model.errors import Unavailable
from keymesh.model.ids import ZERO_DIGEST
from keymesh.model.states import Custody
from keymesh.orbital.edge_messages import LeasedVersion, LeaseGrant, LeaseRefused, LeaseRequest, Revocation

TENANT: Final = "bench"
SERVICE: Final = "bench"
LEASE: Final = "bench"
TTL_MS: Final = 3_600_000


class GrantingTransport:
    """Stands where the mTLS transport stands, and grants one lease on a key of its own, until that is revoked."""

    def __init__(self, key: bytes) -> None:
        self.registry = Ed25519Signer(Ed25519PrivateKey.generate())
        self._key = key
        self._said: asyncio.Queue[Revocation] = asyncio.Queue()
        self._is_restricted = False
        self._pages = KeyPages(allow_unlocked=True)

    async def post(self, core: str, message: Any) -> Any:
        """The grant for a lease request; nothing for anything else."""
        if not isinstance(message, LeaseRequest):
            return None
        if self._is_restricted:
            return LeaseRefused(nonce=message.nonce, code="restricted", retry_after_ms=TTL_MS)
        policy = ServiceRow(version=1, custody=Custody.LEASED.value, edge_ttl_ms=TTL_MS)
        entry = Entry(
            mesh="bench",
            epoch=1,
            namespace=TENANT,
            seq=1,
            prev=ZERO_DIGEST,
            mesh_seq=1,
            kind="service.set",
            body=Body(args={"service": SERVICE, "row": msgspec.to_builtins(policy)}),
            state=ZERO_DIGEST,
            actor="bench",
            correlation_id="bench",
            command_id="bench",
            issued_at=0,
        )
        grant = LeaseGrant(
            lease_id=LEASE,
            nonce=message.nonce,
            tenant=TENANT,
            service=SERVICE,
            ttl_ms=TTL_MS,
            versions=(LeasedVersion(kid=kid_of(self._key).hex(), version=1, may_wrap=True),),
            policy=policy,
            policy_entry=self.registry.sign(encode_entry(entry), ENTRY_PAYLOAD_TYPE),
        )
        return GrantedKeys(grant, (self._pages.put(bytearray(self._key)),))

    async def ready(self, core: str) -> None:
        """Always."""

    @asynccontextmanager
    async def stream(self, core: str) -> AsyncIterator[AsyncIterator[Any]]:
        """Silent until the revocation."""

        async def messages() -> AsyncIterator[Any]:
            while True:
                yield await self._said.get()

        yield messages()

    def revoke(self) -> None:
        """As a Core under a restriction: the lease is called back, and no other is granted."""
        self._is_restricted = True
        self._said.put_nowait(
            Revocation(
                revocation_id="bench",
                lease_ids=(LEASE,),
                tenant=TENANT,
                service=SERVICE,
                epoch=1,
                seq=2,
                correlation_id="bench",
            )
        )


async def leased(transport: GrantingTransport) -> EdgeShell:
    """A shell that holds a lease on its key.  Raises Unavailable where the machine got none."""
    registry = transport.registry
    own = Ed25519Signer(Ed25519PrivateKey.generate())
    suite = DsseSuite(own)
    cores = addresses(["in-process"])
    config = EdgeConfig(
        region="bench",
        tenant=TENANT,
        service=SERVICE,
        instance="e1",
        cores=tuple(cores),
        suite=suite,
        signing_key=own.public_key.hex(),
        verify_policy=policy_verifier(
            mesh="bench", registry_keys={registry.key_id: registry.public_key.hex()}, suite=suite
        ),
    )
    shell = EdgeShell(config, transport, cores=cores)
    shell.start()
    while not shell.hot.is_live():
        if not await shell.changed(5.0):
            raise Unavailable("bench", "the bench got no lease")
    return shell
