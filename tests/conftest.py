"""Shared test settings: markers by directory, hypothesis profiles, where shared vectors lie."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.servers.rabbitmq import Rabbit

ROOT = Path(__file__).resolve().parents[1]
LIVE = ("live", "serial")
SOAK = os.environ.get("KEYMESH_SOAK") == "1"

# Fixed examples in the ordinary runs, so that a failure is the change's own; fresh and many in a soak.
settings.register_profile(
    "quick",
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "soak", max_examples=2_000, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("soak" if SOAK else "quick")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything under ``tests/integration`` starts processes."""
    for item in items:
        if ROOT / "tests" / "integration" in item.path.parents:
            item.add_marker(pytest.mark.integration)
            item.add_marker(pytest.mark.live)
        elif ROOT / "tests" / "contract" not in item.path.parents and any(map(item.get_closest_marker, LIVE)):
            raise pytest.UsageError(f"{item.nodeid}: .ci/live.py looks for such tests in contract and integration only")


@pytest.fixture(scope="session")
def soak() -> bool:
    """Whether the full counts are asked for (``make soak``)."""
    return SOAK


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Where published vectors too large for this tree lie: KEYMESH_SHARED, else ``../shared``."""
    path = Path(os.environ.get("KEYMESH_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"no shared vectors at {path}; set KEYMESH_SHARED to where they lie")
    return path


@pytest.fixture(scope="session")
def rabbit() -> Iterator[Rabbit]:
    """One broker for all tests that want one (they run one after the other); a test takes a virtual host of its own,
    and leaves the broker running."""
    from tests.servers.rabbitmq import running

    with running() as server:
        yield server
