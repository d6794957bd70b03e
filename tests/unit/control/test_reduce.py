"""What each kind makes of the rows, and what it refuses."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.unit.control.world import Mesh, digest

from keymesh.control import reduce
from keymesh.control.kinds import KINDS, AuthorityBy, Effect
from keymesh.control.rows import (
    BindingRow,
    ClientRow,
    KeyRow,
    RegionRow,
    RestrictionRow,
    ServiceRow,
    WantRow,
    WrappingRow,
    get,
)
from keymesh.model.errors import Refused
from keymesh.model.states import KeyState, Lane, may_become

ROOT, SIGNERS, WIDE, NONE = AuthorityBy.ROOT, AuthorityBy.SIGNERS, AuthorityBy.FOUR_EYES_IF_WIDE, AuthorityBy.NONE
OFFICERS = AuthorityBy.OFFICERS


def refused(mesh: Mesh, namespace: str, kind: str, args: dict[str, Any]) -> str:
    before = dict(mesh.states[namespace].rows) if namespace in mesh.states else {}
    with pytest.raises(Refused) as caught:
        mesh.plan(namespace, kind, args)
    assert (mesh.states[namespace].rows if namespace in mesh.states else {}) == before
    return caught.value.code


def scope(text: str) -> dict[str, Any]:
    return {"scope": text, "reason": "", "abandon_children": False}


def test_the_table_of_kinds_written_out_again() -> None:
    table = {name: (k.effect.value, int(k.lane), k.namespace, k.authority, k.needs_commit) for name, k in KINDS.items()}
    assert table == {
        "mesh.genesis": ("grant", 1, "mesh", ROOT, False),
        "epoch.open": ("grant", 1, "mesh", OFFICERS, False),
        "epoch.adopt": ("restriction", 0, "any", NONE, True),
        "voters.change": ("grant", 1, "mesh", OFFICERS, False),
        "trust.rotate": ("grant", 1, "mesh", ROOT, True),
        "region.join": ("grant", 1, "mesh", ROOT, False),
        "region.rotate-ivk": ("grant", 2, "mesh", NONE, False),
        "region.migrate-keystore": ("grant", 2, "mesh", NONE, False),
        "tenant.create": ("grant", 1, "tenant", SIGNERS, False),
        "tenant.set": ("grant", 2, "tenant", SIGNERS, False),
        "tenant.labels": ("grant", 2, "tenant", NONE, False),
        "l1.switch": ("grant", 1, "tenant", SIGNERS, False),
        "l1.retire": ("grant", 2, "tenant", NONE, False),
        "service.set": ("grant", 1, "tenant", NONE, False),
        "client.set": ("grant", 1, "tenant", NONE, False),
        "budget.set": ("grant", 2, "tenant", NONE, False),
        "key.want": ("grant", 2, "tenant", NONE, False),
        "key.want-rewrap": ("grant", 2, "tenant", NONE, False),
        "key.create": ("grant", 1, "tenant", NONE, False),
        "key.activate": ("grant", 1, "tenant", NONE, False),
        "key.rewrapped": ("grant", 2, "tenant", NONE, False),
        "suspend": ("restriction", 0, "any", WIDE, True),
        "revoke": ("restriction", 0, "any", WIDE, True),
        "resume": ("grant", 1, "any", WIDE, True),
        "tenant.destroy": ("restriction", 0, "tenant", NONE, True),
        "tenant.cancel-destroy": ("grant", 1, "tenant", NONE, True),
        "tenant.purge": ("restriction", 0, "tenant", NONE, True),
    }
    assert all((k.lane is Lane.RESTRICTION) == (k.effect is Effect.RESTRICTION) for k in KINDS.values())


# (state before, action) -> state after, or the code of the refusal
RESTRICTION_MATRIX = {
    ("absent", "suspend"): "suspended",
    ("absent", "revoke"): "revoked",
    ("absent", "resume"): "!not-suspended",
    ("none", "suspend"): "suspended",
    ("none", "revoke"): "revoked",
    ("none", "resume"): "!not-suspended",
    ("suspended", "suspend"): "suspended",
    ("suspended", "revoke"): "revoked",
    ("suspended", "resume"): "none",
    ("revoked", "suspend"): "!already",
    ("revoked", "revoke"): "!already",
    ("revoked", "resume"): "!revoked",
}
PATHS = {"absent": (), "none": ("suspend", "resume"), "suspended": ("suspend",), "revoked": ("revoke",)}
SCOPES = ("tenant:acme", "service:acme/pay", "key:acme/pay@1", "service:acme/ghost", "region:us-west", "mesh")


@pytest.mark.parametrize("text", SCOPES)
@pytest.mark.parametrize(("before", "action"), RESTRICTION_MATRIX)
def test_the_restriction_matrix(before: str, action: str, text: str) -> None:
    mesh = Mesh()
    mesh.furnished()
    for step in PATHS[before]:
        mesh.restrict(step, text)
    expected = RESTRICTION_MATRIX[before, action]
    namespace = "acme" if "acme" in text else "mesh"
    if expected.startswith("!"):
        assert "!" + refused(mesh, namespace, action, scope(text)) == expected
        return
    state = mesh.restrict(action, text)
    row = get(state.rows, f"restriction/{text}", RestrictionRow)
    head = state.head.entry
    assert row == RestrictionRow(state=expected, seq=head.seq, command_id=head.command_id)


@pytest.mark.parametrize("text", ["region:us-west", "mesh"])
def test_a_wide_resume_names_the_very_suspension_that_it_ends(text: str) -> None:
    mesh = Mesh()
    first = mesh.restrict("suspend", text).head.entry.seq
    second = mesh.restrict("suspend", text).head.entry.seq
    for wrong in ({}, {"upto_seq": 0}, {"upto_seq": first}, {"upto_seq": second + 1}, {"upto_seq": -second}):
        assert refused(mesh, "mesh", "resume", scope(text) | wrong) == "stale-approval"
    assert refused(mesh, "mesh", "resume", scope(text) | {"upto_seq": str(second)}) == "bad-field"
    row = get(mesh.restrict("resume", text).rows, f"restriction/{text}", RestrictionRow)
    assert row is not None
    assert row.state == "none"


def test_a_tenant_s_resume_need_name_nothing_but_is_held_to_what_it_names() -> None:
    mesh = Mesh()
    mesh.furnished()
    seq = mesh.restrict("suspend", "tenant:acme").head.entry.seq
    assert refused(mesh, "acme", "resume", scope("tenant:acme") | {"upto_seq": seq - 1}) == "stale-approval"
    mesh.plan("acme", "resume", scope("tenant:acme") | {"upto_seq": seq})
    mesh.plan("acme", "resume", scope("tenant:acme"))


KEY_MATRIX = {
    "pre-active": {"active", "suspended", "deactivated", "compromised", "destroyed"},
    "active": {"suspended", "deactivated", "compromised"},
    "suspended": {"active", "deactivated", "compromised", "destroyed"},
    "deactivated": {"compromised", "destroyed"},
    "compromised": {"destroyed-compromised"},
    "destroyed": {"destroyed-compromised"},
    "destroyed-compromised": set(),
}


@pytest.mark.parametrize("old", list(KeyState))
@pytest.mark.parametrize("new", list(KeyState))
def test_the_key_state_matrix(old: KeyState, new: KeyState) -> None:
    assert may_become(old, new) is (new.value in KEY_MATRIX[old.value])


def test_a_tenant_wants_its_first_l2_and_a_service_its_first_l3() -> None:
    mesh = Mesh()
    rows = mesh.tenant().rows
    assert get(rows, "want/l2", WantRow) == WantRow(version=1)
    assert get(mesh.service().rows, "want/l3/pay", WantRow) == WantRow(version=1)
    assert get(mesh.service(version=2).rows, "want/l3/pay", WantRow) == WantRow(version=1)


def test_a_namespace_is_created_once_and_first() -> None:
    mesh = Mesh()
    assert refused(mesh, "acme", "tenant.labels", {"labels": {}}) == "unknown-namespace"
    assert refused(mesh, "acme", "suspend", scope("tenant:acme")) == "unknown-namespace"
    mesh.tenant()
    assert refused(mesh, "acme", "tenant.create", mesh.tenant_args()) == "conflict"
    assert refused(mesh, "mesh", "mesh.genesis", msgspec.to_builtins(mesh.genesis())) == "conflict"


def test_kinds_keep_to_their_namespaces() -> None:
    mesh = Mesh()
    mesh.tenant()
    assert refused(mesh, "mesh", "tenant.labels", {"labels": {}}) == "wrong-namespace"
    assert refused(mesh, "acme", "region.rotate-ivk", {"region": "us-east", "generation": 2}) == "wrong-namespace"
    assert refused(mesh, "acme", "suspend", scope("tenant:other")) == "wrong-namespace"
    assert refused(mesh, "acme", "suspend", scope("mesh")) == "wrong-namespace"
    assert refused(mesh, "mesh", "suspend", scope("tenant:acme")) == "wrong-namespace"


def test_unknown_kinds_and_arguments() -> None:
    mesh = Mesh()
    mesh.tenant()
    held = mesh.states["acme"]
    with pytest.raises(Refused) as caught:
        reduce.plan(held.rows, kind="tenant.paint", args={}, namespace="acme", seq=2, command_id="x")
    assert caught.value.code == "unknown-kind"
    assert refused(mesh, "acme", "tenant.labels", {"labels": {}, "more": 1}) == "bad-field"
    assert refused(mesh, "acme", "tenant.labels", {}) == "bad-field"
    assert refused(mesh, "acme", "key.want", {"key": "l2", "version": "2"}) == "bad-field"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"regions": ("us-west", "us-east")}, "policy.regions"),
        ({"regions": ("us-east", "us-east")}, "policy.regions"),
        ({"regions": ()}, "policy.regions"),
        ({"home": "eu-west"}, "policy.home"),
        ({"ttl_ms": 1_999}, "policy.ttl_ms"),
        ({"standby": "maybe"}, "policy.standby"),
        ({"version": 2}, "policy.version"),
    ],
)
def test_policy_is_well_formed(change: dict[str, Any], field: str) -> None:
    mesh = Mesh()
    args = mesh.tenant_args()
    args["policy"] |= change
    with pytest.raises(Refused) as caught:
        mesh.plan("acme", "tenant.create", args)
    assert caught.value.field == field


@pytest.mark.parametrize(("region", "domain"), [("mars", "us"), ("eu-west", "us")])
def test_a_policy_names_regions_of_its_domain_only(region: str, domain: str) -> None:
    mesh = Mesh()
    args = mesh.tenant_args()
    args["policy"] |= {"home": region, "regions": (region,), "domain": domain}
    entry = mesh.plan("acme", "tenant.create", args).head.entry
    with pytest.raises(Refused) as caught:
        reduce.apply({}, entry, mesh.mesh.rows)
    assert caught.value.code == "foreign-region"


def test_a_minter_race_has_one_winner() -> None:
    mesh = Mesh()
    mesh.tenant()
    first = {"key": "l2", "version": 1, "kid": "0a" * 16, "digest": digest("x"), "parent": "b1"}
    row = get(mesh.do("acme", "key.create", first).rows, "key/l2/1", KeyRow)
    assert row == KeyRow(kid="0a" * 16, revision=1, state="pre-active", digest=digest("x"), parent="b1")
    assert refused(mesh, "acme", "key.create", first | {"kid": "0b" * 16}) == "conflict"
    assert refused(mesh, "acme", "key.create", first) == "already"
    assert refused(mesh, "acme", "key.create", first | {"version": 2, "kid": "0c" * 16}) == "unwanted"
    mesh.do("acme", "key.want", {"key": "l2", "version": 2})
    assert refused(mesh, "acme", "key.create", first | {"version": 2}) == "conflict", "one kid, one key"
    assert refused(mesh, "acme", "key.create", first | {"version": 2, "kid": "0c", "x": 1}) == "bad-field"
    assert refused(mesh, "acme", "key.create", first | {"version": 2, "kid": "0C" * 16}) == "bad-field"
    assert refused(mesh, "acme", "key.create", first | {"version": 2, "kid": "0c" * 16, "parent": "b9"}) == (
        "unknown-parent"
    )


@pytest.mark.parametrize("version", [0, 1, 3, -1, 2**40])
def test_only_the_next_version_is_wanted(version: int) -> None:
    mesh = Mesh()
    mesh.tenant()
    assert refused(mesh, "acme", "key.want", {"key": "l2", "version": version}) == "conflict"


def test_keys_of_services_that_do_not_exist() -> None:
    mesh = Mesh()
    mesh.tenant()
    for key in ("l3/ghost", "l3/", "l4", "l3", "", "l2/x"):
        assert refused(mesh, "acme", "key.want", {"key": key, "version": 1}) == "unknown-service"


def test_activation_moves_forwards_only() -> None:
    mesh = Mesh()
    mesh.furnished()
    mesh.do("acme", "key.want", {"key": "l3/pay", "version": 2})
    mesh.key_version("acme", "l3/pay", 2, digest("acme/l2/1")[:32])
    rows = mesh.states["acme"].rows
    assert get(rows, "wrapping/l3/pay", WrappingRow) == WrappingRow(version=2)
    again = {"key": "l3/pay", "version": 1, "wrapping": True}
    assert refused(mesh, "acme", "key.activate", again) == "conflict"
    assert refused(mesh, "acme", "key.activate", again | {"version": 2}) == "already"
    assert refused(mesh, "acme", "key.activate", again | {"version": 2, "wrapping": False}) == "already"
    assert refused(mesh, "acme", "key.activate", again | {"version": 3}) == "unknown-version"


def test_revoking_a_version_compromises_it() -> None:
    mesh = Mesh()
    mesh.furnished()
    state = mesh.restrict("revoke", "key:acme/pay@1")
    row = get(state.rows, "key/l3/pay/1", KeyRow)
    assert row is not None
    assert row.state == "compromised"
    assert refused(mesh, "acme", "key.activate", {"key": "l3/pay", "version": 1, "wrapping": False}) == "revoked"
    moved = {"key": "l3/pay", "version": 1, "revision": 2, "digest": digest("z"), "parent": row.parent}
    assert refused(mesh, "acme", "key.rewrapped", moved) == "revoked"


def test_a_version_revoked_before_it_was_made_is_born_dead() -> None:
    mesh = Mesh()
    mesh.furnished()
    mesh.restrict("revoke", "key:acme/pay@2")
    mesh.do("acme", "key.want", {"key": "l3/pay", "version": 2})
    made = {"key": "l3/pay", "version": 2, "kid": "0d" * 16, "digest": digest("x"), "parent": digest("acme/l2/1")[:32]}
    row = get(mesh.do("acme", "key.create", made).rows, "key/l3/pay/2", KeyRow)
    assert row is not None
    assert row.state == "compromised"


@pytest.mark.parametrize("text", ["tenant:acme", "service:acme/pay"])
def test_a_revoked_scope_gets_nothing_new(text: str) -> None:
    mesh = Mesh()
    mesh.furnished()
    mesh.restrict("revoke", text)
    assert refused(mesh, "acme", "key.want", {"key": "l3/pay", "version": 2}) == "revoked"
    row = msgspec.to_builtins(ServiceRow(version=2, custody="leased", edge_ttl_ms=1_000))
    assert refused(mesh, "acme", "service.set", {"service": "pay", "row": row}) == "revoked"


@pytest.mark.parametrize(
    ("service", "changed", "code"),
    [
        ("pay", {}, ""),
        ("", {}, ""),
        ("pay", {"version": 2}, "conflict"),
        ("nosuch", {}, "unknown-service"),
        ("pay", {"period": "year"}, "bad-field"),
        ("pay", {"ops": -1}, "bad-field"),
        ("pay", {"ops": 10**15 + 1}, "bad-field"),
        ("pay", {"money": 5}, "bad-field"),  # no price
        ("pay", {"money": 5, "price": 1}, ""),
        ("pay", {"alarm_opens": 0}, "bad-field"),
        ("pay", {"auto_suspend": True}, "bad-field"),  # at what?
        ("pay", {"alarm_opens": 5, "auto_suspend": True}, ""),
        ("", {"alarm_opens": 5}, "bad-field"),  # of a service only
    ],
)
def test_a_budgets_entry(service: str, changed: dict[str, Any], code: str) -> None:
    mesh = Mesh()
    mesh.furnished("acme")
    row = {"version": 1, "period": "day", "ops": 5, **changed}
    args = {"service": service, "row": row}
    if code:
        assert refused(mesh, "acme", "budget.set", args) == code
    else:
        assert f"budget/{service}".rstrip("/") in mesh.do("acme", "budget.set", args).rows
        assert refused(mesh, "acme", "budget.set", args) == "conflict", "the next one has the next version"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"version": 1}, "conflict"),
        ({"version": 3}, "conflict"),
        ({"custody": "borrowed"}, "bad-field"),
        ({"edge_ttl_ms": 999}, "bad-field"),
        ({"edge_ttl_ms": 3_600_001}, "bad-field"),
        ({"mint_budget": -1}, "bad-field"),
    ],
)
def test_service_rows(change: dict[str, Any], code: str) -> None:
    mesh = Mesh()
    mesh.furnished()
    row = msgspec.to_builtins(ServiceRow(version=2, custody="leased", edge_ttl_ms=1_000)) | change
    assert refused(mesh, "acme", "service.set", {"service": "pay", "row": row}) == code


@pytest.mark.parametrize(
    ("client", "change", "code"),
    [
        ("app", {"version": 0}, "conflict"),
        ("app", {"version": 2}, "conflict"),
        ("app", {"service": "none"}, "unknown-service"),
        ("app", {"service": "A"}, "bad-field"),
        ("App", {}, "bad-field"),
        ("", {}, "bad-field"),
    ],
)
def test_a_client_is_named_once_for_a_service_that_there_is(client: str, change: dict[str, Any], code: str) -> None:
    mesh = Mesh()
    mesh.furnished()
    row = {"version": 1, "service": "pay"} | change
    assert refused(mesh, "acme", "client.set", {"client": client, "row": row}) == code


@pytest.mark.parametrize("text", ["tenant:acme", "service:acme/pay", "client:acme/app"])
def test_a_client_that_is_revoked_is_named_no_more(text: str) -> None:
    mesh = Mesh()
    mesh.furnished()
    state = mesh.do("acme", "client.set", {"client": "app", "row": {"version": 1, "service": "pay"}})
    assert get(state.rows, "client/app", ClientRow) == ClientRow(version=1, service="pay")
    again = {"client": "app", "row": {"version": 2, "service": "pay"}}
    assert refused(mesh, "acme", "client.set", {"client": "app", "row": {"version": 1, "service": "pay"}}) == "conflict"
    mesh.do("acme", "client.set", again)
    mesh.restrict("revoke", text)
    assert refused(mesh, "acme", "client.set", {"client": "app", "row": {"version": 3, "service": "pay"}}) == "revoked"


def test_a_tenant_has_so_many_clients_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keymesh.control.reduce.CLIENTS_MAX", 2)
    mesh = Mesh()
    mesh.furnished()
    for name in ("a", "b"):
        mesh.do("acme", "client.set", {"client": name, "row": {"version": 1, "service": "pay"}})
    assert refused(mesh, "acme", "client.set", {"client": "c", "row": {"version": 1, "service": "pay"}}) == "too-many"
    mesh.do("acme", "client.set", {"client": "a", "row": {"version": 2, "service": "pay"}})


def test_switching_l1_keeps_the_old_binding_until_nothing_hangs_from_it() -> None:
    mesh = Mesh()
    mesh.furnished()
    state = mesh.do("acme", "l1.switch", {"binding_id": "b2", "provider": "dev", "descriptor": {"n": 2}})
    states = {n: b.state for n in ("b1", "b2") if (b := get(state.rows, f"binding/{n}", BindingRow))}
    assert states == {"b1": "retiring", "b2": "active"}
    assert refused(mesh, "acme", "l1.switch", {"binding_id": "b1", "provider": "dev", "descriptor": {}}) == "conflict"
    assert refused(mesh, "acme", "l1.retire", {"binding_id": "b1"}) == "in-use"
    assert refused(mesh, "acme", "l1.retire", {"binding_id": "b2"}) == "conflict"
    assert refused(mesh, "acme", "l1.retire", {"binding_id": "b3"}) == "unknown-binding"
    moved = {"key": "l2", "version": 1, "revision": 2, "digest": digest("new"), "parent": "b2"}
    assert refused(mesh, "acme", "key.rewrapped", moved | {"revision": 3}) == "conflict"
    mesh.do("acme", "key.rewrapped", moved)
    assert refused(mesh, "acme", "key.rewrapped", moved) == "already"
    state = mesh.do("acme", "l1.retire", {"binding_id": "b1"})
    row = get(state.rows, "binding/b1", BindingRow)
    assert row is not None
    assert row.state == "retired"
    assert refused(mesh, "acme", "l1.retire", {"binding_id": "b1"}) == "already"
    assert refused(mesh, "acme", "key.want-rewrap", {"key": "l2", "parent": "b1"}) == "unknown-parent"


def test_regions_join_once_and_ivk_generations_rise_by_one() -> None:
    mesh = Mesh()
    join = {
        "region": "ap-south",
        "row": msgspec.to_builtins(RegionRow(domain="ap", failure_domain="ap-south", ca_fingerprint="00")),
        "nodes": {"n1": {"signing_key": "11" * 32}},
    }
    rows = mesh.do("mesh", "region.join", join).rows
    assert {"region/ap-south", "node/ap-south/n1"} <= rows.keys()
    assert refused(mesh, "mesh", "region.join", join) == "conflict"
    assert refused(mesh, "mesh", "region.rotate-ivk", {"region": "ap-south", "generation": 3}) == "conflict"
    assert refused(mesh, "mesh", "region.rotate-ivk", {"region": "mars", "generation": 2}) == "unknown-region"
    mesh.do("mesh", "region.rotate-ivk", {"region": "ap-south", "generation": 2})
    wanted = {**join, "region": "ap-north", "row": {**join["row"], "keystore_schema": 2}}
    assert refused(mesh, "mesh", "region.join", wanted) == "bad-field"


def test_a_key_stores_schema_only_rises_and_is_no_part_of_a_row_that_never_named_one() -> None:
    mesh = Mesh()
    before = mesh.mesh.rows["region/us-east"]
    assert b"keystore_schema" not in before
    rows = mesh.do("mesh", "region.rotate-ivk", {"region": "us-east", "generation": 2}).rows
    assert b"keystore_schema" not in rows["region/us-east"]

    def refusal(schema: int, region: str = "us-east") -> str:
        return refused(mesh, "mesh", "region.migrate-keystore", {"region": region, "schema": schema})

    assert [refusal(0), refusal(-1), refusal(65_536), refusal(2, "mars")] == ["conflict"] * 3 + ["unknown-region"]
    rows = mesh.do("mesh", "region.migrate-keystore", {"region": "us-east", "schema": 2}).rows
    assert b'"keystore_schema":2' in rows["region/us-east"]
    assert [refusal(1), refusal(2)] == ["conflict"] * 2
    mesh.do("mesh", "region.migrate-keystore", {"region": "us-east", "schema": 3})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("root", "threshold"), 0),
        (("root", "threshold"), 4),
        (("root", "keys"), {"00" * 32: "11" * 32}),
        (("delegations",), {}),
        (("delegations", "registry", "kinds"), ["no.such"]),
        (("delegations", "registry", "scope"), "everything"),
        (("settings", "ttl_ms"), 1_999),
        (("settings", "salt"), "ab"),
        (("voters", "regions"), ["us-east", "us-west", "eu-central", "eu-west"]),
        (("voters", "regions"), ["us-east", "us-west", "mars"]),
        (("voters", "regions"), ["us-east", "us-east", "us-west"]),
        (("nodes",), {"mars/n1": {"signing_key": "11" * 32}}),
    ],
)
def test_genesis_is_well_formed(path: tuple[str, ...], value: Any) -> None:
    mesh = Mesh()
    args = msgspec.to_builtins(mesh.genesis())
    target = args
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    with pytest.raises(Refused):
        reduce.plan({}, kind="mesh.genesis", args=args, namespace="mesh", seq=1, command_id="g")


def test_grants_stop_before_a_task_is_full_and_restrictions_do_not() -> None:
    mesh = Mesh()
    mesh.tenant()
    held = mesh.states["acme"]
    rows = dict(held.rows) | {f"want/l3/x{i}": b'{"version":1}' + b" " * 4_096 for i in range(32)}
    with pytest.raises(Refused) as caught:
        reduce.plan(rows, kind="tenant.labels", args={"labels": {"a": "b"}}, namespace="acme", seq=2, command_id="x")
    assert caught.value.code == "too-large"
    after = reduce.plan(rows, kind="suspend", args=scope("tenant:acme"), namespace="acme", seq=2, command_id="x")
    assert "restriction/tenant:acme" in after
