"""What an entry makes of its namespace's rows: preconditions checked, new rows returned, nothing else touched.

Decides whether a command fits the state that it meets.  Not who may give it (``trust``) and not whether it is newer
(``view``).  Source: DESIGN sections 1 and 2; kinds and rows are in ``kinds`` and ``rows``.

Codes of refusal: ``conflict`` (somebody was first, or a compare failed), ``already`` (it is so), ``revoked`` (final),
``unknown-*`` (names nothing), ``bad-field``, and those named where they are raised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from keymesh.control import checks
from keymesh.control.entry import Entry
from keymesh.control.kinds import (
    KINDS,
    ActivateKey,
    Args,
    CreateKey,
    Genesis,
    RegionJoin,
    RetireBinding,
    Rewrapped,
    RotateIvk,
    ScopeArgs,
    SetLabels,
    SetService,
    SwitchL1,
    TenantCreate,
    WantKey,
    WantRewrap,
)
from keymesh.control.rows import (
    L2_NAME,
    BindingRow,
    KeyRow,
    LabelsRow,
    PolicyRow,
    RegionRow,
    RestrictionRow,
    RewrapRow,
    Row,
    Rows,
    ServiceRow,
    SettingsRow,
    WantRow,
    WrappingRow,
    encode,
    get,
    key_row_name,
    l3_name,
)
from keymesh.model import strict_json
from keymesh.model.errors import Refused
from keymesh.model.ids import MESH_NAMESPACE, ServiceName, TenantId, check_hex
from keymesh.model.limits import TASK_MAX_BYTES
from keymesh.model.scope import Scope, ScopeKind, parse_scope
from keymesh.model.states import KeyState, may_become

STATE_MAX_BYTES: Final = TASK_MAX_BYTES // 2
"""Grants stop here, so that restrictions and the support of a state still fit into a task."""

R = TypeVar("R", bound=Row)
A = TypeVar("A", bound=Args)

_DEAD: Final = frozenset({KeyState.COMPROMISED.value, KeyState.DESTROYED.value, KeyState.DESTROYED_COMPROMISED.value})


@dataclass(slots=True)
class Draft:
    """The rows while one entry works on them."""

    namespace: str
    seq: int
    command_id: str
    rows: dict[str, bytes]
    mesh_rows: Rows | None

    def get(self, name: str, shape: type[R]) -> R | None:
        return get(self.rows, name, shape)

    def put(self, name: str, row: Row) -> None:
        self.rows[name] = encode(row)

    def key_rows(self, key: str) -> dict[int, KeyRow]:
        """Every version of ``key``."""
        return key_rows(self.rows, key)


def key_rows(rows: Rows, key: str) -> dict[int, KeyRow]:
    """Every version of ``key`` (``l2`` or ``l3/<service>``), by number, ascending."""
    prefix = f"key/{key}/"
    found = {}
    for name in rows:
        tail = name[len(prefix) :]
        if name.startswith(prefix) and tail.isdigit():
            row = get(rows, name, KeyRow)
            assert row is not None
            found[int(tail)] = row
    return dict(sorted(found.items()))


def is_live(row: KeyRow) -> bool:
    """Whether the version may ever be opened again."""
    return row.state not in _DEAD


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
    if kind not in _RESTRICTING and sum(len(k) + len(v) for k, v in draft.rows.items()) > STATE_MAX_BYTES:
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


def _switch_l1(draft: Draft, args: SwitchL1) -> None:
    """Old bindings keep opening until ``l1.retire``; a switch may overtake one that is still under way."""
    _refuse_revoked(draft, None)
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
    if any(is_live(key) and key.parent == args.binding_id for key in draft.key_rows(L2_NAME).values()):
        raise Refused("in-use", f"live L2 versions are wrapped under {args.binding_id}", field="binding_id")
    draft.put(f"binding/{args.binding_id}", checks.changed(row, state="retired"))


def _service(draft: Draft, args: SetService) -> None:
    checks.service(args.service, args.row)
    _refuse_revoked(draft, args.service)
    old = draft.get(f"service/{args.service}", ServiceRow)
    expected = 1 if old is None else old.version + 1
    if args.row.version != expected:
        raise Refused("conflict", f"the next version is {expected}", field="row.version")
    draft.put(f"service/{args.service}", args.row)
    if old is None:
        draft.put(f"want/{l3_name(args.service)}", WantRow(version=1))


# --- key versions ----------------------------------------------------------------------------------------------------


def service_of(rows: Rows, key: str) -> str | None:
    """The service of ``key``, None for L2.  Raises Refused for a key that the tenant cannot have."""
    if key == L2_NAME:
        return None
    head, slash, service = key.partition("/")
    if head != "l3" or not slash or f"service/{service}" not in rows:
        raise Refused("unknown-service", f"no service behind key {key[:80]!r}", field="key")
    return service


def _refuse_revoked(draft: Draft, service: str | None) -> None:
    scopes = [Scope(ScopeKind.TENANT, tenant=TenantId(draft.namespace))]
    if service is not None:
        scopes.append(Scope(ScopeKind.SERVICE, tenant=TenantId(draft.namespace), service=ServiceName(service)))
    for scope in scopes:
        _refuse_revoked_scope(draft, str(scope))


def _refuse_revoked_scope(draft: Draft, scope: str) -> None:
    row = draft.get(f"restriction/{scope}", RestrictionRow)
    if row is not None and row.state == "revoked":
        raise Refused("revoked", f"{scope} is revoked", field="scope")


def _check_parent(draft: Draft, key: str, parent: str) -> None:
    """L2 hangs from a binding that still opens, L3 from an L2 version that still opens."""
    if key == L2_NAME:
        binding = draft.get(f"binding/{parent}", BindingRow)
        fits = binding is not None and binding.state in ("active", "retiring")
    else:
        fits = any(row.kid == parent and is_live(row) for row in draft.key_rows(L2_NAME).values())
    if not fits:
        raise Refused("unknown-parent", f"{key} cannot be wrapped under {parent[:80]!r}", field="parent")


def _want(draft: Draft, args: WantKey) -> None:
    _refuse_revoked(draft, service_of(draft.rows, args.key))
    old = draft.get(f"want/{args.key}", WantRow)
    expected = 1 if old is None else old.version + 1
    if args.version != expected:
        raise Refused("conflict", f"the next version of {args.key} is {expected}", field="version")
    draft.put(f"want/{args.key}", WantRow(version=args.version))


def _want_rewrap(draft: Draft, args: WantRewrap) -> None:
    _refuse_revoked(draft, service_of(draft.rows, args.key))
    _check_parent(draft, args.key, args.parent)
    if args.key == L2_NAME:
        binding = draft.get(f"binding/{args.parent}", BindingRow)
        if binding is None or binding.state != "active":
            raise Refused("unknown-parent", "new wraps of L2 go under the active binding only", field="parent")
    draft.put(f"rewrap/{args.key}", RewrapRow(parent=args.parent))


def _create(draft: Draft, args: CreateKey) -> None:
    """The compare on (tenant, key, version) that makes one minter's version the version."""
    service = service_of(draft.rows, args.key)
    check_hex("kid", args.kid, hex_bytes=16)
    check_hex("digest", args.digest, hex_bytes=32)
    versions = draft.key_rows(args.key)
    old = versions.get(args.version)
    if old is not None:
        raise Refused(
            "already" if old.kid == args.kid else "conflict",
            f"{args.key} version {args.version} exists",
            field="version",
        )
    want = draft.get(f"want/{args.key}", WantRow)
    if want is None or args.version > want.version or args.version != max(versions, default=0) + 1:
        raise Refused("unwanted", f"{args.key} version {args.version} is not the next that is wanted", field="version")
    _refuse_revoked(draft, service)
    _check_parent(draft, args.key, args.parent)
    if any(n.startswith("key/") and _kid_at(draft, n) == args.kid for n in draft.rows):
        raise Refused("conflict", "that kid names another version", field="kid")
    state = KeyState.COMPROMISED if _version_revoked(draft, service, args.version) else KeyState.PRE_ACTIVE
    row = KeyRow(kid=args.kid, revision=1, state=state.value, digest=args.digest, parent=args.parent)
    draft.put(key_row_name(args.key, args.version), row)


