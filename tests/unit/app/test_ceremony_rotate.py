"""A rotation made offline: what it signs, that the mesh takes it, and what it will not do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.app.test_ceremony import short as short

from keymesh.app import cli
from keymesh.app.bootstrap import DEFAULT_REGIONS, bootstrap, make_plan, parse_regions
from keymesh.app.ceremony import FILE, keys_in, load, make, rehearse
from keymesh.app.ceremony_rotate import FILE as ROTATION
from keymesh.app.ceremony_rotate import TRUST, Rotation, Wanted, rotate
from keymesh.app.ceremony_rotate import load as load_rotation
from keymesh.app.cli_mesh import DEFAULT_TIMING
from keymesh.app.layout import Layout
from keymesh.app.signing_keys import load_signer
from keymesh.app.trust_file import TrustFile, load_trust, save_trust
from keymesh.control import build, reduce
from keymesh.control.rows import RootRow, get
from keymesh.control.signing import DsseSuite, from_plain
from keymesh.control.state import NamespaceState, Supported
from keymesh.control.trust import Pins
from keymesh.control.view import Accepted, check_first_mesh
from keymesh.model.errors import Refused
from keymesh.model.ids import KeyId

FAR = 2**52


def wanted(*lost: str, roots: Any = None, officers: Any = None) -> Wanted:
    return Wanted(lost=lost, roots=roots, officers=officers, not_after=FAR)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A ceremony, and the ``trust.json`` of a mesh founded by it."""
    made = make(tmp_path / "c", roots=(2, 3), officers=(2, 3))
    save_trust(tmp_path / "trust.json", TrustFile(mesh="m", root=made.root, genesis="ab" * 32))
    return tmp_path


def rotated(base: Path, out: str, how: Wanted, *, of: str = "c", others: tuple[Path, ...] = ()) -> Any:
    keys = keys_in(base / of, others)
    return rotate(load(base / of), keys, load_trust(base / "trust.json"), base / out, how)


def test_every_key_is_replaced_and_nothing_overwritten(kept: Path) -> None:
    before = {p.name: p.read_bytes() for p in (kept / "c").iterdir()}
    done = rotated(kept, "n", wanted())
    assert {p.name: p.read_bytes() for p in (kept / "c").iterdir()} == before
    assert [p.name for p in sorted((kept / "n").iterdir())] == sorted([FILE, *done.made, ROTATION, TRUST])
    assert all((kept / "n" / name).stat().st_mode & 0o077 == 0 for name in done.made)
    assert b"PRIVATE" not in (kept / "n" / ROTATION).read_bytes() + (kept / "n" / FILE).read_bytes()
    old, new = load(kept / "c"), load(kept / "n")
    pinned = load_trust(kept / "n" / TRUST)
    assert (pinned.mesh, pinned.root, pinned.genesis) == ("m", new.root, "ab" * 32)
    assert (new.root.version, new.root.threshold, len(new.root.keys), done.kept) == (2, 2, 3, ())
    assert not old.root.keys.keys() & new.root.keys.keys() and not old.officers.keys.keys() & new.officers.keys.keys()
    assert load_rotation(kept / "n" / ROTATION) == done.rotation
    assert all(one.signs for one in rehearse(new, keys_in(kept / "n")))
    with pytest.raises(Refused, match="never overwrites"):
        rotated(kept, "n", wanted())


def test_a_lost_key_alone_is_replaced_though_its_file_is_gone(kept: Path) -> None:
    stolen = load_signer(kept / "c" / "officer-2.pem").key_id
    (kept / "c" / "officer-2.pem").unlink()
    done = rotated(kept, "n", wanted("officer-2.pem"))
    assert (done.made, done.gone) == (("officer-v2-1.pem",), ("officer-2.pem",))
    new, old = load(kept / "n"), load(kept / "c")
    assert new.root.keys == old.root.keys and new.root.version == 2
    assert stolen not in new.officers.keys and len(new.officers.keys.keys() & old.officers.keys.keys()) == 2
    others = tuple(kept / "c" / name for name in done.kept)
    assert all(one.signs for one in rehearse(new, keys_in(kept / "n", others)))
    again = rotated(kept, "n3", wanted("officer-v2-1.pem", "root-1.pem"), of="n", others=others)
    assert (again.ceremony.root.version, again.gone) == (3, ("officer-v2-1.pem", "root-1.pem"))


def test_a_lost_root_key_does_not_sign_though_it_is_at_hand(kept: Path) -> None:
    thief = load_signer(kept / "c" / "root-1.pem").key_id
    done = rotated(kept, "n", wanted("root-1.pem"))
    signed = {s.keyid for plain in done.rotation.authority for s in from_plain(plain).signatures}
    assert thief not in signed and len(signed & load(kept / "c").root.keys.keys()) == 2
    with pytest.raises(Refused, match="2 root keys end a trust set, 1 that are not lost"):
        rotated(kept, "x", wanted("root-1.pem", "root-2.pem"))
    assert not (kept / "x").exists()


