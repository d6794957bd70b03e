"""``keymesh budget``: its arguments."""

from __future__ import annotations

import argparse
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from keymesh.app.args_common import Later, add_common
from keymesh.model.periods import Period

NONE: Final = "none"
MICRO: Final = 1_000_000


def register(commands: Any) -> None:
    """``budget set`` and ``budget show``."""
    parser = commands.add_parser("budget", help="what services and tenants may use in a day or a month")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    change = actions.add_parser(
        "set",
        help="limit operations or money, or watch the open rate; what is not named stays",
        epilog="example: keymesh budget set acme/files --ops 1000000 --period day --alarm-opens 20000",
    )
    change.add_argument("scope", metavar="T|T/S", help="a tenant as a whole, or one service")
    change.add_argument("--ops", type=_count, metavar="N", help="data keys minted or opened in a period, or none")
    change.add_argument("--money", type=_money, metavar="M", help="money in a period, at --price, or none")
    change.add_argument("--price", type=_money, metavar="P", help="of 1 000 operations, to the millionth")
    change.add_argument("--period", choices=[p.value for p in Period], help="calendar period in UTC (default: day)")
    change.add_argument(
        "--alarm-opens", type=_count, metavar="N", help="alarm where one region opens more in a minute, or none"
    )
    change.add_argument("--auto-suspend", choices=("yes", "no"), help="suspend the service at an alarm")
    add_common(change, token=True)
    change.set_defaults(run=Later("cli_budget", "run_set"))
    show = actions.add_parser(
        "show", help="what each region has spent of its share", epilog="example: keymesh budget show acme"
    )
    show.add_argument("scope", metavar="T|T/S", help="a tenant with all its services, or one service")
    add_common(show, token=True)
    show.set_defaults(run=Later("cli_budget", "run_show"))


def _count(text: str) -> int | str:
    """A number, or ``none``: without a limit."""
    if text == NONE:
        return text
    try:
        return int(text)
    except ValueError as bad:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number, or {NONE}") from bad


def _money(text: str) -> int | str:
    """Millionths."""
    if text == NONE:
        return text
    try:
        micro = Decimal(text) * MICRO
    except InvalidOperation as bad:
        raise argparse.ArgumentTypeError(f"{text!r}: an amount like 12.50, or {NONE}") from bad
    if not micro.is_finite() or micro != micro.to_integral_value():
        raise argparse.ArgumentTypeError(f"{text!r}: at most six decimals")
    return int(micro)
