"""What an entry makes of its namespace's rows: preconditions checked, new rows returned, nothing else touched.

Decides whether a command fits the state that it meets.  Not who may give it (``trust``) and not whether it is newer
(``view``).  Source: DESIGN sections 1 and 2; kinds and rows are in ``kinds`` and ``rows``.

Codes of refusal: ``conflict`` (somebody was first, or a compare failed), ``already`` (it is so), ``revoked`` (final),
``unknown-*`` (names nothing), ``bad-field``, and those named where they are raised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from keymesh.control import checks, reduce_epochs, reduce_keys, reduce_restrictions, reduce_trust, reduce_voters
from keymesh.control.draft import Draft, is_live, refuse_revoked
from keymesh.control.draft import key_rows as key_rows
from keymesh.control.entry import Entry
from keymesh.control.kinds import (
    ADOPT_TAIL,
    CHANGE_VOTERS,
    KINDS,
    OPEN_EPOCH,
    ROTATE_TRUST,
    Genesis,
    MigrateKeystore,
    RegionJoin,
    RetireBinding,
    RotateIvk,
    SetBudget,
    SetClient,
    SetLabels,
    SetService,
    SetTenant,
    SwitchL1,
    TenantCreate,
)
from keymesh.control.rows import (
    L2_NAME,
    BindingRow,
    BudgetRow,
    ClientRow,
    LabelsRow,
    PolicyRow,
    RegionRow,
    RewrapRow,
    Rows,
    ServiceRow,
    SettingsRow,
    StandbyRow,
    WantRow,
    budget_name,
    get,
    l3_name,
    policy_in,
    rows_bytes,
)
from keymesh.model import strict_json
from keymesh.model.errors import Refused
from keymesh.model.limits import CLIENTS_MAX, TASK_MAX_BYTES

SCHEMA_MAX: Final = 65_535
STATE_MAX_BYTES: Final = TASK_MAX_BYTES // 2
"""Grants stop here, so that restrictions and the support of a state still fit into a task."""


def apply(rows: Rows, entry: Entry, mesh_rows: Rows | None = None) -> dict[str, bytes]:
    """``rows`` after ``entry``; ``rows`` is left alone.

    ``mesh_rows``, where given, are held against a tenant's policy (its regions exist, in its domain).  Whoever replays
    a log leaves them out: what was appended then was right then.
    Raises Refused with a code of the module's list, or for malformed arguments or an unknown kind.
    """
    return plan(
        rows,
        kind=entry.kind,
        args=entry.body.args,
        namespace=entry.namespace,
        seq=entry.seq,
        command_id=entry.command_id,
        mesh_rows=mesh_rows,
    )


def plan(
    rows: Rows,
    *,
    kind: str,
    args: dict[str, Any],
    namespace: str,
    seq: int,
    command_id: str,
    mesh_rows: Rows | None = None,
) -> dict[str, bytes]:
    """As ``apply``, for a command that is no entry yet."""
    known = KINDS.get(kind)
    if known is None:
        raise Refused("unknown-kind", f"kind {kind!r} is not known to this release", field="kind")
    checks.namespace_fits(known, namespace)
    typed = strict_json.convert(args, known.args)
    draft = Draft(namespace, seq, command_id, dict(rows), mesh_rows)
    if kind not in _FIRST and not rows:
        raise Refused("unknown-namespace", f"{namespace} has no entries yet", field="namespace")
    _HANDLERS[kind](draft, typed)
    if kind not in _RESTRICTING and rows_bytes(draft.rows) > STATE_MAX_BYTES:
        raise Refused("too-large", f"the state of {namespace} would pass {STATE_MAX_BYTES} bytes")
    return draft.rows


# --- mesh ------------------------------------------------------------------------------------------------------------


def _genesis(draft: Draft, args: Genesis) -> None:
    if draft.rows or draft.seq != 1:
        raise Refused("conflict", "the mesh exists")
    checks.root(args.root)
    checks.delegations(args.delegations)
    checks.settings(args.settings)
    checks.voters(args.voters, args.regions)
    draft.put("root", args.root)
    draft.put("settings", args.settings)
    draft.put("voters", args.voters)
    for role, delegation in args.delegations.items():
        draft.put(f"delegation/{role}", delegation)
    for region, row in args.regions.items():
        checks.region(region, row)
        draft.put(f"region/{region}", row)
    for name, node in args.nodes.items():
        region, _, node_id = name.partition("/")
        if region not in args.regions:
            raise Refused("unknown-region", f"node {name!r} is of no region here", field="nodes")
        checks.node(node_id, node)
        draft.put(f"node/{name}", node)


def _region_join(draft: Draft, args: RegionJoin) -> None:
    if f"region/{args.region}" in draft.rows:
        raise Refused("conflict", f"region {args.region} has joined", field="region")
    checks.region(args.region, args.row)
    draft.put(f"region/{args.region}", args.row)
    for node_id, node in args.nodes.items():
        checks.node(node_id, node)
        draft.put(f"node/{args.region}/{node_id}", node)


def _rotate_ivk(draft: Draft, args: RotateIvk) -> None:
    row = draft.get(f"region/{args.region}", RegionRow)
    if row is None:
        raise Refused("unknown-region", f"no region {args.region!r}", field="region")
    if args.generation != row.ivk_generation + 1:
        raise Refused("conflict", f"the next generation is {row.ivk_generation + 1}", field="generation")
    draft.put(f"region/{args.region}", checks.changed(row, ivk_generation=args.generation))


def _migrate_keystore(draft: Draft, args: MigrateKeystore) -> None:
    """Schemas only rise.  Which ones there are, and who knows them, is the release's to say, not the log's."""
    row = draft.get(f"region/{args.region}", RegionRow)
    if row is None:
        raise Refused("unknown-region", f"no region {args.region!r}", field="region")
    if not row.wanted_schema < args.schema <= SCHEMA_MAX:
        raise Refused("conflict", f"a schema from {row.wanted_schema + 1} to {SCHEMA_MAX}", field="schema")
    draft.put(f"region/{args.region}", checks.changed(row, keystore_schema=args.schema))


# --- tenants ---------------------------------------------------------------------------------------------------------


def _tenant_create(draft: Draft, args: TenantCreate) -> None:
    if draft.rows:
        raise Refused("conflict", f"tenant {draft.namespace} exists")
    settings = None if draft.mesh_rows is None else get(draft.mesh_rows, "settings", SettingsRow)
    checks.policy(args.policy, development=settings is None or settings.development)
    if args.policy.version != 1:
        raise Refused.bad_field("policy.version", "1 at first")
    if draft.mesh_rows is not None:
        _check_residency(args.policy, draft.mesh_rows)
    checks.signers(args.signers)
    draft.put("policy", args.policy)
    draft.put("signers", args.signers)
    _put_binding(draft, args.binding_id, args.provider, args.descriptor)
    draft.put(f"want/{L2_NAME}", WantRow(version=1))


def _check_residency(policy: PolicyRow, mesh_rows: Rows) -> None:
    """Every allowed region is of this mesh and in the tenant's domain."""
    for name in policy.regions:
        row = get(mesh_rows, f"region/{name}", RegionRow)
        if row is None or row.domain != policy.domain:
            raise Refused("foreign-region", f"{name} is no region of domain {policy.domain}", field="policy.regions")


