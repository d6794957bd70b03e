"""The Edge host process: the library's operations over HTTP on a Unix socket, for many services at once.

The socket is its owner's alone (0600): whoever can open it may use every identity behind it, as with a file of keys.
Holds its own I/O, as ``client`` does; routes are in ``sidecar_routes``, identities on disk in ``sidecar_identities``.
Certificates are renewed at half their life at the Core, with the certificate at hand and for the same key.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from keymesh.crypto.kat import run_known_answer_tests
from keymesh.crypto.pages import harden_process
from keymesh.edge.client import Edge, EdgeTrust, load_trust
from keymesh.edge.hot_lease import FINAL_REASONS
from keymesh.edge.sidecar_identities import IdentityStore, Lifetime
from keymesh.edge.sidecar_routes import make_app
from keymesh.model.errors import ExitCode, KeymeshError, Refused, Unavailable
from keymesh.model.ids import check_service, check_tenant

log = logging.getLogger("keymesh.edge.sidecar")

RENEW_RETRY_MAX_S: Final = 60.0
RENEW_GAP_S: Final = 1.0
SHUTDOWN_S: Final = 3.0


@dataclass(slots=True)
class Hosted:
    """One service: its Edge once it has a certificate, and the task that renews that."""

    edge: Edge | None = None
    renewal: asyncio.Task[None] | None = None
    error: str = ""


class Sidecar:
    """All identities of one host.  Start and close it on one event loop."""

    def __init__(
        self,
        directory: Path,
        *,
        mesh: str,
        region: str,
        core_urls: Sequence[str],
        ca_file: Path,
        trust: EdgeTrust,
        allow_unlocked_memory: bool = False,
    ) -> None:
        self.store: Final = IdentityStore(directory, mesh=mesh, region=region, ca_file=ca_file)
        self._core_urls = tuple(core_urls)
        self._ca_file = ca_file
        self._trust = trust
        self._allow_unlocked = allow_unlocked_memory
        self._hosted: dict[tuple[str, str], Hosted] = {}
        self._runner: web.AppRunner | None = None

    async def start(self, socket_path: Path) -> None:
        """Serve.  Raises Refused ``address-in-use`` where another process does."""
        bound = bind_owner_only(socket_path)
        try:
            for tenant, service in self.store:
                await self._host(tenant, service)
            self._runner = web.AppRunner(
                make_app(self), access_log=None, handle_signals=False, shutdown_timeout=SHUTDOWN_S
            )
            await self._runner.setup()
            await web.SockSite(self._runner, bound).start()
        except BaseException:
            bound.close()
            await self.close()
            raise

    async def close(self) -> None:
        """Finish what is being served, drop every lease and give it back, all at the same time."""
        if self._runner is not None:
            await self._runner.cleanup()
        for hosted in self._hosted.values():
            if hosted.renewal is not None:
                hosted.renewal.cancel()
        await asyncio.gather(*(hosted.edge.close() for hosted in self._hosted.values() if hosted.edge is not None))
        self._hosted.clear()

    # --- identities ----------------------------------------------------------------------------------------------

    def request_identity(self, tenant: str, service: str) -> str:
        """The certificate request; repeated for an identity that is there already."""
        csr = self.store.request(tenant, service)
        self._hosted.setdefault((tenant, service), Hosted())
        return csr

    async def install_certificate(self, tenant: str, service: str, chain_pem: str) -> Lifetime:
        """Accept the chain and use it, from the next connection on."""
        lifetime = self.store.install(tenant, service, chain_pem, now_ms=time.time_ns() // 1_000_000)
        await self._host(tenant, service)
        return lifetime

    async def _host(self, tenant: str, service: str) -> None:
        """Start the Edge of an identity that has a certificate; one that cannot start is told, and harms no other."""
        hosted = self._hosted.setdefault((tenant, service), Hosted())
        if hosted.edge is not None or not self.store.identity_file(tenant, service).exists():
            return
        try:
            hosted.edge = Edge.start(
                identity=self.store.identity_file(tenant, service),
                ca=self._ca_file,
                cores=self._core_urls,
                trust=self._trust,
                allow_unlocked_memory=self._allow_unlocked,
            )
        except KeymeshError as bad:
            hosted.error = bad.code
            log.error(
                "identity cannot be used", extra={"fields": {"tenant": tenant, "service": service, "code": bad.code}}
            )
            return
        hosted.error = ""
        hosted.renewal = asyncio.get_running_loop().create_task(
            self._keep_certificate_fresh(tenant, service, hosted.edge)
        )

    async def _keep_certificate_fresh(self, tenant: str, service: str, edge: Edge) -> None:
        """Renew at half life; after a failure again and again, ever more rarely, while the rest of it lasts."""
        failures = renewed = 0
        while True:
            lifetime = self.store.lifetime(tenant, service)
            if lifetime is None:
                return
            wait_s = max(RENEW_GAP_S if renewed else 0.0, (lifetime.half - time.time_ns() // 1_000_000) / 1_000)
            if failures:
                life_s = (lifetime.not_after - lifetime.not_before) / 1_000
                wait_s = min(RENEW_RETRY_MAX_S, life_s / 40 * 2 ** min(failures, 10))
            if wait_s > 0:
                await asyncio.sleep(min(wait_s, 3_600.0))
                if not failures and wait_s > 3_600.0:
                    continue
            try:
                chain = await edge.renew_certificate(self.store.request(tenant, service))
                self.store.install(tenant, service, chain, now_ms=time.time_ns() // 1_000_000)
                failures = 0
                renewed += 1
                log.info("certificate renewed", extra={"fields": {"tenant": tenant, "service": service}})
            except (KeymeshError, OSError) as failed:
                failures += 1
                code = failed.code if isinstance(failed, KeymeshError) else "disk"
                log.warning("certificate not renewed", extra={"fields": {"tenant": tenant, "code": code}})

    # --- what the routes ask -----------------------------------------------------------------------------------------

    def edge(self, tenant: str, service: str) -> Edge:
        """The Edge of that service.  Raises Refused ``not-found``, Unavailable ``no-certificate``."""
        hosted = self._hosted.get((check_tenant(tenant), check_service(service)))
        if hosted is None:
            raise Refused("not-found", "no such identity here", field="service")
        if hosted.edge is None:
            raise Unavailable("no-certificate", hosted.error or "this identity has no certificate yet")
        return hosted.edge

    def identities(self) -> list[dict[str, Any]]:
        """Every identity, what it holds and until when its certificate lives; ``ready``: the certificate is valid."""
        listed = []
        now_ms = time.time_ns() // 1_000_000
        for (tenant, service), hosted in sorted(self._hosted.items()):
            lifetime = self.store.lifetime(tenant, service)
            status = {} if hosted.edge is None else hosted.edge.status()
            listed.append(
                {
                    "tenant": tenant,
                    "service": service,
                    "instance": self.store.instance,
                    "uri": self.store.uri(tenant, service),
                    "ready": hosted.edge is not None and lifetime is not None and now_ms < lifetime.not_after,
                    "certificate_not_after": None if lifetime is None else lifetime.not_after,
                    "error": hosted.error,
                    "edge": status,
                }
            )
        return listed

    def not_ready(self) -> list[str]:
        """Why this host is not ready: services that wait for a lease (one that is refused for good waits for none)."""
        waiting = []
        for (tenant, service), hosted in sorted(self._hosted.items()):
            edge = hosted.edge
            if edge is not None and not edge.ready and edge.hot.reason not in FINAL_REASONS:
                waiting.append(f"{tenant}/{service}: {edge.hot.reason or 'expired'}")
        return waiting


def bind_owner_only(path: Path) -> socket.socket:
    """A listening Unix socket that only its owner can open; a dead process's leftover is replaced."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            pass
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError as bad:
            raise Refused("address-in-use", f"cannot listen on {path.name}: {bad.strerror}", field="socket") from bad
        else:
            raise Refused("address-in-use", "another process listens on that socket", field="socket")
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        bound.bind(str(path))
    except OSError as bad:
        bound.close()
        raise Refused("address-in-use", f"cannot listen on {path.name}: {bad.strerror or bad}", field="socket") from bad
    finally:
        os.umask(before)
    return bound


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``main`` needs."""
    parser.add_argument("--dir", required=True, metavar="D", help="where identities are kept")
    parser.add_argument("--socket", required=True, metavar="PATH", help="Unix socket to serve on")
    parser.add_argument("--region", required=True, metavar="R")
    parser.add_argument("--mesh", required=True, metavar="NAME")
    parser.add_argument("--core-url", required=True, action="append", metavar="URL", help="repeat for more, in order")
    parser.add_argument("--ca", required=True, metavar="FILE", help="the mesh root certificate")
    parser.add_argument("--trust", metavar="FILE", help="whose policies count (default: trust.json in --dir)")
    parser.add_argument("--allow-unlocked-memory", action="store_true", help="start though memory cannot be locked")


def main(args: argparse.Namespace, *, on_ready: Callable[[], object] | None = None) -> int:
    """Serve until SIGTERM or SIGINT.  Returns the exit code; what stands against a start goes to standard error."""
    try:
        run_known_answer_tests()
        harden_process(allow_unlocked_memory=args.allow_unlocked_memory)
        directory, socket_path = Path(args.dir), Path(args.socket)
        sidecar = Sidecar(
            directory,
            mesh=args.mesh,
            region=args.region,
            core_urls=args.core_url,
            ca_file=Path(args.ca),
            trust=load_trust(args.trust or directory / "trust.json"),
            allow_unlocked_memory=args.allow_unlocked_memory,
        )
        asyncio.run(_serve(sidecar, socket_path, on_ready))
    except KeymeshError as bad:
        log.error("cannot start", extra={"fields": {"code": bad.code, "reason": bad.message}})
        print(f"error: {bad.message} [{bad.code}]", file=sys.stderr)
        return int(bad.exit_code)
    socket_path.unlink(missing_ok=True)
    return int(ExitCode.DONE)


async def _serve(sidecar: Sidecar, socket_path: Path, on_ready: Callable[[], object] | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await sidecar.start(socket_path)
    try:
        if on_ready is not None:
            on_ready()
        await stop.wait()
    finally:
        await sidecar.close()
