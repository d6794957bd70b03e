"""``keymesh backup`` offline: what it prints, its exit codes, and one answer to every wrong key."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from tests.unit.app.backup_world import NOW, OFFICER, STRANGER, World

from keymesh.app import cli
from keymesh.app.trust_file import TrustFile, save_trust
from keymesh.control import backup_manifest as bm
from keymesh.control.rows import RootRow


def write_key(path: Path, key: X25519PrivateKey) -> Path:
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    path.chmod(0o600)
    return path


@pytest.fixture
async def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What an auditor has: stores, trust.json, and a recovery key."""
    monkeypatch.setattr("keymesh.app.cli_backup._wall_ms", lambda: NOW)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KEYMESH_DIR", raising=False)
    world = World(tmp_path)
    world.mesh.furnished()
    await world.sync()
    await world.give("us-east", "acme")
    await world.registry().once()
    await world.node("us-east").once()
    await world.close()
    root = RootRow(version=1, keys={str(k): v for k, v in world.mesh.pins.root_keys.items()}, threshold=2)
    save_trust(tmp_path / "trust.json", TrustFile(mesh="m1", root=root, genesis=world.mesh.mesh.head.hash))
    write_key(tmp_path / "officer.pem", OFFICER)
    write_key(tmp_path / "stranger.pem", STRANGER)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    code = cli.main([*words, "--json"])
    return code, json.loads(capsys.readouterr().out)


WORDS = ("backup", "verify", "--root", "trust.json", "--store", "us", "--store", "registry")


def test_verify_says_what_holds(offline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown = run(capsys, *WORDS, "--key", "officer.pem", "--at-least", "7")
    assert code == 0
    assert (shown["ok"], shown["epoch"], shown["index"], shown["entries"]) == (True, 1, 7, 7)
    assert (shown["namespaces"], shown["blobs"], shown["manifests"]) == (2, 2, 2)
    assert [s["domain"] for s in shown["stores"]] == ["", "us"]
    code, shown = run(capsys, *WORDS, "--key", "officer.pem", "--newest")
    assert (code, shown["ok"], shown["index"]) == (0, True, 7)
    assert cli.main([*WORDS, "--key", "officer.pem"]) == 0
    assert "entries" in capsys.readouterr().out


def test_exit_codes(offline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown = run(capsys, *WORDS, "--key", "officer.pem", "--at-least", "8")
    assert (code, shown["error"]["code"]) == (4, "too-old")
    code, shown = run(capsys, *WORDS[:-2], "--key", "officer.pem")
    assert (code, shown["error"]["field"]) == (1, "store")
    code, shown = run(capsys, *WORDS, "--store", str(offline / "us"), "--key", "officer.pem")
    assert (code, shown["error"]["code"]) == (4, "duplicate-id")
    code, shown = run(capsys, *WORDS, "--store", "nowhere", "--key", "officer.pem")
    assert (code, shown["error"]["code"]) == (3, "store-away")
    code, shown = run(capsys, *WORDS)
    assert (code, shown["error"]["field"]) == (2, "key")
    code, shown = run(capsys, *WORDS, "--key", "absent.pem")
    assert code == 1
    (offline / "registry" / bm.manifest_name("registry", 1)).unlink()
    code, shown = run(capsys, *WORDS, "--key", "officer.pem")
    assert code == 4


def test_a_key_that_opens_nothing_gets_one_answer(offline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown = run(capsys, *WORDS, "--key", "stranger.pem")
    assert code == 4
    assert shown["error"] == {"code": "integrity", "message": "could not be opened", "field": None}


def test_list_needs_no_key(offline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (offline / "mesh").mkdir()
    (offline / "trust.json").rename(offline / "mesh" / "trust.json")
    words = ("backup", "list", "--dir", "mesh", "--store", "registry", "--store", "us")
    code, shown = run(capsys, *words)
    assert code == 0
    assert [(b["origin"], b["seq"], b["full"]) for b in shown["backups"]] == [
        ("registry", 1, True),
        ("us-east.n1", 1, True),
    ]
    assert "acme" not in json.dumps(shown)
    assert cli.main(list(words)) == 0
    assert "us-east.n1" in capsys.readouterr().out


def test_a_store_may_be_named_by_a_roles_configuration(offline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    public = OFFICER.public_key().public_bytes_raw().hex()
    for name, domain in (("registry", ""), ("us", "us")):
        text = f'[backup]\nrecipients = ["{public}"]\nstore_dir = "{name}"\ndomain = "{domain}"\n'
        (offline / f"{name}.toml").write_text(text)
    words = ("backup", "verify", "--root", "trust.json", "--key", "officer.pem")
    code, shown = run(capsys, *words, "--config", "registry.toml", "--config", "us.toml")
    assert (code, shown["blobs"]) == (0, 2)


def test_keygen_gives_the_public_half(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recovery.pem"
    code, shown = run(capsys, "backup", "keygen", str(path))
    assert (code, len(shown["recipient"])) == (0, 64)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    code, shown = run(capsys, "backup", "keygen", str(path))
    assert (code, shown["error"]["code"]) == (1, "exists")
    assert cli.main(["backup", "keygen", str(tmp_path / "second.pem")]) == 0
    assert "recipient " in capsys.readouterr().out
