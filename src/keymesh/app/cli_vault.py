"""``keymesh edge vault-transit`` and ``vault-login``."""

from __future__ import annotations

import argparse
import hashlib
import secrets
import time
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography import x509

from keymesh.adapters.pki import identity_of, validity_ms
from keymesh.adapters.system import Stopwatch
from keymesh.adapters.vault_http import VaultConnection
from keymesh.app.cli_common import emit, facts, table
from keymesh.app.face_start import FaceKind, FaceParts, run_face
from keymesh.app.vault_files import LoginBook, changing, read_logins
from keymesh.compat.vault_auth import Identify, Shown
from keymesh.compat.vault_face import VaultFace
from keymesh.compat.vault_tokens import EVERY, AppRole, CertificateRole, Grant, Tokens, VaultLogins, WrittenToken
from keymesh.model.errors import Refused
from keymesh.model.ids import MeshName

USES: Final = ("encrypt", "decrypt", "rewrap", "datakey", "read")
_KINDS: Final = {"approle": "approles", "token": "tokens", "certificate": "certificates"}


def run_vault_transit(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    book = LoginBook(Path(args.logins), time.monotonic)
    watch = Stopwatch()

    def make(parts: FaceParts) -> VaultFace:
        return VaultFace(
            parts.ring,
            Tokens(secrets.token_bytes, book.get),
            mesh=parts.mesh,
            region=parts.region,
            tenants=book.tenants,
            identify=identified_in(MeshName(parts.mesh)),
            random=secrets.token_bytes,
            now=lambda: watch.observe()[0],
        )

    kind = FaceKind(
        name="vault-transit", make=make, tenants=book.tenants, takes_certificates=True, connection=VaultConnection
    )
    return run_face(args, kind)


def identified_in(mesh: MeshName) -> Identify:
    """Whose certificate it is; the handshake has checked its chain."""

    def identify(der: bytes) -> Shown | None:
        try:
            certificate = x509.load_der_x509_certificate(der)
            return identity_of(certificate, mesh), validity_ms(certificate)[1]
        except (Refused, ValueError):
            return None

    return identify


# --- who may ---------------------------------------------------------------------------------------------------------


def run_approle(args: argparse.Namespace) -> int:
    role_id, secret_id = secrets.token_hex(16), secrets.token_urlsafe(32)
    role = AppRole(
        **_grant(args), ttl_s=args.ttl_s, max_ttl_s=args.max_ttl_s, role_id=role_id, secret_id_sha256=(_sha(secret_id),)
    )
    _add(args, "approle", role)
    shown = {**_shown("approle", role), "secret_id": secret_id}
    emit(args, shown, lambda: facts("approle; its secret id is shown this once", shown))
    return 0


def run_token(args: argparse.Namespace) -> int:
    secret = "kmv." + secrets.token_urlsafe(32)
    if args.valid_s is not None and args.valid_s <= 0:
        raise Refused.bad_field("valid-s", "more than 0")
    not_after = None if args.valid_s is None else time.time_ns() // 1_000_000 + args.valid_s * 1_000
    token = WrittenToken(**_grant(args), token_sha256=_sha(secret), not_after=not_after)
    _add(args, "token", token)
    shown = {**_shown("token", token), "token": secret}
    emit(args, shown, lambda: facts("token; it is shown this once", shown))
    return 0


def run_certificate(args: argparse.Namespace) -> int:
    role = CertificateRole(
        **_grant(args), ttl_s=args.ttl_s, max_ttl_s=args.max_ttl_s, edge=args.edge, client=args.client
    )
    _add(args, "certificate", role)
    shown = _shown("certificate", role)
    emit(args, shown, lambda: facts("certificate login", shown))
    return 0


def run_login_list(args: argparse.Namespace) -> int:
    logins = read_logins(Path(args.file))
    found = [_shown(kind, grant) for kind, field in _KINDS.items() for grant in getattr(logins, field)]
    columns = ("kind", "name", "tenant", "services", "rights")
    emit(args, {"logins": found}, lambda: table("logins", columns, ([one[c] for c in columns] for one in found)))
    return 0


def run_login_remove(args: argparse.Namespace) -> int:
    file, field = Path(args.file), _KINDS[args.kind]
    if not any(grant.name == args.name for grant in getattr(read_logins(file), field)):
        raise Refused("not-found", f"no {args.kind} of that name in that file", field="name")
    with changing(file) as place:
        place[0] = msgspec.structs.replace(
            place[0], **{field: tuple(grant for grant in getattr(place[0], field) if grant.name != args.name)}
        )
    shown = {"ok": True, "kind": args.kind, "name": args.name}
    emit(args, shown, lambda: facts("removed", {args.kind: args.name}))
    return 0


def _grant(args: argparse.Namespace) -> dict[str, Any]:
    services, rights = tuple(args.service) or (EVERY,), tuple(dict.fromkeys(args.right or USES))
    return {"name": args.name, "tenant": args.tenant, "services": services, "rights": rights}


def _add(args: argparse.Namespace, kind: str, grant: Grant) -> None:
    """Raises Refused ``conflict`` for a name that is taken."""
    field = _KINDS[kind]
    with changing(Path(args.file)) as place:
        logins: VaultLogins = place[0]
        there: tuple[Grant, ...] = getattr(logins, field)
        if any(one.name == grant.name for one in there):
            raise Refused("conflict", f"there is a login of kind {kind} and that name", field="name")
        place[0] = msgspec.structs.replace(logins, **{field: (*there, grant)})


def _shown(kind: str, grant: Grant) -> dict[str, Any]:
    shown = {
        "kind": kind,
        "name": grant.name,
        "tenant": grant.tenant,
        "services": "all" if EVERY in grant.services else ", ".join(grant.services),
        "rights": ", ".join(grant.rights),
    }
    match grant:
        case AppRole():
            shown["role_id"] = grant.role_id
        case CertificateRole(edge=None):
            shown["client"] = str(grant.client)
        case CertificateRole():
            shown["edge"] = str(grant.edge)
    return shown


def _sha(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
