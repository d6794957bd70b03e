"""A region's cascades: L2 bindings sealed under its internal keys, in the key store.

Seals, re-seals on read and by a pass, and says what is really stored; needs the MasterKey, never L1.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import msgspec

from keymesh.control.rows import L2_NAME, KeyRow, encode, key_row_name
from keymesh.core import ivk
from keymesh.core.events import KeyRef, SnapshotTaken
from keymesh.core.keyring import HeldKey, Keyring, subject_of
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


class Cascades:
    """``domain_of`` gives a tenant's residency domain, which every wrap binds."""

    def __init__(
        self, *, keyring: Keyring, store: KeyStore, now: Callable[[], Instant], domain_of: Callable[[str], str]
    ) -> None:
        self.keyring = keyring
        self.store = store
        self._now = now
        self._domain_of = domain_of

    def open_stored(self, stored: StoredKey, subject: Subject) -> bytes | None:
        """The binding inside a stored cascade, re-sealed on read where an older IVK sealed it; None where damaged."""
        sealer = next((i for i in self.store.ivks() if i.kid == stored.ivk_kid), None)
        if sealer is None or not ivk.may_unwrap(sealer):
            return None
        try:
            binding = self.keyring.open_outer(self.keyring.open_ivk(sealer), subject, stored.blob)
        except (Integrity, Refused):
            log.error("stored key damaged", extra={"fields": {"tenant": stored.namespace, "key": stored.key}})
            return None
        if sealer.kid != self._active().kid:
            self._reseal(stored, subject, binding)
        return binding

    def _reseal(self, stored: StoredKey, subject: Subject, binding: bytes) -> bool:
        active = self.active_ivk()
        blob = self.keyring.cascade(active, subject, binding)
        self.store.count_wraps(active.kid, 1)
        return self.store.put_key(replace(stored, ivk_kid=active.kid, blob=blob), over=stored)

    def store_cascade(self, ref: KeyRef, subject: Subject, binding: bytes) -> None:
        active = self.active_ivk()
        blob = self.keyring.cascade(active, subject, binding)
        self.store.count_wraps(active.kid, 1)
        self.put(ref, ivk_kid=active.kid, blob=blob)

    def put(self, ref: KeyRef, *, ivk_kid: str, blob: bytes) -> None:
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
        if not self.store.put_key(stored, over=self.store.get_key(ref.kid)):
            raise Unavailable("key-store-race", "another writer changed that key; try again")

    # --- internal keys ---------------------------------------------------------------------------------------------

    def _active(self) -> StoredIvk:
        """The newest active IVK.  Raises Unavailable where there is none that may wrap."""
        active = next((i for i in self.store.ivks() if ivk.may_wrap(i)), None)
        if active is None:
            raise Unavailable("no-ivk", "this region has no active internal key")
        return active

    def active_ivk(self) -> HeldKey:
        """Raises Unavailable where there is none, or the region is sealed."""
        return self.keyring.open_ivk(self._active())

    def new_ivk(self, generation: int) -> None:
        """Make and activate IVK ``generation``; the one before it is demoted by the next ``upkeep``."""
        with self.keyring.fresh() as secret:
            kid, blob = self.keyring.wrap_ivk(generation, secret)
        self.store.put_ivk(
            StoredIvk(generation=generation, kid=kid, state=IvkState.ACTIVE, created_at=self._now(), wraps=0, blob=blob)
        )

    async def upkeep(self, *, wanted_generation: int = 0) -> int:
        """Carry out what ``ivk.plan_ivk`` plans until it plans nothing; returns the active generation.

        Rotation by age, use or the mesh's wish; demotion; re-sealing of what older ones sealed, without L1.
        """
        for _ in range(UPKEEP_ROUNDS_MAX):
            actions = ivk.plan_ivk(
                self.store.ivks(), self._now(), sealed_by=self._sealed_by(), wanted_generation=wanted_generation
            )
            if not actions:
                break
            for action in actions:
                match action:
                    case ivk.MakeIvk():
                        self.new_ivk(action.generation)
                    case ivk.MarkIvk():
                        self._mark(action)
                    case ivk.Reseal():
                        await self._reseal_from(action.kid)
        ivks = self.store.ivks()
        self.keyring.keep_internal({i.kid for i in ivks if ivk.stays_loaded(i)})
        return next(i.generation for i in ivks if i.state is IvkState.ACTIVE)

    def _sealed_by(self) -> Counter[str]:
        return Counter(stored.ivk_kid for stored in self.store.stored_keys() if stored.ivk_kid)

    def _mark(self, action: ivk.MarkIvk) -> None:
        found = next(i for i in self.store.ivks() if i.kid == action.kid)
        self.store.put_ivk(replace(found, state=action.state))

    async def _reseal_from(self, kid: str) -> None:
        """Seal under the active IVK what ``kid`` sealed; yields between keys."""
        for stored in self.store.stored_keys():
            if stored.ivk_kid != kid:
                continue
            try:
                domain = self._domain_of(stored.namespace)
            except Refused:  # a tenant that is not held here (any more): kept as it is, and no obstacle to others
                continue
            subject = subject_of(
                tenant=stored.namespace, domain=domain, key=stored.key, version=stored.version, kid=stored.kid
            )
            if self.open_stored(stored, subject) is None:
                self.store.drop_key(stored.kid)  # damaged: the next load fetches the blob anew
            await asyncio.sleep(0)

    # --- snapshot --------------------------------------------------------------------------------------------------

    def snapshot(self, states: Iterable[tuple[str, Mapping[str, bytes]]]) -> SnapshotTaken:
        """Each namespace's root over its rows as recorded, each key row's digest taken from what is really stored."""
        out: dict[str, str] = {}
        for namespace, rows in states:
            real = dict(rows)
            for stored in self.store.stored_keys(namespace):
                name = key_row_name(stored.key, stored.version)
                row = real.get(name)
                if row is not None:
                    real[name] = self._real_row(stored, row)
            out[namespace] = root_of(real)
        return SnapshotTaken(states=out)

    def _real_row(self, stored: StoredKey, raw: bytes) -> bytes:
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
            binding = self.open_stored(stored, subject)
            digest = wrap.digest(binding) if binding is not None else Digest("0" * 64)
        if digest == row.digest:
            return raw
        self.store.drop_key(stored.kid)  # damaged: the next load fetches the blob anew
        return encode(msgspec.structs.replace(row, digest=digest))
