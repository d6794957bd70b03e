"""Sections that the configurations of several roles share, and checks of single values.

A Struct's ``CHECKS`` (field -> check, called with the field's name and value) are asked field by field, so that all of
a file's faults come at once; its ``check()`` asks them too, and what concerns several fields.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Final

from msgspec import Struct

from keymesh.model.errors import Refused
from keymesh.model.ids import check_region, check_service, check_tenant

HEARTBEAT_MIN_MS: Final = 100
HEARTBEAT_MAX_MS: Final = 60_000
URLS_MAX: Final = 16
SERVICES_MAX: Final = 1_024
Checks = dict[str, Callable[[str, Any], object]]
_URL: Final = re.compile(r"https://([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):([0-9]{1,5})")


def check_fields(config: Any) -> None:
    """Ask every one of ``CHECKS``.  Raises Refused naming the field."""
    for field, check in type(config).CHECKS.items():
        check(field, getattr(config, field))


def check_port(field: str, port: int) -> None:
    """Raises Refused naming ``field``."""
    if not 1 <= port <= 65_535:
        raise Refused.bad_field(field, "1 to 65535")


def check_host(field: str, host: str) -> None:
    """Raises Refused naming ``field``."""
    if not re.fullmatch(r"[0-9A-Za-z.:-]{1,253}", host):
        raise Refused.bad_field(field, "a host name or an address, without port")


def check_heartbeat(field: str, heartbeat_ms: int) -> None:
    """Raises Refused naming ``field``."""
    if not HEARTBEAT_MIN_MS <= heartbeat_ms <= HEARTBEAT_MAX_MS:
        raise Refused.bad_field(field, f"{HEARTBEAT_MIN_MS} to {HEARTBEAT_MAX_MS}")


def check_region_name(field: str, region: str) -> None:
    """Raises Refused naming ``field``."""
    try:
        check_region(region)
    except Refused as bad:
        raise Refused.bad_field(field, "not a region's name: lower-case letters, digits and inner hyphens") from bad


def check_urls(field: str, urls: tuple[str, ...]) -> None:
    """An ordered list of addresses of one service: at least one, each ``https://HOST:PORT``, none twice.

    Raises Refused naming ``field``, with the position of the one that is wrong.
    """
    if not 1 <= len(urls) <= URLS_MAX:
        raise Refused.bad_field(field, f"1 to {URLS_MAX} addresses, got {len(urls)}")
    for n, url in enumerate(urls):
        match = _URL.fullmatch(url)
        if match is None or not 1 <= int(match[2]) <= 65_535:
            raise Refused.bad_field(f"{field}[{n}]", "https://HOST:PORT, and nothing behind it")
        if url.lower() in (other.lower() for other in urls[:n]):
            raise Refused.bad_field(f"{field}[{n}]", "the same address twice")


def check_peers(field: str, peers: dict[str, tuple[str, ...]]) -> None:
    """Region -> its Cores' addresses.  Raises Refused naming ``field`` and the region."""
    for region, urls in peers.items():
        check_region_name(f"{field}.{region[:64]}", region)
        check_urls(f"{field}.{region}", urls)


def check_services(field: str, services: tuple[str, ...]) -> None:
    """``TENANT/SERVICE`` names, none twice.  Raises Refused naming ``field`` and the position."""
    if len(services) > SERVICES_MAX:
        raise Refused.bad_field(field, f"at most {SERVICES_MAX}")
    for n, name in enumerate(services):
        check_service_name(f"{field}[{n}]", name, services[:n])


def check_service_name(field: str, name: str, before: tuple[str, ...]) -> None:
    """One ``TENANT/SERVICE`` that is not among ``before``.  Raises Refused naming ``field``."""
    tenant, slash, service = name.partition("/")
    if not slash:
        raise Refused.bad_field(field, "TENANT/SERVICE")
    if name in before:
        raise Refused.bad_field(field, "the same service twice")
    try:
        check_tenant(tenant)
        check_service(service)
    except Refused as bad:
        raise Refused.bad_field(field, "TENANT/SERVICE, each of lower-case letters, digits and inner hyphens") from bad


class Listen(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the process takes connections.

    ``host``: the address to bind, ``127.0.0.1`` unless told; ``0.0.0.0`` is every address of this host.
    ``port``: 1 to 65535.
    """

    CHECKS: ClassVar[Checks] = {"port": check_port, "host": check_host}

    port: int
    host: str = "127.0.0.1"

    def check(self) -> None:
        """Raises Refused naming the field."""
        check_fields(self)


class IdentityFiles(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who this process is, and whom it believes.

    ``tls_file``: PEM of its TLS key, certificate and the issuing CA's.  ``signing_key_file``: PEM of the Ed25519 key
    that signs its entries, acknowledgements and receipts; enrolled in the control log.  ``ca_file``: PEM of the mesh's
    root certificates.  ``trust_file``: the root keys that everything of the mesh is verified with.  ``issuer_file``:
    key and certificate of the CA that issues in its trust domain; a process that has it renews its own certificate,
    one that does not re-reads ``tls_file`` when somebody else has replaced it.
    """

    tls_file: str
    signing_key_file: str
    ca_file: str
    trust_file: str
    issuer_file: str | None = None

    @property
    def issuer(self) -> Path | None:
        return None if self.issuer_file is None else Path(self.issuer_file)


class CoreTiming(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``heartbeat_ms``: how often the Core asks the Registry for its leases, 100 to 60000."""

    CHECKS: ClassVar[Checks] = {"heartbeat_ms": check_heartbeat}

    heartbeat_ms: int = 2_000

    def check(self) -> None:
        """Raises Refused naming the field."""
        check_fields(self)
