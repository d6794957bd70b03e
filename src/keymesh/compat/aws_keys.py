"""Which service a key id, ARN, alias or ciphertext means, and what is said where its key may not be used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from keymesh.compat.aws_credentials import Credential
from keymesh.compat.aws_errors import AwsError, denied
from keymesh.compat.aws_names import Place, key_bytes_of, key_id_of, no_such_key
from keymesh.compat.aws_records import Records
from keymesh.compat.ring import Keys, Ring
from keymesh.model.errors import Refused, Unavailable

ALIAS: Final = "alias/"


class AwsKeys:
    """Of one face.  What is not held here yet is looked for at the Registry, where that may be asked."""

    def __init__(self, ring: Ring, records: Records) -> None:
        self._ring = ring
        self._records = records

    async def named(self, credential: Credential, place: Place, given: str) -> str:
        """The service that ``given`` means.

        Raises AwsError: absent (also another account's), or not one that the credential names; a credential for some
        services does not learn which others there are.
        """
        reference = place.reference(given)
        service = self._held(place.tenant, reference)
        if service is None:
            await self._look(place.tenant)
            service = self._held(place.tenant, reference)
        if credential.services is not None and (service is None or service not in credential.services):
            raise denied("this access key may not use that key")
        if service is None:
            raise no_such_key(given)
        return service

    async def by_bytes(self, tenant: str, key: bytes) -> str | None:
        """The service that a ciphertext names."""
        service = self._by_bytes(tenant, key)
        if service is None:
            await self._look(tenant)
            service = self._by_bytes(tenant, key)
        return service

    @contextmanager
    def use(self, place: Place, service: str) -> Iterator[Keys]:
        """Its keys; a refusal in there is told in AWS's words for the state of the key.  Raises AwsError."""
        try:
            yield self._ring.keys(place.tenant, service)
        except Refused as no:
            if no.code != "restricted":
                raise
            if self._records.key(place.tenant, service).deletion is not None:
                raise pending_deletion(place.key_arn(service)) from no
            raise AwsError("DisabledException", f"{place.key_arn(service)} is disabled") from no

    def _held(self, tenant: str, reference: str) -> str | None:
        services = self._ring.services(tenant)
        if reference.startswith(ALIAS):
            aliases = self._records.aliases(tenant)  # first: a service of that name, made later, moves no alias
            service = aliases.get(reference, reference.removeprefix(ALIAS))
            return service if service in services else None
        return next((s for s in services if key_id_of(tenant, s) == reference), None)

    def _by_bytes(self, tenant: str, key: bytes) -> str | None:
        return next((s for s in self._ring.services(tenant) if key_bytes_of(tenant, s) == key), None)

    async def _look(self, tenant: str) -> None:
        try:
            await self._ring.host(tenant)
        except Unavailable:  # what is held here goes on while the Registry is away
            pass
        except Refused as no:
            if no.code not in ("unsupported", "not-found"):
                raise


def pending_deletion(arn: str) -> AwsError:
    return AwsError("KMSInvalidStateException", f"{arn} is pending deletion")
