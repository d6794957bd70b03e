"""One node's queues: what it still has to be told, by lane, and what may be sent now (DESIGN section 4).

Lane 0 is sent at once and again every second until acknowledged (every five to a node that was silent meanwhile),
whatever else waits; each restriction keeps its own place, and only a newer restriction of the same scope takes it (so
a backlog is bounded by scopes, not by events). Lanes 1 and 2 share one slot: one task in flight, lane 1 first, none
while a young Lane 0 task is out; past ``GATE_MS`` they go on beside a stuck one. Namespaces take turns, so that none
delays another; one that fails ``TASK_TRIES_MAX`` times is parked. A node that comes back is told restrictions of all
namespaces first, and then of each namespace its newest state alone. Pure bookkeeping: no message is made here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Final

from msgspec import Struct

from keymesh.model.ids import Namespace
from keymesh.model.limits import TASK_TRIES_MAX
from keymesh.model.states import Lane
from keymesh.model.time import NEVER, Instant

URGENT_RETRY_MS: Final = 1_000
URGENT_RETRY_PARKED_MS: Final = 5_000
URGENT_SILENT_SENDS: Final = 10
GATE_MS: Final = 2_000
LOWER_RETRY_MS: Final = 2_000
LOWER_RETRY_MAX_MS: Final = 30_000
MERGE_AFTER: Final = 256
LOWER_LANES: Final = (Lane.ONBOARDING, Lane.ROUTINE)


class Item(Struct, frozen=True):
    """One entry that a node has to reach.  ``scope`` is set for restrictions, ``merged`` counts what it stands for."""

    namespace: Namespace
    seq: int
    correlation_id: str
    scope: str = ""
    force: bool = False
    merged: int = 1


@dataclass(slots=True)
class Urgent:
    item: Item
    offered_at: Instant
    sent_at: Instant | None = None
    sent: int = 0  # since the node was last heard of
    refusals: int = 0
    reason: str = ""


@dataclass(slots=True)
class Flight:
    """The one lower-lane task that is out.  ``sent`` counts sends, ``tries`` counts those the node must have seen;
    ``sent_at`` None: whatever was sent may be lost."""

    lane: Lane
    item: Item
    sent_at: Instant | None
    sent: int = 1
    tries: int = 0


@dataclass(frozen=True, slots=True)
class Parked:
    """Three tries failed.  A newer entry of the namespace is tried afresh, and so is this one after a while."""

    namespace: Namespace
    seq: int
    reason: str
    at: Instant


@dataclass(slots=True)
class NodeQueue:
    urgent: dict[tuple[Namespace, str], Urgent] = field(default_factory=dict)
    lower: dict[Lane, dict[Namespace, deque[Item]]] = field(
        default_factory=lambda: {Lane.ONBOARDING: {}, Lane.ROUTINE: {}}
    )
    flight: Flight | None = None
    returned_at: Instant | None = None
    parked: dict[Namespace, Parked] = field(default_factory=dict)
    tries: dict[tuple[Namespace, int], int] = field(default_factory=dict)

    def depth(self, lane: Lane) -> int:
        """How many tasks wait in ``lane`` or are out in it."""
        if lane is Lane.RESTRICTION:
            return len(self.urgent)
        out = self.flight is not None and self.flight.lane is lane
        return sum(len(items) for items in self.lower[lane].values()) + out


def offer_urgent(queue: NodeQueue, item: Item, now: Instant) -> None:
    """Put a restriction into Lane 0.  It takes the place of an *older* one of its scope, never of a newer."""
    key = (item.namespace, item.scope)
    held = queue.urgent.get(key)
    if held is not None and held.item.seq >= item.seq and (held.item.force or not item.force):
        return
    queue.urgent[key] = Urgent(item=item, offered_at=now)


def offer_lower(queue: NodeQueue, lane: Lane, item: Item, *, merge_after: int = MERGE_AFTER) -> None:
    """Put ``item`` behind its namespace's others.  Past ``merge_after`` they become the newest one."""
    parked = queue.parked.get(item.namespace)
    if parked is not None and (item.seq > parked.seq or item.force):
        del queue.parked[item.namespace]
    elif parked is not None:
        return
    items = queue.lower[lane].setdefault(item.namespace, deque())
    if items and items[-1].seq >= item.seq and not item.force:
        return
    items.append(item)
    if len(items) > merge_after:
        merged = merge(items)
        items.clear()
        items.append(merged)


def merge(items: Collection[Item]) -> Item:
    """The newest of ``items``, standing for all: its state contains theirs."""
    newest = max(items, key=lambda i: i.seq)
    return Item(
        namespace=newest.namespace,
        seq=newest.seq,
        correlation_id=newest.correlation_id,
        scope=newest.scope,
        force=any(i.force for i in items),
        merged=sum(i.merged for i in items),
    )


