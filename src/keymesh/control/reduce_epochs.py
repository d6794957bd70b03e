"""What the opening of an epoch, and the adoption of tails, make of rows (DESIGN section 3, "Epochs and restore").

An adoption only takes away: it adds restrictions and key versions that protect nothing new, and lifts nothing.
"""

from __future__ import annotations

from typing import Final

from keymesh.control import checks
from keymesh.control.draft import Draft
from keymesh.control.entry import FIRST_EPOCH
from keymesh.control.kinds import AdoptedRestriction, AdoptTail, OpenEpoch
from keymesh.control.reduce_restrictions import compromise_scope, destroy_keys
from keymesh.control.rows import EpochRow, KeyRow, RestrictionRow, WantRow, shape_of, split_key_row
from keymesh.model.errors import Refused
from keymesh.model.ids import MESH_NAMESPACE, check_hex, check_token
from keymesh.model.scope import ScopeKind, parse_scope
from keymesh.model.states import KeyState

EPOCH_MAX: Final = 2**31
_ENDED: Final = frozenset(
    s.value for s in (KeyState.DEACTIVATED, KeyState.COMPROMISED, KeyState.DESTROYED, KeyState.DESTROYED_COMPROMISED)
)


def open_epoch(draft: Draft, args: OpenEpoch) -> None:
    row = draft.get("epoch", EpochRow)
    now = FIRST_EPOCH if row is None else row.number
    if not now < args.epoch <= EPOCH_MAX:
        raise Refused("conflict", f"epoch {now} is open: the next is above it", field="epoch")
    draft.put("epoch", EpochRow(number=args.epoch))


def adopt(draft: Draft, args: AdoptTail) -> None:
    for scope, restriction in sorted(args.restrictions.items()):
        _restrict(draft, scope, restriction)
    for name, row in sorted(args.keys.items()):
        _adopt_key(draft, name, row)


def _restrict(draft: Draft, text: str, given: AdoptedRestriction) -> None:
    scope = parse_scope(text)
    if scope.namespace != draft.namespace:
        raise Refused("wrong-namespace", f"{text} is not {draft.namespace}'s to restrict", field="restrictions")
    if given.state not in ("suspended", "revoked"):
        raise Refused.bad_field("restrictions.state", "suspended or revoked")
    check_token("restrictions.command_id", given.command_id)
    old = draft.get(f"restriction/{text}", RestrictionRow)
    if old is not None and (old.state == "revoked" or (old.state == "suspended" and given.state == "suspended")):
        return
    if given.state == "revoked":
        compromise_scope(draft, scope, abandon_children=True)
        if scope.kind is ScopeKind.DESTRUCTION:
            destroy_keys(draft)
    row = RestrictionRow(state=given.state, seq=draft.seq, command_id=given.command_id)
    draft.put(f"restriction/{text}", row)


def _adopt_key(draft: Draft, name: str, row: KeyRow) -> None:
    """A version whose number is taken stays out: of two histories this log's own counts.

    The number is never wanted again, so that nobody mints other material under it.
    """
    if draft.namespace == MESH_NAMESPACE or shape_of(name) is not KeyRow:
        raise Refused.bad_field("keys", "key versions of a tenant")
    key, version = split_key_row(name)
    check_hex("keys.kid", row.kid, hex_bytes=16)
    check_hex("keys.digest", row.digest, hex_bytes=32)
    if version < 1 or row.revision < 1:
        raise Refused.bad_field("keys.version", "from 1")
    if name in draft.rows:
        return
    ended = row.state in _ENDED
    draft.put(name, row if ended else checks.changed(row, state=KeyState.DEACTIVATED.value))
    want = draft.get(f"want/{key}", WantRow)
    if want is None or want.version < version:
        draft.put(f"want/{key}", WantRow(version=version))
