"""``keymesh key`` and ``keymesh region``: their arguments."""

from __future__ import annotations

from typing import Any

from keymesh.app import args_seals
from keymesh.app.args_common import Later, add_common


def register(commands: Any) -> None:
    """Add this module's commands to the parser."""
    key = commands.add_parser("key", help="list, rotate and re-wrap keys")
    actions = key.add_subparsers(dest="action", metavar="ACTION", required=True)

    listing = actions.add_parser("list", help="key versions", epilog="example: keymesh key list acme")
    listing.add_argument("tenant", nargs="?", metavar="T", help="default: of all tenants")
    listing.add_argument("--tenant", dest="tenant_option", metavar="T", help="the same, as an option")
    add_common(listing, token=True)
    listing.set_defaults(run=Later("cli_keys", "run_list"))

    show = actions.add_parser("show", help="one key version", epilog="example: keymesh key show key:acme/files@1")
    show.add_argument("scope", metavar="SCOPE", help="key:T/S@V, or tenant:T for the tenant's own key")
    add_common(show, token=True)
    show.set_defaults(run=Later("cli_keys", "run_show"))

    rotate = actions.add_parser(
        "rotate",
        help="a new version protects new data; older versions go on opening old data",
        epilog="example: keymesh key rotate service:acme/files",
    )
    rotate.add_argument("scope", metavar="SCOPE", help="tenant:T (its L2) or service:T/S (its L3)")
    rotate.add_argument("--no-wait", action="store_true", help="return once committed, before the version exists")
    add_common(rotate, token=True)
    rotate.set_defaults(run=Later("cli_keys", "run_rotate"))

    rewrap = actions.add_parser(
        "rewrap",
        help="wrap the service keys anew under the tenant's newest key; data stays as it is",
        epilog="example: keymesh key rewrap tenant:acme",
    )
    rewrap.add_argument("scope", metavar="SCOPE", help="tenant:T (all services) or service:T/S")
    rewrap.add_argument("--no-wait", action="store_true", help="return once committed, before it is done")
    add_common(rewrap, token=True)
    rewrap.set_defaults(run=Later("cli_keys", "run_rewrap"))

    region = commands.add_parser("region", help="regions and their internal keys")
    regions = region.add_subparsers(dest="action", metavar="ACTION", required=True)
    all_regions = regions.add_parser("list", help="all regions", epilog="example: keymesh region list")
    add_common(all_regions, token=True)
    all_regions.set_defaults(run=Later("cli_keys", "run_region_list"))
    one = regions.add_parser("show", help="one region and its tenants", epilog="example: keymesh region show eu-west")
    one.add_argument("region", metavar="R", help="its name, as in `keymesh region list`")
    add_common(one, token=True)
    one.set_defaults(run=Later("cli_keys", "run_region_show"))
    ivk = regions.add_parser(
        "rotate-ivk",
        help="a new internal key for the region; everything it sealed is sealed anew, the root key is not needed",
        epilog="example: keymesh region rotate-ivk eu-west",
    )
    ivk.add_argument("region", metavar="R", help="its name, as in `keymesh region list`")
    ivk.add_argument("--no-wait", action="store_true", help="return once committed, before it is done")
    add_common(ivk, token=True)
    ivk.set_defaults(run=Later("cli_keys", "run_rotate_ivk"))
    store = regions.add_parser(
        "migrate-keystore",
        help="bring the region's key store to the newest layout that its Cores know; older releases refuse it then",
        epilog="example: keymesh region migrate-keystore eu-west",
    )
    store.add_argument("region", metavar="R", help="its name, as in `keymesh region list`")
    store.add_argument("--to", type=int, metavar="N", help="a schema; without it the newest that the region knows")
    store.add_argument("--no-wait", action="store_true", help="return once committed, before it is done")
    add_common(store, token=True)
    store.set_defaults(run=Later("cli_keystore", "run_migrate"))
    args_seals.register(regions)
