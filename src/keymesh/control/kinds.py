"""Kinds of entries: their arguments, whether they restrict or grant, their lane, and whose word they need.

A restriction is applied first and recorded after; a grant is recorded first (DESIGN section 2).  ``authority``
names who must have signed the command beside the Registry's online signature on the entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, dataclass_transform

from msgspec import Struct

from keymesh.control.rows import (
    BudgetRow,
    ClientRow,
    DelegationRow,
    KeyRow,
    NodeRow,
    PolicyRow,
    RegionRow,
    RootRow,
    ServiceRow,
    SettingsRow,
    SignersRow,
    VotersRow,
)
from keymesh.model.states import Lane


@dataclass_transform(frozen_default=True, kw_only_default=True)  # subclasses inherit both from Struct
class Args(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all arguments."""


class Genesis(Args):
    """First entry of ``mesh``: everything that trust starts from."""

    root: RootRow
    delegations: dict[str, DelegationRow]
    settings: SettingsRow
    regions: dict[str, RegionRow]
    nodes: dict[str, NodeRow]  # "<region>/<node>"
    voters: VotersRow


class RegionJoin(Args):
    region: str
    row: RegionRow
    nodes: dict[str, NodeRow]  # "<node>" -> row


class RotateIvk(Args):
    region: str
    generation: int


class MigrateKeystore(Args):
    """Bring the region's key store to ``schema``, which is higher than any that was asked for before."""

    region: str
    schema: int


class TenantCreate(Args):
    policy: PolicyRow
    signers: SignersRow
    binding_id: str
    provider: str
    descriptor: dict[str, Any]


class SetTenant(Args):
    """What a tenant may change of its policy: whether voters may grant leases of it (``allow`` or ``deny``)."""

    standby: str


class SwitchL1(Args):
    """A new binding becomes active, the old one retiring; every live L2 version is wanted under the new one."""

    binding_id: str
    provider: str
    descriptor: dict[str, Any]


class RetireBinding(Args):
    binding_id: str


class SetLabels(Args):
    labels: dict[str, str]


class SetService(Args):
    """Creates the service or replaces its policy; ``row.version`` is the old one plus one (1 at first)."""

    service: str
    row: ServiceRow


class SetClient(Args):
    """Names a client, or gives it another service; ``row.version`` is the old one plus one (1 at first).  Its end is
    ``revoke`` of ``client:T/C``: a name that was revoked is nobody's again."""

    client: str
    row: ClientRow


class SetBudget(Args):
    """Sets the budget of ``service``, or of the whole tenant where that is empty; ``row.version`` is the old one plus
    one (1 at first).  A grant in both directions: what Edges hold already of a larger budget stays theirs."""

    service: str
    row: BudgetRow


class WantKey(Args):
    """``version`` of ``key`` (``l2`` or ``l3/<service>``) is wanted: exactly one above the highest wanted."""

    key: str
    version: int


class WantRewrap(Args):
    key: str
    parent: str


class CreateKey(Args):
    key: str
    version: int
    kid: str
    digest: str
    parent: str


class ActivateKey(Args):
    """Pre-Active becomes Active; where ``wrapping``, it also becomes the wrapping version."""

    key: str
    version: int
    wrapping: bool


class Rewrapped(Args):
    """``revision`` is the old one plus one (compare)."""

    key: str
    version: int
    revision: int
    digest: str
    parent: str


class ScopeArgs(Args):
    """``abandon_children``: revoke a key version though other keys are wrapped under it.

    ``upto_seq``: of a resume, the seq of the restriction that it ends; of a region or the mesh it must be named, so
    that the officers' word for one resume ends no later suspension.
    """

    scope: str
    reason: str = ""
    abandon_children: bool = False
    upto_seq: int = 0


class OpenEpoch(Args):
    """Begin epoch ``epoch``, which is higher than any before; the entry is its first."""

    epoch: int


class ChangeVoters(Args):
    """Seat ``regions``, sorted, as set ``set_id``, the one after that of ``replaces``."""

    set_id: int
    regions: tuple[str, ...]
    replaces: tuple[str, ...]


class RotateTrust(Args):
    """The trust set after the one in force: ``root.version`` is the old one plus one, keys may stay.

    ``replaces``: digest of the set in force (``reduce_trust.set_digest``); ``genesis``: hash of the mesh's first entry.
    So whoever signs says which history this set ends.
    """

    root: RootRow
    officers: DelegationRow
    replaces: str
    genesis: str


class AdoptedRestriction(Args):
    """``command_id``: of the entry that set it first."""

    state: str  # "suspended" or "revoked"
    command_id: str


class AdoptTail(Args):
    """What validly signed tails had and this log lacks: restrictions by scope, key versions by row name.

    It only takes away: versions come in deactivated, a restriction in force stays.  Without restrictions it is the
    first entry of a namespace in a new epoch, that epoch's word on what went before, and none for voters to remember.
    """

    restrictions: dict[str, AdoptedRestriction] = {}
    keys: dict[str, KeyRow] = {}


