"""What KMIP leaves in the region's receipts: before a release, each by itself; of ordinary use and of denials, sums.

Receipts of one moment share one write and one sync: while one is being synced, those that come wait for the next.
Nothing of an object but its identifier is recorded, and of a client's own Log message what can be printed of its start.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections import Counter
from typing import TYPE_CHECKING, Final

from keymesh.ledger.receipts import TEXT_MAX_CHARS, Outcome, Receipt
from keymesh.model.errors import KeymeshError, Unavailable
from keymesh.model.ids import CorrelationId, Digest, Namespace

if TYPE_CHECKING:
    from keymesh.app.core_app import CoreProcess
    from keymesh.kmip.ports import Caller

log = logging.getLogger("keymesh.kmip.records")

WAITING_MAX: Final = 8_192
AT_ONCE_MAX: Final = 512
SUMS_MAX: Final = 4_096
OTHERS: Final = "others"

Sum = tuple[str, str, str, str]
"""(tenant, actor, action, subject)"""


class KmipRecords:
    """Receipts about KMIP, and the counts behind the metrics; the engine's ``Journal``."""

    def __init__(self, core: CoreProcess) -> None:
        self._core = core
        self._waiting: list[tuple[Receipt, asyncio.Future[None]]] = []
        self._writing = False
        self._sums: Counter[Sum] = Counter()
        self.operations: Counter[str] = Counter()
        self.denied: Counter[str] = Counter()

    # --- each by itself ----------------------------------------------------------------------------------------------

    async def keep(
        self, caller: Caller, action: str, subject: str, *, reason: str = "", digest: Digest | None = None
    ) -> None:
        """Durable on return.  Raises Unavailable where it was not recorded: then nothing may be released."""
        if len(self._waiting) >= WAITING_MAX:
            raise Unavailable("busy", "too much waits to be recorded")
        kept = asyncio.get_running_loop().create_future()
        made = self._receipt(caller.scope.tenant, caller.name, action, subject, reason=reason, digest=digest)
        self._waiting.append((made, kept))
        if not self._writing:
            self._writing = True
            self._core.spawn(self._write())
        await kept

    async def note(self, caller: Caller, message: str) -> None:
        """A client's own message."""
        shown = "".join(c if c.isprintable() else "?" for c in message[: TEXT_MAX_CHARS - 1])
        await self.keep(
            caller,
            "kmip-log",
            caller.scope.service,
            reason=shown,
            digest=Digest(hashlib.sha256(message.encode()).hexdigest()),
        )

    async def _write(self) -> None:
        """Until nobody waits.  Receipts that came together, or while others were written, are one batch."""
        await asyncio.sleep(0)
        while self._waiting:
            batch, self._waiting = self._waiting[:AT_ONCE_MAX], self._waiting[AT_ONCE_MAX:]
            failed: Exception | None = None
            try:
                self._core.receipts.append_all([receipt for receipt, _ in batch])
            except KeymeshError as bad:
                failed = Unavailable("not-recorded", "what is released must be on record first")
                log.error("receipts not recorded", extra={"fields": {"reason": bad.code}})
            for _, kept in batch:
                if kept.done():
                    continue
                if failed is None:
                    kept.set_result(None)
                else:
                    kept.set_exception(failed)
            await asyncio.sleep(0)
        self._writing = False

    # --- sums --------------------------------------------------------------------------------------------------------

    def count(self, caller: Caller, operation: str) -> None:
        """A use that was admitted."""
        self.operations[operation] += 1
        self._add((caller.scope.tenant, caller.name, "kmip-use", f"{caller.scope.service}:{operation}"))

    def deny(self, tenant: str, name: str, reason: str, operation: str) -> None:
        """A refusal by the gate."""
        self.denied[reason] += 1
        self._add((tenant, name, "kmip-denied", f"{reason}:{operation}"))

    def _add(self, what: Sum) -> None:
        if what not in self._sums and len(self._sums) >= SUMS_MAX:
            what = (what[0], OTHERS, what[2], OTHERS)
        self._sums[what] += 1

    def flush(self) -> None:
        """Put the sums on record.  What can't be recorded is kept for the next time."""
        taken = self._sums
        if not taken:
            return
        self._sums = Counter()
        receipts = [
            self._receipt(
                tenant,
                name,
                action,
                f"{subject}:{count}",
                outcome=Outcome.REFUSED if action == "kmip-denied" else Outcome.DONE,
            )
            for (tenant, name, action, subject), count in sorted(taken.items())
        ]
        try:
            self._core.receipts.append_all(receipts)
        except KeymeshError as bad:
            log.error("sums not recorded", extra={"fields": {"reason": bad.code}})
            self._sums.update(taken)

    def _receipt(
        self,
        tenant: str,
        name: str,
        action: str,
        subject: str,
        *,
        outcome: Outcome = Outcome.DONE,
        reason: str = "",
        digest: Digest | None = None,
    ) -> Receipt:
        return Receipt(
            id=os.urandom(12).hex(),
            at=self._core.shell.now(),
            actor=f"client:{tenant}/{name}",
            action=action,
            namespace=Namespace(tenant),
            outcome=outcome,
            correlation_id=CorrelationId(os.urandom(8).hex()),
            lamport=self._core.receipts.lamport + 1,
            subject=subject[:TEXT_MAX_CHARS],
            reason=reason,
            digest=digest,
        )
