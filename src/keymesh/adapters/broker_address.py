"""Where a message broker is and how a process proves itself to it; read anew for each connection.

So a renewed certificate or a new password needs no restart.  Nothing but the given CA is believed, and the server must
be the one that the URL names.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from keymesh.adapters.key_files import read_private
from keymesh.adapters.openbao_login import Secret
from keymesh.model.errors import KeymeshError, Refused, Unavailable

CONNECT_S: Final = 5.0
CALL_S: Final = 4.0
"""How long the broker may take over one answer."""
PUBLISH_S: Final = 8.0
"""... to confirm a batch."""
PROBE_S: Final = 2.0
"""... to say that it takes messages: asked often, and nothing is lost by a wrong no."""
PORTS: Final = {"amqps": 5671, "mqtts": 8883}
PASSWORD_MAX_CHARS: Final = 512


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """One broker.  Without ``username`` the client certificate is the proof (SASL EXTERNAL; MQTT certificate login).

    ``vhost`` goes before the user's name in MQTT, as RabbitMQ has it.
    """

    scheme: str
    host: str
    port: int
    vhost: str
    ca_file: Path
    cert_file: Path | None = None
    key_file: Path | None = None
    username: str | None = None
    password_file: Path | None = field(default=None, repr=False)

    def password(self) -> Secret | None:
        """Raises Refused where the file cannot be read, or holds no one line."""
        if self.password_file is None:
            return None
        text = read_private(self.password_file).decode("utf-8", "replace").rstrip("\n")
        if not 0 < len(text) <= PASSWORD_MAX_CHARS or "\n" in text or "\0" in text:
            raise Refused.bad_field("password_file", f"one line of 1 to {PASSWORD_MAX_CHARS} characters")
        return Secret(text)

    def tls(self) -> ssl.SSLContext:
        """Raises Refused where a file is missing, or is not what it should be."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.options |= ssl.OP_NO_TICKET
        try:
            context.load_verify_locations(cadata=self.ca_file.read_text("ascii"))
        except (OSError, ValueError, ssl.SSLError) as bad:
            raise Refused.bad_field("ca_file", "a readable file of PEM certificates") from bad
        if self.cert_file is not None:
            read_private(self.key_file or self.cert_file)
            try:
                context.load_cert_chain(self.cert_file, self.key_file)
            except (OSError, ssl.SSLError) as bad:
                raise Refused.bad_field("cert_file", "a certificate and its own key, PEM") from bad
        return context


def parse_address(
    url: str,
    *,
    scheme: str,
    ca_file: str | None,
    cert_file: str | None = None,
    key_file: str | None = None,
    username: str | None = None,
    password_file: str | None = None,
) -> BrokerAddress:
    """``<scheme>://host[:port]/vhost``; an empty vhost is ``/``.  Raises Refused naming the field."""
    try:
        parts = urlsplit(url)
        port = parts.port or PORTS[scheme]
    except ValueError as bad:
        raise Refused.bad_field("url", "a URL with a port of 1 to 65535") from bad
    if parts.scheme != scheme or not parts.hostname:
        raise Refused.bad_field("url", f"{scheme}://host:port/vhost")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise Refused.bad_field("url", "no user, password, query or fragment; secrets lie in files of their own")
    if ca_file is None:
        raise Refused.bad_field("ca_file", "is needed: nothing else says which broker is believed")
    if (username is None) != (password_file is None):
        raise Refused.bad_field("password_file", "goes with username")
    if username is None and cert_file is None:
        raise Refused.bad_field("cert_file", "is needed where there is no username")
    return BrokerAddress(
        scheme=scheme,
        host=parts.hostname,
        port=port,
        vhost=unquote(parts.path.removeprefix("/")) or "/",
        ca_file=Path(ca_file),
        cert_file=None if cert_file is None else Path(cert_file),
        key_file=None if key_file is None else Path(key_file),
        username=username,
        password_file=None if password_file is None else Path(password_file),
    )


async def first_that_serves(
    addresses: Sequence[BrokerAddress],
    connect: Callable[[BrokerAddress], Awaitable[None]],
    close: Callable[[], Awaitable[None]],
) -> None:
    """``connect`` to the first address that lets us; what a failed try left is closed before the next.

    Raises Unavailable; Refused where every broker refuses.
    """
    failures: list[KeymeshError] = []
    for address in addresses:
        try:
            return await connect(address)
        except KeymeshError as failed:
            await close()
            failures.append(failed)
    raise _nobody_serves(failures)


def _nobody_serves(failures: list[KeymeshError]) -> KeymeshError:
    """A refusal only where all of them refuse."""
    if failures and all(isinstance(f, Refused) for f in failures):
        return failures[0]
    reasons = "; ".join(sorted({f.message for f in failures}))[:512]
    return Unavailable("broker", f"no broker serves: {reasons}")