class Destroy(Args):
    """The tenant is to be destroyed once ``wait_ms`` have passed; until then it can be cancelled.  ``scope`` is its
    ``destruction:T``, under which nothing is minted, opened or exported from now on."""

    scope: str
    wait_ms: int
    reason: str = ""


class Purge(Args):
    """What the Registry appends when the wait of the ``tenant.destroy`` in entry ``destroy_seq`` is over."""

    scope: str
    destroy_seq: int


class Effect(Enum):
    RESTRICTION = "restriction"
    GRANT = "grant"


class AuthorityBy(Enum):
    """Whose authority a kind needs beyond the Registry's signature."""

    NONE = "none"
    ROOT = "root"  # root threshold; of a rotation also those of the new root and of the new officers
    OFFICERS = "officers"  # delegation "officers", threshold
    SIGNERS = "signers"  # the tenant's signers, threshold
    FOUR_EYES_IF_WIDE = "four-eyes-if-wide"  # officers when the scope is region or mesh, else none


@dataclass(frozen=True, slots=True)
class Kind:
    name: str
    args: type[Args]
    effect: Effect
    lane: Lane
    namespace: str  # "mesh", "tenant" or "any"
    authority: AuthorityBy
    needs_commit: bool  # voters must countersign before any node may apply it (resume), or before a bound is claimed


def _kind(
    name: str,
    args: type[Args],
    lane: Lane,
    namespace: str,
    authority: AuthorityBy = AuthorityBy.NONE,
    effect: Effect = Effect.GRANT,
    needs_commit: bool = False,
) -> tuple[str, Kind]:
    return name, Kind(name, args, effect, lane, namespace, authority, needs_commit)


OPEN_EPOCH: Final = "epoch.open"
ADOPT_TAIL: Final = "epoch.adopt"
CHANGE_VOTERS: Final = "voters.change"
ROTATE_TRUST: Final = "trust.rotate"
OFFICER_KINDS: Final = ("suspend", "resume", "revoke", OPEN_EPOCH, CHANGE_VOTERS)
"""What a mesh of this release delegates to its officers."""
_R, _O, _N = Lane.RESTRICTION, Lane.ONBOARDING, Lane.ROUTINE

KINDS: Final[dict[str, Kind]] = dict(
    [
        _kind("mesh.genesis", Genesis, _O, "mesh", AuthorityBy.ROOT),
        _kind(OPEN_EPOCH, OpenEpoch, _O, "mesh", AuthorityBy.OFFICERS),
        _kind(ADOPT_TAIL, AdoptTail, _R, "any", AuthorityBy.NONE, Effect.RESTRICTION, True),
        _kind(CHANGE_VOTERS, ChangeVoters, _O, "mesh", AuthorityBy.OFFICERS),
        _kind(ROTATE_TRUST, RotateTrust, _O, "mesh", AuthorityBy.ROOT, Effect.GRANT, True),
        _kind("region.join", RegionJoin, _O, "mesh", AuthorityBy.ROOT),
        _kind("region.rotate-ivk", RotateIvk, _N, "mesh"),
        _kind("region.migrate-keystore", MigrateKeystore, _N, "mesh"),
        _kind("tenant.create", TenantCreate, _O, "tenant", AuthorityBy.SIGNERS),
        _kind("tenant.set", SetTenant, _N, "tenant", AuthorityBy.SIGNERS),
        _kind("tenant.labels", SetLabels, _N, "tenant"),
        _kind("l1.switch", SwitchL1, _O, "tenant", AuthorityBy.SIGNERS),
        _kind("l1.retire", RetireBinding, _N, "tenant"),
        _kind("service.set", SetService, _O, "tenant"),
        _kind("client.set", SetClient, _O, "tenant"),
        _kind("budget.set", SetBudget, _N, "tenant"),
        _kind("key.want", WantKey, _N, "tenant"),
        _kind("key.want-rewrap", WantRewrap, _N, "tenant"),
        _kind("key.create", CreateKey, _O, "tenant"),
        _kind("key.activate", ActivateKey, _O, "tenant"),
        _kind("key.rewrapped", Rewrapped, _N, "tenant"),
        _kind("suspend", ScopeArgs, _R, "any", AuthorityBy.FOUR_EYES_IF_WIDE, Effect.RESTRICTION, True),
        _kind("revoke", ScopeArgs, _R, "any", AuthorityBy.FOUR_EYES_IF_WIDE, Effect.RESTRICTION, True),
        _kind("resume", ScopeArgs, _O, "any", AuthorityBy.FOUR_EYES_IF_WIDE, Effect.GRANT, True),
        _kind("tenant.destroy", Destroy, _R, "tenant", AuthorityBy.NONE, Effect.RESTRICTION, True),
        _kind("tenant.cancel-destroy", ScopeArgs, _O, "tenant", AuthorityBy.NONE, Effect.GRANT, True),
        _kind("tenant.purge", Purge, _R, "tenant", AuthorityBy.NONE, Effect.RESTRICTION, True),
    ]
)
