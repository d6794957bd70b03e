"""``SyncEdge``: the Edge for code without an event loop.

    with SyncEdge.connect(identity="edge.pem", ca="ca.pem", cores=["https://core:8443"], trust="trust.json") as edge:
        created = edge.create_key({"table": "orders"}, plaintext=True)

One background thread keeps the lease fresh and hears revocations; mint and open run in the caller's thread and touch
no network.  Decides nothing.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from keymesh.edge.client import CONNECT_TIMEOUT_S, GONE, Edge, EdgeTrust, worth_waiting
from keymesh.edge.client_elsewhere import Elsewhere
from keymesh.edge.hot import HotPath
from keymesh.edge.hot_lease import CoreHeld, CreatedKey, Octets, refusal
from keymesh.model.errors import Unavailable

T = TypeVar("T")


class Background:
    """An ``Edge`` on an event loop of its own, in one thread."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="keymesh-edge", daemon=True)
        self._thread.start()
        try:
            self.edge: Final = self._result(Edge.connect(**options))
        except BaseException:
            self._end()
            raise

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work`` on the loop; never from that loop, in a fork, or after ``close``."""
        reason = self.edge.hot.reason
        if threading.current_thread() is self._thread or reason in GONE:
            work.close()
            raise refusal(reason or "forked")
        return self._result(work)

    def close(self) -> None:
        """Drop the lease, end the thread.  Doing it twice, or in a fork, does nothing."""
        if self.edge.hot.reason not in GONE:
            self._result(self.edge.close())
            self._end()

    def _result(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        if not self._thread.is_alive():
            self._loop.close()


class SyncEdge:
    """The synchronous face, for any number of threads.  After a fork the child's copy holds nothing: connect anew."""

    def __init__(self, hot: HotPath, background: Background | None = None) -> None:
        """Use ``connect``.  Without a background this is the hot path alone: no network at all."""
        self._hot: Final = hot
        self._mint: Final = hot.create_key
        self._unwrap: Final = hot.decrypt_key
        self._background = background

    @classmethod
    def connect(
        cls,
        *,
        identity: str | Path,
        ca: str | Path,
        cores: Sequence[str],
        trust: EdgeTrust | str | Path,
        elsewhere: Sequence[Elsewhere] = (),
        timeout_s: float = CONNECT_TIMEOUT_S,
        allow_unlocked_memory: bool = False,
    ) -> Self:
        """As ``Edge.connect``, with an event loop of its own in a background thread."""
        background = Background(
            {
                "identity": identity,
                "ca": ca,
                "cores": cores,
                "trust": trust,
                "elsewhere": elsewhere,
                "timeout_s": timeout_s,
                "allow_unlocked_memory": allow_unlocked_memory,
            }
        )
        return cls(background.edge.hot, background)

    def close(self) -> None:
        """As ``Edge.close``; ends the thread."""
        if self._background is not None:
            self._background.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def create_key(self, context: Mapping[str, str] | None = None, *, plaintext: bool = False) -> CreatedKey:
        """As ``Edge.create_key``; no network unless the keys are held at the Core."""
        try:
            return self._mint(context, plaintext)
        except (CoreHeld, Unavailable) as why:
            return self._created(why, 1, context, plaintext)[0]

    def decrypt_key(self, blob: Octets, context: Mapping[str, str] | None = None) -> bytes:
        """As ``Edge.decrypt_key``."""
        try:
            return self._unwrap(blob, context)
        except (CoreHeld, Unavailable) as why:
            return self._opened(why, (blob,), context)[0]

    def create_keys(
        self, count: int, context: Mapping[str, str] | None = None, *, plaintext: bool = False
    ) -> list[CreatedKey]:
        """As ``Edge.create_keys``."""
        try:
            return self._hot.create_keys(count, context, plaintext)
        except (CoreHeld, Unavailable) as why:
            return self._created(why, count, context, plaintext)

    def decrypt_keys(self, blobs: Sequence[Octets], context: Mapping[str, str] | None = None) -> list[bytes]:
        """As ``Edge.decrypt_keys``."""
        try:
            return self._hot.decrypt_keys(blobs, context)
        except (CoreHeld, Unavailable) as why:
            return self._opened(why, tuple(blobs), context)

    @property
    def ready(self) -> bool:
        """Whether a use would find a lease now."""
        return self._hot.is_live()

    def _created(
        self, why: CoreHeld | Unavailable, count: int, context: Mapping[str, str] | None, plaintext: bool
    ) -> list[CreatedKey]:
        if self._background is None or not worth_waiting(why):
            raise why
        return self._background.wait(self._background.edge.create_slowly(why, count, context, plaintext=plaintext))

    def _opened(
        self, why: CoreHeld | Unavailable, blobs: Sequence[Octets], context: Mapping[str, str] | None
    ) -> list[bytes]:
        if self._background is None or not worth_waiting(why):
            raise why
        return self._background.wait(self._background.edge.open_slowly(why, blobs, context))
