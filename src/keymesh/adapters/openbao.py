"""A client of OpenBao: ordered endpoints, login and renewal, and what its answers mean.

Decides which answers are OpenBao's own word (``BaoRefused``, with a reason) and that all others are silence
(``Unavailable``); not what a reason means for a root key, a key store or a seal.  An endpoint that was never reached,
is sealed or stands by is passed over; a call that may have been carried out is repeated elsewhere only where
repeating does no harm.

Only the active node of a cluster is asked: since 2.5 a standby answers reads, and decrypts, from what it last heard,
even when it is cut off from the others, and so would go on serving long after its owner said no.  So ``endpoints``
name every node, not a load balancer, unless that leads to the active node alone.

No word of the server is quoted in an error, since a hostile one could say our token.
Source: OpenBao's HTTP API, version 2 (status codes, ``auth``, ``errors``).
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Final, NoReturn, Self, TypeVar

import msgspec

from keymesh.adapters.http_client import PeerClient
from keymesh.adapters.openbao_login import Login, Secret
from keymesh.model import strict_json
from keymesh.model.errors import KeymeshError, Refused, Unavailable

TIMEOUT_S: Final = 5.0
ANSWER_MAX_BYTES: Final = 2 * 1024 * 1024
ENDPOINTS_MAX: Final = 8
CONNECTIONS: Final = 16
PATIENCE_S: Final = 10.0  # after which no further endpoint is tried
ACTIVE_FOR_S: Final = 1.0
GIVE_BACK_S: Final = 1.0
RENEW_AT: Final = 2 / 3  # of a token's life
_SEGMENT: Final = r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}"
_MOUNT: Final = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT}){{0,7}}")
_NAME: Final = re.compile(_SEGMENT)
_THROTTLED_MS: Final = 2_000

A = TypeVar("A")
T = TypeVar("T")


class Why(Enum):
    """What OpenBao said no to.  The value is the error's code."""

    DENIED = "denied"
    LOGIN = "login-refused"
    ABSENT = "not-found"
    NO_MOUNT = "no-such-mount"
    NO_KEY = "no-such-key"
    KEY_DELETED = "key-deleted"
    VERSION_WITHDRAWN = "key-version-withdrawn"
    NOT_OPENED = "not-opened"
    CHANGED = "changed-meanwhile"
    OTHER = "refused"


# Phrases of a 400 or 404, as version 2 words them; what is in none of them is Why.OTHER (or ABSENT).
_PHRASES: Final = (
    ("no handler for route", Why.NO_MOUNT),
    ("encryption key not found", Why.NO_KEY),
    ("soft-deleted key", Why.KEY_DELETED),
    ("disallowed by policy (too old)", Why.VERSION_WITHDRAWN),
    ("message authentication failed", Why.NOT_OPENED),
    ("invalid ciphertext", Why.NOT_OPENED),
    ("check-and-set parameter did not match", Why.CHANGED),
    ("invalid role or secret id", Why.LOGIN),
    ("invalid certificate or no client certificate", Why.LOGIN),
)


class BaoRefused(Refused):
    """OpenBao's own no."""

    def __init__(self, why: Why) -> None:
        super().__init__(why.value, f"OpenBao refused: {why.value}")
        self.why = why


class _NotHere(Unavailable):
    """This endpoint did nothing: try the next."""


class _Auth(msgspec.Struct, frozen=True):
    client_token: Annotated[str, msgspec.Meta(pattern=r"^[!-~]{1,2048}\Z")]
    lease_duration: Annotated[int, msgspec.Meta(ge=0, le=2**32)]
    renewable: bool


class _Envelope(msgspec.Struct, frozen=True):
    data: Any = None
    auth: _Auth | None = None
    errors: list[str] | None = None


@dataclass(frozen=True, slots=True)
class _Token:
    secret: Secret
    life_s: float
    renew_at_s: float
    ends_at_s: float
    renewable: bool


def check_mount(field: str, path: str) -> str:
    """A mount's path, as ``transit`` or ``team/transit``.  Raises Refused naming ``field``."""
    if not _MOUNT.fullmatch(path):
        raise Refused.bad_field(field, "up to 8 names of letters, digits, - and _, with / between them")
    return path


def check_name(field: str, name: str) -> str:
    """The name of a key or role.  Raises Refused naming ``field``."""
    if not _NAME.fullmatch(name):
        raise Refused.bad_field(field, "1..63 letters, digits, - and _")
    return name


def shaped(data: Any, shape: type[T]) -> T:
    """``data`` of an answer as a ``shape``.  Raises Unavailable where it is something else."""
    try:
        return msgspec.convert(data, shape, strict=True)
    except msgspec.ValidationError:
        raise _nonsense() from None


