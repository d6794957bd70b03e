"""A commit that needs another region: handed to its writer, or confirmed by one more holder."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from keymesh.adapters.http_messages import OCTETS
from keymesh.app.peer_link import PeerLink
from keymesh.model import strict_json
from keymesh.model.errors import KeymeshError, Refused, Unavailable
from keymesh.orbital.object_sync import (
    COMMIT_PATH,
    OFFER_PATH,
    ForwardAnswer,
    OfferAnswer,
    forward_of,
    from_octets,
    is_held,
    offer_of,
    readable,
    to_octets,
)
from keymesh.orbital.objects import Changes, Conflict, SealedObject

log = logging.getLogger("keymesh.core.objects")

TRIES: Final = 3
ASK_S: Final = 4.0
AGAIN_S: Final = 0.2
CONFIRM_S: Final = 5.0
_ANSWER_MAX_BYTES: Final = 64 * 1024
_SILENT: Final = frozenset({"timeout", "no-answer", "peer-answer"})  # it may have been done


async def forward_to_writer(
    link: PeerLink, region: str, namespace: str, service: str, changes: Changes, forward_id: str
) -> list[SealedObject]:
    """Have ``region`` do ``changes``; the objects as it has them then.

    One that nobody answered for is sent again under the same id, which does nothing twice.  Raises Conflict, Refused,
    Unavailable ``writer-away``.
    """
    path = COMMIT_PATH.format(tenant=namespace, service=service)
    body = to_octets(forward_of(forward_id, changes))
    for tried in range(1, TRIES + 1):
        try:
            _, raw = await link.request("POST", path, body, content_type=OCTETS, timeout_s=ASK_S)
        except Unavailable as away:
            if away.code in _SILENT and tried < TRIES:
                await asyncio.sleep(AGAIN_S * tried)
                continue
            doubt = "; it may have been done" if away.code in _SILENT else ""
            log.info("a writer is away", extra={"fields": {"tenant": namespace, "region": region, "reason": away.code}})
            raise Unavailable("writer-away", f"region {region} changes these objects: {away.message}{doubt}") from away
        except Refused as no:
            raise _refusal(no, region) from no
        done, bad = readable(from_octets(raw, ForwardAnswer).objects, namespace)
        if bad:
            raise Unavailable("writer-away", f"region {region} did it, and its answer cannot be read")
        return done
    raise AssertionError("the last try returns or raises")


def _refusal(no: Refused, region: str) -> KeymeshError:
    if no.code in ("version-conflict", "name-taken"):
        return Conflict(no.code, no.message, field=no.field)
    if no.code in ("gone", "bad-field", "destroyed"):
        return no
    return Unavailable("writer-away", f"region {region} does not change these objects now: {no.message}")


async def confirm_elsewhere(
    links: Mapping[str, PeerLink],
    namespace: str,
    objects: Sequence[SealedObject],
    is_allowed: Callable[[str], bool],
) -> None:
    """Until one of the regions says that it holds ``objects``, or newer versions.  Raises Unavailable ``no-peer``."""
    path = OFFER_PATH.format(tenant=namespace)
    body = to_octets(offer_of(objects))

    async def holds(region: str, link: PeerLink) -> bool:
        if not is_allowed(region):
            return False
        try:
            _, raw = await link.request("POST", path, body, content_type=OCTETS, timeout_s=CONFIRM_S)
            verdicts = strict_json.decode(raw, OfferAnswer, max_bytes=_ANSWER_MAX_BYTES).verdicts
        except KeymeshError:
            return False
        return len(verdicts) == len(objects) and all(is_held(verdict) for verdict in verdicts)

    asked = [asyncio.create_task(holds(region, link)) for region, link in links.items()]
    try:
        for answered in asyncio.as_completed(asked):
            if await answered:
                return
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    named = ", ".join(sorted(links))
    raise Unavailable("no-peer", f"stored here, and not confirmed by any other region ({named}); it is kept")
