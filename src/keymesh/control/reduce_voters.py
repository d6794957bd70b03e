"""What a change of the voter set makes of the mesh's rows (DESIGN section 2, "Voters").

Decides whether the new set follows the one that is there, and keeps that one, so that what it countersigned goes on
counting.  Not whether a majority of the old set has sealed it: the Registry asks for that before it appends.
"""

from __future__ import annotations

from collections.abc import Iterator

from keymesh.control import checks
from keymesh.control.draft import Draft
from keymesh.control.kinds import ChangeVoters
from keymesh.control.rows import PastVotersRow, RegionRow, Row, VotersRow, decode_as, shape_of
from keymesh.model.errors import Refused


def change(draft: Draft, args: ChangeVoters) -> None:
    held = draft.get("voters", VotersRow)
    if held is None or (args.set_id, args.replaces) != (held.set_id + 1, held.regions):
        now = "none" if held is None else f"{held.set_id}: {', '.join(held.regions)}"
        raise Refused("conflict", f"the set in force is {now}", field="set_id")
    if tuple(sorted(set(args.regions))) != args.regions or len(args.regions) not in checks.VOTER_SETS:
        raise Refused.bad_field("regions", "3, 5 or 7, sorted, each once")
    if set(args.regions) == set(held.regions):
        raise Refused("already", "these regions have the seats", field="regions")
    named = [name for name in draft.rows if shape_of(name) is RegionRow]
    regions = {name.partition("/")[2]: decode_as(name, draft.rows[name], RegionRow) for name in named}
    checks.voters(VotersRow(set_id=args.set_id, regions=args.regions), regions)
    for region in args.regions:
        if not any(name.startswith(f"node/{region}/") for name in draft.rows):
            raise Refused.bad_field("regions", f"regions with a node; {region} has none")
    for name, row in given_by(args, draft.seq):
        draft.put(name, row)


def given_by(args: ChangeVoters, seq: int) -> Iterator[tuple[str, Row]]:
    """The rows that a change in entry ``seq`` gives: the new set, and the old one with its end."""
    yield "voters", VotersRow(set_id=args.set_id, regions=args.regions)
    yield f"voters/{args.set_id - 1}", PastVotersRow(regions=args.replaces, until=seq)