def _put_binding(draft: Draft, binding_id: str, provider: str, descriptor: dict[str, Any]) -> None:
    checks.binding(binding_id, provider)
    draft.put(f"binding/{binding_id}", BindingRow(provider=provider, descriptor=descriptor, state="active"))


def _labels(draft: Draft, args: SetLabels) -> None:
    checks.labels(args.labels)
    draft.put("labels", LabelsRow(labels=args.labels))


def _set_tenant(draft: Draft, args: SetTenant) -> None:
    refuse_revoked(draft, None)
    checks.standby("standby", args.standby)
    policy = policy_in(draft.rows)
    if policy is not None and policy.standby == args.standby:
        raise Refused("already", f"{draft.namespace} has standby = {args.standby}", field="standby")
    draft.put("standby", StandbyRow(standby=args.standby, seq=draft.seq))


def _switch_l1(draft: Draft, args: SwitchL1) -> None:
    """Old bindings keep opening until ``l1.retire``; a switch may overtake one that is still under way."""
    refuse_revoked(draft, None)
    if f"binding/{args.binding_id}" in draft.rows:
        raise Refused("conflict", f"binding {args.binding_id} exists", field="binding_id")
    for name in [n for n in draft.rows if n.startswith("binding/")]:
        row = draft.get(name, BindingRow)
        if row is not None and row.state == "active":
            draft.put(name, checks.changed(row, state="retiring"))
    _put_binding(draft, args.binding_id, args.provider, args.descriptor)
    draft.put(f"rewrap/{L2_NAME}", RewrapRow(parent=args.binding_id))


