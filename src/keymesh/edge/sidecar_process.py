"""The Edge host as processes: one worker, or a parent without keys that keeps several.

Workers are new processes, started before any key exists; keys stay in the worker that leased them.  They share the Unix
socket that the parent bound, and TCP ports by SO_REUSEPORT.  A worker that dies is started again; when the parent ends,
however it ends, its workers see the end of their standard input and drain.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import uvloop

from keymesh.access.callers import Names, parse_callers, parse_names
from keymesh.crypto.kat import run_known_answer_tests
from keymesh.crypto.pages import harden_process
from keymesh.edge.client import load_trust
from keymesh.edge.http1_accept import HANDSHAKES_MAX, raise_descriptors
from keymesh.edge.http1_server import CONNECTIONS_MAX, DESCRIPTORS_KEPT
from keymesh.edge.sidecar import Sidecar
from keymesh.edge.sidecar_bind import bind_tcp, bind_unix
from keymesh.edge.sidecar_door import Door, EdgesThread
from keymesh.model.errors import ExitCode, KeymeshError, Refused
from keymesh.model.hostport import parse_tcp
from keymesh.model.ids import check_region
from keymesh.model.limits import WORKERS_MAX

log = logging.getLogger("keymesh.edge.sidecar")

RESTART_MIN_S, RESTART_MAX_S = 0.2, 5.0
LASTING_S: Final = 10.0
STOP_S: Final = 10.0
CONNECTIONS_LIMIT: Final = 100_000
READY: Final = b"ready\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``main`` needs."""
    parser.add_argument("--dir", required=True, metavar="D", help="where identities are kept")
    parser.add_argument("--socket", required=True, metavar="PATH", help="Unix socket to serve on")
    parser.add_argument("--region", required=True, metavar="R")
    parser.add_argument("--mesh", required=True, metavar="NAME")
    parser.add_argument("--core-url", required=True, action="append", metavar="URL", help="repeat for more, in order")
    parser.add_argument(
        "--elsewhere",
        action="append",
        default=[],
        metavar="R=URL",
        help="a Core of another region, for when those of our own fail; repeat for more",
    )
    parser.add_argument("--ca", required=True, metavar="FILE", help="the mesh root certificate")
    parser.add_argument(
        "--service", action="append", default=[], metavar="T/S", help="have a key and a certificate request for it"
    )
    parser.add_argument("--trust", metavar="FILE", help="whose policies count (default: trust.json in --dir)")
    parser.add_argument("--tcp", metavar="HOST:PORT", help="serve there too, over mutual TLS")
    parser.add_argument("--tcp-identity", metavar="T/S", help="whose certificate is shown there (default: the first)")
    parser.add_argument(
        "--caller", action="append", default=[], metavar="UID=T/S[,T/S]", help="what another user may use"
    )
    parser.add_argument(
        "--connections",
        type=int,
        default=CONNECTIONS_MAX,
        metavar="N",
        help="a worker holds at most (%(default)s)",
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that serve (default 1)")
    parser.add_argument("--allow-unlocked-memory", action="store_true", help="start though memory cannot be locked")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--listen-fd", type=int, help=argparse.SUPPRESS)


def regions_and_urls(pairs: Sequence[str]) -> dict[str, list[str]]:
    """``R=URL`` by region.  Raises Refused."""
    found: dict[str, list[str]] = {}
    for pair in pairs:
        region, equals, url = pair.partition("=")
        if not equals:
            raise Refused.bad_field("elsewhere", "R=URL")
        found.setdefault(check_region(region), []).append(url)
    return found


def main(args: argparse.Namespace, *, on_ready: Callable[[], object] | None = None, worker: Sequence[str] = ()) -> int:
    """Serve until SIGTERM or SIGINT.  ``worker``: the command that starts one worker, to which arguments are added.

    Returns the exit code; what stands against a start goes to standard error.
    """
    try:
        if not 0 < args.workers <= WORKERS_MAX:
            raise Refused.bad_field("workers", f"1 to {WORKERS_MAX}")
        if not 0 < args.connections <= CONNECTIONS_LIMIT:
            raise Refused.bad_field("connections", f"1 to {CONNECTIONS_LIMIT}")
        callers = parse_callers(args.caller)
        if args.workers > 1 and args.worker is None:
            with bind_unix(Path(args.socket), shared=bool(callers)) as bound:
                bound.listen(1_024)
                code = asyncio.run(_keep_workers(args, [*worker, *_words(args)], bound, on_ready))
        else:
            code = _work(args, on_ready)
    except KeymeshError as bad:
        log.error("cannot start", extra={"fields": {"code": bad.code, "reason": bad.message}})
        print(f"error: {bad.message} [{bad.code}]", file=sys.stderr)
        return int(bad.exit_code)
    if args.worker is None:
        Path(args.socket).unlink(missing_ok=True)
    return code


# --- a worker ----------------------------------------------------------------------------------------------------


def _work(args: argparse.Namespace, on_ready: Callable[[], object] | None) -> int:
    run_known_answer_tests()
    harden_process(allow_unlocked_memory=args.allow_unlocked_memory)
    raise_descriptors(args.connections + DESCRIPTORS_KEPT + HANDSHAKES_MAX)
    directory = Path(args.dir)
    callers = parse_callers(args.caller)
    sidecar = Sidecar(
        directory,
        mesh=args.mesh,
        region=args.region,
        core_urls=args.core_url,
        elsewhere=regions_and_urls(args.elsewhere),
        ca_file=Path(args.ca),
        trust=load_trust(args.trust or directory / "trust.json"),
        allow_unlocked_memory=args.allow_unlocked_memory,
        leads=not args.worker,
        has_siblings=args.worker is not None,
    )
    if args.listen_fd is None:
        listening = [bind_unix(Path(args.socket), shared=bool(callers))]
    else:
        listening = [socket.socket(fileno=args.listen_fd)]
    if args.tcp is not None:
        listening.append(bind_tcp(*parse_tcp(args.tcp), shared=args.worker is not None))
    shown = None if args.tcp_identity is None else parse_names("tcp-identity", args.tcp_identity)
    with EdgesThread() as edges, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(sidecar, edges, callers, listening, shown, args, on_ready))
    return int(ExitCode.DONE)