def _kid_at(draft: Draft, name: str) -> str:
    row = draft.get(name, KeyRow)
    return "" if row is None else row.kid


def _version_revoked(draft: Draft, service: str | None, version: int) -> bool:
    """A version may have been revoked before it was made: the number stays taken, and dead."""
    if service is None:
        return False
    row = draft.get(f"restriction/key:{draft.namespace}/{service}@{version}", RestrictionRow)
    return row is not None and row.state == "revoked"


def _activate(draft: Draft, args: ActivateKey) -> None:
    _refuse_revoked(draft, service_of(draft.rows, args.key))
    row = _existing(draft, args.key, args.version)
    activates = row.state == KeyState.PRE_ACTIVE.value
    if not activates and row.state != KeyState.ACTIVE.value:
        raise Refused("revoked" if not is_live(row) else "conflict", f"the version is {row.state}", field="version")
    if not activates and not args.wrapping:
        raise Refused("already", "the version is active", field="version")
    if args.wrapping:
        wrapping = draft.get(f"wrapping/{args.key}", WrappingRow)
        if wrapping is not None and args.version <= wrapping.version:
            code = "already" if args.version == wrapping.version else "conflict"
            raise Refused(code, f"version {wrapping.version} wraps", field="version")
        draft.put(f"wrapping/{args.key}", WrappingRow(version=args.version))
    if activates:
        draft.put(key_row_name(args.key, args.version), checks.changed(row, state=KeyState.ACTIVE.value))


