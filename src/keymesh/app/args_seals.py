"""``keymesh region seals | add-seal | remove-seal | unseal | seal``: their arguments."""

from __future__ import annotations

from typing import Any

from keymesh.app.args_common import Later, add_common


def register(regions: Any) -> None:
    """Add this module's commands under ``region``."""
    seals = regions.add_parser(
        "seals",
        help="what opens a region's MasterKey, and whether it does",
        epilog="example: keymesh region seals eu-west",
    )
    seals.add_argument("region", metavar="R", help="its name, as in `keymesh region list`")
    add_common(seals)
    seals.set_defaults(run=Later("cli_seals", "run_seals"))

    add = regions.add_parser(
        "add-seal",
        help="another seal, any of which opens the region",
        epilog="example: keymesh region add-seal eu-west --kind pkcs11 --key 'pkcs11:token=keymesh;object=master'",
    )
    add.add_argument("region", metavar="R", help="its name, as in `keymesh region list`")
    add.add_argument("--kind", required=True, choices=("file", "shamir", "openbao", "pkcs11"))
    add.add_argument("--key", metavar="URL", help="of openbao and pkcs11: the key, as `tenant create --l1` has it")
    add.add_argument("--make-key", action="store_true", help="of pkcs11: make that key in the token first")
    add.add_argument("--shares", metavar="M/N", help="of shamir: N shares, any M of which open the region")
    add.add_argument("--out", metavar="DIR", help="of shamir: where the shares go, one file each")
    add_common(add)
    add.set_defaults(run=Later("cli_seals", "run_add"))

    remove = regions.add_parser(
        "remove-seal",
        help="take a seal out of the list; never the last one that opens",
        epilog="example: keymesh region remove-seal eu-west file-1a2b3c4d",
    )
    remove.add_argument("region", metavar="R", help="its name, as in `keymesh region list`")
    remove.add_argument("seal", metavar="ID", help="as in `keymesh region seals`")
    add_common(remove)
    remove.set_defaults(run=Later("cli_seals", "run_remove"))

    unseal = regions.add_parser(
        "unseal",
        help="give a region its MasterKey back: by shares, or by the seals that open by themselves",
        epilog="example: keymesh region unseal eu-west --share a.txt --share b.txt",
    )
    unseal.add_argument("region", metavar="R")
    unseal.add_argument("--share", action="append", default=[], metavar="FILE", help="once for each share")
    add_common(unseal)
    unseal.set_defaults(run=Later("cli_seals", "run_unseal"))

    seal = regions.add_parser(
        "seal",
        help="drop every key of a region from memory, until `region unseal` or a new start of its process",
        epilog="example: keymesh region seal eu-west",
    )
    seal.add_argument("region", metavar="R")
    add_common(seal)
    seal.set_defaults(run=Later("cli_seals", "run_seal"))
