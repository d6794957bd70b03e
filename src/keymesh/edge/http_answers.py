"""Answers of the sidecar's HTTP/1.1 as bytes."""

from __future__ import annotations

from email.utils import formatdate
from typing import Final

JSON: Final = b"application/json"
PHRASES: Final = {
    200: b"OK",
    204: b"No Content",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    413: b"Content Too Large",
    415: b"Unsupported Media Type",
    422: b"Unprocessable Content",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    503: b"Service Unavailable",
}

Answer = bytes


class Heads:
    """Answers' heads, made once a second for each kind and length."""

    __slots__ = ("_date", "_made")

    def __init__(self) -> None:
        self._made: dict[tuple[bytes, int], bytes] = {}
        self.tick()

    def tick(self) -> None:
        """The date changed."""
        self._date = formatdate(usegmt=True).encode("ascii")
        self._made.clear()

    def ok(self, kind: bytes, length: int) -> bytes:
        """The head of a 200 whose body has ``length`` bytes."""
        made = self._made.get((kind, length))
        if made is None:
            made = self._made[kind, length] = self.head(200, kind, length)
        return made

    def head(self, status: int, kind: bytes, length: int, more: bytes = b"") -> bytes:
        """``more``: header lines, each with its end."""
        return (
            b"HTTP/1.1 %d %b\r\nDate: %b\r\nContent-Type: %b\r\nCache-Control: no-store\r\nContent-Length: %d\r\n%b\r\n"
            % (status, PHRASES[status], self._date, kind, length, more)
        )


def closing(answer: Answer) -> Answer:
    """The same, saying that it is the connection's last."""
    return answer.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
