"""Which configurations a role accepts, and what an embedded mesh's plan makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.app.founded import plan_for

from keymesh.app.config import ROLES, CoreConfig, EdgeConfig, RegistryConfig
from keymesh.app.config_of_plan import core_config_of, edge_config_of, registry_config_of
from keymesh.app.config_parts import CoreTiming, Listen
from keymesh.app.layout import Layout
from keymesh.model.errors import Refused

LAYOUT = Layout(Path("/m"))
PLAN = plan_for("us-east,us-west")
REGISTRY = registry_config_of(LAYOUT, PLAN)
CORE = core_config_of(LAYOUT, PLAN, "us-east")
EDGE = edge_config_of(LAYOUT, PLAN, "us-east")


def test_an_embedded_mesh_is_told_what_it_was_told_before() -> None:
    assert (REGISTRY.data_dir, REGISTRY.node, REGISTRY.listen) == (
        "/m/registry",
        "r1",
        Listen(port=PLAN.registry_port),
    )
    assert REGISTRY.identity.issuer == Path("/m/pki/mesh-ca.pem")
    assert CORE.registries == (PLAN.url("us-east", "registry"),)
    assert CORE.peers == {"us-west": (PLAN.url("us-east", "us-west"),)}
    assert CORE.timing.heartbeat_ms == PLAN.timing.heartbeat_ms
    assert CORE.allow_unlocked_memory and EDGE.allow_unlocked_memory
    assert EDGE.cores == (f"https://127.0.0.1:{PLAN.regions['us-east'].port}",)
    assert EDGE.listen_socket == "/m/regions/us-east/edge/edge.sock"
    for config in (REGISTRY, CORE, EDGE):
        config.check()
        assert type(config) is ROLES[config.role]


def test_links_between_regions_are_followed() -> None:
    plan = plan_for("us-east,us-west", links=True)
    assert plan.links is not None
    core = core_config_of(LAYOUT, plan, "us-west")
    assert core.registries == (f"https://127.0.0.1:{plan.links['us-west registry']}",)
    assert core.peers == {"us-east": (f"https://127.0.0.1:{plan.links['us-west us-east']}",)}
    assert edge_config_of(LAYOUT, plan, "us-west").cores == (f"https://127.0.0.1:{plan.regions['us-west'].port}",)


def test_a_region_that_is_not_planned_has_no_configuration() -> None:
    for of in (core_config_of, edge_config_of):
        with pytest.raises(Refused, match="not in this mesh's plan"):
            of(LAYOUT, PLAN, "mars")


URL = "https://core.example:7601"
WRONG: list[tuple[Any, dict[str, Any], str]] = [
    (REGISTRY, {"mesh": "Dev"}, "mesh"),
    (REGISTRY, {"node": "r 1"}, "node"),
    (CORE, {"mesh": ""}, "mesh"),
    (CORE, {"region": "-"}, "region"),
    (CORE, {"node": "N"}, "node"),
    (CORE, {"registries": ()}, "registries"),
    (CORE, {"registries": (URL,) * 17}, "registries"),
    (CORE, {"registries": (URL, URL.upper().replace("HTTPS", "https"))}, "registries[1]"),
    (CORE, {"registries": ("http://core.example:7601",)}, "registries[0]"),
    (CORE, {"registries": ("https://core.example",)}, "registries[0]"),
    (CORE, {"registries": ("https://user:secret@core.example:7601",)}, "registries[0]"),
    (CORE, {"registries": (URL, URL + "/v1")}, "registries[1]"),
    (CORE, {"registries": (URL + "\n",)}, "registries[0]"),
    (CORE, {"registries": ("https://core.example:0",)}, "registries[0]"),
    (CORE, {"registries": ("https://core.example:65536",)}, "registries[0]"),
    (CORE, {"peers": {"us-west": ()}}, "peers.us-west"),
    (CORE, {"peers": {"us-west": (URL, URL)}}, "peers.us-west[1]"),
    (CORE, {"peers": {"US": (URL,)}}, "peers.US"),
    (CORE, {"peers": {"us-east": (URL,)}}, "peers.us-east"),
    (EDGE, {"mesh": "a.b"}, "mesh"),
    (EDGE, {"region": "a_b"}, "region"),
    (EDGE, {"cores": ("https://[::1:7601",)}, "cores[0]"),
    (EDGE, {"services": ("acme",)}, "services[0]"),
    (EDGE, {"services": ("acme/files", "acme/files")}, "services[1]"),
    (EDGE, {"services": ("acme/files", "mesh/files")}, "services[1]"),
    (EDGE, {"services": ("acme/Files",)}, "services[0]"),
    (EDGE, {"services": ("acme/files",) * 1_025}, "services"),
    (Listen(port=1), {"port": 0}, "port"),
    (Listen(port=1), {"port": 65_536}, "port"),
    (Listen(port=1), {"host": "127.0.0.1/8"}, "host"),
    (Listen(port=1), {"host": ""}, "host"),
    (CoreTiming(), {"heartbeat_ms": 99}, "heartbeat_ms"),
    (CoreTiming(), {"heartbeat_ms": 60_001}, "heartbeat_ms"),
]


@pytest.mark.parametrize(("config", "changes", "field"), WRONG, ids=[f"{f}-{n}" for n, (_, _, f) in enumerate(WRONG)])
def test_what_types_cannot_say_is_checked(config: Any, changes: dict[str, Any], field: str) -> None:
    config.check()
    with pytest.raises(Refused) as bad:
        msgspec.structs.replace(config, **changes).check()
    assert bad.value.field == field


def test_addresses_may_be_names_and_numbers() -> None:
    urls = ("https://core.example:7601", "https://10.0.0.1:1", "https://[2001:db8::1]:65535")
    msgspec.structs.replace(CORE, registries=urls, peers={"us-west": urls}).check()
    msgspec.structs.replace(EDGE, cores=urls, services=("acme/files", "acme/mail")).check()
    assert (RegistryConfig, CoreConfig, EdgeConfig) == tuple(ROLES.values())
