"""What the Registry asks of itself and takes from nodes: activation, retirement, submissions, local restrictions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from keymesh.control.messages import ForwardRestriction, PendingItem, Recorded, SubmitRewrap, SubmitVersion
from keymesh.control.rows import BindingRow, KeyRow, WrappingRow, get
from keymesh.model.machine import Received
from keymesh.registry import desired
from keymesh.registry.desired import RegionReport
from tests.unit.registry.harness import HEARTBEAT_MS, OFFICERS, Bench, node, with_tenant

KID = "ab" * 16
VERSION = SubmitVersion(
    namespace="acme",
    key="l2",
    version=1,
    kid=KID,
    digest="cd" * 32,
    parent="b1",
    holders=("us-east",),
    correlation_id="mint-1",
)
PENDING = PendingItem(namespace="acme", key="l2", version=1, revision=1)


def submitted(bench: Bench, region: str = "us-east", **changed: Any) -> None:
    bench.feed(Received(node(region), replace(VERSION, **changed)))
    bench.settle()


def key(bench: Bench, version: int = 1) -> KeyRow | None:
    return get(bench.state.spaces["acme"].rows, f"key/l2/{version}", KeyRow)


def state_of(bench: Bench, version: int = 1) -> str:
    row = key(bench, version)
    return "" if row is None else row.state


def made(**changed: Any) -> Bench:
    """Version 1 of acme's L2 exists and both regions know of it."""
    bench = with_tenant()
    submitted(bench, **changed)
    for region in ("us-east", "us-west"):
        bench.ack_tasks(region)
    return bench


# --- activation rule -------------------------------------------------------------------------------------------------


UP, DOWN, BEHIND = RegionReport(True, True), RegionReport(False, False), RegionReport(True, False)


@pytest.mark.parametrize(
    ("allowed", "holders", "reports", "age_ms", "expected"),
    [
        (("a", "b"), ("a", "b"), {"a": UP, "b": UP}, 0, True),
        (("a", "b"), ("a",), {"a": UP, "b": UP}, 0, True),  # b loaded it, so it holds it
        (("a", "b"), ("a", "b"), {"a": UP, "b": BEHIND}, 0, False),
        (("a", "b"), ("a", "b"), {"a": UP, "b": BEHIND}, 600_000, True),
        (("a", "b"), ("a", "b"), {"a": UP, "b": DOWN}, 0, True),  # unreachable regions are not waited for
        (("a", "b"), ("a",), {"a": UP, "b": DOWN}, 10**9, False),  # but two must hold it, however long it takes
        (("a", "b"), ("a", "x"), {"a": UP, "b": DOWN}, 10**9, False),  # strangers do not count
        (("a",), ("a",), {"a": UP}, 0, True),
        (("a",), (), {"a": DOWN}, 10**9, False),
    ],
)
def test_when_a_version_may_be_used(
    allowed: tuple[str, ...],
    holders: tuple[str, ...],
    reports: dict[str, RegionReport],
    age_ms: int,
    expected: bool,
) -> None:
    assert desired.may_activate(allowed, holders, reports, age_ms=age_ms) is expected


@given(
    st.sets(st.sampled_from("abcd"), min_size=1),
    st.sets(st.sampled_from("abcdx")),
    st.dictionaries(st.sampled_from("abcd"), st.builds(RegionReport, st.booleans(), st.booleans())),
    st.integers(0, 10**7),
)
def test_nothing_is_activated_that_fewer_than_two_allowed_regions_hold(
    allowed: set[str], holders: set[str], reports: dict[str, RegionReport], age_ms: int
) -> None:
    if desired.may_activate(allowed, holders, reports, age_ms=age_ms):
        have = holders | {r for r, said in reports.items() if said.has}
        assert len(have & allowed) >= min(2, len(allowed))


# --- activation in the machine ---------------------------------------------------------------------------------------


