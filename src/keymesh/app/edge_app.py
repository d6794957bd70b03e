"""The Edge process of a region: the sidecar, started from its configuration."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from keymesh.app.config import EdgeConfig
from keymesh.app.config_of_plan import edge_config_of
from keymesh.app.lifeline import say_ready
from keymesh.app.role_start import role_parser, start_role
from keymesh.edge import sidecar_process

WORKER: Final = (sys.executable, "-P", "-m", "keymesh.app.edge_worker")
"""-P: nothing is imported from where we were started."""


def sidecar_arguments(config: EdgeConfig) -> list[str]:
    """What ``sidecar_process.main`` is to be told."""
    words = ["--dir", config.data_dir, "--socket", config.listen_socket]
    words += ["--region", config.region, "--mesh", config.mesh]
    words += ["--ca", config.ca_file, "--trust", config.trust_file]
    for url in config.cores:
        words += ["--core-url", url]
    for region, urls in config.elsewhere.items():
        for url in urls:
            words += ["--elsewhere", f"{region}={url}"]
    for name in config.services:
        words += ["--service", name]
    for uid, names in config.callers.items():
        words += ["--caller", f"{uid}={','.join(names)}"]
    if config.listen_tcp is not None:
        words += ["--tcp", config.listen_tcp]
    if config.tcp_identity is not None:
        words += ["--tcp-identity", config.tcp_identity]
    words += ["--workers", str(config.workers)]
    return [*words, "--allow-unlocked-memory"] if config.allow_unlocked_memory else words


def serve_edge(config: EdgeConfig) -> int:
    """Serve until told to stop; returns the exit code."""
    Path(config.data_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
    inner = argparse.ArgumentParser()
    sidecar_process.add_arguments(inner)
    return sidecar_process.main(inner.parse_args(sidecar_arguments(config)), on_ready=say_ready, worker=WORKER)


def run(args: argparse.Namespace) -> int:
    """``keymesh edge run``, and what the supervisor starts."""
    return start_role(args, "edge", embedded=edge_config_of, serve=serve_edge)


if __name__ == "__main__":
    sys.exit(run(role_parser("edge").parse_args()))