async def _serve(
    sidecar: Sidecar,
    edges: asyncio.AbstractEventLoop,
    callers: Mapping[int, frozenset[Names]],
    listening: Sequence[socket.socket],
    shown: Names | None,
    args: argparse.Namespace,
    on_ready: Callable[[], object] | None,
) -> None:
    stop = _stopped()
    if args.worker is not None:
        _stop_with_parent(stop)
    door = Door(sidecar, edges=edges, callers=callers, connections_max=args.connections)
    await door.open(listening, shown=shown)
    try:
        for name in args.service:
            sidecar.store.request(*parse_names("service", name))
        if args.worker is not None:
            os.write(sys.stdout.fileno(), READY)
        elif on_ready is not None:
            on_ready()
        await stop.wait()
    finally:
        await door.close()


def _stopped() -> asyncio.Event:
    """Set by SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def _stop_with_parent(stop: asyncio.Event) -> None:
    """Standard input ends when the parent does."""
    loop, fd = asyncio.get_running_loop(), sys.stdin.fileno()
    os.set_blocking(fd, False)

    def readable() -> None:
        try:
            if os.read(fd, 1_024):
                return
        except BlockingIOError:
            return
        loop.remove_reader(fd)
        stop.set()

    loop.add_reader(fd, readable)


# --- the parent of several -----------------------------------------------------------------------------------------


def _words(args: argparse.Namespace) -> list[str]:
    """The arguments again, for a worker."""
    words: list[str] = []
    for name, value in vars(args).items():
        option = "--" + name.replace("_", "-")
        if name in ("worker", "listen_fd") or value in (None, False):
            continue
        if value is True:
            words.append(option)
        else:
            for each in value if isinstance(value, list) else [value]:
                words += [option, str(each)]
    return words


async def _keep_workers(
    args: argparse.Namespace, command: Sequence[str], bound: socket.socket, on_ready: Callable[[], object] | None
) -> int:
    """Start all, say so when all serve, start the dead again, until told to stop.  Returns the exit code."""
    stop = _stopped()
    ready = [asyncio.Event() for _ in range(args.workers)]
    async with asyncio.TaskGroup() as group:
        keeping = [group.create_task(_keep(n, command, bound, event, stop)) for n, event in enumerate(ready)]
        group.create_task(_say_ready(ready, keeping, on_ready))
        await stop.wait()
    return max(task.result() for task in keeping)


async def _say_ready(
    ready: Sequence[asyncio.Event], keeping: Sequence[asyncio.Task[int]], on_ready: Callable[[], object] | None
) -> None:
    for event, task in zip(ready, keeping, strict=True):
        waiting = asyncio.ensure_future(event.wait())
        await asyncio.wait({waiting, task}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not event.is_set():
            return
    if on_ready is not None:
        on_ready()


async def _keep(
    number: int, command: Sequence[str], bound: socket.socket, ready: asyncio.Event, stop: asyncio.Event
) -> int:
    """One worker, again and again.  Returns the exit code of the last; one that never served ends the host."""
    pause_s, loop = RESTART_MIN_S, asyncio.get_running_loop()
    while True:
        began = loop.time()
        process = await asyncio.create_subprocess_exec(
            *command,
            "--worker",
            str(number),
            "--listen-fd",
            str(bound.fileno()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=(bound.fileno(),),
        )
        assert process.stdout is not None
        ending = asyncio.ensure_future(process.wait())
        stopping = asyncio.ensure_future(stop.wait())
        try:
            if await process.stdout.readline() == READY:
                ready.set()
            await asyncio.wait({ending, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                return await _end(process)
            code = await ending
        finally:
            stopping.cancel()
        log.error("worker ended", extra={"fields": {"worker": number, "exit_code": code}})
        if not ready.is_set():
            stop.set()
            return code or int(ExitCode.UNAVAILABLE)
        if loop.time() - began > LASTING_S:
            pause_s = RESTART_MIN_S
        await asyncio.sleep(pause_s)
        pause_s = min(RESTART_MAX_S, pause_s * 2)


async def _end(process: asyncio.subprocess.Process) -> int:
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(STOP_S):
            return await process.wait()
    except TimeoutError:
        process.kill()
        return await process.wait()
