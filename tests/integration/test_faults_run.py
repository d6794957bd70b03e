"""``keymesh faults run``: the whole of it on real servers, and a lie in the client's record that has to be found."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree

import pytest

from keymesh.app import cli, faults
from keymesh.app.faults_record import Done, Record
from keymesh.app.layout import Layout
from keymesh.app.supervisor_client import take_lock

pytestmark = [pytest.mark.slow, pytest.mark.serial]


@pytest.fixture
def short_dir() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="kmf", dir="/tmp"))
    yield made
    rmtree(made, ignore_errors=True)


def test_a_round_kills_each_component_and_finds_what_was_lost(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The client believes that a command was acknowledged which the mesh has never seen: that is the one loss."""

    def mistaken() -> Record:
        return Record(commands=[Done("cli-neverseen", faults.TENANT, "suspend", 99_999)])

    monkeypatch.setattr(faults, "Record", mistaken)
    assert cli.main(["faults", "run", "--embedded", "--rounds", "1", "--json", "--dir", str(short_dir / "m")]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert shown["violations"] == ["cli-neverseen was acknowledged and is not-found"]
    assert (shown["ok"], shown["lost"], shown["rounds"]) == (False, 1, 1)
    assert set(shown["kills"]) == {"core", "customer-kms", "edge", "registry"}
    assert shown["commands"] > 10
    assert shown["keys"] > 50
    assert 0 < shown["recovery_s_max"] < faults.RECOVERY_TIMEOUT_S
    take_lock(Layout(short_dir / "m")).close()  # the mesh is down
    assert cli.main(["faults", "run", "--embedded", "--json", "--dir", str(short_dir / "m")]) == 1, (
        "it makes a mesh of its own"
    )
    assert cli.main(["faults", "run", "--embedded", "--rounds", "0", "--dir", str(short_dir / "n")]) == 1


def test_every_component_of_a_full_mesh_is_killed_and_nothing_is_lost(
    short_dir: Path, soak: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three rounds; twenty in a soak."""
    rounds = 20 if soak else 3
    short_dir.chmod(0o755)  # PostgreSQL runs as another user
    code = cli.main(["faults", "run", "--rounds", str(rounds), "--json", "--dir", str(short_dir / "m")])
    shown = json.loads(capsys.readouterr().out)
    assert shown["violations"] == []
    assert (shown["lost"], shown["rounds"]) == (0, rounds), shown
    in_time = shown["recovery_s_max"] < faults.RECOVERY_LIMIT_S  # on a busy machine it may not be
    assert (code, shown["ok"]) == ((0, True) if in_time else (1, False)), shown
    of_full = {"core", "customer-kms", "edge", "etcd", "etcd-leader", "openbao", "postgres", "registry"}
    assert of_full <= set(shown["kills"])
    assert set(shown["kills"].values()) == {rounds}
    assert shown["commands"] > 20 * rounds
    assert 0 < shown["recovery_s_max"] < faults.RECOVERY_TIMEOUT_S
