"""A small certificate authority for the servers that a mesh starts itself, and for their clients.

Decides the profile of those certificates (RFC 5280, strict enough for OpenSSL's X509_STRICT).  It speaks for servers on
loopback and for clients by common name; it has nothing to do with the mesh's own CAs (``adapters.pki``), and no
component of the mesh believes it for anything but its own dependency.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from keymesh.adapters.files import PUBLIC_MODE, write_file
from keymesh.adapters.key_files import read_private, write_identity
from keymesh.model.errors import Refused

CA_DAYS: Final = 3_650
LEAF_DAYS: Final = 90
_BACKDATE: Final = timedelta(minutes=5)
HOSTS: Final = ("127.0.0.1",)


@dataclass(frozen=True, slots=True)
class InfraCa:
    """A root that signs leaves.  No content in ``repr``."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    def __repr__(self) -> str:
        return "InfraCa(...)"

    @classmethod
    def make(cls, name: str) -> InfraCa:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(name)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = (
            _builder(subject, subject, key, timedelta(days=CA_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
        )
        return cls(key, builder.sign(key, hashes.SHA256()))

    @classmethod
    def in_directory(cls, directory: Path, name: str) -> InfraCa:
        """The CA of ``directory``, made there on first use: ``ca-key.pem`` (private) and ``ca.pem``."""
        path = directory / "ca-key.pem"
        if path.exists():
            return cls.load(path)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = cls.make(name)
        write_file(directory / "ca.pem", made.pem, mode=PUBLIC_MODE)
        write_identity(path, made.key, [made.certificate])
        return made

    @classmethod
    def load(cls, path: Path) -> InfraCa:
        """Raises Refused for a file that is not a private one with a CA's key and certificate."""
        pem = read_private(path)
        try:
            key = serialization.load_pem_private_key(pem, password=None)
            certificate = x509.load_pem_x509_certificate(pem)
        except (ValueError, TypeError) as bad:
            raise Refused.bad_field(path.name, "PEM of a CA's key and certificate") from bad
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise Refused.bad_field(path.name, "the key is not the certificate's")
        return cls(key, certificate)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        path: Path,
        name: str,
        *,
        server: bool = False,
        lifetime: timedelta | None = None,
        hosts: Sequence[str] = HOSTS,
    ) -> Path:
        """``path``: key and certificate of ``name`` in one private file; a server's is fit for both ends.

        ``hosts``: for whom a server speaks.  ``lifetime`` counts from now; a negative one makes one that
        has expired.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if server else [])]
        usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        lasts = timedelta(days=LEAF_DAYS) if lifetime is None else lifetime
        builder = (
            _builder(_name(name), self.certificate.subject, key, lasts)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                    self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
                ),
                critical=False,
            )
        )
        if server:
            builder = builder.add_extension(x509.SubjectAlternativeName([_host(h) for h in hosts]), critical=False)
        write_identity(path, key, [builder.sign(self.key, hashes.SHA256())])
        return path

    def keep(self, path: Path, name: str, *, server: bool = False, hosts: Sequence[str] = HOSTS) -> Path:
        """As ``issue``, unless ``path`` holds a certificate of this CA with more than half of its life before it."""
        if not path.exists() or not self._is_fresh(path):
            self.issue(path, name, server=server, hosts=hosts)
        return path

    def _is_fresh(self, path: Path) -> bool:
        try:
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
        except ValueError:  # a server's user may write to its own file
            return False
        since, until = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        return certificate.issuer == self.certificate.subject and datetime.now(UTC) < since + (until - since) / 2


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, lasts: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, now + lasts) - _BACKDATE)
        .not_valid_after(now + lasts)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
