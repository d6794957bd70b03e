"""``keymesh edge aws-kms`` and ``aws-credential``."""

from __future__ import annotations

import argparse
import secrets
import time
from pathlib import Path
from typing import Any

from keymesh.app.aws_files import AwsRecords, CredentialBook, changing, read_credentials
from keymesh.app.cli_common import emit, facts, table
from keymesh.app.face_start import FaceKind, FaceParts, now_ms, run_face
from keymesh.compat.aws_credentials import CREDENTIALS_MAX, Credential, new_credential
from keymesh.compat.aws_kms import AwsKms
from keymesh.compat.aws_names import account_of
from keymesh.model.errors import Refused


def run_aws_kms(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    book = CredentialBook(Path(args.credentials), time.monotonic)

    def make(parts: FaceParts) -> AwsKms:
        return AwsKms(
            parts.ring,
            AwsRecords(parts.state / "aws-records.json"),
            credential_of=book.get,
            region=args.aws_region or args.region,
            now_ms=now_ms,
            random=secrets.token_bytes,
        )

    return run_face(args, FaceKind(name="aws-kms", make=make, tenants=book.tenants))


def run_credential_add(args: argparse.Namespace) -> int:
    made = new_credential(args.tenant, args.service, args.role or (), secrets.token_bytes)
    with changing(Path(args.file)) as known:
        if len(known) >= CREDENTIALS_MAX:
            raise Refused("limit", f"at most {CREDENTIALS_MAX} access keys in one file", field="file")
        known[made.access_key_id] = made
    shown = {**_shown(made), "secret_access_key": made.secret}
    emit(args, shown, lambda: facts("access key; its secret is shown this once", shown))
    return 0


def run_credential_list(args: argparse.Namespace) -> int:
    known = read_credentials(Path(args.file))
    shown = {"credentials": [_shown(one) for _, one in sorted(known.items())]}

    def human() -> None:
        rows = (
            [c["access_key_id"], c["tenant"], c["account"], c["services"], c["roles"]] for c in shown["credentials"]
        )
        table("access keys", ("access key id", "tenant", "account", "services", "roles"), rows)

    emit(args, shown, human)
    return 0


def run_credential_remove(args: argparse.Namespace) -> int:
    file = Path(args.file)
    if args.access_key_id not in read_credentials(file):
        raise Refused("not-found", "no such access key in that file", field="access_key_id")
    with changing(file) as known:
        known.pop(args.access_key_id, None)
    shown = {"ok": True, "access_key_id": args.access_key_id}
    emit(args, shown, lambda: facts("removed", {"access key": args.access_key_id}))
    return 0


def _shown(one: Credential) -> dict[str, Any]:
    return {
        "access_key_id": one.access_key_id,
        "tenant": one.tenant,
        "account": account_of(one.tenant),
        "services": "all" if one.services is None else sorted(one.services),
        "roles": sorted(one.roles),
    }
