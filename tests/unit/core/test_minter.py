"""Minting: one Core makes a version, the log decides whose it is, a loser wipes."""

from __future__ import annotations

import msgspec
import pytest

from keymesh.control.messages import SubmitRewrap, SubmitVersion
from keymesh.control.rows import KeyRow
from keymesh.control.state import NamespaceState
from keymesh.core import minter
from keymesh.core.events import (
    IvkRotated,
    KeyMinted,
    KeyRewrapped,
    MintFailed,
    MintKey,
    RewrapFailed,
    RewrapKey,
    RotateIvk,
    WipeMinted,
)
from keymesh.core.views import TenantView
from keymesh.model import strict_json
from keymesh.model.states import Mode
from tests.unit.control.world import Mesh, digest
from tests.unit.core.bench import L2_KID, TENANT, TTL_MS, Bench, want

PAY = "l3/pay"


def minted(kid: str = "ab" * 16, *, key: str = PAY, version: int = 2, parent: str = L2_KID) -> KeyMinted:
    return KeyMinted(TENANT, key, version, kid, digest(kid), parent, ("us-east", "us-west"))


def created(mesh: Mesh, event: KeyMinted) -> NamespaceState:
    """The log takes ``event``'s version."""
    made = {
        "key": event.key,
        "version": event.version,
        "kid": event.kid,
        "digest": event.digest,
        "parent": event.parent,
    }
    return mesh.do(TENANT, "key.create", made)


def test_what_is_missing_comes_one_at_a_time_l2_first() -> None:
    row = KeyRow(kid="k", revision=1, state="active", digest="d", parent="b")
    view = TenantView(wants={"l3/a": 2, "l2": 3, "l3/b": 1}, keys={("l2", 1): row, ("l3/a", 1): row, ("l3/b", 1): row})
    assert minter.missing_versions(view) == [("l2", 2), ("l3/a", 2)]


def test_wanted_is_minted_once_submitted_and_submitted_again_until_it_exists() -> None:
    bench = Bench().up()
    bench.give(want(bench.mesh, PAY, 2))
    corr = bench.mesh.states[TENANT].head.entry.correlation_id
    assert bench.effects(MintKey) == [MintKey(TENANT, PAY, 2, L2_KID, corr)]
    for _ in range(3):
        bench.advance(1_000)
        bench.renew()
    assert len(bench.effects(MintKey)) == 1
    bench.take()
    event = minted()
    bench.feed(event)
    submit = bench.sent(SubmitVersion)[0]
    assert (submit.kid, submit.digest, submit.parent, submit.holders) == (
        event.kid,
        event.digest,
        L2_KID,
        ("us-east", "us-west"),
    )
    bench.advance(2_000)
    assert len(bench.sent(SubmitVersion)) >= 3
    bench.give(created(bench.mesh, event))
    bench.take()
    bench.advance(3_000)
    assert bench.sent(SubmitVersion) == []
    assert bench.effects(WipeMinted) == []
    assert bench.effects(MintKey) == []


def test_the_loser_of_the_race_wipes() -> None:
    bench = Bench().up()
    bench.give(want(bench.mesh, PAY, 2))
    mine = minted()
    bench.feed(mine)
    bench.give(created(bench.mesh, minted("cd" * 16)))
    assert bench.effects(WipeMinted) == [WipeMinted(TENANT, mine.kid)]
    bench.take()
    bench.advance(3_000)
    assert bench.sent(SubmitVersion) == []


def test_one_that_was_minted_too_late_is_wiped() -> None:
    bench = Bench().up()
    bench.give(want(bench.mesh, PAY, 2))
    bench.give(created(bench.mesh, minted("cd" * 16)))
    bench.feed(minted())
    assert bench.effects(WipeMinted) == [WipeMinted(TENANT, "ab" * 16)]
    assert bench.sent(SubmitVersion) == []


