"""``keymesh voters change``: the old voters are asked to seal, the Registry for the entry; then the new ones sit.

It holds nothing that a repetition needs: a seal is for good, and the entry is in the log or not.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any, Final

import msgspec

from keymesh.app.admin_client import AdminClient, new_command_id, run_with_client
from keymesh.app.cli_common import emit, facts
from keymesh.app.cli_killswitch import officers
from keymesh.app.cli_voters import show
from keymesh.app.voter_word import SEAL_PATH
from keymesh.control.checks import VOTER_SETS
from keymesh.control.commit import majority
from keymesh.control.kinds import CHANGE_VOTERS
from keymesh.control.messages import SetOffer
from keymesh.control.voter_seal import args_of
from keymesh.model.errors import KeymeshError, Refused, Unavailable
from keymesh.model.ids import MESH_NAMESPACE

SEAL_TIMEOUT_S: Final = 15.0
SEATED_WAIT_S: Final = 60.0


def run_change(args: argparse.Namespace) -> int:
    """Exit code 3 where it stopped half-way: repeat it."""
    shown = run_with_client(args.dir, lambda client: change(client, seats_of(client, args.seats), args.approve_key))
    emit(
        args, shown, lambda: facts("voters", {n: _text(shown[n]) for n in ("set_id", "regions", "replaces", "sealed")})
    )
    return 0


def _text(value: Any) -> Any:
    return ", ".join(value) if isinstance(value, list) else value


def seats_of(client: AdminClient, text: str) -> tuple[str, ...]:
    """The regions of ``--seats``, sorted.  Raises Refused."""
    names = [name.strip() for name in text.split(",")]
    if len(names) not in VOTER_SETS or len(set(names)) != len(names):
        raise Refused.bad_field("seats", "3, 5 or 7 different regions, separated by commas")
    unknown = sorted(set(names) - client.plan.regions.keys())
    if unknown:
        raise Refused.bad_field("seats", f"the regions are {', '.join(sorted(client.plan.regions))}")
    return tuple(sorted(names))


async def change(client: AdminClient, seats: tuple[str, ...], approve: list[str]) -> dict[str, Any]:
    """1. Officers sign.  2. A majority of the old set seals.  3. The entry.  4. A majority of the new set sits."""
    held = await show(client)
    replaces = tuple(seat["region"] for seat in held["seats"])
    if set(replaces) == set(seats):
        if held["set_id"] > 1 and not held["sealed"]:  # repeated: the entry is there
            return await _seated(client, held["set_id"], sealed=[])
        raise Refused("already", "these regions have the seats", field="seats")
    signers = officers(client, "a change of voters", approve)
    offer = _offer(client, held["set_id"] + 1, seats, replaces, signers)
    words = await _seal(client, offer)
    need = majority(len(set(replaces)))
    if len(words) < need:
        raise Unavailable(
            "not-sealed",
            f"of set {held['set_id']} these have sealed it: {', '.join(sorted(words)) or 'none'}; {need} are needed. "
            "Nothing commits under a set that a majority has sealed: repeat this until it is done",
        )
    body = {"namespace": MESH_NAMESPACE, "kind": CHANGE_VOTERS, "args": args_of(offer), "authority": offer.authority}
    body["words"] = [words[region] for region in sorted(words)]
    await client.call("POST", "/v1/commands", body, command_id=offer.command_id)
    return await _seated(client, offer.set_id, sealed=sorted(words))


def _offer(
    client: AdminClient, set_id: int, seats: tuple[str, ...], replaces: tuple[str, ...], signers: tuple[Path, ...]
) -> SetOffer:
    bare = SetOffer(
        mesh=client.plan.mesh,
        set_id=set_id,
        regions=seats,
        replaces=replaces,
        command_id=new_command_id(),
        authority=(),
    )
    made = client.authority(MESH_NAMESPACE, CHANGE_VOTERS, args_of(bare), bare.command_id, signers)
    return msgspec.structs.replace(bare, authority=tuple(made))


async def _seal(client: AdminClient, offer: SetOffer) -> dict[str, Any]:
    """Region -> its voter's signed word, of those of the old set that answer."""
    body = msgspec.to_builtins(offer)

    async def ask(region: str) -> Any:
        try:
            return await client.call("POST", SEAL_PATH, body, target=region, timeout_s=SEAL_TIMEOUT_S)
        except Unavailable:
            return None

    regions = sorted(offer.replaces)
    answers = dict(zip(regions, await asyncio.gather(*(ask(region) for region in regions)), strict=True))
    refused = {region: word["refused"] for region, word in answers.items() if word is not None and word["refused"]}
    if "not-signed" in refused.values():
        raise Refused("not-signed", "no threshold of the officers signed that", field="approve-key")
    return {region: word["sealed"] for region, word in answers.items() if word is not None and word["sealed"]}


async def _seated(client: AdminClient, set_id: int, *, sealed: list[str]) -> dict[str, Any]:
    async def in_force() -> dict[str, Any] | None:
        try:
            held = await show(client)
        except KeymeshError:
            return None
        return held if held["set_id"] == set_id and held["in_force"] else None

    held = await client.until(in_force, what="a majority of the new voters taking their seats", timeout_s=SEATED_WAIT_S)
    return {
        "ok": True,
        "set_id": set_id,
        "regions": [seat["region"] for seat in held["seats"]],
        "replaces": held["earlier"][0]["regions"],
        "sealed": sealed,
        "serving": held["serving"],
        "in_force": True,
    }
