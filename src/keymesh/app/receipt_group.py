"""Receipts that are waited for: all that come up in one turn of the loop are recorded by one write and one sync."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from keymesh.adapters.receipt_file import FileReceiptLog
from keymesh.ledger.receipts import Outcome, Receipt
from keymesh.model.errors import KeymeshError
from keymesh.model.ids import CorrelationId, Namespace
from keymesh.model.time import Instant

Waiting = tuple[tuple[str, str, str, str], "asyncio.Future[None]"]


class ReceiptGroup:
    """Over ``log``; ``now`` dates them."""

    def __init__(self, log: FileReceiptLog, now: Callable[[], Instant]) -> None:
        self._log = log
        self._now = now
        self._waiting: list[Waiting] = []

    async def append(self, actor: str, action: str, tenant: str, subject: str) -> None:
        """Durable when it returns.  Raises Unavailable where it was not recorded."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._write)
        self._waiting.append(((actor, action, tenant, subject), done))
        await done

    def append_now(self, actor: str, action: str, tenant: str, subject: str) -> None:
        """As ``append``, before it returns."""
        self._log.append(self._made((actor, action, tenant, subject), self._log.lamport + 1))

    def _write(self) -> None:
        waiting, self._waiting = self._waiting, []
        first = self._log.lamport + 1
        failed: KeymeshError | None = None
        try:
            self._log.append_all([self._made(said, first + n) for n, (said, _) in enumerate(waiting)])
        except KeymeshError as bad:
            failed = bad
        for _, done in waiting:
            if done.done():
                continue  # who waited has gone away
            if failed is None:
                done.set_result(None)
            else:
                done.set_exception(failed)

    def _made(self, said: tuple[str, str, str, str], lamport: int) -> Receipt:
        actor, action, tenant, subject = said
        return Receipt(
            id=os.urandom(12).hex(),
            at=self._now(),
            actor=actor,
            action=action,
            namespace=Namespace(tenant),
            outcome=Outcome.DONE,
            correlation_id=CorrelationId(os.urandom(8).hex()),
            lamport=lamport,
            subject=subject,
        )
