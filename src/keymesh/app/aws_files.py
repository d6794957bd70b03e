"""The AWS face's files: credentials, read anew as they change, and its records, written whole in one step."""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from keymesh.adapters.files import write_file
from keymesh.adapters.key_files import read_private
from keymesh.compat.aws_credentials import FILE_MAX_BYTES, Credential, dump_credentials, parse_credentials
from keymesh.compat.aws_records import ALIASES_MAX, KEYS_MAX, KeyRecord, TenantBook
from keymesh.model import strict_json
from keymesh.model.errors import Refused

LOOK_S: Final = 1.0
RECORDS_MAX_BYTES: Final = 64 * 1024 * 1024


class CredentialBook:
    """The access keys in ``file``.  Looked at once a second at most; one that has become unreadable admits nobody.

    Raises Refused where it is not right at the start.
    """

    def __init__(self, file: Path, monotonic: Callable[[], float]) -> None:
        self._file = file
        self._monotonic = monotonic
        self._stamp = _stamp(file)
        self._known = read_credentials(file)
        self._looked = monotonic()

    def get(self, access_key_id: str) -> Credential | None:
        now = self._monotonic()
        if now >= self._looked + LOOK_S:
            self._looked = now
            if (stamp := _stamp(self._file)) != self._stamp:
                self._stamp = stamp
                try:
                    self._known = read_credentials(self._file)
                except Refused:
                    self._known = {}
        return self._known.get(access_key_id)

    def tenants(self) -> frozenset[str]:
        return frozenset(one.tenant for one in self._known.values())


def read_credentials(file: Path) -> dict[str, Credential]:
    """By access key id.  Raises Refused, also where others can read the file."""
    return parse_credentials(read_private(file, max_bytes=FILE_MAX_BYTES))


@contextmanager
def changing(file: Path) -> Iterator[dict[str, Credential]]:
    """The credentials in ``file``, to be changed; two commands at once take turns."""
    with (file.parent / f".{file.name}.lock").open("a") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        known = read_credentials(file) if file.exists() else {}
        yield known
        write_file(file, dump_credentials(known.values()))


def _stamp(file: Path) -> tuple[int, int, int]:
    try:
        found = file.stat()
    except FileNotFoundError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_ino, found.st_mode)


class RecordsFile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    version: int
    tenants: dict[str, TenantBook]


class AwsRecords:
    """``compat.aws_records.Records`` in one JSON file of this face's own."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._turn = asyncio.Lock()
        self._books: dict[str, TenantBook] = {}
        if file.exists():
            found = strict_json.decode(
                read_private(file, max_bytes=RECORDS_MAX_BYTES), RecordsFile, max_bytes=RECORDS_MAX_BYTES
            )
            if found.version != 1:
                raise Refused.bad_field("records.version", "only 1 is known")
            self._books = dict(found.tenants)

    def key(self, tenant: str, service: str) -> KeyRecord:
        return self._book(tenant).keys.get(service, _NOTHING)

    def aliases(self, tenant: str) -> Mapping[str, str]:
        return self._book(tenant).aliases

    async def put_key(self, tenant: str, service: str, record: KeyRecord) -> None:
        async with self._turn:
            book = self._book(tenant)
            keys = {**book.keys, service: record}
            if len(keys) > KEYS_MAX:
                raise Refused("limit", f"at most {KEYS_MAX} keys with records")
            await self._save(tenant, msgspec.structs.replace(book, keys=keys))

    async def put_alias(self, tenant: str, alias: str, service: str | None) -> None:
        async with self._turn:
            book = self._book(tenant)
            aliases = {name: target for name, target in book.aliases.items() if name != alias}
            if service is not None:
                aliases[alias] = service
            if len(aliases) > ALIASES_MAX:
                raise Refused("limit", f"at most {ALIASES_MAX} aliases")
            await self._save(tenant, msgspec.structs.replace(book, aliases=aliases))

    def _book(self, tenant: str) -> TenantBook:
        return self._books.get(tenant, _EMPTY)

    async def _save(self, tenant: str, book: TenantBook) -> None:
        """On disk first; what is read is what is there."""
        books = {**self._books, tenant: book}
        raw = strict_json.dumps(RecordsFile(version=1, tenants=books))
        await asyncio.to_thread(write_file, self._file, raw)
        self._books = books


_NOTHING: Final = KeyRecord()
_EMPTY: Final = TenantBook()
