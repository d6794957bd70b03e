"""The rows while one entry works on them, and what several kinds ask of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeVar

from keymesh.control.rows import KeyRow, RestrictionRow, Row, Rows, encode, get
from keymesh.model.errors import Refused
from keymesh.model.ids import ServiceName, TenantId
from keymesh.model.scope import Scope, ScopeKind, client_scope, destruction_of
from keymesh.model.states import KeyState

R = TypeVar("R", bound=Row)

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


def refuse_revoked(draft: Draft, service: str | None, client: str | None = None) -> None:
    """Nothing new for what is revoked.  Raises Refused ``revoked``."""
    scopes = [Scope(ScopeKind.TENANT, tenant=TenantId(draft.namespace))]
    if service is not None:
        scopes.append(Scope(ScopeKind.SERVICE, tenant=TenantId(draft.namespace), service=ServiceName(service)))
    if client is not None:
        scopes.append(client_scope(draft.namespace, client))
    for scope in (*scopes, destruction_of(draft.namespace)):
        _refuse_revoked_scope(draft, str(scope))


def _refuse_revoked_scope(draft: Draft, scope: str) -> None:
    row = draft.get(f"restriction/{scope}", RestrictionRow)
    if row is not None and row.state == "revoked":
        raise Refused("revoked", f"{scope} is revoked", field="scope")
