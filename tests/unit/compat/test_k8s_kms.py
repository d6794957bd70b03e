"""The Kubernetes face over a service's keys: limits, key ids, what is bound, what is never said."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from keymesh.compat.k8s_kms import CIPHERTEXT_MAX, CONTEXT, PLAINTEXT_MAX, KubernetesKms
from keymesh.crypto.blob import open_l4, seal_l4
from keymesh.crypto.xaes import XaesKey
from keymesh.edge.hot_lease import CreatedKey
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable

SEED = bytes(range(32))


class Keys:
    """One service's keys on the product's own blobs; ``why`` is what stands against their use."""

    def __init__(self) -> None:
        self.kid = bytes(16)
        self.why: KeymeshError | None = None
        self.made = 0

    async def create_key(self, context: Mapping[str, str] | None = None, *, plaintext: bool = False) -> CreatedKey:
        if self.why is not None:
            raise self.why
        self.made += 1
        l4 = self.made.to_bytes(32, "big")
        blob = seal_l4(self._key(self.kid), self.kid, "acme", context or {}, l4, self.made.to_bytes(24, "big"))
        return CreatedKey(blob=blob, plaintext=l4 if plaintext else None)

    async def decrypt_key(self, blob: bytes, context: Mapping[str, str] | None = None) -> bytes:
        if self.why is not None:
            raise self.why
        kid = blob[2:18]
        return open_l4(self._key(kid), kid, "acme", context or {}, blob)

    def _key(self, kid: bytes) -> XaesKey:
        return XaesKey(kid * 2)

    def rotate(self) -> None:
        self.kid = bytes((self.kid[0] + 1,)) + self.kid[1:]


def made() -> tuple[Keys, KubernetesKms]:
    keys = Keys()
    return keys, KubernetesKms(keys, lambda n: bytes(n))


async def test_there_and_back_and_the_key_id_is_that_of_the_status() -> None:
    _, kms = made()
    status, sealed = await kms.status(), await kms.encrypt(SEED, "u1")
    assert (status.version, status.healthz, status.key_id) == ("v2", "ok", sealed.key_id)
    assert await kms.decrypt(sealed.ciphertext, "u2", sealed.key_id) == SEED
    assert SEED not in sealed.ciphertext


async def test_a_rotation_changes_the_key_id_and_what_was_sealed_still_opens() -> None:
    keys, kms = made()
    before, sealed = await kms.status(), await kms.encrypt(SEED, "u")
    keys.rotate()
    after = await kms.status()
    assert after.key_id != before.key_id and (await kms.encrypt(SEED, "u")).key_id == after.key_id
    assert await kms.decrypt(sealed.ciphertext, "u", sealed.key_id) == SEED


async def test_the_largest_payload_fits_into_a_kilobyte_and_a_larger_one_is_refused() -> None:
    _, kms = made()
    sealed = await kms.encrypt(bytes(PLAINTEXT_MAX), "u")
    assert len(sealed.ciphertext) == CIPHERTEXT_MAX < 1_024 and len(sealed.key_id) < 1_024
    with pytest.raises(Refused, match=f"plaintext: at most {PLAINTEXT_MAX} bytes"):
        await kms.encrypt(bytes(PLAINTEXT_MAX + 1), "u")


@pytest.mark.parametrize("why", [Refused("revoked", "restricted"), Unavailable("expired", "no lease")])
async def test_while_keys_may_not_be_used_the_status_says_why_and_keeps_the_key_id(why: KeymeshError) -> None:
    keys, kms = made()
    known, sealed = (await kms.status()).key_id, await kms.encrypt(SEED, "u")
    keys.why = why
    status = await kms.status()
    assert status.key_id == known and status.healthz != "ok" and why.code in status.healthz
    with pytest.raises(type(why)):
        await kms.encrypt(SEED, "u")
    with pytest.raises(type(why)):
        await kms.decrypt(sealed.ciphertext, "u", sealed.key_id)


async def test_what_does_not_open_gets_one_answer() -> None:
    _, kms = made()
    sealed = await kms.encrypt(SEED, "u")
    answers = set()
    for place in (20, 60, 95, 110, len(sealed.ciphertext) - 1):
        changed = bytearray(sealed.ciphertext)
        changed[place] ^= 1
        with pytest.raises(Integrity) as said:
            await kms.decrypt(bytes(changed), "u", sealed.key_id)
        answers.add(said.value.message)
    assert len(answers) == 1


async def test_another_key_id_an_annotation_or_a_foreign_blob_is_refused() -> None:
    _, kms = made()
    sealed = await kms.encrypt(SEED, "u")
    with pytest.raises(Refused, match="key_id"):
        await kms.decrypt(sealed.ciphertext, "u", "00" * 15 + "01")
    with pytest.raises(Refused, match="annotations"):
        await kms.decrypt(sealed.ciphertext, "u", sealed.key_id, ("a.example.org",))
    with pytest.raises(Refused, match="ciphertext: at most"):
        await kms.decrypt(bytes(CIPHERTEXT_MAX + 1), "u", sealed.key_id)
    with pytest.raises(Refused, match="uid"):
        await kms.encrypt(SEED, "u" * 1_025)


async def test_its_keys_are_nobody_elses() -> None:
    """An application's blob of the same service is not opened here, nor one of these by an application."""
    keys, kms = made()
    sealed = await kms.encrypt(SEED, "u")
    with pytest.raises(Integrity):
        await keys.decrypt_key(sealed.ciphertext[2:92])
    assert await keys.decrypt_key(sealed.ciphertext[2:92], CONTEXT)
