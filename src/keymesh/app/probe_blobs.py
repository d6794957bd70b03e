"""What a probe of the customer's L1 has unwrapped: for each binding, its newest L2's part that L1 wrapped.

Nothing in it is secret, and a probe throws away what it opens; it is kept so that probing needs no key store.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

BINDINGS_MAX: Final = 100_000


class ProbeBlobs:
    """At most ``BINDINGS_MAX``; the one remembered longest ago gives way."""

    def __init__(self) -> None:
        self._blobs: OrderedDict[tuple[str, str], tuple[int, bytes]] = OrderedDict()

    def remember(self, namespace: str, binding_id: str, version: int, provider_blob: bytes) -> None:
        """An older version's does not replace a newer one's."""
        held = self._blobs.get((namespace, binding_id))
        if held is None or version >= held[0]:
            self._blobs[namespace, binding_id] = (version, provider_blob)
            self._blobs.move_to_end((namespace, binding_id))
        if len(self._blobs) > BINDINGS_MAX:
            self._blobs.popitem(last=False)

    def of(self, namespace: str, binding_id: str) -> bytes | None:
        held = self._blobs.get((namespace, binding_id))
        return None if held is None else held[1]

    def forget(self, namespace: str) -> None:
        for name in [name for name in self._blobs if name[0] == namespace]:
            del self._blobs[name]
