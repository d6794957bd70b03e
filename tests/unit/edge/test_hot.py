"""The hot path: formats, limits, deadlines at their own instant, clocks, budgets, revocation in the middle."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.edge.world import Clocks, hot_lease, hot_path, key_bytes

from keymesh.crypto.blob import L4_BLOB_BYTES, open_l4, seal_l4
from keymesh.crypto.kid import kid_of
from keymesh.crypto.xaes import XaesKey
from keymesh.edge.hot_lease import CoreHeld, CreatedKey, UnknownKid, no_lease
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable
from keymesh.model.limits import BATCH_MAX_KEYS, CONTEXT_MAX_BYTES, CONTEXT_MAX_PAIRS

CONTEXT = {"table": "orders", "row": "7"}


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def each(*uses: Callable[[], Any]) -> tuple[Callable[[], Any], ...]:
    return uses


def ready(clocks: Clocks, *names: str, **options: Any) -> Any:
    hot = hot_path(clocks)
    hot.publish(hot_lease(clocks, *(names or ("v1", "v2")), **options))
    return hot


def test_a_blob_is_the_products_own_format(clocks: Clocks) -> None:
    hot = ready(clocks)
    for context in ({}, CONTEXT):
        made = hot.create_key(context, True)
        assert len(made.blob) == L4_BLOB_BYTES
        kid = kid_of(key_bytes("v2"))
        assert open_l4(XaesKey(key_bytes("v2")), kid, "acme", context, made.blob) == made.plaintext
        assert hot.decrypt_key(made.blob, dict(reversed(context.items()))) == made.plaintext
        assert hot.decrypt_key(memoryview(bytearray(made.blob)), context) == made.plaintext


def test_an_older_version_still_opens_and_plaintext_is_given_only_when_asked(clocks: Clocks) -> None:
    old = seal_l4(XaesKey(key_bytes("v1")), kid_of(key_bytes("v1")), "acme", {}, bytes(range(32)), bytes(24))
    hot = ready(clocks)
    assert hot.decrypt_key(old) == bytes(range(32))
    assert hot.create_key().plaintext is None


def test_every_flipped_bit_is_noticed(clocks: Clocks) -> None:
    hot = ready(clocks)
    blob = hot.create_key(CONTEXT).blob
    for bit in range(len(blob) * 8):
        bad = bytearray(blob)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(KeymeshError) as caught:
            hot.decrypt_key(bytes(bad), CONTEXT)
        expected = "bad-field" if bit < 16 else "unknown-key" if bit < 18 * 8 else "integrity"
        assert caught.value.code == expected


@pytest.mark.parametrize("length", [0, 1, 2, 17, 18, 42, 89, 91, 180])
def test_other_lengths_are_refused_with_the_limit(clocks: Clocks, length: int) -> None:
    hot = ready(clocks)
    blob = (hot.create_key().blob * 2)[:length]
    with pytest.raises(Refused, match="exactly 90 bytes"):
        hot.decrypt_key(blob)


def test_other_tenants_contexts_and_keys_do_not_open(clocks: Clocks) -> None:
    hot = ready(clocks)
    blob = hot.create_key(CONTEXT).blob
    for context in ({}, None, {"table": "orders"}, {**CONTEXT, "x": ""}, {"table": "orders7", "row": ""}):
        with pytest.raises(Integrity):
            hot.decrypt_key(blob, context)
    other = ready(clocks, tenant="other")
    with pytest.raises(Integrity):
        other.decrypt_key(blob, CONTEXT)
    with pytest.raises(UnknownKid):
        ready(clocks, "v9").decrypt_key(blob, CONTEXT)


@pytest.mark.parametrize(
    "context",
    [
        {"k": 1},
        {1: "v"},
        {"k": b"v"},
        ["k"],
        "k",
        {"k": "\ud800"},
        {"k": "v" * CONTEXT_MAX_BYTES},
        {str(n): "" for n in range(CONTEXT_MAX_PAIRS + 1)},
    ],
)
def test_a_bad_context_is_refused_by_name(clocks: Clocks, context: Any) -> None:
    hot = ready(clocks)
    for use in each(
        lambda: hot.create_key(context),
        lambda: hot.decrypt_key(hot.create_key().blob, context),
        lambda: hot.create_keys(2, context),
        lambda: hot.decrypt_keys([hot.create_key().blob], context),
    ):
        with pytest.raises(Refused) as caught:
            use()
        assert caught.value.field == "context"


def test_a_blob_that_is_no_bytes_is_refused(clocks: Clocks) -> None:
    with pytest.raises(Refused, match="blob"):
        ready(clocks).decrypt_key("x" * 90)


# --- deadlines and clocks ------------------------------------------------------------------


def test_the_deadlines_own_instant_is_expired_by_either_clock(clocks: Clocks) -> None:
    for move in ("boot", "wall", "both"):
        here = Clocks()
        hot = ready(here, ttl_ms=1_000)
        end_boot, end_wall = here.boot + 1_000_000_000, here.wall + 1_000_000_000
        if move != "wall":
            here.boot = end_boot - 1
        if move != "boot":
            here.wall = end_wall - 1
        blob = hot.create_key().blob
        if move != "wall":
            here.boot = end_boot
        if move != "boot":
            here.wall = end_wall
        with pytest.raises(Unavailable, match="run out") as caught:
            hot.decrypt_key(blob)
        assert caught.value.code == "expired"
        assert here.deaths == ["expired"]
        here.boot, here.wall = end_boot - 10**9, end_wall - 10**9
        with pytest.raises(Unavailable):
            hot.create_key()


def test_a_lease_that_ends_during_the_work_releases_nothing(clocks: Clocks) -> None:
    hot = ready(clocks)
    blob = hot.create_key().blob
    many = [hot.create_key().blob for _ in range(3)]

    def expire(clock: str) -> Any:
        """Clocks that say live at the first look and dead, or gone back, at the second."""
        readings = [0]
        real_boot, real_wall = clocks.boot, clocks.wall

        def boot() -> int:
            readings[0] += 1
            return real_boot + (10**12 if clock == "boot" and readings[0] > 1 else 0)

        def wall() -> int:
            late = {"wall": 10**12, "back": -2 * 10**9}.get(clock, 0)
            return real_wall + (late if readings[0] > 1 else 0)

        return boot, wall

    for clock in ("boot", "wall", "back"):
        for use in each(
            lambda: hot.create_key(None, True),
            lambda: hot.decrypt_key(blob),
            lambda: hot.create_keys(3),
            lambda: hot.decrypt_keys(many),
        ):
            hot.publish(hot_lease(clocks, "v1", "v2"))
            hot._boot, hot._wall = expire(clock)
            with pytest.raises(Unavailable) as caught:
                use()
            assert caught.value.code == ("clock" if clock == "back" else "expired")


def test_a_wall_clock_that_went_back_more_than_a_second_kills_the_lease(clocks: Clocks) -> None:
    hot = ready(clocks)
    clocks.wall -= 999_000_000
    hot.create_key()
    clocks.wall -= 2_000_000
    with pytest.raises(Unavailable) as caught:
        hot.create_key()
    assert caught.value.code == "clock"
    assert clocks.deaths == ["clock"]
    clocks.wall += 10_000_000_000
    with pytest.raises(Unavailable):
        hot.create_key()


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(-900, 400)), max_size=20))
def test_nothing_is_minted_past_the_deadline_of_max_of_both_clocks(moves: list[tuple[int, int]]) -> None:
    clocks = Clocks()
    hot = ready(clocks, ttl_ms=1_000)
    boot0, wall0 = clocks.boot, clocks.wall
    furthest = 0
    for boot_ms, extra_ms in moves:
        clocks.boot += boot_ms * 1_000_000
        clocks.wall += max(-900, boot_ms + extra_ms) * 1_000_000
        furthest = max(furthest, clocks.boot - boot0, clocks.wall - wall0)
        try:
            hot.create_key()
        except Unavailable:
            continue
        assert furthest < 1_000_000_000


# --- no lease ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        ("starting", Unavailable),
        ("revoked", Unavailable),
        ("forked", Unavailable),
        ("closed", Unavailable),
        ("restricted", Refused),
        ("unknown", Refused),
        ("core-held", CoreHeld),
    ],
)
def test_without_a_lease_the_reason_is_told(clocks: Clocks, reason: str, error: type[KeymeshError]) -> None:
    hot = ready(clocks)
    blob = hot.create_key().blob
    hot.publish(no_lease(reason))
    for use in each(
        lambda: hot.create_key(),
        lambda: hot.decrypt_key(blob),
        lambda: hot.create_keys(1),
        lambda: hot.decrypt_keys([blob]),
    ):
        with pytest.raises(error) as caught:
            use()
        assert caught.value.code == reason


def test_a_new_path_says_that_it_is_starting(clocks: Clocks) -> None:
    with pytest.raises(Unavailable) as caught:
        hot_path(clocks).create_key()
    assert caught.value.code == "starting"


def test_a_version_that_only_opens_does_not_mint(clocks: Clocks) -> None:
    hot = hot_path(clocks)
    lease = hot_lease(clocks, "v1")
    lease.wrapping = None
    hot.publish(lease)
    with pytest.raises(Unavailable) as caught:
        hot.create_key()
    assert caught.value.code == "no-wrapping-key"
    with pytest.raises(Unavailable):
        hot.create_keys(3)


def test_a_revocation_in_the_middle_of_the_work_wins(clocks: Clocks) -> None:
    """The lease goes while the cipher works: nothing of the batch comes out."""
    hot = ready(clocks)
    blobs = [made.blob for made in hot.create_keys(5)]
    for use in each(
        lambda: hot.create_keys(5, None, True),
        lambda: hot.decrypt_keys(blobs),
        lambda: hot.create_key(),
    ):
        hot.publish(hot_lease(clocks, "v1", "v2"))
        seen = [0]
        key = hot.lease.wrapping
        seal, open_ = key.seal, key.open_

        def revoke(work: Any, seen: list[int]) -> Any:
            def during(*args: Any) -> Any:
                seen[0] += 1
                if seen[0] == 1:
                    hot.publish(no_lease("restricted"))
                return work(*args)

            return during

        key.seal, key.open_ = revoke(seal, seen), revoke(open_, seen)
        with pytest.raises(Refused) as caught:
            use()
        assert caught.value.code == "restricted"
        assert seen[0] >= 1


def test_a_refresh_in_the_middle_of_the_work_only_makes_it_start_over(clocks: Clocks) -> None:
    hot = ready(clocks)
    key = hot.lease.wrapping
    seal = key.seal

    def refresh(*args: Any) -> Any:
        hot.publish(hot_lease(clocks, "v2", "v3"))
        return seal(*args)

    key.seal = refresh
    made = hot.create_key(None, True)
    assert made.blob[2:18] == kid_of(key_bytes("v3"))
    assert hot.decrypt_key(made.blob) == made.plaintext


def test_a_dropped_lease_holds_no_key(clocks: Clocks) -> None:
    hot = ready(clocks)
    lease = hot.lease
    hot.publish(no_lease("revoked"))
    assert lease.versions == {}
    assert lease.wrapping is None
    assert lease.boot_end == 0


# --- budgets and counts ------------------------------------------------------------------


def test_budgets_end_and_a_new_lease_brings_new_ones(clocks: Clocks) -> None:
    hot = ready(clocks, mint_budget=3, open_budget=2)
    blobs = [hot.create_key().blob for _ in range(3)]
    with pytest.raises(Unavailable) as caught:
        hot.create_key()
    assert caught.value.code == "budget-spent"
    assert hot.decrypt_key(blobs[0])
    with pytest.raises(Unavailable):
        hot.decrypt_keys(blobs)
    with pytest.raises(Unavailable):
        hot.decrypt_key(blobs[0])
    hot.publish(hot_lease(clocks, "v1", "v2", mint_budget=0))
    with pytest.raises(Unavailable):
        hot.create_key()
    assert hot.decrypt_key(blobs[0])


def test_counts_survive_a_refresh_and_count_refusals(clocks: Clocks) -> None:
    hot = ready(clocks)
    blob = hot.create_key().blob
    hot.create_keys(4)
    hot.decrypt_key(blob)
    hot.publish(hot_lease(clocks, "v1", "v2"))
    hot.decrypt_keys([blob, blob])
    hot.publish(no_lease("restricted"))
    for _ in range(2):
        with pytest.raises(Refused):
            hot.create_key()
    assert hot.take_usage() == (5, 3, 2)
    assert hot.take_usage() == (0, 0, 0)
    for _ in range(3):
        hot.take_usage()
    assert len(hot._meters) == 1


def test_threads_share_a_budget_exactly(clocks: Clocks) -> None:
    hot = ready(clocks, mint_budget=500)
    made: list[bytes] = []

    def work() -> None:
        while True:
            try:
                made.append(hot.create_key().blob)
            except Unavailable:
                return

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 500
    assert hot.take_usage()[0] == 500


def test_batches_have_limits(clocks: Clocks) -> None:
    hot = ready(clocks)
    for count in (0, -1, BATCH_MAX_KEYS + 1):
        with pytest.raises(Refused):
            hot.create_keys(count)
    with pytest.raises(Refused):
        hot.decrypt_keys([])
    with pytest.raises(Refused):
        hot.decrypt_keys([b""] * (BATCH_MAX_KEYS + 1))
    blobs = [made.blob for made in hot.create_keys(3)]
    with pytest.raises(Integrity):
        hot.decrypt_keys([*blobs, blobs[0][:-1] + bytes([blobs[0][-1] ^ 1])])


# --- secrets ------------------------------------------------------------------


def test_a_created_key_shows_its_plaintext_to_nobody(clocks: Clocks) -> None:
    made: CreatedKey = ready(clocks).create_key(None, True)
    assert made.plaintext is not None
    assert made.plaintext.hex() not in repr(made)
    assert repr(made.plaintext) not in repr(made)
    assert made != CreatedKey(made.blob, made.plaintext)
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            leak(made)
