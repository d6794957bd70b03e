"""``keymesh seal`` and ``keymesh open``: files and pipes of any size, each under a data key of its own.

The format is ``crypto.stream``'s, the key an Edge's; memory stays constant.  A file appears under its name only when
all of it is written and verified.  A pipe gets each chunk once that chunk is verified: a stream that turns out cut
or changed ends with exit code 4, and what came before is to be discarded.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from keymesh.app import cli_common
from keymesh.app.cli_errors import BadUsage, of_system, report_error, usage
from keymesh.app.layout import Layout, resolve_dir
from keymesh.app.seal_files import PIPE, Job, check_target, open_source, open_target, plan_jobs
from keymesh.app.seal_keys import KeySource, MeshKeys, OfflineKeys, SocketKeys
from keymesh.crypto.stream import MAGIC, SALT_BYTES, Header, open_stream, read_header, seal_stream
from keymesh.model.errors import ExitCode, Integrity, KeymeshError, Refused
from keymesh.model.ids import check_service, check_tenant


def run_seal(args: argparse.Namespace) -> int:
    """Seal each file under a fresh data key."""
    with usage():
        tenant, service = check_tenant(args.tenant), check_service(args.service)
        context = parse_context(args.context)
    jobs = _jobs(args, sealing=True)
    with _keys(args) as keys, _undo_on_sigterm(), _Meter(args, "sealing") as meter:

        def seal(job: Job) -> dict[str, Any]:
            started = time.monotonic()
            with open_source(job) as (source, size, mode):
                blob, l4 = keys.mint(tenant, service, context)
                header = Header(tenant, service, _sorted(context), blob, os.urandom(SALT_BYTES))
                with open_target(job, force=args.force, mode=mode) as target:
                    n_bytes = seal_stream(source, target, l4=l4, header=header, progress=meter.start(job, size))
            return _result(job, n_bytes, started)

        return _each(args, "sealed", jobs, seal, keys)


def run_open(args: argparse.Namespace) -> int:
    """Open each sealed file; its header says whose it is."""
    if args.offline and not (args.chain and args.l1):
        raise BadUsage.bad_field("offline", "--chain and --l1 are needed with it")
    jobs = _jobs(args, sealing=False)
    with _keys(args) as keys, _undo_on_sigterm(), _Meter(args, "opening") as meter:

        def unseal(job: Job) -> dict[str, Any]:
            started = time.monotonic()
            with open_source(job) as (source, size, mode):
                header = _header(source)
                l4 = keys.unwrap(header.tenant, header.service, header.l4_blob, dict(header.context))
                with open_target(job, force=args.force, mode=mode) as target:
                    n_bytes = open_stream(source, target, l4=l4, header=header, progress=meter.start(job, size))
            return _result(job, n_bytes, started) | {"tenant": header.tenant, "service": header.service}

        return _each(args, "opened", jobs, unseal, keys)


def _each(
    args: argparse.Namespace, verb: str, jobs: list[Job], work: Callable[[Job], dict[str, Any]], keys: KeySource
) -> int:
    """Do the jobs in order, each told as it is done.  The first that fails ends it, and what was done is told too."""
    done: list[dict[str, Any]] = []
    for job in jobs:
        try:
            one = work(job)
        except KeymeshError as bad:
            return _stopped(args, bad, f"{_name(job)}: {bad.message}", jobs, done)
        except BrokenPipeError:
            raise
        except OSError as failed:
            told = of_system(failed)
            named = told.message if failed.filename is not None else f"{_name(job)}: {told.message}"
            return _stopped(args, told, named, jobs, done)
        done.append(one)
        if not args.json:
            text = f"{verb} {one['file']} -> {one['output']} ({one['bytes']} bytes, {one['ms']} ms, {keys.where})"
            cli_common.stderr.print(text, markup=False)
    cli_common.emit(args, {"ok": True, "files": done, "by": keys.where}, lambda: None)
    return int(ExitCode.DONE)


def _stopped(
    args: argparse.Namespace, bad: KeymeshError, message: str, jobs: list[Job], done: list[dict[str, Any]]
) -> int:
    left = [job.source for job in jobs[len(done) + 1 :]]
    named = KeymeshError(bad.code, message, field=bad.field)
    report_error(args, named, files=done, failed=jobs[len(done)].source, not_tried=left)
    if left and not args.json:
        cli_common.stderr.print(f"not tried: {', '.join(left)}", markup=False)
    return int(bad.exit_code)


def _name(job: Job) -> str:
    return "standard input" if job.source == PIPE else job.source


def parse_context(pairs: Sequence[str]) -> dict[str, str]:
    """``K=V`` arguments.  Raises Refused for another form or a key given twice."""
    context: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise Refused.bad_field("context", "K=V")
        if key in context:
            raise Refused.bad_field("context", f"{key!r} is given twice")
        try:
            pair.encode()
        except UnicodeEncodeError as bad:
            raise Refused.bad_field("context", "UTF-8") from bad
        context[key] = value
    return context


def _sorted(context: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(context.items(), key=lambda pair: pair[0].encode("utf-8", "surrogatepass")))


def _jobs(args: argparse.Namespace, *, sealing: bool) -> list[Job]:
    with usage():
        jobs = plan_jobs(args.files, args.output, sealing=sealing)
    if args.json and any(job.to_pipe for job in jobs):
        raise BadUsage.bad_field("json", "not while the data itself goes to standard output")
    for job in jobs:
        check_target(job, force=args.force, sealing=sealing)
    return jobs


@contextlib.contextmanager
def _keys(args: argparse.Namespace) -> Iterator[KeySource]:
    layout = Layout(resolve_dir(args.dir))
    keys: KeySource
    if getattr(args, "offline", False):
        keys = OfflineKeys(Path(args.chain), args.l1, args.l1_credentials, layout.customer_kms)
    elif args.socket is not None:
        keys = SocketKeys(Path(args.socket))
    else:
        keys = MeshKeys(layout, args.region)
    try:
        yield keys
    finally:
        keys.close()


class _Watched:
    """Remembers how a file began and whether it ended, to tell a cut file from one that never was sealed."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self.start = b""
        self.ended = False

    def read(self, n_bytes: int, /) -> bytes:
        data = self._source.read(n_bytes)
        self.start = (self.start + data)[: len(MAGIC)]
        self.ended = self.ended or not data
        return data