def _retire(draft: Draft, args: RetireBinding) -> None:
    row = draft.get(f"binding/{args.binding_id}", BindingRow)
    if row is None:
        raise Refused("unknown-binding", f"no binding {args.binding_id!r}", field="binding_id")
    if row.state == "retired":
        raise Refused("already", f"binding {args.binding_id} is retired", field="binding_id")
    if row.state != "retiring":
        raise Refused("conflict", f"binding {args.binding_id} is {row.state}", field="binding_id")
    if any(is_live(key) and key.parent == args.binding_id for key in key_rows(draft.rows, L2_NAME).values()):
        raise Refused("in-use", f"live L2 versions are wrapped under {args.binding_id}", field="binding_id")
    draft.put(f"binding/{args.binding_id}", checks.changed(row, state="retired"))


def _service(draft: Draft, args: SetService) -> None:
    checks.service(args.service, args.row)
    refuse_revoked(draft, args.service)
    old = draft.get(f"service/{args.service}", ServiceRow)
    expected = 1 if old is None else old.version + 1
    if args.row.version != expected:
        raise Refused("conflict", f"the next version is {expected}", field="row.version")
    draft.put(f"service/{args.service}", args.row)
    if old is None:
        draft.put(f"want/{l3_name(args.service)}", WantRow(version=1))


def _client(draft: Draft, args: SetClient) -> None:
    checks.client(args.client, args.row)
    refuse_revoked(draft, args.row.service, args.client)
    if draft.get(f"service/{args.row.service}", ServiceRow) is None:
        raise Refused("unknown-service", f"no service {args.row.service!r}", field="row.service")
    old = draft.get(f"client/{args.client}", ClientRow)
    if old is None and sum(name.startswith("client/") for name in draft.rows) >= CLIENTS_MAX:
        raise Refused("too-many", f"at most {CLIENTS_MAX} clients of one tenant", field="client")
    expected = 1 if old is None else old.version + 1
    if args.row.version != expected:
        raise Refused("conflict", f"the next version is {expected}", field="row.version")
    draft.put(f"client/{args.client}", args.row)


def _budget(draft: Draft, args: SetBudget) -> None:
    checks.budget(args.row)
    if not args.service and args.row.alarm_opens is not None:
        raise Refused.bad_field("row.alarm_opens", "of a service, not of a tenant as a whole")
    refuse_revoked(draft, args.service or None)
    if args.service and f"service/{args.service}" not in draft.rows:
        raise Refused("unknown-service", f"no service {args.service!r}", field="service")
    old = draft.get(budget_name(args.service), BudgetRow)
    expected = 1 if old is None else old.version + 1
    if args.row.version != expected:
        raise Refused("conflict", f"the next version is {expected}", field="row.version")
    draft.put(budget_name(args.service), args.row)


_FIRST: Final = frozenset({"mesh.genesis", "tenant.create"})
_RESTRICTING: Final = frozenset({"suspend", "revoke", "tenant.destroy", "tenant.purge", ADOPT_TAIL})
_HANDLERS: Final[dict[str, Callable[[Draft, Any], None]]] = {
    "mesh.genesis": _genesis,
    OPEN_EPOCH: reduce_epochs.open_epoch,
    ADOPT_TAIL: reduce_epochs.adopt,
    CHANGE_VOTERS: reduce_voters.change,
    ROTATE_TRUST: reduce_trust.rotate,
    "region.join": _region_join,
    "region.rotate-ivk": _rotate_ivk,
    "region.migrate-keystore": _migrate_keystore,
    "tenant.create": _tenant_create,
    "tenant.set": _set_tenant,
    "tenant.labels": _labels,
    "l1.switch": _switch_l1,
    "l1.retire": _retire,
    "service.set": _service,
    "client.set": _client,
    "budget.set": _budget,
    "key.want": reduce_keys.want,
    "key.want-rewrap": reduce_keys.want_rewrap,
    "key.create": reduce_keys.create,
    "key.activate": reduce_keys.activate,
    "key.rewrapped": reduce_keys.rewrapped,
    "suspend": reduce_restrictions.suspend,
    "revoke": reduce_restrictions.revoke,
    "resume": reduce_restrictions.resume,
    "tenant.destroy": reduce_restrictions.destroy,
    "tenant.cancel-destroy": reduce_restrictions.cancel_destroy,
    "tenant.purge": reduce_restrictions.purge,
}
assert _HANDLERS.keys() == KINDS.keys()
