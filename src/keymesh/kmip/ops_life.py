"""Activate, Revoke and Destroy.  ``states.py`` says from which state; here is what becomes of the object.

Source: KMIP 1.4, sections 3.22, 4.19-4.21; KMIP 2.1, sections 6.1.1, 6.1.14, 6.1.48.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from keymesh.kmip.attributes import valid
from keymesh.kmip.context import Context, Served
from keymesh.kmip.enums import Operation, ResultReason, RevocationReasonCode, State
from keymesh.kmip.faults import Fault, bad_field, wrong_state
from keymesh.kmip.items import Fields, make
from keymesh.kmip.objects import ManagedObject
from keymesh.kmip.states import GONE
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import Item

_COMPROMISES: Final = (RevocationReasonCode.KeyCompromise, RevocationReasonCode.CACompromise)


async def activate(ctx: Context, fields: Fields) -> tuple[Item, ...]:
    held = await ctx.target(fields)
    fields.done()
    return _became(ctx, held.with_(make(Tag.State, State.Active), make(Tag.ActivationDate, ctx.now_s)))


async def revoke(ctx: Context, fields: Fields) -> tuple[Item, ...]:
    """For a compromise Compromised, from every state; for any other reason Deactivated, from Active."""
    held = await ctx.target(fields)
    reason = valid(fields.need(Tag.RevocationReason), ctx.version)
    occurred = fields.number(Tag.CompromiseOccurrenceDate)
    fields.done()
    code = Fields(reason).need_word(Tag.RevocationReasonCode, RevocationReasonCode)
    state = State(held.number(Tag.State) or State.PreActive)
    if occurred is not None and (code not in _COMPROMISES or not 0 <= occurred <= ctx.now_s):
        raise bad_field("CompromiseOccurrenceDate: of a compromise, not in the future")
    if code in _COMPROMISES:
        after = State.DestroyedCompromised if state in GONE else State.Compromised
        held = held.with_(
            make(Tag.State, after),
            make(Tag.CompromiseDate, ctx.now_s),
            make(Tag.CompromiseOccurrenceDate, ctx.now_s if occurred is None else occurred),
            reason,
        )
        return _became(ctx, held)
    if state in GONE:
        raise Fault(ResultReason.ObjectDestroyed, "the object is destroyed")
    if state is not State.Active:
        raise wrong_state(f"Revoke: for this reason not in state {state.name}")
    return _became(ctx, held.with_(make(Tag.State, State.Deactivated), make(Tag.DeactivationDate, ctx.now_s), reason))


async def destroy(ctx: Context, fields: Fields) -> tuple[Item, ...]:
    """The sealed bytes are gone with the commit; attributes stay, so that what was can be told."""
    held = await ctx.target(fields)
    fields.done()
    compromised = held.number(Tag.State) == State.Compromised
    after = State.DestroyedCompromised if compromised else State.Destroyed
    gone = replace(held.with_(make(Tag.State, after), make(Tag.DestroyDate, ctx.now_s)), sealed=None)
    return _became(ctx, gone)


def _became(ctx: Context, after: ManagedObject) -> tuple[Item, ...]:
    ctx.work.put(after.with_(make(Tag.LastChangeDate, ctx.now_s)))
    ctx.named(after.uid)
    return (make(Tag.UniqueIdentifier, after.uid),)


OPS: Final = {
    Operation.Activate: Served((1, 0), activate),
    Operation.Revoke: Served((1, 0), revoke),
    Operation.Destroy: Served((1, 0), destroy),
}
