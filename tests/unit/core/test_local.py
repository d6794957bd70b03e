"""Local suspensions: in force at once in any mode, durable, and ended only by their own entry or a later one."""

from __future__ import annotations

from typing import Any

import pytest

from keymesh.control import trust
from keymesh.control.entry import Leaf
from keymesh.control.messages import ForwardRestriction, Recorded
from keymesh.control.signing import to_plain
from keymesh.control.state import NamespaceState
from keymesh.core import local
from keymesh.core.context import covered_kinds
from keymesh.core.events import LocalRestrict, ReplyLocal
from keymesh.core.records import local_name
from keymesh.model.ids import ZERO_DIGEST
from keymesh.model.machine import Address
from keymesh.model.scope import parse_scope
from keymesh.model.states import Mode
from keymesh.model.time import Instant
from tests.unit.control.world import FAR
from tests.unit.core.bench import SERVICE, TENANT, TTL_MS, Bench, Edge, furnished

SCOPE = f"tenant:{TENANT}"
KEY = (TENANT, "cmd")


OPTIONS = {"reason": "stolen", "abandon_children": True}


def restrict(bench: Bench, command_id: str = "cmd", scope: str = SCOPE, action: str = "suspend", **more: Any) -> None:
    bench.feed(
        LocalRestrict(
            command_id=command_id, scope=scope, action=action, actor="ann", correlation_id=f"c-{command_id}", **more
        )
    )


def signed_revoke(bench: Bench, by: str, not_after: int = FAR, scope: str = SCOPE, **changed: Any) -> dict[str, Any]:
    """``authority`` and ``options`` of a revocation that ``by`` (of the mesh's keys) signed."""
    key = getattr(bench.mesh, by)
    fields = {
        "mesh": bench.mesh.name,
        "namespace": parse_scope(scope).namespace,
        "command_id": "cmd",
        "kind": "revoke",
        "args": {"scope": scope, **OPTIONS},
        **changed,
    }
    word = trust.make_authority(**fields, not_after=not_after, signers=key[:2] if isinstance(key, list) else [key])
    return {"authority": (to_plain(word),), "options": OPTIONS}


def entry_of(bench: Bench, scope: str = SCOPE, kind: str = "suspend", command_id: str = "cmd") -> NamespaceState:
    """The namespace after the entry that the Registry made of the command."""
    args = {"scope": scope, "reason": "", "abandon_children": False}
    return bench.mesh.do(parse_scope(scope).namespace, kind, args, command_id=command_id)


def recorded(bench: Bench, state: NamespaceState, command_id: str = "cmd", **changed: Any) -> None:
    entry = state.head.entry
    fields = {"command_id": command_id, "namespace": entry.namespace, "epoch": entry.epoch, "seq": entry.seq}
    bench.receive(Recorded(**{**fields, **changed}))


def test_position_rule() -> None:
    leaf = Leaf(epoch=1, seq=5, entry_hash=ZERO_DIGEST, state=ZERO_DIGEST)
    assert local.is_recorded_by((1, 5), leaf)
    assert local.is_recorded_by((1, 4), leaf)
    assert not local.is_recorded_by((1, 6), leaf)
    assert not local.is_recorded_by((2, 1), leaf)
    assert not local.is_recorded_by(None, leaf)


def test_in_force_before_it_is_durable_and_answered_after() -> None:
    bench, edge = Bench().up(), Edge()
    bench.lease(edge)
    bench.take()
    restrict(bench)
    names = [type(getattr(e, "message", e)).__name__ for e in bench.out]
    for earlier, later in [
        ("DropKeys", "Persist"),
        ("Revocation", "Persist"),
        ("Persist", "ReplyLocal"),
        ("Persist", "ForwardRestriction"),
    ]:
        assert names.index(earlier) < names.index(later)
    assert bench.effects(ReplyLocal) == [ReplyLocal("cmd", SCOPE, True)]
    assert bench.may().reason == "restricted-local"
    assert local_name(TENANT, "cmd") in bench.disk


@pytest.mark.parametrize("how", ["cut off", "closed", "sealed", "never applied"])
def test_in_any_mode(how: str) -> None:
    bench = Bench()
    if how == "sealed":
        bench.boot(unseal=False)
    if how != "never applied":
        bench.give_all()
    if how == "cut off":
        bench.renew()
        bench.advance(10_000)
    if how == "closed":
        bench.renew()
        bench.advance(TTL_MS)
        assert bench.mode() is Mode.CLOSED
    restrict(bench)
    assert bench.effects(ReplyLocal) == [ReplyLocal("cmd", SCOPE, True)]
    bench.reboot()
    bench.give_all()
    bench.renew()
    assert KEY in bench.state.locals
    assert not bench.may().allowed
    assert bench.memory == set()


