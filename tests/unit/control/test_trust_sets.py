"""Rotated root and officer keys in a holder's view: the chain from the genesis gives them, and nothing goes back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from tests.unit.control.rotating import ROTATE, Rotating, keys_of
from tests.unit.control.test_view import with_rows
from tests.unit.control.world import DOMAIN, VOTERS, Key, row_keys, row_of

from keymesh.control import commit
from keymesh.control.build import sign_entry
from keymesh.control.entry import Body
from keymesh.control.kinds import OFFICER_KINDS
from keymesh.control.rows import DelegationRow, NodeRow, RegionRow, RootRow, VotersRow, encode
from keymesh.control.signing import to_plain
from keymesh.control.state import NamespaceState, Supported, with_commit
from keymesh.control.view import Accepted, Outcome, RefusedTask, rows_root
from keymesh.model.errors import KeymeshError

SUSPEND = {"scope": "mesh", "reason": "", "abandon_children": False}


@pytest.fixture(params=[True, False], ids=["dsse", "fake"])
def mesh(request: pytest.FixtureRequest) -> Rotating:
    made = Rotating(real=request.param)
    made.furnished()
    return made


def code(outcome: Outcome) -> str:
    assert isinstance(outcome, RefusedTask), outcome
    return outcome.code


def join(mesh: Rotating, signers: list[Key], name: str = "ap-south", **where: Any) -> NamespaceState:
    row = RegionRow(domain="ap", failure_domain=name, ca_fingerprint="ff")
    args = {"region": name, "row": row, "nodes": {"n1": NodeRow(signing_key=mesh.key("joined").public_hex)}}
    return mesh.plan("mesh", "region.join", msgspec.to_builtins(args), signers=signers, **where)


def test_whoever_comes_late_takes_every_rotation_at_once(mesh: Rotating) -> None:
    first = mesh.rotate(1)
    joined = mesh._keep("mesh", join(mesh, mesh.roots[:2]))
    second = mesh.rotate(2)
    last = mesh.restrict("suspend", "mesh")
    states = [mesh.founded, first, joined, second, last]
    for n, offered in enumerate(states):
        for held in (None, *states[:n]):
            assert isinstance(mesh.offer(held, offered), Accepted), (n, held)


def test_what_was_signed_before_a_rotation_goes_on_counting(mesh: Rotating) -> None:
    """A region that the first root let in is taken also by who knows only its pins; so is the officers' suspension."""
    old_roots = mesh.roots[:2]
    mesh._keep("mesh", join(mesh, old_roots))
    mesh.restrict("suspend", "region:us-west")
    mesh.rotate(1)
    assert isinstance(mesh.offer(None, mesh.mesh), Accepted)


@pytest.mark.parametrize("held", ["founded", "rotated", "nothing"])
def test_old_keys_sign_nothing_later(mesh: Rotating, held: str) -> None:
    (roots, officers), founded = mesh.sets[0], mesh.founded
    rotated = mesh.rotate(1)
    holding = {"founded": founded, "rotated": rotated, "nothing": None}[held]
    for state in (
        mesh.plan("mesh", "suspend", SUSPEND, signers=officers[:2]),
        join(mesh, roots[:2]),
        mesh.plan("mesh", "suspend", SUSPEND, signers=[officers[0], mesh.officers[0]]),
    ):
        assert code(mesh.offer(holding, state)) == "below-threshold"
    for state in (
        mesh.plan("mesh", "suspend", SUSPEND, signers=mesh.officers[:2]),
        join(mesh, mesh.roots[1:]),
    ):
        assert isinstance(mesh.offer(holding, state), Accepted)


def test_a_rotation_wants_thresholds_of_old_root_new_root_and_new_officers(mesh: Rotating) -> None:
    old, roots, officers = mesh.roots, keys_of(mesh, "root1"), keys_of(mesh, "officer1")
    args = mesh.rotation(roots, officers)
    full = [*old[:2], *roots[:2], *officers[:2]]
    assert isinstance(mesh.offer(mesh.mesh, mesh.commit(mesh.plan("mesh", ROTATE, args, signers=full))), Accepted)
    lacking = [full[:n] + full[n + 1 :] for n in range(len(full))]
    for signers in (*lacking, old, roots, [*mesh.officers, *roots, *officers], []):
        forged = mesh.commit(mesh.plan("mesh", ROTATE, args, signers=signers))
        for held in (None, mesh.mesh):
            assert isinstance(mesh.offer(held, forged), RefusedTask)


