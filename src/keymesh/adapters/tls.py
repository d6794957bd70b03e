"""TLS 1.3 contexts that know the peer before the first byte of application data passes.

Decides whether a peer's certificate is acceptable for one connection; what the peer may then ask is
``access.admit``'s.  OpenSSL verifies the chain (validity, key usage, name constraints) against the given roots alone:
no system store, no environment.  What it leaves open is checked at the end of the handshake, inside it: a leaf of our
profile, one URI SAN, the expected identity, no refused certificate in the chain.  A failure there leaves the
client's Finished unsent, so neither side has seen a request.  No tickets and no resumption: each connection proves
itself anew.
"""

from __future__ import annotations

import logging
import ssl
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keymesh.access.identity import ClientIdentity, Identity
from keymesh.adapters.key_files import read_private
from keymesh.adapters.pki import check_leaf_profile, fingerprint, identity_of, parse_certificates, uri_of, validity_ms
from keymesh.model.errors import Refused
from keymesh.model.ids import MeshName
from keymesh.model.time import Instant, is_live

CHAIN_CERTIFICATES: Final = 3
TLS12_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2, where that is allowed at all; those of 1.3 are not chosen by this."""

log = logging.getLogger("keymesh.tls")

PeerCheck: TypeAlias = Callable[[x509.Certificate, x509.Certificate], Identity | None]
"""(leaf, root) -> the mesh identity, or None for a peer of another kind.  Raises Refused."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The authenticated other end of one connection; ``chain`` are the fingerprints from leaf to root."""

    uri: str
    identity: Identity | None
    chain: tuple[str, ...]
    not_after: Instant
    public_key: bytes  # DER SubjectPublicKeyInfo of the leaf

    @property
    def fingerprint(self) -> str:
        return self.chain[0]

    @property
    def root(self) -> str:
        return self.chain[-1]


class PeerSSLObject(ssl.SSLObject):
    """The TLS state machine with our check as the last step of its handshake.

    ``peer`` is None, once that is done, only for a client without a certificate where none is required.
    """

    peer: Peer | None = None

    def finished(self) -> bytes:
        """The client's Finished message: both ends know it, and no other connection has it.

        OpenSSL gives it under the name of TLS 1.2's channel binding; in 1.3 it is a MAC over the whole handshake
        under a secret of this connection, and nothing is resumed here.
        """
        return self.get_channel_binding("tls-unique") or b""

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as failed:
            log.warning("handshake refused", extra={"fields": {"reason": failed.reason or "", "by": "openssl"}})
            raise
        context = self.context
        assert isinstance(context, PeerContext)
        chain = self._chain()
        if not chain and context.verify_mode is ssl.CERT_OPTIONAL:
            return
        try:
            self.peer = context.check_peer(chain)
        except Refused as refused:
            log.warning("handshake refused", extra={"fields": {"reason": refused.message, "by": "keymesh"}})
            raise ssl.SSLCertVerificationError(1, f"peer refused: {refused.message}") from refused

    def _chain(self) -> list[x509.Certificate]:
        """The verified chain, leaf first (public from Python 3.13 on)."""
        state: Any = self
        if hasattr(ssl.SSLObject, "get_verified_chain"):
            return [x509.load_der_x509_certificate(der) for der in state.get_verified_chain()]
        chain = state._sslobj.get_verified_chain() or []
        return [x509.load_pem_x509_certificate(entry.public_bytes().encode()) for entry in chain]


