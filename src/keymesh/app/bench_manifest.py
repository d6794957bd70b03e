"""``keymesh bench manifest``: a difference of a few entries among a million, found by the walk and put right.

Real are the Registry's process with its log and API, one node's machine with its records, their signatures, and the
mTLS between them: heartbeats, channels and messages as any Core's.  Of the heads tree only the namespaces that differ
are tenants of the log; the others are leaves put into the Registry's tree and the node's manifest alike, all at once.
The node then finds, as by a snapshot, that it stores something else of ``--diff`` tenants.  Measured is from the
heartbeat that says so until the node has applied the Force Sync of the last; ``bytes`` are the bodies of all that
both said meanwhile, as they travel; ``walk_bytes`` those messages that found the difference, before packing.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from keymesh.access.identity import CoreIdentity, RegistryIdentity
from keymesh.adapters.http_client import PeerClient
from keymesh.adapters.http_server import serve
from keymesh.adapters.key_files import load_signing_key
from keymesh.adapters.sqlite_records import SqliteRecords
from keymesh.adapters.tls import Credentials, MeshTls
from keymesh.app.bench_control_registry import BenchRegistry, bench_registry
from keymesh.app.bootstrap import bootstrap, finish, make_plan
from keymesh.app.channels import Catching, follow, split_messages
from keymesh.app.cli_common import emit, facts, stderr
from keymesh.app.config_of_plan import core_config_of, registry_config_of
from keymesh.app.config_parts import IdentityFiles
from keymesh.app.layout import Layout, MeshPlan, TimingPlan
from keymesh.app.own_mesh import own_directory, sigterm_as_interrupt
from keymesh.app.shell import Shell
from keymesh.app.trust_file import load_trust
from keymesh.control.entry import Leaf
from keymesh.control.heads import HeadsTree
from keymesh.control.signing import DsseSuite
from keymesh.core import events, machine
from keymesh.core.records import RECORD_TYPES
from keymesh.crypto.dsse import Ed25519Signer
from keymesh.model.errors import ExitCode, Refused, Unavailable
from keymesh.model.ids import Digest, KeyId, MeshName
from keymesh.model.machine import REGISTRY, Received, node_address
from keymesh.orbital.messages import ManifestAsk, ManifestDiffers, ManifestTell
from keymesh.orbital.wire import MESSAGES, Codec
from keymesh.registry.state import RegionHeads

REGION: Final = "us-west"
REGIONS: Final = {"us-east": "us", REGION: "us"}
TIMING: Final = TimingPlan(
    ttl_ms=60_000, heartbeat_ms=1_000, edge_ttl_ms=5_000, l1_probe_ms=30_000, l1_ttl_ms=60_000, snapshot_ms=3_600_000
)
ENTRIES_MAX: Final = 2_000_000
DIFF_MAX: Final = 500
BYTES_MAX: Final = 64 * 1024
CHANNELS: Final = ("control", "lane0", "lane1", "lane2")
WALK: Final = (ManifestAsk, ManifestTell, ManifestDiffers)
WAIT_S: Final = 60.0
LOOK_S: Final = 0.002
OTHER: Final = Digest("0" * 64)
NOT_KEYS: Final = (
    events.LoadKeys, events.DropKeys, events.ProbeL1, events.MintKey, events.RewrapKey, events.WipeMinted,
    events.RotateIvk, events.MigrateStore, events.TakeSnapshot, events.ReplyLocal,
)  # fmt: skip


class CountingClient(PeerClient):
    """``n_bytes``: of the bodies, both ways."""

    n_bytes = 0

    async def request(self, method: str, path: str, body: bytes | None = None, **more: Any) -> tuple[int, bytes]:
        status, content = await super().request(method, path, body, **more)
        self.n_bytes += len(body or b"") + len(content)
        return status, content


class BenchNode:
    """One node's machine over the wire.  It has no MasterKey and so loads no key; all else is a Core's."""

    def __init__(self, layout: Layout, plan: MeshPlan, url: str) -> None:
        config = core_config_of(layout, plan, REGION)
        identity, directory = config.identity, Path(config.data_dir)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        trust = load_trust(Path(identity.trust_file))
        rules = machine.NodeConfig(
            mesh=config.mesh,
            region=REGION,
            node=config.node,
            suite=DsseSuite(Ed25519Signer(load_signing_key(Path(identity.signing_key_file)))),
            root_keys={KeyId(k): v for k, v in trust.root.keys.items()},
            root_threshold=trust.root.threshold,
            heartbeat_ms=TIMING.heartbeat_ms,
        )
        self._records = SqliteRecords(directory / "node.db", Codec(RECORD_TYPES))
        self.shell = Shell(
            name=f"node-{REGION}",
            state=machine.new_node(rules),
            step=machine.step,
            records=self._records,
            send=self._send,
            effects=dict.fromkeys(NOT_KEYS, _nothing),
        )
        context = tls_of(identity, config.mesh).client(lambda i: isinstance(i, RegistryIdentity))
        self.client = CountingClient(url, context, timeout_s=30.0)
        self._out: asyncio.Queue[bytes] = asyncio.Queue()
        self._work: list[asyncio.Task[None]] = []
        self.walk_bytes = self.rounds = 0

    def start(self) -> None:
        self._work = [asyncio.create_task(self._post())]
        for channel in CHANNELS:
            work = follow(self.client, channel, receive=self._receive, catching=Catching())
            self._work.append(asyncio.create_task(work))
        self.shell.boot()

    async def close(self) -> None:
        self.shell.stop()
        for task in self._work:
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        await self.client.close()
        self._records.close()

    def check(self) -> None:
        """Raises what ended a part of it."""
        for task in self._work:
            if task.done():
                task.result()

    def _send(self, to: str, message: Any) -> None:
        if to == REGISTRY:
            raw = MESSAGES.encode(message)
            self._count(message, len(raw))
            self._out.put_nowait(raw)

    async def _post(self) -> None:
        while True:
            await self.client.request("POST", "/v1/messages", await self._out.get())

    def _receive(self, body: bytes) -> None:
        for plain in split_messages(body):
            message = MESSAGES.from_plain(plain)
            self._count(message, len(MESSAGES.encode(message)))
            self.shell.feed(Received(REGISTRY, message))

    def _count(self, message: Any, n_bytes: int) -> None:
        if isinstance(message, WALK):
            self.walk_bytes += n_bytes
            self.rounds += isinstance(message, ManifestTell)


def _nothing(effect: Any) -> None:
    """What would touch keys or a store, of which there is none here."""


def tls_of(identity: IdentityFiles, mesh: str) -> MeshTls:
    return MeshTls(Credentials(Path(identity.tls_file)), MeshName(mesh), Path(identity.ca_file).read_bytes())


def bulk(n: int) -> dict[str, Leaf]:
    """``n`` leaves, each its own."""
    found = {}
    for i in range(n):
        digest = Digest(hashlib.sha256(b"%d" % i).hexdigest())
        found[f"entry-{i:07}"] = Leaf(epoch=1, seq=1 + i % 1000, entry_hash=digest, state=digest)
    return found


class ManifestBench:
    def __init__(self, registry: BenchRegistry, node: BenchNode) -> None:
        self._registry, self._node = registry, node

    @property
    def _heads(self) -> RegionHeads:
        heads: RegionHeads = self._registry.process.shell.state.regions[REGION]
        return heads

    def _in_step(self) -> bool:
        return bool(self._node.shell.state.manifest.root == self._heads.root)

    async def until(self, holds: Any, what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not holds():
            self._node.check()
            self._registry.check()
            if time.monotonic() > deadline:
                raise Unavailable("bench", f"{what} took longer than {WAIT_S:.0f} s")
            await asyncio.sleep(LOOK_S)

    async def fill(self, entries: int) -> None:
        """Both sides get the same ``entries``, counting what they have; then the node hears that it is in step."""
        await self.until(self._in_step, "the first synchronisation")
        heads, state = self._heads, self._node.shell.state
        leaves = {**heads.show(), **bulk(entries - len(heads.tree))}
        heads.tree, heads.shown = HeadsTree(leaves), None
        state.manifest, state.leaves = heads.tree.copy(), leaves
        session = self._registry.process.shell.state.sessions[node_address(REGION, "n1")]
        await self.until(lambda: session.in_step_with == heads.root, "the first heartbeat in step")
        await asyncio.sleep(2 * TIMING.heartbeat_ms / 1000)  # until acknowledgements are older than heartbeats

    async def measure(self, tenants: int) -> dict[str, Any]:
        """From the heartbeat that shows the drift until all of it is put right."""
        node, shell = self._node, self._node.shell
        stored = {name: holding.leaf.state for name, holding in shell.state.tenants.items()}
        stored |= {f"bench-{n}": OTHER for n in range(tenants)} | {"mesh": shell.state.mesh.leaf.state}
        shell.state.snapshot_asked_at = shell.now()
        shell.feed(events.SnapshotTaken(stored))
        found = len(shell.state.drift)
        node.client.n_bytes = node.walk_bytes = node.rounds = 0
        counter = shell.state.counter
        await self.until(lambda: shell.state.counter > counter, "the next heartbeat")
        began = time.monotonic()
        await self.until(self._in_step, "the repair")
        return {
            "diff": found,
            "bytes": node.client.n_bytes,
            "walk_bytes": node.walk_bytes,
            "rounds": node.rounds,
            "ms": round((time.monotonic() - began) * 1000, 1),
        }


@asynccontextmanager
async def running(layout: Layout, plan: MeshPlan, tenants: int) -> AsyncIterator[ManifestBench]:
    """The Registry with its listener, and the node."""
    async with AsyncExitStack() as stack:
        config = registry_config_of(layout, plan)
        registry = await stack.enter_async_context(bench_registry(layout, config, tenants))
        tls = tls_of(config.identity, config.mesh).server(lambda i: isinstance(i, CoreIdentity))
        server = await serve(registry.process.node_routes(), tls=tls)
        stack.push_async_callback(server.close)
        node = BenchNode(layout, plan, f"https://127.0.0.1:{server.port}")
        stack.push_async_callback(node.close)
        node.start()
        yield ManifestBench(registry, node)


async def _measure(layout: Layout, plan: MeshPlan, entries: int, diff: int) -> dict[str, Any]:
    async with running(layout, plan, diff) as bench:
        with stderr.status(f"{entries} entries on both sides"):
            began = time.monotonic()
            await bench.fill(entries)
            filled_s = time.monotonic() - began
        with stderr.status(f"a difference of {diff}"):
            shown = await bench.measure(diff)
    return {"entries": entries, "filled_s": round(filled_s, 1), **shown}


def measure(entries: int, diff: int, directory: str | None = None) -> dict[str, Any]:
    """The figures.  ``ok``: all was found, at less than 64 KiB both ways (for ten; as much per entry for more)."""
    began = time.monotonic()
    with sigterm_as_interrupt(), own_directory(directory, what="the bench") as layout:
        plan = make_plan(dict(REGIONS), TIMING, links=False, allow_unlocked_memory=True, kms=False)
        finish(layout, plan, bootstrap(layout, plan))
        shown = asyncio.run(_measure(layout, plan, entries, diff))
    ok = shown["diff"] == diff and shown["bytes"] < BYTES_MAX * max(1.0, diff / 10)
    return {"ok": ok, **shown, "seconds": round(time.monotonic() - began, 1)}


def run_bench(args: argparse.Namespace) -> int:
    """``--entries``, ``--diff``, ``--dir`` and ``--json``; exit code 1 where the figure is missed."""
    if not 1 <= args.diff <= DIFF_MAX:
        raise Refused.bad_field("diff", f"1 to {DIFF_MAX}")
    if not 2_000 + args.diff <= args.entries <= ENTRIES_MAX:
        raise Refused.bad_field("entries", f"{2_000 + args.diff} to {ENTRIES_MAX}: fewer are not walked")
    shown = measure(args.entries, args.diff, args.dir)
    emit(args, shown, lambda: facts("a difference between two large manifests, found and repaired", shown))
    return int(ExitCode.DONE if shown["ok"] else ExitCode.REFUSED)
