"""The base of a new epoch: what is in it whatever was lost, who may open it, and what does not get in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from keymesh.control import commit, trust
from keymesh.control.entry import SignedEntry, parse_entry
from keymesh.control.kinds import OPEN_EPOCH
from keymesh.control.messages import EpochOffer, EpochStored, StoredHead
from keymesh.control.rows import KeyRow, RestrictionRow, WantRow, WrappingRow, get
from keymesh.control.signing import to_plain
from keymesh.control.state import NamespaceState
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable
from keymesh.model.time import Instant
from keymesh.registry import spaces
from keymesh.registry.regrow import Regrown
from keymesh.registry.restore import Base, Handed, plan_base
from tests.unit.control.world import FAR, MESH, Mesh, digest, resigned

NOW = Instant(1_000)
SERVICE = "service:acme/pay"


def offer_of(mesh: Mesh, epoch: int = 2, *, command_id: str = "open", signers: Any = None) -> EpochOffer:
    made = trust.make_authority(
        mesh=MESH,
        namespace="mesh",
        command_id=command_id,
        kind=OPEN_EPOCH,
        args={"epoch": epoch},
        not_after=FAR,
        signers=mesh.officers[:2] if signers is None else signers,
    )
    return EpochOffer(mesh=MESH, epoch=epoch, command_id=command_id, authority=(to_plain(made),))


def heads_of(mesh: Mesh, *heads: SignedEntry) -> tuple[StoredHead, ...]:
    asked = [commit.countersign_request(head, mesh.mesh.rows) for head in heads]
    return tuple(StoredHead(blind=a.blind, epoch=a.epoch, seq=a.seq, entry_hash=a.entry_hash) for a in asked)


def word(mesh: Mesh, region: str, offer: EpochOffer, *heads: SignedEntry, **changed: Any) -> Any:
    said: dict[str, Any] = {
        "mesh": MESH,
        "epoch": offer.epoch,
        "command_id": offer.command_id,
        "voter": region,
        "node": "n1",
        "heads": heads_of(mesh, *heads),
        **changed,
    }
    return mesh.nodes[region].seal(EpochStored(**said))


def backed_up(mesh: Mesh, n_acme: int) -> Regrown:
    log = Regrown(mesh.pins, mesh.registry)
    log.take([mesh.history["mesh"][0].head])
    for state in mesh.history["acme"][:n_acme]:
        log.take([state.head])
    return log


def restored(
    mesh: Mesh, log: Regrown, *handed: Handed, offer: EpochOffer | None = None, words: list[Any] | None = None
) -> Base:
    offer = offer_of(mesh) if offer is None else offer
    said = [word(mesh, region, offer) for region in ("us-east", "us-west")] if words is None else words
    return plan_base(log, offer=offer, words=said, handed=handed, now=NOW)


def entries_of(states: list[NamespaceState]) -> tuple[SignedEntry, ...]:
    return tuple(state.head for state in states)


def damaged(signed: SignedEntry) -> SignedEntry:
    """The same payload, and so the same hash, under a signature with one byte flipped."""
    (one,) = signed.envelope.signatures
    broken = msgspec.structs.replace(one, sig=bytes([one.sig[0] ^ 1]) + one.sig[1:])
    return parse_entry(msgspec.structs.replace(signed.envelope, signatures=(broken,)))


def row(log: Regrown, name: str, shape: Any) -> Any:
    return get(log.chain("acme").rows, name, shape)


def world(tail: bool = True) -> tuple[Mesh, int]:
    """A tenant that was backed up; then a version more of its service key, and a suspension."""
    mesh = Mesh()
    mesh.furnished()
    backup = len(mesh.history["acme"])
    if tail:
        mesh.do("acme", "key.want", {"key": "l3/pay", "version": 2})
        mesh.key_version("acme", "l3/pay", 2, digest("acme/l2/1")[:32])
        mesh.restrict("suspend", SERVICE)
    return mesh, backup


def test_a_tail_whose_entries_are_there_is_taken_as_it_was() -> None:
    mesh, n = world()
    log = backed_up(mesh, n)
    base = restored(mesh, log, Handed("us-east", (), entries_of(mesh.history["acme"])))
    assert base.from_backup == {"index": n + 1, "entries": n + 1, "namespaces": 2}
    assert base.from_regions == {"us-east": {"entries": len(mesh.history["acme"]) - n, "restrictions": 0, "keys": 0}}
    assert base.refused == ()
    assert row(log, f"restriction/{SERVICE}", RestrictionRow).state == "suspended"
    assert row(log, "wrapping/l3/pay", WrappingRow).version == 2
    assert [s.entry.kind for s in log.commits[-1]] == ["epoch.adopt"]
    assert {chain.entries[-1].entry.epoch for chain in log.chains.values()} == {2}


def test_of_a_tail_whose_entries_are_gone_restrictions_and_versions_come_in_and_nothing_else() -> None:
    mesh, n = world()
    log = backed_up(mesh, n)
    base = restored(mesh, log, Handed("us-west", (mesh.states["acme"],)))
    assert base.from_regions["us-west"] == {"entries": 0, "restrictions": 1, "keys": 1}
    assert row(log, f"restriction/{SERVICE}", RestrictionRow).command_id == mesh.states["acme"].head.entry.command_id
    assert row(log, "key/l3/pay/2", KeyRow).state == "deactivated"
    assert row(log, "want/l3/pay", WantRow).version == 2, "never minted again"
    assert row(log, "wrapping/l3/pay", WrappingRow).version == 1
    assert "grants-of-a-tail" in [r.reason for r in base.refused]


def test_every_tail_counts_not_the_longest_alone() -> None:
    mesh, n = world(tail=False)
    one = mesh.plan("acme", "suspend", {"scope": SERVICE})
    other = mesh.plan("acme", "revoke", {"scope": "key:acme/pay@1", "abandon_children": True})
    log = backed_up(mesh, n)
    restored(mesh, log, Handed("us-east", (one,)), Handed("us-west", (other,)))
    assert row(log, f"restriction/{SERVICE}", RestrictionRow).state == "suspended"
    assert row(log, "restriction/key:acme/pay@1", RestrictionRow).state == "revoked"
    assert row(log, "key/l3/pay/1", KeyRow).state == "compromised"


def test_a_restriction_that_a_voter_has_and_nobody_else_closes_the_tenant() -> None:
    mesh, n = world()
    log, offer = backed_up(mesh, n), offer_of(mesh)
    words = [word(mesh, "us-east", offer), word(mesh, "us-west", offer, mesh.states["acme"].head)]
    base = restored(mesh, log, offer=offer, words=words)
    assert row(log, "restriction/tenant:acme", RestrictionRow).state == "suspended"
    assert [(r.region, r.namespace, r.reason) for r in base.refused] == [("us-west", "acme", "nobody-has-the-entry")]
    held = backed_up(mesh, n)
    restored(mesh, held, Handed("us-east", (mesh.states["acme"],)), offer=offer, words=words)
    assert row(held, "restriction/tenant:acme", RestrictionRow) is None


def test_the_word_of_a_majority_in_this_very_matter_is_needed() -> None:
    mesh, n = world()
    offer = offer_of(mesh)
    good = word(mesh, "us-east", offer)
    forged = EpochStored(mesh=MESH, epoch=2, command_id="open", voter="us-west", node="n1", heads=())
    for bad in (
        good,
        word(mesh, "eu-west", offer),
        word(mesh, "us-west", offer, command_id="other"),
        word(mesh, "us-west", offer, epoch=3),
        word(mesh, "us-west", offer, node="n9"),
        word(mesh, "us-west", offer, voter="us-east"),
        mesh.key("stranger").seal(forged),
    ):
        with pytest.raises(Unavailable, match="these have stored the epoch: us-east"):
            restored(mesh, backed_up(mesh, n), offer=offer, words=[good, bad])
    restored(mesh, backed_up(mesh, n), offer=offer, words=[good, word(mesh, "us-west", offer)])


def test_officers_open_an_epoch_and_only_a_later_one() -> None:
    mesh, n = world()
    one = offer_of(mesh, signers=mesh.officers[:1])
    with pytest.raises(Refused, match="needs 2 signatures, got 1"):
        restored(mesh, backed_up(mesh, n), offer=one)
    with pytest.raises(Refused, match="opened already"):
        restored(mesh, backed_up(mesh, n), offer=offer_of(mesh, 1))


def test_a_resume_that_nobody_can_prove_ends_nothing() -> None:
    for committed in (False, True):
        mesh, _ = world()
        mesh.restrict("resume", SERVICE, committed=committed)
        log = backed_up(mesh, len(mesh.history["acme"]))
        base = restored(mesh, log, Handed("us-east", (mesh.states["acme"],)))
        held = row(log, f"restriction/{SERVICE}", RestrictionRow)
        assert held.state == ("none" if committed else "suspended")
        assert len(base.proofs) == committed
        assert ("unproven-resume" in [r.reason for r in base.refused]) is not committed


def test_a_second_restore_from_the_same_backup_goes_on_from_the_first() -> None:
    mesh, n = world()
    first = backed_up(mesh, n)
    restored(mesh, first, Handed("us-east", (mesh.states["acme"],)))
    everything = tuple(signed for group in first.commits for signed in group)
    astray = entries_of(mesh.history["acme"])
    again = backed_up(mesh, n)
    with pytest.raises(Refused, match="opened already"):
        restored(mesh, backed_up(mesh, n), Handed("us-west", (), everything))
    offer = offer_of(mesh, 3, command_id="third")
    restored(mesh, again, Handed("us-east", (), astray), Handed("us-west", (), everything), offer=offer)
    assert [s.entry.epoch for s in again.chain("acme").entries][-2:] == [2, 3]
    assert row(again, f"restriction/{SERVICE}", RestrictionRow).state == "suspended"
    forgetful = backed_up(mesh, n)
    restored(mesh, forgetful, Handed("us-west", (mesh.states["acme"],)), offer=offer)
    assert row(forgetful, f"restriction/{SERVICE}", RestrictionRow).state == "suspended"


def test_what_others_signed_does_not_get_in() -> None:
    mesh, n = world()
    tail = mesh.history["acme"][n:]
    forged = resigned(tail[0], mesh.key("stranger"))
    log = backed_up(mesh, n)
    base = restored(mesh, log, Handed("us-west", (forged,), (forged.head,)))
    assert {r.reason for r in base.refused} == {"bad-signature"}
    assert log.chain("acme").seq == n + 1
    edited = replace(mesh.states["acme"], rows={**mesh.states["acme"].rows, "want/l2": b'{"version":9}'})
    log = backed_up(mesh, n)
    assert "state-mismatch" in {r.reason for r in restored(mesh, log, Handed("us-west", (edited,))).refused}


def test_a_backup_that_is_no_chain_is_refused() -> None:
    mesh, _ = world()
    log = Regrown(mesh.pins, mesh.registry)
    log.take([mesh.mesh.head])
    log.take([mesh.history["acme"][0].head])
    with pytest.raises(Integrity):
        log.take([mesh.history["acme"][2].head])
    with pytest.raises(KeymeshError):
        log.take([resigned(mesh.history["acme"][1], mesh.key("stranger")).head])


def test_a_tenant_that_the_backup_never_knew_comes_back_from_its_founding_entry() -> None:
    mesh, _ = world()
    log = Regrown(mesh.pins, mesh.registry)
    log.take([mesh.mesh.head])
    restored(mesh, log, Handed("us-east", (mesh.states["acme"],)))
    assert row(log, f"restriction/{SERVICE}", RestrictionRow).state == "suspended"
    assert {row(log, f"key/{key}", KeyRow).state for key in ("l2/1", "l3/pay/1", "l3/pay/2")} == {"deactivated"}


# --- damaged and lying copies ----------------------------------------------------------------------------------------


def test_a_damaged_copy_of_a_restriction_does_not_count_as_seen() -> None:
    mesh, n = world()
    head, offer = mesh.states["acme"].head, offer_of(mesh)
    words = [word(mesh, "us-east", offer), word(mesh, "us-west", offer, head)]
    for handed in (
        Handed("eu-west", (), (damaged(head),)),
        Handed("eu-west", (replace(mesh.states["acme"], head=damaged(head)),)),
    ):
        log = backed_up(mesh, n)
        base = restored(mesh, log, handed, offer=offer, words=words)
        assert row(log, "restriction/tenant:acme", RestrictionRow).state == "suspended"
        assert {r.reason for r in base.refused} == {"bad-signature", "nobody-has-the-entry"}
    for order in (("eu-west", "us-west"), ("us-west", "eu-west")):
        copies = {"eu-west": damaged(head), "us-west": head}
        log = backed_up(mesh, n)
        before = entries_of(mesh.history["acme"][n:-1])
        restored(mesh, log, *(Handed(r, (), (*before, copies[r])) for r in order), offer=offer, words=words)
        assert row(log, f"restriction/{SERVICE}", RestrictionRow).state == "suspended"
        assert row(log, "restriction/tenant:acme", RestrictionRow) is None


def test_an_adoption_beside_the_chain_is_adopted_again() -> None:
    """The first restore's entry, of whose epoch nobody has the opening."""
    mesh, n = world()
    first = backed_up(mesh, n)
    restored(mesh, first, Handed("us-east", (mesh.states["acme"],)))
    adopted = first.chain("acme").entries[-1]
    assert adopted.entry.kind == "epoch.adopt"
    offer = offer_of(mesh, 3, command_id="third")
    words = [word(mesh, "us-east", offer), word(mesh, "us-west", offer, adopted)]
    log = backed_up(mesh, n)
    base = restored(mesh, log, Handed("us-west", (), (adopted,)), offer=offer, words=words)
    assert base.from_regions["us-west"] == {"entries": 0, "restrictions": 1, "keys": 1}
    assert row(log, f"restriction/{SERVICE}", RestrictionRow).command_id == mesh.states["acme"].head.entry.command_id
    assert row(log, "key/l3/pay/2", KeyRow).state == "deactivated"
    assert row(log, "restriction/tenant:acme", RestrictionRow) is None
    lost = backed_up(mesh, n)
    restored(mesh, lost, Handed("us-west", (), (damaged(adopted),)), offer=offer, words=words)
    assert row(lost, "restriction/tenant:acme", RestrictionRow).state == "suspended"


