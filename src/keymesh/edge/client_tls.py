"""The Edge's own end of mutual TLS: who it is, by its certificate, and which peers it talks to (DESIGN section 6).

Decides that only a Core of the Edge's own region passes, inside the handshake, before anything is sent.  The identity
file holds key, leaf and intermediate; it may be replaced at any time, new connections show the new certificate.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

from cryptography import x509

from keymesh.access.identity import CoreIdentity, EdgeIdentity, parse_identity
from keymesh.model.errors import Refused
from keymesh.model.ids import MeshName

IDENTITY_MAX_BYTES: Final = 64 * 1024


class _CoreSSLObject(ssl.SSLObject):
    """Checks the peer's name as the last step of the handshake; OpenSSL has checked the chain by then."""

    def do_handshake(self) -> None:
        super().do_handshake()
        context = self.context
        assert isinstance(context, CoreContext)
        try:
            peer = parse_identity(uri_of(x509.load_der_x509_certificate(self.getpeercert(True) or b"")), context.mesh)
            if not isinstance(peer, CoreIdentity) or peer.region != context.region:
                raise Refused.bad_field("certificate", f"{peer} is no Core of {context.region}")
        except (Refused, ValueError) as refused:
            raise ssl.SSLCertVerificationError(1, f"peer refused: {refused}") from refused


class CoreContext(ssl.SSLContext):
    """TLS 1.3 to Cores of one region of one mesh; made by ``EdgeCredentials``."""

    sslobject_class = _CoreSSLObject
    mesh: MeshName
    region: str


class EdgeCredentials:
    """One Edge's certificate and the mesh root that it trusts.

    Raises Refused where a file is missing, malformed or readable by others, or the certificate is no Edge's.
    """

    def __init__(self, identity_file: Path, ca_file: Path) -> None:
        self.identity_file: Final = identity_file
        self.ca_file: Final = ca_file
        self._ca_pem = _read(ca_file).decode("ascii", "replace")
        self._stamp = self._stat()
        self.identity: Final = edge_identity(self.certificate())

    def certificate(self) -> x509.Certificate:
        """The leaf now in the file."""
        return certificates(_read(self.identity_file, private=True))[0]

    def context(self) -> CoreContext:
        """For new connections, with the certificate now in the file."""
        self._stamp = self._stat()
        context = CoreContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # the URI is checked instead, in the handshake
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION
        context.mesh = self.identity.mesh
        context.region = self.identity.region
        try:
            context.load_verify_locations(cadata=self._ca_pem)
            context.load_cert_chain(self.identity_file)
        except (ssl.SSLError, ValueError) as bad:
            raise Refused.bad_field("certificate", "key, certificate and CA must be PEM and belong together") from bad
        return context

    def changed(self) -> bool:
        """Whether the file was replaced since the last context was made."""
        return self._stat() != self._stamp

    def _stat(self) -> tuple[int, int]:
        try:
            status = self.identity_file.stat()
        except FileNotFoundError as missing:
            raise Refused("not-found", f"no file {self.identity_file.name}", field="identity") from missing
        return status.st_mtime_ns, status.st_ino


def certificates(pem: bytes) -> list[x509.Certificate]:
    """The certificates in ``pem``, leaf first.  Raises Refused."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as bad:
        raise Refused.bad_field("certificate", "not a PEM certificate") from bad


def uri_of(certificate: x509.Certificate) -> str:
    """Its only subject alternative name.  Raises Refused unless that is one URI."""
    try:
        names = list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension) as bad:
        raise Refused.bad_field("certificate", "has no subject alternative name") from bad
    if len(names) != 1 or not isinstance(names[0], x509.UniformResourceIdentifier):
        raise Refused.bad_field("certificate", "must have exactly one subject alternative name, a URI")
    return names[0].value


def edge_identity(certificate: x509.Certificate) -> EdgeIdentity:
    """Whose certificate it is; the mesh is what its own domain says.  Raises Refused where it is no Edge's."""
    uri = uri_of(certificate)
    host = uri.removeprefix("spiffe://").partition("/")[0]
    identity = parse_identity(uri, MeshName(host.partition(".")[2] or host))
    if not isinstance(identity, EdgeIdentity):
        raise Refused.bad_field("certificate", f"{uri} is no Edge")
    return identity


def _read(path: Path, *, private: bool = False) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(IDENTITY_MAX_BYTES + 1)
            mode = path.stat().st_mode
    except FileNotFoundError as missing:
        raise Refused("not-found", f"no file {path.name}", field=path.name) from missing
    if private and mode & 0o077:
        raise Refused.bad_field(path.name, "others can read this file; its mode must be 0600")
    if len(content) > IDENTITY_MAX_BYTES:
        raise Refused.bad_field(path.name, f"at most {IDENTITY_MAX_BYTES} bytes")
    return content
