"""What the kill-switch bench makes of the bounds that it tried: how much of each was left (DESIGN section 5).  Pure.

A sample is one Edge under one fault.  It holds where no use that was served began at or after the end of the bound; its
margin is what lay between.  Instants are ns of one machine's wall clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from keymesh.app.bench_edge_host import EdgeSeen
from keymesh.app.bench_killswitch_samples import quantile
from keymesh.control.evidence import bound_end
from keymesh.model.errors import Unavailable

PROOF_MS: Final = 10_000
"""The root bound is one probe and this."""
_NS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class BoundSample:
    """``after_ms``: from the fault to the last use served; ``margin_ms``: from there to the end of the bound."""

    after_ms: float
    margin_ms: float


def samples_of(seen: Iterable[EdgeSeen], *, fault_ns: int, end_ns: int) -> list[BoundSample]:
    """One for each Edge; one that served nothing after the fault has all of the time up to it as well."""
    return [
        BoundSample(after_ms=(edge.served_ns - fault_ns) / _NS, margin_ms=(end_ns - edge.served_ns) / _NS)
        for edge in seen
    ]


def lease_end_ns(cut_ns: int, edge_ttl_ms: int) -> int:
    """An Edge that was cut off before the restriction: its lease was asked for before the cut."""
    return cut_ns + edge_ttl_ms * _NS


def governance_end_ns(committed_ns: int, ttl_ms: int) -> int:
    """As the certificate reckons: commit + ttl x 1.001 + 2 s."""
    return bound_end(committed_ns // _NS, ttl_ms) * _NS


def root_end_ns(pulled_ns: int, probe_ms: int) -> int:
    """L1 says no: one probe, and ten seconds for the other replicas' proof."""
    return pulled_ns + (probe_ms + PROOF_MS) * _NS


def silent_end_ns(cut_ns: int, l1_ttl_ms: int) -> int:
    """L1 says nothing: the L1 lease, which counts from a call that was begun before the cut."""
    return cut_ns + l1_ttl_ms * _NS


@dataclass(slots=True)
class BoundsSeen:
    """``push_ms``: of each suspension, to the last of all Edges.  ``edges`` in ``processes`` took part in each."""

    edges: int = 0
    processes: int = 0
    push_ms: list[float] = field(default_factory=list)
    lease: list[BoundSample] = field(default_factory=list)
    governance: list[BoundSample] = field(default_factory=list)
    root: list[BoundSample] = field(default_factory=list)
    silent: list[BoundSample] = field(default_factory=list)


def push_ms(seen: Iterable[EdgeSeen], append_started_ns: int) -> float:
    """From the start of the log append to the last Edge refusing.  Raises Unavailable where one still serves."""
    ends = [edge.refused_ns for edge in seen]
    if not all(ends):
        raise Unavailable("bench", f"{ends.count(0)} of {len(ends)} Edges still serve long after the suspension")
    return (max(ends) - append_started_ns) / _NS


def worst_margin_ms(samples: Sequence[BoundSample]) -> float | None:
    return round(min(sample.margin_ms for sample in samples), 1) if samples else None


def bounds_figures(seen: BoundsSeen, limit_ms: float) -> dict[str, Any]:
    """The four bounds' part of the figures, and whether they hold (``bounds_ok``)."""
    shown: dict[str, Any] = {
        "edges": seen.edges,
        "edge_processes": seen.processes,
        "push_samples": len(seen.push_ms),
        "push_p50_ms": quantile(seen.push_ms, 0.50),
        "push_p99_ms": quantile(seen.push_ms, 0.99),
        "lease_margin_ms": worst_margin_ms(seen.lease),
        "governance_margin_ms": worst_margin_ms(seen.governance),
        "root_margin_ms": worst_margin_ms([*seen.root, *seen.silent]),
    }
    for name, samples in (
        ("lease", seen.lease),
        ("governance", seen.governance),
        ("root_denied", seen.root),
        ("root_silent", seen.silent),
    ):
        shown[f"{name}_samples"] = len(samples)
        shown[f"{name}_worst_ms"] = round(max((s.after_ms for s in samples), default=0.0), 1)
    margins = [shown["lease_margin_ms"], shown["governance_margin_ms"], shown["root_margin_ms"]]
    held = all(margin is not None and margin > 0 for margin in margins) and bool(seen.root) and bool(seen.silent)
    pushed = bool(seen.push_ms) and shown["push_p99_ms"] < limit_ms
    return shown | {"bounds_ok": held and pushed}