def _existing(draft: Draft, key: str, version: int) -> KeyRow:
    row = draft.get(key_row_name(key, version), KeyRow)
    if row is None:
        raise Refused("unknown-version", f"no version {version} of {key}", field="version")
    return row


def _rewrapped(draft: Draft, args: Rewrapped) -> None:
    service_of(draft.rows, args.key)
    check_hex("digest", args.digest, hex_bytes=32)
    row = _existing(draft, args.key, args.version)
    if not is_live(row):
        raise Refused("revoked", f"the version is {row.state}", field="version")
    if args.revision != row.revision + 1:
        same = args.revision == row.revision and args.digest == row.digest
        code = "already" if same else "conflict"
        raise Refused(code, f"the next revision is {row.revision + 1}", field="revision")
    _check_parent(draft, args.key, args.parent)
    moved = checks.changed(row, revision=args.revision, digest=args.digest, parent=args.parent)
    draft.put(key_row_name(args.key, args.version), moved)


# --- restrictions ----------------------------------------------------------------------------------------------------


def _scope(draft: Draft, args: ScopeArgs) -> tuple[Scope, RestrictionRow | None]:
    scope = parse_scope(args.scope)
    if scope.namespace != draft.namespace:
        raise Refused("wrong-namespace", f"{args.scope} is not {draft.namespace}'s to restrict", field="scope")
    checks.reason(args.reason)
    return scope, draft.get(f"restriction/{args.scope}", RestrictionRow)


def _put_restriction(draft: Draft, args: ScopeArgs, state: str) -> None:
    row = RestrictionRow(state=state, seq=draft.seq, command_id=draft.command_id)
    draft.put(f"restriction/{args.scope}", row)


def _suspend(draft: Draft, args: ScopeArgs) -> None:
    """Of a suspended scope too: a repeated command is an entry of its own.  Of a scope that nobody knows too."""
    _, old = _scope(draft, args)
    if old is not None and old.state == "revoked":
        raise Refused("already", f"{args.scope} is revoked", field="scope")
    _put_restriction(draft, args, "suspended")


def _revoke(draft: Draft, args: ScopeArgs) -> None:
    scope, old = _scope(draft, args)
    if old is not None and old.state == "revoked":
        raise Refused("already", f"{args.scope} is revoked", field="scope")
    if scope.kind is ScopeKind.KEY and scope.service is not None and scope.version is not None:
        _compromise(draft, key_row_name(l3_name(scope.service), scope.version), args.abandon_children)
    _put_restriction(draft, args, "revoked")


def _compromise(draft: Draft, name: str, abandon_children: bool) -> None:
    row = draft.get(name, KeyRow)
    if row is None:
        return
    children = any(
        n.startswith("key/") and child is not None and child.parent == row.kid and is_live(child)
        for n in draft.rows
        for child in (draft.get(n, KeyRow) if n.startswith("key/") else None,)
    )
    if children and not abandon_children:
        raise Refused("has-children", "other keys are wrapped under this version", field="abandon_children")
    if may_become(KeyState(row.state), KeyState.COMPROMISED):
        draft.put(name, checks.changed(row, state=KeyState.COMPROMISED.value))


def _resume(draft: Draft, args: ScopeArgs) -> None:
    _, old = _scope(draft, args)
    if old is not None and old.state == "revoked":
        raise Refused("revoked", f"{args.scope} is revoked: nothing ends that", field="scope")
    if old is None or old.state != "suspended":
        raise Refused("not-suspended", f"{args.scope} is not suspended", field="scope")
    _put_restriction(draft, args, "none")


_FIRST: Final = frozenset({"mesh.genesis", "tenant.create"})
_RESTRICTING: Final = frozenset({"suspend", "revoke"})
_HANDLERS: Final[dict[str, Callable[[Draft, Any], None]]] = {
    "mesh.genesis": _genesis,
    "region.join": _region_join,
    "region.rotate-ivk": _rotate_ivk,
    "tenant.create": _tenant_create,
    "tenant.labels": _labels,
    "l1.switch": _switch_l1,
    "l1.retire": _retire,
    "service.set": _service,
    "key.want": _want,
    "key.want-rewrap": _want_rewrap,
    "key.create": _create,
    "key.activate": _activate,
    "key.rewrapped": _rewrapped,
    "suspend": _suspend,
    "revoke": _revoke,
    "resume": _resume,
}
assert _HANDLERS.keys() == KINDS.keys()
assert MESH_NAMESPACE == "mesh"