def test_a_second_material_for_one_version_is_wiped_the_first_stays() -> None:
    bench = Bench().up()
    bench.give(want(bench.mesh, PAY, 2))
    bench.feed(minted())
    bench.feed(minted())
    bench.feed(minted("cd" * 16))
    assert bench.effects(WipeMinted) == [WipeMinted(TENANT, "cd" * 16)]
    assert {s.kid for s in bench.sent(SubmitVersion)} == {"ab" * 16}


def test_a_minted_version_that_became_the_row_is_not_wiped_by_its_echo() -> None:
    bench = Bench().up()
    bench.give(want(bench.mesh, PAY, 2))
    event = minted()
    bench.feed(event)
    bench.give(created(bench.mesh, event))
    bench.feed(event)
    assert bench.effects(WipeMinted) == []


@pytest.mark.parametrize("why", ["elsewhere", "no minter", "cut off", "suspended", "closed", "no parent"])
def test_when_nothing_is_minted(why: str) -> None:
    mesh = Mesh()
    mesh.furnished(TENANT)
    bench = Bench(mesh, region="us-west" if why == "elsewhere" else "us-east", minter=why != "no minter").up()
    if why == "cut off":
        bench.advance(4_000)
        assert bench.mode() is Mode.AUTONOMOUS
    if why == "suspended":
        bench.give(mesh.restrict("suspend", f"service:{TENANT}/pay"))
    if why == "closed":
        bench.advance(TTL_MS)
    if why == "no parent":
        bench.holding().loaded.clear()
        bench.loads = False
    bench.give(want(mesh, PAY, 2))
    assert bench.effects(MintKey) == []


def test_grants_go_on_when_the_registry_is_back() -> None:
    bench = Bench().up()
    bench.advance(4_000)
    bench.give(want(bench.mesh, PAY, 2))
    assert bench.effects(MintKey) == []
    bench.renew()
    assert len(bench.effects(MintKey)) == 1


def test_l2_is_minted_under_the_active_binding() -> None:
    mesh = Mesh()
    mesh.tenant(TENANT)
    bench = Bench(mesh)
    bench.give_all()
    bench.renew()
    mint = bench.effects(MintKey)[0]
    assert (mint.key, mint.version, mint.parent) == ("l2", 1, "b1")  # before there is anything that L1 could open


def test_a_version_whose_root_key_was_retired_before_it_had_a_row_is_made_anew() -> None:
    """Seed 1876: the log would refuse it for ever, and nothing else was minted in its place."""
    bench = Bench().up()
    bench.give(want(bench.mesh, "l2", 2))
    first = minted("cd" * 16, key="l2", parent="b1")
    bench.feed(first)
    bench.give(bench.mesh.do(TENANT, "l1.switch", {"binding_id": "b2", "provider": "dev", "descriptor": {}}))
    assert bench.effects(WipeMinted) == [], "a binding that is being retired still takes it"
    l2 = bench.mesh.states[TENANT].rows["key/l2/1"]
    row = strict_json.decode(l2, KeyRow, max_bytes=4_096)
    moved = {"key": "l2", "version": 1, "revision": row.revision + 1, "digest": digest("moved"), "parent": "b2"}
    bench.give(bench.mesh.do(TENANT, "key.rewrapped", moved))
    bench.take()
    bench.give(bench.mesh.do(TENANT, "l1.retire", {"binding_id": "b1"}))
    assert bench.effects(WipeMinted) == [WipeMinted(TENANT, first.kid)]
    assert [(e.key, e.version, e.parent) for e in bench.effects(MintKey)] == [("l2", 2, "b2")]
    bench.take()
    bench.advance(3_000)
    assert bench.sent(SubmitVersion) == []


