"""What the broker lets each user do: the expressions, evaluated as it does, over the names of other regions too."""

from __future__ import annotations

import re
from itertools import product

import pytest

from keymesh.app.servers.rabbitmq import BrokerUser, region_user, registry_user
from keymesh.model.states import Lane
from keymesh.orbital import broker

MESH = "prod.example"
REGIONS = ("eu", "eu-west", "eu-lane0", "west", "u")
QUEUES = {
    region: {broker.queue_of(protocol, MESH, region, lane) for protocol, lane in product(broker.Protocol, Lane)}
    | {broker.parking_key(MESH, region)}
    for region in REGIONS
}
KEYS = {region: {broker.routing_key(MESH, region, lane) for lane in Lane} for region in REGIONS}


def may(expression: str, name: str) -> bool:
    """As RabbitMQ does: found anywhere, unless the expression says where."""
    return re.search(expression, name) is not None


def rights(user: BrokerUser) -> tuple[str, str, str]:
    return user.configure, user.write, user.read


@pytest.mark.parametrize("region", REGIONS)
def test_a_region_has_its_own_queues_and_none_of_another_whose_name_begins_alike(region: str) -> None:
    user = region_user(f"core-{region}", MESH, region)
    for name, expression in product(QUEUES[region], rights(user)):
        assert may(expression, name), (name, expression)
    for other in set(REGIONS) - {region}:
        for name, expression in product(QUEUES[other], rights(user)):
            assert not may(expression, name), (name, expression)


@pytest.mark.parametrize("region", REGIONS)
def test_a_region_reads_its_own_keys_and_writes_only_what_it_parks(region: str) -> None:
    user, parking = region_user(f"core-{region}", MESH, region), broker.parking_key(MESH, region)
    assert all(may(user.topics_read, key) for key in KEYS[region])
    assert may(user.topics_write, parking) and not any(may(user.topics_write, key) for key in KEYS[region])
    for other in set(REGIONS) - {region}:
        for key in (*KEYS[other], broker.parking_key(MESH, other)):
            assert not may(user.topics_read, key) and not may(user.topics_write, key)


def test_a_dot_in_a_meshs_name_is_no_wildcard_and_nothing_may_follow_a_name() -> None:
    user = region_user("core-eu", MESH, "eu")
    own = broker.routing_key(MESH, "eu", Lane.RESTRICTION)
    foreign = [own.replace("prod.example", "prod-example"), own + "0", own + ".more", "x" + own, "amqXtopic"]
    sessions = [broker.queue_of(broker.Protocol.MQTT, MESH, "eu", lane) for lane in Lane]
    foreign += [name.replace("qos1", "qos0") for name in sessions] + [name + "x" for name in sessions]
    foreign += [name.replace("prod.example", "prodXexample") for name in sessions]
    for name, expression in product(foreign, (*rights(user), registry_user("registry").read)):
        assert not may(expression, name), (name, expression)
    assert may(user.read, "amq.topic") and may(user.write, "amq.topic") and not may(user.configure, "amq.topic")
