"""What every use of a key has in common: its parameters, its usage mask, its dates, its usage limits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from keymesh.kmip.attributes import valid
from keymesh.kmip.context import Context
from keymesh.kmip.enums import CryptographicUsageMask, ResultReason, UsageLimitsUnit
from keymesh.kmip.enums_crypto import BlockCipherMode, CryptographicAlgorithm, HashingAlgorithm, PaddingMethod
from keymesh.kmip.faults import Fault, Version, wrong_state
from keymesh.kmip.items import Fields, children_of, make, number_of, struct
from keymesh.kmip.objects import ManagedObject
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import Item


@dataclass(frozen=True, slots=True)
class Parameters:
    mode: BlockCipherMode | None = None
    pad: PaddingMethod | None = None
    hashing: HashingAlgorithm | None = None
    algorithm: CryptographicAlgorithm | None = None
    random_iv: bool = False
    tag_bytes: int | None = None


def parameters_of(held: ManagedObject | None, said: Item | None, version: Version) -> Parameters:
    """Of the request, or where it says none the key's first."""
    item = said
    if item is None and held is not None:
        item = held.value(Tag.CryptographicParameters)
    if item is None:
        return Parameters()
    if isinstance(item.value, tuple) and all(isinstance(child.value, int) for child in item.value):
        return _known(item, version)
    return _read(item, version)


@lru_cache(maxsize=256)
def _known(item: Item, version: Version) -> Parameters:
    """Clients ask with few different ones, again and again.  Only numbers are kept here: of bytes, half a megabyte
    might come.
    """
    return _read(item, version)


def _read(item: Item, version: Version) -> Parameters:
    fields = Fields(valid(item, version))
    return Parameters(
        fields.word(Tag.BlockCipherMode, BlockCipherMode),
        fields.word(Tag.PaddingMethod, PaddingMethod),
        fields.word(Tag.HashingAlgorithm, HashingAlgorithm),
        fields.word(Tag.CryptographicAlgorithm, CryptographicAlgorithm),
        bool(fields.flag(Tag.RandomIV)),
        fields.number(Tag.TagLength),
    )


def opened(held: ManagedObject) -> None:
    """Raises Fault where the key was registered wrapped: its bytes are known to whoever can unwrap them."""
    if held.wrapping is not None:
        raise Fault(ResultReason.IllegalOperation, "the key is kept wrapped, as it was registered")


def usable(ctx: Context, held: ManagedObject, mask: CryptographicUsageMask, *, protects: bool) -> None:
    """Raises Fault where mask or dates do not allow the use; the state has been asked already."""
    opened(held)
    if not (held.number(Tag.CryptographicUsageMask) or 0) & mask:
        raise Fault(ResultReason.IncompatibleCryptographicUsageMask, f"CryptographicUsageMask: not {mask.name}")
    start, stop = held.number(Tag.ProcessStartDate), held.number(Tag.ProtectStopDate)
    if protects and stop is not None and stop <= ctx.now_s:
        raise wrong_state("ProtectStopDate has passed")
    if not protects and start is not None and start > ctx.now_s:
        raise wrong_state("ProcessStartDate has not come")


def spent(ctx: Context, held: ManagedObject, n_bytes: int) -> None:
    """Counts one protecting use of so many bytes.  Raises Fault where less is left."""
    limits = held.value(Tag.UsageLimits)
    if limits is None:
        return
    parts = {child.tag: number_of(child) for child in children_of(limits)}
    cost = n_bytes if parts[Tag.UsageLimitsUnit] == UsageLimitsUnit.Byte else 1
    left = parts.get(Tag.UsageLimitsCount, parts[Tag.UsageLimitsTotal])
    if cost > left:
        raise Fault(ResultReason.PermissionDenied, "UsageLimits: less is left")
    ctx.work.put(
        held.with_(
            struct(
                Tag.UsageLimits,
                make(Tag.UsageLimitsTotal, parts[Tag.UsageLimitsTotal]),
                make(Tag.UsageLimitsCount, left - cost),
                make(Tag.UsageLimitsUnit, parts[Tag.UsageLimitsUnit]),
            )
        )
    )
