"""``SyncEdge``: the Edge for code without an event loop.

    with SyncEdge.connect(identity="edge.pem", ca="ca.pem", cores=["https://core:8443"], trust="trust.json") as edge:
        created = edge.create_key({"table": "orders"}, plaintext=True)

One background thread keeps the lease fresh and hears revocations; mint and open run in the caller's thread and touch
no network.  Decides nothing.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from keymesh.edge.client import CONNECT_TIMEOUT_S, GONE, Edge, EdgeTrust, worth_waiting
from keymesh.edge.hot_lease import CoreHeld, CreatedKey, Octets, refusal
from keymesh.model.errors import Unavailable

T = TypeVar("T")


class SyncEdge:
    """The synchronous face, for any number of threads.  After a fork the child's copy holds nothing: connect anew."""

    def __init__(self, edge: Edge, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
        """Use ``connect``."""
        self._edge = edge
        self._loop = loop
        self._thread = thread
        self._mint: Final[Callable[..., CreatedKey]] = edge.hot.create_key
        self._unwrap: Final[Callable[..., bytes]] = edge.hot.decrypt_key
        self.identity: Final = edge.identity

    @classmethod
    def connect(
        cls,
        *,
        identity: str | Path,
        ca: str | Path,
        cores: Sequence[str],
        trust: EdgeTrust | str | Path,
        timeout_s: float = CONNECT_TIMEOUT_S,
        allow_unlocked_memory: bool = False,
    ) -> Self:
        """As ``Edge.connect``, with an event loop of its own in a background thread."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="keymesh-edge", daemon=True)
        thread.start()
        connecting = Edge.connect(
            identity=identity,
            ca=ca,
            cores=cores,
            trust=trust,
            timeout_s=timeout_s,
            allow_unlocked_memory=allow_unlocked_memory,
        )
        try:
            edge = asyncio.run_coroutine_threadsafe(connecting, loop).result()
        except BaseException:
            _end(loop, thread)
            raise
        return cls(edge, loop, thread)

    def close(self) -> None:
        """Drop the lease, end the thread."""
        if self._thread.is_alive():
            self._wait(self._edge.close())
            _end(self._loop, self._thread)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def create_key(self, context: Mapping[str, str] | None = None, *, plaintext: bool = False) -> CreatedKey:
        """As ``Edge.create_key``; no network unless the keys are held at the Core."""
        try:
            return self._mint(context, plaintext)
        except (CoreHeld, Unavailable) as why:
            if not worth_waiting(why):
                raise
            return self._wait(self._edge.create_slowly(why, 1, context, plaintext=plaintext))[0]

    def decrypt_key(self, blob: Octets, context: Mapping[str, str] | None = None) -> bytes:
        """As ``Edge.decrypt_key``."""
        try:
            return self._unwrap(blob, context)
        except (CoreHeld, Unavailable) as why:
            if not worth_waiting(why):
                raise
            return self._wait(self._edge.open_slowly(why, (blob,), context))[0]

    def create_keys(
        self, count: int, context: Mapping[str, str] | None = None, *, plaintext: bool = False
    ) -> list[CreatedKey]:
        """As ``Edge.create_keys``."""
        try:
            return self._edge.hot.create_keys(count, context, plaintext)
        except (CoreHeld, Unavailable) as why:
            if not worth_waiting(why):
                raise
            return self._wait(self._edge.create_slowly(why, count, context, plaintext=plaintext))

    def decrypt_keys(self, blobs: Sequence[Octets], context: Mapping[str, str] | None = None) -> list[bytes]:
        """As ``Edge.decrypt_keys``."""
        try:
            return self._edge.hot.decrypt_keys(blobs, context)
        except (CoreHeld, Unavailable) as why:
            if not worth_waiting(why):
                raise
            return self._wait(self._edge.open_slowly(why, tuple(blobs), context))

    @property
    def ready(self) -> bool:
        return self._edge.ready

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work`` on the background loop; never from that loop, in a fork, or after ``close``."""
        reason = self._edge.hot.reason
        if threading.current_thread() is self._thread or reason in GONE:
            work.close()
            raise refusal(reason or "forked")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5.0)
    if not thread.is_alive():
        loop.close()
