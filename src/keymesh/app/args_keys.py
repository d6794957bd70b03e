"""``keymesh key`` and ``keymesh region``: their arguments."""

from __future__ import annotations

from typing import Any

from keymesh.app.args_common import Later, add_common


def register(commands: Any) -> None:
    """Add this module's commands to the parser."""
    key = commands.add_parser("key", help="list, rotate and re-wrap keys")
    actions = key.add_subparsers(dest="action", metavar="ACTION", required=True)

    listing = actions.add_parser("list", help="key versions", epilog="example: keymesh key list acme")
    listing.add_argument("tenant", nargs="?", metavar="T", help="default: of all tenants")
    listing.add_argument("--tenant", dest="tenant_option", metavar="T", help="the same, as an option")
    add_common(listing)
    listing.set_defaults(run=Later("cli_keys", "run_list"))

    show = actions.add_parser("show", help="one key version", epilog="example: keymesh key show key:acme/files@1")
    show.add_argument("scope", metavar="SCOPE", help="key:T/S@V, or tenant:T for the tenant's own key")
    add_common(show)
    show.set_defaults(run=Later("cli_keys", "run_show"))

    rotate = actions.add_parser(
        "rotate",
        help="a new version protects new data; older versions go on opening old data",
        epilog="example: keymesh key rotate service:acme/files",
    )
    rotate.add_argument("scope", metavar="SCOPE", help="tenant:T (its L2) or service:T/S (its L3)")
    rotate.add_argument("--no-wait", action="store_true", help="return once committed, before the version exists")
    add_common(rotate)
    rotate.set_defaults(run=Later("cli_keys", "run_rotate"))

    rewrap = actions.add_parser(
        "rewrap",
        help="wrap the service keys anew under the tenant's newest key; data stays as it is",
        epilog="example: keymesh key rewrap tenant:acme",
    )
    rewrap.add_argument("scope", metavar="SCOPE", help="tenant:T (all services) or service:T/S")
    rewrap.add_argument("--no-wait", action="store_true", help="return once committed, before it is done")
    add_common(rewrap)
    rewrap.set_defaults(run=Later("cli_keys", "run_rewrap"))

    region = commands.add_parser("region", help="regions and their internal keys")
    regions = region.add_subparsers(dest="action", metavar="ACTION", required=True)
    all_regions = regions.add_parser("list", help="all regions", epilog="example: keymesh region list")
    add_common(all_regions)
    all_regions.set_defaults(run=Later("cli_keys", "run_region_list"))
    one = regions.add_parser("show", help="one region and its tenants", epilog="example: keymesh region show eu-west")
    one.add_argument("region", metavar="R", help="its name, as in `keymesh region list`")
    add_common(one)
    one.set_defaults(run=Later("cli_keys", "run_region_show"))
    ivk = regions.add_parser(
        "rotate-ivk",
        help="a new internal key for the region; everything it sealed is sealed anew, the root key is not needed",
        epilog="example: keymesh region rotate-ivk eu-west",
    )
    ivk.add_argument("region", metavar="R", help="its name, as in `keymesh region list`")
    ivk.add_argument("--no-wait", action="store_true", help="return once committed, before it is done")
    add_common(ivk)
    ivk.set_defaults(run=Later("cli_keys", "run_rotate_ivk"))
    _register_sealing(regions)


def _register_sealing(regions: Any) -> None:
    unseal = regions.add_parser(
        "unseal",
        help="give a region that was sealed by shares its MasterKey back",
        epilog="example: keymesh region unseal eu-west --share a.txt --share b.txt",
    )
    unseal.add_argument("region", metavar="R")
    unseal.add_argument("--share", action="append", required=True, metavar="FILE", help="once for each share")
    add_common(unseal)
    unseal.set_defaults(run=Later("cli_keys", "run_unseal"))
    seal = regions.add_parser(
        "seal",
        help="drop every key of a region from memory; a file seal opens again only with its process",
        epilog="example: keymesh region seal eu-west",
    )
    seal.add_argument("region", metavar="R")
    add_common(seal)
    seal.set_defaults(run=Later("cli_keys", "run_seal"))
