"""The ``[broker]`` section of a Registry's and of a Core's configuration: tasks by way of RabbitMQ.

Absent, everything is pulled.  With it, Lane 0 is pulled all the same, and so is whatever the broker does not bring.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from msgspec import Meta, Struct

from keymesh.adapters.broker_address import BrokerAddress, parse_address
from keymesh.app.config_endpoint import Endpoint
from keymesh.model.errors import Refused
from keymesh.model.ids import check_region

ENDPOINTS_MAX = 16


class CoreBroker(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a region receives.

    ``protocol``: ``amqp``, or ``mqtt`` (3.1.1 at QoS 1, one persistent session for each lane); the Registry's
    ``regions`` must say the same.  ``endpoints``: ``amqps://host:port/vhost`` or ``mqtts://host:port/vhost``, in the
    order to try them; the user may read its own region's queues and park messages there.  ``prefetch``: messages of
    one lane that are out at once (AMQP; in MQTT the broker's ``mqtt.prefetch`` says).
    """

    protocol: Literal["amqp", "mqtt"]
    endpoints: tuple[Endpoint, ...]
    prefetch: Annotated[int, Meta(ge=1, le=1_000)] = 64

    def check(self) -> None:
        """Raises Refused naming the field."""
        addresses(self.endpoints, scheme=f"{self.protocol}s")


class RegistryBroker(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a Registry publishes, always by AMQP.

    ``endpoints``: ``amqps://host:port/vhost``, in the order to try them; the user may declare and bind queues and
    publish to ``amq.topic``.  ``regions``: those that receive by the broker, and how; the others pull.
    """

    endpoints: tuple[Endpoint, ...]
    regions: dict[str, Literal["amqp", "mqtt"]]

    def check(self) -> None:
        """Raises Refused naming the field."""
        addresses(self.endpoints, scheme="amqps")
        for region in self.regions:
            try:
                check_region(region)
            except Refused as bad:
                raise Refused.bad_field(f"regions.{region[:64]}", bad.message.removeprefix("region: ")) from bad


class BrokerPlan(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Both sections of an embedded mesh; ``cores``: region to its section, for those of ``registry.regions``."""

    registry: RegistryBroker
    cores: dict[str, CoreBroker]


def addresses(endpoints: Iterable[Endpoint], *, scheme: str) -> tuple[BrokerAddress, ...]:
    """The endpoints as the adapters take them.  Raises Refused naming the field."""
    found = tuple(_address(f"endpoints[{n}]", each, scheme) for n, each in enumerate(endpoints))
    if not 1 <= len(found) <= ENDPOINTS_MAX:
        raise Refused.bad_field("endpoints", f"1 to {ENDPOINTS_MAX} of them")
    return found


def _address(where: str, endpoint: Endpoint, scheme: str) -> BrokerAddress:
    try:
        return parse_address(
            endpoint.url,
            scheme=scheme,
            ca_file=endpoint.ca_file,
            cert_file=endpoint.cert_file,
            key_file=endpoint.key_file,
            username=endpoint.username,
            password_file=endpoint.password_file,
        )
    except Refused as bad:
        raise Refused.bad_field(f"{where}.{bad.field}", bad.message.removeprefix(f"{bad.field}: ")) from bad
