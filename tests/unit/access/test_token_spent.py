"""Books of tokens that have served: replays, ends, each party's share, and what the worst of parties cost the rest."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keymesh.access.token_spent import FORGET_MAX, Party, SpentTokens
from keymesh.model.errors import Refused
from keymesh.model.time import Instant

BIG = 1_000_000


class Book:
    """A book that says yes or no."""

    def __init__(self, most: int = BIG, since: int = 0) -> None:
        self.spent = SpentTokens(since=Instant(since), most=most)

    def takes(self, token: str, parties: Sequence[Party], *, now: int = 0, dead_at: int = 100, iat: int = 1) -> bool:
        try:
            self.spent.spend(token, parties, issued_at=Instant(iat), dead_at=Instant(dead_at), now=Instant(now))
        except Refused:
            return False
        return True

    def fill(self, parties: Sequence[Party], tries: int, *, dead_at: int = 100) -> int:
        """How many of so many tokens are taken; once one is not, none is."""
        answers = [self.takes(f"t{n}", parties, dead_at=dead_at) for n in range(tries)]
        assert answers == sorted(answers, reverse=True)
        return answers.count(True)


def of(name: str, most: int = 3) -> tuple[Party, ...]:
    return (Party(name, most),)


def test_a_token_serves_once_and_its_id_is_its_partys_alone() -> None:
    book = Book()
    assert book.takes("j", of("a"))
    assert not book.takes("j", of("a"))
    assert book.takes("j", of("b"))
    with pytest.raises(Refused, match="has served"):
        book.spent.spend("j", of("a"), issued_at=Instant(1), dead_at=Instant(100), now=Instant(99))


def test_what_was_issued_before_the_start_may_have_served() -> None:
    book = Book(since=50)
    assert not book.takes("j", of("a"), iat=49)
    assert book.takes("j", of("a"), iat=50)


def test_a_full_share_refuses_its_party_alone_and_the_dead_leave_at_their_instant() -> None:
    book = Book()
    assert book.takes("a", of("x"), now=10, dead_at=100)
    assert book.takes("b", of("x"), now=10, dead_at=20)
    assert book.takes("c", of("x"), now=10, dead_at=30)
    with pytest.raises(Refused, match="x has 3 tokens that serve once alive, may have 3"):
        book.spent.spend("d", of("x"), issued_at=Instant(1), dead_at=Instant(100), now=Instant(19))
    assert book.takes("a", of("y"), now=19)
    assert book.takes("d", of("x"), now=20)  # b is dead, though a, before it, is not
    assert len(book.spent) == 4
    for token in ("a", "c", "d"):
        assert not book.takes(token, of("x"), now=21)
    assert book.takes("a", of("x"), now=100, dead_at=200)
    assert (len(book.spent), book.spent.parties) == (1, 1)


def test_who_has_the_most_is_refused_first_and_who_has_none_last() -> None:
    book = Book(most=1_000)
    filled = [book.fill(of(f"loud-{n}", 100), 101) for n in range(20)]
    assert filled == sorted(filled, reverse=True)
    assert filled[0] > 80
    assert filled[-1] < 20
    assert not book.takes("more", of("loud-0", 100))
    assert all(book.takes("j", of(f"quiet-{n}", 100)) for n in range(50))


def test_a_book_takes_no_more_than_its_bound_and_the_last_places_are_the_quiet_ones() -> None:
    book = Book(most=100)
    parties = [of(f"p{n}", 20) for n in range(200)]
    for party in parties:
        book.fill(party, 25)
    assert len(book.spent) == 100
    counts = [book.spent.alive(party[0].name) for party in parties]
    assert counts == sorted(counts, reverse=True)
    assert counts.count(1) >= 5
    assert book.spent.parties == 200 - counts.count(0)
    assert not book.takes("j", of("late", 20))
    assert book.takes("j", of("late", 20), now=100)


def test_one_tenants_people_together_have_its_share_and_its_quiet_ones_a_place_in_it() -> None:
    book = Book(most=1_000)
    tenant = Party("tenant acme", 100)
    loud = sum(book.fill((tenant, Party(f"acme/{n}", 10)), 12) for n in range(12))
    assert 50 < loud < 100
    assert book.takes("j", (tenant, Party("acme/quiet", 10)))
    many = sum(book.takes("j", (tenant, Party(f"acme/more-{n}", 10))) for n in range(500))
    assert book.spent.alive("tenant acme") == loud + 1 + many <= 100
    assert not book.takes("k", (tenant, Party("acme/late", 10)))
    assert book.takes("k", (Party("tenant other", 100), Party("other/one", 10)))


def test_dead_ids_leave_a_few_at_a_time_and_cost_nobody_quiet_a_place() -> None:
    full = 3 * FORGET_MAX
    book = Book(most=full)
    assert all(book.takes("j", of(f"p{n}", 1)) for n in range(full))
    assert not book.takes("k", of("late", 1), now=99)
    assert len(book.spent) == full
    assert book.takes("k", of("late", 1), now=100, dead_at=200)
    assert len(book.spent) == full - FORGET_MAX + 1
    for n in range(3):
        book.takes(f"k{n}", of("late", 1), now=101, dead_at=200)  # also one that is refused clears up
    assert (len(book.spent), book.spent.parties) == (1, 1)


def test_an_attempt_at_a_full_share_of_a_full_book_costs_little() -> None:
    """The book of 100 000 was copied once for each attempt: ms each.  A look at two counts is microseconds."""
    book = Book(most=100_000)
    assert book.fill(of("p0", 100_000), 51_000) == 50_000
    started = time.process_time()
    for n in range(1_000):
        assert not book.takes(f"more-{n}", of("p0", 100_000))
    assert time.process_time() - started < 0.5  # copying would take seconds


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 30), st.integers(0, 20)), max_size=120
    )
)  # fmt: skip
def test_whatever_comes_the_book_agrees_with_a_list_of_all(steps: list[tuple[int, int, int, int]]) -> None:
    book, now = Book(most=12), 0
    alive: dict[tuple[str, str], int] = {}
    for who, token, wait, life in steps:
        now += wait if wait > 20 else 0
        alive = {key: dead_at for key, dead_at in alive.items() if now < dead_at}
        name, before = f"p{who}", dict(alive)
        own = sum(1 for key in before if key[0] == name)
        taken = book.takes(f"j{token}", of(name, 4), now=now, dead_at=now + 1 + life)
        if taken:
            assert (name, f"j{token}") not in before
            alive[name, f"j{token}"] = now + 1 + life
        else:
            assert (name, f"j{token}") in before or own >= 4 * (12 - len(before)) / 12
        assert len(book.spent) == len(alive) <= 12
        assert book.spent.alive(name) == sum(1 for key in alive if key[0] == name) <= 4
        assert book.spent.parties == len({key[0] for key in alive})
