"""The offline ceremony: what it makes, that nothing is overwritten, and what the loss of a key means."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from keymesh.app import cli
from keymesh.app.bootstrap import DEFAULT_REGIONS, bootstrap, make_plan, parse_regions
from keymesh.app.ceremony import FILE, keys_in, load, make, parse_quorum, rehearse, signs
from keymesh.app.cli_mesh import DEFAULT_TIMING
from keymesh.app.layout import Layout
from keymesh.app.signing_keys import new_signer
from keymesh.app.trust_file import load_trust
from keymesh.model.errors import KeymeshError, Refused


def test_it_makes_a_file_for_each_and_never_overwrites_one(tmp_path: Path) -> None:
    made = make(tmp_path / "c", roots=(2, 3), officers=(1, 2))
    files = sorted((tmp_path / "c").iterdir())
    assert [f.name for f in files] == [
        FILE, "officer-1.pem", "officer-2.pem", "root-1.pem", "root-2.pem", "root-3.pem"
    ]  # fmt: skip
    assert all(f.stat().st_mode & 0o077 == 0 for f in files if f.suffix == ".pem")
    assert load(tmp_path / "c") == made
    assert b"PRIVATE" not in (tmp_path / "c" / FILE).read_bytes()
    with pytest.raises(Refused, match="never overwrites"):
        make(tmp_path / "c", roots=(2, 3), officers=(2, 3))


@pytest.mark.parametrize(("threshold", "count", "survives"), [(2, 3, True), (2, 2, False), (1, 1, False), (3, 4, True)])
def test_the_loss_of_each_key_is_signed_and_verified_through(
    tmp_path: Path, threshold: int, count: int, survives: bool
) -> None:
    made = make(tmp_path, roots=(2, 3), officers=(threshold, count))
    done = rehearse(made, keys_in(tmp_path))
    assert [(r.role, r.lost) for r in done] == [("root", f"root-{n}.pem") for n in (1, 2, 3)] + [
        ("officers", f"officer-{n}.pem") for n in range(1, count + 1)
    ]
    assert all(r.signs for r in done if r.role == "root")
    assert {r.signs for r in done if r.role == "officers"} == {survives}
    assert {r.left for r in done if r.role == "officers"} == {count - 1}


def test_a_strangers_key_and_the_same_key_twice_count_for_nothing(tmp_path: Path) -> None:
    made = make(tmp_path, roots=(2, 3), officers=(2, 3))
    stranger = new_signer(tmp_path / "officer-9.pem")
    (tmp_path / "officer-8.pem").write_bytes((tmp_path / "officer-1.pem").read_bytes())
    (tmp_path / "officer-8.pem").chmod(0o600)
    (tmp_path / "officer-2.pem").unlink()
    (tmp_path / "officer-3.pem").unlink()
    (one,) = [r for r in rehearse(made, keys_in(tmp_path)) if r.role == "officers"]
    assert (one.left, one.signs) == (0, False)
    held = keys_in(tmp_path)[tmp_path / "officer-1.pem"]
    assert not signs(made.officers, [held, stranger])
    assert not signs(made.officers, [held, held])


def test_the_command_says_no_where_a_role_could_not_sign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = str(tmp_path / "c")
    assert cli.main(["ceremony", "make", place, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (len(shown["files"]), shown["root"]["threshold"]) == (6, 2)
    assert cli.main(["ceremony", "rehearse", place, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rehearsed"]) == 6
    words = ["--lost", "officer-1.pem", "--lost", "officer-2.pem"]
    assert cli.main(["ceremony", "rehearse", place, *words, "--json"]) == 1
    told = {r["role"]: r["signs"] for r in json.loads(capsys.readouterr().out)["rehearsed"]}
    assert told == {"root": True, "officers": False}
    assert cli.main(["ceremony", "rehearse", place, "--lost", "nobody.pem", "--json"]) == 1
    assert cli.main(["ceremony", "make", place]) == 1
    assert cli.main(["ceremony", "rehearse", str(tmp_path), "--json"]) == 1


@pytest.mark.parametrize("text", ["3/2", "0/1", "2", "2/", "a/b", "1/99"])
def test_thresholds_that_are_none(text: str) -> None:
    with pytest.raises(Refused):
        parse_quorum("roots", text)


@pytest.fixture
def short() -> Iterator[Path]:
    """Sockets lie below it, whose paths have a limit; a test's own directory may be named too long."""
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def test_a_ceremony_founds_a_mesh_and_none_of_its_private_keys_is_copied(short: Path) -> None:
    made = make(short / "c", roots=(2, 3), officers=(2, 3))
    (short / "c" / "root-3.pem").unlink()
    layout = Layout(short / "m")
    plan = make_plan(
        parse_regions(",".join(DEFAULT_REGIONS[:3])), DEFAULT_TIMING, links=False, allow_unlocked_memory=True
    )
    genesis = bootstrap(layout, plan, keys_from=short / "c")
    assert load_trust(layout.trust).root == made.root
    args = genesis.entry.body.args
    assert args["delegations"]["officers"]["keys"] == made.officers.keys
    assert not list(layout.root.rglob("root-?.pem")) + list(layout.root.rglob("officer-?.pem"))
    (short / "c" / "root-2.pem").unlink()
    with pytest.raises(KeymeshError, match="2 root keys found a mesh, 1 are in"):
        bootstrap(Layout(short / "n"), plan, keys_from=short / "c")