def test_a_version_is_activated_once_every_reachable_region_has_it() -> None:
    bench = made()
    assert state_of(bench) == "pre-active"
    bench.beat_in_step("us-east")
    bench.beat_in_step("us-west", pending=(PENDING,))
    assert state_of(bench) == "pre-active"
    bench.beat_in_step("us-west")
    assert state_of(bench) == "active"
    wrapping = get(bench.state.spaces["acme"].rows, "wrapping/l2", WrappingRow)
    assert wrapping is not None
    assert wrapping.version == 1


def test_a_heartbeat_that_does_not_show_the_entry_is_no_report() -> None:
    """It has nothing pending only because it does not know of the version yet."""
    bench = with_tenant()
    submitted(bench)
    stale = {"mesh": bench.leaf("mesh", 1), "acme": bench.leaf("acme", 2)}
    bench.beat("us-east", leaves=stale)
    bench.beat("us-west", leaves=stale)
    assert state_of(bench) == "pre-active"


def test_an_unreachable_region_is_not_waited_for_but_two_must_hold_the_blob() -> None:
    bench = made(holders=("us-east",))
    bench.advance(4 * HEARTBEAT_MS)
    bench.beat_in_step("us-east")
    assert state_of(bench) == "pre-active"
    bench.advance(11 * 60_000)
    bench.beat_in_step("us-east")
    assert state_of(bench) == "pre-active"
    other = made(holders=("us-east", "us-west"))
    other.advance(4 * HEARTBEAT_MS)
    other.beat_in_step("us-east")
    assert state_of(other) == "active"


def test_after_ten_minutes_a_region_that_does_not_load_is_not_waited_for() -> None:
    bench = made(holders=("us-east", "us-west"))
    for _ in range(59):
        bench.beat_in_step("us-east")
        bench.beat_in_step("us-west", pending=(PENDING,))
        bench.advance(HEARTBEAT_MS)
    assert state_of(bench) == "pre-active"
    bench.advance(HEARTBEAT_MS)
    assert state_of(bench) == "active"


def test_holders_are_remembered_across_a_restart() -> None:
    bench = made(holders=("us-east", "us-west"))
    bench.boot()
    bench.settle()
    bench.beat_in_step("us-east")
    assert state_of(bench) == "active"
    bench.beat("us-east")  # and forgotten when they are not needed any more
    assert not [n for n in bench.records if n.startswith("holders/")]


# --- submissions -----------------------------------------------------------------------------------------------------


def test_only_the_home_region_mints() -> None:
    bench = with_tenant()
    submitted(bench, "us-west")
    submitted(bench, "eu-west")
    assert key(bench) is None
    assert bench.note_names().count("submit-refused") == 2


def test_a_submission_repeated_each_heartbeat_is_one_version() -> None:
    bench = with_tenant()
    for _ in range(3):
        submitted(bench)
    row = key(bench)
    assert row is not None
    assert row.kid == KID
    assert [e.entry.kind for e in bench.state.spaces["acme"].entries].count("key.create") == 1
    assert not [d for d in bench.done if d.command_id.startswith("create:")]


def test_the_second_minter_loses() -> None:
    bench = with_tenant()
    submitted(bench)
    submitted(bench, kid="ee" * 16, digest="ff" * 32)
    row = key(bench)
    assert row is not None
    assert row.kid == KID
    assert "internal-refused" in bench.note_names()


def test_a_rewrap_is_committed_by_compare() -> None:
    bench = made()
    switch = {"binding_id": "b2", "provider": "customer-kms", "descriptor": {}}
    bench.ok(bench.command("l1.switch", switch, namespace="acme", command_id="l1-2", by=("signer-acme",)))
    word = SubmitRewrap(
        namespace="acme", key="l2", version=1, revision=2, digest="12" * 32, parent="b2", correlation_id="rw"
    )
    bench.feed(Received(node("us-west"), word))
    bench.settle()
    row = key(bench)
    assert row is not None
    assert row.revision == 1
    for _ in range(2):
        bench.feed(Received(node("us-east"), word))
        bench.settle()
    row = key(bench)
    assert row is not None
    assert (row.revision, row.parent) == (2, "b2")