def _nonsense() -> Unavailable:
    return Unavailable("openbao-answer", "OpenBao answered something else")


class OpenBao:
    """One OpenBao behind ``endpoints`` (``https://host:port``), in the order in which they are tried.

    ``tls`` verifies the server's host name and shows the client's certificate (``Credentials.foreign_context``): one
    context for all endpoints, or one for each.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        tls: ssl.SSLContext | Sequence[ssl.SSLContext],
        login: Login,
        *,
        timeout_s: float = TIMEOUT_S,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 < len(endpoints) <= ENDPOINTS_MAX:
            raise Refused.bad_field("endpoints", f"1..{ENDPOINTS_MAX}")
        contexts = [tls] * len(endpoints) if isinstance(tls, ssl.SSLContext) else tls
        self._peers = [
            PeerClient(url, context, timeout_s=timeout_s, connections=CONNECTIONS, answer_max_bytes=ANSWER_MAX_BYTES)
            for url, context in zip(endpoints, contexts, strict=True)
        ]
        self._login: Final = login
        self._monotonic_s: Final = monotonic_s
        self._token: _Token | None = None
        self._active_until_s: dict[PeerClient, float] = {}
        self._one_login = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Give the token back where that is quickly done, and hang up."""
        held, self._token = self._token, None
        if held is not None:
            await self._give_back(held)
        for peer in self._peers:
            await peer.close()

    async def call(self, method: str, path: str, body: Any = None, *, repeatable: bool = True) -> Any:
        """``data`` of the answer to ``/v1/<path>`` (None where it has none); ``path`` is of checked names.

        With ``repeatable`` False nothing is sent twice once it may have been carried out.  Raises BaoRefused (denied
        only after a new login), Unavailable: ``sealed``, ``standby``, ``throttled``, ``openbao-answer``,
        ``credentials`` (what we log in with cannot be read) and ``PeerClient``'s.
        """
        token = await self._valid_token()
        try:
            return (await self._ask(method, path, body, token.secret, repeatable=repeatable)).data
        except BaoRefused as refused:
            if refused.why is not Why.DENIED:
                raise
        token = await self._valid_token(instead_of=token)
        return (await self._ask(method, path, body, token.secret, repeatable=repeatable)).data

    async def read(self, path: str) -> tuple[bool, Any]:
        """(found, data): a version that was deleted is not found, and its data tell which one."""
        token = await self._valid_token()
        for again in (True, False):
            try:
                answer = await self._ask("GET", path, None, token.secret, repeatable=True, may_miss=True)
                return answer.errors is None, answer.data
            except BaoRefused as refused:
                if refused.why is not Why.DENIED or not again:
                    raise
                token = await self._valid_token(instead_of=token)
        raise AssertionError("the second round answers or raises")

    # --- tokens ------------------------------------------------------------------------------------------------------

    async def _valid_token(self, *, instead_of: _Token | None = None) -> _Token:
        """The token to show now: the one held, renewed or fetched anew; never ``instead_of``."""
        async with self._one_login:
            held = self._token
            if held is instead_of and held is not None:
                self._token = None
                await self._give_back(held)
            if self._token is None or self._monotonic_s() >= self._token.ends_at_s:
                self._token = await self._logged_in()
            elif self._monotonic_s() >= self._token.renew_at_s:
                self._token = await self._kept_alive(self._token)
            return self._token

    async def _kept_alive(self, held: _Token) -> _Token:
        """``held`` renewed, or a new one where it can be renewed no further; itself to its end where nobody answers."""
        try:
            return await self._renewed(held) or await self._logged_in()
        except Unavailable:
            return held

    async def _give_back(self, token: _Token) -> None:
        """So that the tokens of a client that is told no do not pile up at the server until they end."""
        with suppress(KeymeshError, TimeoutError):
            async with asyncio.timeout(GIVE_BACK_S):
                await self._ask("POST", "auth/token/revoke-self", {}, token.secret, repeatable=False)

    async def _logged_in(self) -> _Token:
        try:
            path, body = self._login.request()
        except Refused as unreadable:  # our own fault, and no word of OpenBao's
            raise Unavailable("credentials", unreadable.message) from None
        sent_at = self._monotonic_s()
        try:
            answer = await self._ask("POST", path, body, None, repeatable=True)
        except BaoRefused as refused:
            if refused.why in (Why.DENIED, Why.LOGIN, Why.NO_MOUNT):
                raise BaoRefused(Why.LOGIN) from None
            raise
        if answer.auth is None:
            raise _nonsense()
        return _token_of(answer.auth, sent_at)

    async def _renewed(self, held: _Token) -> _Token | None:
        """``held`` with a new end; None where a login is due.  Raises Unavailable."""
        if not held.renewable:
            return None
        sent_at = self._monotonic_s()
        try:
            answer = await self._ask("POST", "auth/token/renew-self", {}, held.secret, repeatable=True)
        except BaoRefused:
            return None
        if answer.auth is None:
            raise _nonsense()
        renewed = _token_of(answer.auth, sent_at)
        return renewed if renewed.life_s > held.life_s / 2 else None  # it nears its greatest age

    # --- one call ----------------------------------------------------------------------------------------------------

    async def _ask(
        self, method: str, path: str, body: Any, token: Secret | None, *, repeatable: bool, may_miss: bool = False
    ) -> _Envelope:
        content = None if body is None else strict_json.dumps(body)
        headers = {"X-Vault-Request": "true", "Content-Type": "application/json"}
        if token is not None:
            headers["X-Vault-Token"] = token.reveal()
        silent: Unavailable | None = None
        started_s = self._monotonic_s()
        for peer in self._peers:
            if silent is not None and self._monotonic_s() - started_s >= PATIENCE_S:
                break
            try:
                await self._check_active(peer)
                status, raw = await peer.fetch(method, f"/v1/{path}", content, headers=headers)
                return _understood(status, raw, may_miss=may_miss)
            except Unavailable as away:
                self._active_until_s.pop(peer, None)
                # Without its cause: the HTTP library's errors may carry the headers that we sent.
                silent = Unavailable(away.code, away.message, retry_after_ms=away.retry_after_ms)
                if away.code == "throttled":
                    break
                if not (repeatable or isinstance(away, _NotHere) or away.code == "unreachable"):
                    break
        assert silent is not None
        raise silent from None

    async def _check_active(self, peer: PeerClient) -> None:
        """Raises _NotHere unless the node behind ``peer`` said within the last second that it is the active one."""
        if self._monotonic_s() < self._active_until_s.get(peer, 0.0):
            return
        asked_at_s = self._monotonic_s()
        try:
            status, _ = await peer.fetch("GET", "/v1/sys/health", headers={})
        except Unavailable as away:
            raise _NotHere(away.code, away.message) from None
        if status in (429, 472, 473):
            raise _NotHere("standby", "OpenBao stands by")
        if status in (501, 503):
            raise _NotHere("sealed", "OpenBao is sealed")
        if status != 200:
            raise _NotHere("openbao-answer", f"OpenBao's health is {status}")
        self._active_until_s[peer] = asked_at_s + ACTIVE_FOR_S


