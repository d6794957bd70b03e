"""What the kill-switch bench makes of the bounds that it tried."""

from __future__ import annotations

from typing import Any

import pytest

from keymesh.app import bench_bounds_samples as bounds
from keymesh.app.bench_bounds_edges import SURE_S, all_serve, is_sure
from keymesh.app.bench_edge_host import EdgeSeen
from keymesh.model.errors import Unavailable

MS = 1_000_000


def edge(served_ms: int, refused_ms: int = 0) -> EdgeSeen:
    return EdgeSeen(served_ns=served_ms * MS, refused_ns=refused_ms * MS)


def test_a_refusal_is_the_first_after_the_last_use_served() -> None:
    seen = EdgeSeen()
    seen.refused(1)
    seen.served(2)
    assert (seen.served_ns, seen.refused_ns) == (2, 0)
    seen.refused(3)
    seen.refused(4)
    assert (seen.served_ns, seen.refused_ns) == (2, 3)


def test_each_bound_ends_when_the_design_says() -> None:
    at = 5_000 * MS
    assert bounds.lease_end_ns(at, 2_000) == 7_000 * MS
    assert bounds.governance_end_ns(at, 4_000) == (5_000 + 4_004 + 2_000) * MS
    assert bounds.root_end_ns(at, 3_000) == 18_000 * MS
    assert bounds.silent_end_ns(at, 9_000) == 14_000 * MS


def test_a_margin_is_from_the_last_use_served_to_the_end_of_the_bound() -> None:
    found = bounds.samples_of([edge(1_500), edge(2_100)], fault_ns=1_000 * MS, end_ns=2_000 * MS)
    assert [(s.after_ms, s.margin_ms) for s in found] == [(500.0, 500.0), (1_100.0, -100.0)]
    assert bounds.worst_margin_ms(found) == -100.0
    assert bounds.worst_margin_ms([]) is None


def test_push_is_to_the_last_edge_and_none_may_be_missing() -> None:
    assert bounds.push_ms([edge(1, 30), edge(1, 80)], 20 * MS) == 60.0
    with pytest.raises(Unavailable, match="1 of 2 Edges"):
        bounds.push_ms([edge(1, 30), edge(1)], 20 * MS)


def held() -> bounds.BoundsSeen:
    one = bounds.BoundSample(after_ms=1.0, margin_ms=1.0)
    return bounds.BoundsSeen(50, 5, [999.0], [one], [one], [one], [one])


def test_all_four_must_hold_and_have_been_tried() -> None:
    shown = bounds.bounds_figures(held(), 1_000)
    assert shown["bounds_ok"]
    assert (shown["edges"], shown["edge_processes"], shown["push_p99_ms"]) == (50, 5, 999.0)
    assert [shown[f"{b}_margin_ms"] for b in ("lease", "governance", "root")] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", ["lease", "governance", "root", "silent"])
@pytest.mark.parametrize("samples", [[], [bounds.BoundSample(1.0, 5.0), bounds.BoundSample(9.0, 0.0)]])
def test_one_that_was_not_tried_or_not_held_is_missed(name: str, samples: list[Any]) -> None:
    seen = held()
    setattr(seen, name, samples)
    assert not bounds.bounds_figures(seen, 1_000)["bounds_ok"]


@pytest.mark.parametrize("push", [[], [1_000.0]])
def test_a_push_that_was_late_or_never_tried_is_missed(push: list[float]) -> None:
    seen = held()
    seen.push_ms = push
    assert not bounds.bounds_figures(seen, 1_000)["bounds_ok"]


def test_an_edge_serves_once_it_has_served_and_surely_refuses_a_while_after_its_refusal() -> None:
    assert all_serve({"a": edge(1)})
    assert not all_serve({"a": edge(1), "b": edge(0)})
    assert not all_serve({"a": edge(1, 2)})
    sure_ms = round(SURE_S * 1_000)
    assert is_sure([edge(1, 2)], (2 + sure_ms) * MS)
    assert not is_sure([edge(1, 2)], (2 + sure_ms) * MS - 1)
    assert not is_sure([edge(1, 2), edge(1)], 10**15)
