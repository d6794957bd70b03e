"""A region's key store on OpenBao's KV version 2: compare-and-set by the version of each secret.

Decides the layout and how its races end; see ``core.keystore`` for the contract.  Below ``<mount>/data/<prefix>/``:

* ``keys/<kid>``: one key version.  Dropping it destroys the bytes of every version and leaves the counter, so that
  a compare-and-set prepared before can never meet a key put afterwards.
* ``index/<namespace>/<kid>``: written before the key, so it names them all, and may name some that are gone.
* ``ivks/<generation>``: one internal key.
* ``blobs/<tenant>/<digest>``: named by content, so the last writer is right.

A write whose answer was lost is ``Unavailable`` and never sent twice.  The token needs ``create``, ``read``,
``update`` on ``<mount>/data/<prefix>/*``, ``update`` on ``<mount>/destroy/<prefix>/*`` and ``list``, ``delete`` on
``<mount>/metadata/<prefix>/*``.  The mount has neither ``cas_required`` nor ``delete_version_after``, and a
``max_versions`` of 32 at most.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, Final, TypeVar
from urllib.parse import quote

import msgspec

from keymesh.adapters.loop_thread import LoopThread
from keymesh.adapters.openbao import BaoRefused, OpenBao, Why, check_mount, gather_bounded, shaped
from keymesh.core.keystore import StoredIvk, StoredKey
from keymesh.model.errors import Integrity, Refused, Unavailable
from keymesh.model.ids import Digest, Kid
from keymesh.model.states import IvkState
from keymesh.model.time import Instant

PAGE: Final = 1_000
NAMES_MAX: Final = 200_000
RACES_MAX: Final = 20
VERSIONS_KEPT_MAX: Final = 32  # of a mount's max_versions (10 unless told): what a drop destroys
_HEX: Final = re.compile(r"[0-9a-f]{1,64}")
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,9}")
_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")

T = TypeVar("T")


class _Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    namespace: str
    key: str
    version: int
    revision: int
    kid: str
    digest: str
    ivk_kid: str
    blob: str


class _Ivk(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    generation: int
    kid: str
    state: str
    created_at: int
    wraps: int
    blob: str


class _Blob(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    blob: str


class _Version(msgspec.Struct, frozen=True):
    version: int


class _Secret(msgspec.Struct, frozen=True):
    metadata: _Version
    data: Any = None


class _Names(msgspec.Struct, frozen=True):
    keys: list[str]


class OpenBaoKeyStore:
    """``core.keystore.KeyStore``.  ``bao`` is used on a loop of this object's own, and closed with it."""

    def __init__(self, bao: OpenBao, *, mount: str, prefix: str) -> None:
        self._bao: Final = bao
        self._mount: Final = check_mount("mount", mount)
        self._prefix: Final = check_mount("prefix", prefix)
        self._thread: Final = LoopThread("keymesh-keystore")

    def close(self) -> None:
        """Hang up, end the thread."""
        self._thread.wait(self._bao.close())
        self._thread.close()

    # --- keys --------------------------------------------------------------------------------------------------------

    def get_key(self, kid: str) -> StoredKey | None:
        return self._wait(self._key(kid))[1]

    def put_key(self, stored: StoredKey, *, over: StoredKey | None) -> bool:
        """Compare the content, then set against the version that was compared."""
        return self._wait(self._put_key(stored, over))

    def drop_key(self, kid: str) -> None:
        self._wait(self._destroy(f"keys/{_hex('kid', kid)}"))

    def stored_keys(self, namespace: str | None = None) -> tuple[StoredKey, ...]:
        found = self._wait(self._stored_keys(namespace))
        return tuple(sorted(found, key=lambda stored: (stored.namespace, stored.key, stored.version)))

    async def _key(self, kid: str) -> tuple[int, StoredKey | None]:
        version, found = await self._read(f"keys/{_hex('kid', kid)}", _Key)
        if found is None:
            return version, None
        if found.kid != kid:
            raise _damaged()
        return version, StoredKey(
            namespace=found.namespace,
            key=found.key,
            version=found.version,
            revision=found.revision,
            kid=Kid(found.kid),
            digest=Digest(found.digest),
            ivk_kid=found.ivk_kid,
            blob=_unb64(found.blob),
        )

    async def _put_key(self, stored: StoredKey, over: StoredKey | None) -> bool:
        version, there = await self._key(stored.kid)
        if not _same(there, over):
            return False
        if over is None or over.namespace != stored.namespace:
            await self._write(f"index/{_label('namespace', stored.namespace)}/{stored.kid}", {}, cas=None)
        row = _Key(
            namespace=stored.namespace,
            key=stored.key,
            version=stored.version,
            revision=stored.revision,
            kid=stored.kid,
            digest=stored.digest,
            ivk_kid=stored.ivk_kid,
            blob=_b64(stored.blob),
        )
        return await self._write(f"keys/{stored.kid}", row, cas=version)

    async def _stored_keys(self, namespace: str | None) -> list[StoredKey]:
        if namespace is None:
            kids = await self._names("keys")
        elif _LABEL.fullmatch(namespace):
            kids = await self._names(f"index/{namespace}")
        else:
            return []
        rows = await gather_bounded(self._key, [kid for kid in kids if _HEX.fullmatch(kid)])
        return [row for _, row in rows if row is not None and namespace in (None, row.namespace)]

    # --- internal keys -----------------------------------------------------------------------------------------------

    def ivks(self) -> tuple[StoredIvk, ...]:
        return tuple(ivk for _, ivk in self._wait(self._ivks()))

    def put_ivk(self, stored: StoredIvk) -> None:
        self._wait(self._put_ivk(stored))

    def count_wraps(self, kid: str, n: int) -> None:
        self._wait(self._count_wraps(kid, n))

    async def _ivks(self) -> list[tuple[int, StoredIvk]]:
        """(version of the secret, internal key), newest generation first."""
        names = await self._names("ivks")
        generations = sorted((int(name) for name in names if _NUMBER.fullmatch(name)), reverse=True)
        rows = await gather_bounded(self._ivk, generations)
        return [(version, ivk) for version, ivk in rows if ivk is not None]

    async def _ivk(self, generation: int) -> tuple[int, StoredIvk | None]:
        version, found = await self._read(f"ivks/{generation}", _Ivk)
        if found is None:
            return version, None
        try:
            state = IvkState(found.state)
        except ValueError:
            raise _damaged() from None
        if found.generation != generation:
            raise _damaged()
        return version, StoredIvk(
            generation=generation,
            kid=Kid(found.kid),
            state=state,
            created_at=Instant(found.created_at),
            wraps=found.wraps,
            blob=_unb64(found.blob),
        )

    async def _put_ivk(self, stored: StoredIvk) -> None:
        for _ in range(RACES_MAX):
            version, there = await self._ivk(stored.generation)
            if there is not None and there.kid != stored.kid:
                return
            if await self._write_ivk(stored if there is None else replace(there, state=stored.state), version):
                return
        raise _contended()

    async def _count_wraps(self, kid: str, n: int) -> None:
        for _ in range(RACES_MAX):
            found = next(((version, ivk) for version, ivk in await self._ivks() if ivk.kid == kid), None)
            if found is None:
                return
            version, ivk = found
            if await self._write_ivk(replace(ivk, wraps=ivk.wraps + n), version):
                return
        raise _contended()

    async def _write_ivk(self, ivk: StoredIvk, version: int) -> bool:
        row = _Ivk(
            generation=ivk.generation,
            kid=ivk.kid,
            state=ivk.state.value,
            created_at=ivk.created_at,
            wraps=ivk.wraps,
            blob=_b64(ivk.blob),
        )
        return await self._write(f"ivks/{ivk.generation}", row, cas=version)

    # --- blobs -------------------------------------------------------------------------------------------------------

    def put_blob(self, tenant: str, digest: str, blob: bytes) -> None:
        self._wait(self._write(_blob_path(tenant, digest), _Blob(blob=_b64(blob)), cas=None))

    def get_blob(self, tenant: str, digest: str) -> bytes | None:
        _, found = self._wait(self._read(_blob_path(tenant, digest), _Blob))
        return None if found is None else _unb64(found.blob)

    def count_blobs(self, tenant: str) -> int:
        return len(self._wait(self._names(f"blobs/{_label('tenant', tenant)}")))

    def drop_blob(self, tenant: str, digest: str) -> None:
        self._wait(self._bao.call("DELETE", self._path("metadata", _blob_path(tenant, digest))))

    # --- KV version 2 ------------------------------------------------------------------------------------------------

    def _path(self, kind: str, path: str) -> str:
        return f"{self._mount}/{kind}/{self._prefix}/{path}"

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return self._thread.wait(work)
        except BaoRefused as refused:
            raise Unavailable("storage", f"the key store does not serve us: {refused.code}") from None

    async def _read(self, path: str, shape: type[T]) -> tuple[int, T | None]:
        """(version, content): version 0 where nothing ever was, content None where nothing is."""
        found, data = await self._bao.read(self._path("data", path))
        if data is None and not found:
            return 0, None
        secret = shaped(data, _Secret)
        if secret.data is None:
            return secret.metadata.version, None
        try:
            return secret.metadata.version, msgspec.convert(secret.data, shape, strict=True)
        except msgspec.ValidationError:
            raise _damaged() from None

    async def _write(self, path: str, row: Any, *, cas: int | None) -> bool:
        """False where the version is no longer ``cas``."""
        body: dict[str, Any] = {"data": msgspec.to_builtins(row)}
        if cas is not None:
            body["options"] = {"cas": cas}
        try:
            await self._bao.call("POST", self._path("data", path), body, repeatable=cas is None)
        except BaoRefused as refused:
            if refused.why is Why.CHANGED:
                return False
            raise
        return True

    async def _destroy(self, path: str) -> None:
        version, _ = await self._read(path, dict)
        if version:
            oldest = max(1, version - VERSIONS_KEPT_MAX)
            body = {"versions": list(range(oldest, version + 1))}
            await self._bao.call("POST", self._path("destroy", path), body)

    async def _names(self, path: str) -> list[str]:
        """In order, page by page; a server whose pages go back or never end is not followed."""
        out: list[str] = []
        while len(out) <= NAMES_MAX:
            after = f"&after={quote(out[-1], safe='')}" if out else ""
            _, data = await self._bao.read(f"{self._path('metadata', path)}?list=true&limit={PAGE}{after}")
            names = [] if data is None else shaped(data, _Names).keys
            if out and names and names[0] <= out[-1]:
                break
            out += names
            if len(names) < PAGE:
                return out
        raise Unavailable("storage", f"the key store's list has no end, or more than {NAMES_MAX} names")


def _same(there: StoredKey | None, over: StoredKey | None) -> bool:
    if there is None or over is None:
        return there is over
    return (there.revision, there.ivk_kid, there.blob) == (over.revision, over.ivk_kid, over.blob)


def _blob_path(tenant: str, digest: str) -> str:
    return f"blobs/{_label('tenant', tenant)}/{_hex('digest', digest)}"


def _hex(field: str, text: str) -> str:
    if not _HEX.fullmatch(text):
        raise Refused.bad_field(field, "lower-case hex")
    return text


def _label(field: str, text: str) -> str:
    if not _LABEL.fullmatch(text):
        raise Refused.bad_field(field, "a name of a-z, 0-9 and -")
    return text


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _unb64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _damaged() from None


def _damaged() -> Integrity:
    return Integrity("storage", "the key store holds something that nobody wrote so")


def _contended() -> Unavailable:
    return Unavailable("storage", "too many writers at once; try again")