def _token_of(auth: _Auth, sent_at_s: float) -> _Token:
    """Its life counts from when we asked; a life of 0 has no end."""
    life_s = float(auth.lease_duration) if auth.lease_duration > 0 else float("inf")
    return _Token(
        secret=Secret(auth.client_token),
        life_s=life_s,
        renew_at_s=sent_at_s + life_s * RENEW_AT,
        ends_at_s=sent_at_s + life_s,
        renewable=auth.renewable,
    )


def _understood(status: int, raw: bytes, *, may_miss: bool) -> _Envelope:
    """The answer, or what it stands for.  Raises BaoRefused, Unavailable."""
    if status in (307, 308, 473):
        raise _NotHere("standby", "OpenBao stands by and did not forward")
    if status == 204:
        return _Envelope()
    try:
        answer = msgspec.json.decode(raw, type=_Envelope)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise _nonsense() from None
    if status == 404 and may_miss and not answer.errors:
        return msgspec.structs.replace(answer, errors=[])
    if not 200 <= status < 300 or answer.errors is not None:
        _raise_refusal(status, answer.errors)
    return answer


def _raise_refusal(status: int, errors: list[str] | None) -> NoReturn:
    text = " ".join(errors or ()).lower()
    if status == 503 and "sealed" in text:
        raise _NotHere("sealed", "OpenBao is sealed")
    if status == 429:
        if errors is None:  # the health answer of one that stands by
            raise _NotHere("standby", "OpenBao stands by and did not forward")
        raise Unavailable("throttled", "OpenBao answers no more calls for now", retry_after_ms=_THROTTLED_MS)
    if errors is None or status not in (400, 403, 404):
        raise Unavailable("openbao-answer", f"OpenBao answered {status}")
    if status == 403:
        raise BaoRefused(Why.DENIED)
    found = next((why for phrase, why in _PHRASES if phrase in text), None)
    raise BaoRefused(found or (Why.ABSENT if status == 404 else Why.OTHER))


async def gather_bounded(work: Callable[[A], Awaitable[T]], items: Sequence[A]) -> list[T]:
    """``work`` of each, as many at once as there are connections; the first that fails ends the others."""
    slots = asyncio.Semaphore(CONNECTIONS)

    async def one(item: A) -> T:
        async with slots:
            return await work(item)

    tasks = [asyncio.ensure_future(one(item)) for item in items]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
