"""Every state and every operation on an object, the whole matrix written out again, over the real engine."""

from __future__ import annotations

import pytest

from keymesh.kmip.enums import Operation, ResultReason, ResultStatus, RevocationReasonCode, State
from keymesh.kmip.enums_crypto import BlockCipherMode, CryptographicAlgorithm
from keymesh.kmip.items import make, struct
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import Item
from tests.unit.kmip.support import NOW_S, Lab, reason, vendors

COMPROMISE = reason(RevocationReasonCode.KeyCompromise)
OTHER = reason(RevocationReasonCode.Unspecified)
ECB = struct(Tag.CryptographicParameters, make(Tag.BlockCipherMode, BlockCipherMode.ECB))
HMAC = struct(Tag.CryptographicParameters, make(Tag.CryptographicAlgorithm, CryptographicAlgorithm.HMAC_SHA256))
DATA = make(Tag.Data, bytes(16))

ASKS: dict[str, tuple[Operation, tuple[Item, ...]]] = {
    "Activate": (Operation.Activate, ()),
    "AddAttribute": (Operation.AddAttribute, (struct(Tag.NewAttribute, vendors("a", "b")),)),
    "Check": (Operation.Check, ()),
    "Decrypt": (Operation.Decrypt, (ECB, DATA)),
    "DeleteAttribute": (
        Operation.DeleteAttribute,
        (struct(Tag.AttributeReference, make(Tag.VendorIdentification, "x"), make(Tag.AttributeName, "there")),),
    ),
    "Destroy": (Operation.Destroy, ()),
    "Encrypt": (Operation.Encrypt, (ECB, DATA)),
    "Get": (Operation.Get, ()),
    "GetAttributeList": (Operation.GetAttributeList, ()),
    "GetAttributes": (Operation.GetAttributes, ()),
    "MAC": (Operation.MAC, (HMAC, DATA)),
    "MACVerify": (Operation.MACVerify, (HMAC, DATA, make(Tag.MACData, bytes(32)))),
    "ModifyAttribute": (Operation.ModifyAttribute, (struct(Tag.NewAttribute, vendors("there", "c")),)),
    "ReKey": (Operation.ReKey, ()),
    "Revoke": (Operation.Revoke, (OTHER,)),
    "Revoke, compromise": (Operation.Revoke, (COMPROMISE,)),
    "SetAttribute": (Operation.SetAttribute, (struct(Tag.NewAttribute, vendors("there", "d")),)),
}

ALWAYS = {"GetAttributes", "GetAttributeList"}
HELD = ALWAYS | {
    "AddAttribute",
    "Check",
    "DeleteAttribute",
    "Get",
    "ModifyAttribute",
    "ReKey",
    "Revoke, compromise",
    "SetAttribute",
}
MATRIX: dict[State, set[str]] = {
    State.PreActive: HELD | {"Activate", "Destroy"},
    State.Active: HELD | {"Decrypt", "Encrypt", "MAC", "MACVerify", "Revoke"},
    State.Deactivated: HELD | {"Decrypt", "MACVerify", "Destroy"},
    State.Compromised: HELD | {"Destroy"},
    State.Destroyed: ALWAYS | {"Revoke, compromise"},
    State.DestroyedCompromised: ALWAYS,
}
BECOMES: dict[tuple[State, str], State] = {
    (State.PreActive, "Activate"): State.Active,
    (State.PreActive, "Destroy"): State.Destroyed,
    (State.Active, "Revoke"): State.Deactivated,
    (State.Deactivated, "Destroy"): State.Destroyed,
    (State.Compromised, "Destroy"): State.DestroyedCompromised,
    (State.Destroyed, "Revoke, compromise"): State.DestroyedCompromised,
}


async def in_state(lab: Lab, state: State) -> str:
    active = state in (State.Active, State.Deactivated)
    uid = await lab.key(vendors("there", "1"), active=active)
    if state is State.Deactivated:
        await lab.do(Operation.Revoke, uid, OTHER)
    if state in (State.Compromised, State.DestroyedCompromised):
        await lab.do(Operation.Revoke, uid, COMPROMISE)
    if state in (State.Destroyed, State.DestroyedCompromised):
        await lab.do(Operation.Destroy, uid)
    assert await lab.attribute(uid, Tag.State) == state
    return uid


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("ask", sorted(ASKS))
async def test_a_state_allows_what_the_matrix_says(state: State, ask: str) -> None:
    lab = Lab()
    uid = await in_state(lab, state)
    stored = dict(lab.store.held)
    before = {scope: dict(objects) for scope, objects in stored.items()}
    operation, payload = ASKS[ask]
    answer = await lab.do(operation, uid, *payload)
    after = BECOMES.get((state, ask), State.Compromised if ask == "Revoke, compromise" else state)
    if ask in MATRIX[state]:
        assert answer.status is ResultStatus.Success, answer.reason
        assert await lab.attribute(uid, Tag.State) == after
    else:
        gone = state in (State.Destroyed, State.DestroyedCompromised)
        assert answer.reason is (ResultReason.ObjectDestroyed if gone else ResultReason.WrongKeyLifecycleState)
        assert lab.store.held == before


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("ask", sorted(ASKS))
async def test_the_kill_switch_is_above_every_state(state: State, ask: str) -> None:
    lab = Lab()
    uid = await in_state(lab, state)
    before = {scope: dict(objects) for scope, objects in lab.store.held.items()}
    lab.gate.closed = True
    operation, payload = ASKS[ask]
    answer = await lab.do(operation, uid, *payload)
    assert answer.reason is ResultReason.PermissionDenied
    assert answer.value(Tag.ResponsePayload) is None
    assert lab.store.held == before


async def test_dates_move_the_state() -> None:
    lab = Lab()
    uid = await lab.key(make(Tag.ActivationDate, NOW_S + 10), make(Tag.DeactivationDate, NOW_S + 20), active=False)
    for now_s, state in (
        (NOW_S + 9, State.PreActive),
        (NOW_S + 10, State.Active),
        (NOW_S + 19, State.Active),
        (NOW_S + 20, State.Deactivated),
    ):
        lab.clock.now_s = now_s
        assert await lab.attribute(uid, Tag.State) == state


async def test_destroy_leaves_no_byte_of_the_key_in_the_store() -> None:
    lab = Lab()
    uid = await lab.key(active=False)
    material = (await lab.do(Operation.Get, uid)).value(Tag.KeyMaterial)
    assert isinstance(material, bytes)
    assert any(material in raw for objects in lab.store.held.values() for raw, _ in objects.values())
    await lab.do(Operation.Destroy, uid)
    assert not any(material in raw for objects in lab.store.held.values() for raw, _ in objects.values())


async def test_a_future_compromise_did_not_occur() -> None:
    lab = Lab()
    uid = await lab.key()
    late = make(Tag.CompromiseOccurrenceDate, NOW_S + 1)
    assert (await lab.do(Operation.Revoke, uid, COMPROMISE, late)).reason is ResultReason.InvalidField
    assert await lab.attribute(uid, Tag.State) == State.Active
