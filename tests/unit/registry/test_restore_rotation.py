"""A restore from a backup that is older than a rotation of root and officers: the new ones open the epoch, or none."""

from __future__ import annotations

import pytest

from keymesh.control.rows import RestrictionRow, RootRow, get
from keymesh.model.errors import Refused
from keymesh.registry.restore import Handed
from tests.unit.control.rotating import Rotating
from tests.unit.registry.test_restore import backed_up, entries_of, offer_of, restored, word

IVK = {"region": "us-east", "generation": 2}


@pytest.fixture
def mesh() -> Rotating:
    made = Rotating()
    made.furnished()
    return made


def test_the_rotation_is_regrown_and_its_officers_open_the_epoch(mesh: Rotating) -> None:
    old = mesh.officers[:2]
    log, n = backed_up(mesh, 1), len(mesh.history["acme"])
    mesh.rotate(1)
    handed = Handed("us-east", (mesh.mesh,), entries_of(mesh.history["mesh"]) + entries_of(mesh.history["acme"]))
    base = restored(mesh, log, handed)
    root = get(log.mesh.rows, "root", RootRow)
    assert root is not None and root.version == 2
    assert base.refused == () and base.from_regions["us-east"]["entries"] == n - 1 + 1
    assert [proof.seq for proof in base.proofs if proof.namespace == "mesh"] == [2], "the voters' word goes along"
    with pytest.raises(Refused, match="needs 2 signatures, got 0"):
        restored(mesh, backed_up(mesh, 1), handed, offer=offer_of(mesh, signers=old))


def test_both_sets_may_sign_where_nobody_knows_whether_it_was_committed(mesh: Rotating) -> None:
    old = mesh.officers[:2]
    mesh.rotate(1)
    both = offer_of(mesh, signers=[*old, *mesh.officers[:2]])
    handed = Handed("us-east", (mesh.mesh,), entries_of(mesh.history["mesh"]))
    assert restored(mesh, backed_up(mesh, 1), handed, offer=both).epoch == 2
    assert restored(mesh, backed_up(mesh, 1), offer=both).epoch == 2


@pytest.mark.parametrize("signed_by", ["old", "new", "both"])
def test_a_log_that_would_put_old_keys_back_in_force_is_not_made(mesh: Rotating, signed_by: str) -> None:
    """Nobody has the entry before the rotation."""
    old = mesh.officers[:2]
    mesh.do("mesh", "region.rotate-ivk", IVK)
    mesh.rotate(1)
    signers = {"old": old, "new": mesh.officers[:2], "both": [*old, *mesh.officers[:2]]}[signed_by]
    with pytest.raises(Refused) as caught:
        restored(mesh, backed_up(mesh, 1), Handed("us-east", (mesh.mesh,)), offer=offer_of(mesh, signers=signers))
    assert caught.value.code == "trust-behind"


def test_a_wide_restriction_by_officers_of_before_closes_the_mesh(mesh: Rotating) -> None:
    """Beside a chain that rotated them away their word can't be judged; but a voter had countersigned it."""
    side = mesh.plan("mesh", "suspend", {"scope": "region:us-east", "reason": "", "abandon_children": False})
    mesh.rotate(1)
    offer = offer_of(mesh)
    words = [word(mesh, "us-east", offer), word(mesh, "us-west", offer, side.head)]
    log = backed_up(mesh, 1)
    handed = Handed("us-east", (mesh.mesh,), (*entries_of(mesh.history["mesh"]), side.head))
    base = restored(mesh, log, handed, offer=offer, words=words)
    assert [r.reason for r in base.refused] == ["below-threshold", "nobody-has-the-entry"]
    closed = get(log.mesh.rows, "restriction/mesh", RestrictionRow)
    assert closed is not None and closed.state == "suspended"
