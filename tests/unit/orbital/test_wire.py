"""The wire codec: every message, task and record there and back, and nothing else in."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import json
import types
import typing
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keymesh.control import voter
from keymesh.control.entry import SignedEntry, encode_entry, parse_entry
from keymesh.control.messages import Message, Poll
from keymesh.control.signing import from_plain
from keymesh.control.state import NamespaceState
from keymesh.core.records import RECORD_TYPES as NODE_RECORDS
from keymesh.crypto.dsse import Envelope
from keymesh.model.errors import Integrity, KeymeshError, Refused
from keymesh.model.states import Lane
from keymesh.orbital import edge_messages, messages
from keymesh.orbital.messages import Task
from keymesh.orbital.wire import MESSAGE_TYPES, MESSAGES, Codec
from keymesh.registry.records import RECORD_TYPES as REGISTRY_RECORDS
from tests.unit.control.world import Mesh

LIMIT = 1024 * 1024
CODECS = {
    "messages": (MESSAGES, MESSAGE_TYPES),
    "node": (Codec(NODE_RECORDS), NODE_RECORDS),
    "voter": (Codec(voter.RECORD_TYPES), voter.RECORD_TYPES),
    "registry": (Codec(REGISTRY_RECORDS), REGISTRY_RECORDS),
}
ALL = [
    pytest.param(name, shape, id=f"{name}-{shape.__name__}") for name, (_, shapes) in CODECS.items() for shape in shapes
]


def furnished() -> NamespaceState:
    mesh = Mesh(real=True)
    mesh.furnished()
    mesh.restrict("suspend", "tenant:acme")
    return mesh.restrict("resume", "tenant:acme")


STATE = furnished()


def sample(kind: Any) -> Any:
    """Some value of ``kind``, with every part of it filled in."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return sample(next(a for a in args if a is not type(None)))
    if origin is tuple:
        return (sample(args[0]), sample(args[0])) if args[1:] == (...,) else tuple(sample(a) for a in args)
    if origin in (list, dict):
        return [sample(args[0])] if origin is list else {sample(args[0]): sample(args[1])}
    if isinstance(kind, typing.NewType):
        return sample(kind.__supertype__)
    if kind is SignedEntry:
        return STATE.head
    if kind is NamespaceState:
        return STATE
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return list(kind)[-1]
    if isinstance(kind, type) and (dataclasses.is_dataclass(kind) or issubclass(kind, msgspec.Struct)):
        hints = typing.get_type_hints(kind)
        names = (
            kind.__struct_fields__ if issubclass(kind, msgspec.Struct) else [f.name for f in dataclasses.fields(kind)]
        )
        return kind(**{name: sample(hints[name]) for name in names})
    plain: dict[Any, Any] = {
        str: 'ü"\\',
        int: 2**62,
        bool: True,
        bytes: b"\0\xff",
        Any: {"payload": "e30=", "deep": [1, None]},
    }
    return plain[kind]


@pytest.mark.parametrize(("name", "shape"), ALL)
def test_every_type_there_and_back(name: str, shape: type) -> None:
    codec, _ = CODECS[name]
    value = sample(shape)
    raw = codec.encode(value)
    back = codec.decode(raw, max_bytes=LIMIT)
    assert type(back) is shape
    assert back == value
    assert codec.encode(back) == raw
    assert set(json.loads(raw)) == {"t", "v"}


