"""Servers that contract suites share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.servers.postgres import Postgres, postgres


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    with postgres() as server:
        yield server
