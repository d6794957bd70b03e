"""Calls to an etcd cluster over its JSON gateway: a bounded pool of connections, fail-over, and what a failure means.

Decides which failures leave an outcome open: a write is sent at most once, and once it has been sent only an answer
settles it.  Reads are asked of every endpoint before they fail.  A new connection greets its member first, so that a
certificate that is refused, a member without a leader, or another cluster is found out before anything depends on it.
TLS 1.3 with a client certificate always; the trust is what the caller gives, never the environment's.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlsplit

import msgspec

from keymesh.adapters import etcd_wire as wire
from keymesh.adapters.etcd_http import Broken, JsonConnection
from keymesh.control.log import UnknownOutcome
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable

ENDPOINTS_MAX: Final = 9
WAITING_MAX: Final = 1_024
_INVALID, _EXHAUSTED, _OUT_OF_RANGE = 3, 8, 11
_DENIED: Final = frozenset({7, 16})
_NO_TIME: Final = "etcd did not answer in time"

T = TypeVar("T")


class Compacted(Exception):
    """The revision that was asked for is no longer kept: begin again with a newer one."""


class _Answered(Exception):
    """etcd answered, but not with what was asked for."""

    def __init__(self, failure: wire.Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def client_context(*, trust_pem: bytes, identity_file: Path, key_file: Path | None = None) -> ssl.SSLContext:
    """For members whose certificate names their host and ends in one of ``trust_pem``.

    ``identity_file`` holds our leaf and intermediates, and our key unless that is in ``key_file``.  Raises Refused.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = True
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION
    try:
        context.load_verify_locations(cadata=trust_pem.decode("ascii"))
        context.load_cert_chain(identity_file, key_file)
    except (ssl.SSLError, ValueError) as bad:
        raise Refused.bad_field("certificate", "not PEM of a trust root, or not of a key and its certificate") from bad
    except OSError as bad:
        raise Unavailable("storage", f"the certificate cannot be read: {bad}") from bad
    return context


class _Endpoint:
    __slots__ = ("host", "idle", "port", "tls", "url")

    def __init__(self, url: str, tls: ssl.SSLContext) -> None:
        if tls.verify_mode is not ssl.CERT_REQUIRED or not tls.check_hostname:
            raise Refused.bad_field("tls", "a context that verifies certificate and host")
        parts = urlsplit(url)
        if parts.scheme != "https" or parts.hostname is None or parts.port is None or parts.path not in ("", "/"):
            raise Refused.bad_field("endpoints", f"https://host:port, got {url[:128]!r}")
        self.url, self.host, self.port = url, parts.hostname, parts.port
        self.tls = tls
        self.idle: list[JsonConnection] = []

    def shut(self) -> None:
        while self.idle:
            self.idle.pop().close()


