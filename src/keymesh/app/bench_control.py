"""``keymesh bench control``: commands committed through etcd and projected into PostgreSQL, beside bare etcd puts.

Everything is real but the people: an etcd of three members and a PostgreSQL of its own, one Registry in this process,
sixteen writers that call its command function over a hundred tenants, and wait for each answer.  A command counts once
the projection has it.  Bare puts and commands take turns, so that both meet the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from keymesh.adapters.etcd_client import client_context
from keymesh.adapters.etcd_http import Broken, JsonConnection
from keymesh.app.bench_control_registry import BenchRegistry, bench_registry
from keymesh.app.bootstrap import bootstrap, finish, make_plan
from keymesh.app.cli_common import emit, facts, stderr
from keymesh.app.config_endpoint import Endpoint
from keymesh.app.config_of_plan import registry_config_of
from keymesh.app.full_servers import prepare_control
from keymesh.app.full_setup import set_up_registry
from keymesh.app.layout import Layout, TimingPlan
from keymesh.app.own_mesh import own_directory, sigterm_as_interrupt
from keymesh.app.servers.binaries import ETCD, POSTGRES, require_all
from keymesh.app.servers.child import ServerProcess
from keymesh.app.servers.ownership import switches_user
from keymesh.app.servers.postgres import USER
from keymesh.model.errors import ExitCode, Unavailable

WRITERS: Final = 16
NAMESPACES: Final = 100
VALUE_BYTES: Final = 600
RATIO_MIN: Final = 0.3
SECONDS_MAX: Final = 300.0
TURNS: Final = 6
WARM_UP_S: Final = 1.0
REGIONS: Final = {"us-east": "us", "us-west": "us", "us-south": "us"}
TIMING: Final = TimingPlan(
    ttl_ms=3_600_000, heartbeat_ms=10_000, edge_ttl_ms=300_000, l1_probe_ms=300_000, l1_ttl_ms=3_600_000,
    snapshot_ms=300_000,
)  # fmt: skip


@dataclass(slots=True)
class Tally:
    """``done`` of one kind, and the seconds that it took."""

    done: int = 0
    s: float = 0.0

    @property
    def per_s(self) -> float:
        return self.done / self.s if self.s else 0.0


class BarePuts:
    """Sixteen connections to one member, each with one put under way."""

    def __init__(self, endpoint: Endpoint) -> None:
        parts = urlsplit(endpoint.url)
        assert parts.hostname is not None and parts.port is not None
        assert endpoint.ca_file is not None and endpoint.cert_file is not None
        self._host, self._port = parts.hostname, parts.port
        self._tls = client_context(
            trust_pem=Path(endpoint.ca_file).read_bytes(), identity_file=Path(endpoint.cert_file)
        )
        self._connections: list[JsonConnection] = []
        self._value = base64.b64encode(os.urandom(VALUE_BYTES)).decode()
        self._keys = count()

    async def open(self) -> None:
        for _ in range(WRITERS):
            self._connections.append(await JsonConnection.open(self._host, self._port, tls=self._tls))

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    async def run(self, seconds: float, tally: Tally) -> None:
        began = time.monotonic()
        done = await asyncio.gather(*(self._writer(c, began + seconds) for c in self._connections))
        tally.done += sum(done)
        tally.s += time.monotonic() - began

    async def _writer(self, connection: JsonConnection, until: float) -> int:
        done = 0
        while time.monotonic() < until:
            key = base64.b64encode(b"bench/%d" % next(self._keys)).decode()
            try:
                status, _ = await connection.post("/v3/kv/put", msgspec.json.encode({"key": key, "value": self._value}))
            except Broken as bad:
                raise Unavailable("etcd", f"a bare put was not answered: {bad}") from bad
            if status != 200:
                raise Unavailable("etcd", f"a bare put was answered with {status}")
            done += 1
        return done


async def commands(registry: BenchRegistry, seconds: float, tally: Tally) -> None:
    """Sixteen writers, until the last of their commands is projected."""
    began = time.monotonic()
    until = began + seconds

    async def writer(first: int) -> int:
        done = 0
        while time.monotonic() < until:
            await registry.label((first + WRITERS * done) % NAMESPACES)
            done += 1
        return done

    tally.done += sum(await asyncio.gather(*(writer(n) for n in range(WRITERS))))
    await registry.projected()
    tally.s += time.monotonic() - began


async def take_turns(layout: Layout, config: Any, seconds: float) -> dict[str, Any]:
    """The figures of ``seconds`` of measuring."""
    puts, done = Tally(), Tally()
    bare = BarePuts(config.log.endpoints[0])
    async with bench_registry(layout, config, NAMESPACES) as registry:
        await bare.open()
        try:
            await bare.run(WARM_UP_S, Tally())
            await commands(registry, WARM_UP_S, Tally())
            for _ in range(TURNS):
                await bare.run(seconds / TURNS / 2, puts)
                await commands(registry, seconds / TURNS / 2, done)
        finally:
            bare.close()
        registry.check()
        index = await registry.index()
    ratio = done.per_s / puts.per_s if puts.per_s else 0.0
    return {
        "ok": ratio >= RATIO_MIN,
        "put_per_s": round(puts.per_s, 1),
        "command_per_s": round(done.per_s, 1),
        "ratio": round(ratio, 3),
        "concurrency": WRITERS,
        "namespaces": NAMESPACES,
        "value_bytes": VALUE_BYTES,
        "puts": puts.done,
        "commands": done.done,
        "commits": index,
        "turns": TURNS,
        "etcd_members": len(config.log.endpoints),
    }


@contextmanager
def servers_running(layout: Layout, timing: TimingPlan = TIMING) -> Iterator[Any]:
    """The control plane's servers, and the Registry's configuration on them; ended with this context."""
    plan = make_plan(dict(REGIONS), timing, links=False, allow_unlocked_memory=True, kms=False, full=True)
    plan = msgspec.structs.replace(plan, replicas=None)
    assert plan.full is not None
    finish(layout, plan, bootstrap(layout, plan))
    running = [ServerProcess(p) for p in prepare_control(layout, plan.full, [layout.registry])]
    try:
        for process in running:
            process.spawn()
        for process in running:
            process.wait_ready()
        set_up_registry(layout, plan.full, plan.mesh)
        yield registry_config_of(layout, plan)
    finally:
        for process in reversed(running):
            process.kill()


def measure(seconds: float, directory: str | None = None) -> dict[str, Any]:
    """The figures, from servers that live as long as this call.  Raises Refused where one is missing."""
    require_all((ETCD, POSTGRES))
    began = time.monotonic()
    with sigterm_as_interrupt(), own_directory(directory, what="the bench") as layout:
        if directory is None and switches_user(USER):
            layout.root.parent.chmod(0o711)  # PostgreSQL's user passes through
        with stderr.status("etcd and PostgreSQL"), servers_running(layout) as config:
            shown = asyncio.run(take_turns(layout, config, seconds))
    return shown | {"seconds": round(time.monotonic() - began, 1)}


def run_bench(args: argparse.Namespace) -> int:
    """``--seconds``, ``--dir`` and ``--json``; exit code 1 where the figure is missed."""
    shown = measure(min(max(args.seconds, 1.0), SECONDS_MAX), args.dir)
    emit(args, shown, lambda: facts("commands through etcd into PostgreSQL, beside bare puts", shown))
    return int(ExitCode.DONE if shown["ok"] else ExitCode.REFUSED)
