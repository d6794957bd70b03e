"""The section ``keystore``: what it may say, and what opening the store makes of files that are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.adapters.pki_world import N1, World

from keymesh.adapters.openbao_keystore import OpenBaoKeyStore
from keymesh.adapters.sqlite_keystore import SqliteKeyStore
from keymesh.app.config_endpoint import Endpoint
from keymesh.app.config_keystore import KeyStoreConfig
from keymesh.app.keystore_open import SQLITE_FILE, open_keystore
from keymesh.model.errors import Refused

ENDPOINT = Endpoint(url="https://bao:8200", ca_file="ca.pem", cert_file="core.pem")
BAO = KeyStoreConfig(kind="openbao", endpoints=(ENDPOINT,), role="core")


def changed(config: Any, **fields: Any) -> Any:
    return msgspec.structs.replace(config, **fields)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    world = World()
    (tmp_path / "ca.pem").write_bytes(world.root_pem)
    world.write(tmp_path / "core.pem", N1)
    return tmp_path


@pytest.mark.parametrize(
    "good",
    [
        KeyStoreConfig(),
        BAO,
        changed(BAO, endpoints=(ENDPOINT,) * 8, mount="team/kv", prefix="a/b", login_mount="auth/cert"),
        changed(BAO, login="approle", role=None, approle_file="approle.json"),
    ],
)
def test_what_may_be_said(good: KeyStoreConfig) -> None:
    good.check()


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (KeyStoreConfig(kind="vault"), "kind"),
        (KeyStoreConfig(mount="other"), "kind"),
        (changed(BAO, kind="sqlite"), "kind"),
        (changed(BAO, endpoints=()), "endpoints"),
        (changed(BAO, endpoints=(ENDPOINT,) * 9), "endpoints"),
        (changed(BAO, endpoints=(ENDPOINT, changed(ENDPOINT, url="http://bao:8200"))), "endpoints[1].url"),
        (changed(BAO, endpoints=(changed(ENDPOINT, ca_file=None),)), "endpoints[0].ca_file"),
        (changed(BAO, endpoints=(changed(ENDPOINT, username="u"),)), "endpoints[0].username"),
        (changed(BAO, endpoints=(changed(ENDPOINT, password_file="p"),)), "endpoints[0].username"),
        (changed(BAO, mount="../sys"), "mount"),
        (changed(BAO, prefix=""), "prefix"),
        (changed(BAO, login="token"), "login"),
        (changed(BAO, login_mount="a b"), "login_mount"),
        (changed(BAO, role=None), "role"),
        (changed(BAO, login="approle"), "approle_file"),
    ],
)
def test_what_may_not(bad: KeyStoreConfig, field: str) -> None:
    with pytest.raises(Refused) as refused:
        bad.check()
    assert refused.value.field == field


async def test_the_store_that_is_named_is_opened_and_nobody_is_asked(directory: Path) -> None:
    for config, kind in ((None, SqliteKeyStore), (KeyStoreConfig(), SqliteKeyStore), (BAO, OpenBaoKeyStore)):
        made = open_keystore(config, directory)
        assert isinstance(made, kind)
        await made.close()
    assert (directory / SQLITE_FILE).exists()
    without = changed(BAO, endpoints=(changed(ENDPOINT, cert_file=None),), login="approle", approle_file="absent.json")
    await open_keystore(without, directory).close()  # the file is read at each login


@pytest.mark.parametrize("field", ["ca_file", "cert_file", "key_file"])
@pytest.mark.parametrize("content", [None, b"", b"no PEM"])
def test_files_that_are_wrong_are_named(directory: Path, field: str, content: bytes | None) -> None:
    if content is not None:
        (directory / "wrong.pem").touch(mode=0o600)
        (directory / "wrong.pem").write_bytes(content)
    bad = changed(BAO, endpoints=(changed(ENDPOINT, **{field: "wrong.pem"}),))
    with pytest.raises(Refused) as refused:
        open_keystore(bad, directory)
    assert refused.value.field in (field, "cert_file", "wrong.pem")


def test_a_key_that_others_may_read_is_refused(directory: Path) -> None:
    (directory / "core.pem").chmod(0o644)
    with pytest.raises(Refused):
        open_keystore(BAO, directory)
