"""Many Edges in one process, for a bench: each has its identity, its connection and its leases, and is used in a loop.

``--plan``: a JSON file, ``HostPlan``.  Each line on standard input is answered by one line, Edge -> ``EdgeSeen``; the
end of standard input ends the process.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from keymesh.app.lifeline import die_with_parent
from keymesh.crypto.pages import harden_process
from keymesh.edge.client import Edge, load_trust
from keymesh.model import strict_json
from keymesh.model.errors import KeymeshError

PLAN_MAX_BYTES: Final = 1024 * 1024
PAUSE_S: Final = 0.01
"""Between two uses of one Edge."""


class EdgeSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``identity``: PEM file.  ``core``: base URL."""

    name: str
    identity: str
    core: str


class HostPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    ca: str
    trust: str
    edges: tuple[EdgeSpec, ...]


class EdgeSeen(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """``served_ns``: when the last use that was served began.  ``refused_ns``: when the first refusal after that was
    known; 0: none yet.  Wall clock."""

    served_ns: int = 0
    refused_ns: int = 0

    def served(self, began_ns: int) -> None:
        self.served_ns, self.refused_ns = began_ns, 0

    def refused(self, ended_ns: int) -> None:
        self.refused_ns = self.refused_ns or ended_ns


async def _use(edge: Edge, seen: EdgeSeen) -> None:
    while True:
        began_ns = time.time_ns()
        try:
            await edge.create_key()
        except KeymeshError:
            seen.refused(time.time_ns())
        else:
            seen.served(began_ns)
        await asyncio.sleep(PAUSE_S)


async def _run(plan: HostPlan) -> None:
    trust = load_trust(plan.trust)
    seen = {spec.name: EdgeSeen() for spec in plan.edges}
    edges = {
        spec.name: Edge.start(
            identity=spec.identity, ca=plan.ca, cores=[spec.core], trust=trust, allow_unlocked_memory=True
        )
        for spec in plan.edges
    }
    uses = [asyncio.create_task(_use(edge, seen[name])) for name, edge in edges.items()]
    asked = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(asked), sys.stdin)
    try:
        while await asked.readline():
            sys.stdout.buffer.write(strict_json.dumps(seen) + b"\n")
            sys.stdout.buffer.flush()
    finally:
        for use in uses:
            use.cancel()
        await asyncio.gather(*uses, return_exceptions=True)
        await asyncio.gather(*(edge.close() for edge in edges.values()), return_exceptions=True)


def main(argv: list[str]) -> int:
    """The process; returns the exit code."""
    die_with_parent()
    parser = argparse.ArgumentParser(prog="bench_edge_host", description="Use many Edges in a loop.")
    parser.add_argument("--plan", required=True, type=Path, help="JSON file: the Edges")
    plan = strict_json.decode(parser.parse_args(argv).plan.read_bytes(), HostPlan, max_bytes=PLAN_MAX_BYTES)
    harden_process(allow_unlocked_memory=True)
    asyncio.run(_run(plan))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
