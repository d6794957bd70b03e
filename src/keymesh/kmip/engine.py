"""The engine: a request's bytes in, an answer's bytes out; whatever comes in, something of KMIP goes out.

1. decode, within the limits; 2. read the header and the batch; 3. for each item ask the gate, run it, see that the
answer is not too large, store what it changed; 4. ask the gate whether the caller may still be served, and answer.

Nothing that an item changed is stored unless it succeeded; with Undo, unless the whole batch did.  Errors that are not
the client's (our bug) are not caught.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from keymesh.kmip import message, ops_attributes, ops_find, ops_life, ops_make, ops_server, ops_use
from keymesh.kmip.context import Context, Placeholders, Served, World
from keymesh.kmip.enums import BatchErrorContinuationOption, Operation, ResultReason, ResultStatus
from keymesh.kmip.faults import VERSIONS, Fault, Version, bad_message
from keymesh.kmip.items import Fields
from keymesh.kmip.message import BatchItem, Request, Result, Unreadable, failed, succeeded, written_result
from keymesh.kmip.ports import Caller, Conflict
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import DEFAULT_LIMITS, Item, decode
from keymesh.kmip.work import Work
from keymesh.model.errors import Integrity, Refused, Unavailable
from keymesh.model.limits import KMIP_RESPONSE_MAX_BYTES

OPERATIONS: Final[dict[Operation, Served]] = {
    **ops_make.OPS,
    **ops_find.OPS,
    **ops_attributes.OPS,
    **ops_life.OPS,
    **ops_use.OPS,
    **ops_server.OPS,
}
"""All that is served, but Interop."""

ATTEMPTS: Final = 4  # of an item that somebody else's change came before
_HEADER_BYTES: Final = 80  # of a response, with the message around it


class Engine:
    """Serves requests of callers that the transport has authenticated."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._operations = OPERATIONS | ops_server.INTEROP if world.interop else OPERATIONS
        self._served = {
            version: tuple(sorted(op for op, served in self._operations.items() if served.since <= version))
            for version in VERSIONS
        }

    async def handle(self, request: bytes, caller: Caller) -> bytes:
        """The answer to one request.  Never raises for what the client sent."""
        now_s = self._world.clock.seconds()
        try:
            asked = message.read(_decoded(request))
            if asked.username not in (None, caller.name):
                fault = Fault(ResultReason.AuthenticationNotSuccessful, "Credential: not the certificate's name")
                raise Unreadable(asked.version, fault)
        except Unreadable as bad:
            return message.written(bad.version, now_s, [written_result(bad.version, failed(None, bad.fault))])
        results = await self._batch(asked, caller, now_s)
        if not self._world.gate.still(caller):
            results = [failed(each.item, _denied()) for each in results]
        return message.written(asked.version, now_s, [written_result(asked.version, each) for each in results])

    async def _batch(self, asked: Request, caller: Caller, now_s: int) -> list[Result]:
        undo = asked.on_error is BatchErrorContinuationOption.Undo
        whole = Work(self._world.store, caller.scope)
        placeholders = Placeholders()
        most = asked.response_max_bytes
        left = (KMIP_RESPONSE_MAX_BYTES if most is None else min(most, KMIP_RESPONSE_MAX_BYTES)) - _HEADER_BYTES
        results: list[Result] = []
        for item in asked.batch:
            step = _Step(caller, asked.version, now_s, whole if undo else None, placeholders, left)
            results.append(await self._item(item, step))
            if len(asked.batch) > 1:
                left -= len(written_result(asked.version, results[-1]))
            if results[-1].fault is not None and asked.on_error is not BatchErrorContinuationOption.Continue:
                break
        return await self._ended(whole, results) if undo else results

    async def _ended(self, whole: Work, results: list[Result]) -> list[Result]:
        """A batch that is undone as a whole: stored at once, or not at all."""
        if results[-1].fault is None:
            try:
                await whole.commit()
                return results
            except Conflict as conflict:
                results[-1] = failed(results[-1].item, _conflict(conflict))
            except (Refused, Unavailable, Integrity) as foreign:
                results[-1] = failed(results[-1].item, _fault(foreign))
        return [*(_undone(each) for each in results[:-1]), results[-1]]

    async def _item(self, item: BatchItem, step: _Step) -> Result:
        """One item, run again where somebody else's change came before its own."""
        for attempt in range(ATTEMPTS):
            work = step.whole or Work(self._world.store, step.caller.scope)
            trial = step.placeholders.copy()
            try:
                operation, served = self._operation(step.version, item)
                await self._world.gate.admit(step.caller, operation, None)
                ctx = Context(
                    world=self._world,
                    caller=step.caller,
                    version=step.version,
                    now_s=step.now_s,
                    operation=operation,
                    work=work,
                    placeholders=trial,
                    operations=self._served[step.version],
                )
                assert item.payload is not None
                payload = await served.run(ctx, Fields(item.payload))
                result = succeeded(step.version, item, payload)
                if len(written_result(step.version, result)) > step.left:
                    raise Fault(ResultReason.ResponseTooLarge, "MaximumResponseSize: the answer is larger")
                if step.whole is None:
                    await work.commit()
                step.placeholders.become(trial)
                return result
            except Conflict as conflict:
                if conflict.name_taken or attempt == ATTEMPTS - 1:
                    return failed(item, _conflict(conflict))
            except (Refused, Unavailable, Integrity) as foreign:
                return failed(item, _fault(foreign))
        raise AssertionError("the last attempt answers")

    def _operation(self, version: Version, item: BatchItem) -> tuple[Operation, Served]:
        if item.fault is not None:
            raise item.fault
        operation = message.operation_of(item)
        served = self._operations.get(operation)
        if served is None or served.since > version:
            raise Fault(ResultReason.OperationNotSupported, "Operation: not served in this version")
        return operation, served


@dataclass(frozen=True, slots=True)
class _Step:
    """Where a batch stands: ``whole`` is the work of all its items, where it is undone as a whole."""

    caller: Caller
    version: Version
    now_s: int
    whole: Work | None
    placeholders: Placeholders
    left: int  # bytes of the answer


def _decoded(request: bytes) -> Item:
    try:
        return decode(request, limits=DEFAULT_LIMITS)
    except Refused as bad:
        raise Unreadable(VERSIONS[-1], bad_message(bad.message)) from bad


def _undone(result: Result) -> Result:
    """What stays of an answer whose item was undone: which object it was, no key bytes."""
    payload = tuple(each for each in result.payload or () if each.tag == Tag.UniqueIdentifier)
    return Result(result.item, ResultStatus.OperationUndone, payload)


def _denied() -> Fault:
    return Fault(ResultReason.PermissionDenied, "not permitted")


def _conflict(conflict: Conflict) -> Fault:
    if conflict.name_taken:
        return Fault(ResultReason.NonUniqueNameAttribute, "Name: another object has it")
    return Fault(ResultReason.GeneralFailure, "the object changes too often; ask again")


def _fault(foreign: Refused | Unavailable | Integrity) -> Fault:
    """What a client is told of an error of this server's parts: never whose, never which check."""
    match foreign:
        case Fault():
            return foreign
        case Refused():
            return _denied()
        case Unavailable():
            return Fault(ResultReason.GeneralFailure, "not available now; ask again later")
        case Integrity():
            return Fault(ResultReason.CryptographicFailure, "could not be opened")
