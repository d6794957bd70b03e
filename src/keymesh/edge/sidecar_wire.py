"""What the sidecar reads and writes: bodies in JSON or MessagePack, answers in the form of the question.

In JSON keys and blobs are base64, in MessagePack they are bytes.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

from keymesh.crypto.blob import L4_BLOB_BYTES
from keymesh.edge.hot_lease import CreatedKey
from keymesh.edge.http_answers import JSON, Heads
from keymesh.model import strict_json
from keymesh.model.errors import Refused
from keymesh.orbital import edge_wire as wire

MSGPACK: Final = b"application/msgpack"
KINDS: Final = {JSON: JSON, MSGPACK: MSGPACK, b"application/vnd.msgpack": MSGPACK, b"application/x-msgpack": MSGPACK}
REMEMBERED: Final = 256
REMEMBERED_BYTES: Final = 256

T = TypeVar("T", bound=Struct)


class Asked(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the bodies."""


class KeyRequest(Asked, frozen=True):
    """Body of create-key."""

    context: dict[str, str] = {}
    plaintext: bool = False


class KeysRequest(Asked, frozen=True):
    """Body of create-keys."""

    count: int
    context: dict[str, str] = {}
    plaintext: bool = False


class BlobRequest(Asked, frozen=True):
    """Body of decrypt-key in JSON."""

    blob: str
    context: dict[str, str] = {}


class BlobsRequest(Asked, frozen=True):
    """Body of decrypt-keys in JSON."""

    blobs: tuple[str, ...]
    context: dict[str, str] = {}


class PackedBlobRequest(Asked, frozen=True):
    """Body of decrypt-key in MessagePack."""

    blob: bytes
    context: dict[str, str] = {}


class PackedBlobsRequest(Asked, frozen=True):
    """Body of decrypt-keys in MessagePack."""

    blobs: tuple[bytes, ...]
    context: dict[str, str] = {}


class IdentityRequest(Asked, frozen=True):
    """``region``: another one than ours, for its Cores."""

    tenant: str
    service: str
    region: str = ""


class ChainRequest(Asked, frozen=True):
    chain: str
    region: str = ""


_pack: Final = msgspec.msgpack.Encoder().encode


def kind_of(content_type: bytes) -> bytes:
    """JSON or MSGPACK.  Raises Refused for any other."""
    kind = KINDS.get(content_type) or KINDS.get(content_type.partition(b";")[0].strip().lower())
    if kind is None:
        raise Refused("bad-content-type", "application/json or application/msgpack", field="content-type")
    return kind


def decode(kind: bytes, body: bytes, shape: type[T]) -> T:
    """Raises Refused naming the field or the limit."""
    if kind is JSON:
        return strict_json.decode(body, shape, max_bytes=wire.BATCH_BODY_MAX_BYTES)
    try:
        return msgspec.msgpack.decode(body, type=shape)
    except msgspec.ValidationError as bad:
        raise strict_json.refused(bad) from bad
    except (msgspec.MsgspecError, UnicodeDecodeError) as bad:  # msgspec lets the second out for MessagePack
        raise Refused.bad_field("body", "not well-formed MessagePack") from bad


class Memory:
    """Small create-key bodies as they were understood: applications send the same few all the time."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, bytes], KeyRequest] = {}

    def key_request(self, kind: bytes, body: bytes) -> KeyRequest:
        """Raises Refused."""
        asked = self._known.get((kind, body))
        if asked is None:
            asked = decode(kind, body, KeyRequest)
            if len(body) <= REMEMBERED_BYTES:
                if len(self._known) >= REMEMBERED:
                    self._known.clear()
                self._known[kind, body] = asked
        return asked


def one_blob(kind: bytes, body: bytes) -> tuple[bytes, dict[str, str]]:
    """(blob, context) of a decrypt-key body.  Raises Refused."""
    if kind is JSON:
        asked = decode(kind, body, BlobRequest)
        return wire.from_base64("blob", asked.blob, max_bytes=L4_BLOB_BYTES), asked.context
    packed = decode(kind, body, PackedBlobRequest)
    return packed.blob, packed.context


def many_blobs(kind: bytes, body: bytes) -> tuple[list[bytes], dict[str, str]]:
    """(blobs, context) of a decrypt-keys body.  Raises Refused."""
    if kind is JSON:
        asked = decode(kind, body, BlobsRequest)
        blobs = [wire.from_base64(f"blobs[{n}]", b, max_bytes=L4_BLOB_BYTES) for n, b in enumerate(asked.blobs)]
        return blobs, asked.context
    packed = decode(kind, body, PackedBlobsRequest)
    return list(packed.blobs), packed.context


class Writer:
    """Answers of 200, in either form."""

    def __init__(self, heads: Heads) -> None:
        self._heads = heads

    def created(self, kind: bytes, made: CreatedKey) -> bytes:
        if kind is JSON:
            shown = f'{{"blob":"{wire.to_base64(made.blob)}"'
            if made.plaintext is not None:
                shown += f',"plaintext":"{wire.to_base64(made.plaintext)}"'
            body = f"{shown}}}".encode("ascii")
            return self._heads.ok(JSON, len(body)) + body
        return self.value(kind, _created(made))

    def all_created(self, kind: bytes, made: list[CreatedKey]) -> bytes:
        if kind is JSON:
            return self.value(kind, {"keys": [_created_json(key) for key in made]})
        return self.value(kind, {"keys": [_created(key) for key in made]})

    def opened(self, kind: bytes, key: bytes) -> bytes:
        if kind is JSON:
            body = f'{{"plaintext":"{wire.to_base64(key)}"}}'.encode("ascii")
            return self._heads.ok(JSON, len(body)) + body
        return self.value(kind, {"plaintext": key})

    def all_opened(self, kind: bytes, keys: list[bytes]) -> bytes:
        plain: list[Any] = [wire.to_base64(key) for key in keys] if kind is JSON else list(keys)
        return self.value(kind, {"plaintexts": plain})

    def value(self, kind: bytes, value: object, *, status: int = 200, more: bytes = b"") -> bytes:
        """Any answer."""
        return self.raw(kind, strict_json.dumps(value) if kind is JSON else _pack(value), status=status, more=more)

    def raw(self, kind: bytes, body: bytes, *, status: int = 200, more: bytes = b"") -> bytes:
        if status == 200 and not more:
            return self._heads.ok(kind, len(body)) + body
        return self._heads.head(status, kind, len(body), more) + body


def _created(made: CreatedKey) -> dict[str, bytes]:
    shown = {"blob": made.blob}
    if made.plaintext is not None:
        shown["plaintext"] = made.plaintext
    return shown


def _created_json(made: CreatedKey) -> dict[str, str]:
    return {name: wire.to_base64(value) for name, value in _created(made).items()}