def test_a_binding_is_retired_only_once_every_allowed_region_opened_l2_under_the_new_one() -> None:
    bench = made()
    bench.beat_in_step("us-east")
    bench.beat_in_step("us-west")

    def binding(name: str) -> str:
        row = get(bench.state.spaces["acme"].rows, f"binding/{name}", BindingRow)
        assert row is not None
        return row.state

    switch = {"binding_id": "b2", "provider": "customer-kms", "descriptor": {}}
    bench.ok(bench.command("l1.switch", switch, namespace="acme", command_id="l1-2", by=("signer-acme",)))
    bench.ack_tasks("us-east")
    bench.ack_tasks("us-west")
    bench.beat_in_step("us-east")
    bench.beat_in_step("us-west")
    assert (binding("b1"), binding("b2")) == ("retiring", "active")
    word = SubmitRewrap(
        namespace="acme", key="l2", version=1, revision=2, digest="12" * 32, parent="b2", correlation_id="rw"
    )
    bench.feed(Received(node("us-east"), word))
    bench.settle()
    bench.ack_tasks("us-east")
    bench.ack_tasks("us-west")
    bench.beat_in_step("us-east")
    bench.beat_in_step("us-west", pending=(replace(PENDING, revision=2),))
    assert binding("b1") == "retiring"
    bench.advance(4 * HEARTBEAT_MS)
    bench.beat_in_step("us-east")
    assert binding("b1") == "retiring"  # us-west is unreachable: here *every* region is waited for
    bench.beat_in_step("us-west")
    assert binding("b1") == "retired"


# --- forwarded restrictions ------------------------------------------------------------------------------------------


def forward(bench: Bench, region: str, **changed: Any) -> list[Recorded]:
    word = ForwardRestriction(
        **{"command_id": "f1", "scope": "tenant:acme", "action": "suspend", "actor": "ann", "correlation_id": "cf"}
        | changed
    )
    bench.sent = [(to, m) for to, m in bench.sent if not isinstance(m, Recorded)]
    bench.feed(Received(node(region), word))
    bench.settle()
    return [m for to, m in bench.sent if to == node(region) and isinstance(m, Recorded)]


def test_a_forwarded_restriction_becomes_an_entry_once() -> None:
    bench = with_tenant()
    for _ in range(3):
        (said,) = forward(bench, "us-west")
        assert (said.namespace, said.seq, said.refused) == ("acme", 3, "")
    assert bench.state.spaces["acme"].seq == 3


def test_two_regions_that_issue_the_same_command_hear_the_same() -> None:
    bench = with_tenant()
    assert forward(bench, "us-west") == forward(bench, "us-east")


def test_a_forwarded_repeat_of_a_command_given_here_is_that_command() -> None:
    bench = with_tenant()
    given_here = bench.command(
        "suspend", {"scope": "tenant:acme", "reason": "audit"}, namespace="acme", command_id="f1"
    )
    bench.ok(given_here)
    (said,) = forward(bench, "us-west")
    assert (said.seq, said.refused) == (3, "")


def test_a_tenant_that_the_region_may_not_hold_looks_absent() -> None:
    bench = with_tenant()
    (foreign,) = forward(bench, "eu-west")
    (absent,) = forward(bench, "eu-west", scope="tenant:nobody")
    assert replace(foreign, namespace="nobody") == absent
    assert (foreign.namespace, foreign.refused) == ("acme", "unknown")
    assert bench.state.spaces["acme"].seq == 2


def test_a_restriction_of_what_is_revoked_already_is_recorded() -> None:
    bench = with_tenant()
    bench.ok(bench.scope_command("revoke", "tenant:acme", "v1"))
    (said,) = forward(bench, "us-west")
    assert (said.seq, said.refused) == (3, "")


def test_wide_scopes_and_malformed_words_are_refused_for_good() -> None:
    bench = with_tenant()
    assert forward(bench, "us-west", scope="mesh")[0].refused == "below-threshold"
    assert forward(bench, "us-west", command_id="f2", action="resume")[0].refused == "bad-field"
    assert forward(bench, "us-west", command_id="f3", scope="all")[0].refused == "bad-field"
    approved = bench.scope_command("suspend", "region:us-west", "f4", by=OFFICERS[:2])
    (said,) = forward(bench, "us-west", command_id="f4", scope="region:us-west", authority=approved.authority)
    assert said.refused == ""


