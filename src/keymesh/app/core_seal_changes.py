"""How a Core's list of seals changes: only while the MasterKey is open, and whole at every moment.

A new seal is made, opened again and compared; then comes the receipt, then the record in one durable step.  A crash in
between leaves a seal that is not recorded, and opens nothing.  Shares are recorded once enough of them have come back:
an answer that was lost leaves none that is counted on.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from keymesh.adapters.seal_forms import drop_file_seal, make_shamir_seal, open_shamir_seal
from keymesh.adapters.seals import SealTools, load_record, save_record
from keymesh.core.seals import (
    Kind,
    MasterRecord,
    Seal,
    Standing,
    check_left,
    new_record,
    seal_of,
    tried,
    verify_record,
    without,
)
from keymesh.crypto.pages import SecretBytes
from keymesh.ledger.receipts import Outcome, Receipt
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable
from keymesh.model.ids import MESH_NAMESPACE, CorrelationId, Digest, Namespace
from keymesh.model.limits import SEALS_MAX

if TYPE_CHECKING:
    from keymesh.app.core_app import CoreProcess
    from keymesh.app.core_seals import RegionSeals


class SealChanges:
    """``pending``: shares that were given out and not yet shown again."""

    def __init__(self, core: CoreProcess, seals: RegionSeals, tools: SealTools) -> None:
        self._core, self._seals, self._tools = core, seals, tools
        self.pending: Seal | None = None

    @property
    def _master(self) -> SecretBytes:
        """Raises Unavailable while the region is sealed."""
        return self._core.keyring.master.secret

    async def add(self, kind: Kind, parameters: dict[str, Any], *, make_key: bool, actor: str, cause: str) -> Seal:
        """A seal that opens by itself.  Raises Refused, Unavailable, Integrity; then nothing has changed."""
        async with self._seals.lock:
            record = self._verified()
            if make_key:
                if kind is not Kind.PKCS11:
                    raise Refused.bad_field("make_key", "a key is made in PKCS#11 tokens only")
                await self._tools.make_token_key(parameters)
            seal = await made_again(self._tools, kind, parameters, self._master)
            try:
                self._save((*record.seals, seal), "seal.add", seal, actor=actor, cause=cause)
            except BaseException:
                forget_files(self._tools, [seal])
                raise
            self._seals.note(seal, Standing.OPENS)
            return seal

    def begin_shares(self, threshold: int, n_shares: int) -> tuple[Seal, tuple[str, ...]]:
        """Shares for people; they count once ``confirm_shares`` has seen enough of them.  Raises Refused."""
        self._verified()
        made = make_shamir_seal(
            self._core.region, self._master, self._core.pages, threshold=threshold, n_shares=n_shares
        )
        self.pending = made[0]
        return made

    async def confirm_shares(self, seal_id: str, shares: tuple[str, ...], *, actor: str, cause: str) -> Seal:
        """Record the shares of ``begin_shares``.  Raises Refused, Integrity; the shares may then be given again."""
        async with self._seals.lock:
            record, seal = self._verified(), self.pending
            if seal is None or seal.id != seal_id:
                raise Refused("not-found", "no such shares wait to be confirmed; make new ones", field="seal")
            with open_shamir_seal(self._core.region, record.kid, seal, shares, self._core.pages) as again:
                if not again.same_as(self._master):
                    raise Integrity.opaque()
            self._save((*record.seals, seal), "seal.add", seal, actor=actor, cause=cause)
            self.pending = None
            self._seals.note(seal, Standing.WAITS)
            return seal

    async def remove(self, seal_id: str, *, actor: str, cause: str) -> None:
        """Take a seal out of the list; one of the others must be known to open.  Raises Refused, Unavailable."""
        async with self._seals.lock:
            record = self._verified()
            doomed, left = seal_of(record, seal_id), without(record, seal_id)
            opening = set()
            for seal in (seal for seal in tried(record) if seal is not doomed):
                if master := await self._seals.attempt(record, seal):
                    master.wipe()
                    opening.add(seal.id)
                    break
            check_left(left, opening)
            self._save(left, "seal.remove", doomed, actor=actor, cause=cause)
            self._seals.states.pop(doomed.id, None)
            forget_files(self._tools, [doomed])

    def _verified(self) -> MasterRecord:
        """The record as it is on disk now.  Raises Unavailable (sealed), Integrity (opaque)."""
        record = load_record(self._tools.directory)
        if record is None:
            raise Integrity.opaque()
        verify_record(record, self._core.region, self._master.reveal())
        return record

    def _save(self, seals: tuple[Seal, ...], action: str, about: Seal, *, actor: str, cause: str) -> None:
        """Receipt, then record.  Raises Refused (too many), Unavailable; the record is then as it was."""
        if len(seals) > SEALS_MAX:
            raise Refused.bad_field("seals", f"at most {SEALS_MAX}")
        record = new_record(self._core.region, self._master.reveal(), seals)
        write_receipt(self._core, action, about, Outcome.DONE, actor=actor, cause=cause)
        try:
            save_record(self._tools.directory, record)
        except OSError as failed:
            write_receipt(self._core, action, about, Outcome.FAILED, actor=actor, cause=cause)
            raise Unavailable("storage", "the seals could not be recorded") from failed
        self._seals.record = record


async def made_again(tools: SealTools, kind: Kind, parameters: dict[str, Any], master: SecretBytes) -> Seal:
    """A new seal that has opened again.  Raises as ``SealTools.make`` and ``open``."""
    seal = await tools.make(kind, parameters, master)
    try:
        record = new_record(tools.region, master.reveal(), [seal])
        with await tools.open(record.kid, seal) as again:
            if not again.same_as(master):
                raise Integrity.opaque()
    except BaseException:
        forget_files(tools, [seal])
        raise
    return seal


def forget_files(tools: SealTools, seals: Sequence[Seal]) -> None:
    """Key files of seals that are in no record; what stays of one opens nothing."""
    with contextlib.suppress(OSError, KeymeshError):  # a record that cannot be read may name them
        record = load_record(tools.directory)
        recorded = set() if record is None else {seal.id for seal in record.seals}
        for seal in seals:
            if seal.kind is Kind.FILE and seal.id not in recorded:
                drop_file_seal(tools.directory, seal)


def write_receipt(
    core: CoreProcess, action: str, seal: Seal | None, outcome: Outcome, *, actor: str, cause: str
) -> None:
    """``seal`` None: of the whole region.  Raises Unavailable where it is not recorded."""
    core.receipts.append(
        Receipt(
            id=os.urandom(12).hex(),
            at=core.shell.now(),
            actor=actor,
            action=action,
            namespace=Namespace(MESH_NAMESPACE),
            outcome=outcome,
            correlation_id=CorrelationId(cause),
            lamport=core.receipts.lamport + 1,
            subject=core.region if seal is None else f"{core.region}/{seal.id}",
            digest=None if seal is None else Digest(hashlib.sha256(strict_json.dumps(seal)).hexdigest()),
        )
    )
