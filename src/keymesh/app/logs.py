"""JSON log lines: one object a line, with the role and the correlation id, and no values from tracebacks.

Decides the form only.  Callers log a stable word and pass what belongs to it as ``extra={"fields": {...}}``.  Of an
exception its type and places are written, never its text: that may quote what it choked on.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TextIO

from keymesh.adapters.correlation import current_correlation_id

VALUE_MAX_CHARS: Final = 1_024
_FRAMES_MAX: Final = 12


class JsonFormatter(logging.Formatter):
    """``role`` says which kind of process writes: registry, core, edge, ..."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "role": self._role,
            "logger": record.name,
            "message": _short(record.getMessage()),
        }
        correlation_id = getattr(record, "correlation_id", "") or current_correlation_id.get()
        if correlation_id:
            line["correlation_id"] = _short(correlation_id)
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            line["fields"] = {str(name): _short(value) for name, value in fields.items()}
        if record.exc_info and record.exc_info[0] is not None:
            kind, _, trace = record.exc_info
            line["exception"] = kind.__name__
            frames = traceback.extract_tb(trace)[-_FRAMES_MAX:]
            line["frames"] = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
        return json.dumps(line, ensure_ascii=True, separators=(",", ":"))


def _short(value: object) -> object:
    """Numbers as they are; all else as bounded text, and never bytes."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"<{len(value)} bytes>"
    text = str(value)
    return text if len(text) <= VALUE_MAX_CHARS else text[:VALUE_MAX_CHARS] + "..."


def setup_logging(role: str, *, level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Send every logger of this process through one handler to ``stream`` (default: standard error)."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonFormatter(role))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