def test_only_the_next_version_of_the_set_in_force_in_this_mesh(mesh: Rotating) -> None:
    first = mesh.rotated(1)
    mesh.rotate(1)
    again = first.head.entry.body.args  # a replay of what was signed before
    for wrong in (
        again,
        mesh.rotation(keys_of(mesh, "root2"), keys_of(mesh, "officer2"), replaces="ab" * 32),
        mesh.rotation(
            keys_of(mesh, "root2"),
            keys_of(mesh, "officer2"),
            root=RootRow(version=4, keys=row_keys(*keys_of(mesh, "root2")), threshold=2),
        ),
        mesh.rotation(mesh.roots, mesh.officers),
    ):
        with pytest.raises(KeymeshError):
            mesh.plan("mesh", ROTATE, wrong, signers=[*mesh.roots, *keys_of(mesh, "root2"), *mesh.officers])
    foreign = mesh.commit(mesh.rotated(2, genesis="ab" * 32))
    assert code(mesh.offer(mesh.mesh, foreign)) == "unproven-change"
    assert code(mesh.offer(None, foreign)) == "unproven-change"


def test_the_voters_must_have_seen_it(mesh: Rotating) -> None:
    """Else each of two Registries could give each half of the mesh another trust set."""
    founded = mesh.founded
    bare = mesh.rotate(1, committed=False)
    assert code(mesh.offer(founded, bare)) == "unproven-lift"
    alone = mesh.commit(bare, "us-east")
    assert code(mesh.offer(founded, alone)) == "unproven-lift"
    assert isinstance(mesh.offer(founded, mesh.commit(bare)), Accepted)


def test_a_restriction_waits_for_no_rotation(mesh: Rotating) -> None:
    """Signed by new officers whose rotation nobody has committed: in force all the same, and nothing else is taken."""
    founded = mesh.founded
    mesh.rotate(1, committed=False)
    suspended = mesh.restrict("suspend", "mesh")
    outcome = mesh.offer(founded, suspended)
    assert code(outcome) == "unproven-lift"
    assert isinstance(outcome, RefusedTask)
    assert [scope for scope, _ in outcome.restrictions] == ["mesh"]


def test_of_two_rotations_to_one_version_a_holder_keeps_the_one_it_took(mesh: Rotating) -> None:
    founded, old = mesh.founded, mesh.roots[:2]
    mine = mesh.rotate(1)
    roots, officers = keys_of(mesh, "root9"), keys_of(mesh, "officer9")
    args = mesh.rotation(roots, officers, rows=founded.rows)
    # the thief of the old root, and of the Registry's key: elsewhere in the log, so that it is no fork of entries
    moved = mesh.plan("mesh", "region.rotate-ivk", {"region": "us-east", "generation": 2}, held=founded)
    rival = mesh.plan("mesh", ROTATE, args, held=moved, signers=[*old, *roots, *officers])
    assert code(mesh.offer(mine, mesh.commit(rival))) in ("unproven-change", "trust-fork")
    later = mesh.plan("mesh", "suspend", SUSPEND, held=rival, signers=officers[:2])
    assert code(mesh.offer(mine, later)) == "trust-fork"
    third = mesh.rotation(keys_of(mesh, "root8"), keys_of(mesh, "officer8"), rows=rival.rows)
    signers = [*roots, *keys_of(mesh, "root8"), *keys_of(mesh, "officer8")]
    assert code(mesh.offer(mine, mesh.commit(mesh.plan("mesh", ROTATE, third, held=rival, signers=signers)))) == (
        "trust-fork"
    )


def test_the_registry_alone_takes_no_set_back(mesh: Rotating) -> None:
    founded = mesh.founded
    mine = mesh.rotate(1)
    back: dict[str, bytes | None] = {name: founded.rows[name] for name in ("root", "delegation/officers")}
    for held in (None, mine):
        assert code(mesh.offer(held, with_rows(mesh, mine, back))) in ("unproven-change", "row-regressed")
    longer = founded
    for generation in (2, 3, 4):  # past what would be seen as a fork of entries
        args = {"region": "us-east", "generation": generation}
        longer = mesh.plan("mesh", "region.rotate-ivk", args, held=longer)
    assert code(mesh.offer(mine, longer)) == "row-regressed"
    wider = encode(DelegationRow(keys=row_keys(*mesh.sets[0][1]), threshold=1, kinds=OFFICER_KINDS, scope="mesh"))
    for held in (None, mine):
        assert isinstance(mesh.offer(held, with_rows(mesh, mine, {"delegation/officers": wider})), RefusedTask)


