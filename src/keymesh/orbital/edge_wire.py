"""How an Edge and its Core talk over mTLS: paths, bodies, and the one binary body that carries L3 bytes (ADR-602).

* ``POST /v1/edge/messages``: one tagged message (``wire.MESSAGES``).  A ``LeaseRequest`` is answered by a grant body
  or a tagged ``LeaseRefused``, a ``UsageReport`` by a tagged ``UsageRecorded``, anything else by 204.
* grant body: ``u32be(len) || tagged LeaseGrant, len bytes || 32 raw bytes for each of its versions, in their order``.
* ``GET /v1/edge/stream``: a line for each tagged ``Revocation`` or ``LeaseReady``; an empty line is a sign of life.
* ``POST /v1/edge/create`` and ``POST /v1/edge/open``: core-held custody, ``CreateRequest`` and ``OpenRequest`` below.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from msgspec import Struct

from keymesh.model import strict_json
from keymesh.model.errors import Integrity, Refused
from keymesh.model.limits import CORE_BATCH_MAX_KEYS, HTTP_BODY_MAX_BYTES
from keymesh.orbital.edge_messages import LeaseGrant
from keymesh.orbital.wire import MESSAGES

MESSAGES_PATH: Final = "/v1/edge/messages"
READY_PATH: Final = "/readyz"
STREAM_PATH: Final = "/v1/edge/stream"
CREATE_PATH: Final = "/v1/edge/create"
OPEN_PATH: Final = "/v1/edge/open"
RENEW_PATH: Final = "/v1/certificates/renew"

JSON_TYPE: Final = "application/json"
GRANT_TYPE: Final = "application/vnd.keymesh.lease-grant.v1"
STREAM_TYPE: Final = "application/x-ndjson"

KEY_BYTES: Final = 32
MESSAGE_MAX_BYTES: Final = 256 * 1024
LINE_MAX_BYTES: Final = 64 * 1024
BATCH_BODY_MAX_BYTES: Final = 4 * HTTP_BODY_MAX_BYTES
STREAM_ALIVE_MS: Final = 5_000
"""The Core sends at least an empty line this often; an Edge gives a stream up after three of them missed."""


class Wire(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the request and answer bodies."""


class CreateRequest(Wire, frozen=True):
    count: int
    context: dict[str, str] = {}
    plaintext: bool = False


class Created(Wire, frozen=True):
    blob: str  # base64
    plaintext: str | None = None  # base64, where it was asked for


class CreateAnswer(Wire, frozen=True):
    keys: tuple[Created, ...]


class OpenRequest(Wire, frozen=True):
    blobs: tuple[str, ...]  # base64
    context: dict[str, str] = {}


class OpenAnswer(Wire, frozen=True):
    """In the order of the request's blobs; where one does not open, the whole request fails."""

    plaintexts: tuple[str, ...]  # base64


class RenewRequest(Wire, frozen=True):
    """Over mTLS with the certificate to be renewed, for the same identity and the same key."""

    csr: str  # PEM


class RenewAnswer(Wire, frozen=True):
    chain: str  # PEM: leaf, then the region's intermediate


@dataclass(frozen=True, slots=True)
class GrantBody:
    """A grant taken apart; ``keys`` are views into the received buffer, one for each version."""

    grant: LeaseGrant
    keys: tuple[memoryview, ...]

    def __repr__(self) -> str:
        return f"<GrantBody {len(self.keys)} keys>"


def encode_grant(grant: LeaseGrant, keys: Sequence[memoryview]) -> bytearray:
    """The grant body, in a buffer for the caller to wipe once it is sent.  ``keys`` in the order of the versions."""
    if len(keys) != len(grant.versions) or any(len(key) != KEY_BYTES for key in keys):
        raise Refused.bad_field("keys", f"exactly {KEY_BYTES} bytes for each version")
    head = MESSAGES.encode(grant)
    body = bytearray(4 + len(head) + KEY_BYTES * len(keys))
    body[:4] = len(head).to_bytes(4, "big")
    body[4 : 4 + len(head)] = head
    at = 4 + len(head)
    for key in keys:
        body[at : at + KEY_BYTES] = key
        at += KEY_BYTES
    return body


def decode_grant(body: bytearray) -> GrantBody:
    """The grant and its keys in place.  Raises Refused or Integrity for anything but exactly that form."""
    if len(body) < 4:
        raise Refused.bad_field("grant", "at least 4 bytes")
    length = int.from_bytes(body[:4], "big")
    if length > MESSAGE_MAX_BYTES or 4 + length > len(body):
        raise Refused.bad_field("grant", f"a message of at most {MESSAGE_MAX_BYTES} bytes, all present")
    grant = MESSAGES.decode(bytes(body[4 : 4 + length]), max_bytes=MESSAGE_MAX_BYTES)
    if not isinstance(grant, LeaseGrant):
        raise Integrity("wire", "not a lease grant", field="t")
    start = 4 + length
    if len(body) != start + KEY_BYTES * len(grant.versions):
        raise Refused.bad_field("grant", f"exactly {KEY_BYTES} bytes for each version")
    view = memoryview(body)
    keys = tuple(view[at : at + KEY_BYTES] for at in range(start, len(body), KEY_BYTES))
    return GrantBody(grant, keys)


def to_base64(raw: bytes | bytearray | memoryview) -> str:
    return binascii.b2a_base64(raw, newline=False).decode()


def from_base64(field: str, text: str, *, max_bytes: int) -> bytes:
    """Raises Refused naming ``field`` for another form than standard, padded base64, or for too much of it."""
    if len(text) > 4 * (max_bytes // 3 + 1):
        raise Refused.bad_field(field, f"at most {max_bytes} bytes")
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused.bad_field(field, "standard base64") from None
    if to_base64(raw) != text:
        raise Refused.bad_field(field, "standard base64, padded, in its one form")
    return raw


def check_count(field: str, count: int) -> int:
    if not 0 < count <= CORE_BATCH_MAX_KEYS:
        raise Refused.bad_field(field, f"1 to {CORE_BATCH_MAX_KEYS}, got {count}")
    return count


def decode_create(raw: bytes) -> CreateRequest:
    """Raises Refused naming the field."""
    request = strict_json.decode(raw, CreateRequest, max_bytes=BATCH_BODY_MAX_BYTES)
    check_count("count", request.count)
    return request


def decode_open(raw: bytes, *, blob_bytes: int) -> tuple[tuple[bytes, ...], Mapping[str, str]]:
    """(blobs, context).  Raises Refused naming the field."""
    request = strict_json.decode(raw, OpenRequest, max_bytes=BATCH_BODY_MAX_BYTES)
    check_count("blobs", len(request.blobs))
    blobs = tuple(
        from_base64(f"blobs[{index}]", text, max_bytes=blob_bytes) for index, text in enumerate(request.blobs)
    )
    return blobs, request.context
