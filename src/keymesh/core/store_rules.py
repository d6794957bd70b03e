"""Whether a key store is the one this node worked with, and which schema it may be brought to.

A store that is empty, older or another's where ours should be is never used and never filled anew: what a region
holds would silently become nothing.  Decides only; ``app.region_store`` reads, remembers and acts.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from keymesh.core.keystore import FIRST_SCHEMA, NEWEST_SCHEMA, StoredIvk, StoreIdentity
from keymesh.model.errors import Integrity, Refused


class Remembered(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What this node keeps of its store, outside it.  Each number is the highest that was ever seen there."""

    store_id: str
    schema: int
    ivk_generation: int


def check_store(
    remembered: Remembered | None, found: StoreIdentity | None, ivks: Sequence[StoredIvk], *, region: str
) -> None:
    """Raises Integrity unless the store may be used.

    1. Its schema is known to this release.  2. It is this region's.  3. It is the one remembered, if any is.
    4. It has not gone back: neither its schema nor its newest internal key.
    """
    if found is not None:
        if not FIRST_SCHEMA <= found.schema <= NEWEST_SCHEMA:
            raise Integrity(
                "store-schema-unknown", f"the key store has schema {found.schema}; this release knows {NEWEST_SCHEMA}"
            )
        if found.region != region:
            raise Integrity("store-of-another-region", "the key store is another region's")
    if remembered is None:
        return
    if found is None:
        raise Integrity("store-lost", "the key store is empty where this region's was")
    if found.store_id != remembered.store_id:
        raise Integrity("store-of-another", "this is not the key store that this region worked with")
    newest = max((ivk.generation for ivk in ivks), default=0)
    if newest < remembered.ivk_generation or found.schema < remembered.schema:
        raise Integrity("store-rolled-back", "the key store is older than what this region knew of it")


def remember(before: Remembered | None, found: StoreIdentity, ivks: Sequence[StoredIvk]) -> Remembered:
    """What to keep of a store that passed ``check_store``; numbers never fall."""
    newest = max((ivk.generation for ivk in ivks), default=0)
    return Remembered(
        store_id=found.store_id,
        schema=max(found.schema, 0 if before is None else before.schema),
        ivk_generation=max(newest, 0 if before is None else before.ivk_generation),
    )


def founding_schema(*, has_rows: bool) -> int:
    """The schema under which an unnamed store is named: what is there already was laid out by release 0.1."""
    return FIRST_SCHEMA if has_rows else NEWEST_SCHEMA


def check_step(now: int, wanted: int) -> None:
    """Raises Refused unless a store of schema ``now`` may be brought to ``wanted``."""
    if not FIRST_SCHEMA <= wanted <= NEWEST_SCHEMA or now > NEWEST_SCHEMA:
        raise Refused("schema-unknown", f"this release knows schemas {FIRST_SCHEMA} to {NEWEST_SCHEMA}", field="schema")
    if wanted < now:
        raise Refused("schema-backwards", f"the key store has schema {now} already", field="schema")