def test_a_new_epoch_does_not_bring_old_keys_back(mesh: Rotating) -> None:
    """Opened by the old officers, on a base from before the rotation, or with the rotation dated after the opening."""
    (roots, officers), founded = mesh.sets[0], mesh.founded
    mine = mesh.rotate(1)
    opened = mesh.plan("mesh", "epoch.open", {"epoch": 2}, held=founded, signers=officers[:2], epoch=2)
    assert code(mesh.offer(mine, opened)) == "future-epoch"
    args, authority = mine.head.entry.body.args, mine.head.entry.body.authority
    again = mesh.plan("mesh", ROTATE, args, held=opened, signers=[*roots, *mesh.roots, *mesh.officers], epoch=2)
    assert code(mesh.offer(mine, again)) == "future-epoch"
    assert authority
    by_new = mesh.plan("mesh", "epoch.open", {"epoch": 2}, held=founded, signers=mesh.officers[:2], epoch=2)
    assert code(mesh.offer(mine, by_new)) == "row-regressed"
    good = mesh.plan("mesh", "epoch.open", {"epoch": 2}, signers=mesh.officers[:2], epoch=2)
    assert isinstance(mesh.offer(mine, good), Accepted)
    assert isinstance(mesh.offer(founded, good), Accepted)


def rival_of(mesh: Rotating, held: NamespaceState, roots: list[Key], thieves: list[Key]) -> NamespaceState:
    """By the thief of the root in force, and of the Registry's key: his own root and officers."""
    args = mesh.rotation(thieves, thieves, rows=held.rows)
    return mesh.plan("mesh", ROTATE, args, held=held, signers=[*roots[:2], *thieves])


def signed_by(mesh: Rotating, state: NamespaceState, keys: dict[str, Key], set_id: int) -> NamespaceState:
    """The rotation in ``state``, countersigned under set ``set_id`` by ``keys`` (region -> key)."""
    head = next(s.signed for s in state.support if s.signed.entry.kind == ROTATE)
    voters = VotersRow(set_id=set_id, regions=tuple(sorted(keys)))
    asked = commit.countersign_request(head, mesh.mesh.rows, voters)
    proof = tuple(key.seal(commit.vote_for(asked, region)) for region, key in keys.items())
    return replace(state, support=with_commit(state.support, head.hash, proof))


def test_a_stolen_root_opens_no_epoch_by_officers_of_its_own(mesh: Rotating) -> None:
    """Without the voters: a rotation, and upon it a new epoch by whom it made officers."""
    held, thieves = mesh.founded, keys_of(mesh, "thief")
    rival = rival_of(mesh, held, mesh.roots, thieves)
    opened = mesh.plan("mesh", "epoch.open", {"epoch": 2}, held=rival, signers=thieves, epoch=2)
    assert code(mesh.offer(held, opened)) == "future-epoch"
    committed = mesh.commit(rival)
    upon = mesh.plan("mesh", "epoch.open", {"epoch": 2}, held=committed, signers=thieves, epoch=2)
    assert isinstance(mesh.offer(held, upon), Accepted), "a majority of the voters has seen the rotation"
    both = mesh.plan("mesh", "epoch.open", {"epoch": 2}, held=rival, signers=[*thieves, *mesh.officers], epoch=2)
    assert isinstance(mesh.offer(held, both), Accepted), "the officers in force say so too: a restore without the proof"


def test_a_stolen_root_seats_no_voters_who_then_commit_its_rotation(mesh: Rotating) -> None:
    held, thieves = mesh.founded, keys_of(mesh, "thief")
    state, seats = held, ("m1", "m2", "m3")
    for name in seats:
        state = join(mesh, mesh.roots[:2], name, held=state)
    state = rival_of(mesh, state, mesh.roots, thieves)
    args = {"set_id": 2, "regions": seats, "replaces": VOTERS_NOW}
    state = mesh.plan("mesh", "voters.change", args, held=state, signers=thieves)
    fake = {name: mesh.key("joined") for name in seats}
    assert code(mesh.offer(held, signed_by(mesh, state, fake, 2))) == "unproven-lift"
    assert code(mesh.offer(held, signed_by(mesh, state, fake, 1))) == "unproven-lift"


