"""Shares: any threshold of them give the secret back, fewer or foreign ones never do."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keymesh.crypto import shamir
from keymesh.model.errors import Integrity, Refused

SECRET = bytes(range(32))


def rng(seed: str) -> Callable[[int], bytes]:
    counter = itertools.count()
    return lambda n_bytes: hashlib.shake_256(f"{seed} {next(counter)}".encode()).digest(n_bytes)


def peasant(a: int, b: int) -> int:
    """Multiplication of polynomials, then long division: another way to the same product."""
    product = 0
    for i in range(8):
        if b >> i & 1:
            product ^= a << i
    for i in range(14, 7, -1):
        if product >> i & 1:
            product ^= 0x11B << (i - 8)
    return product


def test_the_field() -> None:
    assert all(shamir.gf_mul(a, b) == peasant(a, b) for a in range(256) for b in range(a, 256))
    assert all(shamir.gf_mul(a, shamir.gf_inverse(a)) == 1 for a in range(1, 256))


@given(st.binary(min_size=1, max_size=48), st.integers(2, 5), st.integers(0, 3), st.data())
def test_any_threshold_of_shares_gives_the_secret(secret: bytes, m: int, more: int, data: st.DataObject) -> None:
    shares = shamir.split(secret, m, m + more, rng("any"))
    chosen = data.draw(st.permutations(shares))[: data.draw(st.integers(m, m + more))]
    packed = [shamir.parse_share(share.pack()) for share in chosen]
    assert shamir.combine(packed) == secret


def test_fewer_shares_are_refused_and_tell_nothing() -> None:
    shares = shamir.split(SECRET, 3, 5, rng("few"))
    for pair in itertools.combinations(shares, 2):
        with pytest.raises(Refused, match="3 needed"):
            shamir.combine(pair)
    # for two shares every value of the secret's first byte is still possible: each has one fitting third share
    first, second = shares[:2]
    weights = [shamir._weight(x, [1, 2, 3]) for x in (1, 2, 3)]
    partial = shamir.gf_mul(weights[0], first.y[0]) ^ shamir.gf_mul(weights[1], second.y[0])
    assert {partial ^ shamir.gf_mul(weights[2], y) for y in range(256)} == set(range(256))


def test_shares_that_do_not_belong_together() -> None:
    shares, others = shamir.split(SECRET, 2, 3, rng("one")), shamir.split(SECRET, 2, 3, rng("two"))
    for bad, why in (
        ([], "none"),
        ([shares[0], others[1]], "one set"),
        ([shares[0], shares[0]], "twice"),
        ([shares[0]], "needed"),
        ([shares[0], shamir.split(SECRET, 3, 3, rng("one"))[1]], "one set"),
    ):
        with pytest.raises(Refused, match=why):
            shamir.combine(bad)


def test_a_lowered_threshold_or_made_up_share_is_noticed() -> None:
    shares = shamir.split(SECRET, 3, 3, rng("lie"))
    lowered = [shamir.Share(s.set_id, 2, s.x, s.y) for s in shares[:2]]
    made_up = [*shares[:2], shamir.Share(shares[0].set_id, 3, 9, bytes(48))]
    for bad in (lowered, made_up):
        with pytest.raises(Integrity):
            shamir.combine([shamir.parse_share(s.pack()) for s in bad])


def test_every_bit_flip_and_truncation_of_a_share_is_refused() -> None:
    packed = shamir.split(SECRET, 2, 2, rng("flip"))[0].pack()
    for bit in range(len(packed) * 8):
        changed = bytearray(packed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Refused):
            shamir.parse_share(changed)
    for length in range(len(packed)):
        with pytest.raises(Refused):
            shamir.parse_share(packed[:length])


@pytest.mark.parametrize(("m", "n"), [(0, 3), (1, 3), (4, 3), (2, 256), (-1, 2)])
def test_thresholds_that_make_no_sense(m: int, n: int) -> None:
    with pytest.raises(Refused):
        shamir.split(SECRET, m, n, rng("m of n"))


@pytest.mark.parametrize("secret", [b"", bytes(1025)])
def test_secret_sizes(secret: bytes) -> None:
    with pytest.raises(Refused):
        shamir.split(secret, 2, 3, rng("size"))


def test_text_form() -> None:
    share = shamir.split(SECRET, 2, 2, rng("text"))[0]
    text = share.to_text()
    assert shamir.share_from_text(f"  {text.upper()}\n") == share
    assert SECRET.hex() not in repr(share)
    assert share.y.hex() not in repr(share)
    for bad in (
        "",
        text[14:],
        text[:-1],
        text + "a",
        text.replace("keymesh", "keymash"),
        text[:-3] + "!!!",
        "x" * 9999,
    ):
        with pytest.raises(Refused):
            shamir.share_from_text(bad)


def test_255_shares() -> None:
    shares = shamir.split(b"k", 2, 255, rng("most"))
    assert shamir.combine([shares[254], shares[0]]) == b"k"
