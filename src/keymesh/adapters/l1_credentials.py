"""What a customer gave a Core for a tenant's L1, and where it may go: ``l1/TENANT`` beside the Core's identity.

A tenant's own signers write its binding, so nothing that the binding names may reach a file of anybody else: not of
another tenant, not of a seal or the key store.  And the machine, not the binding, says which servers the customer's
credentials are for.  All files of mode 0600:

    openbao-NAME.json, openbao-NAME.pem    one login each
    endpoints.json                         {"urls": ["https://HOST:PORT", ...]}, each as bindings write it
    ca.pem                                 the CAs of those servers
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from keymesh.adapters.key_files import read_private
from keymesh.adapters.openbao_login import Login
from keymesh.adapters.pki import certificates_pem, fingerprint, parse_certificates
from keymesh.model import strict_json
from keymesh.model.errors import Refused
from keymesh.model.ids import check_tenant

L1_DIRECTORY: Final = "l1"
ENDPOINTS_FILE: Final = "endpoints.json"
CA_FILE: Final = "ca.pem"
_MAX_BYTES: Final = 64 * 1024


class _Endpoints(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    urls: tuple[str, ...]


def l1_directory(core: Path, tenant: str) -> Path:
    """Of the Core whose own directory is ``core``.  Raises Refused where ``tenant`` is no tenant's name."""
    return core / L1_DIRECTORY / check_tenant(tenant)


def allowed_trust(directory: Path, urls: Iterable[str], ca_pem: str) -> bytes:
    """The PEM to trust: ``ca_pem``, once ``directory`` allows each of its certificates and each of ``urls``.

    Written anew from what was compared, so that no other reader of PEM finds more in it.  Raises Refused naming the
    file that cannot be read, ``replicas`` or ``ca_pem``.
    """
    if not set(urls) <= set(_urls(directory / ENDPOINTS_FILE)):
        raise Refused.bad_field("replicas", f"only endpoints that this Core's {ENDPOINTS_FILE} has for the tenant")
    local = {fingerprint(c) for c in _certificates(CA_FILE, _read(directory / CA_FILE))}
    named = _certificates("ca_pem", ca_pem.encode("ascii"))
    if not {fingerprint(c) for c in named} <= local:
        raise Refused.bad_field("ca_pem", f"only certificates that this Core's {CA_FILE} has for the tenant")
    return certificates_pem(named)


def _urls(file: Path) -> tuple[str, ...]:
    raw = _read(file)
    try:
        return strict_json.decode(raw, _Endpoints, max_bytes=_MAX_BYTES).urls
    except Refused:
        raise Refused.bad_field(file.name, "a JSON object of urls") from None


def _read(file: Path) -> bytes:
    try:
        return read_private(file, max_bytes=_MAX_BYTES)
    except OSError as bad:
        raise Refused.bad_field(file.name, "cannot be read") from bad


def _certificates(field: str, pem: bytes) -> list[Any]:
    try:
        return list(parse_certificates(pem))
    except Refused:
        raise Refused.bad_field(field, "PEM certificates") from None


@dataclass(frozen=True, slots=True)
class AllowedLogin:
    """``login``, as long as ``allowed`` does not raise Refused: asked at each login, so that a pin withdrawn counts."""

    login: Login
    allowed: Callable[[], object]

    def request(self) -> tuple[str, Any]:
        """Raises Refused as ``allowed`` or the login does."""
        self.allowed()
        return self.login.request()
