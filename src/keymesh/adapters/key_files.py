"""Keys and certificates on disk: PEM, private files for the owner alone.

Decides what a key file must contain; not what is issued (``adapters.pki``).  Signing keys are Ed25519
and never serve TLS.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from keymesh.adapters.files import write_file
from keymesh.adapters.pki import PEM_MAX_BYTES, Authority, certificates_pem, mesh_of_root, parse_certificates
from keymesh.model.errors import Refused
from keymesh.model.ids import MeshName


def new_signing_key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


def signing_public_raw(key: ed25519.Ed25519PrivateKey) -> bytes:
    """The 32 bytes by which log entries know the signer."""
    return key.public_key().public_bytes_raw()


def key_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    """PKCS #8, in the clear: for private files alone."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def write_identity(path: Path, key: ec.EllipticCurvePrivateKey, chain: Iterable[x509.Certificate]) -> None:
    """Key, leaf and intermediate in one private file, so that a renewal replaces all of them in one rename."""
    write_file(path, key_pem(key) + certificates_pem(chain))


def write_authority(path: Path, authority: Authority) -> None:
    """A CA's key and certificate in one private file."""
    write_file(path, key_pem(authority.key) + certificates_pem([authority.certificate]))


def load_authority(path: Path, *, mesh: MeshName) -> Authority:
    """The CA in ``path``.  Raises Refused where key and certificate do not belong together or to ``mesh``."""
    pem = read_private(path)
    certificate = parse_certificates(pem)[0]
    key = _load_key(pem)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise Refused.bad_field("authority", "the key is not the certificate's")
    try:
        permitted = certificate.extensions.get_extension_for_class(x509.NameConstraints).value.permitted_subtrees or []
        domain = str(permitted[0].value) if len(permitted) == 1 else ""
        is_root = False
    except x509.ExtensionNotFound:
        domain, is_root = mesh_of_root(certificate), True
    if domain != mesh and (is_root or not domain.endswith(f".{mesh}")):
        raise Refused.bad_field("authority", f"not a CA of the mesh {mesh!r}")
    return Authority(certificate, key, mesh, domain, is_root)


def write_signing_key(path: Path, key: ed25519.Ed25519PrivateKey) -> None:
    write_file(path, key_pem(key))


def load_signing_key(path: Path) -> ed25519.Ed25519PrivateKey:
    """The Ed25519 key in ``path``.  Raises Refused where it is another kind or others can read the file."""
    key = _load_key(read_private(path))
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise Refused.bad_field("signing key", "not an Ed25519 key")
    return key


def _load_key(pem: bytes) -> object:
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as bad:
        raise Refused.bad_field("key", "not an unencrypted PEM private key") from bad


def read_private(path: Path, *, max_bytes: int = PEM_MAX_BYTES) -> bytes:
    """The bytes of a file that only its owner can read.  Raises Refused for a wider mode or an oversized file."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_mode & 0o077:
                raise Refused.bad_field(str(path.name), "others can read this file; its mode must be 0600")
            if status.st_size > max_bytes:
                raise Refused.bad_field(str(path.name), f"at most {max_bytes} bytes")
            return file.read()
    except FileNotFoundError as missing:
        raise Refused("not-found", f"no file {path.name}", field=path.name) from missing
