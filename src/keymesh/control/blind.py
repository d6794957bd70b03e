"""How a namespace is named to those who may not know it: voters outside a tenant's regions (DESIGN section 2, I5)."""

from __future__ import annotations

import hashlib
import hmac
from functools import lru_cache


@lru_cache(maxsize=16_384)
def blind(salt_hex: str, namespace: str) -> str:
    """HMAC-SHA256(mesh salt, namespace), in hex."""
    return hmac.new(bytes.fromhex(salt_hex), namespace.encode(), hashlib.sha256).hexdigest()
