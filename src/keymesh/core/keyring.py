"""The keys that a Core holds in memory, in locked pages, and the operations of the cascade on them.

Decides nothing about when a key may be used (``may``); it opens, wraps and forgets.  Every key that is opened is
compared with its kid.  Nonces and new key bytes are arguments or come from the ``Entropy`` port.  DESIGN section 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from keymesh.control.rows import L2_NAME
from keymesh.core.events import KeyRef
from keymesh.core.keystore import StoredIvk
from keymesh.crypto import wrap
from keymesh.crypto.aad import Level, Subject
from keymesh.crypto.kid import kid_bytes, kid_hex, kid_of
from keymesh.crypto.pages import KeyPages, SecretBytes
from keymesh.crypto.xaes import KEY_BYTES, NONCE_BYTES, XaesKey
from keymesh.model.errors import Unavailable
from keymesh.model.ids import BindingId, Kid
from keymesh.model.time import Entropy


@dataclass(frozen=True, slots=True)
class HeldKey:
    """One key in memory.  ``secret`` is the bytes' only home; ``cipher`` works with them."""

    kid: Kid
    namespace: str
    secret: SecretBytes
    cipher: XaesKey


def subject_of(*, tenant: str, domain: str, key: str, version: int, kid: str) -> Subject:
    """How wraps name a tenant's key version; ``key`` is ``l2`` or ``l3/<service>``."""
    if key == L2_NAME:
        return Subject(level=Level.L2, tenant=tenant, domain=domain, key="l2", version=version, kid=kid_bytes(kid))
    service = key.removeprefix("l3/")
    return Subject(level=Level.L3, tenant=tenant, domain=domain, key=service, version=version, kid=kid_bytes(kid))


def ivk_subject(region: str, generation: int, kid: str) -> Subject:
    return Subject(
        level=Level.IVK, tenant=f"cluster/{region}", domain="", key="ivk", version=generation, kid=kid_bytes(kid)
    )


class Keyring:
    """Master, IVKs, L2s and L3s of one Core, by kid."""

    INTERNAL = "cluster/"
    """The namespace of internal keys: no tenant can have that name."""

    def __init__(self, region: str, pages: KeyPages, entropy: Entropy) -> None:
        self.region = region
        self.pages = pages
        self._entropy = entropy
        self._keys: dict[str, HeldKey] = {}
        self._master: HeldKey | None = None

    # --- holding ---------------------------------------------------------------------------------------------------

    def hold(self, namespace: str, secret: SecretBytes) -> HeldKey:
        """Keep ``secret``; a second copy of a key already held is wiped."""
        kid = kid_hex(kid_of(secret.reveal()))
        held = self._keys.get(kid)
        if held is not None:
            secret.wipe()
            return held
        held = self._keys[kid] = HeldKey(kid, namespace, secret, XaesKey(secret.reveal()))
        return held

    def get(self, kid: str) -> HeldKey | None:
        return self._keys.get(kid)

    def need(self, kid: str) -> HeldKey:
        """Raises Unavailable where the key is not in memory."""
        held = self._keys.get(kid)
        if held is None:
            raise Unavailable("not-loaded", "the key is not loaded here")
        return held

    def drop(self, namespace: str | None, kids: tuple[str, ...] | None = None) -> int:
        """Wipe: those ``kids``, or all of ``namespace``, or (None) every tenant's keys.  Returns how many."""
        doomed = [
            held
            for held in self._keys.values()
            if held.namespace != self.INTERNAL
            and (namespace is None or held.namespace == namespace)
            and (kids is None or held.kid in kids)
        ]
        for held in doomed:
            held.secret.wipe()
            del self._keys[held.kid]
        return len(doomed)

    def keep_internal(self, kids: set[str]) -> None:
        """Wipe internal keys other than ``kids``; those are opened again on demand."""
        for held in [h for h in self._keys.values() if h.namespace == self.INTERNAL and h.kid not in kids]:
            held.secret.wipe()
            del self._keys[held.kid]

    def unseal(self, master: SecretBytes) -> None:
        self._master = HeldKey(kid_hex(kid_of(master.reveal())), self.INTERNAL, master, XaesKey(master.reveal()))

    def seal(self) -> None:
        """Wipe everything, the MasterKey included."""
        for held in self._keys.values():
            held.secret.wipe()
        self._keys.clear()
        if self._master is not None:
            self._master.secret.wipe()
            self._master = None

    @property
    def has_master(self) -> bool:
        return self._master is not None

    @property
    def master(self) -> HeldKey:
        if self._master is None:
            raise Unavailable("sealed", "this region is sealed")
        return self._master

    def __len__(self) -> int:
        return len(self._keys)

    # --- making and opening ----------------------------------------------------------------------------------------

    def nonce(self) -> bytes:
        return self._entropy.token(NONCE_BYTES)

    def fresh(self) -> SecretBytes:
        """A new key, not yet held."""
        return self.pages.put(bytearray(self._entropy.token(KEY_BYTES)))

    def wrap_ivk(self, generation: int, secret: SecretBytes) -> tuple[Kid, bytes]:
        kid = kid_hex(kid_of(secret.reveal()))
        master = self.master
        subject = ivk_subject(self.region, generation, kid)
        return kid, wrap.seal_key(master.cipher, kid_bytes(master.kid), subject, secret, self.nonce())

    def open_ivk(self, stored: StoredIvk) -> HeldKey:
        """The IVK, held from now on."""
        held = self.get(stored.kid)
        if held is not None:
            return held
        master = self.master
        subject = ivk_subject(self.region, stored.generation, stored.kid)
        secret = wrap.open_key(master.cipher, kid_bytes(master.kid), subject, stored.blob, self.pages)
        return self.hold(self.INTERNAL, secret)

    def bind_l2(
        self, *, subject: Subject, secret: SecretBytes, one_time: SecretBytes, binding_id: str, provider_blob: bytes
    ) -> bytes:
        """The sovereign binding ``L1.wrap(L2)``."""
        return wrap.seal_binding(
            XaesKey(one_time.reveal()), BindingId(binding_id), provider_blob, subject, secret, self.nonce()
        )

    def open_l2(self, ref: KeyRef, domain: str, binding: bytes, one_time: bytearray) -> SecretBytes:
        """L2 from its binding and the E that the customer's L1 unwrapped; ``one_time`` is wiped."""
        subject = subject_of(tenant=ref.namespace, domain=domain, key=ref.key, version=ref.version, kid=ref.kid)
        try:
            return wrap.open_binding(XaesKey(one_time), BindingId(ref.parent), subject, binding, self.pages)
        finally:
            one_time[:] = bytes(len(one_time))

    def cascade(self, ivk: HeldKey, subject: Subject, binding: bytes) -> bytes:
        return wrap.seal_cascade(ivk.cipher, kid_bytes(ivk.kid), subject, binding, self.nonce())

    def open_outer(self, ivk: HeldKey, subject: Subject, blob: bytes) -> bytes:
        return wrap.open_cascade(ivk.cipher, kid_bytes(ivk.kid), subject, blob)

    def wrap_l3(self, parent: HeldKey, subject: Subject, secret: SecretBytes) -> bytes:
        return wrap.seal_key(parent.cipher, kid_bytes(parent.kid), subject, secret, self.nonce())

    def open_l3(self, ref: KeyRef, domain: str, blob: bytes) -> SecretBytes:
        parent = self.need(ref.parent)
        subject = subject_of(tenant=ref.namespace, domain=domain, key=ref.key, version=ref.version, kid=ref.kid)
        return wrap.open_key(parent.cipher, kid_bytes(parent.kid), subject, blob, self.pages)
