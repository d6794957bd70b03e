"""``keymesh tenant`` and ``keymesh service``: their arguments."""

from __future__ import annotations

import argparse
from typing import Any, Final

from keymesh.app.args_common import Later, add_common, duration_ms
from keymesh.model.limits import DESTROY_WAIT_DEFAULT_MS
from keymesh.model.states import Custody

NO_BUDGET: Final = "none"


def register(commands: Any) -> None:
    _register_tenant(commands.add_parser("tenant", help="create, inspect and destroy tenants, switch their root key"))
    _register_service(commands.add_parser("service", help="create and inspect a tenant's services"))


def _register_tenant(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    create = actions.add_parser(
        "create",
        help="onboard a tenant",
        epilog="example: keymesh tenant create acme --home eu-central --regions eu-central,eu-west",
    )
    create.add_argument("tenant", metavar="T", help="its name: lower-case letters, digits, inner hyphens")
    create.add_argument("--home", metavar="R", help="home region, which mints its keys (default: the mesh's first)")
    create.add_argument("--regions", metavar="R,...", help="allowed regions (default: all of the home's domain)")
    create.add_argument(
        "--l1",
        metavar="URL",
        help="the customer's root key, kms:DIR#KEY, openbao:URL, pkcs11:URI or aws-kms:ARN (default: the dev KMS's)",
    )
    create.add_argument("--ttl", type=duration_ms, metavar="TIME", help="governance ttl (default: the mesh's)")
    create.add_argument(
        "--standby",
        choices=("allow", "deny"),
        default="allow",
        help="whether voters may grant leases while the Registry is away for longer than the ttl (default: allow)",
    )
    create.add_argument("--no-wait", action="store_true", help="return once committed, before the keys exist")
    add_common(create, token=True)
    create.set_defaults(run=Later("cli_tenant", "run_create"))

    listing = actions.add_parser("list", help="all tenants", epilog="example: keymesh tenant list --json")
    add_common(listing, token=True)
    listing.set_defaults(run=Later("cli_tenant", "run_list"))

    show = actions.add_parser("show", help="one tenant", epilog="example: keymesh tenant show acme")
    show.add_argument("tenant", metavar="T", help="its name: lower-case letters, digits, inner hyphens")
    add_common(show, token=True)
    show.set_defaults(run=Later("cli_tenant", "run_show"))

    change = actions.add_parser(
        "set",
        help="change what a tenant may change of its policy",
        epilog="example: keymesh tenant set acme --standby deny",
    )
    change.add_argument("tenant", metavar="T", help="its name: lower-case letters, digits, inner hyphens")
    change.add_argument(
        "--standby",
        choices=("allow", "deny"),
        required=True,
        help="whether voters may grant leases while the Registry is away for longer than the ttl",
    )
    add_common(change, token=True)
    change.set_defaults(run=Later("cli_tenant", "run_set"))

    switch = actions.add_parser(
        "switch-l1",
        help="move the tenant to another root key; data stays as it is",
        epilog="example: keymesh tenant switch-l1 acme --l1 kms:/path/to/acme-kms#new-root",
    )
    switch.add_argument("tenant", metavar="T", help="its name: lower-case letters, digits, inner hyphens")
    switch.add_argument(
        "--l1",
        required=True,
        metavar="URL",
        help="the new one: kms:DIR#KEY, openbao:URL, pkcs11:URI or aws-kms:ARN",
    )
    switch.add_argument("--no-wait", action="store_true", help="return once committed, before the old key retires")
    add_common(switch, token=True)
    switch.set_defaults(run=Later("cli_tenant", "run_switch"))

    export = actions.add_parser(
        "export",
        help="write the wrapped key chain: with the customer's own L1 it opens the data without keymesh",
        epilog="example: keymesh tenant export acme -o acme.chain",
    )
    export.add_argument("tenant", metavar="T", help="its name: lower-case letters, digits, inner hyphens")
    export.add_argument("-o", "--output", metavar="FILE", help="default: T.chain")
    export.add_argument("--force", action="store_true", help="replace an existing file")
    add_common(export)
    export.set_defaults(run=Later("cli_tenant", "run_export"))

    _register_destruction(actions)


def _register_destruction(actions: Any) -> None:
    destroy = actions.add_parser(
        "destroy",
        help="shred the tenant's keys in every region, once a waiting period is over",
        description="From now on nothing is minted, opened or exported under the tenant.  When the waiting period is "
        "over every region destroys what it holds of its keys, for good; the certificate then names each replica, and "
        "the backups that nobody can take back.  Until then `keymesh tenant cancel-destroy T` ends it.",
        epilog="example: keymesh tenant destroy acme --wait 7d --confirm acme",
    )
    destroy.add_argument("tenant", metavar="T", help="its name: lower-case letters, digits, inner hyphens")
    destroy.add_argument(
        "--wait",
        type=duration_ms,
        default=DESTROY_WAIT_DEFAULT_MS,
        metavar="TIME",
        help="waiting period (1d to 90d, in a development mesh from 1s; default: 7d)",
    )
    destroy.add_argument("--confirm", metavar="T", required=True, help="the tenant's name again")
    destroy.add_argument("--reason", default="", help="kept in the control log")
    destroy.add_argument("--command-id", metavar="ID", help="go on with the destruction of this id")
    add_common(destroy, token=True)
    destroy.set_defaults(run=Later("cli_destroy", "run_destroy"))

    cancel = actions.add_parser(
        "cancel-destroy",
        help="end the waiting period of a destruction; restrictions by others stay",
        epilog="example: keymesh tenant cancel-destroy acme",
    )
    cancel.add_argument("tenant", metavar="T", help="its name: lower-case letters, digits, inner hyphens")
    cancel.add_argument("--reason", default="", help="kept in the control log")
    add_common(cancel, token=True)
    cancel.set_defaults(run=Later("cli_destroy", "run_cancel"))


def _register_service(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = actions.add_parser(
        "create", help="a service with a key of its own", epilog="example: keymesh service create acme/files"
    )
    _add_service_name(create)
    create.add_argument(
        "--custody",
        choices=[c.value for c in Custody],
        default=Custody.LEASED.value,
        help="where its key is used: leased to the Edges (default), or at the Core only",
    )
    create.add_argument("--edge-ttl", type=duration_ms, metavar="TIME", help="lease of its Edges (1s to 60m)")
    create.add_argument("--mint-budget", type=int, metavar="N", help="data keys that one lease may mint")
    create.add_argument("--open-budget", type=int, metavar="N", help="data keys that one lease may open")
    create.add_argument("--no-wait", action="store_true", help="return once committed, before the key exists")
    add_common(create, token=True)
    create.set_defaults(run=Later("cli_service", "run_create"))
    change = actions.add_parser(
        "set",
        help="change a service's policy; what is not named stays",
        epilog="example: keymesh service set acme/files --edge-ttl 1m --mint-budget 1000",
    )
    _add_service_name(change)
    change.add_argument(
        "--custody",
        choices=[c.value for c in Custody],
        help="where its key is used: leased to the Edges, or at the Core only",
    )
    change.add_argument("--edge-ttl", type=duration_ms, metavar="TIME", help="lease of its Edges (1s to 60m)")
    change.add_argument("--mint-budget", type=_budget, metavar="N", help="data keys that one lease may mint, or none")
    change.add_argument("--open-budget", type=_budget, metavar="N", help="data keys that one lease may open, or none")
    add_common(change, token=True)
    change.set_defaults(run=Later("cli_service", "run_set"))
    listing = actions.add_parser("list", help="services", epilog="example: keymesh service list acme")
    listing.add_argument("tenant", nargs="?", metavar="T", help="default: of all tenants")
    listing.add_argument("--tenant", dest="tenant_option", metavar="T", help="the same, as an option")
    add_common(listing, token=True)
    listing.set_defaults(run=Later("cli_service", "run_list"))
    show = actions.add_parser("show", help="one service", epilog="example: keymesh service show acme/files")
    _add_service_name(show)
    add_common(show, token=True)
    show.set_defaults(run=Later("cli_service", "run_show"))


def _budget(text: str) -> int | str:
    """A number, or ``none``: without a limit."""
    if text == NO_BUDGET:
        return text
    try:
        return int(text)
    except ValueError as bad:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number, or {NO_BUDGET}") from bad


def _add_service_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("service", metavar="T/S", help="or S, with --tenant T")
    parser.add_argument("--tenant", metavar="T", help="the service's tenant, where the name is S alone")
