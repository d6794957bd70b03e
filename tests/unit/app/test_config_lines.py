"""The lines of values in TOML texts: one written by hand, and made-up ones beside ``tomllib``'s reading."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keymesh.app.config_lines import join, lines_of

BY_HAND = '''\
role = "core"   # not a = b

"quoted.key" = 1
a.b.'c d' = """
x = 1
[no.header]
"""" # ends in a quote of its own
[listen]
port = 7601 # [x]
host = 'C:\\' # a backslash ends nothing
list = [ # [
  1,
  "]", [2,
    3],
  { x = 1, y = [
    4 ] },
]

[peers]
us-west = ["https://a:1", "https://b:2"]
[[database.endpoints]]
url = "a#b"
[database.endpoints.more]
x = 1
[[database.endpoints]]
  url = \'\'\'
\'\'two quotes\'\'\'\'\'
  when = 1979-05-27 07:32:00
[[database.endpoints.inner]]
z=1
[[database.endpoints.inner]]
z=2
'''

AT = {
    "role": 1,
    '"quoted.key"': 3,
    "a": 4,
    "a.b": 4,
    'a.b."c d"': 4,
    "listen": 8,
    "listen.port": 9,
    "listen.host": 10,
    "listen.list": 11,
    "listen.list[0]": 12,
    "listen.list[1]": 13,
    "listen.list[2]": 13,
    "listen.list[2][0]": 13,
    "listen.list[2][1]": 14,
    "listen.list[3]": 15,
    "listen.list[3].x": 15,
    "listen.list[3].y": 15,
    "listen.list[3].y[0]": 16,
    "peers": 19,
    "peers.us-west": 20,
    "peers.us-west[0]": 20,
    "peers.us-west[1]": 20,
    "database": 21,
    "database.endpoints": 21,
    "database.endpoints[0]": 21,
    "database.endpoints[0].url": 22,
    "database.endpoints[0].more": 23,
    "database.endpoints[0].more.x": 24,
    "database.endpoints[1]": 25,
    "database.endpoints[1].url": 26,
    "database.endpoints[1].when": 28,
    "database.endpoints[1].inner": 29,
    "database.endpoints[1].inner[0]": 29,
    "database.endpoints[1].inner[0].z": 30,
    "database.endpoints[1].inner[1]": 31,
    "database.endpoints[1].inner[1].z": 32,
}


def places(value: Any, path: str = "") -> set[str]:
    """Every place in a plain value."""
    items: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    found = {path} if path else set()
    return found.union(*(places(item, join(path, key)) for key, item in items))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_text_written_by_hand(end: str) -> None:
    text = BY_HAND.replace("\n", end)
    assert lines_of(text) == AT
    assert places(tomllib.loads(text)) == set(AT)


KEYS = st.one_of(
    st.text("abcdef-_09", min_size=1, max_size=4),
    st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=4),
)
TEXTS = st.text(st.sampled_from("a\"'\\#[]{}=,. \n\té"), max_size=8)


def basic(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def spelt(text: str) -> st.SearchStrategy[str]:
    """Ways to write a string in TOML."""
    ways = [basic(text)]
    if "'" not in text and "\n" not in text:
        ways.append(f"'{text}'")
    if "'''" not in text and not text.endswith("'"):
        ways.append(f"'''\n{text}'''")
    if "\\" not in text and '"""' not in text:
        ways.append(
            f'"""\n{text}"""' if text.endswith('"') and not text.endswith('""') else f'"""{basic(text)[1:-1]}"""'
        )
    return st.sampled_from(ways)


SCALARS = st.one_of(
    TEXTS.flatmap(spelt), st.sampled_from(["1", "-0x1f".lstrip("-"), "1e3", "true", "inf", "1979-05-27T07:32:00Z"])
)
GAPS = st.sampled_from(["", " ", "\n", " # ]}\n\n", "\n\t"])


@st.composite
def values(draw: st.DrawFn, depth: int = 0) -> str:
    """A value as TOML, some over several lines."""
    kind = draw(st.integers(0, 3 if depth < 3 else 1))
    if kind < 2:
        return draw(SCALARS)
    if kind == 2:
        items = [draw(GAPS) + draw(values(depth + 1)) + draw(GAPS) for _ in range(draw(st.integers(0, 3)))]
        return "[" + ",".join(items) + draw(GAPS) + "]"
    keys = draw(st.lists(KEYS, max_size=3, unique=True))
    return "{" + ", ".join(f"{basic(key)} = {draw(values(depth + 1))}" for key in keys) + "}"


@st.composite
def documents(draw: st.DrawFn) -> str:
    parts = []
    for n in range(draw(st.integers(0, 4))):
        header = draw(st.sampled_from(["", f"[t{n}]", "[[many]]", f"[x.y{n}.'z.z']", "[[x.many]]"]))
        if header == "" and n:
            header = f"[ t{n} ]"
        keys = draw(st.lists(KEYS, max_size=4, unique=True))
        pairs = [f"{draw(GAPS)}{basic(key)} = {draw(values())}" for key in keys]
        parts += [header, *pairs]
    return "\n".join(parts)


@settings(max_examples=200, deadline=None)
@given(documents())
def test_every_place_that_tomllib_reads_is_found_in_order(text: str) -> None:
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    lines = lines_of(text)
    assert set(lines) == places(value)
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("ab.=[]{}\"'#\n,1\\ "), max_size=30))
def test_whatever_tomllib_accepts_is_found(text: str) -> None:
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert set(lines_of(text)) == places(value)