def test_an_adopted_revocation_beside_the_chain_is_never_undone() -> None:
    mesh, n = world(tail=False)
    first = backed_up(mesh, n)
    mesh.do("acme", "key.want", {"key": "l3/pay", "version": 2})
    revoked = mesh.plan("acme", "revoke", {"scope": "key:acme/pay@1", "abandon_children": True})
    restored(mesh, first, Handed("us-east", (revoked,)))
    log = backed_up(mesh, n)
    handed = Handed("us-west", (), (first.chain("acme").entries[-1],))
    restored(mesh, log, handed, offer=offer_of(mesh, 3, command_id="third"))
    assert row(log, "restriction/key:acme/pay@1", RestrictionRow).state == "revoked"
    assert row(log, "key/l3/pay/1", KeyRow).state == "compromised"


def test_damaged_copies_hide_no_intact_ones() -> None:
    mesh, n = world()
    whole = entries_of(mesh.history["acme"])
    tail = whole[n:]
    for bad in (tail[:1], tail[-1:], tail):
        log = backed_up(mesh, n)
        liar = Handed("eu-west", (), tuple(damaged(signed) for signed in bad))
        base = restored(mesh, log, liar, Handed("us-east", (), whole))
        assert tuple(log.chain("acme").entries[: len(whole)]) == whole, "with the intact signatures"
        assert {name: gain["entries"] for name, gain in base.from_regions.items()} == {
            "eu-west": 0,
            "us-east": len(tail),
        }
        assert {(r.region, r.reason) for r in base.refused} == {("eu-west", "bad-signature")}


