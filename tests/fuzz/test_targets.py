"""20 000 inputs of each fuzz target; that they are varied; and that each target sees what it must see."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from keymesh.app.fuzz.aws import AwsTarget
from keymesh.app.fuzz.blob import BlobTarget
from keymesh.app.fuzz.http import HttpTarget
from keymesh.app.fuzz.run import Plan, run
from keymesh.app.fuzz.target import TARGETS, Fault, input_of, load, place_of
from keymesh.app.fuzz.transit import TransitTarget
from keymesh.app.fuzz.ttlv import TtlvTarget
from keymesh.compat.face import FaceAnswer
from keymesh.compat.vault_form import VaultAnswer
from keymesh.kmip import ttlv
from keymesh.model.errors import Refused

INPUTS = 20_000


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_nothing_breaks_a_target(name: str, tmp_path: Path) -> None:
    report = run(Plan(name, place_of(name), 1, INPUTS, 30.0, tmp_path))
    assert report.plain()["failures"] == []
    assert report.ok, report.plain()
    assert report.inputs == INPUTS


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_an_input_is_known_by_seed_and_number(name: str) -> None:
    inputs = [input_of(load(place_of(name)), 1, number) for number in range(50)]
    assert inputs == [input_of(load(place_of(name)), 1, number) for number in range(50)]
    assert inputs != [input_of(load(place_of(name)), 2, number) for number in range(50)]
    assert len(set(inputs)) > 25


def test_ttlv_inputs_are_taken_and_refused_for_many_reasons() -> None:
    target, said = TtlvTarget(), Counter[str]()
    for number in range(3_000):
        try:
            ttlv.decode(input_of(target, 1, number))
            said["taken"] += 1
        except Refused as no:
            said[no.message.split(": ", 1)[1].split(",")[0][:25]] += 1
    assert said["taken"] > 500
    assert len(said) >= 12, said


def test_a_codec_that_takes_two_encodings_of_one_item_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    target = TtlvTarget()
    data = ttlv.encode(ttlv.Item(0x420078, ttlv.ItemType.STRUCTURE, ()))
    target.run(data)
    monkeypatch.setattr("keymesh.app.fuzz.ttlv.decode", lambda raw: ttlv.decode(raw.rstrip(b"\1")))
    with pytest.raises(Fault, match="not the encoding"):
        target.run(data + b"\1")


def test_a_blob_that_nobody_sealed_and_that_opens_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    target = BlobTarget()
    monkeypatch.setattr("keymesh.app.fuzz.blob.open_l4", lambda *_: b"\7" * 32)
    with pytest.raises(Fault, match="nobody sealed"):
        target.run(bytes((1, 2)) + bytes(88))


ASKED = b"\0POST /v1/acme/files/create-key HTTP/1.1\r\nContent-Type: application/%b\r\nContent-Length: %d\r\n\r\n%b"


def test_http_that_answers_500_or_nonsense_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    target = HttpTarget()
    asked = ASKED % (b"json", 2, b"{}")
    target.run(asked)
    for answer in (b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"):
        monkeypatch.setattr(target._server, "handle", lambda _, answer=answer: answer)
        with pytest.raises(Fault):
            target.run(asked)


def test_messagepack_whose_text_is_not_utf_8_is_refused() -> None:
    """Found by fuzzing: it came out as a fault of the sidecar's own."""
    body = b"\x81\xa7context\x81\xa1\xff\xa1x"
    HttpTarget().run(ASKED % (b"msgpack", len(body), body))


def test_aws_requests_are_served_and_refused_for_many_reasons() -> None:
    target, said = AwsTarget(), Counter[str]()
    answer = target._answer
    target._answer = lambda request: _counted(said, answer(request))  # type: ignore[method-assign]
    for number in range(2_000):
        target.run(input_of(target, 1, number))
    assert said["ok"] > 100
    assert len(said) >= 12, said


def _counted(said: Counter[str], body: bytes) -> bytes:
    said[json.loads(body).get("__type", "ok")] += 1
    return body


def test_aws_a_ciphertext_that_opens_to_something_else_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    target = AwsTarget()
    monkeypatch.setattr("keymesh.compat.aws_blob.open_parcel", lambda *_: b"something else")
    with pytest.raises(Fault, match="nobody sealed"):
        for number in range(200):
            target.run(input_of(target, 1, number))


def test_aws_an_error_of_ours_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    target = AwsTarget()
    monkeypatch.setattr("keymesh.compat.aws_errors._UNAVAILABLE", {"unknown-key": "KMSInternalException"})
    with pytest.raises(Fault, match="status 500"):
        for number in range(500):
            target.run(input_of(target, 1, number))


def test_transit_requests_are_served_and_refused_for_many_reasons() -> None:
    target, said = TransitTarget(), Counter[str]()
    answer = target._answer

    def counted(data: bytes) -> FaceAnswer:
        told = answer(data)
        said[str(json.loads(told.body or b"{}").get("errors", told.status))[:40]] += 1
        return told

    target._answer = counted  # type: ignore[method-assign]
    for number in range(2_000):
        target.run(input_of(target, 1, number))
    assert said["200"] > 200
    assert len(said) >= 25, said


def test_transit_what_opens_to_something_else_or_fails_on_us_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as changed:
        target = TransitTarget()
        changed.setattr("keymesh.compat.vault_transit.open_parcel", lambda *_: b"something else")
        with pytest.raises(Fault, match="nobody sealed"):
            for number in range(500):
                target.run(input_of(target, 1, number))
    target = TransitTarget()
    monkeypatch.setattr("keymesh.compat.vault_face.refusal", lambda error: VaultAnswer(500, {"errors": ["x"]}))
    with pytest.raises(Fault, match="status 500"):
        for number in range(500):
            target.run(input_of(target, 1, number))
