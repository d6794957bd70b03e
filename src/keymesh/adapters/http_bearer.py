"""Bearer tokens (RFC 6750) at the HTTP server: who a request is from, by certificate, by token, or both in agreement.

Decides which header is a token, and that a token accepted on a connection need not be verified again on the same one;
whether it is accepted is the ``TokenCheck``'s to say.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary

from keymesh.access.identity import Identity
from keymesh.access.token_people import agrees
from keymesh.access.tokens import Channel, refusal
from keymesh.adapters.http_messages import Route
from keymesh.adapters.tls import Peer, PeerSSLObject
from keymesh.model.errors import Refused

_BEARER: Final = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)


class Accepted(Protocol):
    """A token that was accepted."""

    @property
    def identity(self) -> Identity: ...


class TokenCheck(Protocol):
    """Who decides about tokens."""

    async def accept(self, token: str, channel: Channel) -> Accepted:
        """Raises ``tokens.refusal()``, whatever is wrong with it."""
        ...

    def still_accepts(self, accepted: Any) -> bool:
        """Whether that token, or what it was verified with, is still good."""
        ...


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a request is from.  Both None: whoever can open the Unix socket."""

    peer: Peer | None
    accepted: Accepted | None

    @property
    def name(self) -> str:
        """For the log."""
        if self.peer is not None:
            return self.peer.uri
        return "" if self.accepted is None else str(self.accepted.identity)

    def bearer_on(self, route: Route) -> Identity | None:
        """Whom the token names, on a route that takes tokens.  Raises Refused where nothing else names anybody."""
        if self.accepted is None or route.takes_tokens:
            return None if self.accepted is None else self.accepted.identity
        if self.peer is None:
            raise Refused("unauthenticated", "needs a certificate")
        return None


class Connections:
    """The token that each open connection has shown last."""

    def __init__(self, check: TokenCheck) -> None:
        self._check = check
        self._shown: WeakKeyDictionary[PeerSSLObject, tuple[bytes, Accepted]] = WeakKeyDictionary()

    async def caller(self, tls: PeerSSLObject, authorization: Sequence[str]) -> Caller:
        """Raises Refused: no certificate and no token, or a token that is not accepted, or not the certificate's."""
        if not authorization:
            if tls.peer is None:
                raise Refused("unauthenticated", "neither a certificate nor a token")
            return Caller(tls.peer, None)
        found = _BEARER.fullmatch(authorization[0])
        if len(authorization) != 1 or found is None:
            raise refusal()
        accepted = await self._accepted(tls, found[1])
        if not agrees(None if tls.peer is None else tls.peer.identity, accepted.identity):
            raise refusal()
        if tls.peer is not None and tls.peer.identity is None:
            raise refusal()
        return Caller(tls.peer, accepted)

    async def _accepted(self, tls: PeerSSLObject, token: str) -> Accepted:
        digest = hashlib.sha256(token.encode()).digest()
        known = self._shown.get(tls)
        if known is not None and known[0] == digest:
            if self._check.still_accepts(known[1]):
                return known[1]
            raise refusal()
        certificate = None if tls.peer is None else bytes.fromhex(tls.peer.fingerprint)
        accepted = await self._check.accept(token, Channel(certificate, tls.finished()))
        self._shown[tls] = (digest, accepted)
        return accepted

    def still_accepts(self, caller: Caller) -> bool:
        return caller.accepted is None or self._check.still_accepts(caller.accepted)
