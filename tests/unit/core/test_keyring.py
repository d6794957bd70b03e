"""The keys in memory: each under its kid, wiped when dropped, and nobody's but its tenant's."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keymesh.core.events import KeyRef
from keymesh.core.keyring import Keyring, ivk_subject, subject_of
from keymesh.core.keystore import StoredIvk
from keymesh.crypto.aad import Level
from keymesh.crypto.kid import kid_hex, kid_of
from keymesh.crypto.pages import KeyPages, SecretBytes
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable
from keymesh.model.ids import check_tenant
from keymesh.model.states import IvkState
from keymesh.model.time import Instant


class Counted:
    """Entropy that can be told again: the hash of a counter."""

    def __init__(self, seed: str = "") -> None:
        self.seed, self.n = seed, 0

    def token(self, n_bytes: int) -> bytes:
        self.n += 1
        return hashlib.shake_256(f"{self.seed}/{self.n}".encode()).digest(n_bytes)


def keyring(region: str = "eu", seed: str = "") -> Keyring:
    return Keyring(region, KeyPages(allow_unlocked=True), Counted(seed))


def sealed_off(region: str = "eu", seed: str = "") -> Keyring:
    """With a MasterKey."""
    ring = keyring(region, seed)
    ring.unseal(ring.fresh())
    return ring


def stored_ivk(ring: Keyring, generation: int = 1) -> StoredIvk:
    with ring.fresh() as secret:
        kid, blob = ring.wrap_ivk(generation, secret)
    return StoredIvk(generation=generation, kid=kid, state=IvkState.ACTIVE, created_at=Instant(0), wraps=0, blob=blob)


def ref_of(
    secret: SecretBytes, key: str = "l2", *, tenant: str = "acme", parent: str = "b1", version: int = 1
) -> KeyRef:
    return KeyRef(
        namespace=tenant,
        key=key,
        version=version,
        revision=1,
        kid=kid_hex(kid_of(secret.reveal())),
        digest="",
        parent=parent,
    )


# --- holding ---------------------------------------------------------------------------------------------------------


def test_a_key_is_held_under_the_kid_of_its_bytes() -> None:
    ring = keyring()
    secret = ring.fresh()
    kid = kid_hex(kid_of(secret.reveal()))
    held = ring.hold("acme", secret)
    assert (held.kid, held.namespace, len(ring)) == (kid, "acme", 1)
    assert ring.get(kid) is held is ring.need(kid)
    assert ring.get("0" * 32) is None
    with pytest.raises(Unavailable) as missing:
        ring.need("0" * 32)
    assert missing.value.code == "not-loaded"


def test_a_second_copy_is_wiped_and_the_first_stays() -> None:
    ring = keyring()
    first = ring.fresh()
    copy = ring.pages.put(bytearray(first.reveal()))
    held = ring.hold("acme", first)
    assert ring.hold("acme", copy) is held
    assert copy.wiped
    assert not first.wiped
    assert len(ring) == 1


def test_drop_wipes_what_it_names_and_nothing_else() -> None:
    ring = sealed_off()
    keys = {name: ring.hold(name[0], ring.fresh()) for name in ("a1", "a2", "b1", "b2")}
    internal = ring.open_ivk(stored_ivk(ring))
    assert ring.drop("a", (keys["a1"].kid, keys["b1"].kid)) == 1  # a kid of another tenant is not reached
    assert [name for name, held in keys.items() if held.secret.wiped] == ["a1"]
    assert ring.drop("b") == 2
    assert ring.drop("nobody") == ring.drop("a", ()) == 0
    assert [name for name, held in keys.items() if not held.secret.wiped] == ["a2"]
    assert ring.drop(None) == 1
    assert all(held.secret.wiped for held in keys.values())
    assert not internal.secret.wiped
    assert len(ring) == 1
    with pytest.raises(Refused):
        keys["a1"].secret.reveal()


@pytest.mark.parametrize("tenant", ["cluster", "internal", "master", "ivk"])
def test_no_tenants_name_is_taken_for_the_regions_own(tenant: str) -> None:
    """A tenant may have any label as its name; its keys must go when it is dropped."""
    check_tenant(tenant)
    ring = keyring()
    held = ring.hold(check_tenant(tenant), ring.fresh())
    ring.keep_internal(set())
    assert not held.secret.wiped
    assert ring.drop(tenant) == 1
    assert held.secret.wiped


def test_the_name_of_internal_keys_is_no_label() -> None:
    with pytest.raises(Refused):
        check_tenant(Keyring.INTERNAL)


def test_internal_keys_are_kept_by_kid() -> None:
    ring = sealed_off()
    held = [ring.open_ivk(stored_ivk(ring, n)) for n in (1, 2, 3)]
    tenant = ring.hold("acme", ring.fresh())
    ring.keep_internal({held[1].kid, tenant.kid})
    assert [key.secret.wiped for key in held] == [True, False, True]
    assert not tenant.secret.wiped


def test_sealing_wipes_everything() -> None:
    ring = sealed_off()
    master = ring.master
    stored = stored_ivk(ring)
    held = [ring.hold("acme", ring.fresh()), ring.open_ivk(stored), master]
    ring.seal()
    assert all(key.secret.wiped for key in held)
    assert len(ring) == 0
    assert ring.pages.slots_in_use == 0
    for use in (lambda: ring.master, lambda: ring.open_ivk(stored), lambda: ring.wrap_ivk(2, ring.fresh())):
        with pytest.raises(Unavailable) as sealed:
            use()
        assert sealed.value.code == "sealed"
    ring.seal()


def test_nothing_is_said_of_the_bytes() -> None:
    ring = sealed_off()
    secret = ring.fresh()
    raw = bytes(secret.reveal())
    held = ring.hold("acme", secret)
    for text in (repr(held), str(held), repr(ring.master), repr(ring.__dict__)):
        assert raw.hex() not in text
        assert repr(raw) not in text


# --- internal keys ---------------------------------------------------------------------------------------------------


def test_an_internal_key_comes_back_from_the_store() -> None:
    ring = sealed_off()
    stored = stored_ivk(ring, 4)
    assert ring.get(stored.kid) is None
    held = ring.open_ivk(stored)
    assert held.kid == stored.kid
    assert ring.open_ivk(stored) is held


@pytest.mark.parametrize("change", ["generation", "kid", "blob", "cut", "empty", "master", "region"])
def test_an_internal_key_that_is_not_what_the_store_says_is_not_opened(change: str) -> None:
    ring = sealed_off(seed="a")
    stored = stored_ivk(ring)
    other = stored_ivk(ring, 2)
    match change:
        case "generation":
            bad = replace(stored, generation=2)
        case "kid":
            bad = replace(stored, kid=other.kid)
        case "blob":
            bad = replace(stored, blob=other.blob)
        case "cut":
            bad = replace(stored, blob=stored.blob[:-1])
        case "empty":
            bad = replace(stored, blob=b"")
        case _:
            bad = stored
    if change == "master":
        ring.unseal(ring.fresh())
    if change == "region":
        ring.region = "us"
    before = len(ring)
    with pytest.raises((Integrity, Refused)):
        ring.open_ivk(bad)
    assert len(ring) == before


# --- L2 and L3 -------------------------------------------------------------------------------------------------------


def bound(ring: Keyring) -> tuple[KeyRef, bytes, bytes, bytes]:
    """(ref, L2's binding, its bytes, E)."""
    secret, one_time = ring.fresh(), ring.fresh()
    e, raw, ref = bytes(one_time.reveal()), bytes(secret.reveal()), ref_of(secret)
    subject = subject_of(tenant="acme", domain="eu", key="l2", version=1, kid=ref.kid)
    binding = ring.bind_l2(
        subject=subject, secret=secret, one_time=one_time, binding_id="b1", provider_blob=b"what L1 made of E"
    )
    return ref, binding, raw, e


def test_an_l2_comes_back_with_the_customers_key_alone() -> None:
    ref, binding, raw, e = bound(keyring(seed="us"))
    elsewhere = keyring("us", "other")
    one_time = bytearray(e)
    secret = elsewhere.open_l2(ref, "eu", binding, one_time)
    assert bytes(secret.reveal()) == raw
    assert one_time == bytes(32)  # wiped


@pytest.mark.parametrize(
    "change",
    [
        {"namespace": "other"},
        {"version": 2},
        {"kid": "0" * 32},
        {"parent": "b2"},
        {"key": "l3/l2"},
        {"key": "l3/pay"},
    ],
    ids=str,
)
def test_a_binding_opens_for_exactly_what_it_was_made_for(change: dict[str, str]) -> None:
    ring = keyring()
    ref, binding, _, e = bound(ring)
    one_time = bytearray(e)
    before = ring.pages.slots_in_use
    with pytest.raises(KeymeshError):
        ring.open_l2(replace(ref, **change), "eu", binding, one_time)  # type: ignore[arg-type]
    assert one_time == bytes(32)  # wiped all the same
    with pytest.raises(Integrity):
        ring.open_l2(ref, "us", binding, bytearray(e))  # another residency domain
    assert ring.pages.slots_in_use == before


@pytest.mark.parametrize("length", [0, 1, 16, 31, 33, 64])
def test_a_kms_that_gives_back_something_else_is_refused_and_wiped(length: int) -> None:
    ring = keyring()
    ref, binding, _, _ = bound(ring)
    one_time = bytearray(b"x" * length)
    with pytest.raises(Refused):
        ring.open_l2(ref, "eu", binding, one_time)
    assert one_time == bytes(length)


def test_the_cascade_hides_the_binding_and_binds_its_place() -> None:
    ring = sealed_off()
    ref, binding, _, _ = bound(ring)
    one, two = (ring.open_ivk(stored_ivk(ring, n)) for n in (1, 2))
    subject = subject_of(tenant="acme", domain="eu", key="l2", version=1, kid=ref.kid)
    sealed = ring.cascade(one, subject, binding)
    assert binding not in sealed
    assert ring.open_outer(one, subject, sealed) == binding
    assert ring.cascade(one, subject, binding) != sealed  # a nonce of its own
    with pytest.raises(Integrity):
        ring.open_outer(two, subject, sealed)
    for other in (replace(subject, tenant="other"), replace(subject, version=2), replace(subject, domain="us")):
        with pytest.raises(Integrity):
            ring.open_outer(one, other, sealed)
    with pytest.raises(Refused):
        ring.cascade(one, subject, b"no binding")
    with pytest.raises(Refused, match="holds an L2"):
        ring.cascade(one, subject_of(tenant="acme", domain="eu", key="l3/pay", version=1, kid=ref.kid), binding)


def test_an_l3_needs_its_parent_in_memory() -> None:
    ring = keyring()
    parent = ring.hold("acme", ring.fresh())
    secret = ring.fresh()
    raw, ref = bytes(secret.reveal()), ref_of(secret, "l3/pay", parent=parent.kid)
    subject = subject_of(tenant="acme", domain="eu", key="l3/pay", version=1, kid=ref.kid)
    blob = ring.wrap_l3(parent, subject, secret)
    assert bytes(ring.open_l3(ref, "eu", blob).reveal()) == raw
    for bad in (
        replace(ref, namespace="other"),
        replace(ref, key="l3/mail"),
        replace(ref, key="l2"),
        replace(ref, version=2),
    ):
        with pytest.raises(Integrity):
            ring.open_l3(bad, "eu", blob)
    ring.drop("acme")
    with pytest.raises(Unavailable):
        ring.open_l3(ref, "eu", blob)


@given(st.binary(max_size=200))
def test_any_bytes_for_a_wrap_are_refused(blob: bytes) -> None:
    ring = keyring()
    parent = ring.hold("acme", ring.fresh())
    ref = replace(ref_of(parent.secret, "l3/pay", parent=parent.kid), kid="0" * 32)
    with pytest.raises((Integrity, Refused)):
        ring.open_l3(ref, "eu", blob)
    with pytest.raises((Integrity, Refused)):
        ring.open_l2(ref, "eu", blob, bytearray(32))


def test_a_key_that_is_not_the_subjects_is_not_wrapped() -> None:
    ring = sealed_off()
    secret = ring.fresh()
    subject = subject_of(tenant="acme", domain="eu", key="l3/pay", version=1, kid="0" * 32)
    with pytest.raises(Integrity):
        ring.wrap_l3(ring.master, subject, secret)


def test_subjects_say_which_key_they_name() -> None:
    kid = "0f" * 16
    l2 = subject_of(tenant="acme", domain="eu", key="l2", version=3, kid=kid)
    l3 = subject_of(tenant="acme", domain="eu", key="l3/pay", version=3, kid=kid)
    assert (l2.level, l2.key, l3.level, l3.key) == (Level.L2, "l2", Level.L3, "pay")
    assert ivk_subject("eu", 2, kid).tenant == "cluster/eu"
    for bad in ("", "0F" * 16, "0f" * 15):
        with pytest.raises(Refused):
            subject_of(tenant="acme", domain="eu", key="l2", version=1, kid=bad)


def test_nonces_are_new_each_time() -> None:
    ring = keyring()
    assert len({ring.nonce() for _ in range(100)}) == 100
    assert len(ring.nonce()) == 24
