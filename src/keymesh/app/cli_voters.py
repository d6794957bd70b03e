"""``keymesh voters``: the voter set by the word of the voters themselves, so that it needs no Registry."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping
from typing import Any, Final

from keymesh.app.admin_client import AdminClient, run_with_client
from keymesh.app.cli_common import emit, facts, table
from keymesh.app.voter_word import PATH
from keymesh.control.commit import POLL_MIN_VOTERS, majority
from keymesh.model.errors import ExitCode, KeymeshError, Unavailable

ASK_TIMEOUT_S: Final = 5.0


async def show(client: AdminClient) -> dict[str, Any]:
    """The newest set that any Core knows, and its seats.  Raises Unavailable where no Core answers."""

    async def ask(region: str) -> Any:
        try:
            return await client.call("GET", PATH, target=region, timeout_s=ASK_TIMEOUT_S)
        except KeymeshError:
            return None

    regions = sorted(client.plan.regions)
    answers = dict(zip(regions, await asyncio.gather(*(ask(region) for region in regions)), strict=True))
    return judge({region: answer for region, answer in answers.items() if answer is not None})


def judge(said: Mapping[str, Any]) -> dict[str, Any]:
    """What the seats come to; ``said`` has the word of each Core that answers.

    ``behind``: namespaces of which another voter has stored a later restriction.
    """
    known = [word["voters"] for word in said.values() if word["voters"] is not None]
    if not known:
        raise Unavailable("no-core", "no Core that knows the voters answers")
    newest = max(known, key=lambda voters: voters["set_id"])
    highest: dict[str, tuple[int, int]] = {}
    for region in newest["regions"]:
        for blind, place in said.get(region, {}).get("heads", {}).items():
            highest[blind] = max(highest.get(blind, (0, 0)), _order(place))
    seats = [_seat(region, said.get(region), newest["set_id"], highest) for region in newest["regions"]]
    need = majority(len(seats))
    serving = sum(seat["serving"] for seat in seats)
    return {
        "set_id": newest["set_id"],
        "seats": seats,
        "in_force": serving >= need,
        "sealed": sum(bool(seat["sealed"]) for seat in seats),
        "earlier": max((word["earlier"] for word in said.values()), key=len),
        "majority": need,
        "reachable": sum(seat["reachable"] for seat in seats),
        "serving": serving,
        "commits": serving >= need,
        "standby": len(seats) >= POLL_MIN_VOTERS and serving >= need,
        "liars": sorted({liar for word in said.values() for liar in word["liars"]}),
    }


def _order(place: str) -> tuple[int, int]:
    epoch, _, seq = place.partition(":")
    return int(epoch), int(seq)


def _seat(region: str, word: Any, set_id: int, highest: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    if word is None:
        empty: dict[str, Any] = dict.fromkeys(
            ("set_id", "epoch", "reads_log", "registry_silent", "serial", "heads", "sealed")
        )
        return {"region": region, "reachable": False, "serving": False, "stored": None, "behind": None, **empty}
    heads = word["heads"]
    return {
        "region": region,
        "reachable": True,
        "serving": word["seated"] and word["set_id"] == set_id > word["sealed"],
        "sealed": word["sealed"] >= set_id,
        "stored": len(heads),
        "behind": sum(_order(heads.get(blind, "0:0")) < order for blind, order in highest.items()),
        **{name: word[name] for name in ("set_id", "epoch", "reads_log", "registry_silent", "serial", "heads")},
    }


def run_show(args: argparse.Namespace) -> int:
    """Exit code 3 where fewer than a majority serve."""
    shown = run_with_client(args.dir, show)
    emit(args, shown, lambda: _print(shown))
    return int(ExitCode.DONE if shown["commits"] else ExitCode.UNAVAILABLE)


def _print(shown: dict[str, Any]) -> None:
    names = ("set_id", "in_force", "sealed", "majority", "reachable", "serving", "standby")
    facts("voters", {name: shown[name] for name in names})
    for past in shown["earlier"]:
        facts(f"set {past['set_id']}", {"regions": ", ".join(past["regions"]), "until mesh entry": past["until"]})
    columns = (
        "region",
        "reachable",
        "serving",
        "sealed",
        "set",
        "stored",
        "behind",
        "Registry silent",
        "reads the log",
    )
    fields = ("region", "reachable", "serving", "sealed", "set_id", "stored", "behind", "registry_silent", "reads_log")
    table("seats", columns, ([seat[f] for f in fields] for seat in shown["seats"]))
