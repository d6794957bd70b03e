"""``keymesh verify``: a certificate of a kill switch or a destruction, checked offline; needs no mesh, no network."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from keymesh.app.cli_common import emit, facts, show_utc, stdout
from keymesh.app.cli_errors import BadUsage
from keymesh.app.layout import Layout, resolve_dir
from keymesh.app.trust_file import load_trust
from keymesh.control import destruction
from keymesh.control.destruction import DESTROY
from keymesh.control.evidence import CERTIFICATE_MAX_BYTES, verify_certificate
from keymesh.model.errors import ExitCode, Refused


def run_verify(args: argparse.Namespace) -> int:
    """Check a certificate file against the pinned root; nothing is asked of the mesh."""
    path = Path(args.file)
    raw = path.read_bytes()
    if len(raw) > CERTIFICATE_MAX_BYTES:
        raise Refused.bad_field("file", f"at most {CERTIFICATE_MAX_BYTES} bytes")
    root_file = Path(args.root) if args.root else Layout(resolve_dir(args.dir)).trust
    if args.root is None and not root_file.is_file():
        raise BadUsage("no-trust", "no trust.json here: give the mesh's root keys with --root FILE", field="root")
    trust = load_trust(root_file)
    try:
        verified = verify_certificate(raw, root=trust.root, mesh=trust.mesh)
    except Refused as bad:
        raise Refused("bad-field", f"{path} is no certificate ({bad.message})", field="file") from bad
    shown = {
        "ok": True,
        "scope": str(verified.scope),
        "action": verified.action,
        "t": verified.t,
        "t_utc": show_utc(verified.t),
        "until": "a later committed resume" if verified.action == "suspend" else "for ever",
        "voters": list(verified.voters),
        "holders_by_acknowledgement": list(verified.by_ack),
        "holders_by_bound": list(verified.by_bound),
        **({} if verified.action != DESTROY else destruction.summary(verified.purged)),
        "command_id": verified.statement.command_id,
        "not_covered": list(verified.statement.not_covered),
    }
    emit(args, shown, lambda: _show(shown))
    return int(ExitCode.DONE)


def _show(shown: dict[str, Any]) -> None:
    facts("certificate verified", {k: v for k, v in shown.items() if k not in ("ok", "t", "not_covered")})
    for n, one in enumerate(shown["not_covered"]):
        stdout.print(f"  {'' if n else 'not_covered':<11}  {one}", markup=False)