OPTIONS = {"reason": "stolen", "abandon_children": True}


def approved(bench: Bench, by: str, **changed: Any) -> dict[str, Any]:
    """``authority`` and ``options`` of a revocation of acme that ``by`` signed."""
    fields: dict[str, Any] = {"namespace": "acme", "command_id": "f1", "by": (by,), **changed}
    args = {"scope": "tenant:acme", **OPTIONS}
    return {"authority": bench.command("revoke", fields.pop("args", args), **fields).authority, "options": OPTIONS}


def test_a_forwarded_revocation_that_the_signers_signed_revokes() -> None:
    bench = with_tenant()
    for _ in range(2):
        (said,) = forward(bench, "us-west", action="revoke", **approved(bench, "signer-acme"))
        assert (said.seq, said.refused) == (3, "")
    entry = bench.state.spaces["acme"].entries[-1].entry
    assert (entry.kind, entry.body.args) == ("revoke", {"scope": "tenant:acme", **OPTIONS})
    assert len(entry.body.authority) == 1
    bench.advance(1_000)  # whatever expired since, its entry is there
    (said,) = forward(bench, "us-west", action="revoke")
    assert (said.seq, said.refused) == (3, "")


@pytest.mark.parametrize(
    ("by", "changed"),
    [
        ("", {}),
        ("registry", {}),
        ("signer-globex", {}),
        ("officer-1", {}),
        ("signer-acme", {"not_after": 1}),
        ("signer-acme", {"command_id": "f2"}),
        ("signer-acme", {"args": {"scope": "tenant:acme"}}),
        ("signer-acme", {"args": {"scope": "service:acme/pay", **OPTIONS}}),
    ],
)
def test_on_a_nodes_word_alone_a_revocation_suspends(by: str, changed: dict[str, Any]) -> None:
    """It is reversible, and people are told."""
    bench = with_tenant()
    word = approved(bench, by, **changed) if by else {}
    for _ in range(3):
        (said,) = forward(bench, "us-west", action="revoke", **word)
        assert (said.seq, said.refused) == (3, "")
    entry = bench.state.spaces["acme"].entries[-1].entry
    assert (entry.kind, entry.body.authority) == ("suspend", ())
    assert bench.note_names().count("forwarded-revoke-suspends") == 1
    bench.ok(bench.scope_command("resume", "tenant:acme", "r1"))


def test_an_approval_that_counts_for_nothing_hinders_no_suspension() -> None:
    bench = with_tenant()
    for n, authority in enumerate(
        [({},), ({"payload": "?"},) * 20, approved(bench, "signer-acme", not_after=1)["authority"]]
    ):
        (said,) = forward(bench, "us-west", command_id=f"f{n}", authority=authority)
        assert said.refused == ""


def test_a_signed_revocation_under_the_id_of_a_suspension_is_refused() -> None:
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "tenant:acme", "f1"))
    (said,) = forward(bench, "us-west", action="revoke", **approved(bench, "signer-acme"))
    assert said.refused == "conflict"


def test_options_never_change_the_scope() -> None:
    bench = with_tenant()
    bench.tenant("globex")
    forward(bench, "us-west", options={"scope": "tenant:globex"})
    assert bench.state.spaces["acme"].entries[-1].entry.body.args["scope"] == "tenant:acme"
    assert forward(bench, "us-west", command_id="f9", options={"rows": {}})[0].refused == "bad-field"


def test_a_node_hears_nothing_while_the_outcome_is_open() -> None:
    bench = with_tenant()
    bench.auto_append = False
    assert forward(bench, "us-west") == []
    assert forward(bench, "us-west") == []
    bench.auto_append = True
    bench.settle()
    assert len([m for _, m in bench.sent if isinstance(m, Recorded)]) == 1