def retry_at(urgent: Urgent) -> Instant:
    """When a Lane 0 task is due: at once, then every second, or five where it is refused or nobody is heard; it never
    expires."""
    if urgent.sent_at is None:
        return urgent.offered_at
    slow = urgent.refusals >= TASK_TRIES_MAX or urgent.sent >= URGENT_SILENT_SENDS
    return Instant(urgent.sent_at + (URGENT_RETRY_PARKED_MS if slow else URGENT_RETRY_MS))


def due_urgent(queue: NodeQueue, now: Instant) -> list[Urgent]:
    """Lane 0 tasks to send now, oldest first; marks them sent."""
    if not queue.urgent:
        return []
    due = [u for u in queue.urgent.values() if retry_at(u) <= now]
    due.sort(key=lambda u: u.offered_at)
    for urgent in due:
        urgent.sent_at = now
        urgent.sent += 1
    return due


def gate_opens_at(queue: NodeQueue) -> Instant:
    """Lower lanes wait for young Lane 0 tasks: until the youngest unacknowledged one is ``GATE_MS`` old.

    To a node that came back they are all young again, but for those that it keeps refusing.
    """
    if not queue.urgent:
        return Instant(0)
    youngest = max([u.offered_at for u in queue.urgent.values()])
    back = queue.returned_at
    if back is not None and back > youngest and any(u.refusals < TASK_TRIES_MAX for u in queue.urgent.values()):
        youngest = back
    return Instant(youngest + GATE_MS)


def has_lower(queue: NodeQueue) -> bool:
    """Whether anything waits in the lower lanes."""
    return bool(queue.lower[Lane.ONBOARDING] or queue.lower[Lane.ROUTINE])


def is_idle(queue: NodeQueue) -> bool:
    """Whether nothing waits and nothing is out."""
    return not queue.urgent and queue.flight is None and not has_lower(queue)


def next_lower(queue: NodeQueue, now: Instant) -> Flight | None:
    """The lower-lane task to hand out now, if one may be; it is then in flight."""
    if queue.flight is not None or not has_lower(queue) or now < gate_opens_at(queue):
        return None
    for lane in LOWER_LANES:
        for namespace in queue.lower[lane]:
            items = queue.lower[lane].pop(namespace)
            item = items.popleft()
            if items:
                queue.lower[lane][namespace] = items  # behind the other namespaces
            tries = queue.tries.get((namespace, item.seq), 0)
            queue.flight = Flight(lane=lane, item=item, sent_at=now, tries=tries)
            return queue.flight
    return None


def lower_retry_at(flight: Flight) -> Instant:
    if flight.sent_at is None:
        return Instant(0)
    return Instant(flight.sent_at + min(LOWER_RETRY_MS * 2 ** min(flight.sent - 1, 10), LOWER_RETRY_MAX_MS))


def resend_lower(queue: NodeQueue, now: Instant, *, heard_since: bool) -> tuple[Flight | None, Parked | None]:
    """The flight to send again, if its answer is overdue and the gate is open.

    ``heard_since``: the node spoke after the last send, so its silence about this task counts as a failed try; after
    three it is parked and the slot is free.
    """
    flight = queue.flight
    if flight is None or now < lower_retry_at(flight) or now < gate_opens_at(queue):
        return None, None
    if heard_since:
        flight.tries += 1
        if flight.tries >= TASK_TRIES_MAX:
            return None, _park(queue, flight.item, "no-answer", now)
    flight.sent += 1
    flight.sent_at = now
    return flight, None


def next_due(queue: NodeQueue) -> Instant:
    """When this queue wants to be looked at again; NEVER where nothing waits."""
    due = NEVER
    if queue.urgent:
        due = min([retry_at(u) for u in queue.urgent.values()])
    if queue.flight is not None:
        return Instant(min(due, max(lower_retry_at(queue.flight), gate_opens_at(queue))))
    if has_lower(queue):
        return Instant(min(due, gate_opens_at(queue)))
    return Instant(due)