@pytest.mark.parametrize("on_top", [1, 2])
def test_what_the_registry_did_not_sign_chooses_no_branch(on_top: int) -> None:
    mesh, n = world()
    whole = entries_of(mesh.history["acme"])
    side = mesh.plan("acme", "key.want", {"key": "l2", "version": 2}, held=mesh.history["acme"][n - 1])
    forged, top = [], side
    for i in range(on_top):
        made = mesh.plan("acme", "key.want", {"key": "l2", "version": 3 + i}, held=top)
        top = resigned(made, mesh.key("stranger"), epoch=9, seq=made.head.entry.seq + 100)
        forged.append(top.head)
    bare = parse_entry(msgspec.structs.replace(forged[-1].envelope, signatures=()))
    log = backed_up(mesh, n)
    handed = (Handed("eu-west", (), (side.head, *forged, bare)), Handed("us-east", (), whole))
    base = restored(mesh, log, *handed)
    assert tuple(log.chain("acme").entries[: len(whole)]) == whole
    assert base.from_regions["eu-west"]["entries"] == 0
    assert {(r.region, r.reason) for r in base.refused} == {("eu-west", "bad-signature")}


# --- a head stands for what came before it ---------------------------------------------------------------------------


def two_restrictions() -> tuple[Mesh, int, list[NamespaceState]]:
    """Backed up before either: the whole tenant is suspended, then one of its services."""
    mesh, n = world(tail=False)
    return mesh, n, [mesh.restrict("suspend", "tenant:acme"), mesh.restrict("suspend", SERVICE)]


