"""The worker that ``bench sidecar`` measures: the sidecar's own server and routes over a lease granted in this process.

Beside the sidecar's listeners it opens what only the bench has: a plaintext TCP listener, and ``/constant``, whose
handler answers a constant of a minted key's size.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

import uvloop

from keymesh.access.callers import Names
from keymesh.access.identity import EdgeIdentity
from keymesh.adapters import key_files, pki
from keymesh.app.bench_lease import SERVICE, TENANT, GrantingTransport, leased
from keymesh.crypto.kat import run_known_answer_tests
from keymesh.edge.client import Edge
from keymesh.edge.http1 import Later, Request
from keymesh.edge.http1_server import Server
from keymesh.edge.http_answers import JSON, Answer, Heads
from keymesh.edge.sidecar_bind import bind_tcp, bind_unix
from keymesh.edge.sidecar_callers import OWNER, caller_context, tls_callers
from keymesh.edge.sidecar_routes import Routes
from keymesh.model.errors import Refused
from keymesh.model.ids import MeshName, check_region, check_service, check_tenant
from keymesh.model.time import Instant
from keymesh.orbital import edge_wire as wire

MESH: Final = MeshName("bench")
IDENTITY: Final = EdgeIdentity(
    mesh=MESH,
    region=check_region("bench"),
    tenant=check_tenant(TENANT),
    service=check_service(SERVICE),
    instance="e1",
)
CONSTANT: Final = b'{"blob":"' + b"A" * 120 + b'"}'


class Host:
    """One leased service, where the routes look for identities."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    def edge_of(self, names: Names) -> Edge | None:
        return self._edge if names == (TENANT, SERVICE) else None

    def edge(self, tenant: str, service: str) -> Edge:
        raise Refused("not-found", "no such identity here", field="service")

    def identities(self) -> list[dict[str, Any]]:
        return []

    def not_ready(self) -> list[str]:
        return []


def make_identity(directory: Path) -> None:
    """``edge.pem`` and ``ca.pem``: one identity, which the worker shows and its callers show as well."""
    at = Instant(time.time_ns() // 1_000_000)
    root = pki.create_root(MESH, now=at)
    region = pki.create_intermediate(root, IDENTITY.region, now=at)
    key = pki.new_tls_key()
    leaf = pki.issue_leaf(region, identity=IDENTITY, public_key=key.public_key(), now=at)
    key_files.write_identity(directory / "edge.pem", key, [leaf, region.certificate])
    (directory / "ca.pem").write_bytes(pki.certificates_pem([root.certificate]))


async def _here(work: Coroutine[Any, Any, Any]) -> Any:
    return await work


async def serve(directory: Path) -> None:
    """Serve on a Unix socket in ``directory`` and on two ports, plain and TLS, that go to standard output.

    SIGUSR1: the lease is revoked, as under a restriction.
    """
    run_known_answer_tests()
    transport = GrantingTransport(os.urandom(32))
    shell = await leased(transport)
    heads = Heads()
    host: Any = Host(Edge(shell, None, IDENTITY, ()))  # type: ignore[arg-type]
    routes = Routes(host, heads, there=_here)

    def handle(asked: Request) -> Answer | Later:
        if asked.path == b"/constant":
            return heads.ok(JSON, len(CONSTANT)) + CONSTANT
        return routes.handle(asked)

    server = Server(handle, routes.refuse, heads=heads, body_max=wire.BATCH_BODY_MAX_BYTES)
    plain = socket.create_server(("127.0.0.1", 0))
    await server.listen(plain, peer_of=lambda transport: OWNER)
    await server.listen(bind_unix(directory / "s"), peer_of=lambda transport: OWNER)
    tls = caller_context(directory / "edge.pem", directory / "ca.pem", MESH, IDENTITY.region)
    mutual = bind_tcp("127.0.0.1", 0)
    await server.listen(mutual, tls=tls, peer_of=tls_callers(MESH, IDENTITY.region))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, transport.revoke)
    print(plain.getsockname()[1], mutual.getsockname()[1], flush=True)
    await stop.wait()
    await server.close(1.0)
    await shell.stop()


def main() -> int:
    """``--dir D --cpu N``"""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dir", required=True, type=Path)
    parser.add_argument("--cpu", type=int)
    args = parser.parse_args()
    if args.cpu is not None:
        os.sched_setaffinity(0, {args.cpu})
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(args.dir))
    return 0


if __name__ == "__main__":
    sys.exit(main())
