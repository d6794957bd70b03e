"""A Core's door for KMIP: the engine behind the TLS listener, with the Core's keys, objects, gate and receipts.

Who comes is what the certificate says, one of this region's for a client that its tenant names; the connection of one
that is not, or no longer, is ended.  A restriction ends what clients have under way: answers that were computed are not
given, and uses in parts are dropped.  DESIGN section 7.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keymesh.access.identity import ClientIdentity
from keymesh.adapters.kmip_listener import Limits, Listener
from keymesh.adapters.system import SystemEntropy
from keymesh.adapters.tls import Credentials, PeerContext, PeerSSLObject, mesh_check
from keymesh.app.core_kmip_gate import CoreGate
from keymesh.app.core_kmip_keys import ServiceKeys, used
from keymesh.app.core_kmip_records import KmipRecords
from keymesh.app.core_kmip_store import SealedStore
from keymesh.core import clients
from keymesh.kmip.context import World
from keymesh.kmip.engine import Engine
from keymesh.kmip.pace import SECOND_NS, Pace
from keymesh.kmip.ports import Caller, Scope
from keymesh.model.errors import KeymeshError, Unavailable
from keymesh.model.states import Operation

if TYPE_CHECKING:
    from keymesh.app.config_kmip import KmipConfig
    from keymesh.app.core_app import CoreProcess

log = logging.getLogger("keymesh.kmip")

LOOK_S: Final = 1.0
"""How often uses in parts are looked at whose client or service may no longer be served."""
UPKEEP_S: Final = 60.0


class _Chance(SystemEntropy):
    def seed(self, data: bytes) -> int | None:
        return 0  # the system's generator is seeded; nothing of a client's is mixed in


class _Seconds:
    def seconds(self) -> int:
        return time.time_ns() // SECOND_NS


class KmipDoor:
    """Everything of KMIP in one Core that is told to serve it."""

    def __init__(self, core: CoreProcess, config: KmipConfig) -> None:
        self._core = core
        self._config = config
        chance = _Chance()
        keys = ServiceKeys(core, chance)
        self.records = KmipRecords(core)
        self.store = SealedStore(core.objects, keys, chance, region=core.region)
        self.gate = CoreGate(core, keys, self.records)
        self._world = World(
            store=self.store, sealer=keys, gate=self.gate, chance=chance, journal=self.records, clock=_Seconds()
        )
        self._engine = Engine(self._world)
        self._pace = Pace(config.requests_per_s)
        self._own = None if config.tls_file is None else Credentials(Path(config.tls_file))
        self._listener: Listener[Caller] | None = None

    @property
    def connections(self) -> int:
        return 0 if self._listener is None else self._listener.connections

    def readiness(self) -> list[str]:
        """Why KMIP is not served, in words."""
        return [] if self._listener is not None else ["KMIP: not listening"]

    # --- life ------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Listen.  Raises Unavailable where the address can't be had."""
        config = self._config
        credentials = self._own or self._core.credentials
        tls = credentials.server_context(
            trust_pem=self._core.tls.root_pem,
            check=mesh_check(self._core.tls.mesh, self._is_client),
            tls12=config.min_tls == "1.2",
        )
        limits = Limits(connections=config.connections, connections_of_one=config.connections_of_one)
        listener = Listener(self._handle, tls=tls, peer_of=self._caller, limits=limits)
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        try:
            bound = socket.create_server((config.host, config.port), family=family, backlog=1_024)
        except OSError as bad:
            raise Unavailable(
                "kmip-address", f"KMIP cannot listen on {config.host}:{config.port}: {bad.strerror}"
            ) from bad
        await listener.open(bound)
        self._listener = listener

    async def run(self) -> None:
        """Look after what is under way, and put sums on record."""
        looked = time.monotonic()
        while True:
            await asyncio.sleep(LOOK_S)
            self._world.streams.keep(lambda caller: not self.gate.why_not(caller, Operation.UNWRAP))
            if time.monotonic() - looked >= UPKEEP_S:
                looked = time.monotonic()
                self.records.flush()
                self._renew()

    async def close(self) -> None:
        """Answer what has come, hang up, and record what is left to be."""
        if self._listener is not None:
            await self._listener.close()
            self._listener = None
        self.records.flush()

    def dropped(self, tenant: str | None) -> None:
        """Keys of ``tenant`` (None: of all) leave memory: so does every use in parts."""
        self._world.streams.keep(lambda caller: tenant is not None and caller.scope.tenant != tenant)
        self.store.forget()

    def _renew(self) -> None:
        """Show the certificate that now lies in ``tls_file``, if one is named."""
        if self._own is not None:
            try:
                self._own.reload()
            except (KeymeshError, OSError) as bad:
                log.error("KMIP certificate not re-read", extra={"fields": {"reason": str(bad)[:200]}})

    # --- requests --------------------------------------------------------------------------------------------------

    def _is_client(self, identity: object) -> bool:
        return isinstance(identity, ClientIdentity) and identity.region == self._core.region

    def _caller(self, tls: ssl.SSLObject) -> Caller | None:
        """Who is behind a connection, asked for each of its requests; None: nobody, or nobody any more."""
        assert isinstance(tls, PeerSSLObject)
        assert isinstance(tls.context, PeerContext)
        identity = None if tls.peer is None else tls.peer.identity
        if tls.peer is None or not isinstance(identity, ClientIdentity) or not tls.context.still_accepts(tls.peer):
            return None
        state = self._core.shell.state
        service = clients.service_of(state, identity)
        if service is None or clients.is_ended(state, identity.tenant, identity.name):
            self.records.deny(identity.tenant, identity.name, "no-such-client", "connection")
            return None
        return Caller(identity.name, Scope(identity.tenant, service))

    async def _handle(self, request: bytes, caller: Caller) -> bytes:
        self._want(caller)
        if (wait_ns := self._pace.wait_ns((caller.scope.tenant, caller.name), time.monotonic_ns())) > 0:
            await asyncio.sleep(wait_ns / SECOND_NS)
        used.set(set())
        return await self._engine.handle(request, caller)

    def _want(self, caller: Caller) -> None:
        """Its tenant's keys are needed here now: they are loaded before those that nobody asks for."""
        holding = self._core.shell.state.tenants.get(caller.scope.tenant)
        if holding is not None and not holding.steady:
            self._core.loads.want(caller.scope.tenant)
