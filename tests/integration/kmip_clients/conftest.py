"""One server for all tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.integration.kmip_clients.served import Served, on_loopback

SERVERS = {"loopback": on_loopback}


@pytest.fixture(scope="module", params=SERVERS)
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    with SERVERS[request.param]() as found:
        yield found
