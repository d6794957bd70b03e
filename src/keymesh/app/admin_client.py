"""What the CLI says to a mesh: an operator's certificate, the Registry's API, and the Cores where it is silent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from keymesh.access.identity import CoreIdentity, Identity, RegistryIdentity
from keymesh.access.tokens import CERTIFICATE
from keymesh.adapters.http_client import PeerClient
from keymesh.adapters.key_files import read_private
from keymesh.adapters.tls import Credentials, MeshTls, PeerContext, anonymous_context, mesh_check
from keymesh.app.args_common import chosen_token_file
from keymesh.app.layout import Layout, MeshPlan, load_plan, resolve_dir
from keymesh.app.registry_client import RegistryClient
from keymesh.app.renewal import renew_if_due
from keymesh.app.signing_keys import load_signer
from keymesh.app.supervisor_client import NOT_RUNNING, ask_supervisor
from keymesh.control.trust import make_authority
from keymesh.crypto.dsse import envelope_to_json
from keymesh.crypto.jws import JWS_MAX_CHARS, parse_jws
from keymesh.model import strict_json
from keymesh.model.errors import Refused, Unavailable
from keymesh.model.ids import MeshName

T = TypeVar("T")
ANSWER_MAX_BYTES = 16 * 1024 * 1024
AUTHORITY_LIFETIME_MS = 10 * 60_000
_TOKEN = re.compile(r"[A-Za-z0-9._-]+")


class AdminClient:
    """One operator's connection to one mesh; use as an async context manager.

    ``token_file``: a bearer token that says who asks; the operator's certificate is then neither shown nor read, unless
    the token is bound to one.
    """

    def __init__(self, layout: Layout, plan: MeshPlan, *, token_file: Path | None = None) -> None:
        self.layout = layout
        self.plan = plan
        self._token_file = token_file
        self._root_pem = layout.ca.read_bytes()
        shows_certificate = token_file is None or is_bound(read_token(token_file))
        self._credentials = operator_credentials(layout, plan.mesh) if shows_certificate else None
        self._clients: dict[str, PeerClient | RegistryClient] = {}

    async def __aenter__(self) -> AdminClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients.values():
            await client.close()

    def _client(self, target: str) -> PeerClient | RegistryClient:
        """``target``: ``registry``, whichever of its replicas answers, or a region."""
        if target not in self._clients:
            self._clients[target] = self._registries() if target == "registry" else self._core(target)
        return self._clients[target]

    def _registries(self) -> RegistryClient:
        context = self._context(lambda i: isinstance(i, RegistryIdentity))
        return RegistryClient(self.plan.registry_addresses, lambda url: PeerClient(url, context, timeout_s=30.0))

    def _core(self, region: str) -> PeerClient:
        return PeerClient(self.plan.address(region), self.core_context(region), timeout_s=30.0)

    def core_context(self, region: str) -> PeerContext:
        """For connections to Cores of ``region``, whatever way they take."""
        return self._context(lambda i: isinstance(i, CoreIdentity) and i.region == region)

    def _context(self, expected: Callable[[Identity], bool]) -> PeerContext:
        mesh = MeshName(self.plan.mesh)
        if self._credentials is not None:
            return MeshTls(self._credentials, mesh, self._root_pem).client(expected)
        return anonymous_context(trust_pem=self._root_pem, check=mesh_check(mesh, expected), refused=set())

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        target: str = "registry",
        command_id: str | None = None,
        timeout_s: float = 30.0,
    ) -> Any:
        """The JSON answer.  Raises Refused, Unavailable or Integrity as the peer said."""
        headers = {} if command_id is None else {"Idempotency-Key": command_id}
        if self._token_file is not None:
            headers["Authorization"] = f"Bearer {read_token(self._token_file)}"
        raw = None if body is None else strict_json.dumps(body)
        _, answer = await self._client(target).request(method, path, body=raw, headers=headers, timeout_s=timeout_s)
        return strict_json.loads(answer, max_bytes=ANSWER_MAX_BYTES) if answer else None

    async def command(
        self,
        namespace: str,
        kind: str,
        args: dict[str, Any],
        *,
        signers: tuple[Path, ...] = (),
        command_id: str | None = None,
    ) -> Any:
        """Commit one command; ``signers`` are key files whose authority it carries.  Safe to repeat by its id."""
        command_id = command_id or new_command_id()
        return await self.call(
            "POST",
            "/v1/commands",
            {
                "namespace": namespace,
                "kind": kind,
                "args": args,
                "authority": self.authority(namespace, kind, args, command_id, signers),
            },
            command_id=command_id,
        )

    def authority(
        self, namespace: str, kind: str, args: dict[str, Any], command_id: str, signers: tuple[Path, ...]
    ) -> list[Any]:
        """The signatures of ``signers`` over that command, valid for ten minutes."""
        if not signers:
            return []
        envelope = make_authority(
            mesh=self.plan.mesh,
            namespace=namespace,
            command_id=command_id,
            kind=kind,
            args=args,
            not_after=time.time_ns() // 1_000_000 + AUTHORITY_LIFETIME_MS,
            signers=[load_signer(path).signer for path in signers],
        )
        return [strict_json.loads(envelope_to_json(envelope), max_bytes=ANSWER_MAX_BYTES)]

    async def until(self, check: Callable[[], Awaitable[T | None]], *, what: str, timeout_s: float = 60.0) -> T:
        """What ``check`` returns once it is not None.  Raises Unavailable naming ``what`` after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = await check()
            if found is not None:
                return found
            if time.monotonic() >= deadline:
                raise Unavailable("timeout", f"{what} did not happen within {timeout_s:.0f} s; it may still")
            await asyncio.sleep(0.1)


