"""One token, through one worker process: calls in order, each within its deadline; a worker that hangs is killed.

Decides when a worker is to be believed.  A library keeps what it saw of its token when it was loaded (SoftHSM answers
"no such key" for a token that was taken away, and goes on so when it is back), so a failure counts only from a worker
that has just started; any other is asked again of a new one.

A PIN that the token refused is not sent again, not by a later process either, until the PIN's file is another: a token
locks itself after a few.  What is remembered is the file's number, size and time of change, never the PIN.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from keymesh.adapters.files import write_file
from keymesh.adapters.key_files import read_private
from keymesh.adapters.pkcs11_messages import (
    LENGTH_BYTES,
    Answer,
    Failed,
    Open,
    Request,
    Why,
    answer_of,
    body_bytes,
    pack,
)
from keymesh.crypto.aad import lp
from keymesh.model.errors import Refused, Unavailable

DEADLINE_S: Final = 5.0
WAITING_MAX: Final = 64
REST_S: Final = 0.5
"""After a silence the same is answered for so long, without a new process for each caller."""
PIN_MAX_BYTES: Final = 256
END_S: Final = 2.0
_KEPT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAccess:
    """How this machine reaches a token.  ``serial``: where the label is not enough.  ``pin_file``: mode 0600; blanks
    and newlines at its end are no part of the PIN.  ``env``: for the library alone, as SOFTHSM2_CONF.  ``marks``: the
    directory where a refused PIN is noted."""

    module: Path
    token: str
    serial: str
    pin_file: Path
    marks: Path
    env: Mapping[str, str] = field(default_factory=dict)
    deadline_s: float = DEADLINE_S


class TokenSaid(Exception):
    """A failure to be believed."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.why.value, failed.detail)
        self.why, self.detail = failed.why, failed.detail


class TokenProcess:
    """Use from one event loop; ``close`` ends the worker."""

    def __init__(self, access: TokenAccess) -> None:
        self.access: Final = access
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._process: asyncio.subprocess.Process | None = None
        self._served = False
        self._silent: tuple[float, Unavailable] | None = None
        self._refused: bytes | None = None
        name = hashlib.sha256(lp(access.token.encode()) + lp(access.serial.encode())).hexdigest()[:16]
        self._mark: Final = access.marks / f"pkcs11-{name}.pin-refused"

    async def call(self, request: Request) -> bytes:
        """What the token made of it.  Raises TokenSaid, or Unavailable where nothing was said in time."""
        if self._waiting >= WAITING_MAX:
            raise Unavailable("pkcs11-busy", f"{WAITING_MAX} calls wait for the token")
        self._waiting += 1
        try:
            async with asyncio.timeout(self.access.deadline_s), self._lock:
                if self._silent is not None and time.monotonic() < self._silent[0]:
                    raise self._silent[1]
                return await self._believed(request)
        except TimeoutError as late:
            silent = Unavailable("pkcs11-deadline", f"the token did not answer in {self.access.deadline_s:g} s")
            self._silent = time.monotonic() + REST_S, silent
            raise silent from late
        finally:
            self._waiting -= 1

    async def _believed(self, request: Request) -> bytes:
        """The answer, or a failure that a worker just started has confirmed."""
        while True:
            is_fresh = self._process is None or not self._served
            try:
                answer = await self._exchange(request)
            except Unavailable as silent:
                await self._end()
                if is_fresh:
                    self._silent = time.monotonic() + REST_S, silent
                    raise
                continue
            except asyncio.CancelledError:  # what the worker says next would be taken for another call's answer
                await self._end()
                raise
            if not isinstance(answer, Failed):
                self._served, self._silent = True, None
                return answer.data
            await self._end()
            if is_fresh:
                raise TokenSaid(answer)

    async def _exchange(self, request: Request) -> Answer:
        if self._process is None:
            opened = await self._start()
            if isinstance(opened, Failed):
                return opened
        return await self._ask(request)

    async def _start(self) -> Answer:
        """A new worker that has loaded the library and logged in, or why not."""
        access = self.access
        pin, stamp = self._pin()
        if stamp in (self._refused, _read_mark(self._mark)):
            return Failed(Why.PIN, "refused before: not sent again until the file is another")
        self._served = False
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "keymesh.adapters.pkcs11_worker",
                str(os.getpid()),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                cwd="/",
                env={**_plain_environment(), **access.env},
                start_new_session=True,
            )
        except OSError as failed:  # no process, memory or descriptor left
            raise Unavailable("pkcs11-worker", f"no process for the token: {failed.strerror}") from failed
        opening = Open(module=str(access.module), token=access.token, serial=access.serial, pin=pin)
        opened = await self._ask(opening)
        if isinstance(opened, Failed) and opened.why is Why.PIN:
            self._refused = stamp
            with contextlib.suppress(OSError):  # then it is remembered until this process ends
                write_file(self._mark, stamp)
        return opened

    def _pin(self) -> tuple[bytes, bytes]:
        """(PIN, what tells its file from a later one).  Raises Unavailable where it cannot be read."""
        path = self.access.pin_file
        try:
            status = path.stat()
            pin = read_private(path, max_bytes=PIN_MAX_BYTES).rstrip(b" \r\n\t")
        except (Refused, OSError) as bad:
            raise Unavailable("pkcs11-pin-file", f"{path.name} cannot be read, or not only by its owner") from bad
        stamp = f"{status.st_ino} {status.st_size} {status.st_mtime_ns}\n".encode()
        return pin, stamp

    async def _ask(self, request: Request) -> Answer:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(pack(request))
            await process.stdin.drain()
            head = await process.stdout.readexactly(LENGTH_BYTES)
            return answer_of(await process.stdout.readexactly(body_bytes(head)))
        except (asyncio.IncompleteReadError, ConnectionError) as gone:
            raise Unavailable("pkcs11-worker", "the library ended its process") from gone

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            with contextlib.suppress(TimeoutError):  # stuck in the kernel: killed all the same
                await asyncio.wait_for(process.wait(), END_S)
            if process.stdin is not None:
                process.stdin.close()

    @property
    def pid(self) -> int | None:
        """Of the worker, None where there is none now."""
        return None if self._process is None else self._process.pid

    async def close(self) -> None:
        async with self._lock:
            await self._end()


def _read_mark(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _plain_environment() -> dict[str, str]:
    """What a vendor's library gets to see: nothing of ours but where programs and libraries lie."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {**kept, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
