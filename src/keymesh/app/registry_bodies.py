"""What the Registry's API takes and what it answers; the OpenAPI document is made from these types.

All times are ms, instants Unix ms.  ``index`` of an answer: the log index that it reflects at least.
"""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Struct, UnsetType

from keymesh.app.backup_keeper import BackupView
from keymesh.control.rows import BudgetRow


class CommandBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``args`` by ``kind``; ``authority``: DSSE envelopes over the command, where the kind asks for them; ``words``: of
    ``voters.change``, what the old voters signed when they sealed their set."""

    namespace: str
    kind: str
    args: dict[str, Any]
    authority: tuple[dict[str, Any], ...] = ()
    words: tuple[dict[str, Any], ...] = ()


class BatchItem(CommandBody, frozen=True, kw_only=True):
    """A command with its id, which elsewhere is the Idempotency-Key."""

    command_id: str


class BatchBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """At most 32 commands; each stands for itself."""

    commands: tuple[BatchItem, ...]


class CommandAnswer(Struct, frozen=True, kw_only=True):
    """Where the command is in the log; ``duplicate``: the same had been committed before."""

    command_id: str
    namespace: str
    epoch: int
    seq: int
    index: int
    duplicate: bool
    correlation_id: str


class BatchProblem(Struct, frozen=True, kw_only=True):
    code: str
    message: str
    field: str | None


class BatchResult(Struct, frozen=True, kw_only=True):
    """``error`` where the command was refused; else where it is in the log, as in ``CommandAnswer``."""

    error: BatchProblem | UnsetType = UNSET
    command_id: str | UnsetType = UNSET
    namespace: str | UnsetType = UNSET
    epoch: int | UnsetType = UNSET
    seq: int | UnsetType = UNSET
    index: int | UnsetType = UNSET
    duplicate: bool | UnsetType = UNSET
    correlation_id: str | UnsetType = UNSET


class BatchAnswer(Struct, frozen=True, kw_only=True):
    """In the order of the commands."""

    results: tuple[BatchResult, ...]


class CommandStatus(Struct, frozen=True, kw_only=True):
    """``committed``: a majority of voters has it."""

    command_id: str
    namespace: str
    seq: int
    index: int
    committed: bool


class OpenHolderView(Struct, frozen=True, kw_only=True):
    """A node that may still use keys: ``evidence`` is ``ack`` (its Edge leases have not ended) or ``bound``; or, of a
    destruction, ``purged``: it has not shown that nothing is left there, and ``closes_at`` is null until it does."""

    node: str
    evidence: str
    closes_at: int | None


class CertificateAnswer(Struct, frozen=True, kw_only=True):
    """``status``: pending, revoking, certified, superseded, lifted.  The last four fields come with the certificate.

    While it runs: ``open``, who is not certainly done, and ``closes_at``, the latest instant (Unix ms) that ends it;
    of a destruction null while a receipt is missing.
    """

    command_id: str
    correlation_id: str
    scope: str
    action: str
    status: str
    holders: int
    accounted: int
    append_started_ns: int | None
    appended_ns: int | None
    open: tuple[OpenHolderView, ...] | UnsetType = UNSET
    closes_at: int | UnsetType | None = UNSET
    certificate: dict[str, Any] | UnsetType = UNSET
    t: int | UnsetType = UNSET
    committed_at: int | UnsetType = UNSET
    elapsed_ms: int | UnsetType = UNSET


class RestrictionView(Struct, frozen=True, kw_only=True):
    """``seq``: of the entry that it came by; a resume of a region or the mesh names it."""

    scope: str
    state: str
    seq: int


class BindingView(Struct, frozen=True, kw_only=True):
    """``url``: of the key at the home region's replica."""

    id: str
    provider: str
    state: str
    url: str
    replicas: dict[str, str]


