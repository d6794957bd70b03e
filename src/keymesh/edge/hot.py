"""Mint and open L4 under the lease that the machine published: no network, no lock, no allocation to spare (ADR-602).

Decides whether this one operation may go on, with the raw clocks that it is given; whether there is a lease at all is
the machine's.  Every operation reads the lease once, checks the deadline before and again before anything is
released, and throws its result away where the lease was replaced meanwhile (then it starts over) or is gone.

Source: DESIGN sections 1 (L4 blob, AAD) and 3 (elapsed time, half-open deadlines, check before and before release).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from operator import length_hint
from typing import Final

from keymesh.crypto.aad import encode_context
from keymesh.crypto.blob import L4_BLOB_BYTES, check_l4_blob
from keymesh.edge.hot_lease import (
    UNLIMITED,
    BudgetSpent,
    CreatedKey,
    HotLease,
    Meter,
    Octets,
    UnknownKid,
    no_lease,
    refusal,
)
from keymesh.model.errors import KeymeshError, Refused, Unavailable
from keymesh.model.limits import BATCH_MAX_KEYS

_DRAW_BYTES: Final = 32 + 24  # L4 and nonce, drawn together
_HEAD_BYTES: Final = 18
_SEALED_AT: Final = 42
_TRIES: Final = 4


class HotPath:
    """The operations, for any number of threads.  ``boot_ns`` and ``wall_ns`` read the clocks, ``entropy`` draws.

    ``on_death`` is told, from whichever thread saw it first, that the lease's time is over.
    """

    __slots__ = (
        "__weakref__",
        "_boot",
        "_entropy",
        "_lease",
        "_meters",
        "_on_death",
        "_refused",
        "_refused_seen",
        "_wall",
        "short",
    )

    def __init__(
        self,
        *,
        boot_ns: Callable[[], int],
        wall_ns: Callable[[], int],
        entropy: Callable[[int], bytes],
        on_death: Callable[[str], None],
    ) -> None:
        self._boot = boot_ns
        self._wall = wall_ns
        self._entropy = entropy
        self._on_death = on_death
        self._lease = no_lease("starting")
        self._meters: list[Meter] = []
        self._refused = repeat(True, UNLIMITED)
        self._refused_seen = 0
        self.short = 0  # the largest use since the shell last looked that a budget had not enough left for

    # --- the shell's side --------------------------------------------------------------------------------------

    def publish(self, lease: HotLease) -> None:
        """``lease`` from now on; the one before it is dead when this returns."""
        old, self._lease = self._lease, lease
        old.kill("replaced")
        old.meter.retired = True
        self._meters.append(lease.meter)

    @property
    def lease(self) -> HotLease:
        return self._lease

    @property
    def reason(self) -> str:
        """Why there is no lease; empty where there is one."""
        return self._lease.reason

    def is_live(self) -> bool:
        """Whether a use would find a lease now (or the Core's custody)."""
        lease = self._lease
        return lease.reason == "core-held" or self._alive(lease)

    def take_usage(self) -> tuple[int, int, int]:
        """(minted, opened, refused) since the last call, what retired leases did until just now included."""
        minted = opened = 0
        keep = []
        for meter in self._meters:
            retired = meter.retired
            more = meter.take()
            minted += more[0]
            opened += more[1]
            if not retired or any(more):
                keep.append(meter)
        self._meters = keep
        refused = UNLIMITED - length_hint(self._refused)
        seen, self._refused_seen = self._refused_seen, refused
        return minted, opened, refused - seen

    # --- the application's side --------------------------------------------------------------------------------

    def create_key(self, context: Mapping[str, str] | None = None, plaintext: bool = False) -> CreatedKey:
        """A new L4 under the wrapping version.

        Raises Refused (context malformed, restricted), Unavailable (no lease, budget spent), CoreHeld.
        """
        for _ in range(_TRIES):
            lease = self._lease
            boot = self._boot()
            wall = self._wall()
            if boot >= lease.boot_end or wall >= lease.wall_end or wall - boot < lease.lead_floor:
                raise self._refusal(lease)
            key = lease.wrapping
            if key is None:
                self._no_wrapping(lease)
                continue
            aad = key.aad + _encode(context) if context else key.aad_empty
            if next(lease.mints, None) is None:
                raise self._spent(lease)
            draw = self._entropy(_DRAW_BYTES)
            nonce = draw[32:]
            l4 = draw[:32]
            blob = key.head + nonce + key.seal(nonce, l4, aad)
            boot = self._boot()
            wall = self._wall()
            if (
                self._lease is lease
                and boot < lease.boot_end
                and wall < lease.wall_end
                and wall - boot >= lease.lead_floor
            ):
                return CreatedKey(blob, l4 if plaintext else None)
        raise self._refusal(self._lease)

    def decrypt_key(self, blob: Octets, context: Mapping[str, str] | None = None) -> bytes:
        """The L4 in ``blob``.

        Raises Refused (blob or context malformed, restricted), Integrity (opaque: changed, or another context),
        UnknownKid, Unavailable (no lease, budget spent), CoreHeld.
        """
        if type(blob) is not bytes:
            blob = _octets(blob)
        for _ in range(_TRIES):
            lease = self._lease
            boot = self._boot()
            wall = self._wall()
            if boot >= lease.boot_end or wall >= lease.wall_end or wall - boot < lease.lead_floor:
                raise self._refusal(lease)
            key = lease.versions.get(blob[:_HEAD_BYTES])
            if key is None or len(blob) != L4_BLOB_BYTES:
                self._no_version(lease, blob)
                continue
            aad = key.aad + _encode(context) if context else key.aad_empty
            if next(lease.opens, None) is None:
                raise self._spent(lease)
            l4 = key.open_(blob[_HEAD_BYTES:_SEALED_AT], blob[_SEALED_AT:], aad)
            boot = self._boot()
            wall = self._wall()
            if (
                self._lease is lease
                and boot < lease.boot_end
                and wall < lease.wall_end
                and wall - boot >= lease.lead_floor
            ):
                return l4
        raise self._refusal(self._lease)

    def create_keys(
        self, count: int, context: Mapping[str, str] | None = None, plaintext: bool = False
    ) -> list[CreatedKey]:
        """``count`` new L4s under one version and one context: all, or an error."""
        check_batch("count", count)
        for _ in range(_TRIES):
            lease = self._checked()
            key = lease.wrapping
            if key is None:
                self._no_wrapping(lease)
                continue
            aad = key.aad + _encode(context) if context else key.aad_empty
            if lease.meter.is_short(count):
                raise self._spent(lease, count)
            made = []
            for _ in range(count):
                if next(lease.mints, None) is None:
                    raise self._spent(lease)
                draw = self._entropy(_DRAW_BYTES)
                nonce = draw[32:]
                l4 = draw[:32]
                made.append(CreatedKey(key.head + nonce + key.seal(nonce, l4, aad), l4 if plaintext else None))
            if self._lease is lease and self._alive(lease):
                return made
        raise self._refusal(self._lease)

    def decrypt_keys(self, blobs: Sequence[Octets], context: Mapping[str, str] | None = None) -> list[bytes]:
        """The L4s in ``blobs``, in their order and under one context: all, or the first error."""
        check_batch("blobs", len(blobs))
        plain = [blob if type(blob) is bytes else _octets(blob) for blob in blobs]
        encoded = _encode(context) if context else b"\0\0\0\0"
        for _ in range(_TRIES):
            lease = self._checked()
            opened = self._open_all(lease, plain, encoded)
            if opened is not None and self._lease is lease and self._alive(lease):
                return opened
        raise self._refusal(self._lease)

    def _open_all(self, lease: HotLease, blobs: Sequence[bytes], encoded: bytes) -> list[bytes] | None:
        opened = []
        if lease.meter.is_short(len(blobs)):
            raise self._spent(lease, len(blobs))
        for blob in blobs:
            key = lease.versions.get(blob[:_HEAD_BYTES])
            if key is None or len(blob) != L4_BLOB_BYTES:
                self._no_version(lease, blob)
                return None
            if next(lease.opens, None) is None:
                raise self._spent(lease)
            opened.append(key.open_(blob[_HEAD_BYTES:_SEALED_AT], blob[_SEALED_AT:], key.aad + encoded))
        return opened

    # --- the slow side: why not ----------------------------------------------------------------------------------

    def _alive(self, lease: HotLease) -> bool:
        boot = self._boot()
        wall = self._wall()
        return boot < lease.boot_end and wall < lease.wall_end and wall - boot >= lease.lead_floor

    def _checked(self) -> HotLease:
        lease = self._lease
        if not self._alive(lease):
            raise self._refusal(lease)
        return lease

    def _refusal(self, lease: HotLease) -> KeymeshError:
        """A lease whose time is over stays dead, whatever the clocks say later."""
        next(self._refused)
        reason = lease.reason
        if not reason:
            reason = "clock" if self._boot() < lease.boot_end and self._wall() < lease.wall_end else "expired"
            lease.kill(reason)
            self._on_death(reason)
        elif reason == "replaced":
            reason = self._lease.reason or "revoked"
        return refusal(reason)

    def _no_wrapping(self, lease: HotLease) -> None:
        """Start over where the lease was replaced under us; else it really has none."""
        if self._lease is lease:
            next(self._refused)
            if lease.reason:
                raise refusal(lease.reason)
            raise Unavailable("no-wrapping-key", "no version of this service's key protects new data now")

    def _no_version(self, lease: HotLease, blob: bytes) -> None:
        check_l4_blob(blob)
        if self._lease is lease:
            next(self._refused)
            if lease.reason:
                raise refusal(lease.reason)
            raise UnknownKid()

    def _spent(self, lease: HotLease, count: int = 1) -> KeymeshError:
        """What is left may have gone over to a lease that replaced this one."""
        next(self._refused)
        if self._lease is not lease:
            return BudgetSpent("the lease was replaced", more=True)
        self.short = max(self.short, count)
        self._on_death("spent")
        return lease.meter.spent(self._boot())


def _encode(context: Mapping[str, str]) -> bytes:
    try:
        return encode_context(context)
    except (AttributeError, TypeError):
        raise Refused.bad_field("context", "a mapping of text to text") from None


def _octets(blob: object) -> bytes:
    if isinstance(blob, bytes | bytearray | memoryview):
        return bytes(blob)
    raise Refused.bad_field("blob", "bytes")


def check_batch(field: str, count: int) -> None:
    """Raises Refused naming ``field`` outside 1 to the limit."""
    if not 0 < count <= BATCH_MAX_KEYS:
        raise Refused.bad_field(field, f"1 to {BATCH_MAX_KEYS}, got {count}")
