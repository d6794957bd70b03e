"""Tasks by way of a message broker that nobody trusts: names, what a delivery must be, what becomes of it.

The broker only saves latency.  What a message says counts by its signatures alone, which the Core's machine checks as
it does for a pulled task; here is refused what must not even reach the machine.  A delivery is settled only once the
machine has answered for it, and the machine answers only for what it has durably recorded.  Source: DESIGN section 4.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from msgspec import Struct

from keymesh.control.messages import Ack, AckMessage
from keymesh.control.signing import SEALED_MAX_BYTES, from_plain
from keymesh.model import strict_json
from keymesh.model.errors import KeymeshError, Refused
from keymesh.model.limits import TASK_MAX_BYTES, TASK_TRIES_MAX
from keymesh.model.states import Lane
from keymesh.orbital.messages import Task
from keymesh.orbital.wire import MESSAGES

EXCHANGE: Final = "amq.topic"
"""The exchange that RabbitMQ's MQTT topics go through; AMQP queues are bound to it as well."""
CONTENT_TYPE: Final = "application/vnd.keymesh.task.v1+json"
QUEUE_MAX: Final = 50_000
"""Messages in one queue; beyond, the broker refuses more, and the region gets them by pull."""
PARKED_MAX: Final = 1_000
"""Parked messages of one region; the oldest gives way."""
RESIDENCY: Final = "residency"
_UNPROVEN: Final = "unproven-lift"


class Protocol(Enum):
    AMQP = "amqp"
    MQTT = "mqtt"


# --- names ---------------------------------------------------------------------------------------------------------


def routing_key(mesh: str, region: str, lane: Lane) -> str:
    return f"keymesh.{mesh}.{region}.lane{int(lane)}"


def parking_key(mesh: str, region: str) -> str:
    """Routing key and queue of what a region could not take."""
    return f"keymesh.{mesh}.{region}.parked"


def topic_of(key: str) -> str:
    """A routing key as an MQTT topic."""
    return key.replace(".", "/")


def client_id(mesh: str, region: str, lane: Lane) -> str:
    """Of the MQTT session of one region and lane; who connects with it takes the session over."""
    return f"keymesh-{mesh}-{region}-lane{int(lane)}"


def queue_of(protocol: Protocol, mesh: str, region: str, lane: Lane) -> str:
    """The queue of one region and lane; of MQTT the one that RabbitMQ makes for a persistent session at QoS 1."""
    if protocol is Protocol.AMQP:
        return routing_key(mesh, region, lane)
    return f"mqtt-subscription-{client_id(mesh, region, lane)}qos1"


# --- what a delivery must be -----------------------------------------------------------------------------------------


def read_delivery(body: bytes, *, lane: Lane) -> Task:
    """The task in ``body``, from the queue of ``lane``.

    Raises Refused or Integrity: too large, not a message in its strict form, no task, of another lane, or forced (a
    Force Sync is between Registry and node alone).
    """
    message = MESSAGES.decode(body, max_bytes=TASK_MAX_BYTES)
    if not isinstance(message, Task):
        raise Refused("foreign-message", "not a task", field="t")
    if message.lane is not lane:
        raise Refused("wrong-lane", f"lane {int(message.lane)} in the queue of lane {int(lane)}", field="lane")
    if message.force:
        raise Refused("forced", "a forced task never comes this way", field="force")
    return message


# --- what becomes of it ----------------------------------------------------------------------------------------------


class Verdict(Enum):
    DONE = "done"  # durable, or known already: acknowledge
    DROP = "drop"  # acknowledge; the Registry says it again by itself
    WAIT = "wait"  # not durable yet: keep it, try again
    AGAIN = "again"  # refused, perhaps for what has not come yet: try again
    PARK = "park"  # never: keep it aside with its reason, then acknowledge


@dataclass(frozen=True, slots=True)
class Judged:
    verdict: Verdict
    reason: str = ""


def acks_in(messages: Iterable[object]) -> list[Ack]:
    """The acknowledgements among what our own machine sends (its seal is not checked again)."""
    found = []
    for message in messages:
        if isinstance(message, AckMessage):
            payload = from_plain(message.ack).payload
            found.append(strict_json.decode(payload, Ack, max_bytes=SEALED_MAX_BYTES))
    return found


def judge(task: Task, acks: Sequence[Ack], *, tries: int) -> Judged:
    """What becomes of a delivery that the machine answered with ``acks``; ``tries`` counts this one.

    1. No answer: it could not be recorded.  2. Applied, or held already.  3. A lift without its proof comes again
    with it.  4. Another region's is not tried twice.  5. Three tries, then it is parked.
    """
    said = [a for a in acks if (a.namespace, a.correlation_id) == (task.namespace, task.correlation_id)]
    if not said:
        return Judged(Verdict.WAIT)
    ack = said[-1]
    if ack.outcome in ("applied", "stale"):
        return Judged(Verdict.DONE)
    if ack.reason == _UNPROVEN:
        return Judged(Verdict.DROP, ack.reason)
    reason = ack.reason or ack.outcome
    if reason == RESIDENCY or tries >= TASK_TRIES_MAX:
        return Judged(Verdict.PARK, reason)
    return Judged(Verdict.AGAIN, reason)


class Parked(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A message that a region could not take, as its parking queue keeps it.  ``payload``: base64, empty where it
    must not be kept here or is too large."""

    reason: str
    detail: str
    lane: int
    payload_bytes: int
    payload: str


def parked(body: bytes, *, lane: Lane, reason: str, detail: str = "") -> bytes:
    """What goes into the parking queue.  Nothing is kept of what residency forbids, or of what is too large."""
    kept = b"" if reason == RESIDENCY or len(body) > TASK_MAX_BYTES else body
    record = Parked(
        reason=reason[:64],
        detail=detail[:256],
        lane=int(lane),
        payload_bytes=len(body),
        payload=base64.b64encode(kept).decode(),
    )
    return strict_json.dumps(record)


def why(refusal: KeymeshError) -> tuple[str, str]:
    """(reason, detail) of a delivery that ``read_delivery`` refused."""
    return refusal.code, refusal.field or ""


# --- what need not be pulled ---------------------------------------------------------------------------------------


class Attachment:
    """Whether a lower-lane task for one region may be left to the broker, so that a pull need not bring it as well.

    Only its first send is, while somebody consumes the queue, and not if it is older than a link that found the queue
    empty: what an earlier link carried may be gone.  What the node does not acknowledge in time the machine sends
    again, and that goes by pull, whatever the broker says.  Of one lane; Lane 0 is never left to it.
    """

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._consumers = 0
        self._floor: Mapping[str, int] = {}
        self._left: tuple[str, int] | None = None

    def linked(self, heads: Mapping[str, int], *, messages: int) -> None:
        """A link is there; ``heads`` are the newest seqs of all namespaces just now, ``messages`` wait in the queue."""
        self._consumers = 0
        if not messages:
            self._floor = heads

    def looked(self, consumers: int) -> None:
        """How many consume the region's queue."""
        self._consumers = consumers

    def lost(self) -> None:
        """The link, or the queue takes no more."""
        self._consumers = 0

    @property
    def is_attended(self) -> bool:
        """Whether somebody consumes the queue, as far as is known."""
        return self._consumers > 0

    def takes(self, namespace: str, seq: int) -> bool:
        """Whether this send may be left out.  A node has one lower task out at a time, so the last one is enough to
        know a repetition by."""
        if self._lane is Lane.RESTRICTION or not self.is_attended or self._left == (namespace, seq):
            return False
        if seq <= self._floor.get(namespace, 0):
            return False
        self._left = (namespace, seq)
        return True
