"""AWS KMS as this project serves it, over keys in memory, in this process: what stands for a customer's own account."""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path

from keymesh.adapters.aws_kms_descriptor import FILE
from keymesh.adapters.face_http import FaceServer, server_context
from keymesh.adapters.l1_credentials import l1_directory
from keymesh.app.fuzz.aws import MemoryRecords
from keymesh.app.fuzz.ring import MemoryRing
from keymesh.app.servers.infra_ca import InfraCa
from keymesh.compat.aws_credentials import Credential, new_credential
from keymesh.compat.aws_kms import AwsKms
from keymesh.compat.aws_names import Place
from keymesh.edge.sidecar_bind import bind_tcp

ACCOUNT = "thecustomer"


class AwsServer:
    """``ring`` and ``records`` are the account's; several servers of one are its regions."""

    def __init__(
        self,
        directory: Path,
        *keys: str,
        region: str = "eu-central-1",
        ring: MemoryRing | None = None,
        records: MemoryRecords | None = None,
    ) -> None:
        self.region = region
        self.ring = ring or MemoryRing(*((ACCOUNT, key) for key in keys))
        self.records = records or MemoryRecords()
        self.credentials: dict[str, Credential] = {}
        self.port = 0
        self.skew_ms = 0
        ca = InfraCa.in_directory(directory / f"aws-{region}", "aws")
        self._shown = ca.issue(directory / f"aws-{region}" / "server.pem", "aws", server=True)
        self.ca_pem = ca.pem
        self._server: FaceServer | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def arn(self, key: str) -> str:
        return Place(ACCOUNT, self.region).key_arn(key)

    def credential(self, *roles: str) -> Credential:
        made = new_credential(ACCOUNT, (), roles, secrets.token_bytes)
        self.credentials[made.access_key_id] = made
        return made

    async def start(self) -> None:
        face = AwsKms(
            self.ring,
            self.records,
            credential_of=self.credentials.get,
            region=self.region,
            now_ms=lambda: time.time_ns() // 1_000_000 + self.skew_ms,
            random=secrets.token_bytes,
        )
        self._server = FaceServer(face)
        bound = bind_tcp("127.0.0.1", self.port)
        await self._server.listen(bound, server_context(self._shown))
        self.port = bound.getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        await self._server.close(0.2)

    def give(self, core: Path, tenant: str, *keys: str, who: Credential | None = None) -> Path:
        """The customer's files at a Core: for ``keys`` alone, as ``who``."""
        who = who or self.credential("use")
        directory = l1_directory(core, tenant)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        given = {
            "arns": [self.arn(key) for key in keys],
            "access_key_id": who.access_key_id,
            "secret_access_key": who.secret,
            "endpoint_url": self.url,
            "ca_file": "aws-ca.pem",
        }
        for name, text in ((FILE, json.dumps(given)), ("aws-ca.pem", self.ca_pem.decode())):
            (directory / name).touch(mode=0o600)
            (directory / name).write_text(text)
        return directory / FILE
