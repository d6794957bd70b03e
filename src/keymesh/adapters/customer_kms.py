"""The client side of ``keymesh customer-kms``: the L1 provider that Cores use, and the owner's own calls.

Decides which answers are a *no* of the customer (``L1Denied``) and that all others are silence; see ``core.l1``.
The KMS is known by its own CA, never by the mesh's.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Final, Self, TypeVar

import msgspec
from cryptography import x509

from keymesh.adapters.http_client import PeerClient
from keymesh.adapters.pki import uri_of
from keymesh.adapters.tls import Credentials
from keymesh.core.l1 import (
    KEYMESH_KMS,
    PLAIN_MAX_BYTES,
    WRAPPED_MAX_BYTES,
    L1Denied,
    L1Unreachable,
    ProviderDescriptor,
)
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, Refused, Unavailable
from keymesh.model.ids import check_label

TIMEOUT_S: Final = 5.0
ANSWER_MAX_BYTES: Final = 16 * 1024
INFO_FILE: Final = "kms.json"
_A_CLEAR_NO: Final = frozenset({"disabled", "denied", "no-such-key"})

T = TypeVar("T")


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Wrap(_Message, frozen=True, kw_only=True):
    """Body of POST /keys/{name}/wrap; base64."""

    plaintext: str
    aad: str = ""


class Wrapped(_Message, frozen=True, kw_only=True):
    wrapped: str


class Unwrap(_Message, frozen=True, kw_only=True):
    """Body of POST /keys/{name}/unwrap; base64."""

    wrapped: str
    aad: str = ""


class Unwrapped(_Message, frozen=True, kw_only=True):
    plaintext: str


class CreateKey(_Message, frozen=True, kw_only=True):
    name: str


class KeyStatus(_Message, frozen=True, kw_only=True):
    """``disabled_replicas`` are refused there alone; not ``enabled`` is refused everywhere."""

    name: str
    version: int
    enabled: bool
    disabled_replicas: list[str]


class AllowedCa(_Message, frozen=True, kw_only=True):
    """Clients whose chain ends in ``ca_pem`` may wrap and unwrap, if their identity is of ``kinds`` and, where given,
    under one of ``uri_prefixes``.  ``denied``: still known, and told no."""

    ca_pem: str
    kinds: tuple[str, ...] = ("core",)
    uri_prefixes: tuple[str, ...] = ()
    denied: bool = False


class KmsInfo(_Message, frozen=True, kw_only=True):
    """``kms.json``: how to find a running KMS.  Paths are relative to its directory."""

    name: str
    pid: int
    replicas: dict[str, str]
    ca: str
    owner: str


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def unb64(field: str, text: str, *, max_bytes: int) -> bytes:
    """Raises Refused naming ``field`` for anything but canonical base64 within the limit."""
    if len(text) > 4 * (max_bytes // 3 + 1):
        raise Refused.bad_field(field, f"at most {max_bytes} bytes")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as bad:
        raise Refused.bad_field(field, "not base64") from bad
    if b64(data) != text or len(data) > max_bytes:
        raise Refused.bad_field(field, f"canonical base64 of at most {max_bytes} bytes")
    return data


def check_kms_server(leaf: x509.Certificate, root: x509.Certificate) -> None:
    """The peer is a replica of a KMS under the descriptor's CA.  Raises Refused."""
    match uri_of(leaf).removeprefix("spiffe://").split("/"):
        case [domain, "kms", replica]:
            check_label("domain", domain)
            check_label("replica", replica)
        case _:
            raise Refused.bad_field("certificate", "not a KMS replica")


class KeymeshKms:
    """``core.l1.L1Provider`` over one replica."""

    def __init__(self, descriptor: ProviderDescriptor, replica: str, credentials: Credentials) -> None:
        descriptor.check()
        trust_pem = descriptor.ca_pem.encode("ascii")
        try:
            context = credentials.client_context(trust_pem=trust_pem, check=check_kms_server)
        except (OSError, ValueError) as bad:
            raise Refused.bad_field("ca_pem", "not PEM certificates") from bad
        url = descriptor.replicas[replica]
        self._client = PeerClient(url, context, timeout_s=TIMEOUT_S, answer_max_bytes=ANSWER_MAX_BYTES)
        self._path = f"/keys/{descriptor.key}"
        self.replica: Final = replica

    async def wrap(self, e: bytes) -> bytes:
        """See ``L1Provider``."""
        if not 0 < len(e) <= PLAIN_MAX_BYTES:
            raise Refused.bad_field("e", f"1..{PLAIN_MAX_BYTES} bytes")
        answer = await self._post("wrap", Wrap(plaintext=b64(e)), Wrapped)
        return _field("wrapped", answer.wrapped, WRAPPED_MAX_BYTES)

    async def unwrap(self, wrapped: bytes) -> bytes:
        """See ``L1Provider``."""
        if not 0 < len(wrapped) <= WRAPPED_MAX_BYTES:
            raise Integrity.opaque()
        answer = await self._post("unwrap", Unwrap(wrapped=b64(wrapped)), Unwrapped)
        return _field("plaintext", answer.plaintext, PLAIN_MAX_BYTES)

    async def close(self) -> None:
        await self._client.close()

    async def _post(self, verb: str, body: msgspec.Struct, shape: type[T]) -> T:
        try:
            _, content = await self._client.request("POST", f"{self._path}/{verb}", strict_json.dumps(body))
        except Unavailable as away:
            raise L1Unreachable(away.code, away.message, retry_after_ms=away.retry_after_ms) from away
        except Refused as refused:
            if refused.code in _A_CLEAR_NO:
                raise L1Denied(refused.code, refused.message) from refused
            raise L1Unreachable("kms-answer", f"the KMS answered {refused.code}") from refused
        try:
            return strict_json.decode(content, shape, max_bytes=ANSWER_MAX_BYTES)
        except Refused as bad:
            raise L1Unreachable("kms-answer", "the KMS answered something else") from bad


