"""``keymesh pki``: the mesh's certificates, and their renewal."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from keymesh.adapters import pki
from keymesh.adapters.tls import Credentials
from keymesh.app.cli_common import add_common, emit, facts, table
from keymesh.app.layout import Layout, load_plan, resolve_dir
from keymesh.app.renewal import renew
from keymesh.model.errors import Refused


def register(commands: Any) -> None:
    parser = commands.add_parser("pki", help="show and renew the mesh's certificates")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="every certificate of the mesh", epilog="example: keymesh pki show")
    show.add_argument("file", nargs="?", metavar="FILE", help="one PEM file instead")
    add_common(show)
    show.set_defaults(run=run_show)
    again = actions.add_parser(
        "renew",
        help="renew a role's certificate now (processes renew their own at half life)",
        epilog="example: keymesh pki renew operator",
    )
    again.add_argument("role", metavar="ROLE", help="operator, registry, or core-REGION")
    add_common(again)
    again.set_defaults(run=run_renew)


def _identity_files(layout: Layout) -> dict[str, tuple[Path, Path]]:
    """Role -> (its identity file, the CA file that issues it)."""
    plan = load_plan(layout)
    mesh_ca = layout.pki / "mesh-ca.pem"
    files = {
        "operator": (layout.admin / "operator.pem", mesh_ca),
        "registry": (layout.registry / "tls.pem", mesh_ca),
    }
    for region in plan.regions:
        directory = layout.core(region)
        files[f"core-{region}"] = (directory / "tls.pem", directory / "region-ca.pem")
    return files


def _certificates_only(path: Path) -> bytes:
    """The certificates of a PEM file that may hold a key too."""
    return pki.certificates_pem(pki.parse_certificates(path.read_bytes()))


def run_show(args: argparse.Namespace) -> int:
    """Certificates of the mesh, or of one file."""
    if args.file:
        files = {args.file: Path(args.file)}
    else:
        layout = Layout(resolve_dir(args.dir))
        files = {"root": layout.ca} | {role: pair[0] for role, pair in _identity_files(layout).items()}
    shown = {
        "certificates": [
            {"role": role, **description}
            for role, path in files.items()
            for description in pki.describe(_certificates_only(path))[: 1 if not args.file else None]
        ]
    }

    def human() -> None:
        table(
            "certificates",
            ("role", "identity", "not after", "sha256"),
            (
                (c["role"], " ".join(c["uris"]) or c["subject"], c["not_after"], c["sha256"])
                for c in shown["certificates"]
            ),
        )

    emit(args, shown, human)
    return 0


def run_renew(args: argparse.Namespace) -> int:
    layout = Layout(resolve_dir(args.dir))
    files = _identity_files(layout)
    if args.role not in files:
        raise Refused.bad_field("role", f"one of {', '.join(files)}")
    identity_file, authority_file = files[args.role]
    credentials = Credentials(identity_file)
    renew(credentials, authority_file, load_plan(layout).mesh)
    shown = {"ok": True, "role": args.role, "fingerprint": pki.fingerprint(credentials.certificate)}
    emit(args, shown, lambda: facts(f"renewed {args.role}", {"fingerprint": shown["fingerprint"]}))
    return 0
