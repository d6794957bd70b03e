"""A region's cascades: L2 bindings sealed under its internal keys, in the key store.

Seals, re-seals on read and by a pass, and says what is really stored; needs the MasterKey, never L1.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import msgspec

from keymesh.control.rows import L2_NAME, KeyRow, encode, key_row_name
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
        ivk = next((i for i in self.store.ivks() if i.kid == stored.ivk_kid), None)
        if ivk is None or ivk.state is IvkState.REVOKED:
            return None
        try:
            binding = self.keyring.open_outer(self.keyring.open_ivk(ivk), subject, stored.blob)
        except (Integrity, Refused):
            log.error("stored key damaged", extra={"fields": {"tenant": stored.namespace, "key": stored.key}})
            return None
        if ivk.state is not IvkState.ACTIVE:
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

    def active_ivk(self) -> HeldKey:
        """Raises Unavailable where there is none, or the region is sealed."""
        active = next((ivk for ivk in self.store.ivks() if ivk.state is IvkState.ACTIVE), None)
        if active is None:
            raise Unavailable("no-ivk", "this region has no active internal key")
        return self.keyring.open_ivk(active)

    def new_ivk(self, generation: int) -> None:
        """Make and activate IVK ``generation``; the one before it goes to GRACE."""
        with self.keyring.fresh() as secret:
            kid, blob = self.keyring.wrap_ivk(generation, secret)
        self.store.put_ivk(
            StoredIvk(generation=generation, kid=kid, state=IvkState.ACTIVE, created_at=self._now(), wraps=0, blob=blob)
        )
        for old in self.store.ivks():
            if old.generation < generation and old.state is IvkState.ACTIVE:
                self.store.put_ivk(replace(old, state=IvkState.GRACE))

    async def reseal_all(self) -> int:
        """Seal under the active IVK whatever an older one sealed; yields between keys.  Returns how many."""
        active = self.active_ivk()
        done = 0
        for stored in self.store.stored_keys():
            if stored.ivk_kid and stored.ivk_kid != active.kid:
                subject = subject_of(
                    tenant=stored.namespace,
                    domain=self._domain_of(stored.namespace),
                    key=stored.key,
                    version=stored.version,
                    kid=stored.kid,
                )
                done += self.open_stored(stored, subject) is not None
                await asyncio.sleep(0)
        return done

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
        row = msgspec.json.decode(raw, type=KeyRow)
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
