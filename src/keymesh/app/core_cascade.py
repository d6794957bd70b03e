"""A region's cascades: L2 bindings sealed under its internal keys, in the key store.

Seals, re-seals on read and by a pass, and says what is really stored; needs the MasterKey, never L1.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import msgspec

from keymesh.app.ivk_book import IvkBook
from keymesh.control.rows import L2_NAME, KeyRow, encode, key_row_name
from keymesh.core import ivk
from keymesh.core.events import KeyRef, SnapshotTaken
from keymesh.core.keyring import Keyring, subject_of
from keymesh.core.keystore import KeyStore, StoredIvk, StoredKey
from keymesh.crypto import wrap
from keymesh.crypto.aad import Subject
from keymesh.crypto.kid import kid_hex
from keymesh.ledger.maptree import root_of
from keymesh.model.errors import Integrity, Refused, Unavailable
from keymesh.model.ids import Digest
from keymesh.model.states import IvkState
from keymesh.model.time import Instant

log = logging.getLogger("keymesh.core.keys")

UPKEEP_ROUNDS_MAX = 8
SCAN_EVERY_S = 600.0
RESEALS_AT_ONCE = 8


class Cascades:
    """``domain_of`` gives a tenant's residency domain, which every wrap binds."""

    def __init__(
        self, *, keyring: Keyring, store: KeyStore, now: Callable[[], Instant], domain_of: Callable[[str], str]
    ) -> None:
        self.keyring = keyring
        self.store = store
        self.ivks = IvkBook(store, time.monotonic)
        self._now = now
        self._domain_of = domain_of
        self._scanned: tuple[frozenset[str], float] = (frozenset(), 0.0)

    async def open_stored(self, stored: StoredKey, subject: Subject) -> bytes | None:
        """The binding inside a stored cascade, re-sealed on read where an older IVK sealed it; None where damaged."""
        sealer = await self.ivks.sealer(stored.ivk_kid)
        if sealer is None or not ivk.may_unwrap(sealer):
            return None
        try:
            binding = self.keyring.open_outer(self.keyring.open_ivk(sealer), subject, stored.blob)
        except (Integrity, Refused):
            log.error("stored key damaged", extra={"fields": {"tenant": stored.namespace, "key": stored.key}})
            return None
        active = await self.ivks.active()
        if sealer.generation < active.generation:
            await self._reseal(active, stored, subject, binding)
        return binding

    async def _reseal(self, active: StoredIvk, stored: StoredKey, subject: Subject, binding: bytes) -> bool:
        blob = await self._sealed(active, subject, binding)
        return await self.store.put_key(replace(stored, ivk_kid=active.kid, blob=blob), over=stored)

    async def _sealed(self, active: StoredIvk, subject: Subject, binding: bytes) -> bytes:
        await self.ivks.take_wrap(active.kid)
        return self.keyring.cascade(self.keyring.open_ivk(active), subject, binding)

    async def store_cascade(self, ref: KeyRef, subject: Subject, binding: bytes) -> None:
        active = await self.ivks.active()
        await self.put(ref, ivk_kid=active.kid, blob=await self._sealed(active, subject, binding))

    async def put(self, ref: KeyRef, *, ivk_kid: str, blob: bytes) -> None:
        stored = StoredKey(
            namespace=ref.namespace,
            key=ref.key,
            version=ref.version,
            revision=ref.revision,
            kid=kid_hex(bytes.fromhex(ref.kid)),
            digest=Digest(ref.digest),
            ivk_kid=ivk_kid,
            blob=blob,
        )
        if await self.store.put_key(stored, over=None):
            return
        there = await self.store.get_key(ref.namespace, ref.kid)
        if not await self.store.put_key(stored, over=there):
            raise Unavailable("key-store-race", "another writer changed that key; try again")

    # --- internal keys ---------------------------------------------------------------------------------------------

    async def open_active(self, *, known: int) -> int:
        """Take the active IVK into memory and say its generation; make the first where there never was one.

        ``known``: the newest generation that the store is known to have had.
        """
        ivks = await self.ivks.fresh()
        if not ivks and known == 0:
            await self.new_ivk(1)
        active = next((i for i in await self.ivks.fresh() if i.state is IvkState.ACTIVE), None)
        if active is None:
            raise Unavailable("no-ivk", "this region has no active internal key")
        self.keyring.open_ivk(active)
        return active.generation

    async def new_ivk(self, generation: int) -> None:
        """Make and activate IVK ``generation``; the one before it is demoted by the next ``upkeep``."""
        with self.keyring.fresh() as secret:
            kid, blob = self.keyring.wrap_ivk(generation, secret)
        await self.ivks.put(
            StoredIvk(generation=generation, kid=kid, state=IvkState.ACTIVE, created_at=self._now(), wraps=0, blob=blob)
        )

    async def upkeep(self, *, wanted_generation: int = 0) -> int:
        """Carry out what ``ivk.plan_ivk`` plans until it plans nothing; returns the active generation.

        Rotation by age, use or the mesh's wish; demotion; re-sealing of what older ones sealed, without L1.
        """
        for _ in range(UPKEEP_ROUNDS_MAX):
            actions = ivk.plan_ivk(
                await self.ivks.fresh(),
                self._now(),
                sealed_by=await self._sealed_by(),
                wanted_generation=wanted_generation,
            )
            if not actions:
                break
            for action in actions:
                match action:
                    case ivk.MakeIvk():
                        await self.new_ivk(action.generation)
                    case ivk.MarkIvk():
                        await self._mark(action)
                    case ivk.Reseal():
                        await self._reseal_from(action.kid)
        ivks = await self.ivks.fresh()
        self.keyring.keep_internal({i.kid for i in ivks if ivk.stays_loaded(i)})
        return next(i.generation for i in ivks if i.state is IvkState.ACTIVE)

    async def _sealed_by(self) -> Counter[str]:
        """How many stored wraps each internal key is around.  Where the last look found none under an older key, the
        next is minutes away."""
        ivks = await self.ivks.known()
        kids = frozenset(i.kid for i in ivks)
        scanned, scanned_at_s = self._scanned
        if len(kids) < 2 or (scanned == kids and time.monotonic() - scanned_at_s < SCAN_EVERY_S):
            return Counter()
        found = Counter(stored.ivk_kid for stored in await self.store.stored_keys() if stored.ivk_kid)
        if found.keys() <= {ivks[0].kid}:
            self._scanned = (kids, time.monotonic())
        return found

    async def _mark(self, action: ivk.MarkIvk) -> None:
        found = next(i for i in await self.ivks.fresh() if i.kid == action.kid)
        await self.ivks.put(replace(found, state=action.state))

    async def _reseal_from(self, kid: str) -> None:
        """Seal under the active IVK what ``kid`` sealed, some at a time; yields between them."""
        keys = [stored for stored in await self.store.stored_keys() if stored.ivk_kid == kid]
        for start in range(0, len(keys), RESEALS_AT_ONCE):
            await asyncio.gather(*(self._reseal_one(stored) for stored in keys[start : start + RESEALS_AT_ONCE]))

    async def _reseal_one(self, stored: StoredKey) -> None:
        try:
            domain = self._domain_of(stored.namespace)
        except Refused:  # a tenant that is not held here (any more): kept as it is, and no obstacle to others
            return
        subject = subject_of(
            tenant=stored.namespace, domain=domain, key=stored.key, version=stored.version, kid=stored.kid
        )
        if await self.open_stored(stored, subject) is None:
            await self.store.drop_key(stored)  # damaged: the next load fetches the blob anew
            await asyncio.sleep(0)

    # --- snapshot --------------------------------------------------------------------------------------------------

    async def snapshot(self, states: Iterable[tuple[str, Mapping[str, bytes]]]) -> SnapshotTaken:
        """Each namespace's root over its rows as recorded, each key row's digest taken from what is really stored."""
        out: dict[str, str] = {}
        for namespace, rows in states:
            real = dict(rows)
            for stored in await self.store.stored_keys(namespace):
                name = key_row_name(stored.key, stored.version)
                row = real.get(name)
                if row is not None:
                    real[name] = await self._real_row(stored, row)
            out[namespace] = root_of(real)
        return SnapshotTaken(states=out)

    async def _real_row(self, stored: StoredKey, raw: bytes) -> bytes:
        try:
            row = msgspec.json.decode(raw, type=KeyRow)
        except msgspec.MsgspecError:
            return raw  # the record itself is damaged: its root shows it
        if row.kid != stored.kid or row.revision != stored.revision:
            return raw  # lag, which loading mends; not drift
        if stored.key != L2_NAME:
            digest = wrap.digest(stored.blob)
        else:
            domain = self._domain_of(stored.namespace)
            subject = subject_of(
                tenant=stored.namespace, domain=domain, key=stored.key, version=stored.version, kid=stored.kid
            )
            binding = await self.open_stored(stored, subject)
            digest = wrap.digest(binding) if binding is not None else Digest("0" * 64)
        if digest == row.digest:
            return raw
        await self.store.drop_key(stored)  # damaged: the next load fetches the blob anew
        return encode(msgspec.structs.replace(row, digest=digest))
