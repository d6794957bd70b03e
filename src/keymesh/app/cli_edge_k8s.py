"""``keymesh edge k8s-kms``: the KMS v2 plugin of a Kubernetes API server, over an Edge of its own."""

from __future__ import annotations

import argparse
import asyncio
import secrets
from pathlib import Path

from keymesh.app.cli_common import stderr
from keymesh.app.cli_edge_serve import home_of
from keymesh.app.lifeline import wait_for_stop
from keymesh.app.logs import setup_logging
from keymesh.compat.k8s_kms import KubernetesKms
from keymesh.crypto.kat import run_known_answer_tests
from keymesh.crypto.pages import harden_process
from keymesh.edge.client import load_trust
from keymesh.edge.sidecar import Sidecar
from keymesh.edge.sidecar_bind import bind_unix
from keymesh.model.errors import ExitCode, Refused

try:
    from keymesh.adapters.grpc_kms_v2 import KmsV2Server
except ModuleNotFoundError as missing:
    if missing.name is None or missing.name.split(".")[0] not in ("grpc", "google"):
        raise
    raise Refused("missing-extra", "the plugin needs what `pip install 'keymesh[full]'` installs") from missing


def run_k8s_kms(args: argparse.Namespace) -> int:
    """Serve until told to stop; returns the exit code.  Raises Refused for files that are not right."""
    run_known_answer_tests()
    harden_process(allow_unlocked_memory=args.allow_unlocked_memory)
    state, credentials = home_of(args)
    who = credentials.identity
    setup_logging(f"edge-{who.region}")
    path = Path(args.uds)
    bind_unix(path).close()  # refused where another process serves there; gRPC binds it itself
    path.unlink()
    sidecar = Sidecar(
        state,
        mesh=who.mesh,
        region=who.region,
        core_urls=args.core,
        ca_file=credentials.ca_file,
        trust=load_trust(Path(args.identity) / "trust.json"),
        allow_unlocked_memory=args.allow_unlocked_memory,
    )
    asyncio.run(_serve(sidecar, (who.tenant, who.service), path))
    return int(ExitCode.DONE)


async def _serve(sidecar: Sidecar, names: tuple[str, str], path: Path) -> None:
    await sidecar.open()
    try:
        server = KmsV2Server(KubernetesKms(sidecar.edge(*names), secrets.token_bytes), path)
        stopped = asyncio.create_task(wait_for_stop())
        await asyncio.sleep(0)  # the signals are taken before anybody can see that we serve, and stop us
        await server.start()
        try:
            stderr.print(f"serving {'/'.join(names)} on {path}")
            await stopped
        finally:
            await server.stop()
    finally:
        await sidecar.close()
