"""The AWS face's files: credentials, read anew as they change, and its records, written whole in one step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from keymesh.adapters.files import write_file
from keymesh.adapters.key_files import read_private
from keymesh.app.watched_file import WatchedFile, taking_turns
from keymesh.compat.aws_credentials import FILE_MAX_BYTES, Credential, dump_credentials, parse_credentials
from keymesh.compat.aws_records import ALIASES_MAX, KEYS_MAX, KeyRecord, TenantBook
from keymesh.model import strict_json
from keymesh.model.errors import Refused

RECORDS_MAX_BYTES: Final = 64 * 1024 * 1024


class CredentialBook:
    """The access keys in ``file``, as ``WatchedFile``: one that has become unreadable admits nobody."""

    def __init__(self, file: Path, monotonic: Callable[[], float]) -> None:
        self._watched: WatchedFile[dict[str, Credential]] = WatchedFile(file, read_credentials, {}, monotonic)

    def get(self, access_key_id: str) -> Credential | None:
        return self._watched.get().get(access_key_id)

    def tenants(self) -> frozenset[str]:
        return frozenset(one.tenant for one in self._watched.known.values())


def read_credentials(file: Path) -> dict[str, Credential]:
    """By access key id.  Raises Refused, also where others can read the file."""
    return parse_credentials(read_private(file, max_bytes=FILE_MAX_BYTES))


@contextmanager
def changing(file: Path) -> Iterator[dict[str, Credential]]:
    """The credentials in ``file``, to be changed; two commands at once take turns."""
    with taking_turns(file):
        known = read_credentials(file) if file.exists() else {}
        yield known
        write_file(file, dump_credentials(known.values()))


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
