"""Where ``seal`` and ``open`` get a file's data key: from an Edge of the mesh, or from the customer's own L1 alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from keymesh.adapters.http_client import PeerClient
from keymesh.app.admin_client import AdminClient, saying_what_runs
from keymesh.app.enrol import ensure_identity, sidecar_client
from keymesh.app.l1_url import known_kms, parse_l1
from keymesh.app.layout import Layout, load_plan
from keymesh.crypto.blob import L4_BLOB_BYTES, L4_BYTES, blob_kid, open_l4
from keymesh.crypto.chain import CHAIN_MAX_BYTES, Chain, chain_from_json, open_path, path_to
from keymesh.crypto.kid import kid_hex
from keymesh.crypto.pages import KeyPages
from keymesh.crypto.xaes import XaesKey
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, Refused, Unavailable
from keymesh.orbital.edge_wire import from_base64, to_base64

ANSWER_MAX_BYTES: Final = 1024 * 1024
PATIENCE_S: Final = 15.0
_UNKNOWN: Final = "unknown-key"
_SOON: Final = frozenset({"starting", "not-loaded", "no-certificate", "no-wrapping-key"})

T = TypeVar("T")


class KeySource(Protocol):
    """One data key at a time; ``where`` says for people who gave it."""

    where: str

    def mint(self, tenant: str, service: str, context: Mapping[str, str]) -> tuple[bytes, bytes]:
        """(blob, data key)."""
        ...

    def unwrap(self, tenant: str, service: str, blob: bytes, context: Mapping[str, str]) -> bytes: ...

    def close(self) -> None: ...


class MeshKeys:
    """The Edges of the mesh in ``layout``.  Without ``region``: whichever allowed one answers first, in order."""

    def __init__(self, layout: Layout, region: str | None) -> None:
        self.where = region or ""
        self._plan = load_plan(layout)
        if region is not None and region not in self._plan.regions:
            raise Refused.bad_field("region", f"one of {', '.join(self._plan.regions)}")
        self._region = region
        self._layout = layout
        self._runner = asyncio.Runner()
        self._client = AdminClient(layout, self._plan)
        self._sidecars: dict[str, PeerClient] = {}
        self._candidates: dict[tuple[str, str], list[str]] = {}

    def close(self) -> None:
        """Hang up."""

        async def hang_up() -> None:
            for sidecar in self._sidecars.values():
                await sidecar.close()
            await self._client.__aexit__()

        self._runner.run(hang_up())
        self._runner.close()

    def mint(self, tenant: str, service: str, context: Mapping[str, str]) -> tuple[bytes, bytes]:
        """See ``KeySource``."""
        body = {"context": dict(context), "plaintext": True}
        with saying_what_runs(self._layout, self._plan):
            made = self._runner.run(self._first(tenant, service, "create-key", body))
        return (
            from_base64("blob", made["blob"], max_bytes=L4_BLOB_BYTES),
            from_base64("plaintext", made["plaintext"], max_bytes=L4_BYTES),
        )

    def unwrap(self, tenant: str, service: str, blob: bytes, context: Mapping[str, str]) -> bytes:
        """See ``KeySource``."""
        body = {"blob": to_base64(blob), "context": dict(context)}
        with saying_what_runs(self._layout, self._plan):
            opened = self._runner.run(self._opened(tenant, service, blob, body))
        return from_base64("plaintext", opened["plaintext"], max_bytes=L4_BYTES)

    async def _opened(self, tenant: str, service: str, blob: bytes, body: dict[str, Any]) -> Any:
        """An Edge that has asked its Core cannot tell why it has no such key; the Registry can.

        A key that is restricted is refused, one that is only on its way there may come: Unavailable.  One that nobody
        knows never comes: Integrity.
        """
        try:
            return await self._first(tenant, service, "decrypt-key", body)
        except Unavailable as unknown:
            if unknown.code != _UNKNOWN:
                raise
            if not await self._is_on_its_way(tenant, service, kid_hex(blob_kid(blob))):
                raise Integrity.opaque() from unknown
            raise

    async def _is_on_its_way(self, tenant: str, service: str, kid: str) -> bool:
        """Whether the Registry has a key that a region has not.  Raises Refused where it is restricted."""
        try:
            keys = (await self._client.call("GET", f"/v1/tenants/{tenant}/keys"))["keys"]
        except (Unavailable, Refused):
            return False
        for key in keys:
            if key["kid"] == kid and key["state"] in ("suspended", "revoked", "compromised"):
                raise Refused("restricted", f"key:{tenant}/{service}@{key['version']} is {key['state']}")
        return any(key["kid"] == kid for key in keys)

    # --- which Edge ----------------------------------------------------------------------------------------------

    async def _first(self, tenant: str, service: str, operation: str, body: dict[str, Any]) -> Any:
        """Ask the candidates in order; one that is unavailable gives way to the next, a refusal is final."""
        silent: Unavailable | None = None
        for region in await self._regions(tenant, service):
            try:
                answer = await _patiently(partial(self._ask, region, tenant, service, operation, body))
            except Unavailable as unavailable:
                if silent is None or silent.code == _UNKNOWN:  # one that is away may have the key
                    silent = unavailable
                continue
            self.where = region
            return answer
        raise silent or Unavailable("no-region", "no region can serve this tenant")

    async def _ask(self, region: str, tenant: str, service: str, operation: str, body: dict[str, Any]) -> Any:
        sidecar = self._sidecar(region)
        try:
            return await _json(sidecar, "POST", f"/v1/{tenant}/{service}/{operation}", body)
        except Refused as refused:
            if refused.code != "not-found":
                raise
        except Unavailable as waiting:
            if waiting.code != "no-certificate":
                raise
        await ensure_identity(self._client, sidecar, region, tenant, service)
        return await _json(sidecar, "POST", f"/v1/{tenant}/{service}/{operation}", body)

    async def _regions(self, tenant: str, service: str) -> list[str]:
        """Regions to try: the one named; else where this service is enrolled already, then where the tenant may be."""
        if self._region is not None:
            return [self._region]
        key = (tenant, service)
        if key not in self._candidates:
            enrolled = [region for region in self._plan.regions if await self._is_enrolled(region, tenant, service)]
            self._candidates[key] = list(dict.fromkeys([*enrolled, *await self._allowed(tenant, enrolled)]))
        return self._candidates[key]

    async def _is_enrolled(self, region: str, tenant: str, service: str) -> bool:
        try:
            known = await _json(self._sidecar(region), "GET", "/v1/identities")
        except Unavailable:
            return False
        return any(i["tenant"] == tenant and i["service"] == service and i["ready"] for i in known["identities"])

    async def _allowed(self, tenant: str, enrolled: list[str]) -> list[str]:
        """By the Registry; where it is silent, the enrolled ones must do."""
        try:
            policy = await self._client.call("GET", f"/v1/tenants/{tenant}")
        except Unavailable:
            if enrolled:
                return []
            raise
        home = [policy["home"]] if "home" in policy else []
        return [region for region in [*home, *policy["regions"]] if region in self._plan.regions]

    def _sidecar(self, region: str) -> PeerClient:
        if region not in self._sidecars:
            self._sidecars[region] = sidecar_client(self._client, region)
        return self._sidecars[region]


class SocketKeys:
    """The Edge behind a socket of this host, with the identities that it has."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self._runner = asyncio.Runner()
        self._edge = PeerClient("http://edge", unix_socket=path)

    def mint(self, tenant: str, service: str, context: Mapping[str, str]) -> tuple[bytes, bytes]:
        """See ``KeySource``."""
        made = self._ask(tenant, service, "create-key", {"context": dict(context), "plaintext": True})
        return (
            from_base64("blob", made["blob"], max_bytes=L4_BLOB_BYTES),
            from_base64("plaintext", made["plaintext"], max_bytes=L4_BYTES),
        )

    def unwrap(self, tenant: str, service: str, blob: bytes, context: Mapping[str, str]) -> bytes:
        """See ``KeySource``."""
        try:
            opened = self._ask(tenant, service, "decrypt-key", {"blob": to_base64(blob), "context": dict(context)})
        except Unavailable as unknown:
            if unknown.code == _UNKNOWN:
                raise Integrity.opaque() from unknown
            raise
        return from_base64("plaintext", opened["plaintext"], max_bytes=L4_BYTES)

    def close(self) -> None:
        """Hang up."""
        self._runner.run(self._edge.close())
        self._runner.close()

    def _ask(self, tenant: str, service: str, operation: str, body: dict[str, Any]) -> Any:
        path = f"/v1/{tenant}/{service}/{operation}"
        return self._runner.run(_patiently(partial(_json, self._edge, "POST", path, body)))


