"""A tenant's destruction at the Registry: the wait, the purge, the receipts, and the certificate over all of them."""

from __future__ import annotations

from typing import Any

import pytest

from keymesh.control import evidence
from keymesh.control.evidence import Certificate, verify_certificate
from keymesh.control.messages import ForwardRestriction, Recorded
from keymesh.control.purge_messages import PurgeNoted, PurgeReceiptMessage
from keymesh.control.rows import RestrictionRow, RootRow, get
from keymesh.model.errors import Refused
from keymesh.model.ids import Digest
from keymesh.model.machine import ClockWentAhead, Received
from keymesh.model.time import NEVER, Instant
from keymesh.registry import commands, killswitch, waits
from keymesh.registry import destruction as registry_destruction
from tests.unit.registry.harness import ROOT, Bench, keys_of, mesh_up, node, purged, with_tenant

SCOPE = "destruction:acme"
WAIT_MS = 10_000
ROOT_ROW = RootRow(version=1, keys=keys_of(*ROOT), threshold=2)


def destroy(bench: Bench, command_id: str = "d1", *, wait_ms: int = WAIT_MS, tenant: str = "acme") -> Any:
    args = {"scope": f"destruction:{tenant}", "wait_ms": wait_ms}
    return bench.command("tenant.destroy", args, namespace=tenant, command_id=command_id)


def cancel(bench: Bench, command_id: str = "c1", **args: Any) -> Any:
    return bench.command("tenant.cancel-destroy", {"scope": SCOPE, **args}, namespace="acme", command_id=command_id)


def refusal(bench: Bench, command: Any) -> str:
    with pytest.raises(Refused) as caught:
        bench.ok(command)
    return caught.value.code


def with_key() -> Bench:
    """A tenant with one key version in the log."""
    bench = with_tenant()
    args = {"key": "l2", "version": 1, "kid": "1" * 32, "digest": "2" * 64, "parent": "b1"}
    bench.ok(bench.command("key.create", args, namespace="acme", command_id="k1"))
    return bench


def row(bench: Bench) -> RestrictionRow:
    found = get(bench.state.spaces["acme"].rows, f"restriction/{SCOPE}", RestrictionRow)
    assert found is not None
    return found


def shown(bench: Bench) -> registry_destruction.Shown:
    found = registry_destruction.show(bench.state, "acme")
    assert found is not None
    return found


def noted(bench: Bench, region: str) -> int:
    return len([m for to, m in bench.sent if to == node(region) and isinstance(m, PurgeNoted)])


# --- the wait --------------------------------------------------------------------------------------------------------


def test_a_destruction_waits_and_then_the_registry_purges() -> None:
    bench = with_key()
    bench.ok(destroy(bench))
    assert (row(bench).state, shown(bench).state) == ("suspended", "waiting")
    assert shown(bench).due_at == bench.now + WAIT_MS
    bench.advance(WAIT_MS - 1)
    assert row(bench).state == "suspended"
    bench.advance(1)
    assert row(bench).state == "revoked"
    head = bench.state.spaces["acme"].head
    assert head is not None and (head.entry.kind, head.entry.command_id) == ("tenant.purge", "purge:d1")
    assert head.entry.actor == "registry"
    keys = [r for n, r in bench.state.spaces["acme"].rows.items() if n.startswith("key/")]
    assert keys and all(b'"state":"destroyed"' in raw for raw in keys)


def test_from_its_commit_on_it_is_a_restriction_in_lane_0() -> None:
    bench = with_key()
    bench.take_tasks("us-west")
    bench.ok(destroy(bench))
    assert [(t.lane.value, t.state.head.entry.kind) for t in bench.take_tasks("us-west")] == [(0, "tenant.destroy")]
    assert not bench.take_tasks("eu-central")


def test_it_can_be_cancelled_while_it_waits_and_others_restrictions_stay() -> None:
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    bench.ok(destroy(bench))
    bench.ok(cancel(bench))
    assert (row(bench).state, shown(bench).state) == ("none", "cancelled")
    held = get(bench.state.spaces["acme"].rows, "restriction/tenant:acme", RestrictionRow)
    assert held is not None and held.state == "suspended"
    bench.advance(WAIT_MS * 3)
    assert row(bench).state == "none"
    assert refusal(bench, cancel(bench, "c2")) == "not-destroying"
    bench.ok(destroy(bench, "d2"))
    assert row(bench).state == "suspended"


