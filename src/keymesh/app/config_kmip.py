"""The Core's section ``[kmip]``: KMIP for existing clients, by the Core itself; absent, it is not served."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta, Struct

from keymesh.adapters.kmip_listener import KMIP_PORT
from keymesh.app.config_parts import Checks, check_fields, check_host, check_port


class KmipConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``host``, ``port``: where to listen; ``0.0.0.0`` is every address of this host.

    ``min_tls``: ``1.3``, or ``1.2`` where clients know no more (PyKMIP); of 1.2 only what has forward secrecy and
    authenticated encryption.  ``tls_file``: PEM of a key and its certificate chain to show to clients in place of the
    Core's own, for those that look for a host name in it.  ``connections``, ``connections_of_one``: of all clients, of
    one.  ``requests_per_s``: of one client on all its connections; who sends more waits.
    ``certificate_h``: how long a client's certificate lives, 1 h to 90 days.
    """

    CHECKS: ClassVar[Checks] = {"port": check_port, "host": check_host}

    host: str = "127.0.0.1"
    port: int = KMIP_PORT
    min_tls: Literal["1.2", "1.3"] = "1.3"
    tls_file: str | None = None
    connections: Annotated[int, Meta(ge=1, le=65_536)] = 4_096
    connections_of_one: Annotated[int, Meta(ge=1, le=65_536)] = 64
    requests_per_s: Annotated[int, Meta(ge=1, le=1_000_000)] = 2_000
    certificate_h: Annotated[int, Meta(ge=1, le=2_160)] = 24

    def check(self) -> None:
        """Raises Refused naming the field."""
        check_fields(self)
