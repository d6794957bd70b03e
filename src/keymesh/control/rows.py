"""The rows of a namespace's desired state: names, typed values, and their one encoding.

A namespace is a map from row name to canonical JSON; its map-tree root is what every entry's ``state`` attests
(DESIGN section 2).  Digests and kids only, never key bytes, wrapped or not.

Tenant namespaces hold ``policy``, ``standby``, ``signers``, ``labels``, ``budget``, ``budget/<s>``, ``binding/<id>``,
``service/<s>``, ``client/<c>``, ``want/<key>``, ``rewrap/<key>``, ``wrapping/<key>``, ``key/<key>/<version>`` and
``restriction/<scope>``, where <key> is ``l2`` or ``l3/<service>``.  ``mesh`` holds ``settings``, ``root``,
``delegation/<role>``, ``region/<r>``, ``node/<r>/<n>``, ``voters``, ``voters/<earlier set>``, ``epoch`` and
``restriction/<scope>``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, TypeVar, dataclass_transform

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from keymesh.model import strict_json
from keymesh.model.caching import cached
from keymesh.model.errors import Integrity
from keymesh.model.ids import ServiceName
from keymesh.model.limits import TASK_MAX_BYTES

Rows = Mapping[str, bytes]


@dataclass_transform(frozen_default=True, kw_only_default=True)  # subclasses inherit both from Struct
class Row(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all rows."""


class PolicyRow(Row):
    """Who the tenant is and where it may be.  ``version`` rises with every change; ``regions`` is sorted."""

    version: int
    home: str
    domain: str
    regions: tuple[str, ...]
    admins: tuple[str, ...]  # admin names that hold the tenant-admin role
    ttl_ms: int | None = None  # governance ttl; None: the mesh's
    standby: str = "allow"  # or "deny"


class StandbyRow(Row):
    """What the tenant's signers said of Standby since its creation, in entry ``seq``; counts before the policy's."""

    standby: str  # "allow" or "deny"
    seq: int


class SignersRow(Row):
    """The tenant's own signing keys: key id -> raw Ed25519 public key in hex."""

    keys: dict[str, str]
    threshold: int


class LabelsRow(Row):
    labels: dict[str, str]


class BindingRow(Row):
    """One sovereign binding of the tenant to a key in the customer's KMS.  ``descriptor`` is the provider's own."""

    provider: str
    descriptor: dict[str, Any]
    state: str  # "active" (new wraps go here), "retiring" (still opens), "retired"


class ServiceRow(Row):
    """Policy of one service, pushed to its Edges.  ``version`` rises with every change; budgets are per lease."""

    version: int
    custody: str  # Custody value
    edge_ttl_ms: int
    mint_budget: int | None = None
    open_budget: int | None = None


class ClientRow(Row):
    """A client of the tenant that Cores serve by itself, and the one service whose objects are its own.  ``version``
    rises with every change; it is ended by a restriction of its scope, never by its row."""

    version: int
    service: str


class BudgetRow(Row):
    """What a service, or a tenant as a whole, may use in each calendar period (UTC).

    An operation is one data key minted or opened.  ``price`` is in millionths of the tenant's currency for 1 000
    operations, ``money`` in millionths; None: no such limit.  ``alarm_opens``: data keys opened in one minute at one
    Core, above which that Core raises an alarm (None: never), and suspends the service where ``auto_suspend``.
    """

    version: int
    period: str  # Period value
    ops: int | None = None
    money: int | None = None
    price: int = 0
    alarm_opens: int | None = None
    auto_suspend: bool = False

    @property
    def limits(self) -> bool:
        """Whether operations are counted under it."""
        return self.ops is not None or self.money is not None


class WantRow(Row):
    """Highest key version that is wanted to exist; the home region's minter makes the missing one."""

    version: int


class RewrapRow(Row):
    """All live versions are wanted under ``parent``: a binding id for L2, an L2 kid for L3."""

    parent: str


class WrappingRow(Row):
    """The version that protects new data."""

    version: int


class KeyRow(Row):
    """One key version.  ``digest`` is that of the sovereign binding (L2) or of the L2 wrap (L3)."""

    kid: str
    revision: int
    state: str  # KeyState value; a suspension is a restriction row, not a key state
    digest: str
    parent: str  # binding id (L2) or kid of the L2 (L3)


class RestrictionRow(Row):
    """``seq`` is the entry that set it.  ``none`` is kept after a resume so that its proof can be asked for."""

    state: str  # "suspended", "revoked", "none"
    seq: int
    command_id: str


class SettingsRow(Row):
    """Mesh-wide timing.  ``salt`` (hex, 32 bytes) blinds namespaces in voters' leaves."""

    ttl_ms: int
    heartbeat_ms: int
    l1_probe_ms: int
    l1_ttl_ms: int
    snapshot_ms: int
    salt: str
    development: bool


class RootRow(Row):
    version: int
    keys: dict[str, str]
    threshold: int