def test_it_is_forwarded_with_every_heartbeat_until_recorded() -> None:
    bench = Bench().up()
    restrict(bench, action="revoke")
    for _ in range(3):
        bench.advance(1_000)
    forwarded = bench.sent(ForwardRestriction)
    assert len(forwarded) >= 3
    assert {(f.command_id, f.scope, f.action, f.actor) for f in forwarded} == {("cmd", SCOPE, "revoke", "ann")}
    own = entry_of(bench)
    recorded(bench, own)
    bench.take()
    bench.advance(3_000)
    assert bench.sent(ForwardRestriction) == []


def test_it_ends_when_its_entry_is_applied_durably() -> None:
    bench = Bench().up()
    restrict(bench)
    own = entry_of(bench)
    recorded(bench, own)
    assert KEY in bench.state.locals
    bench.give(own)
    assert bench.state.locals == {}
    assert local_name(TENANT, "cmd") not in bench.disk
    assert bench.may().reason == "restricted-tenant"
    bench.give(bench.mesh.restrict("resume", SCOPE))
    assert bench.may().allowed


def test_whichever_comes_first() -> None:
    bench = Bench().up()
    restrict(bench)
    own = entry_of(bench)
    bench.give(own)
    assert KEY in bench.state.locals
    recorded(bench, own)
    assert bench.state.locals == {}


def test_a_resume_ordered_before_its_entry_does_not_touch_it() -> None:
    bench = Bench().up()
    bench.give(bench.mesh.restrict("suspend", SCOPE))
    restrict(bench)
    resume = bench.mesh.restrict("resume", SCOPE)
    own = entry_of(bench)
    recorded(bench, own)
    bench.give(resume)
    bench.renew(leaves={**bench.leaves(), TENANT: resume.leaf})
    assert bench.may().reason == "restricted-local"
    bench.give(own)
    assert bench.may().reason == "restricted-tenant"


def test_applied_in_memory_only_does_not_end_it() -> None:
    """Trace 10: a crash then loses both."""
    bench = Bench().up()
    restrict(bench)
    own = entry_of(bench)
    recorded(bench, own)
    bench.crash_at_persist = True
    bench.give(own)
    bench.crash_at_persist = False
    assert local_name(TENANT, "cmd") in bench.disk
    bench.reboot()
    bench.renew(leaves={**bench.leaves(), TENANT: bench.holding().leaf})
    assert KEY in bench.state.locals
    assert not bench.may().allowed


def test_a_crash_between_apply_and_release() -> None:
    bench = Bench().up()
    restrict(bench)
    own = entry_of(bench)
    bench.give(own)
    bench.crash_at_persist = True
    recorded(bench, own)
    bench.crash_at_persist = False
    bench.reboot()
    assert KEY in bench.state.locals
    bench.beat()
    assert bench.sent(ForwardRestriction)[-1].command_id == "cmd"
    recorded(bench, own)
    assert bench.state.locals == {}


def test_refused_for_good_it_stays() -> None:
    bench = Bench().up()
    restrict(bench)
    bench.receive(Recorded(command_id="cmd", namespace=TENANT, epoch=0, seq=0, refused="already"))
    assert "local-suspension-refused" in bench.notes()
    bench.give(bench.mesh.service(name="mail"))
    assert bench.may().reason == "restricted-local"
    bench.take()
    bench.advance(3_000)
    assert bench.sent(ForwardRestriction) == []


def test_records_of_others_and_of_other_namespaces_do_not_end_it() -> None:
    bench = Bench().up()
    restrict(bench)
    own = entry_of(bench)
    bench.give(own)
    entry = own.head.entry
    fields: dict[str, Any] = {"command_id": "cmd", "epoch": entry.epoch, "seq": entry.seq}
    bench.receive(Recorded(**fields, namespace="mesh"))
    bench.receive(Recorded(**{**fields, "command_id": "other"}, namespace=TENANT))
    bench.receive(Recorded(**fields, namespace=TENANT), Address("node:us-west/n1"))
    assert KEY in bench.state.locals


