"""The Core process of one region: the node's machine, the voter's where its region votes, keys, and its servers.

It decides nothing itself.  Messages to the Registry go out over one connection pool, what the Registry has to say is
fetched by one long poll for each lane, each on a connection of its own, so that no lane waits for another.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, Final

from keymesh.access.identity import AdminIdentity, CoreIdentity, EdgeIdentity, RegistryIdentity
from keymesh.adapters import seals
from keymesh.adapters.http_client import PeerClient
from keymesh.adapters.http_server import HttpMetrics, serve
from keymesh.adapters.key_files import load_signing_key
from keymesh.adapters.receipt_file import FileReceiptLog
from keymesh.adapters.sqlite_keystore import SqliteKeyStore
from keymesh.adapters.sqlite_records import SqliteRecords
from keymesh.adapters.system import SystemEntropy
from keymesh.adapters.tls import Credentials, MeshTls
from keymesh.app.blob_peers import BlobPeers
from keymesh.app.channels import ANSWER_MAX_BYTES, POLL_TIMEOUT_S, Mailboxes, follow, split_messages
from keymesh.app.core_api import CoreApi
from keymesh.app.core_edges import EdgeDoor
from keymesh.app.core_keys import CoreKeys
from keymesh.app.layout import Layout, MeshPlan, load_plan
from keymesh.app.lifeline import die, die_with_parent, say_ready, wait_for_stop
from keymesh.app.logs import setup_logging
from keymesh.app.metrics import CoreCollector
from keymesh.app.renewal import keep_certificate_fresh
from keymesh.app.shell import Shell
from keymesh.app.trust_file import load_trust
from keymesh.control import voter
from keymesh.control.messages import CountersignRequest, Poll
from keymesh.control.signing import DsseSuite
from keymesh.core import machine
from keymesh.core.events import (
    DropKeys,
    LoadKeys,
    MintKey,
    ProbeL1,
    Reconnected,
    ReplyLocal,
    RewrapKey,
    RotateIvk,
    Sealed,
    TakeSnapshot,
    Unsealed,
    WipeMinted,
)
from keymesh.core.keyring import Keyring
from keymesh.core.records import RECORD_TYPES
from keymesh.crypto.dsse import Ed25519Signer
from keymesh.crypto.kat import run_known_answer_tests
from keymesh.crypto.pages import KeyPages, SecretBytes, harden_process
from keymesh.model.errors import Integrity, KeymeshError, Refused
from keymesh.model.ids import MESH_NAMESPACE, KeyId, MeshName
from keymesh.model.machine import REGISTRY, Received
from keymesh.model.states import IvkState
from keymesh.orbital.messages import Task
from keymesh.orbital.wire import MESSAGES, Codec

log = logging.getLogger("keymesh.core")

CHANNELS: Final = ("lane0", "lane1", "lane2", "control")
IN_FLIGHT_MAX: Final = 256
IVK_UPKEEP_S: Final = 60.0


class CoreProcess:
    """Everything of one Core; ``run`` serves until told to stop."""

    def __init__(self, layout: Layout, plan: MeshPlan, region: str) -> None:
        self.layout, self.plan, self.region = layout, plan, region
        self.directory = layout.core(region)
        self.node = plan.regions[region].node
        signer = Ed25519Signer(load_signing_key(self.directory / "signing.pem"))
        suite = DsseSuite(signer)
        trust = load_trust(layout.trust)
        self.credentials = Credentials(self.directory / "tls.pem")
        self.tls = MeshTls(self.credentials, MeshName(plan.mesh), layout.ca.read_bytes())
        self.mailboxes = Mailboxes()
        self.replies: dict[str, asyncio.Future[Any]] = {}
        self.applied: deque[dict[str, Any]] = deque(maxlen=50_000)
        self.tasks: set[asyncio.Task[Any]] = set()
        self._registry_clients: list[PeerClient] = []
        self.registry = self._registry_client()
        self._peers: dict[str, PeerClient] = {}
        self.pages = KeyPages(allow_unlocked=plan.allow_unlocked_memory)
        self.keyring = Keyring(region, self.pages, SystemEntropy())
        self.store = SqliteKeyStore(self.directory / "keystore.db")
        self.records = SqliteRecords(self.directory / "node.db", Codec(RECORD_TYPES))
        self.receipts = FileReceiptLog(
            self.directory / "receipts.jsonl",
            origin=f"{plan.mesh}/{region}/{self.node}",
            signer=signer,
            keys={signer.key_id: signer.public_key},
        )
        config = machine.NodeConfig(
            mesh=plan.mesh,
            region=region,
            node=self.node,
            suite=suite,
            root_keys={KeyId(k): v for k, v in trust.root.keys.items()},
            root_threshold=trust.root.threshold,
            heartbeat_ms=plan.timing.heartbeat_ms,
        )
        self.shell = Shell(
            name=f"node-{region}",
            state=machine.new_node(config),
            step=machine.step,
            records=self.records,
            send=self._send,
            effects={
                LoadKeys: lambda e: self.spawn(self.keys.load(e)),
                DropKeys: self._drop_keys,
                ProbeL1: lambda e: self.spawn(self.keys.probe(e)),
                MintKey: lambda e: self.spawn(self.keys.mint(e)),
                RewrapKey: lambda e: self.spawn(self.keys.rewrap(e)),
                WipeMinted: lambda e: self.keys.wipe_minted(e.namespace, e.kid),
                RotateIvk: lambda e: self.spawn(self.keys.rotate_ivk(e)),
                TakeSnapshot: lambda e: self.spawn(self._snapshot()),
                ReplyLocal: self._reply_local,
            },
        )
        self.keys = CoreKeys(
            region=region,
            keyring=self.keyring,
            store=self.store,
            peers=BlobPeers(regions_of=self.other_regions, client_of=self.peer),
            credentials=self.credentials,
            entropy=SystemEntropy(),
            now=self.shell.now,
            feed=self.shell.feed,
            bindings_of=lambda namespace: self.view(namespace).bindings,
            domain_of=lambda namespace: self.policy(namespace).domain,
        )
        self.voter_records = SqliteRecords(self.directory / "voter.db", Codec(voter.RECORD_TYPES))
        self.voter = Shell(
            name=f"voter-{region}",
            state=voter.new_voter(voter.VoterConfig(mesh=plan.mesh, region=region, suite=suite)),
            step=voter.step,
            records=self.voter_records,
            send=self._send,
            effects={},
        )
        self._voted_under: Any = None
        self.edges = EdgeDoor(self)

    # --- reading the machine's applied state -----------------------------------------------------------------------

    def view(self, namespace: str) -> Any:
        """The tenant's decoded rows.  Raises Refused ``not-found`` where this region does not hold it."""
        holding = self.shell.state.tenants.get(namespace)
        if holding is None or holding.applied is None:
            raise Refused("not-found", "no such tenant here", field="tenant")
        return holding.view

    def policy(self, namespace: str) -> Any:
        policy = self.view(namespace).policy
        if policy is None:
            raise Refused("not-found", "no such tenant here", field="tenant")
        return policy

    def other_regions(self, namespace: str) -> list[str]:
        """The tenant's other allowed regions, the home first."""
        policy = self.policy(namespace)
        return sorted((r for r in policy.regions if r != self.region), key=lambda r: (r != policy.home, r))

    # --- transport -------------------------------------------------------------------------------------------------

    def _registry_client(self) -> PeerClient:
        context = self.tls.client(lambda i: isinstance(i, RegistryIdentity))
        client = PeerClient(
            self.plan.url(self.region, "registry"),
            context,
            timeout_s=POLL_TIMEOUT_S,
            answer_max_bytes=ANSWER_MAX_BYTES,
        )
        self._registry_clients.append(client)
        return client

    def peer(self, region: str) -> PeerClient:
        if region not in self._peers:
            context = self.tls.client(lambda i: isinstance(i, CoreIdentity) and i.region == region)
            self._peers[region] = PeerClient(self.plan.url(self.region, region), context)
        return self._peers[region]

    def spawn(self, work: Any) -> None:
        """Run ``work`` beside everything else; a bug in it ends the process."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (failed := task.exception()) is not None:
            die("a background task failed", failed)

    def _send(self, to: str, message: Any) -> None:
        if to != REGISTRY:
            self.edges.send(to, message)
        elif len(self.tasks) < IN_FLIGHT_MAX:
            self.spawn(self._post(message))

    async def _post(self, message: Any) -> None:
        try:
            await self.registry.request("POST", "/v1/messages", MESSAGES.encode(message), timeout_s=5.0)
        except KeymeshError as lost:  # the machine sends it again while it matters
            log.debug("message not delivered", extra={"fields": {"reason": lost.code}})

    async def _follow(self, channel: str) -> None:
        """One lane's long poll, for ever; after a loss the machine greets the Registry, which may be a new one."""

        def on_return() -> None:
            if channel == CHANNELS[0]:
                self.shell.feed(Reconnected())

        await follow(self._registry_client(), channel, receive=self._receive_all, on_return=on_return)

    def _receive_all(self, body: bytes) -> None:
        for plain in split_messages(body):
            try:
                message = MESSAGES.from_plain(plain)
            except KeymeshError as bad:
                log.error("message refused", extra={"fields": {"code": bad.code, "field": bad.field or ""}})
                continue
            target = self.voter if isinstance(message, CountersignRequest | Poll) else self.shell
            target.feed(Received(sender=REGISTRY, message=message))
            self.sync_voter()
            if isinstance(message, Task):
                entry = message.state.head.entry
                self.applied.append(
                    {
                        "lane": int(message.lane),
                        "task": message.task_id,
                        "command_id": entry.command_id,
                        "at_ns": time.time_ns(),
                    }
                )

    def sync_voter(self) -> None:
        """Tell the voter which mesh state the node has applied and recorded, when that has changed."""
        applied = self.shell.state.mesh.applied
        if applied is not None and applied is not self._voted_under:
            self._voted_under = applied
            seat = voter.seat_of(applied, self.region, epoch=applied.head.entry.epoch)
            self.voter.feed(voter.MeshApplied(seat))

    # --- effects ---------------------------------------------------------------------------------------------------

    def _drop_keys(self, effect: DropKeys) -> None:
        self.keyring.drop(effect.namespace, effect.kids)

    async def _snapshot(self) -> None:
        await asyncio.sleep(0)
        states = []
        for namespace, holding in self.shell.state.tenants.items():
            if holding.applied is not None:
                states.append((namespace, self._recorded_rows(namespace)))
        states.append((MESH_NAMESPACE, self._recorded_rows(MESH_NAMESPACE)))
        try:
            taken = self.keys.cascades.snapshot(states)
        except KeymeshError as failed:  # sealed, or a store that does not answer: the machine asks again
            log.warning("snapshot not taken", extra={"fields": {"reason": failed.code}})
            return
        self.shell.feed(taken)

    def _recorded_rows(self, namespace: str) -> dict[str, bytes]:
        try:
            record = self.records.read(f"ns/{namespace}")
        except (Refused, Integrity):  # damaged: an empty state shows as drift
            return {}
        return {} if record is None else dict(record.rows)

    def _reply_local(self, effect: ReplyLocal) -> None:
        waiter = self.replies.pop(f"local/{effect.scope}/{effect.command_id}", None)
        if waiter is not None and not waiter.done():
            waiter.set_result(effect)

    # --- sealing ---------------------------------------------------------------------------------------------------

    def start_sealed(self) -> None:
        """Open the seal where it needs nobody; a region with shares stays sealed until they come."""
        record = seals.load_record(self.directory)
        if record is None:
            log.warning("development seal: the MasterKey's key lies in a file beside it")
            self.unseal(seals.create_file_seal(self.directory, self.region, self.pages))
        elif record.kind == "file":
            log.warning("development seal: the MasterKey's key lies in a file beside it")
            self.unseal(seals.open_file_seal(self.directory, self.region, record, self.pages))
        else:
            log.warning("sealed: waiting for shares", extra={"fields": {"threshold": record.threshold}})

    def seal(self) -> None:
        """Forget every key; the machine revokes what Edges hold by letting their leases end."""
        self.keyring.seal()
        self.shell.feed(Sealed())

    def unseal(self, master: SecretBytes) -> None:
        """Take the MasterKey into memory, make the first IVK where there is none, tell the machine."""
        self.keyring.unseal(master)
        ivks = self.store.ivks()
        if not ivks:
            self.keys.cascades.new_ivk(1)
            ivks = self.store.ivks()
        active = next(ivk for ivk in ivks if ivk.state is IvkState.ACTIVE)
        self.keyring.open_ivk(active)
        self.shell.feed(Unsealed(active.generation))

    async def _keep_internal_keys(self) -> None:
        """Once a minute: rotation by age and use, demotion, re-sealing."""
        while True:
            await asyncio.sleep(IVK_UPKEEP_S)
            if not self.shell.state.sealed:
                await self.keys.keep_ivks()

    # --- life ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Boot the machines, open the seal, serve until told to stop, then wipe every key."""
        self.voter.boot()
        self.shell.boot()
        self.sync_voter()
        self.start_sealed()
        api = CoreApi(self)
        metrics = HttpMetrics()
        metrics.registry.register(CoreCollector(self))
        server = await serve(
            [*self.edges.routes(), *api.routes()],
            tls=self.tls.server(lambda i: isinstance(i, CoreIdentity | EdgeIdentity | AdminIdentity)),
            port=self.plan.regions[self.region].port,
            readiness=api.readiness,
            metrics=metrics,
        )
        background = [asyncio.create_task(self._follow(channel)) for channel in CHANNELS]
        background.append(asyncio.create_task(self._keep_internal_keys()))
        background.append(
            asyncio.create_task(
                keep_certificate_fresh(self.credentials, self.directory / "region-ca.pem", self.plan.mesh)
            )
        )
        for task in background:
            task.add_done_callback(self._finished)
        say_ready()
        await wait_for_stop()
        for task in background:
            task.cancel()
        self.shell.stop()
        self.voter.stop()
        await server.close()
        await self.keys.close()
        for client in (*self._registry_clients, *self._peers.values()):
            await client.close()
        self.records.close()
        self.voter_records.close()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="keymesh core")
    parser.add_argument("--dir", required=True)
    parser.add_argument("--region", required=True)
    args = parser.parse_args(argv)
    die_with_parent()
    setup_logging(f"core-{args.region}")
    layout = Layout(Path(args.dir))
    plan = load_plan(layout)
    try:
        run_known_answer_tests()
        harden_process(allow_unlocked_memory=plan.allow_unlocked_memory)
        # asyncio's own loop: uvloop aborts the process when connections break while aiohttp opens them
        asyncio.run(CoreProcess(layout, plan, args.region).run())
    except KeymeshError as refused:
        log.critical("start refused", extra={"fields": {"code": refused.code, "reason": refused.message}})
        return int(refused.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