class OfflineKeys:
    """The exported chain and the customer's KMS: no mesh is asked.

    ``l1`` is ``kms:DIR#KEY``, or ``https://HOST:PORT/keys/KEY`` with ``credentials`` (the KMS's directory).
    """

    where = "the customer's own root key"

    def __init__(self, chain_file: Path, l1: str, credentials: str | None, own: Path) -> None:
        raw = chain_file.read_bytes() if chain_file.stat().st_size <= CHAIN_MAX_BYTES else b""
        self._chain: Chain = chain_from_json(raw)
        self._l1 = parse_l1(l1, known_kms(own, credentials))
        self._pages = KeyPages(allow_unlocked=True)
        self._ciphers: dict[str, XaesKey] = {}

    def mint(self, tenant: str, service: str, context: Mapping[str, str]) -> tuple[bytes, bytes]:
        """Offline is for opening only."""
        raise Refused("offline", "sealing needs the mesh", field="offline")

    def unwrap(self, tenant: str, service: str, blob: bytes, context: Mapping[str, str]) -> bytes:
        """See ``KeySource``.  Raises Refused where the chain is another tenant's or the customer's key is disabled."""
        if tenant != self._chain.tenant:
            raise Refused.bad_field("chain", f"of the tenant {self._chain.tenant}, the file is {tenant}'s")
        kid = blob_kid(blob)
        cipher = self._ciphers.get(kid.hex())
        if cipher is None:
            cipher = self._ciphers[kid.hex()] = self._open(kid.hex())
        return open_l4(cipher, kid, tenant, context, blob)

    def close(self) -> None:
        """Wipe what passed through locked pages."""
        self._ciphers.clear()
        self._pages.wipe_all()

    def _open(self, kid: str) -> XaesKey:
        from keymesh.adapters.customer_kms import OwnerClient

        try:
            path = path_to(self._chain, kid)
        except Unavailable as unknown:
            raise Integrity(
                unknown.code, "no key in the chain is the file's: the chain is older, or the file was changed"
            ) from unknown

        async def unwrap() -> bytes:
            async with OwnerClient.open(self._l1.directory) as owner:
                return await owner.unwrap(self._l1.key, path.wrapped_e)

        with open_path(self._chain, path, asyncio.run(unwrap()), self._pages) as l3:
            return XaesKey(l3.reveal())


async def _patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """What ``ask`` answers, waiting for what is only on its way: a first lease, a first key."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await ask()
        except Unavailable as soon:
            if soon.code not in _SOON or time.monotonic() >= deadline:
                raise
        await asyncio.sleep(0.1)


async def _json(sidecar: PeerClient, method: str, path: str, body: Any = None) -> Any:
    raw = None if body is None else strict_json.dumps(body)
    _, answer = await sidecar.request(method, path, raw)
    return strict_json.loads(answer, max_bytes=ANSWER_MAX_BYTES)
