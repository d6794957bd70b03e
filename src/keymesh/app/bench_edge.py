"""``keymesh bench edge``: the library's synchronous face beside a bare loop over the product's own XAES functions.

The lease is real: the machine asks, a grant with a signed policy comes back (from this process, so that no socket is
needed), and the shell makes it ready.  Then the event loop is closed and only the hot path runs.  Phases are
interleaved, so that what else the machine does falls on all of them alike; a ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from keymesh.app.bench_lease import TENANT, GrantingTransport, leased
from keymesh.app.cli_common import emit, facts
from keymesh.crypto.aad import l4_aad
from keymesh.crypto.kid import kid_of
from keymesh.crypto.xaes import XaesKey
from keymesh.edge.client_sync import SyncEdge
from keymesh.model.errors import ExitCode

CONTEXT: Final = {"table": "orders"}
CHUNK: Final = 5_000
SECONDS_MAX: Final = 300.0


@dataclass
class Phase:
    """One thing that is timed, in chunks: rates of all rounds."""

    chunk: Callable[[int], None]
    ops: int = 0
    ns: int = 0
    rates: list[float] = field(default_factory=list)

    def run(self) -> None:
        started = time.perf_counter_ns()
        self.chunk(CHUNK)
        took = time.perf_counter_ns() - started
        self.ops += CHUNK
        self.ns += took
        self.rates.append(CHUNK * 1e9 / took)

    @property
    def per_s(self) -> int:
        return round(self.ops * 1e9 / self.ns)


def ratio(phase: Phase, bare: Phase) -> float:
    """Median over the rounds of the rate beside the bare loop's in the same round."""
    return round(statistics.median(a / b for a, b in zip(phase.rates, bare.rates, strict=True)), 3)


def run(seconds: float) -> dict[str, Any]:
    """Measure for about ``seconds``; the figures as ``keymesh bench edge --json`` prints them."""
    key = os.urandom(32)
    shell = asyncio.run(leased(GrantingTransport(key)))
    edge = SyncEdge(shell.hot)
    phases = _phases(edge, key)
    mint_ns, open_ns = [], []
    with SocketWatch() as sockets:
        for phase in phases.values():
            phase.chunk(CHUNK // 10)
        deadline = time.monotonic() + seconds
        while True:
            for phase in phases.values():
                phase.run()
            mint_ns += _latencies(edge.create_key, CHUNK // 5)
            open_ns += _latencies(partial(edge.decrypt_key, edge.create_key().blob), CHUNK // 5)
            sockets.look()
            if time.monotonic() >= deadline:
                break
    shell.orphan("edge-closed")
    bare_mint, bare_open = phases["bare_mint"], phases["bare_open"]
    return {
        "seconds": seconds,
        "rounds": len(bare_mint.rates),
        "bare_mint_per_s": bare_mint.per_s,
        "bare_open_per_s": bare_open.per_s,
        "mint_per_s": phases["mint"].per_s,
        "mint_context_per_s": phases["mint_context"].per_s,
        "mint_batch_per_s": phases["mint_batch"].per_s,
        "mint_ratio": ratio(phases["mint"], bare_mint),
        "mint_context_ratio": ratio(phases["mint_context"], bare_mint),
        "open_per_s": phases["open"].per_s,
        "open_context_per_s": phases["open_context"].per_s,
        "open_ratio": ratio(phases["open"], bare_open),
        "open_context_ratio": ratio(phases["open_context"], bare_open),
        "p50_us": _quantile_us(mint_ns, 0.50),
        "p99_us": _quantile_us(mint_ns, 0.99),
        "p999_us": _quantile_us(mint_ns, 0.999),
        "open_p50_us": _quantile_us(open_ns, 0.50),
        "open_p99_us": _quantile_us(open_ns, 0.99),
        "sockets_open": sockets.open_max,
        "socket_events": sockets.events,
    }


def _phases(edge: SyncEdge, key: bytes) -> dict[str, Phase]:
    xkey, kid = XaesKey(key), kid_of(key)
    aad = l4_aad(TENANT, kid, {})
    empty = edge.create_key().blob
    bound = edge.create_key(CONTEXT).blob

    def bare_mint(n: int) -> None:
        urandom, seal = os.urandom, xkey.seal
        for _ in range(n):
            draw = urandom(56)
            seal(draw[32:], draw[:32], aad)

    def bare_open(n: int) -> None:
        nonce, sealed, unseal = empty[18:42], empty[42:], xkey.open
        for _ in range(n):
            unseal(nonce, sealed, aad)

    def mint(n: int) -> None:
        create_key = edge.create_key
        for _ in range(n):
            create_key()

    def mint_context(n: int) -> None:
        create_key = edge.create_key
        for _ in range(n):
            create_key(CONTEXT)

    def mint_batch(n: int) -> None:
        edge.create_keys(n)

    def unwrap(n: int) -> None:
        decrypt_key = edge.decrypt_key
        for _ in range(n):
            decrypt_key(empty)

    def unwrap_context(n: int) -> None:
        decrypt_key = edge.decrypt_key
        for _ in range(n):
            decrypt_key(bound, CONTEXT)

    return {
        "bare_mint": Phase(bare_mint),
        "mint": Phase(mint),
        "mint_context": Phase(mint_context),
        "mint_batch": Phase(mint_batch),
        "bare_open": Phase(bare_open),
        "open": Phase(unwrap),
        "open_context": Phase(unwrap_context),
    }


def _latencies(use: Callable[[], object], n: int) -> list[int]:
    clock = time.perf_counter_ns
    took = []
    for _ in range(n):
        started = clock()
        use()
        took.append(clock() - started)
    return took


def _quantile_us(took_ns: list[int], q: float) -> float:
    ordered = sorted(took_ns)
    return round(ordered[min(len(ordered) - 1, int(q * len(ordered)))] / 1_000, 1)


class SocketWatch:
    """Counts new sockets by audit hook, and looks for open ones; inherited standard streams do not count."""

    def __init__(self) -> None:
        self.events = 0
        self.open_max = 0
        self._active = False
        sys.addaudithook(self._hook)

    def __enter__(self) -> SocketWatch:
        self._active = True
        self.look()
        return self

    def __exit__(self, *_: object) -> None:
        self.look()
        self._active = False

    def look(self) -> None:
        """Count the sockets among the process's open files now."""
        found = 0
        for entry in Path("/proc/self/fd").iterdir():
            if int(entry.name) > 2:
                try:
                    found += str(entry.readlink()).startswith("socket:")
                except FileNotFoundError:
                    continue  # the directory's own descriptor
        self.open_max = max(self.open_max, found)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self._active and event.startswith("socket."):
            self.events += 1


def run_bench(args: argparse.Namespace) -> int:
    """``--seconds`` and ``--json``; exit code 1 where a figure is missed."""
    figures = run(min(max(args.seconds, 0.1), SECONDS_MAX))
    met = (
        figures["mint_ratio"] >= 0.5
        and figures["open_ratio"] >= 0.5
        and figures["p99_us"] < 500
        and figures["sockets_open"] == 0
        and figures["socket_events"] == 0
    )
    emit(
        args, figures | {"ok": met}, lambda: facts("Edge library, synchronous face, one thread", figures | {"ok": met})
    )
    return int(ExitCode.DONE if met else ExitCode.REFUSED)
