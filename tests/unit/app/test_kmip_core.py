"""KMIP on a Core's real machine: what a restriction in mid-request, a full disk, a rotation, a missing key, a changed
file do to an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.app.kmip_core import APP, KmipCore
from tests.unit.core.bench import L3_KID, REGION, SERVICE, TENANT
from tests.unit.kmip.support import Answer, Lab, brought_key, named

from keymesh.core.events import Sealed
from keymesh.kmip.enums import Operation, ResultReason
from keymesh.kmip.enums_crypto import BlockCipherMode, CryptographicAlgorithm, PaddingMethod
from keymesh.kmip.items import make, struct
from keymesh.kmip.objects import ManagedObject
from keymesh.kmip.ports import Change, Conflict
from keymesh.kmip.tags import Tag
from keymesh.ledger.receipts import Receipt

KEY = bytes(range(50, 82))


class Bed(Lab):
    """A client of a Core."""

    core: KmipCore

    async def get(self, uid: str) -> Answer:
        return await self.do(Operation.Get, uid, caller=APP)

    async def registered(self, *attributes: Any) -> str:
        return (await self.ask(Operation.Register, *brought_key(KEY, *attributes), caller=APP)).uid

    async def located(self, *attributes: Any) -> list[object]:
        answer = await self.ask(Operation.Locate, struct(Tag.Attributes, *attributes), caller=APP)
        assert answer.reason is None, answer.reason
        return [item.value for item in answer.all(Tag.UniqueIdentifier)]


@pytest.fixture
async def bed(tmp_path: Path) -> Bed:
    made = Bed()
    made.core = KmipCore(tmp_path)
    made.engine = made.core  # type: ignore[assignment]
    return made


def key_in(answer: Answer) -> object:
    return answer.value(Tag.KeyMaterial)


async def test_a_get_gives_the_key_and_is_on_record(bed: Bed, tmp_path: Path) -> None:
    uid = await bed.registered()
    assert key_in(await bed.get(uid)) == KEY
    said = [(r.action, r.subject) for r in bed.core.receipts.kept]
    assert said == [("kmip-register", SERVICE), ("kmip-get", f"{SERVICE}/{uid}")]
    files = [path.read_bytes() for path in tmp_path.iterdir()]
    assert any(uid.encode() in raw for raw in files) and not any(KEY in raw for raw in files)


async def test_a_full_disk_gives_no_key(bed: Bed) -> None:
    uid = await bed.registered()
    bed.core.receipts.fails = True
    answer = await bed.get(uid)
    assert (answer.reason, key_in(answer)) == (ResultReason.GeneralFailure, None)
    bed.core.receipts.fails = False
    assert key_in(await bed.get(uid)) == KEY


@pytest.mark.parametrize(
    "scope",
    [
        f"client:{TENANT}/app",
        f"key:{TENANT}/{SERVICE}@1",
        f"service:{TENANT}/{SERVICE}",
        f"tenant:{TENANT}",
        f"region:{REGION}",
        "mesh",
    ],
)
async def test_a_restriction_while_the_record_is_written_gives_no_key(bed: Bed, scope: str) -> None:
    uid = await bed.registered()
    assert key_in(await bed.get(uid)) == KEY  # opened, and remembered
    write = bed.core.receipts.append_all

    def restricted(receipts: Sequence[Receipt]) -> None:
        write(receipts)
        if receipts[0].action == "kmip-get":
            bed.core.restrict(scope)

    bed.core.receipts.append_all = restricted  # type: ignore[method-assign]
    answer = await bed.get(uid)
    assert answer.reason in (ResultReason.PermissionDenied, ResultReason.GeneralFailure)
    assert key_in(answer) is None
    again = await bed.get(uid)
    assert again.reason is not None and key_in(again) is None


async def test_what_was_opened_before_the_last_look_is_not_given(bed: Bed) -> None:
    """The key version is suspended after the bytes were opened and before the answer."""
    uid = await bed.registered()
    world = bed.core.door._world
    opened = world.sealer.open

    async def late(scope: Any, of: str, sealed: bytes) -> bytes:
        found = await opened(scope, of, sealed)
        bed.core.restrict(f"key:{TENANT}/{SERVICE}@1")
        return found

    world.sealer.open = late  # type: ignore[method-assign,assignment]
    answer = await bed.get(uid)
    assert (answer.reason, key_in(answer)) == (ResultReason.PermissionDenied, None)
    assert bed.core.door.records.denied["restricted-meanwhile"] == 1


async def test_every_operation_is_refused_under_a_seal_query_too(bed: Bed) -> None:
    uid = await bed.registered()
    bed.core.bench.feed(Sealed())
    for operation in (Operation.Get, Operation.Destroy, Operation.Activate, Operation.ReKey, Operation.GetAttributes):
        assert (await bed.do(operation, uid, caller=APP)).reason is ResultReason.PermissionDenied
    for operation in (Operation.Query, Operation.Locate, Operation.DiscoverVersions):
        assert (await bed.ask(operation, caller=APP)).reason is ResultReason.PermissionDenied


async def test_while_a_key_is_on_its_way_nothing_is_said_to_be_absent(bed: Bed) -> None:
    uid = await bed.registered(named("one"))
    held = bed.core.held.pop(L3_KID)
    for answer in (
        await bed.get(uid),
        await bed.ask(Operation.Locate, struct(Tag.Attributes, named("one")), caller=APP),
        await bed.ask(Operation.Locate, caller=APP),
    ):
        assert answer.reason is ResultReason.GeneralFailure
    bed.core.held[L3_KID] = held
    assert await bed.located(named("one")) == [uid]


async def test_a_rotation_keeps_objects_and_their_names(bed: Bed) -> None:
    old = await bed.registered(named("old"))
    kid = bed.core.rotate()
    new = await bed.registered(named("new"))
    stored = await bed.core.objects.get(TENANT, SERVICE, new)
    assert stored is not None and stored.sealed[4:20] == bytes.fromhex(kid)
    assert key_in(await bed.get(old)) == key_in(await bed.get(new)) == KEY
    assert await bed.located(named("old")) == [old]
    again = await bed.ask(Operation.Register, *brought_key(KEY, named("old")), caller=APP)
    assert again.reason is ResultReason.NonUniqueNameAttribute
    store, fresh = bed.core.door.store, await bed.core.door.store.get(APP.scope, new)
    assert fresh is not None
    for name in ("old", "new"):  # and where two come at once, the store itself sees to it
        with pytest.raises(Conflict) as taken:
            await store.commit(APP.scope, [Change(0, renamed(fresh, name))])
        assert taken.value.name_taken


def renamed(held: ManagedObject, name: str) -> ManagedObject:
    return replace(held, uid="another", version=0).with_(named(name))


async def test_a_revoked_version_takes_its_objects_and_no_others(bed: Bed) -> None:
    old = await bed.registered(named("old"))
    bed.core.rotate()
    new = await bed.registered(named("new"))
    bed.core.restrict(f"key:{TENANT}/{SERVICE}@1", "revoke")
    assert (await bed.get(old)).reason is ResultReason.GeneralFailure
    assert key_in(await bed.get(new)) == KEY
    assert await bed.located() == [new]
    assert await bed.located(named("new")) == [new]
    assert bed.core.door.store.unreadable == 0


async def test_exchanged_bytes_open_as_nothing_and_are_noticed(bed: Bed) -> None:
    one, two = await bed.registered(), await bed.registered()
    store = bed.core.objects.store
    first, second = store.get(TENANT, SERVICE, one), store.get(TENANT, SERVICE, two)
    assert first is not None and second is not None
    store.get = lambda *place: replace(first, sealed=second.sealed)  # type: ignore[method-assign]
    assert (await bed.get(one)).reason is ResultReason.CryptographicFailure
    assert bed.core.door.store.unreadable == 1


@pytest.mark.parametrize("how", ["dropped", "client", "same"])
async def test_uses_in_parts_end_when_keys_leave_memory_or_the_client_is_ended(bed: Bed, how: str) -> None:
    uid = await bed.registered(make(Tag.CryptographicUsageMask, 0x0000000C), make(Tag.ActivationDate, bed.clock.now_s))
    cbc = struct(
        Tag.CryptographicParameters,
        make(Tag.BlockCipherMode, BlockCipherMode.CBC),
        make(Tag.PaddingMethod, PaddingMethod.PKCS5),
        make(Tag.CryptographicAlgorithm, CryptographicAlgorithm.AES),
    )
    first = (cbc, make(Tag.Data, bytes(16)), make(Tag.IVCounterNonce, bytes(16)), make(Tag.InitIndicator, value=True))
    begun = await bed.do(Operation.Encrypt, uid, *first, caller=APP)
    value = begun.value(Tag.CorrelationValue)
    assert isinstance(value, bytes), begun.reason
    if how == "dropped":
        bed.core.door.dropped(TENANT)
    elif how == "client":
        bed.core.restrict(f"client:{TENANT}/app")
    more = (make(Tag.Data, bytes(16)), make(Tag.CorrelationValue, value))
    answer = await bed.do(Operation.Encrypt, uid, *more, caller=APP)
    expected = {"dropped": ResultReason.InvalidCorrelationValue, "client": ResultReason.PermissionDenied, "same": None}
    assert answer.reason is expected[how]
