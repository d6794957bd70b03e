"""The mesh's certificates: one root, an intermediate for each trust domain, short-lived leaves.

Decides the profile of what is issued (DESIGN section 6, RELIABILITY "PKI defaults", RFC 5280); not who may have it:
the caller names the identity that it has authorised.  Every intermediate carries a URI name constraint with its own
domain alone, so that a stolen regional CA cannot speak for another region or for the mesh.  ECDSA P-256 throughout.
The files that hold all this are ``adapters.key_files``'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from keymesh.access.identity import ClientIdentity, Identity, parse_identity
from keymesh.model.errors import Refused
from keymesh.model.ids import MeshName, check_label
from keymesh.model.time import Instant

LEAF_LIFETIME_MS: Final = 24 * 3_600_000
CA_LIFETIME_MS: Final = 10 * 365 * 24 * 3_600_000
BACKDATE_MS: Final = 60_000
PEM_MAX_BYTES: Final = 64 * 1024

_CLIENT_EKU: Final = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
_LEAF_EKU: Final = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA that can issue.  ``domain`` is the trust domain it is confined to; the root's is the mesh itself."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    mesh: MeshName
    domain: str
    is_root: bool

    def __repr__(self) -> str:
        return f"<Authority {self.domain}{' root' if self.is_root else ''}>"


def is_development_domain(mesh: str) -> bool:
    """Whether ``mesh`` is a name that production mode refuses: ``dev`` or ending in ``-dev``."""
    return mesh == "dev" or mesh.endswith("-dev")


def require_domain(mesh: str, *, production: bool) -> MeshName:
    """``mesh`` checked for the mode.  Raises Refused for a development trust domain in production."""
    check_label("mesh", mesh)
    if production and is_development_domain(mesh):
        raise Refused.bad_field("mesh", f"{mesh!r} is a development trust domain, refused in production")
    return MeshName(mesh)


def new_tls_key() -> ec.EllipticCurvePrivateKey:
    """A key for TLS or for a CA; signing keys are another kind."""
    return ec.generate_private_key(ec.SECP256R1())


# --- issuing ---------------------------------------------------------------------------------------------------


def create_root(mesh: str, *, now: Instant, lifetime_ms: int = CA_LIFETIME_MS) -> Authority:
    """A new mesh root: issues intermediates only."""
    check_label("mesh", mesh)
    key = new_tls_key()
    name = _name(mesh)
    builder = _builder(name, key.public_key(), now, lifetime_ms).issuer_name(name)
    builder = _as_ca(builder, key.public_key(), key.public_key(), path_length=1)
    return Authority(builder.sign(key, hashes.SHA256()), key, MeshName(mesh), mesh, is_root=True)


def create_intermediate(
    root: Authority, region: str | None, *, now: Instant, lifetime_ms: int = CA_LIFETIME_MS
) -> Authority:
    """The CA of one region's trust domain, or with ``region`` None of the mesh-wide one; it issues leaves only."""
    if not root.is_root:
        raise Refused.bad_field("authority", "only the root issues intermediates")
    domain = root.mesh if region is None else f"{check_label('region', region)}.{root.mesh}"
    key = new_tls_key()
    builder = _builder(_name(f"{domain} CA"), key.public_key(), now, lifetime_ms).issuer_name(root.certificate.subject)
    builder = _as_ca(builder, key.public_key(), root.key.public_key(), path_length=0)
    permitted = [x509.UniformResourceIdentifier(domain)]
    builder = builder.add_extension(x509.NameConstraints(permitted, None), critical=True)
    return Authority(builder.sign(root.key, hashes.SHA256()), key, root.mesh, domain, is_root=False)


