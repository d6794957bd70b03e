"""The house in order: locks are hashed and name no host, links lead somewhere, the first screen is true."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import keymesh

ROOT = Path(__file__).resolve().parents[3]
PINNED = re.compile(r"^([a-z0-9.-]+)==(\S+?)(?: ; .*)? \\$")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def locked(name: str) -> dict[str, str]:
    """Package to version; refuses anything that is not a pinned package or a SHA-256."""
    versions = {}
    for line in (ROOT / name).read_text().splitlines():
        if pinned := PINNED.match(line):
            versions[pinned[1]] = pinned[2]
        else:
            assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}(?: \\)?", line), f"{name}: {line}"
    return versions


def test_locks_are_hashed_and_agree() -> None:
    runtime, dev = locked("requirements.txt"), locked("requirements-dev.txt")
    assert runtime
    assert runtime.items() <= dev.items()


def test_locks_cover_what_is_asked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(wanted: list[str]) -> set[str]:
        return {re.split(r"[<>=!\[; ]", item)[0] for item in wanted}

    assert names(project["dependencies"]) <= locked("requirements.txt").keys()
    assert names(project["optional-dependencies"]["dev"]) <= locked("requirements-dev.txt").keys()


def test_wheels_of_every_supported_python_are_hashed() -> None:
    """A binary package with one hash would install on one Python only."""
    text = (ROOT / "requirements.txt").read_text()
    for package in ("aiohttp", "cffi", "msgspec", "sqlalchemy"):
        entry = text[text.index(f"\n{package}==") + 1 :]
        assert len(re.findall(r"--hash", re.split(r"\n(?=[a-z])", entry)[0])) >= 6, package


@pytest.mark.parametrize("path", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]), ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    targets = [target for target in LINK.findall(path.read_text()) if "://" not in target]
    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_first_screen_names_targets_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make (\w+)`", (ROOT / "README.md").read_text()):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_changelog_has_this_version() -> None:
    assert f"## [{keymesh.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_room_is_on_the_map() -> None:
    architecture = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = sorted(path.parent.name for path in (ROOT / "src" / "keymesh").glob("*/__init__.py"))
    assert [room for room in rooms if f"`{room}/`" not in architecture] == []


def test_adrs_are_numbered_without_gaps() -> None:
    records = sorted((ROOT / "docs" / "adr").glob("*.md"))
    assert [int(path.name[:4]) for path in records] == list(range(1, len(records) + 1))
    for path in records:
        text = path.read_text()
        assert all(f"\n## {part}" in text for part in ("Context", "Decision", "Consequences")), path.name
