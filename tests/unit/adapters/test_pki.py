"""What the CAs issue, what they refuse, and the files they leave.  (The handshake's own refusals: test_tls.)"""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID

from keymesh.access.identity import CoreIdentity, Identity, parse_identity
from keymesh.adapters import key_files, pki
from keymesh.adapters.files import write_file
from keymesh.model.errors import Refused
from keymesh.model.ids import MeshName
from keymesh.model.time import Instant

MESH = MeshName("mesh1")
NOW = Instant(1_700_000_000_000)
ROOT = pki.create_root(MESH, now=NOW)
EU = pki.create_intermediate(ROOT, "eu", now=NOW)
WIDE = pki.create_intermediate(ROOT, None, now=NOW)


def who(uri: str) -> Identity:
    return parse_identity(uri, MESH)


CORE = who("spiffe://eu.mesh1/core/n1")


def test_leaf_profile() -> None:
    key = pki.new_tls_key()
    leaf = pki.issue_leaf(EU, identity=CORE, public_key=key.public_key(), now=NOW)
    assert pki.identity_of(leaf, MESH) == CORE
    pki.check_leaf_profile(leaf)
    assert pki.validity_ms(leaf) == (NOW - 60_000, NOW + 24 * 3_600_000)
    assert set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    leaf.verify_directly_issued_by(EU.certificate)


def test_a_clients_leaf_is_for_client_use_alone() -> None:
    client = who("spiffe://eu.mesh1/tenant/acme/client/app")
    leaf = pki.issue_leaf(EU, identity=client, public_key=pki.new_tls_key().public_key(), now=NOW)
    usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usages) == {ExtendedKeyUsageOID.CLIENT_AUTH}
    pki.check_leaf_profile(leaf, client_only=True)
    with pytest.raises(Refused):
        pki.check_leaf_profile(leaf)


def test_intermediates_are_confined_and_issue_no_cas() -> None:
    for authority, domain in ((EU, "eu.mesh1"), (WIDE, "mesh1")):
        constraints = authority.certificate.extensions.get_extension_for_class(x509.NameConstraints)
        assert constraints.critical
        assert constraints.value.permitted_subtrees == [x509.UniformResourceIdentifier(domain)]
        basic = authority.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        assert basic.ca
        assert basic.path_length == 0
    with pytest.raises(Refused):
        pki.create_intermediate(EU, "us", now=NOW)


@pytest.mark.parametrize(
    ("authority", "uri"),
    [
        (EU, "spiffe://us.mesh1/core/n1"),
        (EU, "spiffe://mesh1/registry/r1"),
        (WIDE, "spiffe://eu.mesh1/core/n1"),
        (ROOT, "spiffe://mesh1/registry/r1"),
    ],
)
def test_an_issuer_refuses_identities_outside_its_domain(authority: pki.Authority, uri: str) -> None:
    key = pki.new_tls_key()
    with pytest.raises(Refused, match="outside the domain"):
        pki.issue_leaf(authority, identity=who(uri), public_key=key.public_key(), now=NOW)
    with pytest.raises(Refused, match="outside the domain"):
        pki.issue_from_csr(authority, pki.make_csr(key, who(uri)), identity=who(uri), now=NOW)


def test_only_p256_keys_and_sane_lifetimes() -> None:
    with pytest.raises(Refused, match="P-256"):
        weak = ec.generate_private_key(ec.SECP224R1()).public_key()
        pki.issue_leaf(EU, identity=CORE, public_key=weak, now=NOW)
    for lifetime_ms in (0, -1, pki.CA_LIFETIME_MS + 1):
        with pytest.raises(Refused, match="lifetime"):
            public_key = pki.new_tls_key().public_key()
            pki.issue_leaf(EU, identity=CORE, public_key=public_key, now=NOW, lifetime_ms=lifetime_ms)


def test_csr_yields_the_requesters_key() -> None:
    key = pki.new_tls_key()
    leaf = pki.issue_from_csr(EU, pki.make_csr(key, CORE), identity=CORE, now=NOW, lifetime_ms=60_000)
    assert leaf.public_key() == key.public_key()
    assert pki.validity_ms(leaf)[1] == NOW + 60_000


def csr_with(names: list[x509.GeneralName], key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    algorithm = hashes.SHA256() if isinstance(key, ec.EllipticCurvePrivateKey) else None
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    "names",
    [
        [],
        [x509.UniformResourceIdentifier("spiffe://eu.mesh1/core/n2")],
        [x509.UniformResourceIdentifier(str(CORE)), x509.UniformResourceIdentifier("spiffe://eu.mesh1/core/n2")],
        [x509.UniformResourceIdentifier(str(CORE)), x509.DNSName("eu.mesh1")],
        [x509.DNSName("eu.mesh1")],
    ],
)
def test_csr_for_other_names_is_refused(names: list[x509.GeneralName]) -> None:
    with pytest.raises(Refused):
        pki.issue_from_csr(EU, csr_with(names, pki.new_tls_key()), identity=CORE, now=NOW)


