"""Sealed files: any cut of the input gives the same bytes, any change of the output gives no plaintext to keep."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from functools import lru_cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keymesh.crypto import blob, stream
from keymesh.crypto.kid import kid_of
from keymesh.crypto.xaes import XaesKey
from keymesh.model.errors import Integrity, KeymeshError, Refused
from keymesh.model.ids import ServiceName, TenantId

L3, L4 = bytes(range(32)), bytes(range(100, 132))
CHUNK = stream.CHUNK_MIN_BYTES
CONTEXT = (("file", "report.pdf"), ("kind", "draft"))
HEADER = stream.Header(
    tenant=TenantId("acme"),
    service=ServiceName("orders"),
    context=CONTEXT,
    l4_blob=blob.seal_l4(XaesKey(L3), kid_of(L3), "acme", dict(CONTEXT), L4, bytes(24)),
    salt=b"s" * 16,
    chunk_bytes=CHUNK,
)


@lru_cache
def sealed(n_bytes: int) -> bytes:
    out = io.BytesIO()
    stream.seal_stream(io.BytesIO(plain(n_bytes)), out, l4=L4, header=HEADER)
    return out.getvalue()


def plain(n_bytes: int) -> bytes:
    return (b"0123456789abcdef" * (n_bytes // 16 + 1))[:n_bytes]


def opened(data: bytes, l4: bytes = L4) -> bytes:
    reader, out = io.BytesIO(data), io.BytesIO()
    header = stream.read_header(reader)
    stream.open_stream(reader, out, l4=l4, header=header)
    return out.getvalue()


@pytest.mark.parametrize(
    "n_bytes", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 1, 5 * CHUNK + 3]
)
def test_sizes_around_the_chunk(n_bytes: int) -> None:
    data = sealed(n_bytes)
    n_chunks = max(1, -(-n_bytes // CHUNK))
    assert len(data) == len(HEADER.encode()) + 32 + n_bytes + 16 * n_chunks
    assert opened(data) == plain(n_bytes)


@given(st.lists(st.integers(0, 2 * CHUNK), max_size=5), st.integers(1, 3 * CHUNK))
def test_how_the_pieces_are_cut_does_not_matter(cuts: list[int], step: int) -> None:
    n_bytes = sum(cuts)
    encryptor, text, out, at = stream.Encryptor(L4, HEADER), plain(n_bytes), b"", 0
    for cut in cuts:
        out += encryptor.update(text[at : at + cut])
        at += cut
    out += encryptor.finalize()
    assert out == sealed(n_bytes)
    body = out[len(HEADER.encode()) :]
    decryptor = stream.Decryptor(L4, HEADER)
    back = b"".join(decryptor.update(body[i : i + step]) for i in range(0, len(body), step)) + decryptor.finalize()
    assert back == text


def test_byte_by_byte_through_the_head() -> None:
    data = sealed(3)
    decryptor = stream.Decryptor(L4, HEADER)
    body = data[len(HEADER.encode()) :]
    assert b"".join(decryptor.update(body[i : i + 1]) for i in range(len(body))) == b""
    assert decryptor.finalize() == b"012"


def test_every_bit_flip_of_a_small_file_is_noticed() -> None:
    data = sealed(5)
    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(KeymeshError):
            opened(bytes(changed))


def test_every_truncation_of_a_small_file_is_noticed() -> None:
    data = sealed(5)
    for length in range(len(data)):
        with pytest.raises(KeymeshError):
            opened(data[:length])


@given(st.integers(0, 3 * CHUNK + 200))
def test_no_prefix_of_a_long_file_opens(length: int) -> None:
    data = sealed(3 * CHUNK)
    if length < len(data):
        with pytest.raises(KeymeshError):
            opened(data[:length])


def test_cut_at_each_chunk_boundary() -> None:
    data, head = sealed(4 * CHUNK), len(HEADER.encode()) + 32
    for i in range(4):
        with pytest.raises(Integrity):
            opened(data[: head + i * (CHUNK + 16)])


def test_another_data_key_or_salt() -> None:
    with pytest.raises(Integrity):
        opened(sealed(5), l4=bytes(32))
    salted = dataclasses.replace(HEADER, salt=b"t" * 16)
    out = io.BytesIO()
    stream.seal_stream(io.BytesIO(plain(5)), out, l4=L4, header=salted)
    assert out.getvalue()[-21:] != sealed(5)[-21:]


def test_nothing_is_given_out_before_the_key_is_known_to_be_right() -> None:
    decryptor = stream.Decryptor(bytes(32), HEADER)
    with pytest.raises(Integrity):
        decryptor.update(sealed(3 * CHUNK)[len(HEADER.encode()) :])


@pytest.mark.parametrize(
    "over",
    [
        {"tenant": "mesh"},
        {"tenant": "ACME"},
        {"tenant": ""},
        {"service": "../x"},
        {"service": "s" * 64},
        {"context": (("k", "1"), ("k", "2"))},
        {"context": (("k", "v" * 8200),)},
        {"context": tuple((str(i), "") for i in range(65))},
        {"l4_blob": bytes(90)},
        {"l4_blob": b""},
        {"salt": bytes(15)},
        {"chunk_bytes": CHUNK - 1},
        {"chunk_bytes": stream.CHUNK_MAX_BYTES + 1},
        {"chunk_bytes": 0},
    ],
)
def test_header_limits(over: dict[str, object]) -> None:
    with pytest.raises(Refused):
        dataclasses.replace(HEADER, **over).encode()  # type: ignore[arg-type]


def with_body(body: bytes) -> bytes:
    return stream.MAGIC + b"\1" + len(body).to_bytes(4, "big") + body


def test_a_header_has_one_form() -> None:
    body = HEADER.encode()[13:]
    assert stream.parse_header(with_body(body)) == HEADER
    start = body.index(b"\0\0\0\4file") - 4
    file_pair = b"\0\0\0\4file\0\0\0\nreport.pdf"
    kind_pair = b"\0\0\0\4kind\0\0\0\5draft"
    assert body[start + 4 :].startswith(file_pair + kind_pair)
    tail = body[start + 4 + len(file_pair + kind_pair) :]
    unsorted = body[: start + 4] + kind_pair + file_pair + tail
    repeated = body[: start + 4] + file_pair + file_pair + tail
    for bad in (unsorted, repeated, body + b"\0", body[:-1], b"", body[:start] + b"\xff" * 4 + body[start + 4 :]):
        with pytest.raises(Refused):
            stream.parse_header(with_body(bad))
    with pytest.raises(Refused):
        stream.parse_header(with_body(body) + b"\0")


@given(st.binary(max_size=300))
def test_no_bytes_break_the_header_parser(data: bytes) -> None:
    for raw in (data, with_body(data), HEADER.encode()[: len(data)] + data):
        with pytest.raises(Refused):
            stream.read_header(io.BytesIO(raw))


def test_the_largest_header_is_readable() -> None:
    most = dataclasses.replace(HEADER, context=tuple((f"{i:02}", "v" * (8192 // 64 - 10)) for i in range(64)))
    assert stream.parse_header(most.encode()) == most
    assert len(most.encode()) < stream.HEADER_MAX_BYTES


class Dribble(io.RawIOBase):
    """A reader that gives one byte at a time, as a pipe may."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def read(self, size: int = -1, /) -> bytes:
        return self._data.read(min(size, 1))


