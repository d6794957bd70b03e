"""The Registry process: the control log and its projection behind one machine, one HTTP API and the pull channels.

It decides nothing itself: commands, freshness, dispatch and certificates are ``registry.machine``'s; reads come from
the projection, which is brought forward from the log before the process says that it is ready, unless its database is
away: then all else goes on without it.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from keymesh.access.identity import AdminIdentity, CoreIdentity, RegistryIdentity
from keymesh.adapters.http_messages import Request, Response, Route
from keymesh.adapters.http_server import HttpMetrics, HttpServer, serve
from keymesh.adapters.key_files import load_signing_key
from keymesh.adapters.receipt_file import FileReceiptLog
from keymesh.adapters.sql_projection import SqlProjection
from keymesh.adapters.sqlite_log import SqliteControlLog
from keymesh.adapters.sqlite_records import SqliteRecords
from keymesh.adapters.tls import Credentials, MeshTls
from keymesh.app.channels import Mailboxes
from keymesh.app.layout import ASSIGNED, Layout, MeshPlan, load_plan
from keymesh.app.lifeline import die, die_with_parent, say_ready, wait_for_stop
from keymesh.app.logs import setup_logging
from keymesh.app.metrics import RegistryCollector
from keymesh.app.read_model import ReadModel
from keymesh.app.registry_api import RegistryApi
from keymesh.app.renewal import keep_certificate_fresh
from keymesh.app.shell import Shell
from keymesh.app.trust_file import load_trust
from keymesh.control.log import Conflict, UnknownOutcome
from keymesh.control.signing import DsseSuite
from keymesh.crypto.dsse import Ed25519Signer
from keymesh.crypto.kat import run_known_answer_tests
from keymesh.model.errors import KeymeshError, Refused, Unavailable
from keymesh.model.ids import KeyId, MeshName
from keymesh.model.limits import HTTP_BODY_MAX_BYTES
from keymesh.model.machine import Received, node_address
from keymesh.orbital.messages import Task
from keymesh.orbital.wire import MESSAGES, Codec
from keymesh.registry import machine
from keymesh.registry.events import (
    AppendConflict,
    Appended,
    AppendLog,
    AppendUnknown,
    CertificateReady,
    Command,
    CommandDone,
    LogRead,
    LogUnavailable,
    Project,
    ReadLog,
)
from keymesh.registry.projection import Fenced
from keymesh.registry.records import RECORD_TYPES

log = logging.getLogger("keymesh.registry")

POLL_S = 20.0
BOOT_CHECK_S, BOOT_CHECKS_MAX = 0.01, 6_000
TAKE_MOST: Final = {"lane0": 16, "lane1": 1, "lane2": 1, "control": 64}  # for one poll; what is out may be lost
TAKE_BYTES: Final = 512 * 1024  # beyond the first message: a slow link brings what is urgent in pieces
APPEND_TIMES_MAX: Final = 10_000
DATABASE_ENV = "KEYMESH_REGISTRY_DATABASE"  # URLs, in the order to try them, between spaces


class RegistryProcess:
    """Wires one machine to log, projection, mailboxes and HTTP.

    ``database``: where the projection is, see ``sql_engine``; none: a SQLite file in the Registry's directory.
    """

    def __init__(self, layout: Layout, plan: MeshPlan, database: Sequence[str] = ()) -> None:
        self.layout, self.plan = layout, plan
        directory = layout.registry
        trust = load_trust(layout.trust)
        signer = Ed25519Signer(load_signing_key(directory / "signing.pem"))
        suite = DsseSuite(signer)
        self.log = SqliteControlLog(directory / "log.db", mesh=plan.mesh)
        self.read_model = ReadModel(
            SqlProjection(*(database or (f"sqlite:///{directory / 'projection.db'}",)), mesh=plan.mesh), self.log
        )
        self._delivered: dict[tuple[str, str], int] = {}
        self._shown_kills: dict[tuple[str, str], Any] = {}
        self.append_started: OrderedDict[tuple[str, str], int] = OrderedDict()
        self.appended: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._shown_generation = 0
        self.records = SqliteRecords(directory / "records.db", Codec(RECORD_TYPES))
        self.receipts = FileReceiptLog(
            directory / "receipts.jsonl",
            origin=f"{plan.mesh}/registry/r1",
            signer=signer,
            keys={signer.key_id: signer.public_key},
        )
        self.mailboxes = Mailboxes()
        self.api = RegistryApi(self)
        self.assigned = ASSIGNED
        self.waiting: dict[tuple[str, str], tuple[Command, asyncio.Future[CommandDone]]] = {}
        self.certified = asyncio.Condition()
        self.tasks: set[asyncio.Task[None]] = set()
        config = machine.RegistryConfig(
            mesh=MeshName(plan.mesh),
            suite=suite,
            root_keys={KeyId(k): v for k, v in trust.root.keys.items()},
            root_threshold=trust.root.threshold,
        )
        self.shell = Shell(
            name="registry",
            state=machine.new_registry(config),
            step=machine.step,
            records=self.records,
            send=self._send,
            effects={
                AppendLog: lambda e: self._spawn(self._append(e)),
                ReadLog: lambda e: self._spawn(self._read(e)),
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
        raw = MESSAGES.encode(message)
        if isinstance(message, Task):
            self.mailboxes.of(to, f"lane{int(message.lane)}").put(raw, key=(message.task_id, message.force))
        else:
            self.mailboxes.of(to, "control").put(raw, key=raw)

    async def _append(self, effect: AppendLog) -> None:
        names = [(e.entry.namespace, e.entry.command_id) for e in effect.entries]
        _note_time(self.append_started, names)
        try:
            index = await self.log.append(effect.entries)
        except Conflict:
            self.shell.feed(AppendConflict(effect.token))
        except (UnknownOutcome, Unavailable) as failed:
            log.error("append outcome unknown", extra={"fields": {"reason": str(failed)}})
            await asyncio.sleep(0.1)
            self.shell.feed(AppendUnknown(effect.token))
        else:
            _note_time(self.appended, names)
            self.shell.feed(Appended(effect.token, index))

    async def _read(self, effect: ReadLog) -> None:
        try:
            index, entries = await self.log.read(effect.after_index)
        except Unavailable:
            await asyncio.sleep(0.2)
            self.shell.feed(LogUnavailable(effect.token))
        else:
            self.shell.feed(LogRead(token=effect.token, index=index, entries=tuple(entries)))

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

    async def _keep_read_model(self) -> None:
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
            self._delivered.clear()
            self._shown_kills.clear()
        for session in list(self.shell.state.sessions.values()):
            for namespace, leaf in list(session.applied.items()):
                key = (session.region, namespace)
                if self._delivered.get(key, 0) < leaf.seq:
                    await self.read_model.delivered(session.region, namespace, leaf.seq)
                    self._delivered[key] = leaf.seq
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
        identity = request.identity
        assert isinstance(identity, CoreIdentity)
        message = MESSAGES.decode(request.body, max_bytes=HTTP_BODY_MAX_BYTES)
        self.shell.feed(Received(sender=node_address(identity.region, identity.node), message=message))
        return Response(status=204)

    async def channel(self, request: Request) -> Response:
        """What waits for that node; with ``?wait=no`` at once, also where that is nothing."""
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
        return Response(body=b"[" + b",".join(items) + b"]")

    def node_routes(self) -> list[Route]:
        """For Cores.  What came before the log is read would be lost: a node is told to come back."""
        is_node = _allow(CoreIdentity)
        booted = self.api.once_booted
        return [
            Route(method="POST", path="/v1/messages", handler=booted(self.node_messages), allow=is_node, quiet=True),
            Route(method="GET", path="/v1/channels/{channel}", handler=booted(self.channel), allow=is_node, quiet=True),
        ]

    # --- life ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until told to stop."""
        tls = MeshTls(
            Credentials(self.layout.registry / "tls.pem"), MeshName(self.plan.mesh), self.layout.ca.read_bytes()
        )
        await self.read_model.start()
        self.shell.boot()
        metrics = HttpMetrics()
        metrics.registry.register(RegistryCollector(self))
        server = await serve(
            [*self.node_routes(), *self.api.routes()],
            tls=tls.server(lambda i: isinstance(i, CoreIdentity | AdminIdentity | RegistryIdentity)),
            port=self.plan.registry_port,
            readiness=self.api.readiness,
            metrics=metrics,
        )
        renewal = asyncio.create_task(
            keep_certificate_fresh(tls.credentials, self.layout.pki / "mesh-ca.pem", self.plan.mesh)
        )
        keeper = asyncio.create_task(self._keep_read_model())
        keeper.add_done_callback(self._finished)
        await self._booted()
        say_ready()
        await wait_for_stop()
        await self._stop(server, renewal, keeper)

    async def _booted(self) -> None:
        """Until the machine has read and verified the whole log."""
        for _ in range(BOOT_CHECKS_MAX):
            if self.shell.state.booted or self.shell.state.halted:
                return
            await asyncio.sleep(BOOT_CHECK_S)
        raise Unavailable("boot", "the control log could not be read in time")

    async def _stop(self, server: HttpServer, *background: asyncio.Task[None]) -> None:
        for task in background:
            task.cancel()
        self.shell.stop()
        await server.close()
        self.records.close()
        await self.read_model.close()
        self.receipts.close()
        await self.log.close()


def _note_time(times: OrderedDict[tuple[str, str], int], names: Iterable[tuple[str, str]]) -> None:
    """Now, for each of ``names``; only the newest are kept."""
    times.update(dict.fromkeys(names, time.time_ns()))
    while len(times) > APPEND_TIMES_MAX:
        times.popitem(last=False)


def _allow(*kinds: type) -> Any:
    return lambda request: isinstance(request.identity, kinds)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="keymesh registry")
    parser.add_argument("--dir", required=True)
    parser.add_argument("--database", action="append", default=None)
    args = parser.parse_args(argv)
    die_with_parent()
    setup_logging("registry")
    layout = Layout(Path(args.dir))
    database = args.database or os.environ.get(DATABASE_ENV, "").split()
    try:
        run_known_answer_tests()
        asyncio.run(RegistryProcess(layout, load_plan(layout), database).run())
    except KeymeshError as refused:
        log.critical("start refused", extra={"fields": {"code": refused.code, "reason": refused.message}})
        return int(refused.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