def test_failures_are_tried_again_after_a_while() -> None:
    bench = Bench().up()
    bench.give(want(bench.mesh, PAY, 2))
    bench.take()
    bench.feed(MintFailed(TENANT, PAY, 2, "storage"))
    assert bench.effects(MintKey) == []
    assert "mint-failed" in bench.notes()
    for _ in range(35):
        bench.advance(1_000)
        bench.renew()
    assert len(bench.effects(MintKey)) == 1


def test_a_crash_before_the_submission_mints_anew() -> None:
    bench = Bench().up()
    bench.give(want(bench.mesh, PAY, 2))
    bench.reboot()
    bench.take()
    bench.renew()
    assert len(bench.effects(MintKey)) == 1


# --- re-wrapping -----------------------------------------------------------------------------------------------------


def switched() -> Bench:
    bench = Bench().up()
    args = {"binding_id": "b2", "provider": "dev", "descriptor": {"url": "https://other"}}
    bench.give(bench.mesh.do(TENANT, "l1.switch", args))
    return bench


def test_a_switched_l1_is_rewrapped_and_submitted_until_the_row_says_so() -> None:
    bench = switched()
    work = bench.effects(RewrapKey)
    assert [(w.ref.kid, w.revision, w.parent) for w in work] == [(L2_KID, 2, "b2")]
    event = KeyRewrapped(TENANT, "l2", 1, 2, digest("new"), "b2")
    bench.feed(event)
    bench.advance(2_000)
    assert len(bench.sent(SubmitRewrap)) >= 2
    done = {"key": "l2", "version": 1, "revision": 2, "digest": event.digest, "parent": "b2"}
    bench.give(bench.mesh.do(TENANT, "key.rewrapped", done))
    bench.take()
    bench.renew()
    bench.advance(2_000)
    assert bench.sent(SubmitRewrap) == []
    assert bench.effects(RewrapKey) == []
    loaded = bench.holding().loaded["l2", 1]
    assert (loaded.revision, loaded.parent) == (2, "b2")


def test_a_failed_rewrap_is_tried_again() -> None:
    bench = switched()
    bench.take()
    bench.feed(RewrapFailed(TENANT, "l2", 1, 2, "unreachable"))
    for _ in range(35):
        bench.advance(1_000)
        bench.renew()
    assert len(bench.effects(RewrapKey)) == 1


def test_a_late_rewrap_is_not_submitted() -> None:
    bench = switched()
    done = {"key": "l2", "version": 1, "revision": 2, "digest": digest("x"), "parent": "b2"}
    bench.give(bench.mesh.do(TENANT, "key.rewrapped", done))
    bench.feed(KeyRewrapped(TENANT, "l2", 1, 2, digest("y"), "b2"))
    assert bench.sent(SubmitRewrap) == []


# --- IVK -------------------------------------------------------------------------------------------------------------


def test_the_ivk_follows_the_mesh() -> None:
    bench = Bench().up()
    newer = bench.mesh.do("mesh", "region.rotate-ivk", {"region": "us-east", "generation": 2})
    bench.give(newer)
    assert bench.effects(RotateIvk) == [RotateIvk(2)]
    bench.renew()
    assert len(bench.effects(RotateIvk)) == 1
    bench.feed(IvkRotated(2))
    assert bench.beat().ivk_generation == 2
    bench.feed(IvkRotated(1))
    assert bench.beat().ivk_generation == 2


def test_another_regions_ivk_is_not_ours() -> None:
    bench = Bench().up()
    bench.give(bench.mesh.do("mesh", "region.rotate-ivk", {"region": "us-west", "generation": 2}))
    assert bench.effects(RotateIvk) == []


def test_a_rotation_without_an_outcome_is_asked_for_again() -> None:
    bench = Bench().up()
    bench.give(bench.mesh.do("mesh", "region.rotate-ivk", {"region": "us-east", "generation": 2}))
    bench.advance(65_000)
    assert len(bench.effects(RotateIvk)) == 2
    assert msgspec.structs.asdict(bench.beat())["ivk_generation"] == 1
