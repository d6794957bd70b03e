"""What a connection of ``http1`` is made of: requests, the places of their answers, and a last refusal."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from keymesh.edge.http_answers import Answer


class Request:
    """One whole request.  ``path`` with its query, as it came; ``peer`` is what the listener says of the connection."""

    __slots__ = ("body", "content_type", "correlation_id", "method", "path", "peer")

    def __init__(
        self, method: bytes, path: bytes, content_type: bytes, correlation_id: bytes, body: bytes, peer: Any
    ) -> None:
        self.method = method
        self.path = path
        self.content_type = content_type
        self.correlation_id = correlation_id
        self.body = body
        self.peer = peer


Later = Coroutine[Any, Any, Answer]
Handle = Callable[[Request], Answer | Later]
Refuse = Callable[[int, str, str], Answer]
"""(status, code, message) -> an answer in the API's one error form."""


class Slot:
    """The place of an answer that is on its way."""

    __slots__ = ("answer", "is_last")

    def __init__(self, answer: Answer | None, *, is_last: bool) -> None:
        self.answer = answer
        self.is_last = is_last


def head_of(answer: Answer) -> Answer:
    return answer[: answer.index(b"\r\n\r\n") + 4]


class BadRequest(Exception):
    """A connection's last request: the answer's status, code and text."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
