"""The sidecar's identities on disk: one key and certificate for each service of a tenant (DESIGN section 6).

``<dir>/identities/<tenant>/<service>/``: ``key.pem`` from the first request on, ``identity.pem`` (key, leaf and
intermediate in one file) once a certificate came.  The private key never leaves.  Decides which certificates are
accepted: for exactly this key and this identity, issued under the mesh root.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from keymesh.access.identity import EdgeIdentity
from keymesh.edge.client_tls import EdgeCredentials, certificates, uri_of
from keymesh.model.errors import Refused
from keymesh.model.ids import MeshName, RegionId, check_label, check_region, check_service, check_tenant

CHAIN_MAX_BYTES: Final = 64 * 1024
IDENTITIES_MAX: Final = 1_024

_PEM = serialization.Encoding.PEM
_PLAIN = serialization.NoEncryption()


@dataclass(frozen=True, slots=True)
class Lifetime:
    """Of a certificate, in Unix ms."""

    not_before: int
    not_after: int

    @property
    def half(self) -> int:
        """From then on it is renewed."""
        return self.not_before + (self.not_after - self.not_before) // 2


class IdentityStore:
    """Identities of one Edge host.  ``instance`` is this directory's own name in them, made once."""

    def __init__(self, directory: Path, *, mesh: str, region: str, ca_file: Path) -> None:
        self._root: Final = directory / "identities"
        self._mesh = MeshName(check_label("mesh", mesh))
        self._region = RegionId(check_region(region))
        self._ca_file = ca_file
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in self._root.glob("*/*/.tmp-*"):
            leftover.unlink(missing_ok=True)
        self.instance: Final = self._own_name(directory / "instance")

    def _own_name(self, path: Path) -> str:
        if not path.exists():
            write_private(path, f"e{os.urandom(6).hex()}".encode())
        return check_label("instance", path.read_text("ascii", "replace"))

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """(tenant, service) of every identity, sorted."""
        for key in sorted(self._root.glob("*/*/key.pem")):
            yield key.parent.parent.name, key.parent.name

    def uri(self, tenant: str, service: str) -> str:
        return str(
            EdgeIdentity(
                mesh=self._mesh,
                region=self._region,
                tenant=check_tenant(tenant),
                service=check_service(service),
                instance=self.instance,
            )
        )

    def identity_file(self, tenant: str, service: str) -> Path:
        """Where ``Edge`` finds key and chain; absent until a certificate came."""
        return self._home(tenant, service) / "identity.pem"

    def knows(self, tenant: str, service: str) -> bool:
        """Whether the identity was asked for."""
        return (self._home(tenant, service) / "key.pem").exists()

    def request(self, tenant: str, service: str) -> str:
        """A certificate request (PEM) for the identity; the key is made the first time.

        Raises Refused for malformed names or too many identities.
        """
        uri = self.uri(tenant, service)
        home = self._home(tenant, service)
        if not home.exists() and sum(1 for _ in self) >= IDENTITIES_MAX:
            raise Refused("limit", f"at most {IDENTITIES_MAX} identities", field="identities")
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (home / "key.pem").exists():
            new = ec.generate_private_key(ec.SECP256R1())
            write_private(home / "key.pem", new.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, _PLAIN))
        key = self._key(tenant, service)
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        return builder.add_extension(names, critical=True).sign(key, hashes.SHA256()).public_bytes(_PEM).decode()

    def install(self, tenant: str, service: str, chain_pem: str, *, now_ms: int) -> Lifetime:
        """Accept a certificate chain, leaf first.

        1. The identity was requested here.  2. Leaf and intermediate, no more.  3. The leaf is for our key and names
        exactly our identity.  4. It is valid now.  5. Root signed intermediate signed leaf.  Then one atomic write.
        Raises Refused.
        """
        key = self._key(tenant, service)
        if len(chain_pem) > CHAIN_MAX_BYTES:
            raise Refused.bad_field("chain", f"at most {CHAIN_MAX_BYTES} bytes")
        try:
            chain = certificates(chain_pem.encode("ascii"))
        except UnicodeEncodeError as bad:
            raise Refused.bad_field("chain", "PEM certificates") from bad
        if len(chain) != 2:
            raise Refused.bad_field("chain", f"the leaf and its issuer, got {len(chain)} certificates")
        leaf, issuer = chain
        if leaf.public_key() != key.public_key():
            raise Refused.bad_field("chain", "the certificate is for another key")
        if uri_of(leaf) != self.uri(tenant, service):
            raise Refused.bad_field("chain", f"the certificate is not for {self.uri(tenant, service)}")
        lifetime = lifetime_of(leaf)
        if not lifetime.not_before <= now_ms < lifetime.not_after:
            raise Refused.bad_field("chain", "the certificate is not valid now")
        try:
            leaf.verify_directly_issued_by(issuer)
            issuer.verify_directly_issued_by(certificates(self._ca_file.read_bytes())[0])
        except (ValueError, TypeError, InvalidSignature) as bad:
            raise Refused.bad_field("chain", "not issued under the mesh root") from bad
        content = key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, _PLAIN)
        content += b"".join(certificate.public_bytes(_PEM) for certificate in chain)
        write_private(self.identity_file(tenant, service), content)
        return lifetime

    def lifetime(self, tenant: str, service: str) -> Lifetime | None:
        """Of the certificate at hand; None where there is none yet."""
        try:
            return lifetime_of(certificates(self.identity_file(tenant, service).read_bytes())[0])
        except FileNotFoundError:
            return None

    def _home(self, tenant: str, service: str) -> Path:
        return self._root / check_tenant(tenant) / check_service(service)

    def _key(self, tenant: str, service: str) -> ec.EllipticCurvePrivateKey:
        try:
            key = serialization.load_pem_private_key((self._home(tenant, service) / "key.pem").read_bytes(), None)
        except FileNotFoundError as missing:
            raise Refused("not-found", "no such identity here; request it first", field="service") from missing
        except ValueError as bad:
            raise Refused.bad_field("key.pem", "a PEM private key") from bad
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise Refused.bad_field("key.pem", "a key on P-256")
        return key