def test_a_resume_ends_no_destruction_and_nobody_suspends_one() -> None:
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    bench.ok(destroy(bench))
    bench.ok(bench.scope_command("resume", "tenant:acme", "r1"))
    assert row(bench).state == "suspended"
    for kind in ("suspend", "revoke", "resume"):
        command = bench.command(kind, {"scope": SCOPE}, namespace="acme", command_id=f"x-{kind}")
        assert refusal(bench, command) == "bad-field"


def test_a_cancellation_counts_only_once_a_majority_of_voters_has_it() -> None:
    bench = with_tenant()
    bench.ok(destroy(bench))
    bench.ack_tasks("us-west")
    bench.auto_vote = False
    bench.submit(cancel(bench))
    assert row(bench).state == "none"
    assert not [t for t in bench.take_tasks("us-west") if t.state.head.entry.kind == "tenant.cancel-destroy"]
    bench.auto_vote = True
    bench.settle()
    assert [t.state.head.entry.kind for t in bench.take_tasks("us-west")] == ["tenant.cancel-destroy"]


def test_too_late_is_too_late() -> None:
    bench = with_tenant()
    bench.ok(destroy(bench))
    bench.auto_append = False
    bench.advance(WAIT_MS + 10)  # the purge is on its way
    bench.submit(cancel(bench))
    bench.auto_append = True
    bench.settle()
    assert bench.done[-1].error is not None and bench.done[-1].error.code == "too-late"  # type: ignore[attr-defined]
    assert row(bench).state == "revoked"
    assert refusal(bench, cancel(bench, "c2")) == "destroyed"
    assert refusal(bench, destroy(bench, "d2")) == "destroyed"


def test_a_second_destruction_changes_nothing_and_the_same_command_is_answered_again() -> None:
    bench = with_tenant()
    first = bench.ok(destroy(bench))
    assert refusal(bench, destroy(bench, "d2", wait_ms=1_000)) == "already"
    again = bench.ok(destroy(bench))
    assert (again.seq, again.duplicate) == (first.seq, True)
    assert refusal(bench, destroy(bench, "d1", wait_ms=1_000)) == "conflict"


@pytest.mark.parametrize("wait_ms", [-1, 0, 999, 90 * 86_400_000 + 1])
def test_the_wait_has_limits(wait_ms: int) -> None:
    assert refusal(with_tenant(), destroy(with_tenant(), wait_ms=wait_ms)) == "bad-field"


def test_a_name_that_was_destroyed_is_never_given_again() -> None:
    bench = purged()
    made = bench.state.spaces["acme"].entries[0].entry
    again = bench.command("tenant.create", made.body.args, namespace="acme", command_id="again", by=("signer-acme",))
    assert refusal(bench, again) == "conflict"


def test_nothing_new_is_made_for_a_destroyed_tenant() -> None:
    bench = purged()
    with pytest.raises(Refused) as caught:
        bench.service("acme", "mail")
    assert caught.value.code == "revoked"


def test_a_clock_that_jumps_ahead_lets_nobody_wait_less() -> None:
    bench = with_tenant()
    bench.ok(destroy(bench))
    bench.advance(1_000)
    bench.now = Instant(bench.now + 365 * 86_400_000)
    bench.feed(ClockWentAhead(365 * 86_400_000))
    bench.advance(WAIT_MS - 1_001)
    assert row(bench).state == "suspended"
    bench.advance(1)
    assert row(bench).state == "revoked"


