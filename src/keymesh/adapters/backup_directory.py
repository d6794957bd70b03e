"""A backup store in a directory: files that are created once, synced, made read-only, and never replaced.

A file appears under its name only whole: it is written and synced under a temporary name and then linked, which fails
where the name is taken.  No link is followed anywhere below the directory, and nothing is opened that is no plain file.
What a crash left under a temporary name is ignored.  The directory protects against accidents, not against its
administrator: for that a store with Object Lock (``backup_s3``), or a file system that keeps snapshots.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from keymesh.control.backup_manifest import split_manifest_name
from keymesh.control.backup_store import NAMES_MAX, check_name
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable

FILE_MODE: Final = 0o400
DIRECTORY_MODE: Final = 0o700
_TEMPORARY: Final = ".writing-"
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NOT_OURS: Final = frozenset({errno.ELOOP, errno.ENOTDIR, errno.EMLINK, errno.EISDIR, errno.ENXIO})


class DirectoryStore:
    """``root`` is made where it is missing, its parents are not."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def address(self) -> str:
        return f"directory {self._root}"

    def put(self, name: str, content: bytes) -> bool:
        *parents, leaf = check_name(name).split("/")
        with _translated(name), self._directory(parents, make=True) as fd:
            if _exists(leaf, fd):
                return False
            return _write_once(fd, leaf, content)

    def get(self, name: str, *, max_bytes: int) -> bytes | None:
        *parents, leaf = check_name(name).split("/")
        with _translated(name):
            try:
                with self._directory(parents, make=False) as fd:
                    return _read(fd, leaf, name, max_bytes)
            except FileNotFoundError:
                self._check_there()
                return None

    def names(self, prefix: str, *, after: str = "") -> tuple[str, ...]:
        with _translated(prefix):
            found = sorted(name for name in self._under(prefix.rstrip("/").split("/")) if name > after)
        for name in found:
            split_manifest_name(name)
        return tuple(found)

    def kept_until(self, name: str) -> int:
        """Whoever owns the directory decides."""
        return 0

    def close(self) -> None:
        """Nothing is kept open."""

    def _under(self, parents: list[str]) -> Iterator[str]:
        """Every name at the depth of a manifest's under ``parents``."""
        try:
            with self._directory(parents, make=False) as fd:
                with os.scandir(fd) as found:
                    entries = [e.name for e in found if not e.name.startswith(_TEMPORARY)]
        except FileNotFoundError:
            self._check_there()
            return
        if len(entries) > NAMES_MAX:
            raise Integrity("foreign-object", f"more than {NAMES_MAX} names", field="name")
        for entry in entries:
            if len(parents) == 1:
                yield from self._under([*parents, entry])
            else:
                yield "/".join((*parents, entry))

    def _check_there(self) -> None:
        """A store that is not mounted must not look like an empty one."""
        if not self._root.is_dir():
            raise Unavailable("store-away", f"no directory {self._root}")

    @contextmanager
    def _directory(self, parents: list[str], *, make: bool) -> Iterator[int]:
        """A descriptor of ``parents`` below the root, reached without following a link."""
        if make and not self._root.exists():
            self._root.mkdir(mode=DIRECTORY_MODE)
            _sync(self._root.parent)
        fd = os.open(self._root, _OPEN_DIRECTORY & ~os.O_NOFOLLOW)
        try:
            for part in parents:
                if make:
                    _make(part, fd)
                inner = os.open(part, _OPEN_DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = inner
            yield fd
        finally:
            os.close(fd)


@contextmanager
def _translated(name: str) -> Iterator[None]:
    try:
        yield
    except KeymeshError:
        raise
    except OSError as bad:
        if bad.errno in _NOT_OURS:
            raise Integrity("foreign-object", f"{name}: a link, or no plain file", field="name") from bad
        code = "store-full" if bad.errno in _FULL else "store-away"
        raise Unavailable(code, f"the backup store cannot be used: {bad.strerror}") from bad


def _make(part: str, fd: int) -> None:
    try:
        os.mkdir(part, DIRECTORY_MODE, dir_fd=fd)
    except FileExistsError:
        return
    os.fsync(fd)


def _exists(leaf: str, fd: int) -> bool:
    try:
        os.stat(leaf, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _write_once(fd: int, leaf: str, content: bytes) -> bool:
    """1. A temporary file, written and synced.  2. Linked under its name, if that is free.  3. The directory synced."""
    temporary = _TEMPORARY + secrets.token_hex(12)
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=fd)
    try:
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(file, view) :]
            os.fchmod(file, FILE_MODE)
            os.fsync(file)
        finally:
            os.close(file)
        try:
            os.link(temporary, leaf, src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)
        except FileExistsError:
            return False
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=fd)
    os.fsync(fd)
    return True


def _read(fd: int, leaf: str, name: str, max_bytes: int) -> bytes:
    file = os.open(leaf, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
    with os.fdopen(file, "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise Integrity("foreign-object", f"{name}: no plain file", field="name")
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise Integrity("too-large", f"{name}: more than {max_bytes} bytes", field="name")
    if status.st_mode & 0o222:
        raise Integrity("changed-object", f"{name}: somebody made it writable", field="name")
    return content


def _sync(directory: Path) -> None:
    fd = os.open(directory, _OPEN_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def open_directory(path: str) -> DirectoryStore:
    """Raises Refused for a path that is not absolute: what a process's working directory is nobody remembers."""
    if not Path(path).is_absolute():
        raise Refused.bad_field("store_dir", "an absolute path")
    return DirectoryStore(Path(path))