def test_a_reader_may_give_less_than_asked() -> None:
    reader, out = Dribble(sealed(40)), io.BytesIO()
    header = stream.read_header(reader)
    assert stream.open_stream(reader, out, l4=L4, header=header) == 40


class Source:
    """Gives ``n_bytes`` without holding them; keeps no more than it is asked for."""

    def __init__(self, n_bytes: int) -> None:
        self.left = n_bytes

    def read(self, n_bytes: int, /) -> bytes:
        n_bytes = min(n_bytes, self.left)
        self.left -= n_bytes
        return bytes(n_bytes)


class Pipe:
    """Seals on one side what is opened on the other, so that nothing piles up."""

    def __init__(self, decryptor: stream.Decryptor, skip: int) -> None:
        self.decryptor, self.skip, self.opened = decryptor, skip, 0

    def write(self, data: bytes, /) -> None:
        dropped = min(self.skip, len(data))
        self.skip -= dropped
        self.opened += len(self.decryptor.update(data[dropped:]))
        assert len(self.decryptor._buffer) <= 2 * (CHUNK + 16)


def test_memory_stays_constant_and_progress_is_told() -> None:
    n_bytes, told = 200 * CHUNK + 1, list[int]()
    pipe = Pipe(stream.Decryptor(L4, HEADER), skip=len(HEADER.encode()))
    done = stream.seal_stream(Source(n_bytes), pipe, l4=L4, header=HEADER, progress=told.append)
    assert done == n_bytes == pipe.opened + len(pipe.decryptor.finalize())
    assert told == sorted(told)
    assert told[-1] == n_bytes


def test_finished_is_finished() -> None:
    encryptor = stream.Encryptor(L4, HEADER)
    encryptor.finalize()
    decryptor = stream.Decryptor(L4, HEADER)
    with pytest.raises(Integrity):
        decryptor.finalize()
    calls: list[Callable[[], bytes]] = [encryptor.finalize, decryptor.finalize]
    calls += [lambda: encryptor.update(b""), lambda: decryptor.update(b"")]
    for call in calls:
        with pytest.raises(ValueError, match="finalized"):
            call()


def test_wrong_data_key_size() -> None:
    with pytest.raises(Refused):
        stream.Encryptor(bytes(31), HEADER)
    with pytest.raises(Refused):
        stream._chunk_nonce(2**32, last=True)
