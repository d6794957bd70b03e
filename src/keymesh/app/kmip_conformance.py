"""Plays conformance cases against a KMIP server, one fresh store for each, and says which differ and which are skipped.

One runner for every case: which are skipped, their content decides (``kmip.xml_scope``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from keymesh.kmip.ttlv import decode, encode
from keymesh.kmip.xml_cases import Bindings, Case, differences, read_case, request_item
from keymesh.kmip.xml_form import XML_MAX_BYTES
from keymesh.kmip.xml_scope import needs_another, provider_of, skip_reason
from keymesh.model.errors import KeymeshError, Refused

FILES_MAX: Final = 10_000
DIFFERENCES_SHOWN: Final = 8

Send = Callable[[bytes], Awaitable[bytes]]
"""One request to the server over one connection, and its answer.  Raises OSError where the connection is gone."""
Fresh = Callable[[], AbstractAsyncContextManager[Send]]
"""A connection to a server with nothing stored."""
Now = Callable[[], int]
"""Seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Failure:
    """``step``: the number of the exchange, from 0; None where no request was sent."""

    file: str
    step: int | None
    differences: tuple[str, ...]


@dataclass(slots=True)
class Report:
    passed: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """As it stands in JSON."""
        return {
            "ok": not self.failures,
            "passed": len(self.passed),
            "failed": len(self.failures),
            "failures": [
                {"file": one.file, "step": one.step, "differences": list(one.differences)} for one in self.failures
            ],
            "skipped": [{"file": file, "reason": reason} for file, reason in self.skipped],
        }


def find_cases(directory: Path) -> dict[str, Path]:
    """The XML files under ``directory``, by their path in it.  Raises Refused where there are none, or too many."""
    if not directory.exists():
        raise Refused.bad_field("dir", f"{directory} does not exist")
    if not directory.is_dir():
        raise Refused.bad_field("dir", f"a directory of cases, got {directory}")
    found = {path.relative_to(directory).as_posix(): path for path in sorted(directory.rglob("*.xml"))}
    if not 0 < len(found) <= FILES_MAX:
        raise Refused.bad_field("dir", f"1 to {FILES_MAX} .xml files, got {len(found)}")
    return found


async def run_cases(files: dict[str, Path], fresh: Fresh, now: Now) -> Report:
    """Play every case, in the order of their names."""
    report, cases = Report(), {}
    for name, path in files.items():
        try:
            cases[name] = read_case(_text(path))
        except Refused as unreadable:
            report.failures.append(Failure(name, None, (unreadable.message,)))
    for name, case in cases.items():
        reason = skip_reason(case)
        if reason:
            report.skipped.append((name, reason))
            continue
        failure = await _play_afresh(name, cases, fresh, now)
        if failure is None:
            report.passed.append(name)
        else:
            report.failures.append(failure)
    return report


def _text(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(XML_MAX_BYTES + 1)


async def _play_afresh(name: str, cases: dict[str, Case], fresh: Fresh, now: Now) -> Failure | None:
    """In a store of its own; where a case goes on with what another one leaves, that one is played first."""
    before = _before(name, cases)
    if before is None and needs_another(cases[name]):
        return Failure(name, None, ("no case beside it makes the object that it begins with",))
    bindings = Bindings()
    async with fresh() as send:
        if before is not None:
            failure = await _play(before, cases[before], send, now, bindings)
            if failure is not None:
                told = f"{before}, whose object it needs, fails at step {failure.step}"
                return Failure(name, None, (told, *failure.differences))
        return await _play(name, cases[name], send, now, Bindings(generated=bindings.generated))


def _before(name: str, cases: dict[str, Case]) -> str | None:
    beside = name.rpartition("/")[0]
    others = {other: case for other, case in cases.items() if other != name and other.rpartition("/")[0] == beside}
    return provider_of(cases[name], others)


async def _play(name: str, case: Case, send: Send, now: Now, bindings: Bindings) -> Failure | None:
    """None where every answer is the one expected; it ends at the first that is not."""
    for step, exchange in enumerate(case.exchanges):
        try:
            request = encode(request_item(exchange, bindings, now=now()))
            found = differences(exchange, decode(await send(request)), bindings, now=now())
        except KeymeshError as bad:
            found = [bad.message]
        except (OSError, EOFError) as gone:
            found = [f"the server ended the connection: {type(gone).__name__} {gone}"]
        if found:
            more = len(found) - DIFFERENCES_SHOWN
            shown = found[:DIFFERENCES_SHOWN] + ([f"and {more} more"] if more > 0 else [])
            return Failure(name, step, tuple(shown))
    return None
