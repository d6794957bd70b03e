"""Batches: order, placeholders, what an error does to the rest, size limits, and changes that meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from keymesh.kmip.engine import ATTEMPTS
from keymesh.kmip.enums import (
    BatchErrorContinuationOption,
    Operation,
    ResultReason,
    ResultStatus,
    State,
    UniqueIdentifierEnumeration,
)
from keymesh.kmip.items import make, struct
from keymesh.kmip.memory import MemoryStore, OpenGate
from keymesh.kmip.objects import ManagedObject
from keymesh.kmip.ports import Caller, Change, Conflict, Scope
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import Item, ItemType
from keymesh.model.errors import Integrity, Refused, Unavailable
from tests.unit.kmip.support import Lab, aes, named, new_key, vendors

Undo, Stop, Continue = (
    BatchErrorContinuationOption.Undo,
    BatchErrorContinuationOption.Stop,
    BatchErrorContinuationOption.Continue,
)
CREATE = (Operation.Create, new_key(*aes()))
BAD = (Operation.Get, (make(Tag.UniqueIdentifier, "absent"),))
HERE: tuple[Item, ...] = ()


async def test_the_placeholder_is_what_the_last_item_named() -> None:
    lab = Lab()
    first, second, third = await lab.batch(CREATE, (Operation.Get, HERE), (Operation.Activate, HERE))
    assert first.uid == second.uid == third.uid
    assert await lab.attribute(first.uid, Tag.State) == State.Active


async def test_2_x_names_what_an_operation_made() -> None:
    lab = Lab()
    made = Item(Tag.UniqueIdentifier, ItemType.ENUMERATION, UniqueIdentifierEnumeration.Create)
    other = await lab.key()
    first, _, third = await lab.batch(
        CREATE, (Operation.Get, (make(Tag.UniqueIdentifier, other),)), (Operation.Get, (made,))
    )
    assert third.uid == first.uid != other


async def test_no_placeholder_where_nothing_was_named() -> None:
    lab = Lab()
    assert (await lab.ask(Operation.Get)).reason is ResultReason.ItemNotFound
    await lab.key()
    await lab.key()
    located, got = await lab.batch((Operation.Locate, HERE), (Operation.Get, HERE), on_error=Continue)
    assert len(located.all(Tag.UniqueIdentifier)) == 2
    assert got.reason is ResultReason.ItemNotFound


async def test_a_failed_item_names_nothing() -> None:
    lab = Lab()
    uid = await lab.key()
    get = (Operation.Get, (make(Tag.UniqueIdentifier, uid),))
    destroy = (Operation.Destroy, (make(Tag.UniqueIdentifier, await lab.key()),))
    _, failed, last = await lab.batch(get, destroy, (Operation.GetAttributeList, HERE), on_error=Continue)
    assert failed.reason is ResultReason.WrongKeyLifecycleState
    assert last.uid == uid


@pytest.mark.parametrize(("option", "answered"), [(None, 2), (Stop, 2), (Continue, 3)])
async def test_what_an_error_does_to_the_rest(option: BatchErrorContinuationOption | None, answered: int) -> None:
    lab = Lab()
    answers = await lab.batch(CREATE, BAD, CREATE, on_error=option)
    assert [each.status for each in answers] == [
        ResultStatus.Success,
        ResultStatus.OperationFailed,
        ResultStatus.Success,
    ][:answered]
    assert len(await lab.store.find(Scope("acme", "files"), name=None)) == answered - 1


async def test_undo_stores_nothing_and_gives_no_key_away() -> None:
    lab = Lab()
    first, second, third = await lab.batch(CREATE, (Operation.Get, HERE), BAD, CREATE, on_error=Undo)
    assert (first.status, second.status) == (ResultStatus.OperationUndone, ResultStatus.OperationUndone)
    assert third.reason is ResultReason.ObjectNotFound
    assert second.value(Tag.KeyMaterial) is None
    assert lab.store.held == {}


async def test_undo_that_succeeds_stores_all() -> None:
    lab = Lab()
    first, second = await lab.batch(CREATE, (Operation.Activate, HERE), on_error=Undo)
    assert (first.status, second.status) == (ResultStatus.Success, ResultStatus.Success)
    assert await lab.attribute(first.uid, Tag.State) == State.Active


async def test_two_of_one_batch_cannot_share_a_name() -> None:
    for option in (Undo, Continue):
        lab = Lab()
        create = (Operation.Create, new_key(*aes(), named("one")))
        answers = await lab.batch(create, create, on_error=option)
        assert answers[-1].reason is ResultReason.NonUniqueNameAttribute


async def test_an_answer_that_is_too_large_changes_nothing() -> None:
    lab = Lab()
    for most in (0, 1, 150):
        (answer,) = await lab.batch(CREATE, most=most)
        assert answer.reason is ResultReason.ResponseTooLarge
    assert lab.store.held == {}
    (answer,) = await lab.batch(CREATE, most=400)
    assert answer.status is ResultStatus.Success


async def test_a_batch_cannot_ask_for_more_than_a_response_may_hold() -> None:
    lab = Lab()
    fetch = (Operation.RNGRetrieve, (make(Tag.DataLength, 64 * 1024),))
    answers = await lab.batch(*[fetch] * 40)
    assert answers[-1].reason is ResultReason.ResponseTooLarge
    assert len(answers) == 16


@dataclass
class BusyStore(MemoryStore):
    """Somebody else is first, so many times."""

    times: int = 0
    taken: bool = False
    error: Exception | None = None

    async def commit(self, scope: Scope, changes: Sequence[Change]) -> None:
        if self.error is not None:
            raise self.error
        if self.times:
            self.times -= 1
            raise Conflict("busy", name_taken=self.taken)
        await super().commit(scope, changes)


async def test_an_item_is_run_again_where_somebody_was_first() -> None:
    lab = Lab(store=BusyStore(times=ATTEMPTS - 1))
    assert (await lab.batch(CREATE))[0].status is ResultStatus.Success
    lab = Lab(store=BusyStore(times=ATTEMPTS))
    assert (await lab.batch(CREATE))[0].reason is ResultReason.GeneralFailure
    lab = Lab(store=BusyStore(times=1, taken=True))
    assert (await lab.batch(CREATE))[0].reason is ResultReason.NonUniqueNameAttribute
    lab = Lab(store=BusyStore(times=1))
    assert [each.reason for each in await lab.batch(CREATE, CREATE, on_error=Undo)] == [
        None,
        ResultReason.GeneralFailure,
    ]


@pytest.mark.parametrize("option", [Undo, Stop])
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Unavailable("store", "secret detail"), ResultReason.GeneralFailure),
        (Integrity("store", "secret detail"), ResultReason.CryptographicFailure),
    ],
)
async def test_a_store_that_fails_is_told_without_its_words(
    option: BatchErrorContinuationOption, error: Exception, told: ResultReason
) -> None:
    lab = Lab(store=BusyStore(error=error))
    (answer,) = await lab.batch(CREATE, on_error=option)
    assert answer.reason is told
    assert "secret" not in str(answer.value(Tag.ResultMessage))


async def test_a_lost_race_keeps_what_the_winner_wrote() -> None:
    """Two edits read the same version; the second to commit runs again and both values are there."""
    lab = Lab()
    uid = await lab.key()
    rival = vendors("rival", "1")

    class Raced(MemoryStore):
        done = False

        async def get(self, scope: Scope, uid: str) -> ManagedObject | None:
            found = await super().get(scope, uid)
            if not self.done:
                self.done = True
                await lab.do(Operation.AddAttribute, uid, struct(Tag.NewAttribute, rival))
            return found

    slow = Lab(store=Raced(held=lab.store.held))
    mine = vendors("mine", "1")
    assert (await slow.do(Operation.AddAttribute, uid, struct(Tag.NewAttribute, mine))).status is ResultStatus.Success
    held = await lab.store.get(Scope("acme", "files"), uid)
    assert held is not None
    assert {each.item for each in held.attributes} >= {rival, mine}


@pytest.mark.parametrize("operation", [Operation.Get, Operation.Destroy])
async def test_a_tenant_that_is_stopped_during_the_last_wait_is_told_nothing(operation: Operation) -> None:
    lab = Lab()
    uid = await lab.key(active=False)

    class Stopping(OpenGate):
        """Admits; before the answer goes out the tenant is stopped."""

        def still(self, caller: Caller) -> bool:
            return False

    late = Lab(store=lab.store, gate=Stopping())
    answers = await late.batch((operation, (make(Tag.UniqueIdentifier, uid),)), CREATE)
    assert {each.reason for each in answers} == {ResultReason.PermissionDenied}
    assert all(each.value(Tag.ResponsePayload) is None for each in answers)


async def test_the_gate_is_asked_for_every_operation_and_every_object() -> None:
    asked: list[tuple[Operation, str | None]] = []

    class Watching(OpenGate):
        async def admit(self, caller: Caller, operation: Operation, target: ManagedObject | None) -> None:
            asked.append((operation, None if target is None else target.uid))

    lab = Lab(gate=Watching())
    uid = await lab.key(active=False)
    for operation in (Operation.ReKey, Operation.Activate, Operation.Check, Operation.GetAttributeList):
        asked.clear()
        await lab.do(operation, uid)
        assert asked == [(operation, None), (operation, uid)]
    kek = await lab.key()
    info = struct(Tag.EncryptionKeyInformation, make(Tag.UniqueIdentifier, kek))
    asked.clear()
    await lab.do(Operation.Get, uid, struct(Tag.KeyWrappingSpecification, make(Tag.WrappingMethod, 1), info))
    assert asked == [(Operation.Get, None), (Operation.Get, uid), (Operation.Encrypt, kek)]


async def test_a_gate_that_refuses_an_object_changes_nothing() -> None:
    class Picky(OpenGate):
        async def admit(self, caller: Caller, operation: Operation, target: ManagedObject | None) -> None:
            if target is not None:
                raise Refused("policy", "secret detail")

    made = Lab()
    uid = await made.key(active=False)
    lab = Lab(store=made.store, gate=Picky())
    before = {scope: dict(objects) for scope, objects in made.store.held.items()}
    for operation in (Operation.ReKey, Operation.Activate, Operation.Destroy, Operation.Get):
        answer = await lab.do(operation, uid)
        assert answer.reason is ResultReason.PermissionDenied
        assert "secret" not in str(answer.value(Tag.ResultMessage))
    assert (await lab.ask(Operation.Locate)).all(Tag.UniqueIdentifier) == []
    assert made.store.held == before


async def test_a_date_that_moves_the_state_needs_the_right_to_move_it() -> None:
    class NoMoves(OpenGate):
        async def admit(self, caller: Caller, operation: Operation, target: ManagedObject | None) -> None:
            if operation in (Operation.Activate, Operation.Revoke):
                raise Refused("policy", "no")

    made = Lab()
    uid = await made.key(active=False)
    lab = Lab(store=made.store, gate=NoMoves())
    for tag in (Tag.ActivationDate, Tag.DeactivationDate):
        for at in (lab.clock.now_s, lab.clock.now_s + 1_000):
            date = make(tag, at)
            for operation in (Operation.AddAttribute, Operation.SetAttribute):
                refused = await lab.do(operation, uid, struct(Tag.NewAttribute, date))
                assert refused.reason is ResultReason.PermissionDenied
            assert (await lab.ask(Operation.Create, *new_key(*aes(), date))).reason is ResultReason.PermissionDenied
    assert (await lab.ask(Operation.Create, *new_key(*aes()))).reason is None


@pytest.mark.parametrize("error", [Refused("writer", "not here"), Unavailable("writer", "away")])
async def test_a_get_does_not_wait_for_the_writer(error: Exception) -> None:
    made = Lab()
    uid = await made.key(active=False)
    lab = Lab(store=BusyStore(held=made.store.held, error=error))
    for _ in range(2):
        assert (await lab.do(Operation.Get, uid)).value(Tag.KeyMaterial) is not None
    assert (await lab.do(Operation.Activate, uid)).status is ResultStatus.OperationFailed
    assert await made.attribute(uid, Tag.Fresh) is True
    undone = await lab.batch((Operation.Get, (make(Tag.UniqueIdentifier, uid),)), on_error=Undo)
    assert undone[0].status is ResultStatus.Success


async def test_a_note_does_not_weaken_a_change_of_the_same_batch() -> None:
    made = Lab()
    uid = await made.key(active=False)
    lab = Lab(store=BusyStore(held=made.store.held, error=Unavailable("writer", "away")))
    name = (make(Tag.UniqueIdentifier, uid),)
    for order in ((Operation.Get, Operation.Activate), (Operation.Activate, Operation.Get)):
        answers = await lab.batch(*((operation, name) for operation in order), on_error=Undo)
        assert answers[-1].reason is ResultReason.GeneralFailure
        assert answers[0].status is ResultStatus.OperationUndone


async def test_a_lost_note_does_not_undo_what_was_stored() -> None:
    class Racing(MemoryStore):
        commits = 0

        async def commit(self, scope: Scope, changes: Sequence[Change]) -> None:
            self.commits += 1
            if self.commits == 2:  # the note, after the change
                raise Conflict("busy")
            await super().commit(scope, changes)

    made = Lab()
    uid, other = await made.key(active=False), await made.key(active=False)
    store = Racing(held=made.store.held)
    answers = await Lab(store=store).batch(
        (Operation.Get, (make(Tag.UniqueIdentifier, uid),)),
        (Operation.Activate, (make(Tag.UniqueIdentifier, other),)),
        on_error=Undo,
    )
    assert [each.status for each in answers] == [ResultStatus.Success] * 2
    assert store.commits == 2
    assert await made.attribute(other, Tag.State) == State.Active
    assert await made.attribute(uid, Tag.Fresh) is True


async def test_a_note_alone_that_lost_a_race_is_made_again() -> None:
    made = Lab()
    uid = await made.key(active=False)
    lab = Lab(store=BusyStore(held=made.store.held, times=1))
    assert (await lab.do(Operation.Get, uid)).status is ResultStatus.Success
    assert await made.attribute(uid, Tag.Fresh) is False