def plant(directory: Path, credentials: EdgeCredentials) -> None:
    """Make ``directory`` the home of one identity that came as a file; a later certificate for its key stays.

    Raises Refused where the directory is another instance's, or the file has no key on P-256.
    """
    who, raw = credentials.identity, credentials.identity_file.read_bytes()
    name = directory / "instance"
    if name.exists() and name.read_text("ascii", "replace") != who.instance:
        raise Refused.bad_field("state", f"{directory} is another Edge's; name a directory for this one")
    home = directory / "identities" / who.tenant / who.service
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    write_private(name, who.instance.encode())
    try:
        key = serialization.load_pem_private_key(raw, None)
    except (ValueError, TypeError) as bad:
        raise Refused.bad_field("identity", "a PEM private key, then its certificates") from bad
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Refused.bad_field("identity", "a key on P-256")
    shown, kept = credentials.certificate(), home / "identity.pem"
    if kept.exists():
        before = certificates(kept.read_bytes())[0]
        if before.public_key() == shown.public_key() and lifetime_of(before).not_after >= lifetime_of(shown).not_after:
            return
    write_private(home / "key.pem", key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, _PLAIN))
    write_private(kept, raw)


def lifetime_of(certificate: x509.Certificate) -> Lifetime:
    return Lifetime(
        int(certificate.not_valid_before_utc.timestamp() * 1_000),
        int(certificate.not_valid_after_utc.timestamp() * 1_000),
    )


def write_private(path: Path, content: bytes) -> None:
    """Replace ``path`` in one durable step, readable by its owner alone; a crash leaves the old file or the new one."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".tmp-", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                Path(file.name).unlink()
            raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
