"""The Registry process: the control log and its projection behind one machine, one HTTP API and the pull channels.

It decides nothing itself: commands, freshness, dispatch and certificates are ``registry.machine``'s; reads come from
the projection, which is brought forward from the log before the process says that it is ready, unless its database is
away: then all else goes on without it.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import gc
import logging
import resource
import sys
from pathlib import Path
from typing import Any, Final

from keymesh.access.identity import AdminIdentity, CoreIdentity, RegistryIdentity
from keymesh.adapters.http_messages import Request, Response, Route, json_response
from keymesh.adapters.http_parts import Limits
from keymesh.adapters.http_server import HttpMetrics, HttpServer, serve
from keymesh.adapters.key_files import load_signing_key
from keymesh.adapters.receipt_file import FileReceiptLog
from keymesh.adapters.sql_projection import SqlProjection
from keymesh.adapters.sqlite_records import SqliteRecords
from keymesh.adapters.tls import Credentials, MeshTls
from keymesh.app.backup_registry import registry_keeper
from keymesh.app.backup_wiring import backup_routes, backup_warnings, start_backups
from keymesh.app.broker_publisher import BrokerPublisher
from keymesh.app.channels import Mailboxes, pack, split_messages
from keymesh.app.config import RegistryConfig
from keymesh.app.config_database import database_urls
from keymesh.app.config_of_plan import registry_config_of
from keymesh.app.layout import ASSIGNED
from keymesh.app.lifeline import die, say_ready, wait_for_stop
from keymesh.app.metrics import RegistryCollector
from keymesh.app.read_model import ReadModel
from keymesh.app.registry_api import RegistryApi, number_in
from keymesh.app.registry_log import RegistryLog
from keymesh.app.renewal import keep_certificate_fresh
from keymesh.app.role_start import role_parser, start_role
from keymesh.app.shell import Shell
from keymesh.app.token_parts import keep_keys, registry_door
from keymesh.app.trust_file import load_trust
from keymesh.control.signing import DsseSuite
from keymesh.crypto.dsse import Ed25519Signer, envelope_to_json
from keymesh.crypto.kat import run_known_answer_tests
from keymesh.model.errors import KeymeshError, Refused, Unavailable
from keymesh.model.ids import KeyId, MeshName
from keymesh.model.limits import HTTP_BODY_MAX_BYTES
from keymesh.model.machine import Address, Received, node_address
from keymesh.orbital.dispatch import LOWER_LANES
from keymesh.orbital.messages import Hello, Task
from keymesh.orbital.wire import MESSAGES, Codec
from keymesh.registry import machine
from keymesh.registry.events import (
    AppendLog,
    CertificateReady,
    Command,
    CommandDone,
    Project,
    ReadLog,
)
from keymesh.registry.projection import Fenced
from keymesh.registry.records import RECORD_TYPES
from keymesh.registry.spaces import may_hold
from keymesh.registry.state import Session

log = logging.getLogger("keymesh.registry")

CONNECTIONS_MAX: Final = 16_384
"""Five for each node of thousands of regions; never more than three quarters of the files that may be open."""
GC_THRESHOLDS: Final = (5_000, 10, 100)
POLL_S = 20.0
BOOT_CHECK_S, BOOT_CHECKS_MAX = 0.01, 6_000
TAKE_MOST: Final = {"lane0": 16, "lane1": 1, "lane2": 1, "control": 64}  # for one poll; what is out may be lost
ENTRIES_MAX: Final = 256
TAKE_BYTES: Final = 512 * 1024  # beyond the first message: a slow link brings what is urgent in pieces


class RegistryProcess:
    """Wires one machine to log, projection, mailboxes and HTTP."""

    def __init__(self, config: RegistryConfig) -> None:
        self.config = config
        directory = Path(config.data_dir)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        trust = load_trust(Path(config.identity.trust_file))
        signer = Ed25519Signer(load_signing_key(Path(config.identity.signing_key_file)))
        suite = DsseSuite(signer)
        self.log = RegistryLog(config.log, mesh=config.mesh, directory=directory, machine=lambda: self.shell)
        urls = database_urls(config.database, directory)
        self.read_model = ReadModel(SqlProjection(*urls, mesh=config.mesh), self.log.control)
        self._genesis = trust.genesis
        self.broker = None
        if config.broker is not None:
            self.broker = BrokerPublisher(
                config.broker, mesh=config.mesh, state=lambda: self.shell.state, read_model=self.read_model
            )
        self._shown_kills: dict[tuple[str, str], Any] = {}
        self._shown_generation = 0
        self.records = SqliteRecords(directory / "records.db", Codec(RECORD_TYPES))
        self.receipts = FileReceiptLog(
            directory / "receipts.jsonl",
            origin=f"{config.mesh}/registry/{config.node}",
            signer=signer,
            keys={signer.key_id: signer.public_key},
        )
        self.mailboxes = Mailboxes()
        self.backups = registry_keeper(self, signer)
        self.api = RegistryApi(self)
        self.assigned = ASSIGNED
        self.waiting: dict[tuple[str, str], tuple[Command, asyncio.Future[CommandDone]]] = {}
        self.certified = asyncio.Condition()
        self.tasks: set[asyncio.Task[None]] = set()
        rules = machine.RegistryConfig(
            mesh=MeshName(config.mesh),
            suite=suite,
            root_keys={KeyId(k): v for k, v in trust.root.keys.items()},
            root_threshold=trust.root.threshold,
        )
        self.shell = Shell(
            name="registry",
            state=machine.new_registry(rules),
            step=machine.step,
            records=self.records,
            send=self._send,
            effects={
                AppendLog: lambda e: self._spawn(self.log.append(e)),
                ReadLog: lambda e: self._spawn(self.log.read(e)),
                CommandDone: self._command_done,
                Project: lambda e: self.read_model.offer(e.index, e.entries),
                CertificateReady: self._certificate_ready,
            },
        )

    # --- effects -------------------------------------------------------------------------------------------------

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (failed := task.exception()) is not None:
            die("a background task failed", failed)

    def _send(self, to: str, message: Any) -> None:
        if self.broker is not None and isinstance(message, Task):
            if self.broker.brings(self.shell.state.sessions[to].region, message):
                return
        raw = MESSAGES.encode(message)
        if isinstance(message, Task):
            self.mailboxes.of(to, f"lane{int(message.lane)}").put(raw, key=(message.task_id, message.force))
        else:
            self.mailboxes.of(to, "control").put(raw, key=raw)

    def _command_done(self, effect: CommandDone) -> None:
        _, waiter = self.waiting.pop((effect.namespace, effect.command_id), (None, None))
        if waiter is not None and not waiter.done():
            waiter.set_result(effect)

    def _certificate_ready(self, effect: CertificateReady) -> None:
        self._spawn(self._announce())

    async def _announce(self) -> None:
        async with self.certified:
            self.certified.notify_all()

    # --- read model --------------------------------------------------------------------------------------------------

    async def keep_read_model(self) -> None:
        """Once a second: what is missing is made good; what lies beside the log is shown as it stands."""
        while True:
            await asyncio.sleep(1.0)
            await self.read_model.tick()
            try:
                await self._show_what_lies_beside_the_log()
            except (Unavailable, Fenced):
                continue  # shown again at a later tick, by whoever writes then

    async def _show_what_lies_beside_the_log(self) -> None:
        """What regions have acknowledged leaves the outbox; kill-switch records are refreshed."""
        if self._shown_generation != self.read_model.generation:
            self._shown_generation = self.read_model.generation
            self._shown_kills.clear()
        waiting = await self.read_model.undelivered()
        nodes: dict[str, list[Session]] = {}
        for session in self.shell.state.sessions.values() if waiting else ():
            nodes.setdefault(session.region, []).append(session)
        for region, namespace, oldest in waiting:  # what is out, not all that the nodes hold
            held = [s.applied[namespace].seq for s in nodes.get(region, ()) if namespace in s.applied]
            if held and max(held) >= oldest:
                await self.read_model.delivered(region, namespace, max(held))
        for name, kill in list(self.shell.state.kills.items()):
            record = kill.record
            if self._shown_kills.get(name) is not record:
                await self.read_model.put_kill(record)
                self._shown_kills[name] = record

    # --- commands ------------------------------------------------------------------------------------------------

    async def command(self, command: Command) -> CommandDone:
        """The outcome, once it is certain.  Raises what the machine refused it with, or Unavailable."""
        key = (command.namespace, command.command_id)
        first, waiter = self.waiting.get(key, (command, None))
        if (first.kind, first.args) != (command.kind, command.args):  # one answer cannot be for both
            raise Refused("conflict", "this command id is in use for something else")
        if waiter is None:
            waiter = asyncio.get_running_loop().create_future()
            self.waiting[key] = (command, waiter)
        self.shell.feed(command)
        try:
            done = await asyncio.wait_for(asyncio.shield(waiter), 15.0)
        except TimeoutError as late:
            raise Unavailable("unknown-outcome", "the log has not answered; repeat with the same id") from late
        if done.error is not None:
            raise done.error
        return done

    # --- nodes ---------------------------------------------------------------------------------------------------

    async def node_messages(self, request: Request) -> Response:
        """One message, or an array of them."""
        identity = request.identity
        assert isinstance(identity, CoreIdentity)
        sender = node_address(identity.region, identity.node)
        if not request.body.startswith(b"["):
            self._hear(sender, MESSAGES.decode(request.body, max_bytes=HTTP_BODY_MAX_BYTES))
            return Response(status=204)
        for plain in split_messages(request.body, max_bytes=HTTP_BODY_MAX_BYTES):
            try:
                message = MESSAGES.from_plain(plain)
            except KeymeshError as bad:  # the others stand by themselves
                log.error("message refused", extra={"fields": {"code": bad.code, "field": bad.field or ""}})
                continue
            self._hear(sender, message)
            await asyncio.sleep(0)  # so that Lane 0 waits for one of them, not for all
        return Response(status=204)

    def _hear(self, sender: Address, message: Any) -> None:
        if isinstance(message, Hello):  # what waits in its lower lanes is older than what it is sent now
            for lane in LOWER_LANES:
                self.mailboxes.of(sender, f"lane{int(lane)}").clear()
        self.shell.feed(Received(sender=sender, message=message))

    async def channel(self, request: Request) -> Response:
        """What waits for that node; with ``?wait=no`` at once, also where that is nothing.  With ``?form=zlib`` it
        comes packed (``channels.pack``)."""
        identity = request.identity
        assert isinstance(identity, CoreIdentity)
        name = request.params["channel"]
        if name not in TAKE_MOST:
            raise Refused("not-found", "no such channel", field="channel")
        items = await self.mailboxes.of(node_address(identity.region, identity.node), name).take(
            timeout_s=0 if request.query.get("wait") == "no" else POLL_S,
            max_items=TAKE_MOST[name],
            max_bytes=TAKE_BYTES,
        )
        body = b"[" + b",".join(items) + b"]"
        return Response(body=pack(body) if request.query.get("form") == "zlib" else body)

    async def entries(self, request: Request) -> Response:
        """Entries of a namespace that this region may hold, after a seq: at most ``most``, and not too large."""
        identity = request.identity
        assert isinstance(identity, CoreIdentity)
        space = self.shell.state.spaces.get(request.params["namespace"])
        if space is None or not may_hold(space, identity.region):
            raise Refused("not-found", "no such namespace for that region", field="namespace")
        after = number_in(request, "after", default=0, most=2**53)
        most = number_in(request, "most", default=ENTRIES_MAX, most=ENTRIES_MAX)
        page: list[str] = []
        for signed in space.entries[after : after + most]:
            page.append(base64.b64encode(envelope_to_json(signed.envelope)).decode("ascii"))
            if sum(map(len, page)) > TAKE_BYTES:
                break
        return json_response({"entries": page})

    def node_routes(self) -> list[Route]:
        """For Cores.  What came before the log is read would be lost: a node is told to come back."""
        node: Any = {"allow": _allow(CoreIdentity), "quiet": True, "takes_tokens": True}
        booted = self.api.once_booted
        return [
            Route(method="POST", path="/v1/messages", handler=booted(self.node_messages), **node),
            Route(method="GET", path="/v1/entries/{namespace}", handler=booted(self.entries), **node),
            Route(method="GET", path="/v1/channels/{channel}", handler=booted(self.channel), **node),
        ]

    # --- life ----------------------------------------------------------------------------------------------------

    def _tls(self) -> MeshTls:
        identity = self.config.identity
        ca_pem = Path(identity.ca_file).read_bytes()
        return MeshTls(Credentials(Path(identity.tls_file)), MeshName(self.config.mesh), ca_pem)

    async def run(self) -> None:
        """Serve until told to stop."""
        tls, door = self._tls(), registry_door(self.config, self.shell)
        await self.log.check(self._genesis)  # before anything is changed
        await self.read_model.start()
        self.shell.boot()
        metrics = HttpMetrics()
        metrics.registry.register(RegistryCollector(self))
        server = await serve(
            [*self.node_routes(), *self.api.routes(), *backup_routes(self.backups)],
            tls=tls.server(
                lambda i: isinstance(i, CoreIdentity | AdminIdentity | RegistryIdentity), required=door is None
            ),
            tokens=door,
            host=self.config.listen.host,
            port=self.config.listen.port,
            readiness=self.api.readiness,
            metrics=metrics,
            limits=Limits(connections=connections_allowed()),
            warnings=lambda: backup_warnings(self.backups),
        )
        renewal = asyncio.create_task(
            keep_certificate_fresh(tls.credentials, self.config.identity.issuer, self.config.mesh)
        )
        keeper = asyncio.create_task(self.keep_read_model())
        keeper.add_done_callback(self._finished)
        follower = asyncio.create_task(self.log.follow())
        follower.add_done_callback(self._finished)
        tokens = asyncio.create_task(keep_keys(door))
        tokens.add_done_callback(self._finished)
        await self.booted()
        pass_over_what_stays()
        background = [renewal, keeper, follower, tokens, *start_backups(self.backups, metrics.registry, self._finished)]
        if self.broker is not None:
            background.append(asyncio.create_task(self.broker.run()))
            background[-1].add_done_callback(self._finished)
        say_ready()
        await wait_for_stop()
        await self._stop(server, *background)

    async def booted(self) -> None:
        """Until the machine has read and verified the whole log."""
        for _ in range(BOOT_CHECKS_MAX):
            if self.shell.state.booted or self.shell.state.halted:
                return
            await asyncio.sleep(BOOT_CHECK_S)
        raise Unavailable("boot", "the control log could not be read in time")

    async def _stop(self, server: HttpServer, *background: asyncio.Task[None]) -> None:
        for task in background:
            task.cancel()
        await server.close()
        await self.close()

    async def close(self) -> None:
        """The machine takes nothing more, and its stores are shut."""
        self.shell.stop()
        self.records.close()
        await self.read_model.close()
        self.receipts.close()
        await self.log.control.close()


def pass_over_what_stays() -> None:
    """What the log has left in memory stays: full garbage collections, which stop everything (a million objects for a
    quarter of a second), pass it over from now on.  And they come rarely: connections of thousands of nodes stay too.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def connections_allowed() -> int:
    """As many as the limit on open files leaves room for, once that is raised as far as we may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return CONNECTIONS_MAX if soft == resource.RLIM_INFINITY else min(CONNECTIONS_MAX, soft * 3 // 4)


def _allow(*kinds: type) -> Any:
    return lambda request: isinstance(request.identity, kinds)


def serve_registry(config: RegistryConfig) -> int:
    """Serve until told to stop; returns the exit code."""
    run_known_answer_tests()
    asyncio.run(RegistryProcess(config).run())
    return 0


def run(args: argparse.Namespace) -> int:
    """``keymesh registry run``, and what the supervisor starts."""
    return start_role(args, "registry", embedded=registry_config_of, serve=serve_registry)


if __name__ == "__main__":
    sys.exit(run(role_parser("registry").parse_args()))
