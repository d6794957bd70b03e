"""What all seeds showed together, as plain values: distributions, the bound beside each, and whether it held.

A figure of which nothing was seen is null, never 0.  Percentiles are by nearest rank: a value that was seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

from keymesh.sim.ask.question import Question
from keymesh.sim.ask.seen import FIGURES, Asked, Loss, Sample, Seen
from keymesh.sim.options import HOUR_MS

EXCEEDED_MAX: Final = 100
_DIGITS: Final = 6
_PUSH_MS: Final = 1_000


def rank(values: Sequence[Any], per_cent: int) -> Any:
    """The smallest of the sorted ``values`` that at least ``per_cent`` of them do not pass; None of none."""
    return values[max(0, -(-len(values) * per_cent // 100) - 1)] if values else None


def spread(values: Iterable[Any]) -> dict[str, Any]:
    """p50, p99 and worst, where more is worse."""
    ordered = sorted(values)
    return {"p50": rank(ordered, 50), "p99": rank(ordered, 99), "worst": ordered[-1] if ordered else None}


def report(question: Question, seen: Sequence[Seen]) -> dict[str, Any]:
    """The answer: equal seeds give equal values."""
    bounds = _bounds(question)
    exceeded = [
        {"figure": name, "seed": one.seed, "at_ms": s.at_ms, "what": s.what, "ms": s.counted_ms, "bound_ms": s.bound_ms}
        for one in seen
        for name in FIGURES
        for s in one.samples[name]
        if s.exceeds
    ]
    violations = [f"seed {one.seed}: {one.violation}" for one in seen if one.violation is not None]
    return {
        "ok": not exceeded and not violations,
        "seeds": len(seen),
        "virtual_hours": round(sum(one.asked_ms for one in seen) / HOUR_MS, 3),
        "orders": sum(one.orders for one in seen),
        "faults": dict(sorted(sum((one.faults for one in seen), Counter()).items())),
        "figures": {
            **{name: _figure(name, seen, bounds.get(name)) for name in FIGURES},
            "rpo": _rpo([loss for one in seen for loss in one.losses]),
            "availability": _availability(seen),
        },
        "exceeded": exceeded[:EXCEEDED_MAX],
        "violations": violations,
    }


def _bounds(question: Question) -> dict[str, tuple[str, str, int | None]]:
    """Figure -> the bound's name, what it counts from, and its ms; a tenant's shorter ttl is judged by its own."""
    longest = max(question.tenants, key=lambda tenant: question.ttl_of(tenant.name)).name
    return {
        "revocation_lag": ("governance", "commit", question.governance_bound_ms(longest)),
        "edge_lag": ("lease", "applied by the Core", question.lease_bound_ms),
        "proof": ("certificate", "the certificate's T, of each", None),
        "root_lag": ("root", "L1 disabled", question.root_bound_ms),
        "time_to_closed": ("ttl", "cut", question.closing_bound_ms(longest)),
    }


def _figure(name: str, seen: Sequence[Seen], bound: tuple[str, str, int | None] | None) -> dict[str, Any]:
    samples = [sample for one in seen for sample in one.samples[name]]
    unseen = sum((one.unseen[name] for one in seen), Counter())
    values = [sample.value_ms for sample in samples]
    return {
        "unit": "ms",
        "samples": len(samples),
        **spread(values),
        "bound": None if bound is None else _judged(samples, *bound),
        "unseen": dict(sorted(unseen.items())),
    } | (_pushed(values) if name == "revocation_lag" else {})


def _pushed(values: Sequence[int]) -> dict[str, Any]:
    """What share was delivered, not waited for: the push bound is a second (DESIGN section 5)."""
    within = sum(value < _PUSH_MS for value in values)
    return {"within_1s": round(within / len(values), _DIGITS) if values else None}


def _judged(samples: Sequence[Sample], name: str, counted_from: str, ms: int | None) -> dict[str, Any]:
    judged = [sample for sample in samples if sample.bound_ms is not None]
    return {
        "name": name,
        "ms": ms,
        "counted_from": counted_from,
        "judged": len(judged),
        "worst": max((sample.counted_ms for sample in judged), default=None),
        "least_margin_ms": min((s.bound_ms - s.counted_ms for s in judged if s.bound_ms is not None), default=None),
        "exceeded": sum(sample.exceeds for sample in judged),
    }


def _rpo(losses: Sequence[Loss]) -> dict[str, Any]:
    return {
        "samples": len(losses),
        "entries": spread(loss.entries for loss in losses),
        "seconds": spread(round(loss.age_ms / 1_000, 3) for loss in losses),
        "lossless": sum(loss.entries == 0 for loss in losses) if losses else None,
    }


def _availability(seen: Sequence[Seen]) -> dict[str, Any]:
    """Where less is worse: 99 of 100 tenant-hours had at least p99."""
    operations = {name: _sum(one.operations[name] for one in seen) for name in ("decrypt", "encrypt")}
    hours = sorted(_fraction(hour) for one in seen for hour in one.hours.values() if hour.asked)
    tenants = sorted({tenant for one in seen for tenant, _ in one.hours})
    falling = hours[::-1]
    return {
        **{name: _plain(asked) for name, asked in operations.items()},
        "tenant_hours": {
            "samples": len(hours),
            "p50": rank(falling, 50),
            "p99": rank(falling, 99),
            "worst": hours[0] if hours else None,
        },
        "tenants": {
            name: _plain(_sum(hour for one in seen for (of, _), hour in one.hours.items() if of == name))["fraction"]
            for name in tenants
        },
    }


def _sum(parts: Iterable[Asked]) -> Asked:
    total = Asked()
    for part in parts:
        total.asked += part.asked
        total.served += part.served
        total.elsewhere += part.elsewhere
        total.by_order += part.by_order
    return total


def _fraction(asked: Asked) -> float:
    return round(asked.served / asked.asked, _DIGITS)


def _plain(asked: Asked) -> dict[str, Any]:
    return {
        "asked": asked.asked,
        "served": asked.served,
        "served_elsewhere": asked.elsewhere,
        "forbidden_by_order": asked.by_order,
        "fraction": _fraction(asked) if asked.asked else None,
    }
