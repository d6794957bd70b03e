"""Limits on everything that comes from outside, in one place (I17)."""

from __future__ import annotations

from typing import Final

ENTRY_MAX_BYTES: Final = 64 * 1024
TASK_MAX_BYTES: Final = 256 * 1024
COMMIT_MAX_ENTRIES: Final = 32
COMMIT_MAX_BYTES: Final = 1024 * 1024
HTTP_BODY_MAX_BYTES: Final = 1024 * 1024
CONTEXT_MAX_BYTES: Final = 8 * 1024
CONTEXT_MAX_PAIRS: Final = 64
BATCH_MAX_KEYS: Final = 10_000
SIGNATURES_MAX: Final = 16
LEAVES_IN_FULL_MAX: Final = 1_500  # of a heads tree, in a heartbeat or its answer; a larger one is walked
WALK_PREFIXES_MAX: Final = 64  # in one question
WALK_DIFFERENCES_MAX: Final = 1_000  # in one report
TASK_TRIES_MAX: Final = 3
BUDGET_MAX: Final = 10**15  # operations, or millionths of money, of one period
CORE_BATCH_MAX_KEYS: Final = 1_000  # of one call under core-held custody
SEALS_MAX: Final = 8  # of one MasterKey
CLIENTS_MAX: Final = 1_024  # of one tenant, named in its desired state
WORKERS_MAX: Final = 16  # of one Edge host: a Core grants it 64 leases, and each worker may have three at a time

EDGE_TTL_MIN_MS: Final = 1_000
EDGE_TTL_MAX_MS: Final = 3_600_000
EDGE_TTL_DEFAULT_MS: Final = 300_000
GOVERNANCE_TTL_MIN_MS: Final = 60_000
GOVERNANCE_TTL_MIN_DEV_MS: Final = 2_000
GOVERNANCE_TTL_MAX_MS: Final = 24 * 3_600_000
GOVERNANCE_TTL_DEFAULT_MS: Final = 3_600_000

DESTROY_WAIT_DEFAULT_MS: Final = 7 * 24 * 3_600_000
DESTROY_WAIT_MIN_MS: Final = 24 * 3_600_000
DESTROY_WAIT_MIN_DEV_MS: Final = 1_000
DESTROY_WAIT_MAX_MS: Final = 90 * 24 * 3_600_000

KMIP_MESSAGE_MAX_BYTES: Final = 1024 * 1024
KMIP_RESPONSE_MAX_BYTES: Final = 1024 * 1024  # of one answer, whatever a batch asks for
KMIP_BATCH_MAX: Final = 256  # items of one request
KMIP_DEPTH_MAX: Final = 32
KMIP_OBJECT_MAX_BYTES: Final = 255 * 1024  # of one object with its attributes, before it is sealed
KMIP_NAMES_MAX: Final = 32  # of one object
KMIP_ITEMS_MAX: Final = 16_384  # of one message, structures counted

OBJECT_SEALED_MAX_BYTES: Final = 256 * 1024  # of one KMIP object, sealed
OBJECT_NAMES_MAX: Final = 64  # of one KMIP object
OBJECT_NAME_MAX_BYTES: Final = 64  # of a name's blinded token
OBJECT_COMMIT_MAX: Final = 64  # objects in one commit
OBJECT_COMMIT_MAX_BYTES: Final = 768 * 1024  # of one commit: it fits into one request to another region
OBJECTS_PER_TENANT_MAX: Final = 100_000
OBJECTS_FOUND_MAX: Final = 10_000  # in one answer
OBJECT_FORKS_MAX: Final = 1_000  # kept as evidence, of all tenants
OBJECT_FORWARDS_MAX: Final = 1_000  # of one tenant, remembered
OBJECT_PAGE_MAX: Final = 100  # objects in one answer to another region
OBJECT_PAGE_MAX_BYTES: Final = 1024 * 1024  # of these; one object more may go beyond
OBJECT_HEADS_MAX: Final = 1_000  # tenants in one answer to another region
