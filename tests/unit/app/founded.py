"""A mesh directory made once and copied: ``keymesh up`` without the processes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keymesh.app.bootstrap import bootstrap, finish, make_plan, parse_regions
from keymesh.app.layout import Layout, MeshPlan, TimingPlan, load_plan

REGIONS = "us-east,us-west,eu-central"
TIMING = TimingPlan(
    ttl_ms=60_000, heartbeat_ms=1_000, edge_ttl_ms=5_000, l1_probe_ms=5_000, l1_ttl_ms=60_000, snapshot_ms=5_000
)

_made: list[Path] = []


def plan_for(regions: str = REGIONS, *, links: bool = False) -> MeshPlan:
    return make_plan(parse_regions(regions), TIMING, links=links, allow_unlocked_memory=True)


@contextmanager
def short_dir() -> Iterator[Path]:
    """A directory whose path leaves room for Unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="km", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def make_template() -> None:
    """The mesh that ``founded`` copies."""
    _made.append(Path(tempfile.mkdtemp(prefix="km", dir="/tmp")))
    layout, plan = Layout(_made[0] / "m"), plan_for()
    finish(layout, plan, bootstrap(layout, plan))


@contextmanager
def founded() -> Iterator[tuple[Layout, MeshPlan]]:
    """A fresh copy of the template."""
    with short_dir() as path:
        shutil.copytree(_made[0] / "m", path / "m")
        yield Layout(path / "m"), load_plan(Layout(path / "m"))


def forget() -> None:
    """Remove the template."""
    while _made:
        shutil.rmtree(_made.pop(), ignore_errors=True)