def read_token(path: Path) -> str:
    """The token in a file that only its owner can read; read anew for each request, as somebody may renew it.

    Raises Refused naming the file, and never shows what is in it.
    """
    token = read_private(path, max_bytes=JWS_MAX_CHARS + 2).decode("ascii", "replace").strip()
    if not _TOKEN.fullmatch(token):
        raise Refused.bad_field(path.name, "one token, as its issuer gave it")
    return token


def is_bound(token: str) -> bool:
    """Whether ``token`` says that it goes with a certificate."""
    try:
        confirmation = parse_jws(token).claims.get("cnf")
    except Refused:  # for the server to refuse
        return False
    return isinstance(confirmation, dict) and CERTIFICATE in confirmation


def operator_credentials(layout: Layout, mesh: str) -> Credentials:
    """The operator's certificate, renewed first where half of its day has passed and the mesh's CA is at hand."""
    credentials = Credentials(layout.admin / "operator.pem")
    authority_file = layout.pki / "mesh-ca.pem"
    if authority_file.exists():
        with contextlib.suppress(OSError):  # a directory that may only be read: go on with what is there
            renew_if_due(credentials, authority_file, mesh)
    return credentials


def new_command_id() -> str:
    return "cli-" + os.urandom(12).hex()


def run_with_client(directory: str | None, work: Callable[[AdminClient], Awaitable[T]]) -> T:
    """``work`` with a client of the mesh in ``directory``."""
    layout = Layout(resolve_dir(directory))
    plan = load_plan(layout)

    async def go() -> T:
        token_file = chosen_token_file.get()
        path = None if token_file is None else Path(token_file)
        async with AdminClient(layout, plan, token_file=path) as client:
            return await work(client)

    with saying_what_runs(layout, plan):
        return asyncio.run(go())


@contextlib.contextmanager
def saying_what_runs(layout: Layout, plan: MeshPlan) -> Iterator[None]:
    """Of a mesh on this machine that is not running, say that; not which of its processes did not answer."""
    try:
        yield
    except Unavailable as away:
        if away.code == "unreachable" and plan.hosts is None and ask_supervisor(layout, {"do": "status"}) is None:
            raise Unavailable("unreachable", NOT_RUNNING) from away
        raise


async def wait_for_key(client: AdminClient, tenant: str, key: str, *, version: int = 1, timeout_s: float = 60) -> None:
    """Until ``version`` (or a later one) of ``key`` is the wrapping version."""

    async def active() -> bool | None:
        keys = await client.call("GET", f"/v1/tenants/{tenant}/keys")
        return (
            True if any(k["key"] == key and k["wrapping"] and k["version"] >= version for k in keys["keys"]) else None
        )

    await client.until(active, what=f"{key} version {version} of {tenant} becoming active", timeout_s=timeout_s)


@contextlib.contextmanager
def named_conflict(message: str) -> Iterator[None]:
    """A conflict over what is being made means that it is there: say it in the user's words."""
    try:
        yield
    except Refused as bad:
        if bad.code != "conflict":
            raise
        raise Refused("conflict", message, field=bad.field) from bad
