"""Servers that contract suites share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.servers.openbao import OpenBaoServer, openbao
from tests.servers.postgres import Postgres, postgres


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture(scope="session")
def transit_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBaoServer]:
    """A customer's OpenBao with the transit keys ``root`` and ``other``."""
    with openbao(tmp_path_factory.mktemp("transit")) as server:
        server.mount("transit", "transit")
        for key in ("root", "other"):
            server.transit_key("transit", key)
        yield server
