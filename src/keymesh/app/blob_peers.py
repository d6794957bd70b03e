"""The blob store of a residency domain as one Core sees it: a write goes to a second region, a read tries all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from keymesh.app.peer_link import PeerLink
from keymesh.crypto.wrap import WRAP_MAX_BYTES, digest
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable

BLOB_TYPE = "application/octet-stream"


class BlobPeers:
    """``regions_of(tenant)``: the allowed regions other than our own; ``client_of(region)``: how to reach one."""

    def __init__(self, *, regions_of: Callable[[str], Sequence[str]], client_of: Callable[[str], PeerLink]) -> None:
        self._regions_of = regions_of
        self._client_of = client_of

    async def fetch(self, tenant: str, wanted: str) -> bytes:
        """The blob with that digest, from the first allowed region that has it.  Raises Unavailable."""
        for region in self._regions_of(tenant):
            try:
                _, blob = await self._client_of(region).request("GET", f"/v1/blobs/{tenant}/{wanted}", timeout_s=5.0)
            except (Unavailable, Refused, Integrity):
                continue
            if len(blob) <= WRAP_MAX_BYTES and digest(blob) == wanted:
                return blob
        raise Unavailable("no-blob", "no allowed region that answers has that key's blob")

    async def spread(self, tenant: str, name: str, blob: bytes) -> tuple[str, ...]:
        """Store in one more allowed region; returns it.  None are allowed: an empty tuple.

        Raises Unavailable where others are allowed and none of them took it.
        """
        regions = self._regions_of(tenant)
        last: KeymeshError | None = None
        for region in regions:
            try:
                await self._client_of(region).request(
                    "PUT", f"/v1/blobs/{tenant}/{name}", blob, content_type=BLOB_TYPE, timeout_s=5.0
                )
            except (Unavailable, Refused, Integrity) as failed:
                last = failed
                continue
            return (region,)
        if regions:
            raise Unavailable("one-copy", "no second region of the tenant took the blob") from last
        return ()
