"""Whether a restore has all that a voter's head stands for (DESIGN section 3, "Epochs and restore").

A voter shows the newest restriction of a namespace alone, and speaks for every older one with it.  In the chain, and in
a tail's rows, those are there too.  Where only entries came in, every one down to the chain or to a tail has to have
come.  Pure.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Final

from keymesh.control import commit
from keymesh.control.entry import Entry
from keymesh.control.kinds import KINDS
from keymesh.control.messages import StoredHead
from keymesh.control.state import NamespaceState
from keymesh.control.transition import restrictions_in
from keymesh.model.ids import ZERO_DIGEST, Digest
from keymesh.registry.regrow import Regrown

NOBODY_HAS_IT: Final = "nobody-has-the-entry"
OLDER_MISSING: Final = "older-entries-missing"


def why(
    log: Regrown,
    namespace: str,
    head: StoredHead,
    *,
    tails: Iterable[NamespaceState],
    adopted: Container[Digest],
) -> str | None:
    """Why ``namespace`` may lack a restriction that ``head`` stands for; None where it lacks none.

    ``tails``: verified states beside the chain, whose restrictions are adopted.  ``adopted``: entries beside it of
    which the same holds.
    """
    chain = log.chain(namespace)
    if head.entry_hash in chain.hashes:
        return None
    mine = [state for state in tails if state.head.entry.namespace == namespace]
    if any(
        row.seq == head.seq and state.head.entry.epoch == head.epoch
        for state in mine
        for row in restrictions_in(state.rows).values()
    ):
        return None
    grounds = {state.head.hash for state in mine} | {ZERO_DIGEST}
    at = head.entry_hash
    while at not in chain.hashes and at not in grounds:
        signed = log.beside[at][1] if at in log.beside else None
        if signed is None or (_may_restrict(signed.entry) and at not in adopted):
            return NOBODY_HAS_IT if at == head.entry_hash else OLDER_MISSING
        at = signed.entry.prev
    return None


def _may_restrict(entry: Entry) -> bool:
    """A kind of a later release may be anything."""
    return entry.kind not in KINDS or commit.is_restriction(entry)
