"""The servers that ``bench kmip`` measures, each in a process of its own: this project's engine behind its listener,
or PyKMIP's server.  The port goes to standard output.

Ours keeps its objects in memory as a store at rest would: packed, sealed with AES-256-GCM, opened and unpacked for each
request, and the key bytes sealed once more.  PyKMIP's keeps them in SQLite, in the clear, in a file of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keymesh.adapters.kmip_listener import Listener, server_context
from keymesh.app.kmip_loopback import CALLER, new_world
from keymesh.app.servers.ports import free_ports
from keymesh.crypto.aad import lp
from keymesh.kmip.engine import Engine
from keymesh.kmip.memory import MemoryStore
from keymesh.kmip.objects import ManagedObject, unpacked
from keymesh.kmip.ports import Change, Scope
from keymesh.kmip.ttlv import decode

NONCE_BYTES: Final = 12
CA_FILE: Final = "ca.pem"
SERVER_FILE: Final = "server.pem"


class Sealed:
    """AES-256-GCM under one key, bound to what is sealed and whose it is; also the engine's ``Sealer``."""

    def __init__(self) -> None:
        self._aead = AESGCM(os.urandom(32))

    def close(self, scope: Scope, uid: str, what: str, plain: bytes) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, plain, self._bound(scope, uid, what))

    def read(self, scope: Scope, uid: str, what: str, sealed: bytes) -> bytes:
        return self._aead.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], self._bound(scope, uid, what))

    async def seal(self, scope: Scope, uid: str, material: bytes) -> bytes:
        return self.close(scope, uid, "material", material)

    async def open(self, scope: Scope, uid: str, sealed: bytes) -> bytes:
        return self.read(scope, uid, "material", sealed)

    def _bound(self, scope: Scope, uid: str, what: str) -> bytes:
        return b"".join(lp(part.encode()) for part in (scope.tenant, scope.service, uid, what))


class SealedStore(MemoryStore):
    """The store in memory, whose objects are sealed while nobody reads them.  It is asked by identifier alone."""

    def __init__(self, under: Sealed) -> None:
        super().__init__()
        self._under = under

    async def get(self, scope: Scope, uid: str) -> ManagedObject | None:
        found = self.held.get(scope, {}).get(uid)
        return None if found is None else unpacked(decode(self._under.read(scope, uid, "object", found[0])), found[1])

    async def commit(self, scope: Scope, changes: Sequence[Change]) -> None:
        await super().commit(scope, changes)
        mine = self.held[scope]
        for change in changes:
            raw, version = mine[change.after.uid]
            mine[change.after.uid] = self._under.close(scope, change.after.uid, "object", raw), version


async def serve(directory: Path) -> None:
    """This project's server, on asyncio's own loop, as a Core has it."""
    under = Sealed()
    engine = Engine(new_world(store=SealedStore(under), sealer=under))
    tls = server_context(directory / SERVER_FILE, (directory / CA_FILE).read_bytes())
    listener = Listener(engine.handle, tls=tls, peer_of=lambda _: CALLER)
    bound = socket.create_server(("127.0.0.1", 0))
    await listener.open(bound)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print(bound.getsockname()[1], flush=True)
    await stop.wait()
    await listener.close()


def serve_pykmip(directory: Path) -> None:
    """PyKMIP's, quiet: it logs nothing of a request."""
    warnings.simplefilter("ignore")
    from kmip.services.server import KmipServer  # a development package: the bench says so where it is missing

    (port,) = free_ports(1)
    file = str(directory / SERVER_FILE)
    policies = directory / "policies"
    policies.mkdir()
    server = KmipServer(
        hostname="127.0.0.1",
        port=port,
        certificate_path=file,
        key_path=file,
        ca_path=str(directory / CA_FILE),
        auth_suite="TLS1.2",
        config_path=None,
        log_path=str(directory / "pykmip.log"),
        policy_path=str(policies),
        enable_tls_client_auth=True,
        logging_level="CRITICAL",
        database_path=str(directory / "pykmip.db"),
    )
    with server:
        print(port, flush=True)
        server.serve()


def main() -> int:
    """``--which keymesh|pykmip --dir D``"""
    parser = argparse.ArgumentParser()
    parser.add_argument("--which", required=True, choices=("keymesh", "pykmip"))
    parser.add_argument("--dir", required=True, type=Path)
    args = parser.parse_args()
    if args.which == "pykmip":
        serve_pykmip(args.dir)
    else:
        asyncio.run(serve(args.dir))
    return 0


if __name__ == "__main__":
    sys.exit(main())
