"""Uses of a key in parts: what lies between InitIndicator and FinalIndicator, by the correlation value.

In memory only, of one process, bounded in number and in time; a stream is its caller's, its operation's and its
object's, whatever another one says.  The object's state and the gate are asked at every part by the engine.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from keymesh.kmip.ciphers import Part
from keymesh.kmip.enums import Operation, ResultReason
from keymesh.kmip.faults import Fault
from keymesh.kmip.ports import Caller, Scope

STREAMS_MAX: Final = 256
STREAMS_OF_ONE_MAX: Final = 16
IDLE_S: Final = 300


@dataclass(slots=True)
class _Stream:
    caller: Caller
    operation: Operation
    uid: str | None
    part: Part
    used_s: int


class Streams:
    """All open streams of a server."""

    def __init__(self) -> None:
        self._open: OrderedDict[bytes, _Stream] = OrderedDict()

    def add(
        self, value: bytes, part: Part, *, caller: Caller, operation: Operation, uid: str | None, now_s: int
    ) -> None:
        """Keeps a stream under a correlation value.  Raises Fault where there are too many."""
        self.sweep(now_s)
        own = sum(1 for stream in self._open.values() if stream.caller == caller)
        if own >= STREAMS_OF_ONE_MAX or len(self._open) >= STREAMS_MAX:
            raise Fault(ResultReason.ServerLimitExceeded, f"at most {STREAMS_OF_ONE_MAX} uses in parts at a time")
        self._open[value] = _Stream(caller, operation, uid, part, now_s)

    def sweep(self, now_s: int) -> None:
        """Ends what was not gone on with in time."""
        for old in [key for key, stream in self._open.items() if stream.used_s + IDLE_S <= now_s]:
            del self._open[old]

    def end(self, scope: Scope) -> None:
        """Ends all of a tenant's service: what a restriction calls, since each of them holds a key in use."""
        for own in [key for key, stream in self._open.items() if stream.caller.scope == scope]:
            del self._open[own]

    def keep(self, wanted: Callable[[Caller], bool]) -> None:
        """Ends those of callers that are not ``wanted`` any more."""
        for lost in [key for key, stream in self._open.items() if not wanted(stream.caller)]:
            del self._open[lost]

    def take(self, value: bytes, *, caller: Caller, operation: Operation, uid: str | None, now_s: int) -> Part:
        """The stream, which is no longer kept: a part that fails ends it, and none is fed twice at a time."""
        stream = self._open.get(value)
        if (
            stream is None
            or (stream.caller, stream.operation, stream.uid) != (caller, operation, uid)
            or stream.used_s + IDLE_S <= now_s
        ):
            raise Fault(ResultReason.InvalidCorrelationValue, "CorrelationValue: none that is open here")
        del self._open[value]
        return stream.part
