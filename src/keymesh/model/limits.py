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
TASK_TRIES_MAX: Final = 3

EDGE_TTL_MIN_MS: Final = 1_000
EDGE_TTL_MAX_MS: Final = 3_600_000
EDGE_TTL_DEFAULT_MS: Final = 300_000
GOVERNANCE_TTL_MIN_MS: Final = 60_000
GOVERNANCE_TTL_MIN_DEV_MS: Final = 2_000
GOVERNANCE_TTL_MAX_MS: Final = 24 * 3_600_000
GOVERNANCE_TTL_DEFAULT_MS: Final = 3_600_000
