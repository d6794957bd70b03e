"""The demo's honest parts, each on its own: the search that must bite, the runner that must report a failure."""

from __future__ import annotations

import argparse
import base64
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keymesh.app import demo_search
from keymesh.app.demo import STEPS, Step, run_demo
from keymesh.app.demo_files import check_source, files_of
from keymesh.app.demo_reader import Seen
from keymesh.app.demo_search import PATTERN_MIN_BYTES, patterns, search
from keymesh.app.demo_world import Failed, Figures, World
from keymesh.model.errors import Refused

KID = "00112233445566778899aabbccddeeff"


@given(st.binary(max_size=40), st.binary(max_size=40), st.sampled_from(["globex", KID]))
def test_every_spelling_at_every_place_is_found(before: bytes, after: bytes, identifier: str) -> None:
    raw = identifier.encode()
    for inside in (raw, bytes.fromhex(KID)) if identifier == KID else (raw,):
        whole = before + inside + after
        spelled = (whole, whole.hex().encode(), base64.b64encode(whole), base64.urlsafe_b64encode(whole))
        assert all(any(p in text for p in patterns(identifier)) for text in spelled)


@given(st.binary(max_size=200))
def test_nothing_is_found_where_nothing_is(noise: bytes) -> None:
    spelled = (noise, base64.b64encode(noise))
    absent = not any(one in noise for one in (b"globex", b"GLOBEX"))
    assert not absent or not any(p in text for p in patterns("globex") for text in spelled)


def test_patterns_are_never_so_short_that_chance_finds_them() -> None:
    assert patterns("ab") == ()
    assert all(len(p) >= PATTERN_MIN_BYTES for p in patterns("acme-root"))


def test_the_search_reads_contents_names_and_what_lies_across_a_window(tmp_path: Path) -> None:
    window = demo_search._WINDOW_BYTES
    (tmp_path / "region" / "identities" / "globex").mkdir(parents=True)
    (tmp_path / "region" / "big").write_bytes(bytes(window - 3) + b"globex" + bytes(10))
    (tmp_path / "region" / "clean").write_bytes(b"nothing")
    (tmp_path / "log").write_bytes(b'{"kid":"' + KID.encode() + b'"}')
    found = search(
        [tmp_path / "region", tmp_path / "log"], {"tenant": ["globex"], "key ids": [KID], "L1": ["absent-key"]}
    )
    assert found.kinds() == {"tenant", "key ids"}
    assert found.files == 3
    assert found.n_bytes == window + 13 + 7 + 42
    assert sorted(Path(path).name for path, what in found.hits if what == "tenant") == ["big", "globex"]


def test_the_search_does_not_find_the_directory_it_was_told_to_read(tmp_path: Path) -> None:
    (tmp_path / "globex").mkdir()
    (tmp_path / "globex" / "file").write_bytes(b"x")
    assert search([tmp_path / "globex"], {"tenant": ["globex"]}).hits == ()


def test_seen_keeps_the_first_refusal_and_counts_what_came_after_it() -> None:
    seen = Seen()
    seen.succeeded(1)
    assert seen.successes_after_refusal == 0
    seen.refused("revoked")
    first = seen.first_refusal_ns
    assert first is not None
    seen.refused("closed")
    assert (seen.first_refusal_ns, seen.code, seen.refusals) == (first, "revoked", 2)
    assert seen.ended_ns == first
    seen.succeeded(2)
    assert seen.successes_after_refusal == 1
    assert seen.ended_ns == seen.last_success_ns > first


def test_files_are_regular_ones_in_order(tmp_path: Path) -> None:
    for name in ("b", "a/c", ".git/config", "__pycache__/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "link").symlink_to("b")
    assert [p.as_posix() for p in files_of(tmp_path)] == ["a/c", "b"]


@pytest.mark.parametrize("what", ["missing", "empty", "file"])
def test_a_path_without_files_is_refused(tmp_path: Path, what: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(Refused) as refused:
        check_source(str(tmp_path / what))
    assert refused.value.field == "path"


def test_without_a_path_it_is_keymeshs_own_docs() -> None:
    assert check_source(None).name == "docs"


@pytest.fixture
def place() -> Iterator[Path]:
    """A short directory of this test's own."""
    with tempfile.TemporaryDirectory(prefix="km", dir="/tmp") as directory:
        yield Path(directory)


# --- the runner ------------------------------------------------------------------------------------------------------


async def _well(world: World) -> Figures:
    (world.root / "made").write_text("x")
    return {"kill_switch_ms": 7, "certificate_verified": True}


async def _fails(world: World) -> Figures:
    raise Failed("it did not happen")


async def _bug(world: World) -> Figures:
    raise KeyError("ours")


async def _never(world: World) -> Figures:
    raise AssertionError("a step after one that failed")


def _args(directory: Path, *, keep: bool = False) -> argparse.Namespace:
    return argparse.Namespace(path=None, keep=keep, full=False, dir=str(directory), json=True)


def test_a_run_in_which_all_holds(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_demo(_args(place / "d"), [Step("one", "One", _well)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["ok"] is shown["certificate_verified"] is True
    assert (shown["kill_switch_ms"], shown["l1_pull_ms"]) == (7, None)
    assert [(s["name"], s["ok"]) for s in shown["steps"]] == [("one", True)]
    assert not (place / "d").exists()


@pytest.mark.parametrize(("bad", "why"), [(_fails, "it did not happen"), (_bug, "KeyError")])
def test_a_step_that_fails_ends_the_run_and_is_told(
    place: Path, capsys: pytest.CaptureFixture[str], bad: object, why: str
) -> None:
    steps = [Step("one", "One", _well), Step("two", "Two", bad), Step("three", "Three", _never)]  # type: ignore[arg-type]
    assert run_demo(_args(place / "d"), steps) == 1
    shown = json.loads(capsys.readouterr().out)
    assert shown["ok"] is False
    assert [(s["name"], s["ok"]) for s in shown["steps"]] == [("one", True), ("two", False)]
    assert why in shown["steps"][1]["error"]
    assert (place / "d" / "made").exists(), "what could explain the failure is kept"


def test_a_directory_in_use_or_too_deep_is_refused_and_left_alone(place: Path) -> None:
    (place / "mine").write_text("x")
    for directory in (place, place / "mine", Path("/tmp") / ("x" * 70)):
        with pytest.raises(Refused) as refused:
            run_demo(_args(directory), [Step("one", "One", _never)])
        assert refused.value.field == "dir"
    assert (place / "mine").read_text() == "x"
    assert not (Path("/tmp") / ("x" * 70)).exists()


def test_step_names_are_stable_words() -> None:
    assert [step.name for step in STEPS] == [
        "mesh-up", "customer-kms", "onboard", "seal", "open-elsewhere", "residency", "cut-off", "heal", "rotate",
        "kill-switch", "resume", "l1-pull", "crash", "mesh-down",
    ]  # fmt: skip
