"""A face over a ring in memory, and requests as botocore signs them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from keymesh.compat.aws_credentials import Credential
from keymesh.compat.aws_kms import AwsKms
from keymesh.compat.aws_records import KeyRecord
from keymesh.compat.face import FaceAnswer, FaceRequest
from keymesh.compat.ring import KeyFacts, Keys, VersionFacts
from keymesh.crypto.blob import blob_kid, open_l4, seal_l4
from keymesh.crypto.kid import kid_of
from keymesh.crypto.xaes import XaesKey
from keymesh.edge.hot_lease import CreatedKey
from keymesh.model.errors import KeymeshError, Refused, Unavailable

NOW_MS = 1_796_000_000_000
REGION = "us-east"
HOST = "kms.example"
ACME, OTHER = "acme", "zebrabank"
SECRET = "s" * 40


class EdgeInMemory:
    """Keys of one service, as an Edge has them."""

    def __init__(self, tenant: str, service: str) -> None:
        self._tenant = tenant
        self._name = f"{tenant}/{service}".encode()
        self.versions: list[bytes] = []
        self.why: KeymeshError | None = None
        self._drawn = 0
        self.rotate()

    def rotate(self) -> None:
        self.versions.append((self._name + bytes((len(self.versions),)) + bytes(32))[:32])

    async def create_key(self, context: Mapping[str, str] | None = None, *, plaintext: bool = False) -> CreatedKey:
        if self.why is not None:
            raise self.why
        self._drawn += 1
        l3, l4 = self.versions[-1], self._drawn.to_bytes(32, "big")
        nonce = self._drawn.to_bytes(24, "little")
        blob = seal_l4(XaesKey(l3), kid_of(l3), self._tenant, dict(context or {}), l4, nonce)
        return CreatedKey(blob, l4 if plaintext else None)

    async def decrypt_key(self, blob: bytes, context: Mapping[str, str] | None = None) -> bytes:
        if self.why is not None:
            raise self.why
        for l3 in self.versions:
            if kid_of(l3) == blob_kid(blob):
                return open_l4(XaesKey(l3), kid_of(l3), self._tenant, dict(context or {}), blob)
        raise Unavailable("unknown-key", "no key here opens that blob")


class RingInMemory:
    """Two tenants' services, each with a state as the Registry has it."""

    def __init__(self) -> None:
        self.edges: dict[tuple[str, str], EdgeInMemory] = {}
        self.states: dict[tuple[str, str], str] = {}
        self.asked = 0
        for tenant, service in ((ACME, "files"), (ACME, "mail"), (OTHER, "ledger")):
            self.add(tenant, service)

    def add(self, tenant: str, service: str) -> None:
        self.edges[tenant, service] = EdgeInMemory(tenant, service)
        self.states[tenant, service] = "active"

    def services(self, tenant: str) -> tuple[str, ...]:
        return tuple(sorted(service for owner, service in self.edges if owner == tenant))

    def keys(self, tenant: str, service: str) -> Keys:
        return self.edges[tenant, service]

    def version_of(self, tenant: str, service: str, kid: bytes) -> int | None:
        kids = [kid_of(l3) for l3 in self.edges[tenant, service].versions]
        return kids.index(kid) + 1 if kid in kids else None

    async def find(self, tenant: str, service: str) -> KeyFacts:
        if (tenant, service) not in self.edges:
            raise Refused("not-found", "no such service", field="service")
        versions = self.edges[tenant, service].versions
        return KeyFacts(
            tenant=tenant,
            service=service,
            state=self.states[tenant, service],
            custody="leased",
            wrapping=len(versions),
            versions=tuple(
                VersionFacts(version=n + 1, kid=kid_of(l3).hex(), state="active") for n, l3 in enumerate(versions)
            ),
        )

    async def list(self, tenant: str) -> tuple[KeyFacts, ...]:
        return tuple([await self.find(tenant, service) for service in self.services(tenant)])

    async def regions(self, tenant: str) -> tuple[str, ...]:
        return ("us-east", "us-west")

    async def create(self, tenant: str, service: str) -> KeyFacts:
        if (tenant, service) in self.edges:
            raise Refused("conflict", "exists already")
        self.add(tenant, service)
        return await self.find(tenant, service)

    async def host(self, tenant: str) -> None:
        self.asked += 1

    async def rotate(self, tenant: str, service: str) -> int:
        self.edges[tenant, service].rotate()
        return len(self.edges[tenant, service].versions)

    async def suspend(self, tenant: str, service: str, reason: str) -> None:
        self.states[tenant, service] = "suspended"
        self.edges[tenant, service].why = Refused("restricted", "this service is suspended or revoked")

    async def resume(self, tenant: str, service: str, reason: str) -> None:
        self.states[tenant, service] = "active"
        self.edges[tenant, service].why = None


