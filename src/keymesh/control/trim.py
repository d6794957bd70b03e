"""How far the control log may be trimmed: only to what survives elsewhere, whoever is lost next.

Decides the bound; what a backup, replica or voter holds is reported by those who verified it, and nothing is trimmed
here.  Who did not report holds nothing.  Source: DESIGN section 2, "The log is trimmed only to ...".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from keymesh.control.commit import majority
from keymesh.model.errors import Refused


@dataclass(frozen=True, slots=True)
class Holdings:
    """Indexes up to which everything is durably held; None: not known.

    ``backup`` is the newest one that was restored and verified.  ``replicas`` are all that may be promoted.
    ``voter_sets`` are all sets in force or being replaced; ``voters`` is what their members reported.
    """

    backup: int | None
    replicas: Mapping[str, int | None]
    voter_sets: tuple[frozenset[str], ...]
    voters: Mapping[str, int | None]


def trim_bound(held: Holdings) -> int:
    """The last index that may go: held by the backup, by every replica, and by a majority of each set of voters.

    0 where any of them is missing: nothing may go.
    """
    bounds = [held.backup or 0, *(index or 0 for index in held.replicas.values())]
    bounds += [_majority_holds(voters, held.voters) for voters in held.voter_sets]
    return max(0, min(bounds)) if held.voter_sets else 0


def check_trim(until_index: int, held: Holdings) -> None:
    """Raises Refused unless everything up to ``until_index`` may go."""
    if until_index < 1:
        raise Refused.bad_field("until_index", "from 1")
    bound = trim_bound(held)
    if until_index > bound:
        raise Refused("not-held", f"the log may be trimmed to {bound}, not to {until_index}", field="until_index")


def _majority_holds(voters: frozenset[str], reported: Mapping[str, int | None]) -> int:
    held = sorted((reported.get(name) or 0 for name in voters), reverse=True)
    needed = majority(len(held))
    return held[needed - 1] if needed <= len(held) else 0
