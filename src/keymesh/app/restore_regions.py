"""Asking the regions in a restore: for their voters' word first, and only then for what they hold."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from keymesh.app.admin_client import AdminClient
from keymesh.app.backup_domain import STATES_CODEC
from keymesh.app.core_epoch import HAND_IN_PATH, STORE_PATH, HandInAnswer, HandInBody
from keymesh.app.voter_word import PATH as VOTER_PATH
from keymesh.control.entry import SignedEntry, parse_entry
from keymesh.control.messages import EpochOffer, Sealed
from keymesh.control.state import NamespaceState
from keymesh.crypto.dsse import envelope_from_json
from keymesh.model import strict_json
from keymesh.model.errors import KeymeshError
from keymesh.registry.regrow import Refusal
from keymesh.registry.restore import Handed

ASK_TIMEOUT_S: Final = 15.0
STATE_MAX_BYTES: Final = 4 * 1024 * 1024
PAGES_MAX: Final = 1_000


@dataclass(slots=True)
class Gathered:
    """``words`` of the voters; what each region handed in after it; ``refused`` names regions that gave nothing."""

    words: list[Sealed] = field(default_factory=list)
    handed: list[Handed] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)


async def highest_epoch(client: AdminClient) -> int:
    """That any voter here has stored; 0 where none answers."""

    async def ask(region: str) -> int:
        try:
            word = await client.call("GET", VOTER_PATH, target=region, timeout_s=ASK_TIMEOUT_S)
        except KeymeshError:
            return 0
        return int(word["epoch"] or 0)

    return max(await asyncio.gather(*(ask(region) for region in sorted(client.plan.regions))), default=0)


async def gather(client: AdminClient, offer: EpochOffer) -> Gathered:
    """All regions at once; none is read before its voter has answered."""
    found = Gathered()
    asked: Any = await asyncio.gather(*(_store(client, region, offer) for region in sorted(client.plan.regions)))
    held: list[tuple[str, list[str]]] = []
    for region, answer, failed in asked:
        if failed or answer["refused"]:
            found.refused.append(Refusal(region, "", "region", failed or str(answer["refused"])))
            continue
        if answer["stored"] is not None:
            found.words.append(answer["stored"])
        held.append((region, answer["namespaces"]))
    for handed in await asyncio.gather(*(_hand_in(client, region, offer, names) for region, names in held)):
        if isinstance(handed, Refusal):
            found.refused.append(handed)
        else:
            found.handed.append(handed)
    return found


async def _store(client: AdminClient, region: str, offer: EpochOffer) -> tuple[str, Any, str]:
    try:
        return region, await client.call("POST", STORE_PATH, _plain(offer), target=region, timeout_s=ASK_TIMEOUT_S), ""
    except KeymeshError as away:
        return region, None, away.code


async def _hand_in(client: AdminClient, region: str, offer: EpochOffer, names: list[str]) -> Handed | Refusal:
    states: list[NamespaceState] = []
    entries: list[SignedEntry] = []
    try:
        for namespace in names:
            after = 0
            for _ in range(PAGES_MAX):
                body = _plain(HandInBody(offer=offer, namespace=namespace, after=after))
                raw = await client.call("POST", HAND_IN_PATH, body, target=region, timeout_s=ASK_TIMEOUT_S)
                page = strict_json.convert(raw, HandInAnswer)
                states += [STATES_CODEC.decode(_raw(one), max_bytes=STATE_MAX_BYTES) for one in page.states]
                got = [parse_entry(envelope_from_json(_raw(one))) for one in page.entries]
                entries += got
                if not page.more:
                    break
                after = max(signed.entry.seq for signed in got)
    except (KeymeshError, ValueError) as bad:
        return Refusal(region, "", "region", bad.code if isinstance(bad, KeymeshError) else "malformed")
    return Handed(region, tuple(states), tuple(entries))


def _plain(value: msgspec.Struct) -> Any:
    return msgspec.to_builtins(value)


def _raw(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
