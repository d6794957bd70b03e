"""The Registry's section ``database``: where its projection is."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Final, Literal
from urllib.parse import quote, urlencode, urlsplit

from msgspec import Struct

from keymesh.app.config_endpoint import Endpoint
from keymesh.model.errors import Refused

ENDPOINTS_MAX: Final = 16
PASSWORD_MAX_BYTES: Final = 1_024
_DEFAULT_PORT: Final = 5_432


class DatabaseConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Replicas of one mesh's Registry share one database, or have one each.

    ``kind``: ``sqlite``, a file in ``data_dir``; or ``postgresql``.  ``endpoints``: PostgreSQL servers as
    ``postgresql://HOST:PORT/DATABASE``, in the order to try them, each with ``ca_file``, ``username`` and
    ``password_file`` or ``cert_file``: the first that takes writes is used, so a standby may stand behind its primary.
    """

    kind: Literal["sqlite", "postgresql"] = "sqlite"
    endpoints: tuple[Endpoint, ...] = ()

    def check(self) -> None:
        """Raises Refused naming the field."""
        if self.kind == "sqlite":
            if self.endpoints:
                raise Refused.bad_field("endpoints", "none where the database is a file")
            return
        if not 1 <= len(self.endpoints) <= ENDPOINTS_MAX:
            raise Refused.bad_field("endpoints", f"1 to {ENDPOINTS_MAX}, got {len(self.endpoints)}")
        for n, endpoint in enumerate(self.endpoints):
            _check_endpoint(f"endpoints[{n}]", endpoint)
            if any(endpoint.url == other.url for other in self.endpoints[:n]):
                raise Refused.bad_field(f"endpoints[{n}].url", "the same server twice")


def _check_endpoint(field: str, endpoint: Endpoint) -> None:
    try:
        parts = urlsplit(endpoint.url)
        named = parts.scheme == "postgresql" and parts.hostname and parts.path.strip("/") and parts.port != 0
        bare = parts.username is None and parts.password is None and not parts.query and not parts.fragment
    except ValueError:  # a port or a bracket that is none
        named = bare = False
    if not named or not bare:
        raise Refused.bad_field(f"{field}.url", "postgresql://HOST:PORT/DATABASE, and nothing else")
    if endpoint.ca_file is None:
        raise Refused.bad_field(f"{field}.ca_file", "the CA of the server is named")
    if endpoint.username is None:
        raise Refused.bad_field(f"{field}.username", "the role to connect as")
    if endpoint.password_file is None and endpoint.cert_file is None:
        raise Refused.bad_field(f"{field}.password_file", "a password's file, or a client certificate's (cert_file)")


def database_urls(config: DatabaseConfig | None, directory: Path) -> tuple[str, ...]:
    """As ``sql_engine`` takes them.  They hold passwords: they go nowhere else.

    Raises Refused for a password's file that others may read, or that holds none.
    """
    if config is None or config.kind == "sqlite":
        return (f"sqlite:///{directory / 'projection.db'}",)
    return tuple(_url(f"endpoints[{n}]", endpoint) for n, endpoint in enumerate(config.endpoints))


def _url(field: str, endpoint: Endpoint) -> str:
    parts = urlsplit(endpoint.url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    who = quote(endpoint.username or "", safe="")
    if endpoint.password_file is not None:
        who += ":" + quote(_password(f"{field}.password_file", Path(endpoint.password_file)), safe="")
    files = {"sslrootcert": endpoint.ca_file, "sslcert": endpoint.cert_file}
    if endpoint.cert_file is not None:
        files["sslkey"] = endpoint.key_file or endpoint.cert_file
    query = urlencode({name: file for name, file in files.items() if file is not None})
    return f"postgresql://{who}@{host}:{parts.port or _DEFAULT_PORT}{parts.path}?{query}"


def _password(field: str, path: Path) -> str:
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise Refused.bad_field(field, "a file that only this process may read (mode 0600)")
        text = path.read_bytes()[: PASSWORD_MAX_BYTES + 2].decode().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as bad:
        raise Refused.bad_field(field, "a file with a password in it") from bad
    if not 1 <= len(text.encode()) <= PASSWORD_MAX_BYTES:
        raise Refused.bad_field(field, f"a password of 1 to {PASSWORD_MAX_BYTES} bytes")
    return text