def test_what_cannot_be_signed_is_refused_before_a_file_is_made(kept: Path) -> None:
    for name in ("officer-1.pem", "officer-2.pem"):
        (kept / "c" / name).unlink()
    cases = [
        (wanted("root-1.pem"), "2 officer keys of the new set sign for it, 1 are at hand"),
        (wanted("nobody.pem"), "no key 'nobody.pem'"),
        (wanted("root-1.pem", officers=(1, 2)), "at least 3 keys"),
    ]
    for how, why in cases:
        with pytest.raises(Refused, match=why):
            rotated(kept, "x", how)
    save_trust(
        kept / "trust.json",
        TrustFile(mesh="m", root=make(kept / "o", roots=(1, 1), officers=(1, 1)).root, genesis="ab" * 32),
    )
    with pytest.raises(Refused, match="not of the mesh"):
        rotated(kept, "x", wanted())
    assert not (kept / "x").exists()


def test_another_number_of_keys(kept: Path) -> None:
    done = rotated(kept, "n", wanted(roots=(3, 5), officers=(1, 1)))
    assert (done.ceremony.root.threshold, len(done.ceremony.root.keys)) == (3, 5)
    assert (done.ceremony.officers.threshold, len(done.ceremony.officers.keys)) == (1, 1)
    assert len(done.made) == 6
    most = rotated(kept, "m", wanted(roots=(16, 16), officers=(16, 16)))
    assert len(most.made) == 32, "more signatures than one envelope holds"


def test_a_file_from_before_names_were_kept_names_keys_by_id(kept: Path) -> None:
    held = json.loads((kept / "c" / FILE).read_bytes())
    del held["names"]
    (kept / "c" / FILE).write_text(json.dumps(held))
    lost = load_signer(kept / "c" / "officer-1.pem").key_id
    with pytest.raises(Refused, match="no key 'officer-1"):
        rotated(kept, "n", wanted("officer-1.pem"))
    assert rotated(kept, "n", wanted(lost)).gone == (lost,)


def test_the_commands(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, out = str(kept / "c"), str(kept / "n")
    words = ["ceremony", "rotate", place, "--trust", str(kept / "trust.json"), "--out", out]
    assert cli.main([*words, "--days", "0"]) == 1
    assert cli.main([*words, "--roots", "3/2"]) == 1
    assert cli.main([*words[:-3], str(kept / "none.json"), "--out", out]) == 1
    capsys.readouterr()
    assert cli.main([*words, "--lost", "officer-3.pem", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["version"], shown["files"], shown["gone"]) == (2, ["officer-v2-1.pem"], ["officer-3.pem"])
    assert shown["mesh"] == "m" and len(shown["kept"]) == 5
    assert cli.main([*words, "--json"]) == 1
    (kept / "cut.json").write_bytes((kept / "n" / ROTATION).read_bytes()[:-9])
    for name in ("cut.json", "absent.json", "trust.json"):
        assert cli.main(["ceremony", "submit", str(kept / name), "--dir", str(kept), "--json"]) == 1


def test_a_mesh_takes_one_after_another_from_its_first_entry_on(short: Path) -> None:
    make(short / "c", roots=(2, 3), officers=(2, 3))
    layout = Layout(short / "m")
    plan = make_plan(
        parse_regions(",".join(DEFAULT_REGIONS[:3])), DEFAULT_TIMING, links=False, allow_unlocked_memory=True
    )
    genesis = bootstrap(layout, plan, keys_from=short / "c")
    shutil.copy(layout.trust, short / "trust.json")
    pinned = load_trust(layout.trust)
    pins = Pins(pinned.mesh, {KeyId(k): v for k, v in pinned.root.keys.items()}, pinned.root.threshold)
    suite = DsseSuite(load_signer(layout.registry / "signing.pem").signer)
    state = founded(genesis)
    second = rotated(short, "n2", wanted("root-2.pem", "officer-1.pem"))
    others = tuple(short / "c" / name for name in second.kept)
    third = rotated(short, "n3", wanted(), of="n2", others=others)
    for n, rotation in enumerate((second.rotation, third.rotation), start=2):
        state = taken(state, rotation, suite)
        assert isinstance(check_first_mesh(state, suite=suite, pins=pins), Accepted)
        root = get(state.rows, "root", RootRow)
        assert root is not None and root.version == n
    with pytest.raises(Refused):
        taken(state, second.rotation, suite)


def founded(genesis: Any) -> NamespaceState:
    return NamespaceState(genesis, reduce.apply({}, genesis.entry), (Supported(genesis),))


def taken(state: NamespaceState, rotation: Rotation, suite: DsseSuite) -> NamespaceState:
    return build.extend(
        state,
        mesh=rotation.mesh,
        namespace="mesh",
        kind="trust.rotate",
        args=msgspec.to_builtins(rotation.args),
        mesh_seq=state.head.entry.seq,
        suite=suite,
        command_id=rotation.command_id,
        authority=tuple(from_plain(one) for one in rotation.authority),
    )
