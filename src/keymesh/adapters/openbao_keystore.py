"""A region's key store on OpenBao's KV version 2: compare-and-set by the version of each secret.

Decides the layout and how its races end; see ``core.keystore`` for the contract.  Below ``<mount>/data/<prefix>/``:

* ``store``: whose store this is, and its schema.
* ``ivks/<generation>``: one internal key.
* ``blobs/<tenant>/<digest>``: named by content, so the last writer is right.
* ``namespaces/<namespace>/<kid>`` (schema 2): one key version.  Dropping it destroys the bytes of the version that was
  compared and leaves the counter, so that a compare-and-set prepared before can never meet a key put afterwards.
* ``keys/<kid>`` and, written before it, ``index/<namespace>/<kid>`` (schema 1).

A migration sets the schema first, and then moves keys; whoever misses a key under its new name moves it.  A node that
had not heard yet may still write under the old name: the old names are gone through again, and only when that found
nothing, long after, is the store marked as moved.  What is moved leaves its counter under the old name.

The token needs ``create``, ``read``, ``update`` on ``<mount>/data/<prefix>/*``, ``update`` on
``<mount>/destroy/<prefix>/*`` and ``list``, ``delete`` on ``<mount>/metadata/<prefix>/*``.  The mount has neither
``cas_required`` nor ``delete_version_after``, and a ``max_versions`` of 32 at most.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import msgspec

from keymesh.adapters.openbao import OpenBao, gather_bounded
from keymesh.adapters.openbao_ivks import OpenBaoIvks
from keymesh.adapters.openbao_kv import RACES_MAX, Kv, contended, damaged, from_base64, to_base64
from keymesh.core.keystore import FIRST_SCHEMA, NEWEST_SCHEMA, StoredIvk, StoredKey, StoreIdentity
from keymesh.core.store_rules import check_step
from keymesh.model.errors import Refused, Unavailable
from keymesh.model.ids import Digest, Kid

VERSIONS_REMEMBERED_MAX: Final = 65_536
LATE_WRITE_S: Final = 300.0
"""A closed connection's last bytes are given up by TLS and the kernel after some two minutes; then the server has its
``max_request_duration``, 90 s unless told otherwise."""
SETTLE_S: Final = 30.0  # past every call that another node may have begun under the old schema
_HEX: Final = re.compile(r"[0-9a-f]{1,64}")
_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


class _Store(msgspec.Struct, frozen=True, kw_only=True):
    """``moved``: nothing is left under the names of schema 1.  A newer release's may say more."""

    store_id: str
    region: str
    schema: int
    moved: bool


class _Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    namespace: str
    key: str
    version: int
    revision: int
    kid: str
    digest: str
    ivk_kid: str
    blob: str


