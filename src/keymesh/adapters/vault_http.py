"""Vault's method ``LIST``, which no parser of HTTP knows: read as GET, told as LIST.

At the start of a request alone, where a client that waits for its answers always stands; within a row of requests that
were sent without waiting it is refused as any unknown method.
"""

from __future__ import annotations

from typing import Final

from keymesh.adapters.face_http import FaceConnection
from keymesh.edge.http1 import Request

LIST: Final = b"LIST"
_WORD: Final = b"LIST "


class VaultConnection(FaceConnection):
    """One connection of a client of Vault."""

    _early = b""  # of a request, too little to say whether it is one
    _lists = False

    def _take(self, data: memoryview | bytes) -> None:
        if not self._in_request:
            whole = self._early + bytes(data)
            if len(whole) < len(_WORD) and _WORD.startswith(whole):
                self._early = whole
                return
            self._early, self._lists = b"", whole.startswith(_WORD)
            data = b"GET " + whole[len(_WORD) :] if self._lists else whole
        super()._take(data)

    def _request(self) -> Request:
        asked = super()._request()
        if self._lists:
            asked.method, self._lists = LIST, False
        return asked
