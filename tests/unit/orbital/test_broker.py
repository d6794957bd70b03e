"""What may come by a broker, what becomes of it, and what a pull need not bring."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest

from keymesh.control.entry import Leaf
from keymesh.control.messages import Ack, AckMessage, Poll
from keymesh.model import strict_json
from keymesh.model.errors import KeymeshError
from keymesh.model.ids import ZERO_DIGEST
from keymesh.model.limits import TASK_MAX_BYTES
from keymesh.model.states import Lane
from keymesh.orbital import broker
from keymesh.orbital.broker import Attachment, Judged, Parked, Protocol, Verdict
from keymesh.orbital.messages import Task
from keymesh.orbital.wire import MESSAGES
from tests.unit.control.world import Mesh, real_key


def made() -> Task:
    mesh = Mesh(real=True)
    return Task(task_id="acme:1:2:x", lane=Lane.ROUTINE, namespace="acme", state=mesh.furnished(), correlation_id="c1")


TASK = made()
BODY = MESSAGES.encode(TASK)


# --- names -----------------------------------------------------------------------------------------------------------


def test_an_mqtt_session_has_the_queue_that_rabbitmq_gives_it() -> None:
    key = broker.routing_key("prod.example", "us-east", Lane.ROUTINE)
    assert key == broker.queue_of(Protocol.AMQP, "prod.example", "us-east", Lane.ROUTINE)
    assert key == "keymesh.prod.example.us-east.lane2"
    assert broker.topic_of(key) == "keymesh/prod/example/us-east/lane2"
    name = broker.queue_of(Protocol.MQTT, "prod.example", "us-east", Lane.ROUTINE)
    assert name == "mqtt-subscription-keymesh-prod.example-us-east-lane2qos1"


def test_no_two_queues_share_a_name() -> None:
    names = [
        broker.queue_of(protocol, "m", region, lane) for protocol in Protocol for region in ("a", "b") for lane in Lane
    ]
    assert len({*names, broker.parking_key("m", "a"), broker.parking_key("m", "b")}) == len(names) + 2


# --- what a delivery must be -----------------------------------------------------------------------------------------


def test_a_task_of_its_lane_is_read() -> None:
    assert broker.read_delivery(BODY, lane=Lane.ROUTINE) == TASK


POLL = Poll(mesh="m", epoch=1, set_id=1, poll_id=1)
HOSTILE = {
    "nothing": b"",
    "not text": b"\xff\xfe\x00",
    "not JSON": b"will message of some sensor",
    "NUL": b"\0" * 64,
    "an array": b"[]",
    "unknown type": b'{"t":"Sabotage","v":{}}',
    "unknown field": BODY[:-2] + b',"extra":1}}',
    "bytes after it": BODY + b"x",
    "duplicate keys": BODY.replace(b'{"t":"Task"', b'{"t":"Task","t":"Task"'),
    "cut short": BODY[:-40],
    "too large": BODY[:-1] + b" " * TASK_MAX_BYTES + b"}",
    "deep": b"[" * 100_000,
    "another message": MESSAGES.encode(POLL),
    "another lane": MESSAGES.encode(replace(TASK, lane=Lane.RESTRICTION)),
    "forced": MESSAGES.encode(replace(TASK, force=True)),
    "an unknown lane": BODY.replace(b'"lane":2', b'"lane":3'),
    "an envelope in another form": BODY.replace(b'"payloadType"', b'"payload_type"'),
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_anything_else_is_refused(body: bytes) -> None:
    assert body != BODY
    with pytest.raises(KeymeshError):
        broker.read_delivery(body, lane=Lane.ROUTINE)


# --- what becomes of it ----------------------------------------------------------------------------------------------


def ack(outcome: str, reason: str = "", *, namespace: str = "acme", correlation_id: str = "c1") -> Ack:
    return Ack(
        mesh="m",
        region="us-east",
        node="n1",
        boot_id="b",
        counter=1,
        namespace=namespace,
        leaf=Leaf(epoch=1, seq=2, entry_hash=ZERO_DIGEST, state=ZERO_DIGEST),
        outcome=outcome,
        reason=reason,
        restrictions=(),
        correlation_id=correlation_id,
    )


@pytest.mark.parametrize(
    ("acks", "tries", "judged"),
    [
        ([], 1, Judged(Verdict.WAIT)),  # not recorded
        ([], 99, Judged(Verdict.WAIT)),
        ([ack("applied")], 1, Judged(Verdict.DONE)),
        ([ack("stale")], 1, Judged(Verdict.DONE)),
        ([ack("refused", "unproven-lift")], 3, Judged(Verdict.DROP, "unproven-lift")),
        ([ack("refused", "residency")], 1, Judged(Verdict.PARK, "residency")),
        ([ack("refused", "needs-mesh")], 1, Judged(Verdict.AGAIN, "needs-mesh")),
        ([ack("refused", "signature")], 2, Judged(Verdict.AGAIN, "signature")),
        ([ack("refused", "signature")], 3, Judged(Verdict.PARK, "signature")),
        ([ack("quarantined", "fork")], 3, Judged(Verdict.PARK, "fork")),
        ([ack("refused")], 3, Judged(Verdict.PARK, "refused")),
        ([ack("applied", namespace="mesh")], 1, Judged(Verdict.WAIT)),  # of the mesh state that came along
        ([ack("applied", correlation_id="other")], 1, Judged(Verdict.WAIT)),
        ([ack("refused", "needs-mesh", namespace="mesh"), ack("applied")], 1, Judged(Verdict.DONE)),
    ],
)
def test_verdicts(acks: list[Ack], tries: int, judged: Judged) -> None:
    assert broker.judge(TASK, acks, tries=tries) == judged


def test_acknowledgements_are_read_among_all_that_the_machine_sends() -> None:
    suite = real_key("node")
    said = [POLL, AckMessage(ack=suite.seal(ack("applied"))), "whatever"]
    assert broker.acks_in(said) == [ack("applied")]


def test_a_parked_message_says_why_and_keeps_what_may_be_kept() -> None:
    record = strict_json.decode(
        broker.parked(b"x", lane=Lane.ROUTINE, reason="fork", detail="acme:1"), Parked, max_bytes=1_000
    )
    assert (record.reason, record.detail, record.lane, record.payload_bytes) == ("fork", "acme:1", 2, 1)
    assert base64.b64decode(record.payload) == b"x"


@pytest.mark.parametrize(("body", "reason"), [(BODY, "residency"), (b"x" * (TASK_MAX_BYTES + 1), "bad-field")])
def test_what_must_not_be_kept_is_only_counted(body: bytes, reason: str) -> None:
    record = json.loads(broker.parked(body, lane=Lane.ROUTINE, reason=reason))
    assert (record["payload"], record["payload_bytes"]) == ("", len(body))


# --- what need not be pulled -----------------------------------------------------------------------------------------


def attached(lane: Lane = Lane.ROUTINE) -> Attachment:
    attachment = Attachment(lane)
    attachment.linked({"acme": 5}, messages=0)
    attachment.looked(1)
    return attachment


def test_a_new_task_is_left_to_the_broker_once() -> None:
    attachment = attached()
    assert attachment.takes("acme", 6)
    assert not attachment.takes("acme", 6)
    assert attachment.takes("acme", 7)
    assert attachment.takes("new", 1)


def test_lane_0_is_never_left_to_the_broker() -> None:
    assert not attached(Lane.RESTRICTION).takes("acme", 6)


def test_what_an_earlier_link_carried_is_pulled() -> None:
    assert not attached().takes("acme", 5)


def test_what_still_waits_in_the_broker_is_not_pulled_for_a_new_link() -> None:
    attachment = attached()
    attachment.linked({"acme": 9}, messages=3)
    attachment.looked(1)
    assert attachment.takes("acme", 6)
    attachment.linked({"acme": 9}, messages=0)
    attachment.looked(1)
    assert not attachment.takes("acme", 7)


@pytest.mark.parametrize("then", ["nobody consumes", "lost", "linked anew", "never linked"])
def test_without_somebody_who_consumes_all_is_pulled(then: str) -> None:
    attachment = Attachment(Lane.ROUTINE) if then == "never linked" else attached()
    match then:
        case "nobody consumes":
            attachment.looked(0)
        case "lost":
            attachment.lost()
        case "linked anew":
            attachment.linked({}, messages=0)
    assert not attachment.takes("acme", 6)