def settle(queue: NodeQueue, namespace: Namespace, seq: int, settled_scopes: Collection[str]) -> None:
    """The node has applied ``seq`` of ``namespace``: everything at or below it is done.

    A Lane 0 task is done only where its scope is among ``settled_scopes``: an acknowledgement must say so.
    """
    for key, urgent in list(queue.urgent.items()):
        if key[0] == namespace and urgent.item.seq <= seq and key[1] in settled_scopes:
            del queue.urgent[key]
    for lane in LOWER_LANES:
        items = queue.lower[lane].get(namespace)
        if items is not None:
            left = deque(i for i in items if i.seq > seq)
            if left:
                queue.lower[lane][namespace] = left
            else:
                del queue.lower[lane][namespace]
    if queue.flight is not None and queue.flight.item.namespace == namespace and queue.flight.item.seq <= seq:
        queue.flight = None
    parked = queue.parked.get(namespace)
    if parked is not None and parked.seq <= seq:
        del queue.parked[namespace]
    for tried in [k for k in queue.tries if k[0] == namespace and k[1] <= seq]:
        del queue.tries[tried]


def fail(queue: NodeQueue, namespace: Namespace, seq: int, reason: str, now: Instant) -> Parked | None:
    """The node refused ``seq`` of ``namespace``.  After three tries the task is parked (returned once).

    A Lane 0 task is never taken out: it is tried more slowly, and no longer holds anyone up.
    """
    parked = None
    for urgent in queue.urgent.values():
        if urgent.item.namespace == namespace and urgent.item.seq == seq:
            urgent.refusals += 1
            urgent.reason = reason
            if urgent.refusals == TASK_TRIES_MAX:
                parked = Parked(namespace, seq, reason, now)
    flight = queue.flight
    if flight is not None and flight.item.namespace == namespace and flight.item.seq == seq:
        flight.tries += 1
        if flight.tries >= TASK_TRIES_MAX:
            return _park(queue, flight.item, reason, now)
        queue.tries[(namespace, seq)] = flight.tries
        queue.flight = None
        queue.lower[flight.lane].setdefault(namespace, deque()).appendleft(flight.item)
    return parked


def unpark(queue: NodeQueue, namespace: Namespace, now: Instant, *, after_ms: int) -> bool:
    """Whether nothing of ``namespace`` is parked, or it has been for ``after_ms``: then it may be tried again."""
    parked = queue.parked.get(namespace)
    if parked is None:
        return True
    if now < parked.at + after_ms:
        return False
    del queue.parked[namespace]
    return True


def _park(queue: NodeQueue, item: Item, reason: str, now: Instant) -> Parked:
    parked = Parked(item.namespace, item.seq, reason, now)
    queue.flight = None
    queue.tries.pop((item.namespace, item.seq), None)
    queue.parked[item.namespace] = parked
    return parked


def waiting(queue: NodeQueue, namespace: Namespace) -> Iterator[Item]:
    """Items of ``namespace`` that wait or are out, Lane 0 first."""
    for key, urgent in queue.urgent.items():
        if key[0] == namespace:
            yield urgent.item
    if queue.flight is not None and queue.flight.item.namespace == namespace:
        yield queue.flight.item
    for lane in LOWER_LANES:
        yield from queue.lower[lane].get(namespace, ())


def namespaces(queue: NodeQueue) -> set[str]:
    """Those of which anything waits or is out."""
    found = {str(namespace) for namespace, _ in queue.urgent}
    if queue.flight is not None:
        found.add(queue.flight.item.namespace)
    return found.union(*(queue.lower[lane] for lane in LOWER_LANES))


def heard(queue: NodeQueue) -> None:
    """The node is there: no long pauses."""
    for urgent in queue.urgent.values():
        urgent.sent = 0
    if queue.flight is not None:
        queue.flight.sent = 1


def resend_all(queue: NodeQueue, now: Instant) -> None:
    """The node (re)connected: what is out may be lost, so it is due at once.

    Restrictions go first, and what waits in the lower lanes becomes each namespace's newest state: it contains those
    before it, and a node that was away is not taken through them one by one.
    """
    queue.returned_at = now
    for urgent in queue.urgent.values():
        urgent.sent_at = None
        urgent.sent = 0
    for lane in LOWER_LANES:
        for namespace in list(queue.lower[lane]):
            _only_newest(queue, namespace, lane)
    if queue.flight is not None:
        queue.flight.sent_at = None
        queue.flight.sent = 1


def _only_newest(queue: NodeQueue, namespace: Namespace, lane: Lane) -> None:
    """What waits or is out of ``namespace`` as one item, in the most urgent lane (``lane``) that has any of it."""
    waits = [item for other in LOWER_LANES for item in queue.lower[other].get(namespace, ())]
    if not waits:
        return
    flight = queue.flight
    if flight is not None and flight.item.namespace == namespace:
        if flight.item.seq > max(item.seq for item in waits):
            return  # forced syncs of what it contains
        waits.append(flight.item)
        lane = min(lane, flight.lane)
        queue.flight = None
    for other in LOWER_LANES:
        queue.lower[other].pop(namespace, None)
    queue.lower[lane][namespace] = deque([merge(waits)])
