"""What a Core's machine asks for in terms of keys, carried out: load, mint, re-wrap, rotate, probe, snapshot.

The machine decides when; this module moves bytes between key store, blob stores, the customer's L1 and the keyring.
Each piece of work answers the machine with exactly one event.  A blob counts only where its digest is the log's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from keymesh.adapters.pkcs11_descriptor import Tokens
from keymesh.adapters.tls import Credentials
from keymesh.app.blob_peers import BlobPeers
from keymesh.app.core_cascade import Cascades
from keymesh.app.core_l1 import CoreL1
from keymesh.app.probe_blobs import ProbeBlobs
from keymesh.control.rows import L2_NAME, BindingRow
from keymesh.core.events import (
    IvkRotated,
    KeyMinted,
    KeyRef,
    KeyRewrapped,
    KeysLoaded,
    L1Outcome,
    L1Probed,
    LoadKeys,
    MintFailed,
    MintKey,
    ProbeL1,
    RewrapFailed,
    RewrapKey,
    RotateIvk,
)
from keymesh.core.keyring import Keyring, subject_of
from keymesh.core.keystore import KeyStore
from keymesh.core.l1 import L1Denied, L1Unreachable
from keymesh.crypto import wrap
from keymesh.crypto.aad import Subject
from keymesh.crypto.kid import kid_hex, kid_of
from keymesh.model.errors import Integrity, KeymeshError, Unavailable
from keymesh.model.time import Entropy, Instant

log = logging.getLogger("keymesh.core.keys")

PROBES_AT_ONCE: Final = 16


class CoreKeys:
    """``feed`` hands events to the machine; ``bindings_of`` and ``domain_of`` read its applied rows."""

    def __init__(
        self,
        *,
        region: str,
        keyring: Keyring,
        store: KeyStore,
        peers: BlobPeers,
        credentials: Credentials,
        tokens: Tokens,
        entropy: Entropy,
        now: Callable[[], Instant],
        feed: Callable[[Any], None],
        bindings_of: Callable[[str], Mapping[str, BindingRow]],
        domain_of: Callable[[str], str],
    ) -> None:
        self.region = region
        self.keyring = keyring
        self.store = store
        self.peers = peers
        self._entropy = entropy
        self._now = now
        self._feed = feed
        self._domain_of = domain_of
        self.l1 = CoreL1(region=region, credentials=credentials, tokens=tokens, now=now, bindings_of=bindings_of)
        self.cascades = Cascades(keyring=keyring, store=store, now=now, domain_of=domain_of)
        self._probe_slots = asyncio.Semaphore(PROBES_AT_ONCE)
        self._probes = ProbeBlobs()
        self._one_upkeep = asyncio.Lock()

    # --- loading ---------------------------------------------------------------------------------------------------

    async def load(self, effect: LoadKeys) -> None:
        """Every key that can be had, L2s first; answered by ``KeysLoaded``."""
        started = self._now()
        loaded: list[KeyRef] = []
        failed: list[tuple[KeyRef, str]] = []
        l1 = "unused"
        for ref in sorted(effect.keys, key=lambda r: (r.key != L2_NAME, r.key, r.version)):
            try:
                domain = self._domain_of(effect.namespace)
                if ref.key == L2_NAME:
                    await self._load_l2(ref, domain)
                    l1 = "ok" if l1 == "unused" else l1
                else:
                    await self._load_l3(ref, domain)
                loaded.append(ref)
            except L1Denied as denied:
                l1 = "denied"
                failed.append((ref, denied.code))
            except L1Unreachable as silent:
                l1 = l1 if l1 == "denied" else "unreachable"
                failed.append((ref, silent.code))
            except KeymeshError as bad:
                failed.append((ref, bad.code))
        for ref, reason in failed:
            log.warning("key not loaded", extra={"fields": {"tenant": ref.namespace, "key": ref.key, "reason": reason}})
        self._feed(
            KeysLoaded(
                namespace=effect.namespace,
                loaded=tuple(loaded),
                failed=tuple(failed),
                l1=l1,
                l1_started_at=started,
            )
        )

    async def _load_l2(self, ref: KeyRef, domain: str) -> None:
        """IVK, then L1, then the kid: all three, although the key may be in memory already (an L2 is proved by L1)."""
        subject = subject_of(tenant=ref.namespace, domain=domain, key=ref.key, version=ref.version, kid=ref.kid)
        binding = await self._binding_of(ref, subject)
        parsed = wrap.parse_binding(binding)
        self._probes.remember(ref.namespace, ref.parent, ref.version, parsed.provider_blob)
        one_time = await self.l1.unwrap_somewhere(ref.namespace, ref.parent, parsed.provider_blob)
        self.keyring.hold(ref.namespace, self.keyring.open_l2(ref, domain, binding, one_time))

    async def _binding_of(self, ref: KeyRef, subject: Subject) -> bytes:
        """The L2's sovereign binding: from the cascade in the key store, else from a blob store of the domain."""
        stored = await self.store.get_key(ref.namespace, ref.kid)
        if stored is not None and stored.revision == ref.revision:
            opened = await self.cascades.open_stored(stored, subject)
            if opened is not None and wrap.digest(opened) == ref.digest:
                return opened
        binding = await self._blob(ref)
        await self.cascades.store_cascade(ref, subject, binding)
        return binding

    async def _load_l3(self, ref: KeyRef, domain: str) -> None:
        stored = await self.store.get_key(ref.namespace, ref.kid)
        if stored is None or stored.revision != ref.revision or wrap.digest(stored.blob) != ref.digest:
            blob = await self._blob(ref)
            await self.cascades.put(ref, ivk_kid="", blob=blob)
        else:
            blob = stored.blob
        if self.keyring.get(ref.kid) is None:
            self.keyring.hold(ref.namespace, self.keyring.open_l3(ref, domain, blob))

    async def _blob(self, ref: KeyRef) -> bytes:
        """The bytes whose digest the log names: from here, else from any allowed region."""
        blob = await self.store.get_blob(ref.namespace, ref.digest)
        if blob is None or wrap.digest(blob) != ref.digest:
            blob = await self.peers.fetch(ref.namespace, ref.digest)
            await self.store.put_blob(ref.namespace, ref.digest, blob)
        return blob

    # --- probing ---------------------------------------------------------------------------------------------------

    async def probe(self, effect: ProbeL1) -> None:
        """Has every replica of L1 unwrap the newest L2 under that binding; the results are thrown away."""
        started = self._now()
        try:
            said = await self.ask_replicas(effect.namespace, effect.binding_id)
            outcome = outcome_of([L1Outcome(word) for word in said.values()], all_replicas=effect.all_replicas)
        except KeymeshError as silent:
            log.info("L1 not probed", extra={"fields": {"reason": silent.code}})
            outcome = L1Outcome.UNREACHABLE
        self._feed(
            L1Probed(
                namespace=effect.namespace,
                binding_id=effect.binding_id,
                outcome=outcome,
                started_at=started,
                all_replicas=effect.all_replicas,
            )
        )

    async def ask_replicas(self, namespace: str, binding_id: str) -> dict[str, str]:
        """What each replica of that L1 says to this region now; no lease comes of it.  Raises KeymeshError where there
        is nothing to ask with."""
        blob = await self._probe_blob(namespace, binding_id)
        replicas = sorted(self.l1.descriptor(namespace, binding_id).replicas)
        answers = await asyncio.gather(*(self._probe_one(namespace, binding_id, blob, replica) for replica in replicas))
        return {replica: answer.value for replica, answer in zip(replicas, answers, strict=True)}

    async def _probe_one(self, namespace: str, binding_id: str, blob: bytes, replica: str) -> L1Outcome:
        try:
            async with self._probe_slots:
                one_time = await self.l1.unwrap(namespace, binding_id, blob, replica)
        except (L1Denied, Integrity):
            return L1Outcome.DENIED
        except KeymeshError:
            return L1Outcome.UNREACHABLE
        one_time[:] = bytes(len(one_time))
        return L1Outcome.OK

    async def _probe_blob(self, namespace: str, binding_id: str) -> bytes:
        """From memory where it is there: a store that is away is no reason to doubt the customer's L1."""
        domain = self._domain_of(namespace)
        remembered = self._probes.of(namespace, binding_id)
        if remembered is not None:
            return remembered
        for stored in reversed(await self.store.stored_keys(namespace)):
            if stored.key == L2_NAME:
                subject = subject_of(
                    tenant=namespace, domain=domain, key=stored.key, version=stored.version, kid=stored.kid
                )
                binding = await self.cascades.open_stored(stored, subject)
                parsed = None if binding is None else wrap.parse_binding(binding)
                if parsed is not None and parsed.binding_id == binding_id:
                    self._probes.remember(namespace, binding_id, stored.version, parsed.provider_blob)
                    return parsed.provider_blob
        raise Unavailable("nothing-to-probe", "no key under that binding is stored here")

    # --- minting ---------------------------------------------------------------------------------------------------

    async def mint(self, effect: MintKey) -> None:
        """Generate, wrap, store in two blob stores, re-open the stored bytes; answered by KeyMinted or MintFailed."""
        secret = self.keyring.fresh()
        try:
            domain = self._domain_of(effect.namespace)
            kid = kid_hex(kid_of(secret.reveal()))
            ref = KeyRef(
                namespace=effect.namespace,
                key=effect.key,
                version=effect.version,
                revision=1,
                kid=kid,
                digest="",
                parent=effect.parent,
            )
            digest, holders = await self._wrap_and_store(ref, domain, secret)
            self.keyring.hold(effect.namespace, secret)
        except KeymeshError as failed:
            secret.wipe()
            self._feed(
                MintFailed(namespace=effect.namespace, key=effect.key, version=effect.version, reason=failed.code)
            )
            return
        self._feed(
            KeyMinted(
                namespace=effect.namespace,
                key=effect.key,
                version=effect.version,
                kid=kid,
                digest=digest,
                parent=effect.parent,
                holders=holders,
            )
        )

    async def _wrap_and_store(self, ref: KeyRef, domain: str, secret: Any) -> tuple[str, tuple[str, ...]]:
        """(digest, regions that hold the blob), after the stored bytes were read back and opened."""
        subject = subject_of(tenant=ref.namespace, domain=domain, key=ref.key, version=ref.version, kid=ref.kid)
        if ref.key == L2_NAME:
            blob = await self._bind(ref, subject, secret)
        else:
            blob = self.keyring.wrap_l3(self.keyring.need(ref.parent), subject, secret)
        digest = wrap.digest(blob)
        await self.store.put_blob(ref.namespace, digest, blob)
        try:
            others = await self.peers.spread(ref.namespace, digest, blob)
        except KeymeshError:
            await self.store.drop_blob(ref.namespace, digest)  # tried again with other bytes
            raise
        stored = await self.store.get_blob(ref.namespace, digest)
        if stored is None or wrap.digest(stored) != digest:
            raise Unavailable("storage", "the stored blob does not read back")
        made = replace(ref, digest=digest)
        if ref.key == L2_NAME:
            provider_blob = wrap.parse_binding(stored).provider_blob
            self._probes.remember(ref.namespace, ref.parent, ref.version, provider_blob)
            one_time = await self.l1.unwrap_somewhere(ref.namespace, ref.parent, provider_blob)
            self.keyring.open_l2(made, domain, stored, one_time).wipe()
            await self.cascades.store_cascade(made, subject, stored)
        else:
            self.keyring.open_l3(made, domain, stored).wipe()
            await self.cascades.put(made, ivk_kid="", blob=stored)
        return digest, (self.region, *others)

    async def _bind(self, ref: KeyRef, subject: Subject, secret: Any) -> bytes:
        with self.keyring.fresh() as one_time:
            provider_blob = await self.l1.wrap(ref.namespace, ref.parent, bytes(one_time.reveal()))
            return self.keyring.bind_l2(
                subject=subject,
                secret=secret,
                one_time=one_time,
                binding_id=ref.parent,
                provider_blob=provider_blob,
            )

    async def rewrap(self, effect: RewrapKey) -> None:
        """The same material under another parent, as the next revision; answered by KeyRewrapped or RewrapFailed."""
        ref = replace(effect.ref, revision=effect.revision, parent=effect.parent)
        try:
            held = self.keyring.need(ref.kid)
            digest, _ = await self._wrap_and_store(ref, self._domain_of(ref.namespace), held.secret)
        except KeymeshError as failed:
            self._feed(
                RewrapFailed(
                    namespace=ref.namespace,
                    key=ref.key,
                    version=ref.version,
                    revision=effect.revision,
                    reason=failed.code,
                )
            )
            return
        self._feed(
            KeyRewrapped(
                namespace=ref.namespace,
                key=ref.key,
                version=ref.version,
                revision=effect.revision,
                digest=digest,
                parent=effect.parent,
            )
        )

    async def wipe_minted(self, namespace: str, kid: str) -> None:
        """Forget a version that lost its race; its blob is nobody's."""
        self.keyring.drop(namespace, (kid,))
        try:
            stored = await self.store.get_key(namespace, kid)
            if stored is not None:
                await self.store.drop_key(stored)
                await self.store.drop_blob(namespace, stored.digest)
        except KeymeshError as failed:  # what stays is wrapped, and no row names it
            log.warning("minted key not forgotten at rest", extra={"fields": {"reason": failed.code}})

    def forget(self, namespace: str) -> None:
        """A tenant that is no more."""
        self._probes.forget(namespace)

    # --- internal keys -----------------------------------------------------------------------------------------

    async def rotate_ivk(self, effect: RotateIvk) -> None:
        """To ``generation``, then everything that older ones sealed is sealed anew; L1 is not asked."""
        await self.keep_ivks(wanted_generation=effect.generation)

    async def keep_ivks(self, *, wanted_generation: int = 0) -> None:
        """Whatever the life of the internal keys asks for now; the machine hears the generation that is active."""
        try:
            async with self._one_upkeep:
                generation = await self.cascades.upkeep(wanted_generation=wanted_generation)
        except KeymeshError as failed:
            log.warning("internal keys not kept", extra={"fields": {"reason": failed.code}})
            return
        self._feed(IvkRotated(generation))

    async def close(self) -> None:
        await self.l1.close()
        self.keyring.seal()


def outcome_of(answers: Sequence[L1Outcome], *, all_replicas: bool) -> L1Outcome:
    """One denial denies.  Else OK needs every replica where ``all_replicas``, any one where not."""
    if L1Outcome.DENIED in answers:
        return L1Outcome.DENIED
    wanted = all if all_replicas else any
    return L1Outcome.OK if answers and wanted(a is L1Outcome.OK for a in answers) else L1Outcome.UNREACHABLE