class _Blob(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    blob: str


class OpenBaoKeyStore:
    """``core.keystore.KeyStore``.  ``bao`` is closed with it."""

    late_write_s = LATE_WRITE_S

    def __init__(
        self, bao: OpenBao, *, mount: str, prefix: str, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._kv: Final = Kv(bao, mount=mount, prefix=prefix)
        self._ivks: Final = OpenBaoIvks(self._kv)
        self._monotonic_s: Final = monotonic_s
        self._named: _Store | None = None
        self._swept_at_s: float | None = None
        self._remembered: Final[OrderedDict[str, tuple[int, bytes]]] = OrderedDict()

    async def close(self) -> None:
        await self._kv.close()

    # --- identity and layout -----------------------------------------------------------------------------------------

    async def identity(self) -> StoreIdentity | None:
        _, named = await self._kv.read("store", _Store)
        self._named = named
        if named is None:
            return None
        return StoreIdentity(store_id=named.store_id, region=named.region, schema=named.schema)

    async def has_rows(self) -> bool:
        return bool(await self._kv.names("ivks") or await self._kv.names("keys"))

    async def found(self, identity: StoreIdentity) -> StoreIdentity:
        version, named = await self._kv.read("store", _Store)
        if named is None:
            row = _Store(
                store_id=identity.store_id,
                region=identity.region,
                schema=identity.schema,
                moved=identity.schema > FIRST_SCHEMA,
            )
            await self._kv.write("store", row, cas=version)
        found = await self.identity()
        if found is None:
            raise contended()
        return found

    async def migrate(self, schema: int) -> None:
        """1. The schema is set.  2. Every key under an old name is moved.  3. Once no node can write one any more, and
        none was found, that is noted."""
        version, named = await self._kv.read("store", _Store)
        if named is None:
            raise _not_open()
        check_step(named.schema, schema)
        if named.schema < schema:
            if not await self._kv.write(
                "store", msgspec.structs.replace(named, schema=schema, moved=False), cas=version
            ):
                raise contended()
            version, named = await self._kv.read("store", _Store)
        self._named = named
        if named is None or named.schema == FIRST_SCHEMA or named.moved:
            return
        kids = [kid for kid in await self._kv.names("keys") if _HEX.fullmatch(kid)]
        moved = sum(await gather_bounded(self._move, kids))
        now_s = self._monotonic_s()
        if self._swept_at_s is None or moved:
            self._swept_at_s = now_s
        elif now_s - self._swept_at_s >= SETTLE_S:
            await self._kv.write("store", msgspec.structs.replace(named, moved=True), cas=version)
            await self.identity()

    async def _move(self, kid: str) -> bool:
        """Bring what is under an old name to its new one; whether there was something."""
        old_path = f"keys/{kid}"
        version, row = await self._kv.read(old_path, _Key)
        if row is None:
            return False
        stored = _opened(row, kid)
        path = _key_path(NEWEST_SCHEMA, stored.namespace, kid)
        for _ in range(RACES_MAX):
            there_version, there = await self._kv.read(path, _Key)
            if there is not None and there.revision >= row.revision:
                break
            if await self._kv.write(path, row, cas=there_version):
                break
        else:
            raise contended()
        await self._kv.destroy(old_path, version)
        return True

    def _schema(self) -> int:
        if self._named is None or not FIRST_SCHEMA <= self._named.schema <= NEWEST_SCHEMA:
            raise _not_open()
        return self._named.schema

    def _is_moving(self) -> bool:
        return self._named is not None and self._named.schema > FIRST_SCHEMA and not self._named.moved

    # --- keys --------------------------------------------------------------------------------------------------------

    async def get_key(self, namespace: str, kid: str) -> StoredKey | None:
        stored = (await self._key(namespace, kid))[1]
        return stored if stored is not None and stored.namespace == namespace else None

    async def put_key(self, stored: StoredKey, *, over: StoredKey | None) -> bool:
        """Compare the content, then set against the version that was compared.

        A new key is first set against nothing, and a known one against the version at which this node last saw just
        that content: in most cases nothing need be read.
        """
        path = _key_path(self._schema(), stored.namespace, stored.kid)
        known = self._remembered.get(path)
        if over is None and known is None and self._schema() > FIRST_SCHEMA and not self._is_moving():
            if await self._write_key(path, stored, 0):
                return True
        elif over is not None and known is not None and known[1] == _fingerprint(over):
            if await self._write_key(path, stored, known[0]):
                return True
        version, there = await self._key(stored.namespace, stored.kid)
        if not _same(there, over):
            return False
        return await self._write_key(_key_path(self._schema(), stored.namespace, stored.kid), stored, version)

    async def drop_key(self, stored: StoredKey) -> bool:
        version, there = await self._key(stored.namespace, stored.kid)
        if there is None or not _same(there, stored):
            return False
        path = _key_path(self._schema(), stored.namespace, stored.kid)
        self._remembered.pop(path, None)
        await self._kv.destroy(path, version)
        return True

    async def stored_keys(self, namespace: str | None = None) -> tuple[StoredKey, ...]:
        if namespace is not None and not _LABEL.fullmatch(namespace):
            return ()
        names = await self._key_names(namespace)
        found = await gather_bounded(lambda name: self.get_key(*name), names)
        rows = [stored for stored in found if stored is not None]
        return tuple(sorted(rows, key=lambda stored: (stored.namespace, stored.key, stored.version)))

    async def _key_names(self, namespace: str | None) -> list[tuple[str, str]]:
        """(namespace, kid) of all keys, or of those of one namespace; some may be gone.  Those under old names come
        to their new ones on the way."""
        if self._schema() == FIRST_SCHEMA or self._is_moving():
            if self._is_moving():
                await gather_bounded(self._move, [kid for kid in await self._kv.names("keys") if _HEX.fullmatch(kid)])
            elif namespace is not None:
                return [(namespace, kid) for kid in await self._kv.names(f"index/{namespace}") if _HEX.fullmatch(kid)]
            else:
                found = await gather_bounded(self._old_name, await self._kv.names("keys"))
                return [name for name in found if name is not None]
        if namespace is not None:
            spaces = [namespace]
        else:
            spaces = [n.rstrip("/") for n in await self._kv.names("namespaces") if _LABEL.fullmatch(n.rstrip("/"))]
        lists = await gather_bounded(lambda space: self._kv.names(f"namespaces/{space}"), spaces)
        return [(space, kid) for space, kids in zip(spaces, lists, strict=True) for kid in kids if _HEX.fullmatch(kid)]

    async def _old_name(self, kid: str) -> tuple[str, str] | None:
        row = (await self._kv.read(f"keys/{kid}", _Key))[1] if _HEX.fullmatch(kid) else None
        return None if row is None else (row.namespace, kid)

    async def _key(self, namespace: str, kid: str) -> tuple[int, StoredKey | None]:
        """(version, key) under its name of today.  A miss may be another node's migration that we have not heard of,
        or a key that nobody has moved yet."""
        version, stored = await self._read_key(namespace, kid)
        if stored is not None:
            return version, stored
        if self._schema() == FIRST_SCHEMA:
            await self.identity()
            if self._schema() == FIRST_SCHEMA:
                return version, None
        if self._is_moving() and await self._move(_hex("kid", kid)):
            return await self._read_key(namespace, kid)
        return (version, None) if self._named and self._named.moved else await self._read_key(namespace, kid)

    async def _read_key(self, namespace: str, kid: str) -> tuple[int, StoredKey | None]:
        if not _LABEL.fullmatch(namespace):
            return 0, None
        path = _key_path(self._schema(), namespace, kid)
        version, row = await self._kv.read(path, _Key)
        if row is None:
            self._remembered.pop(path, None)
            return version, None
        stored = _opened(row, kid)
        if stored.namespace != namespace and self._schema() > FIRST_SCHEMA:
            raise damaged()
        self._remember(path, version, stored)
        return version, stored

    async def _write_key(self, path: str, stored: StoredKey, version: int) -> bool:
        self._remembered.pop(path, None)
        if self._schema() == FIRST_SCHEMA and version == 0:
            await self._kv.write(f"index/{_label('namespace', stored.namespace)}/{stored.kid}", {}, cas=None)
        row = _Key(
            namespace=stored.namespace,
            key=stored.key,
            version=stored.version,
            revision=stored.revision,
            kid=stored.kid,
            digest=stored.digest,
            ivk_kid=stored.ivk_kid,
            blob=to_base64(stored.blob),
        )
        done = await self._kv.write(path, row, cas=version)
        if done:
            self._remember(path, version + 1, stored)
        return done

    def _remember(self, path: str, version: int, stored: StoredKey) -> None:
        """What was seen, as a guess for the next compare-and-set; never as an answer to anybody."""
        self._remembered[path] = (version, _fingerprint(stored))
        self._remembered.move_to_end(path)
        if len(self._remembered) > VERSIONS_REMEMBERED_MAX:
            self._remembered.popitem(last=False)

    # --- internal keys -----------------------------------------------------------------------------------------------

    async def ivks(self) -> tuple[StoredIvk, ...]:
        return await self._ivks.all()

    async def put_ivk(self, stored: StoredIvk) -> None:
        await self._ivks.put(stored)

    async def count_wraps(self, kid: str, n: int) -> None:
        await self._ivks.count_wraps(kid, n)

    # --- blobs -------------------------------------------------------------------------------------------------------

    async def put_blob(self, tenant: str, digest: str, blob: bytes) -> None:
        await self._kv.write(_blob_path(tenant, digest), _Blob(blob=to_base64(blob)), cas=None)

    async def get_blob(self, tenant: str, digest: str) -> bytes | None:
        _, found = await self._kv.read(_blob_path(tenant, digest), _Blob)
        return None if found is None else from_base64(found.blob)

    async def count_blobs(self, tenant: str) -> int:
        return len(await self._kv.names(f"blobs/{_label('tenant', tenant)}"))

    async def blob_digests(self, tenant: str) -> tuple[str, ...]:
        names = await self._kv.names(f"blobs/{_label('tenant', tenant)}")
        return tuple(sorted(name for name in names if _HEX.fullmatch(name)))

    async def purge(self, tenant: str) -> None:
        """Every version under every name of either schema; what is left of a name is nothing, not even its counter."""
        space = _label("namespace", tenant)
        old = {stored.kid for stored in await self.stored_keys(tenant)} | set(await self._kv.names(f"index/{space}"))
        paths = [f"{where}/{name}" for kid in sorted(old) for where, name in (("keys", kid), (f"index/{space}", kid))]
        for where in (f"namespaces/{space}", f"blobs/{space}"):
            paths += [f"{where}/{name}" for name in await self._kv.names(where)]
        for path in paths:
            self._remembered.pop(path, None)
        await gather_bounded(self._kv.delete, paths)

    async def drop_blob(self, tenant: str, digest: str) -> None:
        await self._kv.delete(_blob_path(tenant, digest))


def _key_path(schema: int, namespace: str, kid: str) -> str:
    if schema == FIRST_SCHEMA:
        return f"keys/{_hex('kid', kid)}"
    return f"namespaces/{_label('namespace', namespace)}/{_hex('kid', kid)}"


def _opened(row: _Key, kid: str) -> StoredKey:
    if row.kid != kid:
        raise damaged()
    return StoredKey(
        namespace=row.namespace,
        key=row.key,
        version=row.version,
        revision=row.revision,
        kid=Kid(row.kid),
        digest=Digest(row.digest),
        ivk_kid=row.ivk_kid,
        blob=from_base64(row.blob),
    )


def _same(there: StoredKey | None, over: StoredKey | None) -> bool:
    if there is None or over is None:
        return there is over
    return _compared(there) == _compared(over)


def _compared(key: StoredKey) -> tuple[str, int, str, bytes]:
    return (key.namespace, key.revision, key.ivk_kid, key.blob)


def _fingerprint(stored: StoredKey) -> bytes:
    """Of what ``_same`` compares."""
    return hashlib.sha256(repr(_compared(stored)).encode()).digest()


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


def _not_open() -> Unavailable:
    return Unavailable("store-not-open", "the key store has not been looked at yet, or is of another release")
