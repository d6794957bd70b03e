"""In which line of a TOML text each value stands: ``tomllib`` tells that of no value, only of a syntax error.

Reads what ``tomllib`` has accepted, so it checks nothing and only finds its way: headers, keys, the ends of values.
A place is written as in our messages: ``peers.us-west[1]``, ``database.endpoints[0].url``.  Pure.
"""

from __future__ import annotations

import bisect
import json
import re
import tomllib
from typing import Final

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_SPACE: Final = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_BLANK: Final = re.compile(r"[ \t]*")
_LINE_STRING: Final = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*'")
_LONG_STRING: Final = re.compile(r'"""(?:[^"\\]|\\[\s\S]|"{1,2}(?!"))*"{3,5}' + r"|'''(?:[^']|'{1,2}(?!'))*'{3,5}")
_BARE_VALUE: Final = re.compile(r"[^,\]}#\n]*")


def join(path: str, key: str | int) -> str:
    """``path`` with one more step: a key, or a position in a list."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    shown = key if _BARE_KEY.fullmatch(key) else json.dumps(key)
    return f"{path}.{shown}" if path else shown


def lines_of(text: str) -> dict[str, int]:
    """Place -> line, counted from 1, of every key, table and list item of the TOML document ``text``.

    Raises RecursionError where it is nested too deeply.
    """
    scan = _Scan(text)
    scan.document()
    return scan.lines


class _Scan:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._ends = [n for n, c in enumerate(text) if c == "\n"]
        self._tables_seen: dict[str, int] = {}  # array of tables -> how many so far
        self.lines: dict[str, int] = {}

    def document(self) -> None:
        prefix = ""
        while self._skip(_SPACE) < len(self._text):
            start = self._at
            if self._text.startswith("[[", start):
                prefix = self._header(2)
            elif self._text.startswith("[", start):
                prefix = self._header(1)
            else:
                self._pair(prefix)

    def _skip(self, what: re.Pattern[str]) -> int:
        match = what.match(self._text, self._at)
        assert match is not None
        self._at = match.end()
        return self._at

    def _note(self, path: str, at: int) -> None:
        self.lines.setdefault(path, bisect.bisect_left(self._ends, at) + 1)

    def _keys(self) -> list[str]:
        """A dotted key, up to what follows it."""
        keys = []
        while True:
            self._skip(_BLANK)
            start = self._at
            if self._text[start] in "\"'":
                self._skip(_LINE_STRING)
                keys.append(next(iter(tomllib.loads(f"{self._text[start : self._at]}=0"))))
            else:
                self._skip(_BARE_KEY)
                keys.append(self._text[start : self._at])
            self._skip(_BLANK)
            if self._text[self._at] != ".":
                return keys
            self._at += 1

    def _header(self, brackets: int) -> str:
        start = self._at
        self._at += brackets
        keys = self._keys()
        self._at += brackets
        path = ""
        for n, key in enumerate(keys):
            path = join(path, key)
            self._note(path, start)
            if brackets == 2 and n == len(keys) - 1:
                self._tables_seen[path] = self._tables_seen.get(path, 0) + 1
            if path in self._tables_seen:
                path = join(path, self._tables_seen[path] - 1)
                self._note(path, start)
        return path

    def _pair(self, path: str) -> None:
        start = self._at
        for key in self._keys():
            path = join(path, key)
            self._note(path, start)
        self._at += 1  # the equals sign
        self._skip(_BLANK)
        self._value(path)

    def _value(self, path: str) -> None:
        text, start = self._text, self._at
        if text.startswith(('"""', "'''"), start):
            self._skip(_LONG_STRING)
        elif text[start] in "\"'":
            self._skip(_LINE_STRING)
        elif text[start] == "[":
            self._items(path)
        elif text[start] == "{":
            self._inline(path)
        else:
            self._skip(_BARE_VALUE)

    def _items(self, path: str) -> None:
        self._at += 1
        count = 0
        while self._text[self._skip(_SPACE)] != "]":
            item = join(path, count)
            self._note(item, self._at)
            self._value(item)
            count += 1
            if self._text[self._skip(_SPACE)] == ",":
                self._at += 1
        self._at += 1

    def _inline(self, path: str) -> None:
        self._at += 1
        while self._text[self._skip(_SPACE)] != "}":
            self._pair(path)
            if self._text[self._skip(_SPACE)] == ",":
                self._at += 1
        self._at += 1
