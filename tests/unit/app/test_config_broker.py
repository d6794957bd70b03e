"""The broker's sections: what is refused, by field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from keymesh.adapters.broker_address import BrokerAddress, parse_address
from keymesh.app.config_broker import CoreBroker, RegistryBroker, addresses
from keymesh.app.config_endpoint import Endpoint
from keymesh.model.errors import Refused

GOOD: dict[str, Any] = {"url": "amqps://mq.example:5671/keymesh", "ca_file": "/ca.pem", "cert_file": "/me.pem"}


def test_an_endpoint_becomes_an_address() -> None:
    (found,) = addresses((Endpoint(**GOOD),), scheme="amqps")
    assert (found.host, found.port, found.vhost) == ("mq.example", 5671, "keymesh")
    (bare,) = addresses((Endpoint(**GOOD | {"url": "amqps://mq.example"}),), scheme="amqps")
    assert (bare.port, bare.vhost) == (5671, "/")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"url": "amqp://mq.example/keymesh"}, "url"),
        ({"url": "mqtts://mq.example/keymesh"}, "url"),
        ({"url": "amqps:///keymesh"}, "url"),
        ({"url": "amqps://mq.example:99999/keymesh"}, "url"),
        ({"url": "amqps://me:hunter2@mq.example/keymesh"}, "url"),
        ({"url": "amqps://mq.example/keymesh?auth=plain"}, "url"),
        ({"ca_file": None}, "ca_file"),
        ({"cert_file": None}, "cert_file"),
        ({"username": "me"}, "password_file"),
        ({"password_file": "/p"}, "password_file"),
    ],
)
def test_an_endpoint_that_does_not_fit_is_refused(change: dict[str, Any], field: str) -> None:
    section = RegistryBroker(endpoints=(Endpoint(**GOOD | change),), regions={})
    with pytest.raises(Refused) as refused:
        section.check()
    assert refused.value.field == f"endpoints[0].{field}"
    assert "hunter2" not in refused.value.message


def test_there_is_at_least_one_endpoint() -> None:
    with pytest.raises(Refused):
        CoreBroker(protocol="amqp", endpoints=()).check()


def test_a_region_is_named_as_one() -> None:
    with pytest.raises(Refused) as refused:
        RegistryBroker(endpoints=(Endpoint(**GOOD),), regions={"US East": "amqp"}).check()
    assert refused.value.field == "regions.US East"


def test_the_protocol_and_the_url_go_together() -> None:
    with pytest.raises(Refused):
        CoreBroker(protocol="mqtt", endpoints=(Endpoint(**GOOD),)).check()


@pytest.fixture
def secret(tmp_path: Path) -> BrokerAddress:
    for name, text in (("password", "hunter2\n"), ("ca.pem", "no certificate")):
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_text(text)
    return parse_address(
        "amqps://h/v",
        scheme="amqps",
        ca_file=str(tmp_path / "ca.pem"),
        username="me",
        password_file=str(tmp_path / "password"),
    )


def test_a_password_is_one_line_and_is_not_shown(secret: BrokerAddress) -> None:
    found = secret.password()
    assert found is not None
    assert found.reveal() == "hunter2"
    assert "hunter2" not in repr(secret) + repr(found)
    assert secret.password_file is not None
    for bad in ("", "\n", "two\nlines", "x" * 600, "nul\0"):
        secret.password_file.write_text(bad)
        with pytest.raises(Refused):
            secret.password()


@pytest.mark.parametrize("text", ["", "no certificate", None, "\udcff"])
def test_a_ca_file_that_is_none_is_refused(secret: BrokerAddress, text: str | None) -> None:
    if text is None:
        secret.ca_file.unlink()
    else:
        secret.ca_file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(Refused) as refused:
        secret.tls()
    assert refused.value.field == "ca_file"
