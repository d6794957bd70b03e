"""A tenant's destruction at the Registry: the purge when the wait is over, and the receipts of its holders.

When the wait is over (``waits``) the purge is an entry of our own, for good.  Each holder's receipt is evidence of the
kill switch's record of it (``killswitch``), and there is no bound in place of one.  Sources: DESIGN sections 1, 2, 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from keymesh.control import destruction
from keymesh.control.purge_messages import PurgeNoted, PurgeReceipt, PurgeReceiptMessage
from keymesh.model.errors import KeymeshError
from keymesh.model.machine import Address, Note, Persist, Send
from keymesh.model.scope import destruction_of
from keymesh.model.time import Instant
from keymesh.registry import commands, killswitch, lifecycle, spaces, waits
from keymesh.registry.records import EvidenceRecord, WaitRecord, evidence_name, wait_name
from keymesh.registry.state import RegistryState, Space, Wait

ASK_AGAIN_MS: Final = 1_000


def purge_id(destroy_id: str) -> str:
    """The command id of the purge that ends the wait of that ``tenant.destroy``; its certificate is found by it."""
    return commands.internal_id("purge", destroy_id)


# --- the purge --------------------------------------------------------------------------------------------------------


def tick(state: RegistryState, now: Instant, out: list[Any]) -> None:
    """Record what has passed; append the purges that are due."""
    if not state.booted:
        return
    for name, wait in list(state.waits.items()):
        if now >= waits.due_at(wait):
            if now >= wait.ask_at:
                wait.ask_at = Instant(now + ASK_AGAIN_MS)
                _purge(state, now, state.spaces[name], wait, out)
        elif now >= wait.save_at:
            wait.save_at = Instant(now + waits.save_every_ms(wait.wait_ms))
            waited_ms = waits.waited_ms(wait, now)
            record = WaitRecord(namespace=name, seq=wait.seq, waited_ms=waited_ms, entry_hash=wait.entry_hash)
            out.append(Persist(state.token("wait"), ((wait_name(name), record),)))


def _purge(state: RegistryState, now: Instant, space: Space, wait: Wait, out: list[Any]) -> None:
    args = {"scope": str(destruction_of(space.name)), "destroy_seq": wait.seq}
    command_id = purge_id(wait.command_id)
    lifecycle.ask(state, now, space, destruction.PURGE_KIND, args, command_id, wait.correlation_id, out)


# --- receipts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shown:
    """A destruction for people.  ``due_at``: while it waits; ``certificate_id``: the command id of the purge."""

    state: str  # "waiting", "cancelled", "purging", "destroyed"
    command_id: str
    certificate_id: str
    due_at: Instant | None


def show(state: RegistryState, tenant: str) -> Shown | None:
    """Where the destruction of ``tenant`` stands; None where nobody ever asked for one."""
    space = state.spaces.get(tenant)
    row = None if space is None else destruction.destruction_row(tenant, space.rows)
    if space is None or row is None:
        return None
    if row.state == "revoked":
        kill = state.kills.get((space.name, row.command_id))
        done = kill is not None and kill.record.status == killswitch.CERTIFIED
        seq = space.entries[row.seq - 1].entry.body.args.get("destroy_seq")
        asked = row.command_id if seq is None else space.entries[int(seq) - 1].entry.command_id
        return Shown("destroyed" if done else "purging", asked, row.command_id, None)
    if row.state == "none":
        return Shown("cancelled", row.command_id, "", None)
    wait = state.waits.get(space.name)
    return Shown("waiting", row.command_id, purge_id(row.command_id), None if wait is None else waits.due_at(wait))


def on_receipt(
    state: RegistryState, now: Instant, sender: Address, message: PurgeReceiptMessage, out: list[Any]
) -> None:
    """Keep a holder's receipt, and say so once it is durable.

    1. The node is enrolled, its key sealed it, and it speaks for itself.  2. Its region may hold the tenant.  3. It is
    about the purge that the log has, under the admission that the region has, and leaves no key version out.
    """
    session = state.sessions.get(sender)
    if session is None:
        return
    try:
        receipt = state.config.suite.unseal(message.receipt, PurgeReceipt, session.keys)
    except KeymeshError:
        _refused(out, sender, "receipt", "seal")
        return
    space = state.spaces.get(receipt.namespace)
    about = (receipt.mesh, receipt.region, receipt.node)
    if space is None or about != (state.config.mesh, session.region, session.node):
        _refused(out, sender, receipt.correlation_id, "content")
        return
    row = destruction.destruction_row(space.name, space.rows)
    if not spaces.may_hold(space, session.region) or row is None or row.state != "revoked":
        _refused(out, sender, receipt.correlation_id, "nothing-to-purge")
        return
    purge = space.entries[row.seq - 1]
    if not destruction.covers(
        receipt,
        order=(purge.entry.epoch, purge.entry.seq),
        entry_hash=purge.hash,
        admitted=destruction.admitted_seq(space.support),
        keys=destruction.key_versions(spaces.rows_at(space, row.seq)),
    ):
        _refused(out, sender, receipt.correlation_id, "does-not-cover")
        return
    _keep(state, now, sender, receipt, message, (row.command_id, purge.hash), out)


def _refused(out: list[Any], sender: Address, correlation_id: str, reason: str) -> None:
    out.append(Note("receipt-refused", correlation_id, (("node", str(sender)), ("reason", reason))))


def _keep(
    state: RegistryState,
    now: Instant,
    sender: Address,
    receipt: PurgeReceipt,
    message: PurgeReceiptMessage,
    purge: tuple[str, str],
    out: list[Any],
) -> None:
    """``purge``: the id of the command, and the hash of the entry that it stands in."""
    command_id, entry_hash = purge
    kill = state.kills.get((receipt.namespace, command_id))
    found = EvidenceRecord(
        command_id=command_id,
        namespace=receipt.namespace,
        node=sender,
        ack=message.receipt,
        received_at=now,
        edge_leases_end_in_ms=receipt.edge_leases_end_in_ms,
        open_edge_leases=receipt.open_edge_leases,
        entry_hash=entry_hash,
    )
    is_open = kill is not None and kill.record.entry_hash == entry_hash and kill.record.status != killswitch.CERTIFIED
    if kill is None or not is_open or not killswitch.is_better(kill, found):
        out.append(Send(sender, PurgeNoted(namespace=receipt.namespace, epoch=receipt.epoch, seq=receipt.seq)))
        return
    token = state.token("evidence")
    state.persisting[token] = found
    out.append(Persist(token, ((evidence_name(command_id, receipt.namespace, sender), found),)))


def on_kept(state: RegistryState, found: EvidenceRecord, out: list[Any]) -> None:
    """A receipt is durable: its node need not repeat it."""
    record = state.kills[(found.namespace, found.command_id)].record
    if record.action == destruction.DESTROY:
        epoch = state.spaces[record.namespace].entries[record.seq - 1].entry.epoch
        out.append(Send(Address(found.node), PurgeNoted(namespace=record.namespace, epoch=epoch, seq=record.seq)))
