"""The Core process of one region: the node's machine, the voter's where its region votes, keys, and its servers.

It decides nothing itself.  Messages to the Registry go to each of its replicas, what they have to say is fetched by one
long poll for each lane, each on a connection of its own, so that no lane waits for another (``registry_links``).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections import deque
from pathlib import Path
from typing import Any, Final

from keymesh.access.identity import AdminIdentity, CoreIdentity, EdgeIdentity, RegistryIdentity
from keymesh.adapters.http_client import PeerClient
from keymesh.adapters.http_server import HttpMetrics, serve
from keymesh.adapters.key_files import load_signing_key
from keymesh.adapters.pkcs11_descriptor import Tokens
from keymesh.adapters.receipt_file import FileReceiptLog
from keymesh.adapters.sqlite_records import SqliteRecords
from keymesh.adapters.system import SystemEntropy
from keymesh.adapters.tls import Credentials, MeshTls
from keymesh.app.backup_domain import core_keeper
from keymesh.app.backup_wiring import backup_routes, backup_warnings, start_backups
from keymesh.app.blob_peers import BlobPeers
from keymesh.app.channels import ANSWER_MAX_BYTES, POLL_TIMEOUT_S, Mailboxes, split_messages
from keymesh.app.config import CoreConfig
from keymesh.app.config_of_plan import core_config_of
from keymesh.app.config_seals import SealsConfig
from keymesh.app.core_api import CoreApi
from keymesh.app.core_broker import BrokerDoor, applied_row
from keymesh.app.core_edges import EdgeDoor
from keymesh.app.core_epoch import EpochDoor
from keymesh.app.core_history import CoreHistory
from keymesh.app.core_keys import CoreKeys
from keymesh.app.core_kmip import KmipDoor
from keymesh.app.core_loads import CoreLoads
from keymesh.app.core_objects import objects_of
from keymesh.app.core_peers import PeerDoor
from keymesh.app.core_purge import CorePurge
from keymesh.app.core_ready import CoreReady
from keymesh.app.core_seals import RegionSeals
from keymesh.app.core_snapshot import take_snapshot
from keymesh.app.keystore_open import open_keystore
from keymesh.app.lifeline import die, say_ready, wait_for_stop
from keymesh.app.metrics import CoreCollector
from keymesh.app.peer_link import PeerLink
from keymesh.app.region_store import RegionStore
from keymesh.app.registry_links import RegistryLinks
from keymesh.app.renewal import keep_certificate_fresh
from keymesh.app.role_start import role_parser, start_role
from keymesh.app.shell import Shell
from keymesh.app.token_parts import core_door, keep_keys, node_login
from keymesh.app.trust_file import load_trust
from keymesh.app.voter_word import VoterWord
from keymesh.control import voter
from keymesh.control.messages import CountersignRequest, Poll, VoterLog
from keymesh.control.signing import DsseSuite
from keymesh.control.voter_state import EpochReply
from keymesh.core import machine
from keymesh.core.events import (
    BudgetReply,
    DropKeys,
    LoadKeys,
    MigrateStore,
    MintKey,
    ProbeL1,
    PurgeTenant,
    Reconnected,
    ReplyLocal,
    RewrapKey,
    RotateIvk,
    Sealed,
    TakeSnapshot,
    WipeMinted,
)
from keymesh.core.keyring import Keyring
from keymesh.core.records import RECORD_TYPES
from keymesh.crypto.dsse import Ed25519Signer
from keymesh.crypto.kat import run_known_answer_tests
from keymesh.crypto.pages import KeyPages, SecretBytes, harden_process
from keymesh.model.errors import KeymeshError, Refused
from keymesh.model.ids import KeyId, MeshName
from keymesh.model.machine import REGISTRY, Received
from keymesh.orbital.messages import Task
from keymesh.orbital.wire import MESSAGES, Codec

log = logging.getLogger("keymesh.core")

IVK_UPKEEP_S: Final = 60.0
SEALS_WAIT_S: Final = 2.0  # for a first seal; whoever is slower opens a region that serves already


class CoreProcess:
    """Everything of one Core; ``run`` serves until told to stop."""

    def __init__(self, config: CoreConfig) -> None:
        self.config, self.region, self.node = config, config.region, config.node
        self.directory = Path(config.data_dir)
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        region, identity = config.region, config.identity
        signer = Ed25519Signer(load_signing_key(Path(identity.signing_key_file)))
        suite = DsseSuite(signer)
        trust = load_trust(Path(identity.trust_file))
        self.credentials = Credentials(Path(identity.tls_file))
        seals = config.seals or SealsConfig()
        self.tokens = Tokens(self.directory, seals.tokens)
        self.tls = MeshTls(self.credentials, MeshName(config.mesh), Path(identity.ca_file).read_bytes())
        self._login = node_login(config, signer)
        self.mailboxes = Mailboxes()
        self.replies: dict[str, asyncio.Future[Any]] = {}
        self.applied: deque[dict[str, Any]] = deque(maxlen=50_000)
        self.tasks: set[asyncio.Task[Any]] = set()
        self.registries = RegistryLinks(config.registries, self._registry_client)
        self._peers: dict[tuple[str, str], PeerLink] = {}
        self.pages = KeyPages(allow_unlocked=config.allow_unlocked_memory)
        self.keyring = Keyring(region, self.pages, SystemEntropy())
        self.region_store = RegionStore(
            open_keystore(config.keystore, self.directory),
            region=region,
            directory=self.directory,
            entropy=SystemEntropy(),
        )
        self.store = self.region_store.guarded
        self.records = SqliteRecords(self.directory / "node.db", Codec(RECORD_TYPES))
        self.receipts = FileReceiptLog(
            self.directory / "receipts.jsonl",
            origin=f"{config.mesh}/{region}/{self.node}",
            signer=signer,
            keys={signer.key_id: signer.public_key},
        )
        rules = machine.NodeConfig(
            mesh=config.mesh,
            region=region,
            node=self.node,
            suite=suite,
            root_keys={KeyId(k): v for k, v in trust.root.keys.items()},
            root_threshold=trust.root.threshold,
            heartbeat_ms=config.timing.heartbeat_ms,
        )
        self.objects = objects_of(self)
        self.purge = CorePurge(self)
        self.loads = CoreLoads(lambda e: self.keys.load(e), self.spawn)  # noqa: PLW0108 - keys come later
        self.shell = Shell(
            name=f"node-{region}",
            state=machine.new_node(rules),
            step=machine.step,
            records=self.records,
            send=self._send,
            effects={
                LoadKeys: self.loads.offer,
                DropKeys: self._drop_keys,
                ProbeL1: lambda e: self.spawn(self.keys.probe(e)),
                PurgeTenant: self.purge.begin,
                MintKey: lambda e: self.spawn(self.keys.mint(e)),
                RewrapKey: lambda e: self.spawn(self.keys.rewrap(e)),
                WipeMinted: lambda e: self.spawn(self.keys.wipe_minted(e.namespace, e.kid)),
                RotateIvk: lambda e: self.spawn(self.keys.rotate_ivk(e)),
                MigrateStore: lambda e: self.spawn(self.region_store.migrate_and_tell(e.schema, self.shell.feed)),
                TakeSnapshot: lambda e: self.spawn(take_snapshot(self)),
                ReplyLocal: self._reply_local,
                BudgetReply: lambda e: self.edges.held.reply(e),  # noqa: PLW0108 - they come later
            },
        )
        self.keys = CoreKeys(
            region=region,
            keyring=self.keyring,
            store=self.store,
            peers=BlobPeers(regions_of=self.other_regions, client_of=self.peer),
            credentials=self.credentials,
            tokens=self.tokens,
            entropy=SystemEntropy(),
            now=self.shell.now,
            feed=self.shell.feed,
            bindings_of=lambda namespace: self.view(namespace).bindings,
            domain_of=lambda namespace: self.policy(namespace).domain,
        )
        self.epochs = EpochDoor(self)
        self.voter_records = SqliteRecords(self.directory / "voter.db", Codec(voter.RECORD_TYPES))
        self.voter = Shell(
            name=f"voter-{region}",
            state=voter.new_voter(voter.VoterConfig(mesh=config.mesh, region=region, suite=suite, node=self.node)),
            step=voter.step,
            records=self.voter_records,
            send=self._send,
            effects={EpochReply: self.epochs.reply},
        )
        self.word = VoterWord(self)
        self.peers = PeerDoor(self)
        self.broker = None if config.broker is None else BrokerDoor(self, config.broker)
        self.edges = EdgeDoor(self)
        self.kmip = None if config.kmip is None else KmipDoor(self, config.kmip)
        self.history = CoreHistory(self, self.registries.ask)
        self.backups = core_keeper(self, signer)
        self.seals = RegionSeals(self, seals)
        self.opening: asyncio.Task[None] | None = None

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

    def _registry_client(self, url: str) -> PeerClient:
        context = self.tls.client(lambda i: isinstance(i, RegistryIdentity), anonymous=self._login is not None)
        limits: Any = {"timeout_s": POLL_TIMEOUT_S, "answer_max_bytes": ANSWER_MAX_BYTES}
        return PeerClient(url, context, authorize=self._login, **limits)

    def peer(self, region: str, use: str = "") -> PeerLink:
        """``use``: what has connections of its own, so that nothing else waits for it."""
        if (region, use) not in self._peers:
            if region not in self.config.peers:
                raise Refused("unknown-region", f"{region[:64]!r} is no peer in this Core's configuration")
            context = self.tls.client(lambda i: isinstance(i, CoreIdentity) and i.region == region)
            self._peers[region, use] = PeerLink([PeerClient(url, context) for url in self.config.peers[region]])
        return self._peers[region, use]

    def spawn(self, work: Any) -> None:
        """Run ``work`` beside everything else; a bug in it ends the process."""
        self._spawned(work).add_done_callback(self.tasks.discard)

    def _spawned(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (failed := task.exception()) is not None:
            die("a background task failed", failed)

    def _send(self, to: str, message: Any) -> None:
        if self.broker is not None and self.broker.hears(message):
            return
        if to.startswith("node:"):
            self.peers.send(to, message)
        elif to != REGISTRY:
            self.edges.send(to, message)
        else:
            for post in self.registries.posts(MESSAGES.encode(message)):
                self.spawn(post)

    def _receive_all(self, body: bytes) -> None:
        for plain in split_messages(body):
            try:
                message = MESSAGES.from_plain(plain)
            except KeymeshError as bad:
                log.error("message refused", extra={"fields": {"code": bad.code, "field": bad.field or ""}})
                continue
            self.receive(message)

    def receive(self, message: Any, via: str = "pull") -> None:
        """One message of the Registry's, to the machine that it is for."""
        target = self.voter if isinstance(message, CountersignRequest | Poll | VoterLog) else self.shell
        target.feed(Received(sender=REGISTRY, message=message))
        self.word.pass_on()
        if isinstance(message, Task):
            self.applied.append(applied_row(message, via))
            self.history.applied(message.namespace)

    # --- effects ---------------------------------------------------------------------------------------------------

    def _drop_keys(self, effect: DropKeys) -> None:
        if effect.kids is None:
            self.loads.drop(effect.namespace)
        self.keyring.drop(effect.namespace, effect.kids)
        if self.kmip is not None:
            self.kmip.dropped(effect.namespace)

    def _reply_local(self, effect: ReplyLocal) -> None:
        waiter = self.replies.pop(f"local/{effect.scope}/{effect.command_id}", None)
        if waiter is not None and not waiter.done():
            waiter.set_result(effect)

    # --- sealing ---------------------------------------------------------------------------------------------------

    def seal(self) -> None:
        """Forget every key; the machine revokes what Edges hold by letting their leases end."""
        if self.opening is not None:
            self.opening.cancel()
        self.keyring.seal()
        self.shell.feed(Sealed())

    def unseal(self, master: SecretBytes) -> None:
        """Take the MasterKey into memory; once the key store is open and shows the IVK, the machine is told."""
        self.keyring.unseal(master)
        self.opening = self._spawned(self.region_store.open_region(self.keys.cascades.open_active, self.shell.feed))

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
        self.word.pass_on()
        await asyncio.wait({self._spawned(self.seals.start())}, timeout=SEALS_WAIT_S)
        api, door = CoreApi(self), core_door(self.config, self.shell)
        ready = CoreReady(self, api.readiness)
        routes = [*self.edges.routes(), *api.routes(), *ready.routes(), *self.history.routes()]
        routes += [*self.peers.routes(), *self.word.routes(), *self.epochs.routes(), *self.objects.routes()]
        metrics = HttpMetrics()
        metrics.registry.register(CoreCollector(self))
        server = await serve(
            [*routes, *backup_routes(self.backups)],
            tls=self.tls.server(
                lambda i: isinstance(i, CoreIdentity | EdgeIdentity | AdminIdentity), required=door is None
            ),
            tokens=door,
            host=self.config.listen.host,
            port=self.config.listen.port,
            readiness=api.readiness,
            metrics=metrics,
            warnings=lambda: backup_warnings(self.backups),
        )
        polls = self.registries.follows(
            receive=self._receive_all, on_return=lambda: self.shell.feed(Reconnected())
        )  # after a loss the machine greets whoever is there now
        background = [asyncio.create_task(poll) for poll in polls]
        works = [self._keep_internal_keys(), self.region_store.watch(self.shell.feed), self.seals.keep()]
        works += [ready.run(), self.history.run(), self.objects.run(), keep_keys(door)]
        background += [asyncio.create_task(work) for work in works]
        background.append(
            asyncio.create_task(keep_certificate_fresh(self.credentials, self.config.identity.issuer, self.config.mesh))
        )
        background += [] if self.broker is None else [asyncio.create_task(self.broker.run())]
        for task in background:
            task.add_done_callback(self._finished)
        background += start_backups(self.backups, metrics.registry, self._finished)
        if self.kmip is not None:
            await self.kmip.open()
            background.append(self._spawned(self.kmip.run()))
        say_ready()
        await wait_for_stop()
        for task in background:
            task.cancel()
        self.shell.stop()
        self.voter.stop()
        await server.close()
        if self.kmip is not None:
            await self.kmip.close()
        await self.keys.close()
        await self.tokens.close()
        await self.registries.close()
        for link in self._peers.values():
            await link.close()
        await self.store.close()
        self.records.close()
        self.objects.close()
        self.history.store.close()
        self.voter_records.close()


def serve_core(config: CoreConfig) -> int:
    """Serve until told to stop; returns the exit code."""
    run_known_answer_tests()
    harden_process(allow_unlocked_memory=config.allow_unlocked_memory)
    # asyncio's own loop: uvloop aborts the process when connections break while aiohttp opens them
    asyncio.run(CoreProcess(config).run())
    return 0


def run(args: argparse.Namespace) -> int:
    """``keymesh core run``, and what the supervisor starts."""
    return start_role(args, "core", embedded=core_config_of, serve=serve_core)


if __name__ == "__main__":
    sys.exit(run(role_parser("core").parse_args()))
