"""Who asks more than so many times a second waits, each client for itself."""

from __future__ import annotations

from keymesh.kmip.pace import REMEMBERED_MAX, SECOND_NS, Pace


def test_a_seconds_worth_at_once_then_the_rate() -> None:
    pace = Pace(10)
    waits = [pace.wait_ns("a", 0) for _ in range(13)]
    assert waits[:10] == [0] * 10
    assert waits[10:] == [SECOND_NS // 10, SECOND_NS // 5, 3 * SECOND_NS // 10]
    assert pace.wait_ns("b", 0) == 0
    assert pace.wait_ns("a", 5 * SECOND_NS) == 0


def test_waiting_for_it_is_enough() -> None:
    pace, now_ns = Pace(100), 0
    for _ in range(1_000):
        now_ns += pace.wait_ns("a", now_ns)
    assert 8.9 <= now_ns / SECOND_NS <= 9.1


def test_of_too_many_clients_the_least_recent_is_forgotten() -> None:
    pace = Pace(1)
    for n in range(REMEMBERED_MAX + 5):
        assert pace.wait_ns(n, 0) == 0
    assert len(pace._due) == REMEMBERED_MAX
