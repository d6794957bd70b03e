"""Receipts in one file of JSON lines: append only, chained, signed, synced before ``append`` returns.

Each line is a DSSE envelope (``ledger.receipts`` says of what).  One process writes; the file is locked for it.

At open the chain is followed from the start and the last record's signature verified, which vouches for all before
it (``verify_receipt_file`` looks at every signature).  What a crash left of the last write is cut off and noted: from
the first damaged line on, where no whole record follows and the file ends without a newline or in zeros.  Any other
damage is Integrity: nothing is dropped, nothing can be appended.
A failed sync closes the log for good (the kernel may have dropped the pages): open it anew.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from keymesh.crypto.dsse import (
    ENVELOPE_MAX_BYTES,
    Envelope,
    PublicKey,
    Signer,
    envelope_from_json,
    envelope_to_json,
    verify_envelope,
)
from keymesh.ledger.receipts import RECEIPT_TYPE, Chain, Receipt, Record
from keymesh.model.errors import Integrity, Refused, Unavailable
from keymesh.model.ids import KeyId

LINE_MAX_BYTES: Final = ENVELOPE_MAX_BYTES


@dataclass(frozen=True, slots=True)
class TornTail:
    """What a crash left of the last write, and was cut off: never acknowledged, so nothing is lost."""

    offset: int
    n_bytes: int


class FileReceiptLog:
    """The file behind the ``ReceiptLog`` port.  ``keys`` are this origin's signing keys, past ones included."""

    def __init__(self, path: Path, *, origin: str, signer: Signer, keys: Mapping[KeyId, PublicKey]) -> None:
        self._path = path
        self._signer = signer
        self.torn_tail: TornTail | None = None
        created = not path.exists()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._lock()
            if created:
                _sync_directory(path.parent)
            self._chain, self._size = self._recover(origin, keys)
            os.fsync(self._fd)  # what was read may be in memory only, if a process but not the machine died
        except BaseException:
            os.close(self._fd)
            raise
        self._broken = False

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as held:
            raise Unavailable("receipt-log-locked", f"{self._path.name} is open in another process") from held

    def _recover(self, origin: str, keys: Mapping[KeyId, PublicKey]) -> tuple[Chain, int]:
        chain, good = Chain(origin), 0
        last: Envelope | None = None
        try:
            for line in _lines(self._path):
                envelope = _parse(line, chain)
                chain.accept(envelope)
                last, good = envelope, good + len(line)
        except Integrity:
            if not self._is_torn(good):
                raise
            self._cut(good)
        if last is not None and not verify_envelope(last, keys):
            raise Integrity("receipt-log", f"record {chain.seq} is signed by no known key")
        return chain, good

    def _is_torn(self, start: int) -> bool:
        """Whether all from ``start`` on can be one write that a crash cut: no whole record in it, and no sound end."""
        last = b""
        for i, line in enumerate(_lines(self._path, start)):
            if i > 0 and _is_whole(line):
                return False
            last = line
        return not last.endswith(b"\n") or b"\0" in last

    def _cut(self, size: int) -> None:
        self.torn_tail = TornTail(size, os.fstat(self._fd).st_size - size)
        os.ftruncate(self._fd, size)
        os.fsync(self._fd)

    @property
    def seq(self) -> int:
        """How many records there are."""
        return self._chain.seq

    @property
    def head(self) -> str:
        """The last record's hash."""
        return self._chain.head

    @property
    def lamport(self) -> int:
        """The highest Lamport time recorded."""
        return self._chain.lamport

    def append(self, receipt: Receipt) -> None:
        """Durable when it returns.  Raises Refused for a malformed receipt, Unavailable where it was not recorded."""
        self.append_all((receipt,))

    def append_all(self, receipts: Sequence[Receipt]) -> None:
        """All by one write and one sync, or none."""
        if self._broken:
            raise Unavailable("receipt-log", "an earlier write failed: open the log anew")
        chain, lines = self._chain.copy(), bytearray()
        for receipt in receipts:
            envelope = self._signer.sign(chain.next_payload(receipt), RECEIPT_TYPE)
            chain.accept(envelope)
            lines += envelope_to_json(envelope) + b"\n"
        if not lines:
            return
        try:
            self._write(lines)
        except OSError as failed:
            self._take_back()
            raise Unavailable("receipt-log", "the receipt could not be written") from failed
        try:
            os.fsync(self._fd)
        except OSError as failed:  # what the disk has is unknown now
            self._take_back()
            self._broken = True
            raise Unavailable("receipt-log", "the receipt could not be recorded") from failed
        self._chain, self._size = chain, self._size + len(lines)

    def _write(self, lines: bytearray) -> None:
        view = memoryview(lines)
        while view:
            view = view[os.write(self._fd, view) :]

    def _take_back(self) -> None:
        """Cut off what was written of the failed append; where even that fails the next open does."""
        try:
            os.ftruncate(self._fd, self._size)
        except OSError:
            self._broken = True

    def records(self) -> Iterator[Record]:
        """All records, from the first."""
        chain = Chain(self._chain.origin)
        for line in _lines(self._path):
            yield chain.accept(_parse(line, chain))

    def close(self) -> None:
        """Lets go of the file and its lock; doing it twice does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd, self._broken = -1, True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def verify_receipt_file(path: Path, *, origin: str, keys: Mapping[KeyId, PublicKey]) -> tuple[int, str]:
    """(records, head hash) of a file whose every record is chained and signed by one of ``keys``.

    For auditors: reads only, tolerates no torn tail.  Raises Integrity naming the first record that is not.
    """
    chain = Chain(origin)
    for line in _lines(path):
        envelope = _parse(line, chain)
        chain.accept(envelope)
        if not verify_envelope(envelope, keys):
            raise Integrity("receipt-log", f"record {chain.seq} is signed by no known key")
    return chain.seq, chain.head


def _lines(path: Path, start: int = 0) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while line := file.readline(LINE_MAX_BYTES):
            yield line


def _is_whole(line: bytes) -> bool:
    try:
        envelope_from_json(line, max_bytes=LINE_MAX_BYTES)
    except Refused:
        return False
    return True


def _parse(line: bytes, chain: Chain) -> Envelope:
    try:
        if not line.endswith(b"\n"):
            raise Refused.bad_field("receipt", "a whole line")
        return envelope_from_json(line, max_bytes=LINE_MAX_BYTES)
    except Refused as bad:
        raise Integrity("receipt-log", f"record {chain.seq + 1} is malformed") from bad


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