def restored_with(mesh: Mesh, n: int, *handed: Handed) -> tuple[Regrown, Base]:
    """Each voter shows the newest restriction alone."""
    log, offer = backed_up(mesh, n), offer_of(mesh)
    words = [word(mesh, region, offer, mesh.states["acme"].head) for region in ("us-east", "us-west")]
    return log, restored(mesh, log, *handed, offer=offer, words=words)


def test_a_newer_entry_alone_does_not_stand_for_the_older_restriction() -> None:
    mesh, n, (_, newer) = two_restrictions()
    log, base = restored_with(mesh, n, Handed("us-east", (), (newer.head,)))
    assert row(log, f"restriction/{SERVICE}", RestrictionRow).state == "suspended"
    assert row(log, "restriction/tenant:acme", RestrictionRow).state == "suspended"
    assert "older-entries-missing" in [r.reason for r in base.refused]


def test_a_state_with_a_row_left_out_does_not_stand_for_it_either() -> None:
    mesh, n, (_, newer) = two_restrictions()
    cut = replace(newer, rows={k: v for k, v in newer.rows.items() if k != "restriction/tenant:acme"})
    log, base = restored_with(mesh, n, Handed("us-east", (cut,)))
    assert row(log, "restriction/tenant:acme", RestrictionRow).state == "suspended"
    assert {"state-mismatch", "older-entries-missing"} <= {r.reason for r in base.refused}


