"""Where a region's ``master.json`` lies, and each kind of seal by its name.

Decides nothing: what may be in the record is ``core.seals``'s, what a kind does ``seal_forms``'s.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, assert_never

from keymesh.adapters.files import write_file
from keymesh.adapters.l1_providers import descriptor_of, open_seal_key
from keymesh.adapters.pkcs11_descriptor import Pkcs11Descriptor, Tokens
from keymesh.adapters.seal_forms import (
    make_file_seal,
    make_provider_seal,
    make_shamir_seal,
    open_file_seal,
    open_provider_seal,
)
from keymesh.adapters.tls import Credentials
from keymesh.core.l1 import L1Provider, ProviderDescriptor
from keymesh.core.seals import Kind, MasterRecord, Seal, new_record, parse_record
from keymesh.crypto.pages import KeyPages, SecretBytes
from keymesh.crypto.xaes import KEY_BYTES
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, Refused

MASTER_FILE: Final = "master.json"


def load_record(directory: Path) -> MasterRecord | None:
    """How this region is sealed, or None where it has no MasterKey yet.  Raises Refused for a malformed record."""
    path = directory / MASTER_FILE
    return parse_record(path.read_bytes()) if path.exists() else None


def save_record(directory: Path, record: MasterRecord) -> None:
    """In one durable step: a crash leaves the old record or this one.  Raises OSError."""
    write_file(directory / MASTER_FILE, strict_json.dumps(record))


def found_by_shares(directory: Path, region: str, pages: KeyPages, *, threshold: int, n_shares: int) -> tuple[str, ...]:
    """A new MasterKey that nobody keeps, recorded; the text of its shares, which exist nowhere else afterwards."""
    with pages.put(os.urandom(KEY_BYTES)) as master:
        seal, shares = make_shamir_seal(region, master, pages, threshold=threshold, n_shares=n_shares)
        save_record(directory, new_record(region, master.reveal(), [seal]))
    return shares


@dataclass(frozen=True, slots=True)
class SealTools:
    """What a Core needs to use the seals that open by themselves."""

    directory: Path
    region: str
    credentials: Credentials
    tokens: Tokens
    pages: KeyPages

    async def make(self, kind: Kind, parameters: dict[str, Any], master: SecretBytes) -> Seal:
        """A seal of ``master``, not yet recorded.  Raises Refused, L1Denied, L1Unreachable."""
        match kind:
            case Kind.FILE:
                return make_file_seal(self.directory, self.region, master, self.pages)
            case Kind.OPENBAO | Kind.PKCS11:
                provider = self._provider(_descriptor(kind, parameters))
                try:
                    return await make_provider_seal(kind, parameters, provider, self.region, master, self.pages)
                finally:
                    await provider.close()
            case Kind.SHAMIR:
                raise Refused.bad_field("kind", "shares are made and confirmed by people")
            case _:
                assert_never(kind)

    async def open(self, kid: str, seal: Seal) -> SecretBytes:
        """The MasterKey.  Raises Integrity (opaque), Refused, L1Denied, L1Unreachable."""
        match seal.kind:
            case Kind.FILE:
                return open_file_seal(self.directory, self.region, kid, seal, self.pages)
            case Kind.OPENBAO | Kind.PKCS11:
                try:
                    descriptor = _descriptor(seal.kind, seal.parameters)
                except Refused as bad:
                    raise Integrity.opaque() from bad
                provider = self._provider(descriptor)
                try:
                    return await open_provider_seal(provider, self.region, kid, seal, self.pages)
                finally:
                    await provider.close()
            case Kind.SHAMIR:
                raise Refused("needs-shares", "this seal opens with people's shares", field="shares")
            case _:
                assert_never(seal.kind)

    def _provider(self, descriptor: ProviderDescriptor) -> L1Provider:
        """The key behind a seal.  Raises Refused where this Core's own credentials cannot be used."""
        return open_seal_key(descriptor, descriptor.replica_for(self.region), self.credentials, self.tokens)

    async def make_token_key(self, parameters: dict[str, Any]) -> None:
        """The key that a ``pkcs11`` seal names, in its token.  Raises as ``make``, L1Denied where there is one."""
        descriptor = _descriptor(Kind.PKCS11, parameters)
        assert isinstance(descriptor, Pkcs11Descriptor)
        await self.tokens.open_seals(descriptor).make_key()


def _descriptor(kind: Kind, parameters: dict[str, Any]) -> ProviderDescriptor:
    """Raises Refused naming the parameter."""
    descriptor = descriptor_of(kind.value, parameters)
    descriptor.check()
    return descriptor
