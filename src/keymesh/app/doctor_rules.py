"""What ``keymesh doctor`` makes of what it observes: pure; each rule gives the words for people, and what mends it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

SHORT_LIVED: Final = timedelta(days=7)
RENEWAL_GRACE: Final = timedelta(minutes=10)
CLOCK_LIMIT_S: Final = 2.0
"""What the certificate of a kill switch allows for (DESIGN section 5)."""
DISK_LEAST_BYTES: Final = 1 << 30
DISK_LEAST_SHARE: Final = 0.05
PYTHON_LEAST, PYTHON_BELOW = (3, 11), (3, 14)


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report.  ``fix``: what a person does where it is not ``ok``; else ""."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


def judge_certificate(name: str, *, since: datetime, until: datetime, now: datetime) -> Check:
    """A short-lived certificate is renewed at half of its life; another one must have a week left."""
    if now < since:
        return Check(name, False, f"not valid before {_day(since)}", "set this host's clock, or have it issued anew")
    if now >= until:
        return Check(name, False, f"expired at {_day(until)}", "issue a new one and restart whoever shows it")
    left = until - now
    if until - since <= SHORT_LIVED:
        ok = now < since + (until - since) / 2 + RENEWAL_GRACE
        fix = "" if ok else "its process does not renew it: look at its log, or at who replaces the file"
        return Check(name, ok, f"{_span(left)} left of {_span(until - since)}, renewed at half", fix)
    ok = left >= SHORT_LIVED
    return Check(name, ok, f"valid until {_day(until)}", "" if ok else "issue a new one now")


def clock_offset_s(*, sent: float, received: float, theirs: float, resolution_s: float) -> float:
    """The least by which their clock must be off ours: 0 where what they said fits between sending and receiving.

    ``theirs`` may stand for anything up to ``resolution_s`` later.  All in unix seconds; positive: theirs is ahead.
    """
    if theirs > received:
        return theirs - received
    if theirs + resolution_s < sent:
        return theirs + resolution_s - sent
    return 0.0


def judge_clock(name: str, offset_s: float) -> Check:
    """Restrictions and leases rest on clocks that are close."""
    ok = abs(offset_s) <= CLOCK_LIMIT_S
    if not offset_s:
        detail = "agrees with ours"
    else:
        detail = f"at least {abs(offset_s):.1f} s {'ahead of' if offset_s > 0 else 'behind'} ours"
    return Check(name, ok, detail, "" if ok else "let both hosts follow the same time servers (chrony, ntpd)")


def judge_disk(name: str, *, free_bytes: int, total_bytes: int) -> Check:
    """A node that cannot record closes."""
    ok = free_bytes >= min(DISK_LEAST_BYTES, total_bytes // 2) and free_bytes >= DISK_LEAST_SHARE * total_bytes
    detail = f"{free_bytes / 1e9:.1f} GB free of {total_bytes / 1e9:.1f} GB"
    return Check(name, ok, detail, "" if ok else "make room: a process that cannot record closes")


def judge_seal(name: str, *, state: str, reason: str) -> Check:
    """A seal that has died is found before it is needed; people's shares, and one not tried yet, are no fault."""
    ok = state in ("opens", "untried", "waits-for-shares")
    detail = f"{state}: {reason}" if reason else state
    return Check(name, ok, detail, "" if ok else "bring its key back, or add another seal and remove this one")


def judge_python(version: tuple[int, int, int]) -> Check:
    """The versions that the tests run on."""
    ok = PYTHON_LEAST <= version[:2] < PYTHON_BELOW
    fix = "" if ok else f"use Python {PYTHON_LEAST[0]}.{PYTHON_LEAST[1]} to {PYTHON_BELOW[0]}.{PYTHON_BELOW[1] - 1}"
    return Check("python", ok, ".".join(map(str, version)), fix)


def _day(at: datetime) -> str:
    return at.isoformat(sep=" ", timespec="minutes")


def _span(span: timedelta) -> str:
    hours = span.total_seconds() / 3_600
    return f"{hours / 24:.0f} d" if hours >= 72 else f"{hours:.1f} h"
