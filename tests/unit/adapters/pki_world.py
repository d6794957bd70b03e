"""A little mesh PKI for tests: two regions, the mesh-wide domain, and leaves that no honest CA would issue."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID as Eku
from cryptography.x509.oid import ObjectIdentifier

from keymesh.access.identity import Identity, parse_identity
from keymesh.adapters import key_files, pki
from keymesh.adapters.tls import Credentials, MeshTls
from keymesh.model.ids import MeshName
from keymesh.model.time import Instant

MESH = MeshName("test-dev")
BOTH = (Eku.SERVER_AUTH, Eku.CLIENT_AUTH)
N1 = "spiffe://eu.test-dev/core/n1"
N2 = "spiffe://eu.test-dev/core/n2"
US = "spiffe://us.test-dev/core/n1"
REGISTRY = "spiffe://test-dev/registry/r1"


def now() -> Instant:
    return Instant(time.time_ns() // 1_000_000)


class World:
    """CAs made once for a test module."""

    def __init__(self) -> None:
        self.root = pki.create_root(MESH, now=now())
        self.cas = {
            "eu.test-dev": pki.create_intermediate(self.root, "eu", now=now()),
            "us.test-dev": pki.create_intermediate(self.root, "us", now=now()),
            "test-dev": pki.create_intermediate(self.root, None, now=now()),
        }
        self.root_pem = pki.certificates_pem([self.root.certificate])

    def write(self, path: Path, uri: str, *, lifetime_ms: int = pki.LEAF_LIFETIME_MS) -> Path:
        """An honest identity file for ``uri``."""
        identity: Identity = parse_identity(uri, MESH)
        authority = self.cas[identity.domain]
        key = pki.new_tls_key()
        leaf = pki.issue_leaf(
            authority, identity=identity, public_key=key.public_key(), now=now(), lifetime_ms=lifetime_ms
        )
        key_files.write_identity(path, key, [leaf, authority.certificate])
        return path

    def tls(self, path: Path, uri: str) -> MeshTls:
        return MeshTls(Credentials(self.write(path, uri)), MESH, self.root_pem)

    def write_odd(
        self,
        path: Path,
        *,
        names: Sequence[x509.GeneralName] | None = None,
        issuer: pki.Authority | None = None,
        ca: bool = False,
        usages: Sequence[ObjectIdentifier] = BOTH,
        start_s: int = -60,
        end_s: int = 3600,
    ) -> Path:
        """An identity file for n1 of eu, wrong in whatever the arguments say."""
        authority = issuer or self.cas["eu.test-dev"]
        names = [x509.UniformResourceIdentifier(N1)] if names is None else names
        key = pki.new_tls_key()
        issuer_key = authority.key.public_key()
        at = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(authority.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(at + dt.timedelta(seconds=start_s))
            .not_valid_after(at + dt.timedelta(seconds=end_s))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
        )
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(list(usages)), critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(list(names)), critical=True)
        leaf = builder.sign(authority.key, hashes.SHA256())
        key_files.write_identity(path, key, [leaf, authority.certificate])
        return path
