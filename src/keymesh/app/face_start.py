"""What every ``keymesh edge <face>`` does: an Edge of its own, a ring over it, one TLS listener, and an orderly end."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import logging
import os
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keymesh.adapters.face_http import FaceMetrics, FaceServer, HealthFace, server_context
from keymesh.app.admin_client import AdminClient
from keymesh.app.args_common import chosen_token_file
from keymesh.app.cli_common import stderr
from keymesh.app.face_ring import MeshRing, host_all
from keymesh.app.layout import Layout, MeshPlan, load_plan, resolve_dir
from keymesh.app.lifeline import wait_for_stop
from keymesh.app.logs import setup_logging
from keymesh.app.servers.infra_ca import InfraCa
from keymesh.compat.face import Face
from keymesh.crypto.kat import run_known_answer_tests
from keymesh.crypto.pages import harden_process
from keymesh.edge.client import load_trust
from keymesh.edge.http1 import Connection
from keymesh.edge.sidecar import Sidecar
from keymesh.edge.sidecar_bind import bind_tcp
from keymesh.model.errors import ExitCode, KeymeshError, Refused
from keymesh.model.hostport import parse_tcp

log = logging.getLogger("keymesh.face")

TLS_LOOK_S: Final = 60.0
CLIENTS: Final = "keymesh faces"


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceParts:
    """What a face is made of.  ``state`` is a directory of this process alone, for what the face itself keeps."""

    ring: MeshRing
    state: Path
    mesh: str
    region: str
    mesh_ca: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceKind:
    """One face: its name, how it is made, whose keys it is to hold from the start, and what its wire needs."""

    name: str
    make: Callable[[FaceParts], Face]
    tenants: Callable[[], frozenset[str]]
    takes_certificates: bool = False
    connection: type[Connection] | None = None


def run_face(args: argparse.Namespace, kind: FaceKind) -> int:
    """Serve until told to stop; returns the exit code.  Raises Refused for files that are not right."""
    run_known_answer_tests()
    harden_process(allow_unlocked_memory=args.allow_unlocked_memory)
    layout = Layout(resolve_dir(args.dir))
    plan = load_plan(layout)
    if args.region not in plan.regions:
        raise Refused.bad_field("region", f"one of {', '.join(plan.regions)}")
    setup_logging(f"{kind.name}-{args.region}")
    state = Path(args.state)
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    held = _hold(state)
    try:
        asyncio.run(_serve(args, kind, layout, plan, state))
    finally:
        os.close(held)
    return int(ExitCode.DONE)


async def _serve(args: argparse.Namespace, kind: FaceKind, layout: Layout, plan: MeshPlan, state: Path) -> None:
    host, port = parse_tcp(args.listen)
    mesh_ca = layout.ca.read_bytes()
    tls = _Tls(args, state, mesh_ca if kind.takes_certificates else None, host)
    bound = bind_tcp(host, port)
    async with _ring(args, layout, plan, state) as ring:
        face = kind.make(FaceParts(ring=ring, state=state, mesh=plan.mesh, region=args.region, mesh_ca=mesh_ca))
        metrics = FaceMetrics()
        servers = [FaceServer(face, metrics=metrics, **({"connection": kind.connection} if kind.connection else {}))]
        stopped = asyncio.create_task(wait_for_stop())
        await asyncio.sleep(0)  # the signals are taken before anybody can see that we serve, and stop us
        # whoever names a service before it is held here waits for this, or for one look of their own
        beside = [
            asyncio.create_task(tls.keep_fresh()),
            asyncio.create_task(host_all(ring, kind.tenants(), _say_not_hosted)),
        ]
        try:
            await servers[0].listen(bound, tls.context)
            if args.health is not None:
                servers.append(FaceServer(HealthFace(metrics)))
                await servers[1].listen(bind_tcp(*parse_tcp(args.health)), None)
            stderr.print(f"serving {kind.name} on https://{host}:{bound.getsockname()[1]}")
            await stopped
        finally:
            for task in (*beside, stopped):
                task.cancel()
            for server in servers:
                await server.close()


@asynccontextmanager
async def _ring(args: argparse.Namespace, layout: Layout, plan: MeshPlan, state: Path) -> AsyncIterator[MeshRing]:
    """An Edge in ``state`` and, unless ``--no-admin``, an administrator's hand on the Registry."""
    sidecar = Sidecar(
        state,
        mesh=plan.mesh,
        region=args.region,
        core_urls=[plan.url(args.region, args.region)],
        ca_file=layout.ca,
        trust=load_trust(layout.edge(args.region) / "trust.json"),
        allow_unlocked_memory=args.allow_unlocked_memory,
    )
    token = chosen_token_file.get()

    def admin() -> AdminClient:
        return AdminClient(layout, plan, token_file=None if token is None else Path(token))

    if not args.no_admin:
        admin()  # refused now where its files are not right
    await sidecar.open()
    try:
        yield MeshRing(sidecar, None if args.no_admin else admin)
    finally:
        await sidecar.close()


def _say_not_hosted(tenant: str, failed: KeymeshError) -> None:
    log.warning("services not looked up", extra={"fields": {"tenant": tenant, "code": failed.code}})


class _Tls:
    """What is shown to clients: the file that was given, or a certificate of a CA of our own, kept in ``state``."""

    def __init__(self, args: argparse.Namespace, state: Path, client_ca: bytes | None, host: str) -> None:
        self._own = args.tls is None
        self._names = tuple(dict.fromkeys((*args.name, host)))
        self._home = state / "tls"
        self.file = self._home / "server.pem" if self._own else Path(args.tls)
        self._keep()
        self.context = server_context(self.file, client_ca)
        self._shown = self.file.stat().st_mtime_ns

    def _keep(self) -> None:
        if self._own:
            InfraCa.in_directory(self._home, CLIENTS).keep(self.file, CLIENTS, server=True, hosts=self._names)

    async def keep_fresh(self) -> None:
        """New connections see what the file holds by now; one that cannot be read leaves the one before."""
        while True:
            await asyncio.sleep(TLS_LOOK_S)
            with contextlib.suppress(OSError, ssl.SSLError, Refused):
                self._keep()
                if (now := self.file.stat().st_mtime_ns) != self._shown:
                    self.context.load_cert_chain(self.file)
                    self._shown = now


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def _hold(directory: Path) -> int:
    """Hold ``directory`` for this process: its descriptor.  Raises Refused where another one has it."""
    held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as taken:
        os.close(held)
        raise Refused(
            "in-use", f"{directory.name}: another process serves from this directory", field="state"
        ) from taken
    return held