class DelegationRow(Row):
    """Keys that may sign (role ``registry``) or authorise (other roles) ``kinds`` in ``scope``."""

    keys: dict[str, str]
    threshold: int
    kinds: tuple[str, ...]
    scope: str  # "mesh", "tenant" or "any"


class RegionRow(Row):
    """``keystore_schema``: what its key store is to be brought to; unset until somebody asks for it, so that the row
    of a region that never was migrated has the bytes that release 0.1 gave it."""

    domain: str  # residency domain
    failure_domain: str
    ca_fingerprint: str
    ivk_generation: int = 1
    keystore_schema: int | UnsetType = UNSET

    @property
    def wanted_schema(self) -> int:
        """0 where none is."""
        return 0 if self.keystore_schema is UNSET else self.keystore_schema


class NodeRow(Row):
    signing_key: str  # raw Ed25519 public key, hex


class VotersRow(Row):
    set_id: int
    regions: tuple[str, ...]


class PastVotersRow(Row):
    """A set that entry ``until`` of ``mesh`` replaced: its word counts for entries that rest on less than that."""

    regions: tuple[str, ...]
    until: int


class EpochRow(Row):
    """The epoch that recovery officers opened last; no row where that is the first."""

    number: int


R = TypeVar("R", bound=Row)

_FIXED: Final[dict[str, type[Row]]] = {
    "policy": PolicyRow,
    "standby": StandbyRow,
    "signers": SignersRow,
    "labels": LabelsRow,
    "budget": BudgetRow,
    "settings": SettingsRow,
    "root": RootRow,
    "voters": VotersRow,
    "epoch": EpochRow,
}
_PREFIXED: Final[dict[str, type[Row]]] = {
    "binding": BindingRow,
    "service": ServiceRow,
    "client": ClientRow,
    "budget": BudgetRow,
    "want": WantRow,
    "rewrap": RewrapRow,
    "wrapping": WrappingRow,
    "key": KeyRow,
    "restriction": RestrictionRow,
    "delegation": DelegationRow,
    "region": RegionRow,
    "node": NodeRow,
    "voters": PastVotersRow,
}


@lru_cache(maxsize=16_384)
def parts_of(name: str) -> tuple[str, str]:
    """What kind of row ``name`` is, and of what: ``key`` and ``l2/1`` of ``key/l2/1``."""
    head, _, rest = name.partition("/")
    return head, rest


@lru_cache(maxsize=16_384)
def shape_of(name: str) -> type[Row] | None:
    """The row type that ``name`` holds, or None for a name that this release does not know."""
    head, slash, _ = name.partition("/")
    return _PREFIXED.get(head) if slash else _FIXED.get(head)


def encode(row: Row) -> bytes:
    return strict_json.dumps(row)


def decode(name: str, raw: bytes) -> Row:
    """The typed row.  Raises Integrity for a name or shape that this release does not know."""
    shape = shape_of(name)
    if shape is None:
        raise Integrity("unknown-row", f"row {name!r} is not known to this release", field=name)
    row: Row = _decoded(raw, shape)
    return row


def decode_as(name: str, raw: bytes, shape: type[R]) -> R:
    """As ``decode``, of a row that must be a ``shape``."""
    if shape_of(name) is not shape:
        raise Integrity("unknown-row", f"row {name!r} is not known to this release", field=name)
    row: R = _decoded(raw, shape)
    return row


@cached(32_768, lambda raw, shape: len(raw))
def _decoded(raw: bytes, shape: type[Row]) -> Any:
    """A ``shape``.  Rows change seldom and are read at every step; they are frozen, so equal bytes may share one
    object."""
    return strict_json.decode(raw, shape, max_bytes=TASK_MAX_BYTES)


def get(rows: Rows, name: str, shape: type[R]) -> R | None:
    """The row ``name`` as ``shape``, or None where absent."""
    if name not in rows:
        return None
    row: R = _decoded(rows[name], shape)
    return row


def policy_in(rows: Rows) -> PolicyRow | None:
    """The tenant's policy as it stands: as created, with what its signers have changed since."""
    policy, standby = get(rows, "policy", PolicyRow), get(rows, "standby", StandbyRow)
    return policy if policy is None or standby is None else replace(policy, standby=standby.standby)


def rows_bytes(rows: Rows) -> int:
    """The size of ``rows``, names included."""
    return sum(map(len, rows)) + sum(map(len, rows.values()))


def budget_name(service: str) -> str:
    """The row of a service's budget; of the whole tenant's where ``service`` is empty."""
    return f"budget/{service}" if service else "budget"


def l3_name(service: ServiceName | str) -> str:
    return f"l3/{service}"


L2_NAME: Final = "l2"


def key_row_name(key_name: str, version: int) -> str:
    """``key_name`` is ``l2`` or ``l3/<service>``."""
    return f"key/{key_name}/{version}"


@lru_cache(maxsize=16_384)
def split_key_row(name: str) -> tuple[str, int]:
    """(key_name, version) of ``key/<key_name>/<version>``."""
    _, _, rest = name.partition("/")
    key_name, _, version = rest.rpartition("/")
    return key_name, int(version)
