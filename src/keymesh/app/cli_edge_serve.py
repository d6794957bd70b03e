"""``keymesh edge serve``: an Edge beside an application, from the files of ``pki enrol``, with no configuration."""

from __future__ import annotations

import argparse
from pathlib import Path

from keymesh.app.cli_common import stderr
from keymesh.app.edge_app import WORKER
from keymesh.app.logs import setup_logging
from keymesh.edge import sidecar_process
from keymesh.edge.client_tls import EdgeCredentials
from keymesh.edge.sidecar_identities import plant


def home_of(args: argparse.Namespace) -> tuple[Path, EdgeCredentials]:
    """Where renewed certificates are kept, and the identity that ``--identity`` holds.  Raises Refused."""
    given = Path(args.identity)
    credentials = EdgeCredentials(given / "edge.pem", given / "ca.pem")
    state = Path(args.state) if args.state is not None else given / "serve"
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    plant(state, credentials)
    return state, credentials


def run_serve(args: argparse.Namespace) -> int:
    """Serve until told to stop; returns the exit code.  Raises Refused for files that are not right."""
    state, credentials = home_of(args)
    who, trust = credentials.identity, Path(args.identity) / "trust.json"
    words = ["--dir", str(state), "--socket", args.uds, "--region", who.region, "--mesh", who.mesh]
    words += ["--ca", str(credentials.ca_file), "--trust", str(trust), "--workers", str(args.workers)]
    for option, values in (("--core-url", args.core), ("--caller", args.caller)):
        for value in values:
            words += [option, value]
    if args.tcp is not None:
        words += ["--tcp", args.tcp]
    if args.allow_unlocked_memory:
        words.append("--allow-unlocked-memory")
    parser = argparse.ArgumentParser()
    sidecar_process.add_arguments(parser)
    setup_logging(f"edge-{who.region}")
    where = args.uds if args.tcp is None else f"{args.uds} and {args.tcp}"

    def ready() -> None:
        stderr.print(f"serving {who.tenant}/{who.service} on {where}")

    return sidecar_process.main(parser.parse_args(words), on_ready=ready, worker=WORKER)
