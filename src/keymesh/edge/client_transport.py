"""The Edge's requests to its Cores over mTLS HTTP: each outcome is an answer within limits or one of our errors.

Decides how failures of the network translate, and nothing about leases.  L3 bytes of a grant go from the received
buffer into locked pages, are checked against their kids there, and the buffer is wiped; what the TLS and HTTP
libraries copied on the way is theirs (``crypto.pages`` says what Python cannot promise).
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeVar

import aiohttp
from msgspec import Struct

from keymesh.crypto.kid import check_kid, kid_bytes
from keymesh.crypto.pages import KeyPages, SecretBytes
from keymesh.edge.client_tls import EdgeCredentials
from keymesh.edge.hot_lease import CreatedKey
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable
from keymesh.model.ids import check_token
from keymesh.orbital import edge_wire as wire
from keymesh.orbital.edge_messages import LeaseGrant
from keymesh.orbital.wire import MESSAGES

CONNECT_S: Final = 3.0
TOTAL_S: Final = 5.0
CONNECTIONS: Final = 8
SILENCE_S: Final = 3 * wire.STREAM_ALIVE_MS / 1_000
PROBLEM_MAX_BYTES: Final = 64 * 1024
UNREACHED: Final = frozenset({"unreachable", "no-answer", "timeout", "peer-answer"})

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GrantedKeys:
    """A grant whose keys are in locked pages, each the one that its kid names; wipe what is not adopted."""

    grant: LeaseGrant
    secrets: tuple[SecretBytes, ...]

    def wipe(self) -> None:
        for secret in self.secrets:
            secret.wipe()


class _Problem(Struct, frozen=True, kw_only=True):
    code: str
    message: str
    field: str | None = None
    retry_after_ms: int | None = None


class _ProblemBody(Struct, frozen=True, kw_only=True):
    error: _Problem


class CoreTransport:
    """Connections to Cores by base URL.  Made and closed on the event loop that uses it."""

    def __init__(self, credentials: EdgeCredentials, pages: KeyPages) -> None:
        self._credentials = credentials
        self._pages = pages
        self._session: aiohttp.ClientSession | None = None
        self._retired: list[aiohttp.ClientSession] = []

    async def close(self) -> None:
        sessions = [*self._retired, *([self._session] if self._session is not None else [])]
        self._session, self._retired = None, []
        for session in sessions:
            await session.close()

    # --- messages ----------------------------------------------------------------------------------------------

    async def post(self, core: str, message: Any) -> Any:
        """The answer to ``message``: None, a message, or for a lease request also ``GrantedKeys``.

        Raises Unavailable where there was no answer, else what the Core answered.
        """
        body = MESSAGES.encode(message)
        status, kind, content = await self._call("POST", core + wire.MESSAGES_PATH, body, wire.MESSAGE_MAX_BYTES)
        if status == 204 or not content:
            return None
        if kind == wire.GRANT_TYPE:
            return self._take_keys(content)
        return MESSAGES.decode(bytes(content), max_bytes=wire.MESSAGE_MAX_BYTES)

    def _take_keys(self, content: bytearray) -> GrantedKeys:
        secrets: list[SecretBytes] = []
        try:
            body = wire.decode_grant(content)
            for version, key in zip(body.grant.versions, body.keys, strict=True):
                secrets.append(self._pages.put(key))
                check_kid(secrets[-1].reveal(), kid_bytes(version.kid))
        except KeymeshError:
            for secret in secrets:
                secret.wipe()
            raise
        finally:
            content[:] = bytes(len(content))
        return GrantedKeys(body.grant, tuple(secrets))

    @asynccontextmanager
    async def stream(self, core: str) -> AsyncIterator[AsyncIterator[Any]]:
        """The revocation stream, open: an iterator of messages that ends where the Core ends it.

        Raises Unavailable where it breaks off or is silent for too long.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        async with self._exchange("GET", core + wire.STREAM_PATH, None, timeout) as answer:
            if answer.status != 200:
                raise_problem(answer.status, bytes(await _read(answer, PROBLEM_MAX_BYTES)))
            yield _messages(answer)

    async def ready(self, core: str) -> None:
        """A question that carries nothing.  Raises Unavailable where the Core does not answer, or cannot serve."""
        await self._call("GET", core + wire.READY_PATH, None, PROBLEM_MAX_BYTES)

    # --- core-held custody ---------------------------------------------------------------------------------------

    async def create(self, core: str, count: int, context: Mapping[str, str], *, plaintext: bool) -> list[CreatedKey]:
        request = wire.CreateRequest(count=count, context=dict(context), plaintext=plaintext)
        raw = await self._json(core + wire.CREATE_PATH, request)
        answer = _decode(raw, wire.CreateAnswer)
        if len(answer.keys) != count or any((key.plaintext is not None) != plaintext for key in answer.keys):
            raise Integrity("peer-answer", "the Core answered something else than was asked")
        return [
            CreatedKey(
                wire.from_base64("blob", key.blob, max_bytes=256),
                None if key.plaintext is None else wire.from_base64("plaintext", key.plaintext, max_bytes=32),
            )
            for key in answer.keys
        ]

    async def open_keys(self, core: str, blobs: tuple[bytes, ...], context: Mapping[str, str]) -> list[bytes]:
        request = wire.OpenRequest(blobs=tuple(map(wire.to_base64, blobs)), context=dict(context))
        answer = _decode(await self._json(core + wire.OPEN_PATH, request), wire.OpenAnswer)
        if len(answer.plaintexts) != len(blobs):
            raise Integrity("peer-answer", "the Core answered something else than was asked")
        return [wire.from_base64("plaintext", text, max_bytes=32) for text in answer.plaintexts]

    async def renew(self, core: str, csr_pem: str) -> str:
        """The renewed certificate chain (PEM), for the same key and identity."""
        raw = await self._json(core + wire.RENEW_PATH, wire.RenewRequest(csr=csr_pem))
        return _decode(raw, wire.RenewAnswer).chain

    # --- one exchange ------------------------------------------------------------------------------------------

    async def _json(self, url: str, request: Struct) -> bytearray:
        _, _, content = await self._call("POST", url, strict_json.dumps(request), wire.BATCH_BODY_MAX_BYTES)
        return content

    async def _call(
        self, method: str, url: str, body: bytes | None, answer_max_bytes: int
    ) -> tuple[int, str, bytearray]:
        timeout = aiohttp.ClientTimeout(total=TOTAL_S, sock_connect=CONNECT_S)
        async with self._exchange(method, url, body, timeout) as answer:
            content = await _read(answer, answer_max_bytes)
            if not 200 <= answer.status < 300:
                raise_problem(answer.status, bytes(content))
            return answer.status, answer.content_type, content

    @asynccontextmanager
    async def _exchange(
        self, method: str, url: str, body: bytes | None, timeout: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {} if body is None else {"Content-Type": wire.JSON_TYPE}
        session = await self._open()
        try:
            async with session.request(
                method, url, data=body, headers=headers, timeout=timeout, allow_redirects=False
            ) as answer:
                yield answer
        except TimeoutError as late:
            raise Unavailable("timeout", "the Core did not answer in time") from late
        except (aiohttp.ClientConnectorError, ssl.SSLError) as failed:
            raise Unavailable("unreachable", "no connection to the Core") from failed
        except (aiohttp.ClientError, OSError, ValueError) as failed:
            raise Unavailable("no-answer", "the connection to the Core broke") from failed

    async def _open(self) -> aiohttp.ClientSession:
        """The session; a new one where the certificate was renewed, old streams go on in the old one."""
        if self._session is None or self._session.closed or self._credentials.changed():
            if self._session is not None:
                self._retired.append(self._session)
                if len(self._retired) > 2:
                    await self._retired.pop(0).close()
            connector = aiohttp.TCPConnector(ssl=self._credentials.context(), limit=CONNECTIONS, ttl_dns_cache=60)
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept-Encoding"),
            )
        return self._session