def _field(name: str, text: str, max_bytes: int) -> bytes:
    try:
        return unb64(name, text, max_bytes=max_bytes)
    except Refused as bad:
        raise L1Unreachable("kms-answer", "the KMS answered something else") from bad


def open_provider(descriptor: ProviderDescriptor, region: str, credentials: Credentials) -> KeymeshKms:
    """The replica that ``region`` uses, shown ``credentials``.  Raises Refused for a malformed descriptor."""
    descriptor.check()
    return KeymeshKms(descriptor, descriptor.replica_for(region), credentials)


def open_replicas(descriptor: ProviderDescriptor, credentials: Credentials) -> dict[str, KeymeshKms]:
    """Every replica by name, for a probe of all of them."""
    descriptor.check()
    return {replica: KeymeshKms(descriptor, replica, credentials) for replica in sorted(descriptor.replicas)}


class OwnerClient:
    """The customer's own hand on their KMS: the owner certificate, in the KMS's directory."""

    def __init__(self, *, name: str, replicas: dict[str, str], ca_pem: str, owner_file: Path) -> None:
        self.name: Final = name
        self.replicas: Final = replicas
        self.ca_pem: Final = ca_pem
        context = Credentials(owner_file).client_context(trust_pem=ca_pem.encode("ascii"), check=check_kms_server)
        self._client = PeerClient(replicas[min(replicas)], context, timeout_s=TIMEOUT_S)

    @classmethod
    def open(cls, directory: Path) -> Self:
        """For the KMS that runs, or last ran, in ``directory``.  Raises Refused where there was none."""
        info = read_info(directory)
        ca_pem = (directory / info.ca).read_text(encoding="ascii")
        return cls(name=info.name, replicas=info.replicas, ca_pem=ca_pem, owner_file=directory / info.owner)

    def descriptor(self, key: str) -> ProviderDescriptor:
        """What a tenant's L1 binding records for ``key``."""
        return ProviderDescriptor(provider=KEYMESH_KMS, key=key, replicas=self.replicas, ca_pem=self.ca_pem)

    async def create(self, key: str) -> KeyStatus:
        """A new key.  Raises Refused ``conflict`` where it exists."""
        return await self._ask("POST", "/keys", CreateKey(name=key))

    async def disable(self, key: str, *, replica: str | None = None) -> KeyStatus:
        """Refuse every use from now on, at one replica or at all."""
        return await self._switch(key, "disable", replica)

    async def enable(self, key: str, *, replica: str | None = None) -> KeyStatus:
        """End a disabling: at one replica, or at all of them."""
        return await self._switch(key, "enable", replica)

    async def status(self, key: str) -> KeyStatus:
        return await self._ask("GET", f"/keys/{check_label('key', key)}", None)

    async def allow_ca(
        self,
        ca_pem: str,
        *,
        kinds: tuple[str, ...] = ("core",),
        uri_prefixes: tuple[str, ...] = (),
        denied: bool = False,
    ) -> None:
        """Let clients of a mesh's root wrap and unwrap, or with ``denied`` tell them no from now on."""
        body = AllowedCa(ca_pem=ca_pem, kinds=kinds, uri_prefixes=uri_prefixes, denied=denied)
        await self._client.request("POST", "/clients", strict_json.dumps(body))

    async def wrap(self, key: str, plaintext: bytes) -> bytes:
        body = strict_json.dumps(Wrap(plaintext=b64(plaintext)))
        _, content = await self._client.request("POST", f"/keys/{check_label('key', key)}/wrap", body)
        answer = strict_json.decode(content, Wrapped, max_bytes=ANSWER_MAX_BYTES)
        return unb64("wrapped", answer.wrapped, max_bytes=WRAPPED_MAX_BYTES)

    async def unwrap(self, key: str, wrapped: bytes) -> bytes:
        """For opening without any mesh.  Raises Refused ``disabled``, Integrity, Unavailable."""
        body = strict_json.dumps(Unwrap(wrapped=b64(wrapped)))
        _, content = await self._client.request("POST", f"/keys/{check_label('key', key)}/unwrap", body)
        answer = strict_json.decode(content, Unwrapped, max_bytes=ANSWER_MAX_BYTES)
        return unb64("plaintext", answer.plaintext, max_bytes=PLAIN_MAX_BYTES)

    async def close(self) -> None:
        await self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self.close()

    async def _switch(self, key: str, verb: str, replica: str | None) -> KeyStatus:
        query = None if replica is None else {"replica": replica}
        return await self._ask("POST", f"/keys/{check_label('key', key)}/{verb}", None, query=query)

    async def _ask(
        self, method: str, path: str, body: msgspec.Struct | None, *, query: dict[str, str] | None = None
    ) -> KeyStatus:
        content = None if body is None else strict_json.dumps(body)
        _, answer = await self._client.request(method, path, content, query=query)
        return strict_json.decode(answer, KeyStatus, max_bytes=ANSWER_MAX_BYTES)


def read_info(directory: Path) -> KmsInfo:
    """``kms.json`` of ``directory``.  Raises Refused ``not-found``."""
    try:
        raw = (directory / INFO_FILE).read_bytes()
    except FileNotFoundError as missing:
        raise Refused("not-found", f"no customer KMS has run in {directory}", field="dir") from missing
    return strict_json.decode(raw, KmsInfo, max_bytes=ANSWER_MAX_BYTES)