class PeerContext(ssl.SSLContext):
    """A context whose connections all pass ``check``; made by ``Credentials`` only."""

    sslobject_class = PeerSSLObject
    peer_check: PeerCheck
    refused: set[str]

    def check_peer(self, chain: list[x509.Certificate]) -> Peer:
        """The peer behind a chain that OpenSSL has verified.  Raises Refused."""
        if len(chain) != CHAIN_CERTIFICATES:  # a self-issued CA would slip past the path length (RFC 5280, 4.2.1.9)
            raise Refused.bad_field("certificate", "the chain must be leaf, intermediate and root")
        prints = tuple(fingerprint(certificate) for certificate in chain)
        if not self.refused.isdisjoint(prints):
            raise Refused.bad_field("certificate", "is refused by fingerprint")
        uri = uri_of(chain[0])
        identity = self.peer_check(chain[0], chain[-1])
        check_leaf_profile(chain[0], client_only=isinstance(identity, ClientIdentity))
        not_after = min(validity_ms(certificate)[1] for certificate in chain)
        spki = chain[0].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return Peer(uri, identity, prints, not_after, spki)

    def still_accepts(self, peer: Peer) -> bool:
        """Whether a connection made earlier may go on: nothing in its chain has expired or been refused since."""
        now = Instant(time.time_ns() // 1_000_000)
        return is_live(peer.not_after, now) and self.refused.isdisjoint(peer.chain)

    def wrap_socket(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("blocking sockets would skip the peer check; use asyncio")


class Credentials:
    """One process's own certificate and key, and every context made from them.

    ``identity_file`` holds key, leaf and intermediate (``pki.write_identity``).  ``refused`` are fingerprints of
    certificates, leaves or CAs, that no handshake accepts; changing the set acts at once.
    """

    def __init__(self, identity_file: Path, *, refused: set[str] | None = None) -> None:
        self.identity_file: Final = identity_file
        self.refused: Final = set() if refused is None else refused
        self._contexts: Final[weakref.WeakSet[ssl.SSLContext]] = weakref.WeakSet()
        self._certificate = parse_certificates(read_private(identity_file))[0]

    @property
    def certificate(self) -> x509.Certificate:
        """The leaf that new handshakes show."""
        return self._certificate

    def reload(self) -> None:
        """Show the renewed certificate in new handshakes of every context; connections made before go on.

        Raises Refused, and changes nothing, where the file does not hold a key and its certificate.
        """
        certificate = parse_certificates(read_private(self.identity_file))[0]
        try:
            _new_context(PeerContext(ssl.PROTOCOL_TLS_SERVER)).load_cert_chain(self.identity_file)
            for context in list(self._contexts):
                context.load_cert_chain(self.identity_file)
        except ssl.SSLError as bad:
            raise Refused.bad_field("certificate", "the key and the certificate do not belong together") from bad
        self._certificate = certificate

    def client_context(self, *, trust_pem: bytes, check: PeerCheck, anonymous: bool = False) -> PeerContext:
        """For connections to peers whose chain ends in one of ``trust_pem`` and that pass ``check``.

        ``anonymous``: without our certificate; who we are is said by a token.
        """
        if anonymous:
            return anonymous_context(trust_pem=trust_pem, check=check, refused=self.refused)
        return self._context(ssl.PROTOCOL_TLS_CLIENT, trust_pem, check)

    def server_context(
        self, *, trust_pem: bytes, check: PeerCheck, required: bool = True, tls12: bool = False
    ) -> PeerContext:
        """The same for accepted connections; a client certificate is required, unless ``required`` is False.

        A certificate that is shown must pass, required or not.  ``tls12``: TLS 1.2 as well, for clients that nobody
        here wrote; of it only what has forward secrecy and authenticated encryption.
        """
        context = self._context(ssl.PROTOCOL_TLS_SERVER, trust_pem, check)
        if tls12:
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers(TLS12_CIPHERS)
        context.num_tickets = 0
        if not required:
            context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def foreign_context(self, *, trust_pem: bytes) -> ssl.SSLContext:
        """For connections to a server outside any mesh, known by its host name and one of ``trust_pem`` alone.

        Raises Refused where those are no certificates.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.options |= ssl.OP_NO_TICKET
        try:
            context.load_verify_locations(cadata=trust_pem.decode("ascii"))
        except (ssl.SSLError, ValueError) as bad:
            raise Refused.bad_field("ca_pem", "not PEM certificates") from bad
        context.load_cert_chain(self.identity_file)
        self._contexts.add(context)
        return context

    def _context(self, protocol: int, trust_pem: bytes, check: PeerCheck) -> PeerContext:
        context = _new_context(PeerContext(protocol))
        context.load_verify_locations(cadata=trust_pem.decode("ascii"))
        context.load_cert_chain(self.identity_file)
        context.peer_check = check
        context.refused = self.refused
        self._contexts.add(context)
        return context


def anonymous_context(*, trust_pem: bytes, check: PeerCheck, refused: set[str]) -> PeerContext:
    """For a client that has no certificate, or shows none."""
    context = _new_context(PeerContext(ssl.PROTOCOL_TLS_CLIENT))
    context.load_verify_locations(cadata=trust_pem.decode("ascii"))
    context.peer_check = check
    context.refused = refused
    return context


def _new_context(context: PeerContext) -> PeerContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the URI is checked instead, in the handshake
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    return context


def mesh_check(mesh: MeshName, expected: Callable[[Identity], bool]) -> PeerCheck:
    """Accept the identities of ``mesh`` that ``expected`` answers True for."""

    def check(leaf: x509.Certificate, root: x509.Certificate) -> Identity:
        identity = identity_of(leaf, mesh)
        if expected(identity) is not True:
            raise Refused.bad_field("certificate", f"{identity} is not the peer expected here")
        return identity

    return check


@dataclass(frozen=True, slots=True)
class MeshTls:
    """Credentials inside one mesh: what most callers need.  ``root_pem`` is the mesh root, the only trust."""

    credentials: Credentials
    mesh: MeshName
    root_pem: bytes

    def client(self, expected: Callable[[Identity], bool], *, anonymous: bool = False) -> PeerContext:
        """For connections to the peers that ``expected`` accepts."""
        check = mesh_check(self.mesh, expected)
        return self.credentials.client_context(trust_pem=self.root_pem, check=check, anonymous=anonymous)

    def server(
        self, expected: Callable[[Identity], bool] = lambda identity: True, *, required: bool = True
    ) -> PeerContext:
        """For a listener; by default every identity of the mesh may connect, and the routes decide."""
        check = mesh_check(self.mesh, expected)
        return self.credentials.server_context(trust_pem=self.root_pem, check=check, required=required)