class EtcdClient:
    """``endpoints`` are tried in order; one that failed comes last from then on.  At most ``connections`` at a time.

    ``tls``: one context for all endpoints, or one for each.  ``cluster``: the id of the only cluster that is believed;
    without it that of the first that answers.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        tls: ssl.SSLContext | Sequence[ssl.SSLContext],
        cluster: int | None = None,
        connections: int = 16,
        timeout_s: float = 3.0,
        connect_s: float = 1.0,
    ) -> None:
        if not 1 <= len(endpoints) <= ENDPOINTS_MAX:
            raise Refused.bad_field("endpoints", f"1 to {ENDPOINTS_MAX}, got {len(endpoints)}")
        contexts = [tls] * len(endpoints) if isinstance(tls, ssl.SSLContext) else tls
        if len(contexts) != len(endpoints):
            raise Refused.bad_field("tls", f"one context, or one for each of {len(endpoints)} endpoints")
        self._order = [_Endpoint(url, context) for url, context in zip(endpoints, contexts, strict=True)]
        self._timeout_s = timeout_s
        self._connect_s = connect_s
        self._free = asyncio.Semaphore(connections)
        self._waiting = 0
        self._cluster = cluster
        self._closed = False

    def close(self) -> None:
        """Idle connections end at once, the others with their exchange; further calls are Unavailable."""
        self._closed = True
        for endpoint in self._order:
            endpoint.shut()

    async def read(self, body: bytes) -> wire.TxnAnswer:
        """The answer of whichever endpoint gives one to a transaction of ranges only.

        Raises Compacted; Unavailable once every endpoint has failed; Integrity for another cluster.
        """
        reason = ""
        for _ in range(len(self._order)):
            async with self._connection() as (endpoint, connection):
                try:
                    return await self._exchange(connection, wire.TXN, body, wire.TxnAnswer)
                except _Answered as answered:
                    code, reason = answered.failure.code, answered.failure.message
                    if code == _OUT_OF_RANGE:
                        raise Compacted from answered
                    if code in _DENIED or code == _INVALID:
                        raise Unavailable("etcd-refused", reason) from answered
                except (Broken, TimeoutError) as failed:
                    reason = str(failed) or _NO_TIME
                connection.close()
                self._put_last(endpoint)
        raise Unavailable("etcd", f"no member could answer: {reason}")

    async def write(self, body: bytes) -> wire.TxnAnswer:
        """One transaction, sent once.

        Raises Unavailable (surely not carried out), Refused (no cluster of this configuration takes it),
        UnknownOutcome; Integrity for another cluster.
        """
        async with self._connection() as (endpoint, connection):
            try:
                return await self._exchange(connection, wire.TXN, body, wire.TxnAnswer)
            except _Answered as answered:
                settled = _settled(answered.failure)
                if settled is not None:
                    raise settled from answered
                reason = answered.failure.message
            except (Broken, TimeoutError) as failed:
                reason = str(failed) or _NO_TIME
            connection.close()
            self._put_last(endpoint)
            raise UnknownOutcome("unknown-outcome", f"the append was sent and not answered: {reason}")

    # --- connections -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[tuple[_Endpoint, JsonConnection]]:
        """A connection of our own for one exchange; it is kept for the next one unless the exchange failed."""
        await self._take_turn()
        try:
            endpoint, connection = await self._connect()
            try:
                yield endpoint, connection
            except KeymeshError:
                self._keep(endpoint, connection)
                raise
            except BaseException:  # in the middle of an exchange: what comes next on it is anybody's guess
                connection.close()
                raise
            self._keep(endpoint, connection)
        finally:
            self._free.release()

    async def _take_turn(self) -> None:
        if self._closed:
            raise Unavailable("etcd", "the log is closed")
        if self._waiting >= WAITING_MAX:
            raise Unavailable("busy", f"{WAITING_MAX} calls are waiting for a connection")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._free.acquire()
        except TimeoutError as late:
            raise Unavailable("busy", "no connection became free in time") from late
        finally:
            self._waiting -= 1

    async def _connect(self) -> tuple[_Endpoint, JsonConnection]:
        reasons = []
        for endpoint in list(self._order):
            while endpoint.idle:
                connection = endpoint.idle.pop()
                if connection.usable:
                    return endpoint, connection
                connection.close()
            try:
                return endpoint, await self._greeted(endpoint)
            except (Broken, _Answered, OSError) as failed:  # TimeoutError is an OSError
                reasons.append(f"{endpoint.url}: {str(failed) or type(failed).__name__}")
                self._put_last(endpoint)
        raise Unavailable("etcd-unreachable", "; ".join(reasons))

    async def _greeted(self, endpoint: _Endpoint) -> JsonConnection:
        async with asyncio.timeout(self._connect_s):
            connection = await JsonConnection.open(endpoint.host, endpoint.port, tls=endpoint.tls)
            try:
                status = await self._exchange(connection, wire.STATUS, b"{}", wire.Status)
                if status.leader == 0:
                    raise Broken("this member knows no leader")
                self._cluster = self._cluster or status.header.cluster_id
                if status.header.cluster_id != self._cluster:
                    raise Integrity("foreign-cluster", f"{endpoint.url} is of another cluster", field="endpoints")
            except BaseException:
                connection.close()
                raise
        return connection

    async def _exchange(self, connection: JsonConnection, path: str, body: bytes, shape: type[T]) -> T:
        async with asyncio.timeout(self._timeout_s):
            status, content = await connection.post(path, body)
        try:
            if status == 200:
                return msgspec.json.decode(content, type=shape, strict=False)
            failure = msgspec.json.decode(content, type=wire.Failure, strict=False)
        except (msgspec.MsgspecError, ValueError) as bad:
            raise Broken(f"not etcd's answer (HTTP status {status})") from bad
        raise _Answered(failure)

    def _keep(self, endpoint: _Endpoint, connection: JsonConnection) -> None:
        if self._closed or not connection.usable or endpoint is not self._order[0]:
            connection.close()
        else:
            endpoint.idle.append(connection)

    def _put_last(self, endpoint: _Endpoint) -> None:
        """Ask the others first.  Its idle connections are worth no more than the one that failed."""
        endpoint.shut()
        self._order.remove(endpoint)
        self._order.append(endpoint)


def _settled(failure: wire.Failure) -> KeymeshError | None:
    """What a refused write raises, or None where it may have been carried out all the same."""
    too_large = "larger than max" in failure.message
    if failure.code == _INVALID or (failure.code == _EXHAUSTED and too_large):
        return Refused("etcd-limit", failure.message, field="entries")
    if failure.code == _EXHAUSTED:
        full = "space exceeded" in failure.message
        return Unavailable("disk-full" if full else "busy", failure.message)
    if failure.code in _DENIED:
        return Unavailable("etcd-refused", failure.message)
    return None
