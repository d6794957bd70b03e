"""The id of the request being served; set by the HTTP server, put on every log line."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

current_correlation_id: Final[ContextVar[str]] = ContextVar("correlation_id", default="")
