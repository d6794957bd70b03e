"""Log lines: one JSON object each, no injection, no exception text, no bytes."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from keymesh.adapters.correlation import current_correlation_id
from keymesh.app import logs

SECRET = "canary-9a"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    out = io.StringIO()
    logs.setup_logging("core", stream=out)
    yield out
    root.handlers[:] = before
    root.setLevel(level)


def lines(out: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_fields_and_correlation_id(stream: io.StringIO) -> None:
    token = current_correlation_id.set("c-1")
    logging.getLogger("keymesh.x").info("applied", extra={"fields": {"n": 3, "blob": b"12345", "text": "x" * 5_000}})
    current_correlation_id.reset(token)
    logging.getLogger("keymesh.x").info("idle")
    first, second = lines(stream)
    assert (first["role"], first["level"], first["message"], first["correlation_id"]) == (
        "core",
        "info",
        "applied",
        "c-1",
    )
    assert first["fields"] == {"n": 3, "blob": "<5 bytes>", "text": "x" * 1_024 + "..."}
    assert "correlation_id" not in second


def test_line_breaks_cannot_forge_a_line(stream: io.StringIO) -> None:
    logging.getLogger("keymesh.x").info("a\r\n{}", extra={"fields": {"k\n": "v\u2028\n"}})
    assert len(lines(stream)) == 1


def test_an_exceptions_text_is_left_out(stream: io.StringIO) -> None:
    try:
        raise KeyError(SECRET)
    except KeyError:
        logging.getLogger("keymesh.x").exception("bug")
    line = lines(stream)[0]
    assert line["exception"] == "KeyError"
    assert "test_logs.py" in str(line["frames"])
    assert SECRET not in stream.getvalue()
