"""The strict reader refuses what a lenient one would guess at; the writer has one form."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keymesh.model import strict_json
from keymesh.model.errors import Refused

LIMIT = 4_096


def load(raw: bytes) -> object:
    return strict_json.loads(raw, max_bytes=LIMIT)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(PLAIN)
def test_what_is_written_is_read_and_written_alike(value: object) -> None:
    raw = strict_json.dumps(value)
    back = strict_json.loads(raw, max_bytes=len(raw))
    assert back == value
    assert strict_json.dumps(back) == raw


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    try:
        value = load(raw)
    except Refused as refused:
        assert refused.field == "json"
    else:
        assert json.loads(raw) == value


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"\xef\xbb\xbf{}",  # a byte-order mark
        b"\xff\xfe{\0}\0",  # UTF-16
        b"{}{}",
        b"{} x",
        b"{}\0",
        b"{},",
        b"1 2",
        b'{"a":1,"a":1}',
        b'{"a":1,"\\u0061":2}',  # the same key, written in two ways
        b'[{"x":{"a":1,"b":2,"a":3}}]',
        b"1.0",
        b"[1e2]",
        b"-0.0",
        b"1E400",
        b"NaN",
        b"[Infinity]",
        b'{"a":-Infinity}',
        b"9223372036854775808",
        b"-9223372036854775809",
        b"1" + b"0" * 3_000,
        b"01",
        b"+1",
        b"0x1",
        b'"\\ud800"',  # half of a surrogate pair
        b'{"\\udfff":1}',
        b'["\\ude00\\ud83d"]',  # a pair in the wrong order
        b'"\xed\xa0\x80"',  # a surrogate in UTF-8
        b'"\xc0\xaf"',  # an overlong form
        b'"\xff"',
        b'"a\nb"',
        b'"\\x41"',
        b"'a'",
        b"{a:1}",
        b"[1,]",
        b'{"a":1,}',
        b"/* */ 1",
        b"tru",
        b"True",
        b"]",
        b"[",
        b'"',
    ],
)
def test_what_a_lenient_reader_would_take_is_refused(raw: bytes) -> None:
    with pytest.raises(Refused) as refused:
        load(raw)
    assert refused.value.field == "json"


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"9223372036854775807", 2**63 - 1),
        (b"-9223372036854775808", -(2**63)),
        (b" [ true , false , null ] \r\n\t", [True, False, None]),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        ('"\u20ac"'.encode(), "\u20ac"),
        (b'"\\u0000"', "\0"),
    ],
)
def test_what_is_in_the_form_is_taken(raw: bytes, value: object) -> None:
    assert load(raw) == value


def test_the_size_limit_is_exact() -> None:
    raw = b'"' + b"a" * (LIMIT - 2) + b'"'
    assert load(raw) == "a" * (LIMIT - 2)
    with pytest.raises(Refused, match=f"at most {LIMIT} bytes, got {LIMIT + 1}"):
        load(raw + b" ")


@pytest.mark.parametrize(("left", "right"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_the_depth_limit_is_exact(left: bytes, right: bytes) -> None:
    def nested(depth: int) -> bytes:
        return left * depth + b"1" + right * depth

    load(nested(strict_json.MAX_DEPTH))
    with pytest.raises(Refused, match="nested deeper"):
        load(nested(strict_json.MAX_DEPTH + 1))


def test_brackets_in_strings_are_not_depth_and_breadth_is_not_either() -> None:
    for text in ("[" * 200, '\\"' + "[{" * 90, "\\\\" + "[" * 90):
        assert load(json.dumps([text]).encode()) == [text]
    assert load(b"[" + b"[]," * 200 + b"[]]") == [[]] * 201


def test_very_deep_input_neither_recurses_nor_takes_long() -> None:
    for raw in (b"[" * 1_000_000, b'{"a":' * 200_000, b"]" * 500_000 + b"[" * 500_000, b'["' + b"\\[" * 500_000):
        with pytest.raises(Refused):
            strict_json.loads(raw, max_bytes=2_000_000)


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    count: int
    flag: bool = False


class Outer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    inner: Inner


def test_a_shape_is_taken_whole_and_nothing_is_converted() -> None:
    good = b'{"name":"a","inner":{"count":1}}'
    assert strict_json.decode(good, Outer, max_bytes=LIMIT) == Outer(name="a", inner=Inner(count=1))
    for bad, field in (
        (b'{"name":"a","inner":{"count":1},"more":1}', "json"),
        (b'{"name":"a","inner":{"count":"1"}}', "inner.count"),
        (b'{"name":"a","inner":{"count":true}}', "inner.count"),
        (b'{"name":1,"inner":{"count":1}}', "name"),
        (b'{"name":"a","inner":{"count":1,"flag":1}}', "inner.flag"),
        (b'{"name":"a","inner":{"count":1,"x":1}}', "inner"),
        (b'{"name":"a","inner":{}}', "inner"),
        (b'{"name":"a","inner":null}', "inner"),
        (b"[]", "json"),
        (b"null", "json"),
    ):
        with pytest.raises(Refused) as refused:
            strict_json.decode(bad, Outer, max_bytes=LIMIT)
        assert (refused.value.code, refused.value.field) == ("bad-field", field), bad


def test_the_writer_sorts_keys_by_code_point_and_writes_structs_as_objects() -> None:
    assert strict_json.dumps({"b": 1, "a": [None, True, -1], "\u00e9": '\u20ac"\\\n'}) == (
        '{"a":[null,true,-1],"b":1,"\u00e9":"\u20ac\\"\\\\\\n"}'.encode()
    )
    assert strict_json.dumps(Outer(name="x", inner=Inner(count=2))) == b'{"inner":{"count":2,"flag":false},"name":"x"}'


def test_the_writer_does_not_write_what_the_reader_refuses() -> None:
    for value in (float("nan"), float("inf"), "\ud800", {"\udc00": 1}):
        with pytest.raises((ValueError, TypeError)):
            strict_json.dumps(value)
