"""Secrets under one prefix of an OpenBao KV version 2 mount: read, compare-and-set, destroy, list.

Decides what a refusal of OpenBao means to whoever keeps something in it; not what is kept (``openbao_keystore``).
A write whose answer was lost is ``Unavailable`` and never sent twice.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import Any, Final, TypeVar
from urllib.parse import quote

import msgspec

from keymesh.adapters.openbao import CONNECTIONS, BaoRefused, OpenBao, Why, check_mount, shaped
from keymesh.model.errors import Integrity, Unavailable

PAGE: Final = 1_000
NAMES_MAX: Final = 200_000
RACES_MAX: Final = 20
VERSIONS_KEPT_MAX: Final = 32  # of a mount's max_versions (10 unless told): what a destruction reaches

_REFUSALS: Final = {Why.DENIED: "store-denied", Why.LOGIN: "store-login-refused", Why.NO_MOUNT: "store-no-mount"}

T = TypeVar("T")


class _Version(msgspec.Struct, frozen=True):
    version: int


class _Secret(msgspec.Struct, frozen=True):
    metadata: _Version
    data: Any = None


class _Names(msgspec.Struct, frozen=True):
    keys: list[str]


class Kv:
    """Below ``<mount>/data/<prefix>/``.  ``bao`` is closed with it."""

    def __init__(self, bao: OpenBao, *, mount: str, prefix: str) -> None:
        self._bao: Final = bao
        self._mount: Final = check_mount("mount", mount)
        self._prefix: Final = check_mount("prefix", prefix)
        self._calls: Final = asyncio.Semaphore(CONNECTIONS)  # who waits here has not been sent, and its time not begun

    async def close(self) -> None:
        await self._bao.close()

    async def read(self, path: str, shape: type[T]) -> tuple[int, T | None]:
        """(version, content): version 0 where nothing ever was, content None where nothing is."""
        found, data = await self._get(self._path("data", path))
        if data is None and not found:
            return 0, None
        secret = shaped(data, _Secret)
        if secret.data is None:
            return secret.metadata.version, None
        try:
            return secret.metadata.version, msgspec.convert(secret.data, shape, strict=True)
        except msgspec.ValidationError:
            raise damaged() from None

    async def write(self, path: str, row: Any, *, cas: int | None) -> bool:
        """False where the version is no longer ``cas`` (None: whatever it is)."""
        body: dict[str, Any] = {"data": msgspec.to_builtins(row)}
        if cas is not None:
            body["options"] = {"cas": cas}
        try:
            async with self._calls:
                await self._bao.call("POST", self._path("data", path), body, repeatable=False)
        except BaoRefused as refused:
            if refused.why is Why.CHANGED:
                return False
            raise _unserved(refused) from None
        return True

    async def destroy(self, path: str, version: int) -> None:
        """The bytes of ``version`` and of those before it; a later one stays, and the counter does."""
        oldest = max(1, version - VERSIONS_KEPT_MAX)
        await self._call("POST", self._path("destroy", path), {"versions": list(range(oldest, version + 1))})

    async def delete(self, path: str) -> None:
        """Every version, and the counter."""
        await self._call("DELETE", self._path("metadata", path))

    async def names(self, path: str) -> list[str]:
        """In order, page by page; a server whose pages go back or never end is not followed."""
        out: list[str] = []
        while len(out) <= NAMES_MAX:
            after = f"&after={quote(out[-1], safe='')}" if out else ""
            _, data = await self._get(f"{self._path('metadata', path)}?list=true&limit={PAGE}{after}")
            names = [] if data is None else shaped(data, _Names).keys
            if out and names and names[0] <= out[-1]:
                break
            out += names
            if len(names) < PAGE:
                return out
        raise Unavailable("storage", f"the key store's list has no end, or more than {NAMES_MAX} names")

    def _path(self, kind: str, path: str) -> str:
        return f"{self._mount}/{kind}/{self._prefix}/{path}".rstrip("/")

    async def _get(self, path: str) -> tuple[bool, Any]:
        try:
            async with self._calls:
                return await self._bao.read(path)
        except BaoRefused as refused:
            raise _unserved(refused) from None

    async def _call(self, method: str, path: str, body: Any = None) -> None:
        try:
            async with self._calls:
                await self._bao.call(method, path, body)
        except BaoRefused as refused:
            raise _unserved(refused) from None


def _unserved(refused: BaoRefused) -> Unavailable:
    code = _REFUSALS.get(refused.why, "store-refused")
    return Unavailable(code, f"the key store does not serve us: {refused.code}")


def damaged() -> Integrity:
    return Integrity("storage", "the key store holds something that nobody wrote so")


def contended() -> Unavailable:
    return Unavailable("storage", "too many writers at once; try again")


def to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def from_base64(text: str) -> bytes:
    """Raises Integrity where it is none."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise damaged() from None
