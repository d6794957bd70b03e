"""Where an issuer's key set is: a file, or one HTTPS address that is believed under the given authorities alone.

Decides what counts as an answer; how often it is asked, and for how long it counts, are others'.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

from keymesh.adapters.http_client import PeerClient
from keymesh.adapters.jwk import JWKS_MAX_BYTES
from keymesh.model.errors import Refused, Unavailable

FETCH_TIMEOUT_S: Final = 5.0


class KeySource(Protocol):
    async def load(self) -> bytes:
        """The key set as it is published.  Raises Unavailable."""
        ...


class FileSource:
    """A file that somebody else replaces."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def load(self) -> bytes:
        return self.read()

    def read(self) -> bytes:
        """Raises Unavailable."""
        try:
            with self._path.open("rb") as file:
                return file.read(JWKS_MAX_BYTES + 1)
        except OSError as failed:
            raise Unavailable("jwks", f"the key set's file cannot be read: {failed.strerror}") from failed


class UrlSource:
    """``url`` over TLS, 200 or nothing: no redirect is followed, no environment is asked, no cookie is kept."""

    def __init__(self, url: str, *, ca_pem: bytes, identity: tuple[Path, Path | None] | None = None) -> None:
        """``identity``: certificate and key to show, where the server asks.  Raises Refused naming the field."""
        parts = split_https("jwks_url", url)
        self._base, self._path = parts
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            self._context.load_verify_locations(cadata=ca_pem.decode("ascii"))
        except (ssl.SSLError, ValueError) as bad:
            raise Refused.bad_field("ca_file", "not PEM certificates") from bad
        if identity is not None:
            try:
                self._context.load_cert_chain(*identity)
            except (ssl.SSLError, OSError) as bad:
                raise Refused.bad_field("cert_file", "not a certificate and its key") from bad

    async def load(self) -> bytes:
        async with PeerClient(
            self._base, self._context, timeout_s=FETCH_TIMEOUT_S, answer_max_bytes=JWKS_MAX_BYTES
        ) as client:
            status, body = await client.fetch("GET", self._path, headers={"Accept": "application/json"})
        if status != 200:
            raise Unavailable("jwks", f"the issuer answered {status}")
        return body


def split_https(field: str, url: str) -> tuple[str, str]:
    """(``https://HOST[:PORT]``, path and query).  Raises Refused naming ``field``."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as bad:
        raise Refused.bad_field(field, "not an address") from bad
    if parts.scheme != "https" or not parts.hostname or parts.username is not None or parts.fragment:
        raise Refused.bad_field(field, "https://HOST[:PORT]/PATH without user, password or fragment")
    if not url.isascii() or any(c <= " " or c == "\\" for c in url) or port == 0:
        raise Refused.bad_field(field, "https://HOST[:PORT]/PATH in printable ASCII")
    query = f"?{parts.query}" if parts.query else ""
    return f"https://{parts.netloc}", (parts.path or "/") + query
