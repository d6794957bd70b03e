"""What a token of the Vault face may be allowed, and for how long; apart, so that the command line stays light."""

from __future__ import annotations

from typing import Final

RIGHTS: Final = ("encrypt", "decrypt", "rewrap", "datakey", "read", "create", "rotate")
TTL_DEFAULT_S: Final = 3_600
TTL_MAX_S: Final = 32 * 24 * 3_600
