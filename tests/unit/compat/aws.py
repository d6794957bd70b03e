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

from keymesh.app.fuzz.aws import MemoryRecords
from keymesh.app.fuzz.ring import MemoryRing
from keymesh.compat.aws_credentials import Credential
from keymesh.compat.aws_kms import AwsKms
from keymesh.compat.face import FaceAnswer, FaceRequest

NOW_MS = 1_796_000_000_000
REGION = "us-east"
HOST = "kms.example"
ACME, OTHER = "acme", "zebrabank"
SECRET = "s" * 40


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
        self.ring = MemoryRing((ACME, "files"), (ACME, "mail"), (OTHER, "ledger"))
        self.records = MemoryRecords()
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
