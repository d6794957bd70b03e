"""The purse: exact whatever threads do, nothing twice, given back only what nobody started."""

from __future__ import annotations

import sys
import threading
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from keymesh.edge.purse import Purse


def take(purse: Purse, n: int) -> int:
    return len(tuple(islice(purse.stream(), n)))


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(0, 3_000)),
            st.tuples(st.just("take"), st.integers(0, 3_000)),
            st.tuples(st.just("trim"), st.integers(0, 3_000)),
        ),
        max_size=25,
    )
)
def test_every_operation_is_used_held_or_given_back(moves: list[tuple[str, int]]) -> None:
    purse = Purse()
    purse.turn(1)
    granted: dict[str, int] = {}
    back: dict[str, int] = {}
    used = 0
    for n, (what, ops) in enumerate(moves):
        if what == "add":
            purse.add(f"l{n}", ops)
            granted[f"l{n}"] = ops
        elif what == "take":
            got = take(purse, ops)
            assert got <= ops
            used += got
        else:
            before = purse.left
            back.update(purse.trim(ops))
            assert purse.left >= min(before, ops)
        assert used + purse.left + sum(back.values()) == sum(granted.values())
    back.update(purse.turn(2))
    assert purse.left == 0 == take(purse, 1)
    assert used + sum(back.values()) == sum(granted.values())
    assert all(back[lease] <= granted[lease] for lease in back)


def test_more_is_wanted_below_half_of_what_there_was() -> None:
    purse = Purse()
    purse.turn(1)
    assert purse.low, "nothing is held"
    purse.add("l1", 100)
    assert not purse.low
    take(purse, 51)
    assert purse.low
    purse.add("l2", 0)
    assert purse.low, "an empty slice fills nothing"
    purse.add("l3", 100)
    assert not purse.low


def test_threads_take_each_operation_once_while_some_is_given_back() -> None:
    purse = Purse()
    purse.turn(1)
    purse.add("l1", 60_000)
    counts: list[int] = []
    stream = purse.stream()

    def work() -> None:
        taken = 0
        while next(stream, None) is not None:
            taken += 1
        counts.append(taken)

    threads = [threading.Thread(target=work) for _ in range(6)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        unused = dict(purse.trim(20_000))
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert sum(counts) + unused.get("l1", 0) <= 60_000, "nothing that is given back is used as well"
    assert purse.left == 0
