"""Fuzz target ``transit``: the Vault face, fed its clients' requests, spoilt in path, fields or bytes.

What comes back must be in Vault's form and of a documented status; what opens must be what was sealed.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
from typing import Any, Final

from keymesh.app.fuzz.bytes import spoil
from keymesh.app.fuzz.ring import MemoryRing
from keymesh.app.fuzz.target import Fault
from keymesh.compat.face import FaceAnswer, FaceRequest
from keymesh.compat.vault_face import VaultFace
from keymesh.compat.vault_limits import RIGHTS
from keymesh.compat.vault_tokens import AppRole, Tokens, VaultLogins, WrittenToken
from keymesh.model.time import Instant

NOW: Final = Instant(1_796_000_000_000)
TENANT: Final = "acme"
TOKEN, WEAK = "the operator's token", "a token for little"
ROLE: Final = {"role_id": "role-of-orders", "secret_id": "secret of orders"}
PLAIN: Final = b"attack at dawn"
SERVICES_MAX: Final = 40
"""Then a new bed: what a client may make is not what grows here."""
_STATUSES: Final = (200, 204, 207, 400, 403, 404, 405, 429, 503)
_ODD: Final[tuple[Any, ...]] = (
    None, True, -1, 0, 2**63 - 1, "", "x", "\0", "é", "A" * 3_000, [], [[]], {}, {"a": []}, "1", "true",
)  # fmt: skip
_FIELDS: Final = (
    "plaintext", "ciphertext", "context", "associated_data", "batch_input", "key_version", "bits", "bytes", "format",
    "nonce", "type", "derived", "reference", "partial_failure_response_code", "increment", "min_decryption_version",
)  # fmt: skip
_NAMES: Final = ("", "..", "%ff", "ledger", "none", "ORDERS", "a" * 70, "%2F")
_METHODS: Final = ("POST", "POST", "POST", "PUT", "GET", "LIST", "DELETE", "HEAD", "PATCH")


class TransitTarget:
    """Each input is one request: a line of method, path and token, and the body."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._random = random.Random(0)
        self._begin()
        sealed = self._sealed()
        one, bound = {"ciphertext": sealed}, {"context": "Yw==", "associated_data": "YQ=="}
        self._asked: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
            ("transit/encrypt/orders", {"plaintext": "aGVsbG8=", **bound}),
            ("transit/encrypt/orders", {"batch_input": [{"plaintext": "YQ==", "reference": "r"}, {"plaintext": "*"}]}),
            ("transit/decrypt/orders", {**one, "plaintext": None}),
            (
                "transit/decrypt/orders",
                {"batch_input": [one, {"ciphertext": "x"}], "partial_failure_response_code": 207},
            ),
            ("transit/rewrap/orders", one),
            ("transit/datakey/plaintext/orders", {"bits": 512}),
            ("transit/datakey/wrapped/mail", bound),
            ("transit/random/16", {"format": "hex"}),
            ("transit/keys/orders/rotate", {}),
            ("transit/keys/orders/config", {"min_decryption_version": 1}),
            ("transit/keys/fresh", {"type": "aes256-gcm96"}),
            ("transit/keys/orders", {}),
            ("transit/keys?list=true", {}),
            ("auth/approle/login", ROLE),
            ("auth/cert/login", {"name": "x"}),
            ("auth/token/lookup-self", {}),
            ("auth/token/renew-self", {"increment": "1h"}),
            ("sys/health?standbycode=299&sealedcode=298", {}),
            ("sys/mounts", {}),
            ("sys/internal/ui/mounts/transit", {}),
        )

    def _begin(self) -> None:
        self._ring = MemoryRing((TENANT, "orders"), (TENANT, "mail"), ("zebra", "ledger"))
        every = ("*",)
        logins = VaultLogins(
            approles=(
                AppRole(
                    name="orders", tenant=TENANT, services=("orders",), rights=RIGHTS, ttl_s=1, max_ttl_s=1,
                    role_id=ROLE["role_id"], secret_id_sha256=(_sha(ROLE["secret_id"]),),
                ),
            ),
            tokens=(
                WrittenToken(name="all", tenant=TENANT, services=every, rights=RIGHTS, token_sha256=_sha(TOKEN)),
                WrittenToken(name="weak", tenant=TENANT, services=every, rights=("read",), token_sha256=_sha(WEAK)),
            ),
        )  # fmt: skip
        self._now = NOW
        self._face = VaultFace(
            self._ring,
            Tokens(self._random.randbytes, lambda: logins),
            mesh="fuzz",
            region="us-east",
            tenants=lambda: (TENANT,),
            identify=lambda der: None,
            random=self._random.randbytes,
            now=self._later,
        )

    def _later(self) -> Instant:
        """Tokens and failed logins come to their end."""
        self._now = Instant(self._now + 100)
        return self._now

    def _sealed(self) -> str:
        asked = json.dumps({"plaintext": base64.b64encode(PLAIN).decode()})
        answer = self._answer(f"POST transit/encrypt/orders {TOKEN}\n{asked}".encode())
        return str(json.loads(answer.body)["data"]["ciphertext"])

    # --- what is fed -----------------------------------------------------------------------------------------------

    def make(self, rng: random.Random) -> bytes:
        path, body = rng.choice(self._asked)
        body = json.loads(json.dumps(body))
        if rng.random() < 0.4:
            inside = body.get("batch_input") if rng.random() < 0.5 else None
            spot = rng.choice(inside) if inside else body
            spot[rng.choice(_FIELDS)] = rng.choice(_ODD)
        if rng.random() < 0.2:
            parts = path.split("/")
            parts[rng.randrange(len(parts))] = rng.choice(
                ("", "..", "%ff", "ledger", "none", "ORDERS", "a" * 70, "%2F")
            )
            path = "/".join(parts)
        raw = json.dumps(body).encode()
        if rng.random() < 0.3:
            raw = spoil(rng, raw)
        token = rng.choice((TOKEN,) * 12 + (WEAK, "", "wrong"))
        whole = f"{rng.choice(_METHODS)} {path} {token}\n".encode() + raw
        return spoil(rng, whole) if rng.random() < 0.1 else whole

    # --- what it is fed to -----------------------------------------------------------------------------------------

    def run(self, data: bytes) -> None:
        answer = self._answer(data)
        is_asked_for = b"code" in data and 200 <= answer.status <= 599  # some clients name the status they want
        if answer.status not in _STATUSES and (answer.status == 500 or not is_asked_for):
            raise Fault(f"status {answer.status}")
        if answer.status == 204 and not answer.body:
            return
        told = json.loads(answer.body)
        if "errors" in told:
            if answer.status < 400 or not all(word.isprintable() for word in _words(told)):
                raise Fault(f"an error of status {answer.status}: {told}")
        elif answer.status >= 400 and "sealed" not in told and "batch_results" not in (told.get("data") or {}):
            raise Fault(f"status {answer.status} without an error")
        self._check_opened(data, told)
        if len(self._ring.held) > SERVICES_MAX or len(self._ring.held[TENANT, "orders"].kids) > SERVICES_MAX:
            self._begin()

    def _check_opened(self, data: bytes, told: dict[str, Any]) -> None:
        """Of all inputs, one ciphertext alone was ever sealed."""
        if not data.partition(b"\n")[0].partition(b" ")[2].startswith(b"transit/decrypt/"):
            return
        shown = told.get("data") or {}
        for one in [shown, *shown.get("batch_results", ())]:
            if "error" not in one and "plaintext" in one and base64.b64decode(one["plaintext"]) != PLAIN:
                raise Fault("a ciphertext opens to something that nobody sealed")

    def _answer(self, data: bytes) -> FaceAnswer:
        line, _, body = data.partition(b"\n")
        method, _, rest = line.decode("latin-1").partition(" ")
        path, _, token = rest.partition(" ")
        plain, _, query = path.partition("?")
        request = FaceRequest(
            method=method,
            path=f"/v1/{plain}",
            query=query,
            headers=(("x-vault-token", token),),
            body=body,
            peer=token[:3],
            certificate=None,
            correlation_id="c",
        )
        return self._loop.run_until_complete(self._face.answer(request))


def _words(told: dict[str, Any]) -> list[str]:
    return [str(word).replace("\n", " ").replace("\t", " ") for word in told["errors"]]


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
