"""What a Core and the one process that has loaded a PKCS#11 library say to each other, over that process's pipes.

Decides the form alone: ``u32be(length) || MessagePack``.  The first message to the worker is ``Open``; each is answered
by ``Done`` or ``Failed``, in order, one at a time.
"""

from __future__ import annotations

from enum import Enum
from typing import BinaryIO, Final, TypeAlias

import msgspec

from keymesh.model.errors import Unavailable

MESSAGE_MAX_BYTES: Final = 64 * 1024
LENGTH_BYTES: Final = 4
LABEL_MAX_CHARS: Final = 100


class Why(Enum):
    """Why a token did not do what it was asked."""

    LIBRARY = "library"  # cannot be loaded or initialised
    TOKEN = "token"  # no token of that label and serial, or several  # noqa: S105
    PIN = "pin"  # refused: wrong, locked, expired, or one try from locked
    NO_KEY = "no-key"
    AMBIGUOUS = "ambiguous"  # several keys of that label
    UNFIT = "unfit"  # a key that could leave the token, or a token without a mechanism that is known here
    NOT_PERMITTED = "not-permitted"  # the key may not be used so
    SESSIONS = "sessions"  # no more sessions
    BLOB = "blob"  # the key works, but did not wrap this
    DEVICE = "device"  # everything else


class Open(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """``serial``: as the token shows it; empty for any.  ``pin``: as it is sent to the token."""

    module: str
    token: str
    serial: str
    pin: bytes

    def __repr__(self) -> str:
        return f"Open(token={self.token!r})"


class Wrap(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """``aad`` is bound where the mechanism can."""

    key: str
    plain: bytes
    aad: bytes

    def __repr__(self) -> str:
        return f"Wrap(key={self.key!r})"


class Unwrap(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    key: str
    wrapped: bytes
    aad: bytes


class MakeKey(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """A new AES-256 key that never leaves the token; ``NOT_PERMITTED`` where one of that label is there."""

    key: str


class Done(msgspec.Struct, frozen=True, tag=True):
    data: bytes = b""

    def __repr__(self) -> str:
        return "Done()"


class Failed(msgspec.Struct, frozen=True, tag=True):
    """``detail``: the name of the library's error, never what was asked."""

    why: Why
    detail: str


Request: TypeAlias = Open | Wrap | Unwrap | MakeKey
Answer: TypeAlias = Done | Failed

_ENCODER: Final = msgspec.msgpack.Encoder()
_REQUESTS: Final = msgspec.msgpack.Decoder(Request)
_ANSWERS: Final = msgspec.msgpack.Decoder(Answer)


def pack(message: Request | Answer) -> bytes:
    body = _ENCODER.encode(message)
    assert len(body) <= MESSAGE_MAX_BYTES
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def body_bytes(head: bytes) -> int:
    """The length that ``head`` announces.  Raises Unavailable where it is out of bounds."""
    length = int.from_bytes(head, "big")
    if not 0 < length <= MESSAGE_MAX_BYTES:
        raise Unavailable("pkcs11-worker", "the worker says something else")
    return length


def answer_of(body: bytes) -> Answer:
    """Raises Unavailable for what is no answer."""
    try:
        answer: Answer = _ANSWERS.decode(body)
        return answer
    except msgspec.DecodeError as bad:
        raise Unavailable("pkcs11-worker", "the worker says something else") from bad


def read_request(stream: BinaryIO) -> Request | None:
    """The next request, None at the end."""
    head = stream.read(LENGTH_BYTES)
    if len(head) < LENGTH_BYTES:
        return None
    body = stream.read(body_bytes(head))
    request: Request = _REQUESTS.decode(body)
    return request
