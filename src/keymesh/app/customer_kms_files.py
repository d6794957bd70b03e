"""The customer KMS's directory: its own CA and certificates, and the client CAs that its owner allowed.

Decides which clients are known and what they may be; not what becomes of a key (``customer_kms_store``).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import msgspec

from keymesh.access.identity import (
    AdminIdentity,
    ClientIdentity,
    CoreIdentity,
    EdgeIdentity,
    Identity,
    RegistryIdentity,
)
from keymesh.adapters import key_files, pki
from keymesh.adapters.customer_kms import AllowedCa
from keymesh.adapters.files import write_file
from keymesh.model import strict_json
from keymesh.model.errors import Refused, Unavailable
from keymesh.model.ids import MeshName, check_label
from keymesh.model.time import Instant

DEFAULT_NAME: Final = "customer-kms-dev"
LEAF_LIFETIME_MS: Final = 365 * 24 * 3_600_000
CLIENTS_MAX: Final = 16

ROOT_FILE, CA_FILE, SERVER_FILE, OWNER_FILE = "root.pem", "ca.pem", "server.pem", "owner.pem"
KEYS_FILE, CLIENTS_FILE, LOCK_FILE = "keys.json", "clients.json", "kms.lock"

_KINDS: Final[dict[str, type[Identity]]] = {
    "core": CoreIdentity,
    "edge": EdgeIdentity,
    "client": ClientIdentity,
    "registry": RegistryIdentity,
    "admin": AdminIdentity,
}


class _Clients(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    allowed: list[AllowedCa]


def prepare(directory: Path, *, name: str = DEFAULT_NAME, allow_ca: tuple[str, ...] = ()) -> None:
    """Make the directory, its CA and certificates where they are missing or due, and allow further client CAs.

    Safe to repeat.  The CA's root key is not kept: what it signed is all that it will ever sign.
    """
    check_label("name", name)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    now = Instant(time.time_ns() // 1_000_000)
    if not (directory / CA_FILE).exists():
        root = pki.create_root(name, now=now)
        issuer = pki.create_intermediate(root, None, now=now)
        write_file(directory / ROOT_FILE, pki.certificates_pem([root.certificate]), mode=0o644)
        key_files.write_authority(directory / CA_FILE, issuer)
    root_certificate = pki.parse_certificates((directory / ROOT_FILE).read_bytes())[0]
    domain = pki.mesh_of_root(root_certificate)
    issuer = key_files.load_authority(directory / CA_FILE, mesh=domain)
    for file, uri in ((SERVER_FILE, f"spiffe://{domain}/kms/server"), (OWNER_FILE, f"spiffe://{domain}/owner/owner")):
        _renew(directory / file, issuer, uri, now)
    if allow_ca:
        Clients(directory / CLIENTS_FILE).allow(*(AllowedCa(ca_pem=pem) for pem in allow_ca))


def _renew(path: Path, issuer: pki.Authority, uri: str, now: Instant) -> None:
    if path.exists() and not pki.needs_renewal(pki.parse_certificates(key_files.read_private(path))[0], now):
        return
    key = pki.new_tls_key()
    leaf = pki.sign_leaf(issuer, uri, key.public_key(), now=now, lifetime_ms=LEAF_LIFETIME_MS)
    key_files.write_identity(path, key, [leaf, issuer.certificate])


class Clients:
    """The CAs that the owner knows, by the root's fingerprint; durable."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._by_root: dict[str, tuple[MeshName, AllowedCa]] = {}
        if path.exists():
            raw = key_files.read_private(path, max_bytes=1024 * 1024)
            for entry in strict_json.decode(raw, _Clients, max_bytes=1024 * 1024).allowed:
                self._by_root |= _checked(entry)

    def allow(self, *entries: AllowedCa) -> None:
        """Replace what is known of these CAs.

        Raises Refused for one that is no mesh root, Unavailable where it could not be recorded.
        """
        changed = dict(self._by_root)
        for entry in entries:
            changed |= _checked(entry)
        if len(changed) > CLIENTS_MAX:
            raise Refused("too-many", f"at most {CLIENTS_MAX} client CAs")
        try:
            content = _Clients(allowed=[entry for _, (_, entry) in sorted(changed.items())])
            write_file(self._path, strict_json.dumps(content))
        except OSError as failed:
            raise Unavailable("disk", f"the change could not be recorded: {failed.strerror}") from failed
        self._by_root = changed

    def trust_pem(self) -> bytes:
        return "".join(entry.ca_pem for _, entry in self._by_root.values()).encode("ascii")

    def mesh_of(self, root: str) -> MeshName | None:
        known = self._by_root.get(root)
        return None if known is None else known[0]

    def may_use(self, root: str, identity: Identity | None) -> bool:
        """Whether a client with that root and identity may wrap and unwrap."""
        known = self._by_root.get(root)
        if known is None or identity is None or known[1].denied:
            return False
        _, entry = known
        prefixes = entry.uri_prefixes
        return isinstance(identity, tuple(_KINDS[kind] for kind in entry.kinds)) and (
            not prefixes or str(identity).startswith(prefixes)
        )


def _checked(entry: AllowedCa) -> dict[str, tuple[MeshName, AllowedCa]]:
    if not set(entry.kinds) <= _KINDS.keys():
        raise Refused.bad_field("kinds", f"any of {', '.join(_KINDS)}")
    if not entry.ca_pem.isascii():
        raise Refused.bad_field("ca_pem", "not PEM")
    certificates = pki.parse_certificates(entry.ca_pem.encode("ascii"))
    if len(certificates) != 1:
        raise Refused.bad_field("ca_pem", "exactly one root certificate")
    ca_pem = pki.certificates_pem(certificates).decode("ascii")
    entry = msgspec.structs.replace(entry, ca_pem=ca_pem)
    return {pki.fingerprint(certificates[0]): (pki.mesh_of_root(certificates[0]), entry)}
