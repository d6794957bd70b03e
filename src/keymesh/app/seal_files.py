"""Where sealed and opened bytes go: files that appear whole or not at all, pipes that get only what is verified.

Decides names, modes and what may be overwritten; ``crypto.stream`` decides the bytes.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, cast

from keymesh.model.errors import Refused

SUFFIX: Final = ".sealed"
PIPE: Final = "-"
SOURCE_MODE_MASK: Final = 0o777


@dataclass(frozen=True, slots=True)
class Job:
    """One input and its output; ``-`` is standard input or output."""

    source: str
    target: str

    @property
    def to_pipe(self) -> bool:
        return self.target == PIPE


def plan_jobs(sources: list[str], output: str | None, *, sealing: bool) -> list[Job]:
    """What each input becomes.  Raises Refused naming the argument that does not fit."""
    if output is not None and output != PIPE and len(sources) > 1 and not Path(output).is_dir():
        raise Refused.bad_field("output", "with several files, a directory that exists")
    if sources.count(PIPE) > 1:
        raise Refused.bad_field("file", "standard input can be read once")
    jobs = [Job(source, _target(source, output, sealing=sealing)) for source in sources]
    targets = [job.target for job in jobs]
    if len(set(targets)) != len(targets):
        raise Refused.bad_field("output", "two files would have the same name")
    return jobs


def _target(source: str, output: str | None, *, sealing: bool) -> str:
    if output == PIPE or (output is None and source == PIPE):
        return PIPE
    into = Path(output) if output is not None else None
    if into is not None and not into.is_dir():
        return str(into)
    if source == PIPE:
        raise Refused.bad_field("output", "a file's name, for what comes from standard input")
    path = Path(source)
    if sealing:
        name = path.name + SUFFIX
    elif path.name.endswith(SUFFIX) and path.name != SUFFIX:
        name = path.name.removesuffix(SUFFIX)
    else:
        raise Refused.bad_field("file", f"{source} does not end in {SUFFIX}: name the output with -o")
    return str((into or path.parent) / name)


def check_target(job: Job, *, force: bool, sealing: bool) -> None:
    """Before any work.  Raises Refused where the output exists, is no file, or is a terminal that would get binary."""
    if job.to_pipe:
        if sealing and not force and sys.stdout.isatty():
            raise Refused("terminal", "sealed bytes do not go to a terminal; use -o, a pipe or --force", field="output")
        return
    target = Path(job.target)
    if target.is_dir() or (target.exists() and not target.is_file()):
        raise Refused("file", f"{target} is not a regular file", field="output")
    if target.exists() and not force:
        raise _exists(target)


@contextlib.contextmanager
def open_source(job: Job) -> Iterator[tuple[BinaryIO, int | None, int]]:
    """(stream, size where known, mode bits for what is made of it).  Raises Refused for what is no file or pipe."""
    if job.source == PIPE:
        yield sys.stdin.buffer, None, 0o600
        return
    with Path(job.source).open("rb") as file:
        status = os.fstat(file.fileno())
        if stat.S_ISDIR(status.st_mode):
            raise Refused("file", "is a directory", field="file")
        size = status.st_size if stat.S_ISREG(status.st_mode) else None
        yield file, size, status.st_mode & SOURCE_MODE_MASK


@contextlib.contextmanager
def open_target(job: Job, *, force: bool, mode: int) -> Iterator[BinaryIO]:
    """Write here.  A file appears under its name only after this ends well: complete, durable, in one step."""
    if job.to_pipe:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    target = Path(job.target)
    try:
        made = tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name[:64]}.", delete=False)  # noqa: SIM115
    except OSError as failed:  # which names a file that nobody knows
        raise Refused("file", f"{target} cannot be written ({failed.strerror})", field="output") from failed
    with made as file:
        try:
            yield cast(BinaryIO, file)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
            _appear(Path(file.name), target, force=force)
        finally:
            Path(file.name).unlink(missing_ok=True)
    _sync_directory(target.parent)


def _appear(made: Path, target: Path, *, force: bool) -> None:
    """Give ``made`` its name; without ``force`` only where nothing has it, also where two race."""
    if force:
        made.replace(target)
        return
    try:
        os.link(made, target)
    except FileExistsError as taken:
        raise _exists(target) from taken
    except OSError:  # a file system without hard links
        if target.exists():
            raise _exists(target) from None
        made.replace(target)


def _exists(target: Path) -> Refused:
    return Refused("exists", f"{target} exists; --force replaces it", field="output")


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
