"""Whether the content of a row is well formed: names, limits, thresholds.  Each raises Refused naming the field.

Decides nothing about what was there before (``reduce``) or who asks (``trust``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec

from keymesh.control.kinds import KINDS, Kind
from keymesh.control.rows import (
    BudgetRow,
    ClientRow,
    DelegationRow,
    NodeRow,
    PolicyRow,
    RegionRow,
    RootRow,
    Row,
    ServiceRow,
    SettingsRow,
    SignersRow,
    VotersRow,
)
from keymesh.crypto.dsse import key_id
from keymesh.model.errors import Refused
from keymesh.model.ids import (
    MESH_NAMESPACE,
    check_hex,
    check_label,
    check_region,
    check_service,
    check_tenant,
    check_token,
)
from keymesh.model.limits import (
    BUDGET_MAX,
    DESTROY_WAIT_MAX_MS,
    DESTROY_WAIT_MIN_DEV_MS,
    DESTROY_WAIT_MIN_MS,
    EDGE_TTL_MAX_MS,
    EDGE_TTL_MIN_MS,
    GOVERNANCE_TTL_MAX_MS,
    GOVERNANCE_TTL_MIN_DEV_MS,
    GOVERNANCE_TTL_MIN_MS,
    SIGNATURES_MAX,
)
from keymesh.model.periods import Period
from keymesh.model.states import Custody

TEXT_MAX_CHARS: Final = 256
LABELS_MAX: Final = 64
ADMINS_MAX: Final = 64
REGIONS_MAX: Final = 64
SMALL_VOTER_SETS: Final = (0, 1, 2)
VOTER_SETS: Final = (3, 5, 7)
EVERY_KIND: Final = "*"

W = TypeVar("W", bound=Row)


def changed(row: W, **fields: Any) -> W:
    """``row`` with other ``fields``."""
    return msgspec.structs.replace(row, **fields)


def namespace_fits(kind: Kind, namespace: str) -> None:
    of_mesh = namespace == MESH_NAMESPACE
    if not of_mesh:
        check_tenant(namespace)
    if kind.namespace != "any" and (kind.namespace == "mesh") is not of_mesh:
        raise Refused("wrong-namespace", f"{kind.name} belongs to a {kind.namespace} namespace", field="namespace")


def keys(field: str, held: Mapping[str, str], threshold: int) -> None:
    """Each id is the hash of its own key, so that no key can stand twice; the threshold can be met."""
    if not 1 <= len(held) <= SIGNATURES_MAX:
        raise Refused.bad_field(field, f"1 to {SIGNATURES_MAX} keys")
    if not 1 <= threshold <= len(held):
        raise Refused.bad_field(f"{field}.threshold", f"1 to {len(held)}, got {threshold}")
    for name, public in held.items():
        if key_id(bytes.fromhex(check_hex(field, public, hex_bytes=32))) != name:
            raise Refused.bad_field(field, "a key id is the SHA-256 of its key")


def root(row: RootRow) -> None:
    if row.version < 1:
        raise Refused.bad_field("root.version", "from 1")
    keys("root", row.keys, row.threshold)


def signers(row: SignersRow) -> None:
    keys("signers", row.keys, row.threshold)


def delegations(rows: Mapping[str, DelegationRow]) -> None:
    if "registry" not in rows:
        raise Refused.bad_field("delegations", "the role registry is needed")
    for role, row in rows.items():
        check_label("delegations", role)
        keys(f"delegations.{role}", row.keys, row.threshold)
        if row.scope not in ("mesh", "tenant", "any"):
            raise Refused.bad_field(f"delegations.{role}.scope", "one of mesh, tenant, any")
        if not set(row.kinds) <= {EVERY_KIND, *KINDS}:
            raise Refused.bad_field(f"delegations.{role}.kinds", "known kinds or *")


def settings(row: SettingsRow) -> None:
    ttl("settings.ttl_ms", row.ttl_ms, development=row.development)
    for field in ("heartbeat_ms", "l1_probe_ms", "l1_ttl_ms", "snapshot_ms"):
        if not 0 < getattr(row, field) <= GOVERNANCE_TTL_MAX_MS:
            raise Refused.bad_field(f"settings.{field}", f"1 to {GOVERNANCE_TTL_MAX_MS} ms")
    check_hex("settings.salt", row.salt, hex_bytes=32)


def ttl(field: str, ttl_ms: int, *, development: bool) -> None:
    least = GOVERNANCE_TTL_MIN_DEV_MS if development else GOVERNANCE_TTL_MIN_MS
    if not least <= ttl_ms <= GOVERNANCE_TTL_MAX_MS:
        raise Refused.bad_field(field, f"{least} to {GOVERNANCE_TTL_MAX_MS} ms, got {ttl_ms}")


def voters(row: VotersRow, regions: Mapping[str, RegionRow]) -> None:
    """3, 5 or 7 in distinct failure domains, or fewer (and then no Standby)."""
    if len(row.regions) not in SMALL_VOTER_SETS + VOTER_SETS:
        raise Refused.bad_field("voters.regions", "3, 5 or 7 (or fewer than 3)")
    if not set(row.regions) <= regions.keys():
        raise Refused.bad_field("voters.regions", "regions of this mesh")
    if len({regions[r].failure_domain for r in row.regions}) != len(row.regions):
        raise Refused.bad_field("voters.regions", "distinct failure domains")
    if row.set_id < 1:
        raise Refused.bad_field("voters.set_id", "from 1")


def region(name: str, row: RegionRow) -> None:
    check_region(name)
    check_label("region.domain", row.domain)
    check_label("region.failure_domain", row.failure_domain)
    if row.ivk_generation < 1:
        raise Refused.bad_field("region.ivk_generation", "from 1")
    if row.wanted_schema:
        raise Refused.bad_field("region.keystore_schema", "not at the beginning")
    text("region.ca_fingerprint", row.ca_fingerprint)


def node(name: str, row: NodeRow) -> None:
    check_label("node", name)
    check_hex("node.signing_key", row.signing_key, hex_bytes=32)


def policy(row: PolicyRow, *, development: bool) -> None:
    check_label("policy.domain", row.domain)
    for name in row.regions:
        check_region(name)
    if not 1 <= len(row.regions) <= REGIONS_MAX or tuple(sorted(set(row.regions))) != row.regions:
        raise Refused.bad_field("policy.regions", f"1 to {REGIONS_MAX}, sorted, each once")
    if row.home not in row.regions:
        raise Refused.bad_field("policy.home", "one of the allowed regions")
    if len(row.admins) > ADMINS_MAX:
        raise Refused.bad_field("policy.admins", f"at most {ADMINS_MAX}")
    for admin in row.admins:
        check_label("policy.admins", admin)
    if row.ttl_ms is not None:
        ttl("policy.ttl_ms", row.ttl_ms, development=development)
    standby("policy.standby", row.standby)


def standby(field: str, value: str) -> None:
    if value not in ("allow", "deny"):
        raise Refused.bad_field(field, "allow or deny")


def binding(binding_id: str, provider: str) -> None:
    check_token("binding_id", binding_id)
    check_token("provider", provider)


def service(name: str, row: ServiceRow) -> None:
    check_service(name)
    if row.custody not in {c.value for c in Custody}:
        raise Refused.bad_field("row.custody", "leased or core-held")
    if not EDGE_TTL_MIN_MS <= row.edge_ttl_ms <= EDGE_TTL_MAX_MS:
        raise Refused.bad_field("row.edge_ttl_ms", f"{EDGE_TTL_MIN_MS} to {EDGE_TTL_MAX_MS} ms")
    for field in ("mint_budget", "open_budget"):
        budget = getattr(row, field)
        if budget is not None and budget < 0:
            raise Refused.bad_field(f"row.{field}", "not below 0")


def client(name: str, row: ClientRow) -> None:
    check_label("client", name)
    check_service(row.service)


def budget(row: BudgetRow) -> None:
    """Whole numbers within limits; money needs a price to be counted by."""
    if row.period not in {p.value for p in Period}:
        raise Refused.bad_field("row.period", "minute, hour, day or month")
    for field, least in (("ops", 0), ("money", 0), ("price", 0), ("alarm_opens", 1)):
        value = getattr(row, field)
        if value is not None and not least <= value <= BUDGET_MAX:
            raise Refused.bad_field(f"row.{field}", f"{least} to {BUDGET_MAX}, got {value}")
    if row.money is not None and not row.price:
        raise Refused.bad_field("row.price", "from 1, where money is limited")
    if row.auto_suspend and row.alarm_opens is None:
        raise Refused.bad_field("row.alarm_opens", "needed for an automatic suspension")


def labels(held: Mapping[str, str]) -> None:
    if len(held) > LABELS_MAX:
        raise Refused.bad_field("labels", f"at most {LABELS_MAX}")
    for name, value in held.items():
        text("labels", name)
        if len(value) > TEXT_MAX_CHARS:
            raise Refused.bad_field("labels", f"at most {TEXT_MAX_CHARS} characters")


def destroy_wait(wait_ms: int, *, development: bool) -> None:
    least = DESTROY_WAIT_MIN_DEV_MS if development else DESTROY_WAIT_MIN_MS
    if not least <= wait_ms <= DESTROY_WAIT_MAX_MS:
        raise Refused.bad_field("wait_ms", f"{least} to {DESTROY_WAIT_MAX_MS} ms, got {wait_ms}")


def text(field: str, value: str) -> None:
    """Not blank, not long."""
    if not 0 < len(value) <= TEXT_MAX_CHARS:
        raise Refused.bad_field(field, f"1 to {TEXT_MAX_CHARS} characters")


def reason(value: str) -> None:
    if len(value) > TEXT_MAX_CHARS:
        raise Refused.bad_field("reason", f"at most {TEXT_MAX_CHARS} characters")
