"""A namespace's rows, decoded once for each applied state.

Decides how doubt in a row is read: a restriction that cannot be understood restricts the whole namespace.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from msgspec import Struct

from keymesh.control import rows as r
from keymesh.control.entry import SignedEntry
from keymesh.control.state import NamespaceState
from keymesh.crypto.dsse import key_id
from keymesh.model.errors import KeymeshError
from keymesh.model.ids import MESH_NAMESPACE, KeyId, Namespace, TenantId
from keymesh.model.machine import Address, node_address
from keymesh.model.scope import Scope, ScopeKind, parse_scope
from keymesh.model.states import KEY_STATES, KeyState

REGISTRY_ROLE: Final = "registry"
LIVE_STATES: Final = frozenset({KeyState.PRE_ACTIVE, KeyState.ACTIVE, KeyState.DEACTIVATED})
LIVE_WORDS: Final = frozenset(state.value for state in LIVE_STATES)
"""The same, as rows say it."""


class Restriction(Struct, frozen=True):
    """A scope under restriction, as an entry set it."""

    scope: Scope
    text: str
    state: str  # "suspended" or "revoked"
    seq: int
    command_id: str


@dataclass(frozen=True, slots=True)
class TenantView:
    policy: r.PolicyRow | None = None
    services: dict[str, r.ServiceRow] = field(default_factory=dict)
    clients: dict[str, r.ClientRow] = field(default_factory=dict)
    budgets: dict[str, r.BudgetRow] = field(default_factory=dict)  # by service; the tenant's own under ""
    bindings: dict[str, r.BindingRow] = field(default_factory=dict)
    wants: dict[str, int] = field(default_factory=dict)
    rewraps: dict[str, str] = field(default_factory=dict)
    wrapping: dict[str, int] = field(default_factory=dict)
    keys: dict[tuple[str, int], r.KeyRow] = field(default_factory=dict)
    restrictions: dict[str, Restriction] = field(default_factory=dict)

    def active_binding(self) -> str | None:
        return next((name for name, row in sorted(self.bindings.items()) if row.state == "active"), None)

    def highest(self, key: str) -> int:
        return max([version for name, version in self.keys if name == key], default=0)


class NodeView(Struct, frozen=True):
    """An enrolled node: where it is, and what it signs with."""

    region: str
    keys: dict[KeyId, str]


@dataclass(frozen=True, slots=True)
class MeshView:
    settings: r.SettingsRow | None = None
    voters: r.VotersRow | None = None
    nodes: dict[Address, NodeView] = field(default_factory=dict)
    registry_keys: dict[KeyId, str] = field(default_factory=dict)
    regions: dict[str, r.RegionRow] = field(default_factory=dict)
    restrictions: dict[str, Restriction] = field(default_factory=dict)


EMPTY_TENANT: Final = TenantView()
EMPTY_MESH: Final = MeshView()


def key_state(row: r.KeyRow) -> KeyState | None:
    """The row's state, or None where this release does not know it."""
    return KEY_STATES.get(row.state)


def restriction_of(namespace: str, text: str, row: r.RestrictionRow) -> Restriction | None:
    """The restriction that ``row`` means, None where it is lifted.

    Doubt restricts: an unknown state counts as ``revoked``; a scope that cannot be read, or that is not this
    namespace's to restrict, as the whole namespace.
    """
    if row.state == "none":
        return None
    try:
        scope = parse_scope(text)
        if scope.namespace != namespace:
            scope = _whole(namespace)
    except KeymeshError:
        scope = _whole(namespace)
    state = row.state if row.state in ("suspended", "revoked") else "revoked"
    return Restriction(scope, text, state, row.seq, row.command_id)


def _whole(namespace: str) -> Scope:
    if namespace == MESH_NAMESPACE:
        return Scope(ScopeKind.MESH)
    return Scope(ScopeKind.TENANT, tenant=TenantId(Namespace(namespace)))


def restrictions_in(namespace: str, rows: r.Rows) -> dict[str, Restriction]:
    """Scope text -> restriction, of those in force in ``rows``."""
    found: dict[str, Restriction] = {}
    for text, row in restriction_rows(rows).items():
        restriction = restriction_of(namespace, text, row)
        if restriction is not None:
            found[text] = restriction
    return found


def restriction_rows(rows: r.Rows) -> dict[str, r.RestrictionRow]:
    """Scope text -> row, lifted ones too."""
    return {
        r.parts_of(name)[1]: r.decode_as(name, raw, r.RestrictionRow)
        for name, raw in rows.items()
        if r.shape_of(name) is r.RestrictionRow
    }


def tenant_view(namespace: str, rows: r.Rows) -> TenantView:
    """Raises Integrity or Refused for a row that this release does not know (which ``control.view`` refuses first)."""
    view = TenantView(restrictions=restrictions_in(namespace, rows), policy=r.policy_in(rows))
    for name, raw in rows.items():
        head, rest = r.parts_of(name)
        if head == "key":
            view.keys[r.split_key_row(name)] = r.decode_as(name, raw, r.KeyRow)
        elif head == "service":
            view.services[rest] = r.decode_as(name, raw, r.ServiceRow)
        elif head == "client":
            view.clients[rest] = r.decode_as(name, raw, r.ClientRow)
        elif head == "budget":
            view.budgets[rest] = r.decode_as(name, raw, r.BudgetRow)
        elif head == "binding":
            view.bindings[rest] = r.decode_as(name, raw, r.BindingRow)
        elif head == "want":
            view.wants[rest] = r.decode_as(name, raw, r.WantRow).version
        elif head == "rewrap":
            view.rewraps[rest] = r.decode_as(name, raw, r.RewrapRow).parent
        elif head == "wrapping":
            view.wrapping[rest] = r.decode_as(name, raw, r.WrappingRow).version
    return view


def mesh_view(rows: r.Rows) -> MeshView:
    """The part of ``mesh`` that a node acts on.  Raises as ``tenant_view``."""
    registry = r.get(rows, f"delegation/{REGISTRY_ROLE}", r.DelegationRow)
    return MeshView(
        settings=r.get(rows, "settings", r.SettingsRow),
        voters=r.get(rows, "voters", r.VotersRow),
        nodes={
            node_address(*name.split("/")[1:]): NodeView(
                name.split("/")[1], edge_key(r.decode_as(name, raw, r.NodeRow).signing_key)
            )
            for name, raw in rows.items()
            if r.shape_of(name) is r.NodeRow
        },
        registry_keys={} if registry is None else {KeyId(name): public for name, public in registry.keys.items()},
        regions={
            name.removeprefix("region/"): r.decode_as(name, raw, r.RegionRow)
            for name, raw in rows.items()
            if name.startswith("region/")
        },
        restrictions=restrictions_in(MESH_NAMESPACE, rows),
    )


def policy_entry(state: NamespaceState, service: str) -> SignedEntry | None:
    """The newest entry at hand that set ``service``'s policy: the head, or one that came along as support."""
    found: SignedEntry | None = None
    for signed in (*(s.signed for s in state.support), state.head):
        entry = signed.entry
        if entry.kind == "service.set" and entry.body.args.get("service") == service:
            if found is None or entry.seq > found.entry.seq:
                found = signed
    return found


def edge_key(signing_key: str) -> dict[KeyId, str]:
    """A raw Ed25519 public key in hex as the key set of one that ``Suite.unseal`` takes."""
    return {key_id(bytes.fromhex(signing_key)): signing_key}
