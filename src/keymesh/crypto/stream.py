"""The ``.sealed`` file: a file of any size under one data key, opened again in constant memory.

Decides the format and nothing else: minting and opening the data key (L4) is the Edge's part::

    prefix   "KMSEALED" 8 || version 0x01 || u32be(length of header)
    header   lp(tenant) || lp(service) || context || L4 blob 90 || u32be(chunk bytes) || salt 16
    tag      32
    chunks   ciphertext || tag 16, each of exactly ``chunk bytes`` of plaintext, the last one of 1 to ``chunk bytes``

1. ``context`` is that of ``aad``: u32be(n) || n x (lp(k) || lp(v)), sorted; it opens the L4 blob.
2. ``file key 32 || tag 32 = HKDF-SHA256(L4, salt empty, info "keymesh/sealed/1" || SHA-256(prefix || header))``.
   The random salt is part of the header, so each file has a key of its own even under one L4, and no byte of the
   header can change.  The tag commits to the key: a wrong one is noticed before the first chunk.
3. Chunk i is AES-256-GCM under the file key, nonce ``i as 11 bytes, big-endian || 1 if it is the last, else 0``, no
   associated data.  So chunks cannot be cut off, added, repeated or re-ordered.
4. An empty file is one last chunk of no bytes; otherwise the last chunk is not empty.

``Decryptor`` gives out whole verified chunks before it has seen the end: who writes them somewhere must discard that
when a later call raises.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keymesh.crypto.aad import encode_pairs, lp
from keymesh.crypto.blob import L4_BLOB_BYTES, L4_BYTES, check_l4_blob
from keymesh.crypto.xaes import TAG_BYTES, Octets
from keymesh.model.errors import Integrity, Refused
from keymesh.model.ids import ServiceName, TenantId, check_service, check_tenant
from keymesh.model.limits import CONTEXT_MAX_BYTES, CONTEXT_MAX_PAIRS

MAGIC: Final = b"KMSEALED"
STREAM_VERSION: Final = 1
SALT_BYTES: Final = 16
CHUNK_MIN_BYTES: Final = 64 * 1024
CHUNK_MAX_BYTES: Final = 16 * 1024 * 1024
CHUNK_DEFAULT_BYTES: Final = 1024 * 1024
CHUNKS_MAX: Final = 2**32
HEADER_MAX_BYTES: Final = 10 * 1024

_PREFIX_BYTES: Final = len(MAGIC) + 1 + 4
_HEADER_TAG_BYTES: Final = 32
_INFO: Final = b"keymesh/sealed/1"


class Reader(Protocol):
    def read(self, n_bytes: int, /) -> bytes: ...


class Writer(Protocol):
    def write(self, data: bytes, /) -> object: ...


Progress = Callable[[int], object]
"""Called after each step with the plaintext bytes done so far."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a sealed file says about itself in the clear; ``context`` is sorted by key.

    ``salt`` is 16 fresh random bytes: two files that share it and the L4 would share their chunks' nonces.
    """

    tenant: TenantId
    service: ServiceName
    context: tuple[tuple[str, str], ...]
    l4_blob: bytes
    salt: bytes
    chunk_bytes: int = CHUNK_DEFAULT_BYTES

    def encode(self) -> bytes:
        """Prefix and header.  Raises Refused naming the field that is out of its limits."""
        check_tenant(self.tenant)
        check_service(self.service)
        check_l4_blob(self.l4_blob)
        _check_chunk_bytes(self.chunk_bytes)
        if len(self.salt) != SALT_BYTES:
            raise Refused.bad_field("salt", f"exactly {SALT_BYTES} bytes")
        body = b"".join(
            (
                lp(self.tenant.encode()),
                lp(self.service.encode()),
                encode_pairs(self.context),
                self.l4_blob,
                self.chunk_bytes.to_bytes(4, "big"),
                self.salt,
            )
        )
        return MAGIC + bytes((STREAM_VERSION,)) + lp(body)


def parse_header(raw: bytes) -> Header:
    """The header in ``raw``, prefix included and nothing behind it; only its one form is accepted.

    Raises Refused naming the field.
    """
    if header_bytes(raw[:_PREFIX_BYTES]) != len(raw) - _PREFIX_BYTES:
        raise Refused.bad_field("header", "its length is not what it says")
    fields = _Fields(raw[_PREFIX_BYTES:])
    tenant = check_tenant(fields.text("tenant", 63))
    service = check_service(fields.text("service", 63))
    n_pairs = fields.number("context")
    if n_pairs > CONTEXT_MAX_PAIRS:
        raise Refused.bad_field("header.context", f"at most {CONTEXT_MAX_PAIRS} pairs, got {n_pairs}")
    context = tuple(
        (fields.text("context", CONTEXT_MAX_BYTES), fields.text("context", CONTEXT_MAX_BYTES)) for _ in range(n_pairs)
    )
    header = Header(
        tenant=tenant,
        service=service,
        context=context,
        l4_blob=fields.take("l4_blob", L4_BLOB_BYTES),
        chunk_bytes=fields.number("chunk_bytes"),
        salt=fields.take("salt", SALT_BYTES),
    )
    if header.encode() != raw:
        raise Refused.bad_field("header", "not in its one form (order of the context, or bytes left over)")
    return header


def header_bytes(prefix: bytes) -> int:
    """How many bytes follow ``prefix`` (the file's first 13) as header.  Raises Refused where it is no sealed file."""
    if len(prefix) != _PREFIX_BYTES or prefix[: len(MAGIC)] != MAGIC:
        raise Refused.bad_field("file", "not a sealed file")
    if prefix[len(MAGIC)] != STREAM_VERSION:
        raise Refused.bad_field("file.version", f"only {STREAM_VERSION} is known, got {prefix[len(MAGIC)]}")
    length = int.from_bytes(prefix[-4:], "big")
    if not 0 < length <= HEADER_MAX_BYTES:
        raise Refused.bad_field("header", f"1 to {HEADER_MAX_BYTES} bytes, got {length}")
    return length


class Encryptor:
    """Seals a stream piece by piece.  ``l4`` is the data key that ``header.l4_blob`` wraps."""

    def __init__(self, l4: Octets, header: Header) -> None:
        prefix = header.encode()
        self._aes, tag = _file_key(l4, prefix)
        self._chunk_bytes = header.chunk_bytes
        self._counter = 0
        self._buffer = bytearray()
        self._out = [prefix, tag]
        self._done = False

    def update(self, data: Octets) -> bytes:
        """What can be written so far; the file's head comes with the first call."""
        if self._done:
            raise ValueError("already finalized")
        self._buffer += data
        start = 0
        with memoryview(self._buffer) as view:
            while len(view) - start > self._chunk_bytes:  # one chunk stays behind, it may be the last
                self._seal(view[start : start + self._chunk_bytes], last=False)
                start += self._chunk_bytes
        del self._buffer[:start]
        return self._drain()

    def finalize(self) -> bytes:
        """The rest, with the last chunk."""
        if self._done:
            raise ValueError("already finalized")
        self._done = True
        self._seal(self._buffer, last=True)
        self._buffer[:] = bytes(len(self._buffer))
        return self._drain()

    def _seal(self, chunk: Octets, *, last: bool) -> None:
        self._out.append(self._aes.encrypt(_chunk_nonce(self._counter, last=last), chunk, None))
        self._counter += 1

    def _drain(self) -> bytes:
        out, self._out = b"".join(self._out), []
        return out


class Decryptor:
    """Opens what follows the header, piece by piece.  ``l4`` is what ``header.l4_blob`` opened to."""

    def __init__(self, l4: Octets, header: Header) -> None:
        self._aes, self._tag = _file_key(l4, header.encode())
        self._sealed_bytes = header.chunk_bytes + TAG_BYTES
        self._counter = 0
        self._buffer = bytearray()
        self._keyed = False
        self._done = False

    def update(self, data: Octets) -> bytes:
        """Plaintext of the chunks that are whole and verified.  Raises Integrity (opaque)."""
        if self._done:
            raise ValueError("already finalized")
        self._buffer += data
        start = self._check_tag()
        out: list[bytes] = []
        with memoryview(self._buffer) as view:
            while self._keyed and len(view) - start > self._sealed_bytes:
                out.append(self._open(view[start : start + self._sealed_bytes], last=False))
                start += self._sealed_bytes
        del self._buffer[:start]
        return b"".join(out)

    def finalize(self) -> bytes:
        """The last chunk's plaintext.  Raises Integrity (opaque) where the file was cut short or added to."""
        if self._done:
            raise ValueError("already finalized")
        self._done = True
        if not self._keyed:
            raise Integrity.opaque()
        plaintext = self._open(self._buffer, last=True)
        if not plaintext and self._counter > 1:
            raise Integrity.opaque()
        return plaintext

    def _check_tag(self) -> int:
        """How many bytes of the buffer the tag took, once it is there."""
        if self._keyed or len(self._buffer) < _HEADER_TAG_BYTES:
            return 0
        if not hmac.compare_digest(self._buffer[:_HEADER_TAG_BYTES], self._tag):
            raise Integrity.opaque()
        self._keyed = True
        return _HEADER_TAG_BYTES

    def _open(self, chunk: Octets, *, last: bool) -> bytes:
        try:
            plaintext = self._aes.decrypt(_chunk_nonce(self._counter, last=last), chunk, None)
        except InvalidTag:
            raise Integrity.opaque() from None
        self._counter += 1
        return plaintext


def read_header(reader: Reader) -> Header:
    """The header at the start of ``reader``, which is left at the first byte behind it.

    Raises Refused naming the field; reads at most 10 KiB.
    """
    prefix = _read_exactly(reader, _PREFIX_BYTES)
    return parse_header(prefix + _read_exactly(reader, header_bytes(prefix)))


def seal_stream(reader: Reader, writer: Writer, *, l4: Octets, header: Header, progress: Progress | None = None) -> int:
    """Seal all of ``reader`` to ``writer``; returns the plaintext's bytes.  Holds a few chunks in memory."""
    encryptor = Encryptor(l4, header)
    done = 0
    while data := reader.read(header.chunk_bytes):
        writer.write(encryptor.update(data))
        done += len(data)
        if progress is not None:
            progress(done)
    writer.write(encryptor.finalize())
    return done


def open_stream(reader: Reader, writer: Writer, *, l4: Octets, header: Header, progress: Progress | None = None) -> int:
    """Open what follows the header in ``reader``; returns the plaintext's bytes.

    Write aside and rename only when this returns: chunks are written before the end was seen.  Raises Integrity.
    """
    decryptor = Decryptor(l4, header)
    done = 0
    while data := reader.read(header.chunk_bytes):
        plaintext = decryptor.update(data)
        if plaintext:
            writer.write(plaintext)
        done += len(plaintext)
        if progress is not None:
            progress(done)
    plaintext = decryptor.finalize()
    writer.write(plaintext)
    return done + len(plaintext)


def _check_chunk_bytes(chunk_bytes: int) -> None:
    if not CHUNK_MIN_BYTES <= chunk_bytes <= CHUNK_MAX_BYTES:
        raise Refused.bad_field("chunk_bytes", f"{CHUNK_MIN_BYTES} to {CHUNK_MAX_BYTES}, got {chunk_bytes}")


def _file_key(l4: Octets, prefix_and_header: bytes) -> tuple[AESGCM, bytes]:
    if len(l4) != L4_BYTES:
        raise Refused.bad_field("l4", f"exactly {L4_BYTES} bytes, got {len(l4)}")
    info = _INFO + hashlib.sha256(prefix_and_header).digest()
    both = HKDF(algorithm=SHA256(), length=32 + _HEADER_TAG_BYTES, salt=None, info=info).derive(l4)
    return AESGCM(both[:32]), both[32:]


def _chunk_nonce(counter: int, *, last: bool) -> bytes:
    if counter >= CHUNKS_MAX:
        raise Refused.bad_field("file", f"at most {CHUNKS_MAX} chunks: choose larger ones")
    return counter.to_bytes(11, "big") + (b"\1" if last else b"\0")


def _read_exactly(reader: Reader, n_bytes: int) -> bytes:
    parts: list[bytes] = []
    while n_bytes > 0:
        part = reader.read(n_bytes)
        if not part:
            raise Refused.bad_field("file", "ends inside its header")
        parts.append(part)
        n_bytes -= len(part)
    return b"".join(parts)


class _Fields:
    """Takes the header apart from the left."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, field: str, n_bytes: int) -> bytes:
        end = self._at + n_bytes
        if end > len(self._data):
            raise Refused.bad_field(f"header.{field}", "cut short")
        taken, self._at = self._data[self._at : end], end
        return taken

    def number(self, field: str) -> int:
        return int.from_bytes(self.take(field, 4), "big")

    def text(self, field: str, max_bytes: int) -> str:
        length = self.number(field)
        if length > max_bytes:
            raise Refused.bad_field(f"header.{field}", f"at most {max_bytes} bytes, got {length}")
        try:
            return self.take(field, length).decode()
        except UnicodeDecodeError:
            raise Refused.bad_field(f"header.{field}", "UTF-8") from None
