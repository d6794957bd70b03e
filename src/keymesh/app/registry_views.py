"""What the Registry's API shows of a tenant: its rows in the projection, turned into words for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

import msgspec
from msgspec import UNSET, UnsetType

from keymesh.app.registry_bodies import (
    BindingView,
    CertificateAnswer,
    DestructionView,
    KeyView,
    OpenHolderView,
    RestrictionView,
    ServiceView,
    TenantView,
)
from keymesh.control.rows import (
    L2_NAME,
    BindingRow,
    BudgetRow,
    KeyRow,
    PolicyRow,
    RestrictionRow,
    Rows,
    ServiceRow,
    WrappingRow,
    budget_name,
    get,
    split_key_row,
)
from keymesh.control.transition import restrictions_in
from keymesh.model.time import NEVER, Instant
from keymesh.registry import destruction, killswitch
from keymesh.registry.state import Kill, RegistryState


@dataclass(frozen=True, slots=True)
class TenantRows:
    """A tenant's rows as the projection had them at ``index``."""

    name: str
    policy: PolicyRow
    rows: dict[str, bytes]
    index: int


def restriction_state(raw: bytes) -> str:
    """``active``, ``suspended`` or ``revoked``."""
    row = msgspec.json.decode(raw, type=RestrictionRow)
    return "active" if row.state == "none" else row.state


def show_scopes(rows: Rows) -> tuple[RestrictionView, ...]:
    """Every restriction in force by ``rows``, with the entry that it came by."""
    return tuple(
        RestrictionView(scope=scope, state=row.state, seq=row.seq) for scope, row in restrictions_in(rows).items()
    )


def show_kill(
    state: RegistryState, kill: Kill, now: Instant, *, append_started_ns: int | None, appended_ns: int | None
) -> CertificateAnswer:
    """A kill switch for people: while it runs who is open, the last to close first; then its certificate."""
    record = kill.record
    is_certified, is_running = record.certificate is not None, killswitch.is_running(state, kill)
    holders = sorted(killswitch.open_holders(state, kill, now), key=lambda pair: (-pair[1], pair[0].node))
    running = tuple(OpenHolderView(node=h.node, evidence=h.evidence, closes_at=_instant(at)) for h, at in holders)
    return CertificateAnswer(
        command_id=record.command_id,
        correlation_id=record.correlation_id,
        scope=record.scope,
        action=record.action,
        status=record.status,
        holders=len(record.holders),
        accounted=sum(node in kill.evidence for node in record.holders),
        append_started_ns=append_started_ns,
        appended_ns=appended_ns,
        open=running if is_running else UNSET,
        closes_at=_instant(killswitch.due_at(state, kill)) if is_running else UNSET,
        certificate=record.certificate if is_certified else UNSET,
        t=record.t if is_certified else UNSET,
        committed_at=record.committed_at if is_certified else UNSET,
        elapsed_ms=record.certified_at - record.committed_at if is_certified else UNSET,
    )


def _instant(at: int) -> int | None:
    """None where nobody can say."""
    return None if at >= NEVER else at


def scope_state(space: TenantRows, *scopes: str) -> str:
    """The strictest of the restrictions on ``scopes``."""
    states = {
        restriction_state(space.rows[f"restriction/{scope}"])
        for scope in scopes
        if f"restriction/{scope}" in space.rows
    }
    return next((word for word in ("revoked", "suspended") if word in states), "active")


def show_destruction(state: RegistryState, tenant: str) -> DestructionView | UnsetType:
    """Where a tenant's destruction stands, if anybody ever asked for it."""
    shown = destruction.show(state, tenant)
    if shown is None:
        return UNSET
    return DestructionView(
        state=shown.state, command_id=shown.command_id, certificate_id=shown.certificate_id, due_at=shown.due_at
    )


_DESTRUCTION_WORDS: Final = {"waiting": "destroying", "purging": "destroying", "destroyed": "destroyed"}


def _tenant_state(space: TenantRows, state: RegistryState) -> str:
    """A destruction is more than any restriction, and done only once every holder has shown it."""
    shown = destruction.show(state, space.name)
    found = None if shown is None else _DESTRUCTION_WORDS.get(shown.state)
    return scope_state(space, f"tenant:{space.name}") if found is None else found


def show_tenant(space: TenantRows, state: RegistryState) -> TenantView:
    """A tenant for people: policy, bindings with their replica addresses, services, state."""
    policy = space.policy
    bindings = []
    for name, raw in sorted(space.rows.items()):
        if name.startswith("binding/"):
            row = msgspec.json.decode(raw, type=BindingRow)
            key = row.descriptor.get("key", "")
            replicas = row.descriptor.get("replicas", {})
            path = "/" + "/".join(filter(None, (row.descriptor.get("mount"), "keys", key)))
            if row.provider == "pkcs11":  # RFC 7512
                path = f";object={quote(key, safe='')}"
            elif row.provider == "aws-kms":  # the replica is the key's own ARN
                path = ""
            urls = {region: f"{url}{path}" for region, url in sorted(replicas.items())}
            first = urls.get(policy.home) or next(iter(urls.values()), "")
            bindings.append(
                BindingView(
                    id=name.removeprefix("binding/"),
                    provider=row.provider,
                    state=row.state,
                    url=first,
                    replicas=urls,
                )
            )
    return TenantView(
        tenant=space.name,
        home=policy.home,
        domain=policy.domain,
        regions=policy.regions,
        ttl_ms=policy.ttl_ms,
        standby=policy.standby,
        state=_tenant_state(space, state),
        bindings=tuple(bindings),
        budget=get(space.rows, "budget", BudgetRow),
        services=tuple(sorted(n.removeprefix("service/") for n in space.rows if n.startswith("service/"))),
        destruction=show_destruction(state, space.name),
    )


def show_service(space: TenantRows, name: str) -> ServiceView:
    """A service for people: its policy, its wrapping version, its state."""
    row = msgspec.json.decode(space.rows[f"service/{name}"], type=ServiceRow)
    wrapping = space.rows.get(f"wrapping/l3/{name}")
    return ServiceView(
        tenant=space.name,
        service=name,
        **msgspec.structs.asdict(row),
        budget=get(space.rows, budget_name(name), BudgetRow),
        wrapping=None if wrapping is None else msgspec.json.decode(wrapping, type=WrappingRow).version,
        state=scope_state(space, f"tenant:{space.name}", f"service:{space.name}/{name}"),
    )


def show_keys(space: TenantRows) -> tuple[KeyView, ...]:
    """Every key version of a tenant; ``state`` is the key's own unless a restriction is stricter."""
    out = []
    for name, raw in sorted(space.rows.items()):
        if not name.startswith("key/"):
            continue
        key, version = split_key_row(name)
        row = msgspec.json.decode(raw, type=KeyRow)
        wrapping = space.rows.get(f"wrapping/{key}")
        scopes = [f"tenant:{space.name}"]
        if key != L2_NAME:
            service = key.removeprefix("l3/")
            scopes += [f"service:{space.name}/{service}", f"key:{space.name}/{service}@{version}"]
        restricted = scope_state(space, *scopes)
        out.append(
            KeyView(
                tenant=space.name,
                key=key,
                version=version,
                revision=row.revision,
                kid=row.kid,
                parent=row.parent,
                digest=row.digest,
                state=row.state if restricted == "active" else restricted,
                wrapping=wrapping is not None and msgspec.json.decode(wrapping, type=WrappingRow).version == version,
            )
        )
    return tuple(out)
