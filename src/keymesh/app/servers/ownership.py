"""Directories of servers that refuse to run as root: they run as their package's own user where we are root."""

from __future__ import annotations

import errno
import os
import pwd
import stat
from pathlib import Path
from typing import BinaryIO

from keymesh.model.errors import Refused


def switches_user(user: str | None) -> bool:
    """Whether a server of ``user`` will run as someone else than we are."""
    return user is not None and os.geteuid() == 0


def let_through(user: str | None, directory: Path) -> None:
    """``directory`` may be passed through by the server's user, where it runs as another; not looked at."""
    if switches_user(user):
        directory.chmod(0o711)


def hand_over(user: str | None, *paths: Path) -> None:
    """Give ``paths`` to the server's user, where it runs as another.

    What lies in such a directory is that user's to exchange.  So what is written or opened there as root must not
    follow what it finds: only data is handed over whole, and of it the topmost directory.  Raises Refused for a link,
    or what is neither a directory nor a file with one name.
    """
    if user is not None and switches_user(user):
        entry = pwd.getpwnam(user)
        for path in paths:
            _give(path, entry.pw_uid, entry.pw_gid)


def keep_own(user: str | None, directory: Path) -> None:
    """``directory`` is ours, and the server's user may pass through it, where it runs as another; also one that had
    been handed over.  Raises Refused for a link."""
    if switches_user(user):
        _give(directory, os.geteuid(), os.getegid(), mode=0o711)


def open_log(path: Path) -> BinaryIO:
    """``path`` to append to, private where it is new.  Raises Refused for a link or what is no file with one name."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK
    return os.fdopen(_open_itself(path, flags), "ab")


def _give(path: Path, uid: int, gid: int, *, mode: int | None = None) -> None:
    descriptor = _open_itself(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.fchown(descriptor, uid, gid)
        if mode is not None:
            os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def _open_itself(path: Path, flags: int) -> int:
    """Opened without following a link.  Raises Refused as ``hand_over`` does, OSError for the rest."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as failed:
        if failed.errno in (errno.ELOOP, errno.ENXIO):
            raise _not_itself(path) from failed
        raise
    status = os.fstat(descriptor)
    if not (stat.S_ISDIR(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_nlink == 1)):
        os.close(descriptor)
        raise _not_itself(path)
    return descriptor


def _not_itself(path: Path) -> Refused:
    return Refused.bad_field("dir", f"{path} must be a directory or a file with one name, not a link or a device")


def check_reachable(user: str | None, directory: Path) -> None:
    """Raises Refused where the server's user could not enter ``directory`` or one above it."""
    if user is None or not switches_user(user):
        return
    entry = pwd.getpwnam(user)
    for place in (*reversed(directory.parents), directory):
        status = place.stat()
        if not status.st_mode & (0o100 if status.st_uid == entry.pw_uid else 0o001):
            raise Refused.bad_field(
                "dir", f"{place} cannot be entered by the user {user!r}, whose server would lie there; use another"
            )