def test_an_older_entry_that_does_not_hold_is_as_good_as_missing() -> None:
    mesh, n, (older, newer) = two_restrictions()
    log, base = restored_with(mesh, n, Handed("us-east", (), (damaged(older.head), newer.head)))
    assert row(log, "restriction/tenant:acme", RestrictionRow).state == "suspended"
    assert {"bad-signature", "older-entries-missing"} <= {r.reason for r in base.refused}


def test_a_head_whose_every_predecessor_is_there_closes_nothing_more() -> None:
    """The tail rests on another head of the mesh, so it comes in beside the chain: by its entries, or by a state."""
    for with_state in (False, True):
        mesh, n = world(tail=False)
        mesh.do("mesh", "region.rotate-ivk", {"region": "us-east", "generation": 2})
        older = mesh.restrict("suspend", "service:acme/mail")
        newer = mesh.restrict("suspend", SERVICE)
        handed = (
            Handed("us-east", (older,), (newer.head,))
            if with_state
            else Handed("us-east", (), entries_of([older, newer]))
        )
        log, base = restored_with(mesh, n, handed)
        assert row(log, "restriction/tenant:acme", RestrictionRow) is None
        assert row(log, "restriction/service:acme/mail", RestrictionRow).state == "suspended"
        assert row(log, f"restriction/{SERVICE}", RestrictionRow).state == "suspended"
        assert "older-entries-missing" not in [r.reason for r in base.refused]


def test_a_predecessor_of_a_kind_that_nobody_knows_may_have_been_a_restriction() -> None:
    mesh, n, (older, newer) = two_restrictions()
    odd = resigned(older, mesh.registry, kind="freeze")
    after = resigned(newer, mesh.registry, prev=odd.head.hash)
    log, offer = backed_up(mesh, n), offer_of(mesh)
    words = [word(mesh, region, offer, after.head) for region in ("us-east", "us-west")]
    base = restored(mesh, log, Handed("us-east", (), (odd.head, after.head)), offer=offer, words=words)
    assert row(log, "restriction/tenant:acme", RestrictionRow).state == "suspended"
    assert "older-entries-missing" in [r.reason for r in base.refused]


# --- what voters are asked to remember of a restore ------------------------------------------------------------------


def test_an_adoption_that_restricts_nothing_is_none_for_the_voters() -> None:
    mesh, n = world(tail=False)
    log = backed_up(mesh, n)
    restored(mesh, log)
    (first,) = [s for s in log.commits[-1] if s.entry.namespace == "acme"]
    assert (first.entry.kind, first.entry.epoch) == ("epoch.adopt", 2), "the new epoch's word on what went before"
    assert not spaces.needs_commit(first)


def test_an_adoption_says_a_restriction_in_force_again_and_is_committed() -> None:
    """Else a holder whose lost tail had lifted it could stand by without the new epoch's state."""
    mesh, _ = world()
    log = backed_up(mesh, len(mesh.history["acme"]))
    before = row(log, f"restriction/{SERVICE}", RestrictionRow)
    base = restored(mesh, log)
    (first,) = [s for s in log.commits[-1] if s.entry.namespace == "acme"]
    assert list(first.entry.body.args["restrictions"]) == [SERVICE]
    assert spaces.needs_commit(first)
    assert row(log, f"restriction/{SERVICE}", RestrictionRow) == before
    assert base.from_regions == {}