@pytest.mark.parametrize("seq", [1, 2, 6])
def test_a_false_position_ends_nothing(seq: int) -> None:
    """The entry there is none of a restriction, or is not there at all: it stays, also across a crash."""
    bench = Bench().up()
    restrict(bench)
    other = bench.mesh.service(name="mail")
    bench.give(other)
    recorded(bench, other, seq=seq)
    bench.renew()
    assert bench.may().reason == "restricted-local"
    assert "local-suspension-not-shown" in bench.notes()
    bench.take()
    bench.reboot()
    bench.renew()
    assert KEY in bench.state.locals
    assert not bench.may().allowed
    assert [f.command_id for f in bench.sent(ForwardRestriction)] == ["cmd"]


def test_another_suspension_is_not_its_entry() -> None:
    """Its resume would lift both."""
    bench = Bench().up()
    other = bench.mesh.restrict("suspend", SCOPE)
    bench.give(other)
    restrict(bench)
    recorded(bench, other)
    bench.give(bench.mesh.restrict("resume", SCOPE))
    bench.renew()
    assert bench.may().reason == "restricted-local"


@pytest.mark.parametrize(("by", "scope"), [("signer", SCOPE), ("officers", "mesh")])
def test_a_signed_revocation_ends_only_by_a_revocation(by: str, scope: str) -> None:
    bench = Bench().up()
    restrict(bench, scope=scope, action="revoke", **signed_revoke(bench, by, scope=scope))
    assert bench.sent(ForwardRestriction)[-1].options == OPTIONS
    bench.reboot()  # what was signed is kept
    bench.renew()
    bench.give(entry_of(bench, scope))
    recorded(bench, bench.mesh.states[parse_scope(scope).namespace])
    assert bench.state.locals
    more = entry_of(bench, scope, kind="revoke", command_id="other")
    bench.give(more)
    recorded(bench, more)
    assert bench.state.locals == {}
    assert covered_kinds(bench.state, TENANT, SERVICE, 1) == {scope.partition(":")[0]}


@pytest.mark.parametrize(
    ("by", "changed"),
    [
        ("", {}),
        ("registry", {}),
        ("officers", {}),
        ("signer", {"not_after": 1}),
        ("signer", {"kind": "suspend"}),
        ("signer", {"command_id": "other"}),
        ("signer", {"args": {"scope": SCOPE}}),
    ],
)
def test_a_revocation_that_its_signers_did_not_sign_ends_by_its_suspension(by: str, changed: dict[str, Any]) -> None:
    """The Registry records no more than that of it."""
    bench = Bench().up()
    restrict(bench, action="revoke", **(signed_revoke(bench, by, **changed) if by else {}))
    less = entry_of(bench)
    bench.give(less)
    recorded(bench, less)
    assert bench.state.locals == {}
    assert bench.may().reason == "restricted-tenant"


def test_the_same_command_again() -> None:
    bench = Bench().up()
    restrict(bench)
    bench.take()
    restrict(bench)
    restrict(bench, action="revoke")
    restrict(bench, options=OPTIONS)
    restrict(bench, scope=f"service:{TENANT}/pay")
    assert bench.effects(ReplyLocal) == [
        ReplyLocal("cmd", SCOPE, True),
        ReplyLocal("cmd", SCOPE, False, "conflict"),
        ReplyLocal("cmd", SCOPE, False, "conflict"),
        ReplyLocal("cmd", f"service:{TENANT}/pay", False, "conflict"),
    ]
    assert len(bench.state.locals) == 1


def test_a_command_id_is_one_tenants() -> None:
    """Another tenant's command of the same id, pending or recorded, neither hinders it nor ends it."""
    mesh = furnished()
    mesh.furnished("globex")
    bench = Bench(mesh).up()
    theirs = "tenant:globex"
    restrict(bench)
    restrict(bench, scope=theirs, action="revoke")
    assert bench.effects(ReplyLocal) == [ReplyLocal("cmd", SCOPE, True), ReplyLocal("cmd", theirs, True)]
    for _ in range(2):
        assert [covered_kinds(bench.state, t, SERVICE, 1) for t in (TENANT, "globex")] == [{"local"}, {"local"}]
        assert {local_name(TENANT, "cmd"), local_name("globex", "cmd")} <= set(bench.disk)
        bench.reboot()
        bench.give_all()
        bench.renew()
    own = entry_of(bench)
    bench.give(own)
    bench.receive(Recorded(command_id="cmd", namespace="globex", epoch=0, seq=0, refused="below-threshold"))
    bench.take()
    bench.advance(1_000)
    assert {f.scope for f in bench.sent(ForwardRestriction)} == {SCOPE}
    recorded(bench, own)
    assert set(bench.state.locals) == {("globex", "cmd")}
    assert local_name(TENANT, "cmd") not in bench.disk