def make_csr(key: ec.EllipticCurvePrivateKey, identity: Identity) -> bytes:
    """A PEM request for ``identity``, signed with its own key."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(None))
    builder = builder.add_extension(_uri_san(str(identity)), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def issue_from_csr(
    authority: Authority, csr_pem: bytes, *, identity: Identity, now: Instant, lifetime_ms: int = LEAF_LIFETIME_MS
) -> x509.Certificate:
    """A leaf for the ``identity`` that the caller has authorised.

    Raises Refused naming ``csr`` unless the request is signed by its own key and asks for exactly that identity.
    """
    if len(csr_pem) > PEM_MAX_BYTES:
        raise Refused.bad_field("csr", f"at most {PEM_MAX_BYTES} bytes")
    try:
        csr = x509.load_pem_x509_csr(csr_pem)
        san = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        key = csr.public_key()
        signed = csr.is_signature_valid
    except (ValueError, TypeError, x509.ExtensionNotFound, x509.DuplicateExtension, InvalidSignature) as bad:
        raise Refused.bad_field("csr", "not a PEM request with a URI SAN") from bad
    if not signed:
        raise Refused.bad_field("csr", "its signature does not verify")
    if list(san) != [x509.UniformResourceIdentifier(str(identity))]:
        raise Refused.bad_field("csr", f"must ask for exactly {identity}")
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise Refused.bad_field("csr", "the key must be on P-256")
    return issue_leaf(authority, identity=identity, public_key=key, now=now, lifetime_ms=lifetime_ms)


def issue_leaf(
    authority: Authority,
    *,
    identity: Identity,
    public_key: ec.EllipticCurvePublicKey,
    now: Instant,
    lifetime_ms: int = LEAF_LIFETIME_MS,
) -> x509.Certificate:
    """A leaf with one URI SAN, for client and server use; a client's for client use alone, since clients that nobody
    here wrote may look at nothing else in a server's certificate.  Raises Refused outside the authority's domain."""
    if authority.is_root or identity.domain != authority.domain or identity.mesh != authority.mesh:
        raise Refused.bad_field("identity", f"{identity} is outside the domain {authority.domain!r} of this CA")
    if not isinstance(public_key.curve, ec.SECP256R1):
        raise Refused.bad_field("csr", "the key must be on P-256")
    if not 0 < lifetime_ms <= CA_LIFETIME_MS:
        raise Refused.bad_field("lifetime_ms", f"1..{CA_LIFETIME_MS}")
    return sign_leaf(
        authority,
        str(identity),
        public_key,
        now=now,
        lifetime_ms=lifetime_ms,
        client_only=isinstance(identity, ClientIdentity),
    )


def sign_leaf(
    authority: Authority,
    uri: str,
    public_key: ec.EllipticCurvePublicKey,
    *,
    now: Instant,
    lifetime_ms: int,
    client_only: bool = False,
) -> x509.Certificate:
    """``issue_leaf`` for parties that are no mesh identities (a customer's KMS, its owner).

    Only the profile is decided here; that ``uri`` lies in the CA's domain is for the name constraint to enforce.
    """
    builder = _builder(_name(None), public_key, now, lifetime_ms).issuer_name(authority.certificate.subject)
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(_CLIENT_EKU if client_only else _LEAF_EKU, critical=False)
        .add_extension(_uri_san(uri), critical=True)  # critical: the subject is empty (RFC 5280, 4.2.1.6)
        .add_extension(_key_id_of(authority.key.public_key()), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .sign(authority.key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, key: ec.EllipticCurvePublicKey, now: Instant, lifetime_ms: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_datetime(now - BACKDATE_MS))
        .not_valid_after(_datetime(now + lifetime_ms))
    )


def _as_ca(
    builder: x509.CertificateBuilder,
    key: ec.EllipticCurvePublicKey,
    issuer: ec.EllipticCurvePublicKey,
    *,
    path_length: int,
) -> x509.CertificateBuilder:
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(_key_id_of(issuer), critical=False)
    )


def _key_id_of(issuer: ec.EllipticCurvePublicKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer)


def _uri_san(uri: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str | None) -> x509.Name:
    """A subject, which only people read; long domains are cut to the 64 characters that X.520 allows."""
    return x509.Name([] if common_name is None else [x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _datetime(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms // 1_000, UTC)


# --- reading ---------------------------------------------------------------------------------------------------


def parse_certificates(pem: bytes) -> list[x509.Certificate]:
    """The certificates in ``pem``, leaf first.  Raises Refused where there is none or one is malformed."""
    if len(pem) > PEM_MAX_BYTES:
        raise Refused.bad_field("certificate", f"at most {PEM_MAX_BYTES} bytes")
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as bad:
        raise Refused.bad_field("certificate", "not a PEM certificate") from bad


def certificates_pem(certificates: Iterable[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def fingerprint(certificate: x509.Certificate) -> str:
    """Hex SHA-256 of the DER form: names one certificate, whoever issued it and under whatever serial."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def uri_of(certificate: x509.Certificate) -> str:
    """The certificate's only subject alternative name.  Raises Refused unless that is one URI."""
    try:
        names = list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension) as bad:
        raise Refused.bad_field("certificate", "has no subject alternative name") from bad
    if len(names) != 1 or not isinstance(names[0], x509.UniformResourceIdentifier):
        raise Refused.bad_field("certificate", "must have exactly one subject alternative name, a URI")
    return names[0].value


