"""The Vault face's file of logins: who may use it.  Read anew as it changes; it holds hashes, no secret."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from keymesh.adapters.files import write_file
from keymesh.adapters.key_files import read_private
from keymesh.app.watched_file import WatchedFile, taking_turns
from keymesh.compat.vault_tokens import VaultLogins, check_logins
from keymesh.model import strict_json

FILE_MAX_BYTES: Final = 4 * 1024 * 1024


class LoginBook:
    """What is in ``file``, as ``WatchedFile``: one that has become unreadable admits nobody."""

    def __init__(self, file: Path, monotonic: Callable[[], float]) -> None:
        self._watched = WatchedFile(file, read_logins, VaultLogins(), monotonic)
        self.get = self._watched.get

    def tenants(self) -> frozenset[str]:
        known = self._watched.known
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
    with taking_turns(file):
        place = [read_logins(file) if file.exists() else VaultLogins()]
        yield place
        check_logins(place[0])
        write_file(file, strict_json.dumps(place[0]))
