"""Directories for roles on hosts of their own, made once and copied."""

from __future__ import annotations

import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

from tests.unit.app.founded import TIMING

from keymesh.app.config_init import init_hosts, parse_hosts, spread_plan

REGIONS = {"us-east": "us", "us-west": "us"}
PLAN = spread_plan(
    REGIONS,
    parse_hosts("registry=r.example,us-east=10.0.0.2", REGIONS),
    7600,
    TIMING,
    allow_unlocked_memory=True,
)


@lru_cache(maxsize=1)
def _made() -> tempfile.TemporaryDirectory[str]:
    """Goes with the process."""
    made = tempfile.TemporaryDirectory(prefix="km-spread-")
    init_hosts(Path(made.name) / "mesh", PLAN)
    return made


def copy_of_hosts(target: Path) -> Path:
    """A copy of all directories, under ``target``."""
    shutil.copytree(Path(_made().name) / "mesh", target)
    return target
