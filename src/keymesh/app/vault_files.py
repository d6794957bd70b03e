"""The Vault face's file of logins: who may use it.  Read anew as it changes; it holds hashes, no secret."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from keymesh.adapters.files import write_file
from keymesh.adapters.key_files import read_private
from keymesh.compat.vault_tokens import VaultLogins, check_logins
from keymesh.model import strict_json
from keymesh.model.errors import Refused

FILE_MAX_BYTES: Final = 4 * 1024 * 1024
LOOK_S: Final = 1.0


class LoginBook:
    """What is in ``file``.  Looked at once a second at most; one that has become unreadable admits nobody.

    Raises Refused where it is not right at the start.
    """

    def __init__(self, file: Path, monotonic: Callable[[], float]) -> None:
        self._file = file
        self._monotonic = monotonic
        self._stamp = _stamp(file)
        self._known = read_logins(file)
        self._looked = monotonic()

    def get(self) -> VaultLogins:
        """The same object until something has changed."""
        now = self._monotonic()
        if now >= self._looked + LOOK_S:
            self._looked = now
            if (stamp := _stamp(self._file)) != self._stamp:
                self._stamp = stamp
                try:
                    self._known = read_logins(self._file)
                except (Refused, OSError):
                    self._known = VaultLogins()
        return self._known

    def tenants(self) -> frozenset[str]:
        known = self._known
        return frozenset(
            grant.tenant for grants in (known.approles, known.certificates, known.tokens) for grant in grants
        )


def read_logins(file: Path) -> VaultLogins:
    """Raises Refused, also where others can read the file."""
    logins = strict_json.decode(read_private(file, max_bytes=FILE_MAX_BYTES), VaultLogins, max_bytes=FILE_MAX_BYTES)
    check_logins(logins)
    return logins


@contextmanager
def changing(file: Path) -> Iterator[list[VaultLogins]]:
    """A list with the logins in ``file``, whose only place takes what is to stand there; commands take turns.

    Raises Refused, and changes nothing, where that is not right.
    """
    with (file.parent / f".{file.name}.lock").open("a") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        place = [read_logins(file) if file.exists() else VaultLogins()]
        yield place
        check_logins(place[0])
        write_file(file, strict_json.dumps(place[0]))


def _stamp(file: Path) -> tuple[int, int, int]:
    try:
        found = file.stat()
    except FileNotFoundError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_ino, found.st_mode)