class RecordsInMemory:
    def __init__(self) -> None:
        self.records: dict[tuple[str, str], KeyRecord] = {}
        self.named: dict[str, dict[str, str]] = {}

    def key(self, tenant: str, service: str) -> KeyRecord:
        return self.records.get((tenant, service), KeyRecord())

    def aliases(self, tenant: str) -> Mapping[str, str]:
        return self.named.get(tenant, {})

    async def put_key(self, tenant: str, service: str, record: KeyRecord) -> None:
        self.records[tenant, service] = record

    async def put_alias(self, tenant: str, alias: str, service: str | None) -> None:
        names = self.named.setdefault(tenant, {})
        names.pop(alias, None)
        if service is not None:
            names[alias] = service


def credential(
    access_key_id: str = "KMACME", tenant: str = ACME, services: tuple[str, ...] | None = None, roles: str = "use admin"
) -> Credential:
    return Credential(
        access_key_id=access_key_id,
        secret=SECRET,
        tenant=tenant,
        services=None if services is None else frozenset(services),
        roles=frozenset(roles.split()),
    )


class Bed:
    """The face, and calls of it that are signed by botocore."""

    def __init__(self) -> None:
        self.ring = RingInMemory()
        self.records = RecordsInMemory()
        self.known = {
            one.access_key_id: one
            for one in (
                credential(),
                credential("KMOTHER", OTHER),
                credential("KMUSER", roles="use"),
                credential("KMADMIN", roles="admin"),
                credential("KMFILES", services=("files",)),
            )
        }
        self.face = AwsKms(
            self.ring,
            self.records,
            credential_of=self.known.get,
            region=REGION,
            now_ms=lambda: NOW_MS,
            random=self._random,
        )
        self._count = 0

    def _random(self, size: int) -> bytes:
        self._count += 1
        return (self._count.to_bytes(4, "big") * (size // 4 + 1))[:size]

    async def raw(self, request: FaceRequest) -> tuple[FaceAnswer, dict[str, Any]]:
        answer = await self.face.answer(request)
        return answer, json.loads(answer.body)

    async def call(self, operation: str, who: str = "KMACME", **members: Any) -> dict[str, Any]:
        """What it answers; fails where that is an error."""
        answer, body = await self.raw(signed(operation, members, who))
        assert answer.status == 200, body
        return body

    async def error(self, operation: str, who: str = "KMACME", **members: Any) -> str:
        """The name of the error that it answers."""
        answer, body = await self.raw(signed(operation, members, who))
        assert answer.status >= 400, body
        return str(body["__type"])


def signed(
    operation: str,
    members: Mapping[str, Any] | bytes,
    who: str = "KMACME",
    *,
    secret: str = SECRET,
    at_ms: int = NOW_MS,
    region: str = REGION,
) -> FaceRequest:
    """As boto3 would send it."""
    body = members if isinstance(members, bytes) else json.dumps(members).encode()
    headers = {"X-Amz-Target": f"TrentService.{operation}", "Content-Type": "application/x-amz-json-1.1", "Host": HOST}
    return by_botocore("POST", f"https://{HOST}/", headers, body, who=who, secret=secret, at_ms=at_ms, region=region)


def by_botocore(
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    who: str = "KMACME",
    secret: str = SECRET,
    at_ms: int = NOW_MS,
    region: str = REGION,
) -> FaceRequest:
    request = AWSRequest(method=method, url=url, headers=headers, data=body)
    now = datetime.fromtimestamp(at_ms / 1_000, UTC)
    with patch("botocore.auth.get_current_datetime", lambda *_: now):
        SigV4Auth(Credentials(who, secret), "kms", region).add_auth(request)
    path, _, query = url.removeprefix(f"https://{HOST}").partition("?")
    return FaceRequest(
        method=method,
        path=path,
        query=query,
        headers=tuple((name.lower(), str(value)) for name, value in request.headers.items()),
        body=body,
        peer="192.0.2.1",
        correlation_id="c1",
    )