@pytest.mark.parametrize(
    ("command_id", "scope", "action"),
    [("cmd", "rubbish", "suspend"), ("cmd", SCOPE, "resume"), ("a/b", SCOPE, "suspend"), ("", SCOPE, "suspend")],
)
def test_bad_input(command_id: str, scope: str, action: str) -> None:
    bench = Bench().up()
    restrict(bench, command_id, scope, action)
    assert bench.effects(ReplyLocal) == [ReplyLocal(command_id, scope, False, "bad-field")]
    assert bench.state.locals == {}
    assert bench.may().allowed


@pytest.mark.parametrize(
    "more",
    [
        {"options": {"reason": "x" * 10_000}},
        {"options": {"rows": {}}},
        {"options": {"reason": 1}},
        {"authority": ({},) * 17},
    ],
)
def test_what_no_log_would_take(more: dict[str, Any]) -> None:
    bench = Bench().up()
    restrict(bench, **more)
    assert bench.effects(ReplyLocal) == [ReplyLocal("cmd", SCOPE, False, "bad-field")]
    assert bench.may().allowed


def test_one_tenants_local_suspensions_are_bounded_and_no_other_tenants_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "LOCALS_PER_NAMESPACE_MAX", 5)
    mesh = furnished()
    mesh.furnished("globex")
    bench = Bench(mesh).up()
    for n in range(5):
        restrict(bench, f"cmd-{n}", f"key:{TENANT}/pay@{n + 7}")
    bench.take()
    restrict(bench, "more", f"key:{TENANT}/pay@1")
    restrict(bench, "again", f"key:{TENANT}/pay@7")
    assert {(r.recorded, r.reason) for r in bench.effects(ReplyLocal)} == {(False, "too-many")}
    assert len(bench.state.locals) == 5
    assert bench.may().allowed
    bench.take()
    restrict(bench, "cmd-3", f"key:{TENANT}/pay@10")  # one that it has
    restrict(bench, "whole", SCOPE)  # the switch for everything always works
    restrict(bench, "whole", SCOPE)
    restrict(bench, "theirs", "tenant:globex")
    assert all(r.recorded for r in bench.effects(ReplyLocal))
    assert bench.may().reason == "restricted-local"
    bench.take()
    restrict(bench, "whole-2", SCOPE)
    assert bench.effects(ReplyLocal) == [ReplyLocal("whole-2", SCOPE, False, "too-many")]
    bench.reboot()
    assert len(bench.state.locals) == 7


def test_one_that_cannot_be_recorded_is_in_force_is_said_so_and_closes() -> None:
    bench = Bench().up()
    bench.disk_works = False
    service = f"service:{TENANT}/pay"
    restrict(bench, scope=service)
    assert bench.effects(ReplyLocal) == [ReplyLocal("cmd", service, False, "storage")]
    assert bench.mode() is Mode.CLOSED
    assert bench.sent(ForwardRestriction)  # the log may still take it
    bench.disk_works = True
    bench.advance(1_500)
    assert bench.effects(ReplyLocal)[-1] == ReplyLocal("cmd", service, True)
    assert bench.mode() is not Mode.CLOSED
    assert bench.may().reason == "restricted-local"


def test_many_that_cannot_be_recorded_are_all_recorded_in_the_end() -> None:
    bench = Bench().up()
    bench.disk_works = False
    for n in range(5):
        restrict(bench, f"cmd-{n}")
    bench.advance(5_000)
    bench.disk_works = True
    bench.advance(1_500)
    assert all(local_name(TENANT, f"cmd-{n}") in bench.disk for n in range(5))
    assert not bench.state.unrecorded
    assert len(bench.state.persisting) <= 10


@pytest.mark.parametrize("scope", ["mesh", "region:us-east"])
def test_wide_scopes(scope: str) -> None:
    bench = Bench().up()
    restrict(bench, scope=scope)
    assert bench.may().reason == "restricted-local"
    own = entry_of(bench, scope)
    recorded(bench, own)
    bench.give(own)
    bench.give(bench.mesh.restrict("resume", scope))
    bench.renew()
    assert bench.may().allowed


def test_edges_under_a_local_suspension_settle_too() -> None:
    bench, edge = Bench().up(), Edge()
    grant = bench.lease(edge)
    restrict(bench)
    revocation = bench.revocations()[0]
    bench.receive(edge.ack(grant.lease_id, revocation.revocation_id), edge.address)
    assert bench.state.edge_leases == {}
    assert bench.refusal(edge) == "restricted"
    bench.now = Instant(bench.now + 1)
