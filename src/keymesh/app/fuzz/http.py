"""Fuzz target ``http``: the sidecar's HTTP/1.1 and its bodies, fed as they may arrive: whole, cut, pipelined.

The connection is the sidecar's own over a transport that only records; bodies are decoded as its routes decode them.
What comes back must be whole answers of statuses that are documented, 500 not among them.
"""

from __future__ import annotations

import asyncio
import random
import re
from typing import Any, Final

import msgspec

from keymesh.app.fuzz.bytes import spoil
from keymesh.app.fuzz.target import Fault
from keymesh.crypto.blob import L4_BLOB_BYTES
from keymesh.edge.http1 import Connection, Request
from keymesh.edge.http1_server import Server
from keymesh.edge.http_answers import JSON, PHRASES, Answer, Heads
from keymesh.edge.sidecar_wire import (
    MSGPACK,
    ChainRequest,
    IdentityRequest,
    KeysRequest,
    Memory,
    decode,
    kind_of,
    many_blobs,
    one_blob,
)
from keymesh.model.errors import KeymeshError
from keymesh.orbital.edge_wire import to_base64

BODY_MAX: Final = 64 * 1024
_BLOB: Final = bytes(range(L4_BLOB_BYTES))
_ALLOWED: Final = {status for status in PHRASES if status != 500}
_LENGTH: Final = re.compile(rb"\r\nContent-Length: ([0-9]+)\r\n")
_HEADERS: Final = (
    b"Content-Length: 0",
    b"Content-Length: 5",
    b"Content-Length: 99999999999999999999",
    b"Content-Length: -1",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding : chunked",
    b"Connection: close",
    b"Connection: upgrade\r\nUpgrade: h2c",
    b"Expect: 100-continue",
    b"Content-Type: application/json; charset=utf-8",
    b"Content-Type: \xff\xfe",
    b"X-Correlation-Id: " + b"c" * 300,
    b"X-Long: " + b"a" * 17_000,
    b"\r\n".join([b"A: b"] * 80),
    b" folded",
    b"no-colon",
    b"NUL\0: x",
)


def _bodies() -> dict[bytes, list[tuple[bytes, bytes]]]:
    """path -> (content type, body) that it takes."""
    context = {"table": "users"}
    plain: dict[bytes, Any] = {
        b"/v1/acme/files/create-key": {"context": context, "plaintext": True},
        b"/v1/acme/files/create-keys": {"count": 3, "context": context},
        b"/v1/identities": {"tenant": "acme", "service": "files", "region": "us-east"},
        b"/v1/identities/acme/files": {"chain": "-----BEGIN CERTIFICATE-----"},
    }
    both = {path: [(JSON, msgspec.json.encode(b)), (MSGPACK, msgspec.msgpack.encode(b))] for path, b in plain.items()}
    for name, value in (("key", {"blob": _BLOB}), ("keys", {"blobs": [_BLOB] * 3})):
        shown = {k: [to_base64(b) for b in v] if isinstance(v, list) else to_base64(v) for k, v in value.items()}
        both[b"/v1/acme/files/decrypt-" + name.encode()] = [
            (JSON, msgspec.json.encode(shown | {"context": context})),
            (MSGPACK, msgspec.msgpack.encode(value | {"context": context})),
        ]
    return both