async def _messages(answer: aiohttp.ClientResponse) -> AsyncIterator[Any]:
    """Each line's message; empty lines are signs of life.  Raises Refused for a line that is none."""
    rest = bytearray()
    async for chunk in answer.content.iter_any():
        rest += chunk
        *lines, tail = rest.split(b"\n")
        for line in lines:
            if line:
                yield MESSAGES.decode(bytes(line), max_bytes=wire.LINE_MAX_BYTES)
        rest = bytearray(tail)
        if len(rest) > wire.LINE_MAX_BYTES:
            raise Refused.bad_field("line", f"at most {wire.LINE_MAX_BYTES} bytes")


async def _read(answer: aiohttp.ClientResponse, max_bytes: int) -> bytearray:
    content = bytearray()
    async for chunk in answer.content.iter_any():
        content += chunk
        if len(content) > max_bytes:
            answer.close()
            raise Unavailable("peer-answer", f"the Core answered more than {max_bytes} bytes")
    return content


def _decode(raw: bytearray, shape: type[T]) -> T:
    return strict_json.decode(bytes(raw), shape, max_bytes=wire.BATCH_BODY_MAX_BYTES)


def raise_problem(status: int, body: bytes) -> NoReturn:
    """Turn an answer outside 2xx into the error that it stands for.

    By the rules of ``adapters.http_messages``, of which the Edge must not know: the library stands without the room
    of the servers.  The code becomes part of names and is a token; anything else is no problem body.
    """
    try:
        problem = strict_json.decode(body, _ProblemBody, max_bytes=PROBLEM_MAX_BYTES).error
        check_token("code", problem.code)
    except Refused as bad:
        raise Unavailable("peer-answer", f"the Core answered {status} without a problem body") from bad
    if status >= 500 or status == 429:
        raise Unavailable(problem.code, problem.message, retry_after_ms=max(1, problem.retry_after_ms or 1_000))
    if status == 422 and problem.code == "integrity":
        raise Integrity.opaque()
    if 400 <= status < 500:
        raise Refused(problem.code, problem.message, field=problem.field)
    raise Unavailable("peer-answer", f"the Core answered {status}")


async def first_answer(cores: Sequence[str], ask: Callable[[str], Awaitable[T]]) -> T:
    """``ask(core)`` at each Core in order until one is reached.  Raises what a Core answered, or the last failure."""
    failed: Unavailable | None = None
    for core in cores:
        try:
            return await ask(core)
        except Unavailable as unreached:
            if unreached.code not in UNREACHED:
                raise
            failed = unreached
    assert failed is not None
    raise failed
