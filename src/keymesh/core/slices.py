"""Budgets at a Core: slices of what is left, granted to Edges with their leases, and what is used at the Core itself.

Everything is counted before it leaves, in one record with what it is counted for, and stays spent unless the Edge that
holds it says, signed, that it will not be used: an Edge that died, or never says so, has spent it.  Each region has its
own share, so that no cut between regions overspends.  The arithmetic is in ``budget``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from keymesh.control.rows import BudgetRow
from keymesh.core import budget
from keymesh.core.budget import NANO_PER_MICRO, Account
from keymesh.core.events import BudgetReply, UseBudget
from keymesh.core.records import BudgetRecord, Charge, SliceRecord, budget_record_name, slice_name
from keymesh.core.state import NodeState, Out, note
from keymesh.core.views import edge_key
from keymesh.model.errors import KeymeshError
from keymesh.model.machine import Address
from keymesh.model.periods import Period, end_of, number_at
from keymesh.model.time import Instant
from keymesh.orbital.edge_messages import SliceGrant, SliceReturned, SliceReturnedMessage

SLICES_PER_EDGE_MAX = 256
KEPT_MS = 600_000
"""So long after its end a slice may still come back, to a longer period in which it counts as well."""
CLOCK_JUMP_MS = 1_000
Puts = tuple[tuple[str, object], ...]


@dataclass(frozen=True, slots=True)
class Draw:
    """What may be granted until ``until``, and the accounts as they are once it is."""

    ops: int
    until: Instant
    ahead_ms: int
    more: bool
    charges: tuple[Charge, ...]
    accounts: tuple[tuple[str, Account], ...]


@dataclass(frozen=True, slots=True)
class UsePending:
    """Operations at the Core that are allowed once they are recorded."""

    use: UseBudget
    charges: tuple[Charge, ...]


# --- rules -----------------------------------------------------------------------------------------------------------


def limits_on(state: NodeState, tenant: str, service: str) -> list[tuple[str, BudgetRow]]:
    """The budgets that a use of ``service`` counts in: its own, and its tenant's under the empty name."""
    budgets = state.tenants[tenant].view.budgets
    return [(name, row) for name in (service, "") if (row := budgets.get(name)) is not None and row.limits]


def shares(state: NodeState, tenant: str, row: BudgetRow) -> tuple[int, int]:
    """This region's part of the operations and of the money, in billionths."""
    policy = state.tenants[tenant].view.policy
    if policy is None:
        return 0, 0
    regions, home, region = policy.regions, policy.home, state.config.region
    money = (row.money or 0) * NANO_PER_MICRO
    return (
        budget.share_of(row.ops or 0, region, regions, home),
        budget.share_of(money, region, regions, home),
    )


def accounts_of(
    state: NodeState, now: Instant, tenant: str, limits: Sequence[tuple[str, BudgetRow]]
) -> list[tuple[str, BudgetRow, Account]]:
    """Each budget with its account as of now."""
    return [(n, row, budget.current(state.accounts.get((tenant, n)), row, now)) for n, row in limits]


def left_until(state: NodeState, tenant: str, held: Sequence[tuple[str, BudgetRow, Account]], until: Instant) -> int:
    """Operations that all of ``held`` allow in every period up to ``until``."""
    return min(
        budget.left_in(account, number, row, *shares(state, tenant, row))
        for _, row, account in held
        for number in budget.touched(account, until)
    )


def draw(state: NodeState, now: Instant, tenant: str, service: str, wants: int | None) -> Draw | None:
    """What an Edge may be granted now; None where no budget is in force.

    Until the first of the periods ends; shortly before that, with something left, until the next of them ends, and
    counted in both.
    """
    held = accounts_of(state, now, tenant, limits_on(state, tenant, service))
    if not held:
        return None
    until = Instant(min(budget.window_end(row, account) for _, row, account in held))
    left = left_until(state, tenant, held, until)
    ahead_ms = min(budget.ahead_ms(row) for _, row, _ in held)
    if left and until - now <= ahead_ms:
        later = Instant(min(end_of(Period(row.period), number_at(Period(row.period), until)) for _, row, _ in held))
        ahead = left_until(state, tenant, held, later)
        until, left = (later, ahead) if ahead else (until, left)
    ops = budget.slice_size(left, wants)
    charges = tuple(Charge(name, row.price, budget.touched(account, until)) for name, row, account in held)
    accounts = tuple(
        (name, budget.charged(account, charge.numbers, ops, ops * charge.price))
        for (name, _, account), charge in zip(held, charges, strict=True)
    )
    return Draw(ops, until, ahead_ms, left > ops, charges, accounts)