def test_time_during_which_no_registry_ran_does_not_count() -> None:
    """Of what a Registry saw pass, all that it had recorded does."""
    bench = with_tenant()
    bench.ok(destroy(bench))
    bench.advance(WAIT_MS // 2)
    bench.now = Instant(bench.now + 365 * 86_400_000)  # away, or under a clock that somebody set
    bench.boot()
    bench.settle()
    left = waits.due_at(bench.state.waits["acme"]) - bench.now
    assert WAIT_MS // 2 <= left <= WAIT_MS // 2 + waits.save_every_ms(WAIT_MS)
    bench.advance(left - 1)
    assert row(bench).state == "suspended"
    bench.advance(1)
    assert row(bench).state == "revoked"


def test_a_record_of_another_destruction_is_no_head_start() -> None:
    bench = with_tenant()
    bench.ok(destroy(bench))
    bench.advance(WAIT_MS - 1_000)
    bench.ok(cancel(bench))
    kept = dict(bench.records)
    bench.ok(destroy(bench, "d2"))
    bench.records.update({n: r for n, r in kept.items() if n.startswith("wait/")})
    bench.boot()
    bench.settle()
    assert waits.due_at(bench.state.waits["acme"]) == bench.now + WAIT_MS


def test_a_purge_that_the_log_did_not_take_is_asked_for_again() -> None:
    bench = with_tenant()
    bench.ok(destroy(bench))
    bench.auto_append = False
    bench.advance(WAIT_MS + 10)
    bench.boot()
    bench.auto_append = True
    bench.settle()
    bench.advance(WAIT_MS + 10)
    kinds = [s.entry.kind for s in bench.state.spaces["acme"].entries]
    assert kinds.count("tenant.purge") == 1


# --- receipts --------------------------------------------------------------------------------------------------------


def test_the_certificate_waits_for_every_holders_receipt() -> None:
    bench = purged()
    kill = bench.state.kills["acme", "purge:d1"]
    assert (kill.record.action, kill.record.status) == ("destroy", killswitch.REVOKING)
    assert kill.record.holders == (node("us-east"), node("us-west"))
    bench.ack_tasks("us-east")
    bench.ack_tasks("us-west")  # applied, but that is no receipt
    bench.receipt("us-east")
    assert noted(bench, "us-east") == 1
    bench.advance(1_000_000)  # and no bound stands in for one
    assert not bench.certificates and shown(bench).state == "purging"
    still = killswitch.open_holders(bench.state, kill, bench.now)
    assert [(h.node, h.evidence, at) for h, at in still] == [(node("us-west"), "purged", NEVER)]
    bench.receipt("us-west")
    assert shown(bench).state == "destroyed"
    made = bench.certificates[0].certificate
    assert isinstance(made, Certificate)
    verified = verify_certificate(evidence.encode_certificate(made), root=ROOT_ROW, mesh="example")
    summary = verified.summary()
    assert summary["purged"] == [node("us-east"), node("us-west")]
    assert [k["kid"] for k in summary["destroyed"]] == ["1" * 32, "2" * 32]
    assert (verified.by_ack, verified.by_bound) == ((), ())
    bench.receipt("us-west")
    assert noted(bench, "us-west") == 2  # repeated, because the first word was lost


def test_an_edge_lease_that_is_open_is_waited_for() -> None:
    bench = purged()
    bench.receipt("us-east")
    bench.receipt("us-west", edge_leases_end_in_ms=5_000, open_edge_leases=1)
    bench.advance(5_000)
    assert not bench.certificates
    bench.advance(10)
    assert len(bench.certificates) == 1


@pytest.mark.parametrize(
    "lie",
    [
        {"seq": 1},
        {"seq": 99},
        {"epoch": 0},
        {"entry_hash": Digest("0" * 64)},
        {"admitted_seq": 0},
        {"admitted_seq": 2},
        {"keys": ()},
        {"mesh": "other"},
        {"region": "us-east"},
        {"node": "n2"},
        {"namespace": "globex"},
        {"open_edge_leases": -1},
        {"edge_leases_end_in_ms": -1},
    ],
    ids=str,
)
def test_a_receipt_for_anything_else_counts_for_nothing(lie: dict[str, Any]) -> None:
    """Of an earlier purge or admission, of another node or tenant, or with a key left out."""
    bench = purged()
    bench.receipt("us-east")
    bench.receipt("us-west", **lie)
    assert not bench.certificates
    assert not noted(bench, "us-west")
    assert "receipt-refused" in bench.note_names()


def test_a_receipt_that_another_signed_counts_for_nothing() -> None:
    bench = purged()
    bench.receipt("us-east")
    bench.receipt("us-west", by="us-east")
    bench.receipt("eu-central")  # may not hold the tenant
    bench.feed(Received(node("nowhere"), PurgeReceiptMessage(receipt=None)))
    bench.feed(Received(node("us-west"), PurgeReceiptMessage(receipt={"payload": 1})))
    bench.settle()
    assert not bench.certificates and not noted(bench, "us-west") and not noted(bench, "eu-central")


def test_a_receipt_before_the_purge_counts_for_nothing() -> None:
    bench = with_key()
    bench.ok(destroy(bench))
    bench.receipt("us-east", keys=())
    bench.receipt("us-east")
    assert not noted(bench, "us-east")
    bench.advance(WAIT_MS + 10)
    assert not bench.state.kills["acme", "purge:d1"].evidence


def test_receipts_survive_the_registry_and_unrecorded_ones_are_not_noted() -> None:
    bench = purged()
    bench.persists = False
    bench.receipt("us-west")
    assert not noted(bench, "us-west")
    bench.persists = True
    bench.receipt("us-west")
    assert noted(bench, "us-west") == 1
    bench.boot()
    bench.settle()
    assert set(bench.state.kills["acme", "purge:d1"].evidence) == {node("us-west")}
    bench.receipt("us-east")
    bench.advance(10)
    assert len(bench.certificates) == 1


def test_a_later_entry_of_the_tenant_changes_no_receipt() -> None:
    bench = purged()
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    bench.receipt("us-east", entry_hash=None)
    bench.receipt("us-west", entry_hash=None)
    bench.advance(10)
    assert [c.certificate is not None for c in bench.certificates] == [True]


def test_the_certificate_is_found_by_either_commands_id() -> None:
    bench = purged()
    for command_id in ("d1", "purge:d1"):
        found = killswitch.find(bench.state, command_id, namespace=None, may_see=lambda _: True)
        assert found == ("acme", "purge:d1")
    with pytest.raises(Refused):
        killswitch.find(bench.state, "d1", namespace=None, may_see=lambda _: False)


def test_a_namespace_that_is_not_there_and_a_scope_of_another() -> None:
    bench = mesh_up()
    assert refusal(bench, destroy(bench, tenant="nobody")) == "unknown"
    bench.tenant("acme")
    bench.tenant("globex")
    wrong = bench.command(
        "tenant.destroy", {"scope": "destruction:globex", "wait_ms": WAIT_MS}, namespace="acme", command_id="d9"
    )
    assert refusal(bench, wrong) == "wrong-namespace"
    plain = bench.command(
        "tenant.destroy", {"scope": "tenant:acme", "wait_ms": WAIT_MS}, namespace="acme", command_id="d8"
    )
    assert refusal(bench, plain) == "wrong-namespace"


# --- after a restore -------------------------------------------------------------------------------------------------


def forward(bench: Bench, command_id: str, action: str = "suspend", region: str = "us-east") -> Recorded:
    """A node that holds a destruction which the log lost says so; what it is answered."""
    bench.sent.clear()
    word = ForwardRestriction(command_id=command_id, scope=SCOPE, action=action, actor="node", correlation_id="c")
    bench.feed(Received(node(region), word))
    bench.settle()
    (answer,) = [m for to, m in bench.sent if to == node(region) and isinstance(m, Recorded)]
    return answer


@pytest.mark.parametrize("action", ["suspend", "revoke"])
def test_a_destruction_that_a_restore_lost_is_in_force_again_and_waits_for_somebody(action: str) -> None:
    """On a node's word alone nothing is shredded: it can be cancelled, and asked for anew."""
    bench = with_key()
    answer = forward(bench, "d1", action)
    assert answer.refused == "" and answer.seq == row(bench).seq
    assert (row(bench).state, shown(bench).state, shown(bench).due_at) == ("suspended", "waiting", None)
    assert forward(bench, "d1", action).seq == answer.seq
    bench.advance(WAIT_MS * 10)
    assert row(bench).state == "suspended"
    assert refusal(bench, destroy(bench, "d2")) == "already"
    bench.ok(cancel(bench))
    bench.ok(destroy(bench, "d2"))
    bench.advance(WAIT_MS + 10)
    assert row(bench).state == "revoked"


def test_a_destruction_that_the_log_has_is_no_other_one() -> None:
    bench = with_key()
    done = bench.ok(destroy(bench))
    assert forward(bench, "d1").seq == done.seq
    bench.ok(cancel(bench))
    assert forward(bench, "d1").seq == done.seq
    assert row(bench).state == "none"


def test_a_purge_that_a_tail_brought_back_is_wiped_again_and_no_key_stays_live() -> None:
    bench = with_key()
    adopted = {"restrictions": {SCOPE: {"state": "revoked", "command_id": "purge:d1"}}, "keys": {}}
    command = bench.command("epoch.adopt", adopted, namespace="acme", command_id="a1")
    out: list[Any] = []
    commands.submit(bench.state, bench.now, command, out, internal=True)
    bench.appends += out
    bench.settle()
    assert (row(bench).state, shown(bench).state) == ("revoked", "purging")
    keys = [r for n, r in bench.state.spaces["acme"].rows.items() if n.startswith("key/")]
    assert keys and all(b'"state":"destroyed"' in raw for raw in keys)
    bench.receipt("us-east")
    assert noted(bench, "us-east") == 1 and not bench.certificates
