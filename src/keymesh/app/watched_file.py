"""A face's file that commands change while the face reads it."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Generic, TypeVar

from keymesh.model.errors import Refused

LOOK_S: Final = 1.0
T = TypeVar("T")


class WatchedFile(Generic[T]):
    """What ``read`` makes of ``file``.  Looked at once a second at most; one that has become unreadable is ``nothing``.

    Raises Refused where it is not right at the start.
    """

    def __init__(self, file: Path, read: Callable[[Path], T], nothing: T, monotonic: Callable[[], float]) -> None:
        self._file, self._read, self._nothing, self._monotonic = file, read, nothing, monotonic
        self._stamp = _stamp(file)
        self.known = read(file)
        self._looked = monotonic()

    def get(self) -> T:
        """The same object until something has changed."""
        now = self._monotonic()
        if now >= self._looked + LOOK_S:
            self._looked = now
            if (stamp := _stamp(self._file)) != self._stamp:
                self._stamp = stamp
                try:
                    self.known = self._read(self._file)
                except (Refused, OSError):
                    self.known = self._nothing
        return self.known


@contextmanager
def taking_turns(file: Path) -> Iterator[None]:
    """Two commands that change ``file`` do so one after the other."""
    with (file.parent / f".{file.name}.lock").open("a") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield


def _stamp(file: Path) -> tuple[int, int, int]:
    try:
        found = file.stat()
    except FileNotFoundError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_ino, found.st_mode)
