"""Asking the regions in a restore: for their voters' word first, and only then for what they hold."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from keymesh.app.admin_client import AdminClient
from keymesh.app.backup_domain import STATES_CODEC
from keymesh.app.core_epoch import HAND_IN_PATH, STORE_PATH, HandInAnswer, HandInBody, StoreAnswer
from keymesh.app.voter_word import PATH as VOTER_PATH
from keymesh.control.entry import SignedEntry, parse_entry
from keymesh.control.messages import EpochOffer, Sealed
from keymesh.control.state import NamespaceState
from keymesh.crypto.dsse import envelope_from_json
from keymesh.model import strict_json
from keymesh.model.errors import KeymeshError, Unavailable
from keymesh.registry.regrow import Refusal
from keymesh.registry.restore import Handed

ASK_TIMEOUT_S: Final = 15.0
STATE_MAX_BYTES: Final = 4 * 1024 * 1024
PAGES_MAX: Final = 1_000
AGAIN_S: Final = (0.5, 1.0, 2.0)


@dataclass(slots=True)
class Gathered:
    """``words`` of the voters; what each region handed in after it; ``refused`` names regions that gave nothing, and
    what others could not give.  ``incomplete``: regions that answer, and did not give all that they hold."""

    words: list[Sealed] = field(default_factory=list)
    handed: list[Handed] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)


async def highest_epoch(client: AdminClient) -> int:
    """That any voter here has stored; 0 where none answers."""

    async def ask(region: str) -> int:
        try:
            word = await client.call("GET", VOTER_PATH, target=region, timeout_s=ASK_TIMEOUT_S)
        except KeymeshError:
            return 0
        return int(word["epoch"] or 0)

    return max(await asyncio.gather(*(ask(region) for region in sorted(client.plan.regions))), default=0)


async def gather(client: AdminClient, offer: EpochOffer, *, without: Collection[str] = ()) -> Gathered:
    """All regions at once; none is read before its voter has answered, nor those ``without`` which it is to be."""
    found = Gathered()
    asked = await asyncio.gather(*(_store(client, region, offer) for region in sorted(client.plan.regions)))
    held: list[tuple[str, tuple[str, ...]]] = []
    for region, answer, failed in asked:
        if answer is None or answer.refused:
            found.refused.append(Refusal(region, "", "region", failed if answer is None else answer.refused[:64]))
            continue
        if answer.stored is not None:
            found.words.append(answer.stored)
        if region in without:
            found.refused.append(Refusal(region, "", "region", "left-out"))
        else:
            held.append((region, answer.namespaces))
    await asyncio.gather(*(_hand_in(client, region, offer, names, found) for region, names in held))
    found.handed.sort(key=lambda handed: handed.region)
    return found


async def _store(client: AdminClient, region: str, offer: EpochOffer) -> tuple[str, StoreAnswer | None, str]:
    try:
        raw = await client.call("POST", STORE_PATH, _plain(offer), target=region, timeout_s=ASK_TIMEOUT_S)
        return region, strict_json.convert(raw, StoreAnswer), ""
    except KeymeshError as bad:
        return region, None, bad.code


async def _hand_in(client: AdminClient, region: str, offer: EpochOffer, names: Sequence[str], found: Gathered) -> None:
    """What came is kept, also where not all came."""
    states: list[NamespaceState] = []
    entries: list[SignedEntry] = []
    try:
        for namespace in names:
            after = 0
            for _ in range(PAGES_MAX):
                page = await _page(client, region, HandInBody(offer=offer, namespace=namespace, after=after))
                states += [STATES_CODEC.decode(_raw(one), max_bytes=STATE_MAX_BYTES) for one in page.states]
                got = [parse_entry(envelope_from_json(_raw(one))) for one in page.entries]
                entries += got
                if page.unread:
                    found.refused.append(Refusal(region, namespace, "entries", page.unread[:64]))
                if not page.more or not got:
                    break
                after = max(signed.entry.seq for signed in got)
    except (KeymeshError, ValueError) as bad:
        code = bad.code if isinstance(bad, KeymeshError) else "malformed"
        found.refused.append(Refusal(region, "", "region", code))
        found.incomplete.append(region)
    found.handed.append(Handed(region, tuple(states), tuple(entries)))


async def _page(client: AdminClient, region: str, body: HandInBody) -> HandInAnswer:
    """Asked again a few times where the region does not answer.  Raises KeymeshError."""
    for wait_s in (*AGAIN_S, None):
        try:
            raw = await client.call("POST", HAND_IN_PATH, _plain(body), target=region, timeout_s=ASK_TIMEOUT_S)
            return strict_json.convert(raw, HandInAnswer)
        except Unavailable:
            if wait_s is None:
                raise
            await asyncio.sleep(wait_s)
    raise AssertionError("unreachable")


def _plain(value: msgspec.Struct) -> Any:
    return msgspec.to_builtins(value)


def _raw(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