def identity_of(certificate: x509.Certificate, mesh: MeshName) -> Identity:
    """The certificate's identity in ``mesh``.  Raises Refused."""
    return parse_identity(uri_of(certificate), mesh)


def check_leaf_profile(certificate: x509.Certificate, *, client_only: bool = False) -> None:
    """Raises Refused unless ``certificate`` is an end-entity certificate for client *and* server use, or, with
    ``client_only``, for client use at least."""
    try:
        ca = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        usages = set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension) as bad:
        raise Refused.bad_field("certificate", "basic constraints and extended key usage are required") from bad
    if ca:
        raise Refused.bad_field("certificate", "a CA certificate is no leaf")
    if not usages >= set(_CLIENT_EKU if client_only else _LEAF_EKU):
        raise Refused.bad_field("certificate", "must be for client and server use")


def mesh_of_root(certificate: x509.Certificate) -> MeshName:
    """The mesh that a root certificate names itself for.  Raises Refused."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1 or certificate.subject != certificate.issuer:
        raise Refused.bad_field("certificate", "not a mesh root")
    return MeshName(check_label("mesh", str(names[0].value)))


def needs_renewal(certificate: x509.Certificate, now: Instant) -> bool:
    """Whether half of the certificate's life has passed."""
    start, end = validity_ms(certificate)
    return now >= start + (end - start) // 2


def validity_ms(certificate: x509.Certificate) -> tuple[Instant, Instant]:
    """(not before, not after)."""
    start = int(certificate.not_valid_before_utc.timestamp() * 1_000)
    return Instant(start), Instant(int(certificate.not_valid_after_utc.timestamp() * 1_000))


def describe(pem: bytes) -> list[dict[str, object]]:
    """What ``keymesh pki show`` prints for each certificate in ``pem``; key blocks in it are passed over."""
    return [_describe(certificate) for certificate in parse_certificates(pem)]


def _describe(certificate: x509.Certificate) -> dict[str, object]:
    extensions = {type(extension.value): extension.value for extension in certificate.extensions}
    constraints = extensions.get(x509.NameConstraints)
    basic = extensions.get(x509.BasicConstraints)
    sans = extensions.get(x509.SubjectAlternativeName)
    permitted = constraints.permitted_subtrees if isinstance(constraints, x509.NameConstraints) else None
    return {
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "uris": [str(name.value) for name in sans] if isinstance(sans, x509.SubjectAlternativeName) else [],
        "ca": basic.ca if isinstance(basic, x509.BasicConstraints) else False,
        "permitted_domains": [str(name.value) for name in permitted or []],
        "not_before": certificate.not_valid_before_utc.isoformat(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
        "serial": f"{certificate.serial_number:x}",
        "sha256": fingerprint(certificate),
    }
