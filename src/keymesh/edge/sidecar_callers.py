"""Who may use which identities of a sidecar: by the kernel's word on a Unix socket, by certificate over TCP.

Decides that a service can only use its own keys.  Identities are managed on the Unix socket by the host's owner alone.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509

from keymesh.access.callers import Names
from keymesh.access.identity import EdgeIdentity, parse_identity
from keymesh.edge.client_tls import uri_of
from keymesh.edge.sidecar_identities import lifetime_of
from keymesh.model.errors import Refused
from keymesh.model.ids import MeshName, RegionId

ROOT_UID: Final = 0
_PEER_CREDENTIALS: Final = struct.Struct("3i")  # ucred: pid, uid, gid


@dataclass(frozen=True, slots=True)
class Caller:
    """``services`` None: all of them, and the identities themselves.  ``until_ms``: when its certificate ends, in Unix
    ms; a connection may outlive it."""

    services: frozenset[Names] | None
    until_ms: int | None = None

    def may_use(self, names: Names) -> bool:
        if self.until_ms is not None and time.time_ns() >= self.until_ms * 1_000_000:
            return False
        return self.services is None or names in self.services

    @property
    def is_owner(self) -> bool:
        return self.services is None


OWNER: Final = Caller(None)


def unix_callers(uids: Mapping[int, frozenset[Names]]) -> Callable[[asyncio.BaseTransport], Caller | None]:
    """By SO_PEERCRED: our own user and root own this host, ``uids`` use the services named for them, others nothing."""
    owners = {os.getuid(), ROOT_UID}
    known = {uid: Caller(services) for uid, services in uids.items()}

    def caller_of(transport: asyncio.BaseTransport) -> Caller | None:
        uid = _uid_of(transport)
        return OWNER if uid in owners else known.get(uid)

    return caller_of


def _uid_of(transport: asyncio.BaseTransport) -> int:
    descriptor = os.dup(transport.get_extra_info("socket").fileno())
    with socket.socket(fileno=descriptor) as peer:
        raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    _, uid, _ = _PEER_CREDENTIALS.unpack(raw)
    return int(uid) & 0xFFFFFFFF


class _CallerSSLObject(ssl.SSLObject):
    """Checks the caller's name as the last step of the handshake; OpenSSL has checked the chain by then."""

    def do_handshake(self) -> None:
        super().do_handshake()
        context = self.context
        assert isinstance(context, CallerContext)
        try:
            edge_of(self.getpeercert(True) or b"", context.mesh, context.region)
        except (Refused, ValueError) as refused:
            raise ssl.SSLCertVerificationError(1, f"caller refused: {refused}") from refused


class CallerContext(ssl.SSLContext):
    """TLS 1.3 for callers with an Edge identity of this mesh and region; made by ``caller_context``."""

    sslobject_class = _CallerSSLObject
    mesh: MeshName
    region: RegionId


def caller_context(identity_file: Path, ca_file: Path, mesh: MeshName, region: RegionId) -> CallerContext:
    """Shows the certificate in ``identity_file``; load it again (``load_cert_chain``) when it was renewed.

    Raises Refused where the files do not belong together.
    """
    context = CallerContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION
    context.num_tickets = 0
    context.mesh, context.region = mesh, region
    try:
        context.load_verify_locations(cafile=ca_file)
        context.load_cert_chain(identity_file)
    except (OSError, ssl.SSLError, ValueError) as bad:
        raise Refused.bad_field("certificate", "key, certificate and CA must be PEM and belong together") from bad
    return context


def edge_of(der: bytes, mesh: MeshName, region: RegionId) -> EdgeIdentity:
    """Raises Refused or ValueError for a certificate that is no Edge's of ``mesh`` and ``region``.

    Another region's CA may name any tenant: what it says counts in its own region, where the Core judges it.
    """
    identity = parse_identity(uri_of(x509.load_der_x509_certificate(der)), mesh)
    if not isinstance(identity, EdgeIdentity):
        raise Refused.bad_field("certificate", f"{identity} is no Edge identity")
    if identity.region != region:
        raise Refused.bad_field("certificate", f"{identity} is not of {region}")
    return identity


def tls_callers(mesh: MeshName, region: RegionId) -> Callable[[asyncio.BaseTransport], Caller | None]:
    """By the certificate that the handshake accepted: its own service and no other."""

    def caller_of(transport: asyncio.BaseTransport) -> Caller | None:
        der = transport.get_extra_info("ssl_object").getpeercert(True) or b""
        try:
            shown = edge_of(der, mesh, region)
            until_ms = lifetime_of(x509.load_der_x509_certificate(der)).not_after
        except (Refused, ValueError):
            return None
        return Caller(frozenset({(shown.tenant, shown.service)}), until_ms)

    return caller_of