def ends_in_ms(until: Instant, now: Instant) -> int:
    """What the Edge is told: its clock may run 0.1 % slower."""
    return max(0, (until - now) * 1_000 // 1_001)


# --- grants ----------------------------------------------------------------------------------------------------------


def take(
    state: NodeState, now: Instant, drawn: Draw, *, lease_id: str, tenant: str, service: str, edge: str, key: str
) -> Puts:
    """Count ``drawn`` for that lease; what is to be recorded with it."""
    record = SliceRecord(
        lease_id=lease_id,
        tenant=tenant,
        service=service,
        edge=edge,
        signing_key=key,
        ops=drawn.ops,
        charges=drawn.charges,
        until=drawn.until,
        boot_id=state.mark.boot_id,
        boottime_until_ms=state.mark.boottime_ms + (drawn.until - state.booted_at),
    )
    for name, account in drawn.accounts:
        state.accounts[tenant, name] = account
    if not drawn.ops:
        return ()
    held = state.slices.of_edge(edge)
    if len(held) >= SLICES_PER_EDGE_MAX:
        _forget(state, next(iter(held)).lease_id)
    keep(state, record)
    return (*_account_puts(state, record), (slice_name(lease_id), record))


def keep(state: NodeState, record: SliceRecord) -> None:
    """Remember a slice for as long as some of it may come back."""
    state.slices[record.lease_id] = record
    state.at(Instant(record.until + KEPT_MS), "slice-end", record.lease_id)


def granted(drawn: Draw, now: Instant) -> SliceGrant:
    return SliceGrant(
        ops=drawn.ops,
        window=drawn.until,
        ends_in_ms=ends_in_ms(drawn.until, now),
        ahead_ms=drawn.ahead_ms,
        more=drawn.more,
    )


def never_left(state: NodeState, lease_id: str) -> Puts:
    """The grant was not sent: all of its slice comes back."""
    record = state.slices.get(lease_id)
    return () if record is None else _come_back(state, record, record.ops)


def on_returned(state: NodeState, sender: Address, message: SliceReturnedMessage, out: Out) -> None:
    """1. It is signed with a key that the sender gave with one of its leases.  2. It names a slice of that very lease,
    granted here to the sender.  3. It says more than was said of it before, and no more than it was.

    Then, and once, the difference comes back.
    """
    said = _signed(state, sender, message)
    known = None if said is None else state.slices.get(said.lease_id)
    if said is None or known is None or not 0 <= said.unused <= known.ops:
        note(out, "slice-return-refused", edge=sender)
    elif puts := _come_back(state, known, said.unused):
        state.persist("slice", None, puts, (), out)


def _signed(state: NodeState, sender: Address, message: SliceReturnedMessage) -> SliceReturned | None:
    """What the sender says of one of its slices."""
    keys = {}
    for key in {record.signing_key for record in state.slices.of_edge(sender)}:
        keys.update(edge_key(key))
    try:
        said = state.config.suite.unseal(message.returned, SliceReturned, keys)
        named = state.slices.get(said.lease_id)
        if named is None or not named.edge == sender == said.edge:
            return None
        return state.config.suite.unseal(message.returned, SliceReturned, edge_key(named.signing_key))
    except KeymeshError:
        return None


def _come_back(state: NodeState, record: SliceRecord, unused: int) -> Puts:
    """Of ``record`` so much in all is unused: count that off, once, and what is to be recorded of it."""
    more = unused - record.unused
    if more <= 0:
        return ()
    for charge in record.charges:
        account = state.accounts.get((record.tenant, charge.service))
        if account is not None:
            left = budget.charged(account, charge.numbers, -more, -more * charge.price)
            state.accounts[record.tenant, charge.service] = left
    changed = replace(record, unused=unused)
    state.slices[record.lease_id] = changed
    return (*_account_puts(state, changed), (slice_name(record.lease_id), changed))


def _account_puts(state: NodeState, record: SliceRecord) -> Puts:
    return _puts_of(state, record.tenant, record.charges)


def _puts_of(state: NodeState, tenant: str, charges: Sequence[Charge]) -> Puts:
    return tuple(
        (budget_record_name(tenant, c.service), BudgetRecord(tenant, c.service, state.accounts[tenant, c.service]))
        for c in charges
        if (tenant, c.service) in state.accounts
    )


# --- under the Core's custody ----------------------------------------------------------------------------------------


def on_use(state: NodeState, now: Instant, event: UseBudget, out: Out) -> None:
    """All of ``event.ops`` or none: counted, recorded, then answered."""
    known = event.tenant in state.tenants
    held = accounts_of(state, now, event.tenant, limits_on(state, event.tenant, event.service)) if known else []
    if not held:
        out.append(BudgetReply(event.token, known, "" if known else "closed", 0 if known else 1_000))
        return
    until = Instant(min(budget.window_end(row, account) for _, row, account in held))
    if left_until(state, event.tenant, held, Instant(now + 1)) < event.ops:
        out.append(BudgetReply(event.token, False, "budget-spent", max(1, until - now)))
        return
    charges = tuple(Charge(name, row.price, (account.floor,)) for name, row, account in held)
    for (name, _, account), charge in zip(held, charges, strict=True):
        state.accounts[event.tenant, name] = budget.charged(
            account, charge.numbers, event.ops, event.ops * charge.price
        )
    pending = UsePending(event, charges)
    state.persist("use", pending, _puts_of(state, event.tenant, charges), (), out)


def on_used(pending: UsePending, out: Out) -> None:
    out.append(BudgetReply(pending.use.token, True))


def on_use_failed(state: NodeState, pending: UsePending, out: Out) -> None:
    """Nothing was recorded, so nothing is released, and nothing was spent."""
    for charge in pending.charges:
        account = state.accounts[pending.use.tenant, charge.service]
        ops = -pending.use.ops
        back = budget.charged(account, charge.numbers, ops, ops * charge.price)
        state.accounts[pending.use.tenant, charge.service] = back
    out.append(BudgetReply(pending.use.token, False, "storage", 1_000))


# --- clocks and ends -------------------------------------------------------------------------------------------------


def restore(state: NodeState, record: SliceRecord) -> None:
    """Take up a slice of an earlier life; its Edge may hold it for longer by a clock that was set ahead since."""
    state.slices[record.lease_id] = record


def settle(state: NodeState, now: Instant, out: Out) -> None:
    """After the start: the slices of earlier lives, by this one's clock."""
    for record in list(state.slices.values()):
        until = record.until
        if record.boot_id == state.mark.boot_id:
            true_until = Instant(now + record.boottime_until_ms - state.mark.boottime_ms)
            until = true_until if true_until > until + CLOCK_JUMP_MS else until
        if now >= until + KEPT_MS:
            _forget(state, record.lease_id)
        else:
            _lengthen(state, now, record, until, out)


def extend_all(state: NodeState, now: Instant, by_ms: int, out: Out) -> None:
    """Our clock jumped ahead; the Edges' may not have: their slices hold so much longer by ours."""
    for record in list(state.slices.values()):
        _lengthen(state, now, record, Instant(record.until + by_ms), out)


def _lengthen(state: NodeState, now: Instant, record: SliceRecord, until: Instant, out: Out) -> None:
    """Count it also in the periods that it reaches into now."""
    longer = replace(record, until=until)
    if until > record.until:
        charges = tuple(_stretched(state, now, record, charge, until) for charge in record.charges)
        longer = replace(longer, charges=charges)
        puts = (*_account_puts(state, longer), (slice_name(record.lease_id), longer))
        state.persist("slice", None, puts, (), out)
    keep(state, longer)


def _stretched(state: NodeState, now: Instant, record: SliceRecord, charge: Charge, until: Instant) -> Charge:
    row = state.tenants[record.tenant].view.budgets.get(charge.service) if record.tenant in state.tenants else None
    known = state.accounts.get((record.tenant, charge.service))
    if row is None or known is None or known.period != row.period:
        return charge
    account = budget.current(known, row, now)
    more = tuple(n for n in budget.touched(account, until) if n not in charge.numbers)
    ops = record.ops - record.unused
    state.accounts[record.tenant, charge.service] = budget.charged(account, more, ops, ops * charge.price)
    return replace(charge, numbers=(*charge.numbers, *more))


def on_end(state: NodeState, now: Instant, lease_id: str) -> None:
    """Nothing of it counts anywhere any more."""
    record = state.slices.get(lease_id)
    if record is not None and now >= record.until + KEPT_MS:
        _forget(state, lease_id)


def _forget(state: NodeState, lease_id: str) -> None:
    del state.slices[lease_id]
    state.edge_gone.append(slice_name(lease_id))