class HttpTarget:
    """Each input is one connection; its first byte says how it is cut on the way."""

    def __init__(self) -> None:
        self._heads = Heads()
        self._server = Server(self._handle, self._refuse, heads=self._heads, body_max=BODY_MAX)
        self._memory = Memory()
        self._bodies = _bodies()

    # --- what is fed -----------------------------------------------------------------------------------------------

    def make(self, rng: random.Random) -> bytes:
        """The cut, then one to four requests."""
        requests = b"".join(self._request(rng) for _ in range(rng.choice((1, 1, 1, 2, 4))))
        if rng.random() < 0.4:
            requests = spoil(rng, requests)
        return bytes((rng.randrange(256),)) + requests

    def _request(self, rng: random.Random) -> bytes:
        path = rng.choice(sorted(self._bodies))
        kind, body = rng.choice(self._bodies[path])
        if rng.random() < 0.4:
            body = _spoilt_body(rng, body)
        if rng.random() < 0.1:
            path = rng.choice(
                (b"*", b"//", b"/v1/%2e%2e/x", b"/" + b"p" * 20_000, b"/v1/\xff/files/create-key", path[:-1])
            )
        lines = [b"%b %b HTTP/1.1" % (rng.choice((b"POST", b"POST", b"POST", b"GET", b"PUT", b"HEAD", b"PRI")), path)]
        lines += [b"Host: e", b"Content-Type: " + kind]
        lines += rng.sample(_HEADERS, rng.choice((0, 0, 0, 1, 1, 2)))
        if rng.random() < 0.15:
            cut = rng.randint(0, len(body))
            parts = [part for part in (body[:cut], body[cut:]) if part]
            chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
            return b"\r\n".join([*lines, b"Transfer-Encoding: chunked", b"", chunks])
        told = len(body) + rng.choice((0,) * 20 + (-1, 1, 1 << 20))
        return b"\r\n".join([*lines, b"Content-Length: %d" % told, b"", body])

    # --- what it is fed to -----------------------------------------------------------------------------------------

    def run(self, data: bytes) -> None:
        if not data:
            return
        transport = _Recorded()
        connection = Connection(self._server, None)
        connection.connection_made(transport)
        try:
            _feed(connection, transport, data[1:], data[0])
            if len(self._server.connections) > 1:
                raise Fault("a connection that ended is still counted")
        finally:
            connection.connection_lost(None)
        _check_answers(bytes(transport.written), may_lack_body=b"HEAD" in data)

    def _handle(self, asked: Request) -> Answer:
        try:
            kind = kind_of(asked.content_type)
            match asked.path.rpartition(b"/")[2]:
                case b"create-key":
                    self._memory.key_request(kind, asked.body)
                case b"create-keys":
                    decode(kind, asked.body, KeysRequest)
                case b"decrypt-key":
                    one_blob(kind, asked.body)
                case b"decrypt-keys":
                    many_blobs(kind, asked.body)
                case b"identities":
                    decode(kind, asked.body, IdentityRequest)
                case _:
                    decode(kind, asked.body, ChainRequest)
        except KeymeshError as no:
            return self._refuse(400, no.code, no.message)
        return self._heads.ok(JSON, 2) + b"{}"

    def _refuse(self, status: int, code: str, message: str) -> Answer:
        body = msgspec.json.encode({"code": code, "message": message})
        return self._heads.head(status, JSON, len(body)) + body


def _spoilt_body(rng: random.Random, body: bytes) -> bytes:
    match rng.randrange(8):
        case 0:
            return b"[" * rng.choice((10, 1_000, 30_000))
        case 1:
            return b'{"context":{' + b",".join(b'"%d":"x"' % n for n in range(rng.choice((64, 65, 4_000)))) + b"}}"
        case 2:
            return b'{"count":' + rng.choice((b"1e999", b"NaN", b"-1", b"9" * 400, b"1.5", b"true")) + b"}"
        case 3:
            return b"\x91" * rng.choice((10, 30_000))
        case 4:
            return b"\xef\xbb\xbf" + body
        case 5:
            return body + body
        case _:
            return spoil(rng, body)


def _feed(connection: Connection, transport: _Recorded, raw: bytes, cut: int) -> None:
    """``cut``: 0 whole, 1 byte by byte where that is not long, else in pieces of so many bytes."""
    at = 0
    while at < len(raw) and not transport.closed and not transport.paused:
        buffer = connection.get_buffer(-1)
        size = len(buffer) if cut == 0 or (cut == 1 and len(raw) > 2_000) else min(cut, len(buffer))
        piece = raw[at : at + size]
        buffer[: len(piece)] = piece
        connection.buffer_updated(len(piece))
        at += len(piece)


def _check_answers(written: bytes, *, may_lack_body: bool) -> None:
    """Raises Fault unless ``written`` is whole answers of documented statuses, and nothing else.

    ``may_lack_body``: HEAD may have been asked, whose answer tells a length and has no body.
    """
    while written:
        head, found, rest = written.partition(b"\r\n\r\n")
        status = int(head[9:12]) if head[:9] == b"HTTP/1.1 " and head[9:12].isdigit() else 0
        if status == 100 and found:
            written = rest
            continue
        length = _LENGTH.search(head + b"\r\n")
        if not found or length is None or status not in _ALLOWED:
            raise Fault(f"not an answer that is documented: {head[:60]!r}")
        size = int(length[1])
        if may_lack_body and (rest[:9] == b"HTTP/1.1 " or not rest):
            size = 0
        if len(rest) < size:
            raise Fault("an answer that is cut off")
        written = rest[size:]


class _Recorded(asyncio.Transport):
    """A transport that records: what asyncio's own would do, without a socket."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = self.paused = False

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0  # everything is taken at once

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False
