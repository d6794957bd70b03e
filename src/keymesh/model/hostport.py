"""Where a TCP listener is, in words."""

from __future__ import annotations

from keymesh.model.errors import Refused


def parse_tcp(text: str) -> tuple[str, int]:
    """``HOST:PORT`` or ``[HOST]:PORT``.  Raises Refused naming ``tcp``."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        raise Refused.bad_field("tcp", "HOST:PORT, the port 1 to 65535")
    return host.removeprefix("[").removesuffix("]"), int(port)
