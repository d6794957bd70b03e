"""A restore from a backup that is older than a change of voters: the set in force stores the epoch, or none is."""

from __future__ import annotations

import pytest

from keymesh.control.rows import RestrictionRow, VotersRow, get
from keymesh.model.errors import KeymeshError, Refused, Unavailable
from keymesh.registry.restore import Handed
from tests.unit.control.test_voter_rows import SETS, Voting
from tests.unit.registry.test_restore import backed_up, entries_of, offer_of, restored, word

IVK = {"region": "us-east", "generation": 2}
STAYED, LEFT, CAME = "us-east", "eu-central", "eu-west"


@pytest.fixture
def mesh() -> Voting:
    made = Voting()
    made.furnished()
    return made


def test_the_change_is_regrown_and_a_majority_of_the_new_set_stores_the_epoch(mesh: Voting) -> None:
    mesh.change(1)
    restriction = mesh.restrict("suspend", "tenant:acme")
    handed = Handed(STAYED, (mesh.mesh,), entries_of(mesh.history["mesh"]) + entries_of(mesh.history["acme"][:-1]))
    offer = offer_of(mesh)
    words = [word(mesh, STAYED, offer), word(mesh, CAME, offer, restriction.head)]
    log = backed_up(mesh, 1)
    restored(mesh, log, handed, offer=offer, words=words)
    voters = get(log.mesh.rows, "voters", VotersRow)
    assert voters is not None and (voters.set_id, voters.regions) == (2, SETS[1])
    closed = get(log.chain("acme").rows, "restriction/tenant:acme", RestrictionRow)
    assert closed is not None and closed.state == "suspended", "what only a voter of the new set had seen is in force"


def test_a_majority_of_the_old_set_is_none_of_the_new(mesh: Voting) -> None:
    """The region that lost its seat was away when the others sealed it, and gives its word."""
    mesh.change(1)
    handed = Handed(STAYED, (mesh.mesh,), entries_of(mesh.history["mesh"]))
    offer = offer_of(mesh)
    words = [word(mesh, region, offer) for region in (STAYED, LEFT)]
    with pytest.raises(Unavailable, match="of 3 voter regions these have stored the epoch: us-east"):
        restored(mesh, backed_up(mesh, 1), handed, offer=offer, words=words)


def test_where_the_change_cannot_be_regrown_no_epoch_is_opened(mesh: Voting) -> None:
    """Nobody has the entry before it, so the log would go on under the set of before: whose majority may have missed
    what the new one committed."""
    mesh.do("mesh", "region.rotate-ivk", IVK)
    mesh.change(1)
    offer = offer_of(mesh)
    words = [word(mesh, region, offer) for region in (STAYED, LEFT)]
    with pytest.raises(KeymeshError) as caught:
        restored(mesh, backed_up(mesh, 1), Handed(STAYED, (mesh.mesh,)), offer=offer, words=words)
    assert isinstance(caught.value, Refused) and caught.value.code == "voters-behind"
