"""What the Registry's API shows of a tenant's clients: those that Cores serve by themselves."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from keymesh.app.registry_views import TenantRows, scope_state
from keymesh.control.rows import ClientRow


class ClientView(Struct, frozen=True, kw_only=True):
    """A client that Cores serve by themselves; ``state`` is ``active`` unless a restriction of its scope, its
    service's or the tenant's says otherwise."""

    tenant: str
    client: str
    service: str
    version: int
    state: str


class ClientsAnswer(Struct, frozen=True, kw_only=True):
    clients: tuple[ClientView, ...]
    index: int


def show_clients(space: TenantRows) -> tuple[ClientView, ...]:
    """Every client that the tenant names, ended ones too."""
    out = []
    for full, raw in sorted(space.rows.items()):
        if full.startswith("client/"):
            name, row = full.removeprefix("client/"), msgspec.json.decode(raw, type=ClientRow)
            scopes = (f"tenant:{space.name}", f"service:{space.name}/{row.service}", f"client:{space.name}/{name}")
            state = scope_state(space, *scopes)
            out.append(ClientView(tenant=space.name, client=name, **msgspec.structs.asdict(row), state=state))
    return tuple(out)