def test_a_stolen_root_gives_no_voter_another_key(mesh: Rotating) -> None:
    held, thieves = mesh.founded, keys_of(mesh, "thief")
    state = held
    for name in VOTERS_NOW[:2]:
        nodes = {"n2": NodeRow(signing_key=mesh.key("joined").public_hex)}
        region = row_of(held.rows, f"region/{name}", RegionRow)
        plain = msgspec.to_builtins({"region": name, "row": region, "nodes": nodes})
        state = forced(mesh, state, "region.join", plain, {f"node/{name}/n2": encode(nodes["n2"])})
    state = rival_of(mesh, state, mesh.roots, thieves)
    fake = {name: mesh.key("joined") for name in VOTERS_NOW[:2]}
    assert code(mesh.offer(held, signed_by(mesh, state, fake, 1))) == "unproven-lift"
    assert isinstance(mesh.offer(held, signed_by(mesh, state, {n: mesh.nodes[n] for n in VOTERS_NOW[:2]}, 1)), Accepted)


VOTERS_NOW = tuple(VOTERS)


def forced(
    mesh: Rotating, held: NamespaceState, kind: str, args: dict[str, Any], rows: dict[str, bytes]
) -> NamespaceState:
    """What no Registry would plan: the root's word over ``args``, and ``rows`` upon those held."""
    made = mesh.plan("mesh", "region.rotate-ivk", {"region": "eu-west", "generation": next_ivk(held)}, held=held)
    command_id = mesh.command_id()
    authority = tuple(to_plain(e) for e in mesh.authority("mesh", kind, args, command_id, mesh.roots[:2]))
    new = {**held.rows, **rows}
    entry = msgspec.structs.replace(
        made.head.entry, kind=kind, body=Body(args=args, authority=authority), command_id=command_id,
        state=rows_root(new),
    )  # fmt: skip
    head = sign_entry(entry, mesh.registry)
    return NamespaceState(head, new, (*held.support, Supported(head)))


def next_ivk(held: NamespaceState) -> int:
    return row_of(held.rows, "region/eu-west", RegionRow).ivk_generation + 1


def test_a_late_holder_takes_a_rotation_by_voters_who_were_seated_before_it(mesh: Rotating) -> None:
    held = mesh.founded
    new = ("eu-west", "us-east", "us-west")
    mesh._keep("mesh", mesh.plan("mesh", "voters.change", {"set_id": 2, "regions": new, "replaces": VOTERS_NOW}))
    changed = mesh.mesh
    state = mesh.rotate(1, committed=False)
    proof = {name: mesh.nodes[name] for name in ("eu-west", "us-west")}
    good = signed_by(mesh, state, proof, 2)
    for holder in (held, changed):
        assert isinstance(mesh.offer(holder, good), Accepted)
        assert (
            code(mesh.offer(holder, signed_by(mesh, state, {"us-east": mesh.nodes["us-east"]}, 2))) == "unproven-lift"
        )


def test_an_entry_dated_back_gives_a_holder_nothing(mesh: Rotating) -> None:
    """Old root keys, and the Registry's, sign that a region joined before they were rotated away."""
    old = mesh.roots[:2]
    held = mesh.rotate(1)
    joined = join(mesh, old, held=mesh.founded)
    rows: dict[str, bytes | None] = {n: joined.rows[n] for n in ("region/ap-south", "node/ap-south/n1")}
    moved = mesh.plan("mesh", "region.rotate-ivk", {"region": "us-east", "generation": 2})
    forged = with_rows(mesh, moved, rows)
    forged = replace(forged, support=(*forged.support, Supported(joined.head)))
    assert code(mesh.offer(held, forged)) == "unproven-change"


def test_a_mesh_of_few_voters_rotates_by_its_log_alone() -> None:
    mesh = Rotating(voters=())
    founded = mesh.founded
    bare = mesh.rotate(1, committed=False)
    assert isinstance(mesh.offer(founded, bare), Accepted)


def test_signatures_by_the_registry_are_wanted_as_ever(mesh: Rotating) -> None:
    made = mesh.rotated(1)
    other = replace(made, head=sign_entry(made.head.entry, mesh.nodes[next(iter(DOMAIN))]))
    for held in (None, mesh.mesh):
        assert code(mesh.offer(held, other)) == "bad-signature"