def _header(source: BinaryIO) -> Header:
    watched = _Watched(source)
    try:
        return read_header(watched)
    except Refused as bad:
        if watched.ended and MAGIC.startswith(watched.start):
            raise Integrity("truncated", "the file ends inside its header", field="file") from bad
        if watched.start != MAGIC:
            raise Refused.bad_field("file", "not a sealed file") from bad
        raise Integrity("bad-header", f"changed since it was sealed: {bad.message}", field=bad.field) from bad


@contextlib.contextmanager
def _undo_on_sigterm() -> Iterator[None]:
    """SIGTERM takes the way of an exception, so that temporary files go."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, leave)
    except ValueError:  # not the main thread: somebody else's process, somebody else's signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Meter:
    """A progress bar on a terminal; nothing elsewhere."""

    def __init__(self, args: argparse.Namespace, verb: str) -> None:
        self._verb = verb
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=cli_common.stderr,
            transient=True,
            disable=args.json or not sys.stderr.isatty(),
        )

    def __enter__(self) -> _Meter:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, job: Job, size: int | None) -> Any:
        """A callback that takes the bytes done so far."""
        task = self._progress.add_task(f"{self._verb} {Path(job.source).name}", total=size)
        return lambda done: self._progress.update(task, completed=done)


def _result(job: Job, n_bytes: int, started: float) -> dict[str, Any]:
    ms = round((time.monotonic() - started) * 1_000)
    return {"file": job.source, "output": job.target, "bytes": n_bytes, "ms": ms}
