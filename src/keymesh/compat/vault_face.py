"""Vault's HTTP API over the mesh, as far as it is served: who asks, what for, and the answer in Vault's form.

=========================================  ==========================================================  ===============
sys/health, seal-status, init, leader      without a token
sys/mounts, sys/internal/ui/mounts[/M]     the one mount
auth/approle/login, auth/cert/login        -> a token
auth/token/lookup-, renew-, revoke-self    its own
M/encrypt, decrypt, rewrap/NAME            one or ``batch_input``                                      its own right
M/datakey/{plaintext,wrapped}/NAME         a fresh key, wrapped                                        ``datakey``
M/random[/SOURCE][/BYTES]
M/keys, M/keys/NAME                        list, read, create; delete is refused                       read, create
M/keys/NAME/{rotate,config}                                                                            ``rotate``
=========================================  ==========================================================  ===============

The token says which tenant; a key of another looks absent.  PUT is POST, and GET with ``list=true`` is LIST, as there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

import msgspec

from keymesh.compat import vault_sys as system
from keymesh.compat.face import FaceAnswer, FaceRequest
from keymesh.compat.ring import Ring
from keymesh.compat.vault_auth import Auth, Identify, shown_token
from keymesh.compat.vault_form import (
    BODY_MAX_BYTES,
    DENIED,
    UNSUPPORTED_OPERATION,
    UNSUPPORTED_PATH,
    Fields,
    VaultAnswer,
    VaultError,
    envelope,
    errors,
    refusal,
    split_path,
)
from keymesh.compat.vault_keys import TransitKeys
from keymesh.compat.vault_tokens import Denied, Token, Tokens, TooMany
from keymesh.compat.vault_transit import Transit, random_bytes
from keymesh.model.errors import KeymeshError, Refused
from keymesh.model.time import Instant

MOUNT: Final = "transit"
LOGIN_MAX_BYTES: Final = 8 * 1024
_OPERATIONS: Final = frozenset({"encrypt", "decrypt", "rewrap", "datakey", "random", "keys"})
_BEARER: Final = "Bearer "
_UNSAFE: Final = re.compile(r"[^\x20-\x7e]")

Data = tuple[int, dict[str, Any] | None]


class VaultFace:
    """One process's.  ``random``: fresh bytes; ``now``: Unix ms that never go back; ``tenants``: whose keys it has."""

    name: Final = "vault-transit"
    body_max: Final = BODY_MAX_BYTES

    def __init__(
        self,
        ring: Ring,
        tokens: Tokens,
        *,
        mesh: str,
        region: str,
        tenants: Callable[[], Collection[str]],
        identify: Identify,
        random: Callable[[int], bytes],
        now: Callable[[], Instant],
    ) -> None:
        self._ring = ring
        self._tokens = tokens
        self._auth = Auth(tokens, region, identify)
        self._mesh = mesh
        self._tenants = tenants
        self._random = random
        self._now = now

    # --- the frame's side ------------------------------------------------------------------------------------------

    async def answer(self, request: FaceRequest) -> FaceAnswer:
        """Raises nothing but our own bugs."""
        try:
            answer = await self._answer(request)
        except VaultError as bad:
            answer = errors(bad.status, *bad.errors)
        except Denied:
            answer = errors(403, "permission denied")
        except TooMany as many:
            answer = errors(429, str(many))
        except KeymeshError as bad:
            answer = refusal(bad)
        return _encoded(answer, _operation(request.path))

    def refuse(self, status: int, code: str, message: str) -> FaceAnswer:
        """What the frame itself has to say."""
        return _encoded(errors(status, f"{message} [{code}]"), "refused")

    # --- who asks --------------------------------------------------------------------------------------------------

    async def _answer(self, request: FaceRequest) -> VaultAnswer:
        path, query = split_path(request.path, request.query)
        method = _method(request.method, query)
        if request.header("x-vault-wrap-ttl") not in (None, "", "0", "0s"):
            raise VaultError(400, "X-Vault-Wrap-TTL: answers are not wrapped here")
        open_to_all = self._without_token(method, path, query)
        if open_to_all is not None:
            return open_to_all
        if path[:1] == ("auth",) and path[2:] == ("login",) and method == "POST":
            asked = Fields.of(request.body, max_bytes=LOGIN_MAX_BYTES)
            peer, certificate = request.peer, request.certificate
            auth, token = self._auth.login(path[1:], asked, certificate=certificate, peer=peer, now=self._now())
            try:
                _check_namespace(request, token)
            except VaultError:
                self._auth.revoke(auth["client_token"])
                raise
            return self._whole((200, None), asked, auth=auth)
        secret = _token_of(request)
        token = self._tokens.find(secret, now=self._now())
        _check_namespace(request, token)
        asked = Fields.of(request.body)  # read for who has a token alone
        match path:
            case ("auth", "token", own):
                return self._own(method, own, secret, token, asked)
            case ("sys", *rest):
                return self._system(method, tuple(rest))
            case (mounted, *rest) if mounted == MOUNT and rest:
                return self._whole(await self._transit(method, tuple(rest), token, asked), asked)
        raise VaultError(404, f'no handler for route "{_shown("/".join(path))}". route entry not found.')

    def _own(self, method: str, path: str, secret: str, token: Token, asked: Fields) -> VaultAnswer:
        """What a token may ask of itself."""
        match method, path:
            case ("GET" | "POST", "lookup-self"):
                return self._whole((200, shown_token(secret, token, self._now())), asked)
            case ("POST", "renew-self"):
                return self._whole((200, None), asked, auth=self._auth.renew(secret, token, asked, self._now()))
            case ("POST", "revoke-self"):
                self._auth.revoke(secret)
                return VaultAnswer(204)
        raise VaultError(403, DENIED)

    def _whole(self, data: Data, asked: Fields, *, auth: Mapping[str, Any] | None = None) -> VaultAnswer:
        status, shown = data
        return VaultAnswer(status, envelope(self._request_id(), shown, auth=auth, warnings=asked.warnings()))

    def _request_id(self) -> str:
        text = self._random(16).hex()
        return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))

    # --- sys -------------------------------------------------------------------------------------------------------

    def _state(self) -> str:
        """Of all that is hosted here."""
        hosted = [(tenant, service) for tenant in sorted(self._tenants()) for service in self._ring.services(tenant)]
        if not hosted:
            return system.STANDBY
        return system.ACTIVE if any(self._ring.versions(*names) for names in hosted) else system.SEALED

    def _without_token(self, method: str, path: tuple[str, ...], query: Mapping[str, str]) -> VaultAnswer | None:
        if path[:1] != ("sys",) or method not in ("GET", "HEAD"):
            return None
        match path[1:]:
            case ("health",):
                status, body = system.health(self._state(), query, mesh=self._mesh, now_s=self._now() // 1_000)
                return VaultAnswer(status, body)
            case ("seal-status",):
                return VaultAnswer(200, system.seal_status(self._state(), self._mesh))
            case ("init",):
                return VaultAnswer(200, {"initialized": True})
            case ("leader",):
                return VaultAnswer(200, {"ha_enabled": False})
        return None

    def _system(self, method: str, path: tuple[str, ...]) -> VaultAnswer:
        mounts = {f"{MOUNT}/": system.mount(MOUNT)}
        none = Fields({})
        if method == "GET":
            match path:
                case ("mounts",):
                    whole = self._whole((200, dict(mounts)), none)
                    return VaultAnswer(200, {**mounts, **(whole.body or {})})
                case ("internal", "ui", "mounts"):
                    return self._whole((200, {"auth": {}, "secret": mounts}), none)
                case ("internal", "ui", "mounts", name, *_) if name == MOUNT:
                    return self._whole((200, system.mount(MOUNT)), none)
        raise VaultError(403, DENIED)

    # --- transit ---------------------------------------------------------------------------------------------------

    async def _transit(self, method: str, path: tuple[str, ...], token: Token, asked: Fields) -> Data:
        match path:
            case ("encrypt" | "decrypt" | "rewrap" as what, name):
                _need(method, "POST")
                transit = self._of(token, what, name)
                work = {"encrypt": transit.encrypt, "decrypt": transit.decrypt, "rewrap": transit.rewrap}[what]
                return await work(asked)
            case ("datakey", kind, name):
                _need(method, "POST")
                transit = self._of(token, "datakey", name)
                if kind not in ("plaintext", "wrapped"):
                    raise VaultError(400, "Invalid path, must be 'plaintext' or 'wrapped'")
                return 200, await transit.data_key(asked, plaintext=kind == "plaintext")
            case ("random", *rest) if len(rest) <= 2:
                _need(method, "POST")
                return 200, {"random_bytes": self._random_bytes(rest, asked)}
            case ("keys", *rest):
                return await self._keys(method, rest, token, asked)
        raise VaultError(404, UNSUPPORTED_PATH)

    def _of(self, token: Token, right: str, name: str) -> Transit:
        if not token.may(right, name):
            raise VaultError(403, DENIED)
        try:
            return Transit(self._ring, token.grant.tenant, name, self._random)
        except Refused as absent:
            if absent.code not in ("not-found", "bad-field"):
                raise
            raise VaultError(400, "encryption key not found") from absent

    def _random_bytes(self, rest: Sequence[str], asked: Fields) -> str:
        """``rest``: a source, a number of bytes, or both."""
        count = rest[-1] if rest and rest[-1].isascii() and rest[-1].isdigit() else None
        named = rest if count is None else rest[:-1]
        if len(named) > 1:
            raise VaultError(404, UNSUPPORTED_PATH)
        return random_bytes(asked, count, named[0] if named else None, self._random)

    async def _keys(self, method: str, path: Sequence[str], token: Token, asked: Fields) -> Data:
        keys = TransitKeys(self._ring, token.grant.tenant)
        match method, *path:
            case ["LIST"]:
                if not token.may("read", None):
                    raise VaultError(403, DENIED)
                return 200, {"keys": keys.names(token)}
            case ["GET" | "POST" | "DELETE", name]:
                if not token.may("read" if method == "GET" else "create", name):
                    raise VaultError(403, DENIED)
                if method == "DELETE":
                    keys.delete(name)
                return 200, await (keys.read(name) if method == "GET" else keys.create(name, asked))
            case ["POST", name, "rotate" | "config" as what]:
                if not token.may("rotate", name):
                    raise VaultError(403, DENIED)
                return 200, await (keys.rotate(name) if what == "rotate" else keys.configure(name, asked))
            case [_] | [_, _] | [_, _, "rotate" | "config"]:
                raise VaultError(405, UNSUPPORTED_OPERATION)
        raise VaultError(404, UNSUPPORTED_PATH)


def _method(method: str, query: Mapping[str, str]) -> str:
    if method == "GET" and query.get("list", "false") == "true":
        return "LIST"
    return "POST" if method == "PUT" else method


def _need(method: str, *methods: str) -> None:
    if method not in methods:
        raise VaultError(405, UNSUPPORTED_OPERATION)


def _token_of(request: FaceRequest) -> str:
    """The secret that came along; empty where there is none."""
    secret = request.header("x-vault-token")
    if secret is None and (bearer := request.header("authorization") or "").startswith(_BEARER):
        secret = bearer.removeprefix(_BEARER)
    return secret or ""


def _check_namespace(request: FaceRequest, token: Token) -> None:
    """A namespace may be named, if it is the token's tenant.  Raises VaultError."""
    named = (request.header("x-vault-namespace") or "").strip("/")
    if named not in ("", "root", token.grant.tenant):
        raise VaultError(404, "X-Vault-Namespace: a token's namespace is its tenant, which need not be named")


def _shown(text: str) -> str:
    return _UNSAFE.sub("?", text[:128])


def _operation(path: str) -> str:
    """A word of few, for logs and metrics."""
    match path.split("/", 4)[2:4]:
        case [area, what] if area == MOUNT and what in _OPERATIONS:
            return what
        case ["auth" | "sys" as area, *_]:
            return area
    return "other"


def _encoded(answer: VaultAnswer, operation: str) -> FaceAnswer:
    body = b"" if answer.body is None else msgspec.json.encode(answer.body) + b"\n"
    return FaceAnswer(status=answer.status, body=body, operation=operation)