class DestructionView(Struct, frozen=True, kw_only=True):
    """``state``: waiting, cancelled, purging, destroyed.  ``command_id``: of the latest word on it; ``certificate_id``:
    under which its certificate is, or will be; ``due_at``: Unix ms, when the waiting period is over."""

    state: str
    command_id: str
    certificate_id: str
    due_at: int | None


class TenantView(Struct, frozen=True, kw_only=True):
    """``state``: active, suspended, revoked, destroying, destroyed; ``ttl_ms`` null: the mesh's; ``standby``: allow,
    deny; ``destruction``: left out where nobody ever asked for one."""

    tenant: str
    home: str
    domain: str
    regions: tuple[str, ...]
    ttl_ms: int | None
    standby: str
    state: str
    bindings: tuple[BindingView, ...]
    budget: BudgetRow | None
    services: tuple[str, ...]
    destruction: DestructionView | UnsetType = UNSET


class ServiceView(Struct, frozen=True, kw_only=True):
    """``version``: of its policy; ``wrapping``: the key version that protects new data."""

    tenant: str
    service: str
    version: int
    custody: str
    edge_ttl_ms: int
    mint_budget: int | None
    open_budget: int | None
    budget: BudgetRow | None
    wrapping: int | None
    state: str


class KeyView(Struct, frozen=True, kw_only=True):
    """``key``: l2 or l3/S; ``parent``: binding id, or kid of the L2; ``wrapping``: it protects new data."""

    tenant: str
    key: str
    version: int
    revision: int
    kid: str
    parent: str
    digest: str
    state: str
    wrapping: bool


class RegionView(Struct, frozen=True, kw_only=True):
    """``behind``, ``missing``, ``drift``: namespaces; ``queued``: tasks by lane.

    ``keystore_wanted``: the schema that was asked for (0: none); ``keystore_schema``: the lowest that its nodes report
    (0: one has not), ``keystore_newest``: up to which all of them could be migrated.
    """

    region: str
    domain: str
    failure_domain: str
    reachable: bool
    heartbeat_age_ms: int | None
    ivk_wanted: int
    ivk_generation: int
    keystore_wanted: int
    keystore_schema: int
    keystore_newest: int
    voter: bool
    in_sync: bool
    behind: tuple[str, ...]
    missing: tuple[str, ...]
    drift: tuple[str, ...]
    pending: int
    modes: dict[str, str]
    state: str
    queued: dict[str, int]


class RestrictionsAnswer(Struct, frozen=True, kw_only=True):
    restrictions: tuple[RestrictionView, ...]
    index: int


class TenantsAnswer(Struct, frozen=True, kw_only=True):
    tenants: tuple[TenantView, ...]
    index: int


class TenantAnswer(TenantView, frozen=True, kw_only=True):
    index: int


class ServicesAnswer(Struct, frozen=True, kw_only=True):
    services: tuple[ServiceView, ...]
    index: int


class ServiceAnswer(ServiceView, frozen=True, kw_only=True):
    index: int


class KeysAnswer(Struct, frozen=True, kw_only=True):
    keys: tuple[KeyView, ...]
    index: int


class RegionsAnswer(Struct, frozen=True, kw_only=True):
    """``halted``: why the Registry takes no commands; empty where it does."""

    regions: tuple[RegionView, ...]
    halted: str
    index: int


class RegionAnswer(RegionView, frozen=True, kw_only=True):
    index: int


class StatusAnswer(Struct, frozen=True, kw_only=True):
    """``halted``: as in ``RegionsAnswer``; ``uncommitted``: entries that wait for voters; ``open_kill_switches``:
    restrictions that have no certificate yet; ``backup``: none where it is not configured; ``broker``: by lane, ``up``
    and what became of tasks, none where there is none."""

    mesh: str
    version: str
    halted: str
    tenants: int
    uncommitted: int
    open_kill_switches: int
    regions: dict[str, RegionView]
    index: int
    backup: BackupView | None = None
    broker: dict[str, dict[str, int]] | None = None
