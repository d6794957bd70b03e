"""The voter set in a holder's view: the officers' word gives it, and every set that was; the Registry's alone none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from tests.unit.control.test_view import with_rows
from tests.unit.control.world import MESH, VOTERS, Mesh

from keymesh.control.rows import DelegationRow, PastVotersRow, VotersRow, decode_as, encode
from keymesh.control.state import NamespaceState
from keymesh.control.view import Accepted, Outcome, RefusedTask

SETS = (VOTERS, ("eu-west", "us-east", "us-west"), ("eu-central", "eu-west", "us-east"))


class Voting(Mesh):
    """Its officers may change the voters."""

    def genesis(self, voters: tuple[str, ...] = VOTERS) -> Any:
        made = super().genesis(voters)
        officers = made.delegations["officers"]
        wider = msgspec.structs.replace(officers, kinds=(*officers.kinds, "voters.change"))
        return msgspec.structs.replace(made, delegations={**made.delegations, "officers": wider})

    def change(self, n: int) -> NamespaceState:
        """To ``SETS[n]``, from the one before."""
        return self.do("mesh", "voters.change", {"set_id": n + 1, "regions": SETS[n], "replaces": SETS[n - 1]})


@pytest.fixture(params=[True, False], ids=["dsse", "fake"])
def mesh(request: pytest.FixtureRequest) -> Voting:
    made = Voting(real=request.param)
    made.furnished()
    return made


def code(outcome: Outcome) -> str:
    assert isinstance(outcome, RefusedTask), outcome
    return outcome.code


def test_whoever_comes_late_takes_every_change_at_once(mesh: Voting) -> None:
    founded = mesh.mesh
    first, second = mesh.change(1), mesh.change(2)
    for held, offered in ((None, first), (None, second), (founded, second), (first, second)):
        assert isinstance(mesh.offer(held, offered), Accepted)
    assert decode_as("voters", second.rows["voters"], VotersRow) == VotersRow(set_id=3, regions=SETS[2])
    for n, until in ((1, first.head.entry.seq), (2, second.head.entry.seq)):
        past = decode_as(f"voters/{n}", second.rows[f"voters/{n}"], PastVotersRow)
        assert past == PastVotersRow(regions=SETS[n - 1], until=until)


def test_the_registry_alone_changes_neither_the_set_nor_what_was(mesh: Voting) -> None:
    first = mesh.change(1)
    until = first.head.entry.seq
    for held in (None, first):
        for name, row in (
            ("voters", VotersRow(set_id=3, regions=("us-east", "us-west"))),
            ("voters/2", PastVotersRow(regions=SETS[1], until=until + 1)),
            ("voters/7", PastVotersRow(regions=SETS[0], until=until)),
        ):
            assert code(mesh.offer(held, with_rows(mesh, first, {name: encode(row)}))) == "unproven-change"
    longer = encode(PastVotersRow(regions=SETS[0], until=until + 100))
    assert code(mesh.offer(None, with_rows(mesh, first, {"voters/1": longer}))) == "unproven-change"
    assert code(mesh.offer(first, with_rows(mesh, first, {"voters/1": longer}))) == "version-reused"
    other = encode(VotersRow(set_id=2, regions=SETS[2]))
    assert code(mesh.offer(first, with_rows(mesh, first, {"voters": other}))) == "version-reused"
    back = encode(VotersRow(set_id=1, regions=SETS[0]))
    assert code(mesh.offer(first, with_rows(mesh, first, {"voters": back}))) == "row-regressed"
    assert code(mesh.offer(first, with_rows(mesh, first, {"voters/1": None}))) == "row-vanished"


def test_a_change_that_lost_its_entry_proves_nothing(mesh: Voting) -> None:
    founded, second = mesh.mesh, None
    mesh.change(1)
    second = mesh.change(2)
    bare = replace(second, support=tuple(s for s in second.support if s.signed.entry.kind != "voters.change"))
    for held in (None, founded):
        assert code(mesh.offer(held, bare)) == "unproven-change", "the head proves its own set, and not the one before"


def test_an_entry_without_the_officers_is_none(mesh: Voting) -> None:
    args = {"set_id": 2, "regions": SETS[1], "replaces": SETS[0]}
    for signers in ([], mesh.officers[:1], mesh.roots[:2], [mesh.officers[0], mesh.officers[0]]):
        forged = mesh.plan("mesh", "voters.change", args, signers=signers)
        for held in (None, mesh.mesh):
            assert isinstance(mesh.offer(held, forged), RefusedTask)


def test_officers_of_an_older_mesh_can_not(mesh: Voting) -> None:
    older = Mesh(real=not hasattr(mesh.registry, "name"), name=MESH)
    officers = decode_as("delegation/officers", older.mesh.rows["delegation/officers"], DelegationRow)
    assert "voters.change" not in officers.kinds
    args = {"set_id": 2, "regions": SETS[1], "replaces": SETS[0]}
    assert isinstance(older.offer(older.mesh, older.plan("mesh", "voters.change", args)), RefusedTask)
