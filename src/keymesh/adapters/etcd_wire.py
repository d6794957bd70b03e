"""etcd's v3 JSON gateway: the few messages that a log needs, typed, and parsed once.

Names and meanings are those of etcd 3.4's ``rpc.proto``; bytes travel as base64, 64-bit numbers as strings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

TXN: Final = "/v3/kv/txn"
STATUS: Final = "/v3/maintenance/status"

TXN_MAX_OPS: Final = 128
"""etcd's default ``--max-txn-ops``, which holds for compares and operations each."""


class Header(Struct, frozen=True):
    cluster_id: int = 0
    revision: int = 0


class KeyValue(Struct, frozen=True):
    key: bytes
    value: bytes = b""
    create_revision: int = 0
    mod_revision: int = 0
    version: int = 0
    lease: int = 0


class RangeAnswer(Struct, frozen=True):
    kvs: tuple[KeyValue, ...] = ()
    more: bool = False


class PutAnswer(Struct, frozen=True):
    prev_kv: KeyValue | None = None


class OpAnswer(Struct, frozen=True):
    response_range: RangeAnswer | None = None
    response_put: PutAnswer | None = None


class TxnAnswer(Struct, frozen=True):
    header: Header
    succeeded: bool = False
    responses: tuple[OpAnswer, ...] = ()

    def ranges(self) -> list[RangeAnswer]:
        """What the ranges among its operations found, in their order."""
        return [op.response_range for op in self.responses if op.response_range is not None]


class Status(Struct, frozen=True):
    header: Header
    leader: int = 0


class Failure(Struct, frozen=True):
    """A gRPC status (``google.rpc.Code``)."""

    code: int = 2
    message: str = ""


Op = dict[str, Any]


def get(key: bytes) -> Op:
    """An operation that reads one key."""
    return {"request_range": {"key": key}}


def span(first: bytes, end: bytes, **how: Any) -> Op:
    """An operation that reads the keys from ``first`` on and before ``end``."""
    return {"request_range": {"key": first, "range_end": end, **how}}


def put(key: bytes, value: bytes, *, prev_kv: bool = False) -> Op:
    """An operation that writes one key."""
    return {"request_put": {"key": key, "value": value, "prev_kv": prev_kv}}


def absent(key: bytes, end: bytes | None = None) -> Op:
    """A compare: there is no such key, or none from ``key`` on and before ``end``."""
    scope = {"key": key} if end is None else {"key": key, "range_end": end}
    return {**scope, "target": "VERSION", "result": "EQUAL", "version": "0"}


def holds(key: bytes, value: bytes) -> Op:
    """A compare: the key has that value."""
    return {"key": key, "target": "VALUE", "result": "EQUAL", "value": value}


def txn(ops: list[Op], *, compare: Sequence[Op] = ()) -> bytes:
    """The body of one transaction: ``ops`` in order, if every ``compare`` holds."""
    assert max(len(ops), len(compare)) <= TXN_MAX_OPS
    return msgspec.json.encode({"compare": compare, "success": ops})


def end_of(prefix: bytes) -> bytes:
    """The first key after all that begin with ``prefix``, whose last byte is not 255."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
