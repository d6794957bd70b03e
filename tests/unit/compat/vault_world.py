"""A Vault face over keys in memory, and a client that speaks to it in plain words."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from keymesh.access.identity import ClientIdentity, EdgeIdentity, Identity
from keymesh.app.fuzz.ring import MemoryRing
from keymesh.compat.face import FaceRequest
from keymesh.compat.vault_face import VaultFace
from keymesh.compat.vault_limits import RIGHTS
from keymesh.compat.vault_tokens import AppRole, CertificateRole, Tokens, VaultLogins, WrittenToken
from keymesh.model.ids import MeshName, RegionId, ServiceName, TenantId
from keymesh.model.time import Instant

MESH, REGION = MeshName("test-dev"), RegionId("us-east")
START = Instant(1_795_849_432_000)
ROOT, OTHER_ROOT, READER = "root-of-acme", "root-of-zebra", "reads-orders-only"
ROLE_ID, SECRET_ID = "orders-role-id", "a secret id of enough chance"
EDGE = EdgeIdentity(mesh=MESH, region=REGION, tenant=TenantId("acme"), service=ServiceName("orders"), instance="i1")
CLIENT = ClientIdentity(mesh=MESH, region=REGION, tenant=TenantId("acme"), name="billing")
USES = ("encrypt", "decrypt", "rewrap", "datakey")


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def logins() -> VaultLogins:
    return VaultLogins(
        approles=(
            AppRole(
                name="orders", tenant="acme", services=("orders",), rights=USES, ttl_s=600, max_ttl_s=3_600,
                role_id=ROLE_ID, secret_id_sha256=(sha(SECRET_ID),),
            ),
        ),
        certificates=(
            CertificateRole(name="edge", tenant="acme", services=("orders",), rights=USES, edge="orders"),
            CertificateRole(name="client", tenant="acme", services=("*",), rights=("read",), client="billing"),
        ),
        tokens=(
            WrittenToken(name="root", tenant="acme", services=("*",), rights=RIGHTS, token_sha256=sha(ROOT)),
            WrittenToken(name="zebra", tenant="zebra", services=("*",), rights=RIGHTS, token_sha256=sha(OTHER_ROOT)),
            WrittenToken(
                name="reader", tenant="acme", services=("orders",), rights=("read", "decrypt"),
                token_sha256=sha(READER), not_after=START + 60_000,
            ),
        ),
    )  # fmt: skip


@dataclass
class World:
    """``certificates``: what a DER stands for."""

    ring: MemoryRing = field(
        default_factory=lambda: MemoryRing(("acme", "orders"), ("acme", "mail"), ("zebra", "orders"))
    )
    now: Instant = START
    drawn: int = 0
    certificates: dict[bytes, tuple[Identity, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.logins = logins()
        self.tokens = Tokens(self.random, lambda: self.logins)
        self.face = VaultFace(
            self.ring,
            self.tokens,
            mesh=MESH,
            region=REGION,
            tenants=lambda: ("acme", "zebra"),
            identify=self.certificates.get,
            random=self.random,
            now=lambda: self.now,
        )

    def random(self, count: int) -> bytes:
        self.drawn += 1
        return hashlib.shake_256(self.drawn.to_bytes(8, "big")).digest(count)

    def later(self, ms: int) -> None:
        self.now = Instant(self.now + ms)

    async def raw(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        token: str | None = ROOT,
        headers: tuple[tuple[str, str], ...] = (),
        certificate: bytes | None = None,
        peer: str = "192.0.2.1",
    ) -> tuple[int, Any]:
        plain, _, query = path.partition("?")
        shown = () if token is None else (("x-vault-token", token),)
        answer = await self.face.answer(
            FaceRequest(
                method=method,
                path=f"/v1/{plain}",
                query=query,
                headers=shown + headers,
                body=body,
                peer=peer,
                certificate=certificate,
                correlation_id="c",
            )
        )
        return answer.status, json.loads(answer.body) if answer.body else None

    async def ask(self, method: str, path: str, body: Any = None, **options: Any) -> tuple[int, Any]:
        return await self.raw(method, path, b"" if body is None else json.dumps(body).encode(), **options)

    async def data(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """Of a call that succeeds."""
        status, answer = await self.ask(method, path, body, **options)
        assert status == 200, answer
        return answer["data"]

    async def error(self, method: str, path: str, body: Any = None, **options: Any) -> tuple[int, str]:
        """Of a call that is refused."""
        status, answer = await self.ask(method, path, body, **options)
        assert list(answer) == ["errors"], answer
        return status, " ".join(answer["errors"])

    async def encrypt(self, plain: bytes, key: str = "orders", **more: Any) -> str:
        token = more.pop("token", ROOT)
        made = await self.data("POST", f"transit/encrypt/{key}", {"plaintext": b64(plain), **more}, token=token)
        return str(made["ciphertext"])

    async def decrypt(self, ciphertext: str, key: str = "orders", **more: Any) -> bytes:
        token = more.pop("token", ROOT)
        body = {"ciphertext": ciphertext, **more}
        return base64.b64decode((await self.data("POST", f"transit/decrypt/{key}", body, token=token))["plaintext"])