def objects(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a plain value its objects are."""
    if isinstance(value, dict):
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from objects(inner, (*path, key))


def defaults(shape: type) -> set[str]:
    """Fields that may be left out."""
    parameters = inspect.signature(shape).parameters.values()
    return {p.name for p in parameters if p.default is not inspect.Parameter.empty}


@pytest.mark.parametrize(("name", "shape"), ALL)
def test_a_field_too_many_or_too_few_is_refused(name: str, shape: type) -> None:
    codec, _ = CODECS[name]
    plain = json.loads(codec.encode(sample(shape)))
    plain["v"]["surprise"] = 1
    with pytest.raises(Refused) as refused:
        codec.from_plain(plain)
    assert refused.value.code == "bad-field"
    del plain["v"]["surprise"]
    codec.from_plain(plain)
    for field in list(plain["v"]):
        short = {"t": plain["t"], "v": {k: v for k, v in plain["v"].items() if k != field}}
        try:
            codec.from_plain(short)
        except Refused:
            continue
        assert field in defaults(shape)


def test_a_field_too_many_deep_inside_a_task_is_refused() -> None:
    plain = json.loads(MESSAGES.encode(sample(Task)))
    for path in objects(plain):
        if "rows" in path:
            continue
        target: Any = plain
        for step in path:
            target = target[step]
        if path[-1:] == ("rows",) or "countersignatures" in path:
            continue  # maps of names that are free
        target["surprise"] = 1
        with pytest.raises(KeymeshError):
            MESSAGES.from_plain(plain)
        del target["surprise"]
    assert MESSAGES.from_plain(plain) == sample(Task)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b'"Poll"',
        b"{}",
        b'{"t":"Poll"}',
        b'{"v":{}}',
        b'{"t":"Poll","v":{},"w":1}',
        b'{"t":1,"v":{}}',
        b'{"t":null,"v":{}}',
        b'{"t":["Poll"],"v":{}}',
        b'{"t":"poll","v":{}}',
        b'{"t":"Message","v":{}}',
        b'{"t":"SignedEntry","v":{}}',
        b'{"t":"__class__","v":{}}',
        b'{"t":"Poll","v":null}',
        b'{"t":"Poll","v":[]}',
        b'{"t":"Poll","v":{"mesh":"m","epoch":"1","set_id":1,"poll_id":1}}',
        b'{"t":"Poll","v":{"mesh":"m","epoch":1.0,"set_id":1,"poll_id":1}}',
        b'{"t":"Poll","v":{"mesh":"m","epoch":true,"set_id":1,"poll_id":1}}',
        b'{"t":"Poll","t":"Poll","v":{"mesh":"m","epoch":1,"set_id":1,"poll_id":1}}',
        b'{"t":"Poll","v":{"mesh":"m","epoch":1,"set_id":1,"poll_id":1}}x',
    ],
)
def test_what_is_no_message_is_refused(raw: bytes) -> None:
    with pytest.raises(Refused):
        MESSAGES.decode(raw, max_bytes=LIMIT)


def test_a_long_tag_is_not_echoed_whole() -> None:
    with pytest.raises(Refused) as refused:
        MESSAGES.from_plain({"t": "x" * 10_000, "v": {}})
    assert len(refused.value.message) < 200


def test_the_size_limit_is_the_readers() -> None:
    raw = MESSAGES.encode(Poll(mesh="m", epoch=1, set_id=1, poll_id=1))
    MESSAGES.decode(raw, max_bytes=len(raw))
    with pytest.raises(Refused, match="at most"):
        MESSAGES.decode(raw, max_bytes=len(raw) - 1)


def test_only_registered_types_are_written() -> None:
    for value in (object(), {"t": "Poll"}, STATE, sample(SignedEntry)):
        with pytest.raises(TypeError):
            MESSAGES.encode(value)

    class Poll(msgspec.Struct):  # the name alone does not make it one
        mesh: str = "m"

    with pytest.raises(TypeError):
        MESSAGES.encode(Poll())


def test_the_table_has_every_message_and_no_base() -> None:
    names = [shape.__name__ for shape in MESSAGE_TYPES]
    assert "Message" not in names
    assert {"Heartbeat", "AnswerMessage", "ReprobeL1", "LeaseGrant", "EdgeAckMessage", "Hello", "Task"} <= set(names)
    for module in (messages, edge_messages):
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Message) and value is not Message:
                assert value in MESSAGE_TYPES
    by_name = {name: {shape for shape in MESSAGE_TYPES if shape.__name__ == name} for name in names}
    assert all(len(shapes) == 1 for shapes in by_name.values())


# --- signed entries --------------------------------------------------------------------------------------------------


def task(state: NamespaceState) -> dict[str, Any]:
    made = Task(task_id="t", lane=Lane.ROUTINE, namespace="acme", state=state, correlation_id="c")
    plain: dict[str, Any] = json.loads(MESSAGES.encode(made))
    return plain


def test_an_entry_travels_as_its_envelope_alone_and_is_parsed_anew() -> None:
    """A sender whose idea of an entry differs from what was signed convinces nobody."""
    head = STATE.head
    liar = SignedEntry(
        entry=msgspec.structs.replace(head.entry, kind="resume", seq=99),
        hash=type(head.hash)("0" * 64),
        envelope=head.envelope,
    )
    plain = task(replace(STATE, head=liar))
    assert set(plain["v"]["state"]["head"]) == {"payload", "payloadType", "signatures"}
    back = MESSAGES.from_plain(plain)
    assert back.state.head == head
    assert back.state.head.entry == head.entry
    assert back.state.head.hash == head.hash


def test_an_envelope_that_is_no_entry_in_its_one_form_is_refused() -> None:
    head = STATE.head
    loose = json.dumps(json.loads(head.envelope.payload)).encode()
    more = json.loads(head.envelope.payload) | {"more": 1}
    for payload, payload_type, error in (
        (loose, head.envelope.payload_type, Integrity),
        (encode_entry(head.entry) + b" ", head.envelope.payload_type, Integrity),
        (head.envelope.payload, "application/json", Integrity),
        (json.dumps(more, sort_keys=True, separators=(",", ":")).encode(), head.envelope.payload_type, Refused),
        (b"{}", head.envelope.payload_type, Refused),
        (b"", head.envelope.payload_type, Refused),
    ):
        envelope = Envelope(payload=payload, payload_type=payload_type, signatures=head.envelope.signatures)
        bad = SignedEntry(entry=head.entry, hash=head.hash, envelope=envelope)
        plain = task(replace(STATE, head=bad))
        with pytest.raises(error):
            MESSAGES.from_plain(plain)


@pytest.mark.parametrize(
    "value", [None, 1, "x", [], {}, {"payload": "e30="}, {"payload": 1, "payloadType": "x", "signatures": []}]
)
def test_what_is_no_envelope_is_refused(value: Any) -> None:
    plain = task(STATE)
    plain["v"]["state"]["head"] = value
    with pytest.raises(KeymeshError):
        MESSAGES.from_plain(plain)


@given(st.data())
def test_a_changed_envelope_is_refused_or_another_entry(data: st.DataObject) -> None:
    plain = task(STATE)
    envelope = plain["v"]["state"]["head"]
    text = envelope["payload"]
    at = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from("Aa+/=9 _-é"))
    envelope["payload"] = text[:at] + letter + text[at + 1 :]
    try:
        back = MESSAGES.from_plain(plain)
    except KeymeshError:
        return
    assert back.state.head == parse_entry(from_plain(envelope))
    assert (back.state.head.hash == STATE.head.hash) is (envelope["payload"] == text)
