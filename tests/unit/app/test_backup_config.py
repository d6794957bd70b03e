"""The ``backup`` section: every field's limits, stores opened by it, recovery keys in files."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from tests.unit.app.backup_world import OFFICER

from keymesh.adapters import key_files
from keymesh.app.backup_files import (
    load_backup_config,
    load_recovery_key,
    new_recovery_key,
    open_store,
    public_of,
)
from keymesh.app.config_backup import BackupConfig, S3Config
from keymesh.app.config_endpoint import Endpoint
from keymesh.model.errors import Refused

PUBLIC = public_of(OFFICER)
GOOD = BackupConfig(recipients=(PUBLIC,), store_dir="/backups")
ENDPOINT = Endpoint(url="https://s3.example:9000", ca_file="/ca.pem", username="id", password_file="/secret")
S3 = S3Config(bucket="km-backups", endpoints=(ENDPOINT,), retention_days=30)


def endpoint(**fields: Any) -> tuple[Endpoint, ...]:
    return (structs.replace(ENDPOINT, **fields),)


@pytest.mark.parametrize(
    ("field", "config"),
    [
        ("store_dir", structs.replace(GOOD, store_dir=None)),
        ("store_dir", structs.replace(GOOD, s3=S3)),
        ("store_dir", structs.replace(GOOD, store_dir="backups")),
        ("recipients", structs.replace(GOOD, recipients=())),
        ("recipients", structs.replace(GOOD, recipients=(PUBLIC, PUBLIC))),
        ("recipients", structs.replace(GOOD, recipients=("00" * 32,))),
        ("recipients", structs.replace(GOOD, recipients=("no key",))),
        ("recipients", structs.replace(GOOD, recipients=tuple(f"{n:064x}" for n in range(17)))),
        ("domain", structs.replace(GOOD, domain="EU")),
        ("interval_s", structs.replace(GOOD, interval_s=0)),
        ("interval_s", structs.replace(GOOD, interval_s=86_401)),
        ("full_every_s", structs.replace(GOOD, full_every_s=9)),
        ("bucket", structs.replace(S3, bucket="x")),
        ("bucket", structs.replace(S3, bucket="a/../b")),
        ("prefix", structs.replace(S3, prefix="km")),
        ("prefix", structs.replace(S3, prefix="/km/")),
        ("prefix", structs.replace(S3, prefix="km/../")),
        ("retention_days", structs.replace(S3, retention_days=0)),
        ("timeout_s", structs.replace(S3, timeout_s=0)),
        ("endpoints", structs.replace(S3, endpoints=())),
        ("endpoints", structs.replace(S3, endpoints=(ENDPOINT, ENDPOINT))),
        ("endpoints[0].url", structs.replace(S3, endpoints=endpoint(url="http://s3.example"))),
        ("endpoints[0].url", structs.replace(S3, endpoints=endpoint(url="https://"))),
        ("endpoints[0].url", structs.replace(S3, endpoints=endpoint(url="https://s3.example/bucket"))),
        ("endpoints[0].url", structs.replace(S3, endpoints=endpoint(url="https://id:key@s3.example"))),
        ("endpoints[0].ca_file", structs.replace(S3, endpoints=endpoint(ca_file=None))),
        ("endpoints[0].username", structs.replace(S3, endpoints=endpoint(username=None))),
        ("endpoints[0].password_file", structs.replace(S3, endpoints=endpoint(password_file=None))),
    ],
)
def test_what_a_section_may_not_say(field: str, config: BackupConfig | S3Config) -> None:
    with pytest.raises(Refused) as refused:
        config.check()
    assert refused.value.field == field


def test_a_good_section_opens_its_store_and_asks_nothing_of_it() -> None:
    GOOD.check()
    S3.check()
    assert open_store(GOOD).address == "directory /backups"
    store = open_store(structs.replace(GOOD, store_dir=None, s3=structs.replace(S3, prefix="km/")))
    assert store.address == "s3 https://s3.example:9000 km-backups/km/"
    with pytest.raises(Refused):
        open_store(structs.replace(GOOD, store_dir=None, s3=structs.replace(S3, bucket="x")))


def test_a_section_is_read_from_a_roles_file_and_the_rest_of_it_is_not_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "core.toml"
    path.write_text(
        f"""
        role = "core"
        [backup]
        recipients = ["{PUBLIC}"]
        domain = "eu"
        interval_s = 30
        [backup.s3]
        bucket = "km-backups"
        retention_days = 400
        [[backup.s3.endpoints]]
        url = "https://s3.example"
        ca_file = "ca.pem"
        username = "id"
        password_file = "/run/secret"
        """
    )
    found = load_backup_config(path)
    assert (found.domain, found.interval_s, found.full_every_s) == ("eu", 30, 86_400)
    assert found.s3 is not None
    assert found.s3.endpoints[0].ca_file == str(tmp_path / "ca.pem")
    assert found.s3.endpoints[0].password_file == "/run/secret"
    for text in ("", "[other]\n", "backup = 1\n", "[backup", "[backup]\nrecipients = []\nunknown = 1\n", "\0"):
        path.write_text(text)
        with pytest.raises(Refused):
            load_backup_config(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(Refused):
        load_backup_config(path)
    path.write_bytes(b" " * 300_000)
    with pytest.raises(Refused):
        load_backup_config(path)


def test_a_recovery_key_is_private_never_overwritten_and_of_its_kind(tmp_path: Path) -> None:
    path = tmp_path / "recovery.pem"
    public = new_recovery_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert public_of(load_recovery_key(path)) == public
    with pytest.raises(Refused) as refused:
        new_recovery_key(path)
    assert refused.value.code == "exists"
    path.chmod(0o644)
    with pytest.raises(Refused):
        load_recovery_key(path)
    key_files.write_signing_key(tmp_path / "signing.pem", key_files.new_signing_key())
    with pytest.raises(Refused):
        load_recovery_key(tmp_path / "signing.pem")
    (tmp_path / "rubbish.pem").write_bytes(b"rubbish")
    (tmp_path / "rubbish.pem").chmod(0o600)
    with pytest.raises(Refused):
        load_recovery_key(tmp_path / "rubbish.pem")
    with pytest.raises(Refused):
        load_recovery_key(tmp_path / "absent.pem")