def test_csr_garbage_forgery_and_other_key_kinds_are_refused() -> None:
    good = pki.make_csr(pki.new_tls_key(), CORE)
    der = bytearray(x509.load_pem_x509_csr(good).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    other_kind = csr_with([x509.UniformResourceIdentifier(str(CORE))], ed25519.Ed25519PrivateKey.generate())
    for csr in (b"", b"-----BEGIN CERTIFICATE REQUEST-----\n", good[:-40], b"x" * 100_000, forged, other_kind):
        with pytest.raises(Refused):
            pki.issue_from_csr(EU, csr, identity=CORE, now=NOW)


def test_renewal_is_due_at_half_life() -> None:
    leaf = pki.issue_leaf(EU, identity=CORE, public_key=pki.new_tls_key().public_key(), now=NOW)
    half = NOW - 60_000 + (24 * 3_600_000 + 60_000) // 2
    assert not pki.needs_renewal(leaf, Instant(half - 1))
    assert pki.needs_renewal(leaf, Instant(half))


@pytest.mark.parametrize(("mesh", "is_dev"), [("dev", True), ("x-dev", True), ("device", False), ("mesh1", False)])
def test_production_refuses_development_domains(mesh: str, is_dev: bool) -> None:
    assert pki.is_development_domain(mesh) is is_dev
    assert pki.require_domain(mesh, production=False) == mesh
    if is_dev:
        with pytest.raises(Refused):
            pki.require_domain(mesh, production=True)
    else:
        assert pki.require_domain(mesh, production=True) == mesh


def test_authority_files_round_trip_and_are_private(tmp_path: Path) -> None:
    for authority in (ROOT, EU, WIDE):
        path = tmp_path / f"{authority.domain}-{authority.is_root}.pem"
        key_files.write_authority(path, authority)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        loaded = key_files.load_authority(path, mesh=MESH)
        assert (loaded.domain, loaded.is_root, loaded.mesh) == (authority.domain, authority.is_root, MESH)
        assert "PRIVATE" not in repr(loaded)
        with pytest.raises(Refused):
            key_files.load_authority(path, mesh=MeshName("mesh2"))


def test_authority_with_anothers_key_is_refused(tmp_path: Path) -> None:
    mixed = pki.Authority(EU.certificate, pki.new_tls_key(), MESH, EU.domain, is_root=False)
    key_files.write_authority(tmp_path / "ca.pem", mixed)
    with pytest.raises(Refused):
        key_files.load_authority(tmp_path / "ca.pem", mesh=MESH)


def test_signing_keys_round_trip(tmp_path: Path) -> None:
    key = key_files.new_signing_key()
    key_files.write_signing_key(tmp_path / "s.pem", key)
    raw = key_files.signing_public_raw(key)
    assert len(raw) == 32
    assert key_files.signing_public_raw(key_files.load_signing_key(tmp_path / "s.pem")) == raw


def test_bad_key_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.pem"
    with pytest.raises(Refused, match="no file"):
        key_files.load_signing_key(path)
    key_files.write_signing_key(path, key_files.new_signing_key())
    path.chmod(0o640)
    with pytest.raises(Refused, match="0600"):
        key_files.load_signing_key(path)
    for content in (b"", b"junk", b"x" * 100_000):
        write_file(path, content)
        with pytest.raises(Refused):
            key_files.load_signing_key(path)
    key_files.write_identity(path, pki.new_tls_key(), [])
    with pytest.raises(Refused, match="Ed25519"):
        key_files.load_signing_key(path)


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_file(path, b"old")
    with pytest.raises(TypeError):
        write_file(path, "text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_describe_names_what_matters_and_no_key(tmp_path: Path) -> None:
    key = pki.new_tls_key()
    leaf = pki.issue_leaf(EU, identity=CORE, public_key=key.public_key(), now=NOW)
    key_files.write_identity(tmp_path / "id.pem", key, [leaf, EU.certificate])
    first, second = pki.describe((tmp_path / "id.pem").read_bytes())
    assert first["uris"] == [str(CORE)]
    assert first["sha256"] == pki.fingerprint(leaf)
    assert second["permitted_domains"] == ["eu.mesh1"]
    assert second["ca"] is True
    for bad in (b"", b"junk", b"x" * 100_000):
        with pytest.raises(Refused):
            pki.describe(bad)


def test_root_names_its_mesh() -> None:
    assert pki.mesh_of_root(ROOT.certificate) == MESH
    with pytest.raises(Refused):
        pki.mesh_of_root(EU.certificate)
    assert isinstance(CORE, CoreIdentity)
