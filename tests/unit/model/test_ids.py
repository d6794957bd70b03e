"""Which names are well formed: each limit from both sides."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keymesh.model.errors import ExitCode, Integrity, KeymeshError, Refused, Unavailable
from keymesh.model.ids import (
    NAME_MAX_CHARS,
    TOKEN_MAX_CHARS,
    check_hex,
    check_label,
    check_region,
    check_service,
    check_tenant,
    check_token,
)


@pytest.mark.parametrize("name", ["a", "0", "a-b", "a--b", "xn--a", "9to5", "a" * NAME_MAX_CHARS])
def test_labels(name: str) -> None:
    assert {check_label("x", name), check_tenant(name), check_service(name), check_region(name)} == {name}


BAD_LABELS = [
    "",
    "-",
    "-a",
    "a-",
    "A",
    "a.b",
    "a_b",
    "a/b",
    "a b",
    "a\n",
    "\na",
    "a\0",
    "ä",
    "ａ",
    "²",
    "a@1",
    "a:b",
    "..",
    "%61",
]


@pytest.mark.parametrize("name", [*BAD_LABELS, "a" * (NAME_MAX_CHARS + 1)])
def test_no_labels(name: str) -> None:
    for check in (check_tenant, check_service, check_region, lambda value: check_label("x", value)):
        with pytest.raises(Refused) as refused:
            check(name)
        assert refused.value.code == "bad-field"
        assert refused.value.field in ("tenant", "service", "region", "x")


def test_the_meshs_own_name_is_no_tenant() -> None:
    with pytest.raises(Refused, match="reserved"):
        check_tenant("mesh")
    assert check_tenant("mesh-2") == "mesh-2"
    assert check_service("mesh") == "mesh"


@given(st.text(max_size=70))
def test_a_label_is_exactly_the_rfcs(text: str) -> None:
    expected = len(text) <= 63 and re.fullmatch(r"(?!-)[a-z0-9-]{1,63}(?<!-)", text) is not None
    try:
        check_label("x", text)
    except Refused:
        assert not expected
    else:
        assert expected


@pytest.mark.parametrize("token", ["a", "A.b_c:d-1", "0", "x" * TOKEN_MAX_CHARS])
def test_tokens(token: str) -> None:
    assert check_token("command_id", token) == token


@pytest.mark.parametrize(
    "token", ["", "-a", ".a", ":a", "_a", "a b", "a/b", "a\n", "é", "a\0", "x" * (TOKEN_MAX_CHARS + 1)]
)
def test_no_tokens(token: str) -> None:
    with pytest.raises(Refused) as refused:
        check_token("command_id", token)
    assert refused.value.field == "command_id"


def test_hex_is_lower_case_and_of_one_length() -> None:
    assert check_hex("kid", "0f" * 16, hex_bytes=16) == "0f" * 16
    for bad in ("0F" * 16, "0f" * 15, "0f" * 17, "0f" * 15 + "0", "0g" * 16, " " + "0" * 31, "0" * 31 + "\n", "٠" * 32):
        with pytest.raises(Refused) as refused:
            check_hex("kid", bad, hex_bytes=16)
        assert refused.value.field == "kid"


def test_errors_say_what_the_caller_must_do() -> None:
    refused, away, broken = Refused.bad_field("x", "too big"), Unavailable("down", "later"), Integrity.opaque()
    assert (refused.code, refused.field, refused.message, str(refused)) == (
        "bad-field",
        "x",
        "x: too big",
        "x: too big",
    )
    assert [e.exit_code for e in (refused, away, broken)] == [
        ExitCode.REFUSED,
        ExitCode.UNAVAILABLE,
        ExitCode.INTEGRITY,
    ]
    assert away.retry_after_ms == 1_000
    assert (broken.code, broken.message, broken.field) == ("integrity", "could not be opened", None)
    assert {int(code) for code in ExitCode} == {0, 1, 2, 3, 4}
    assert all(isinstance(e, KeymeshError) for e in (refused, away, broken))
