"""A file's content replaced in one atomic, durable step; who may read it."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from itertools import count
from pathlib import Path
from typing import Final

PRIVATE_MODE: Final = 0o600
PUBLIC_MODE: Final = 0o644


def check_writable(path: Path) -> None:
    """That ``write_file`` could put something there now.  Raises OSError."""
    _check_replaceable(path)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
        pass


def write_file(path: Path, content: bytes, *, mode: int = PRIVATE_MODE) -> None:
    """Replace ``path`` in one durable step: a crash leaves the old file or the new one.

    Raises OSError, also where what is there is no regular file.
    """
    _check_replaceable(path)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                Path(file.name).unlink()
            raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _check_replaceable(path: Path) -> None:
    """A device or a pipe would not be written to: its name would be taken from it."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise FileExistsError(errno.EEXIST, "Not a regular file", str(path))


def set_aside(path: Path, name: str) -> str:
    """``path`` under ``name`` as well, so that it is never gone; what a damaged file has beside it moves."""
    if not path.exists():
        return ""
    free = next(tried for n in count(1) if not path.with_name(tried := name if n == 1 else f"{name}.{n}").exists())
    for suffix in ("-wal", "-shm"):
        beside = path.with_name(path.name + suffix)
        if beside.exists():
            beside.rename(path.with_name(free + suffix))
    path.with_name(free).hardlink_to(path)
    return free
