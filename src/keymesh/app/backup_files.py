"""Stores as a configuration names them, and recovery keys in files."""

from __future__ import annotations

import datetime
import tomllib
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from keymesh.adapters.backup_directory import open_directory
from keymesh.adapters.files import write_file
from keymesh.adapters.key_files import read_private
from keymesh.app.config_backup import BackupConfig, S3Config
from keymesh.app.config_paths import resolve_paths
from keymesh.control.backup_store import BackupStore
from keymesh.model import strict_json
from keymesh.model.errors import Refused

CONFIG_MAX_BYTES: Final = 256 * 1024


def open_store(config: BackupConfig) -> BackupStore:
    """The store of ``config``; nothing is asked of it yet."""
    config.check()
    if config.s3 is not None:
        config.s3.check()
        return _open_s3(config.s3)
    assert config.store_dir is not None
    return open_directory(config.store_dir)


def _open_s3(config: S3Config) -> BackupStore:
    from keymesh.adapters.backup_s3 import S3Endpoint, S3Store  # boto3 costs a second: only where it is used

    return S3Store(
        [
            S3Endpoint(e.url, Path(e.ca_file or ""), e.username or "", Path(e.password_file or ""))
            for e in config.endpoints
        ],
        bucket=config.bucket,
        prefix=config.prefix,
        region=config.region,
        retention_days=config.retention_days,
        timeout_s=config.timeout_s,
        now=lambda: datetime.datetime.now(datetime.UTC),
    )


def load_backup_config(path: Path) -> BackupConfig:
    """The ``[backup]`` table of a role's configuration file; the rest is not looked at.  Raises Refused."""
    raw = path.read_bytes()
    if len(raw) > CONFIG_MAX_BYTES:
        raise Refused.bad_field("config", f"at most {CONFIG_MAX_BYTES} bytes")
    try:
        table = tomllib.loads(raw.decode()).get("backup")
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as bad:
        raise Refused.bad_field("config", f"not TOML: {bad}") from bad
    if not isinstance(table, dict):
        raise Refused.bad_field("backup", f"no [backup] table in {path.name}")
    return strict_json.convert(resolve_paths(table, path.absolute().parent), BackupConfig)


# --- recovery keys ---------------------------------------------------------------------------------------------------


def new_recovery_key(path: Path) -> str:
    """Write a fresh private key to ``path``, which must not exist; returns the public one, in hex."""
    if path.exists():
        raise Refused("exists", f"{path} exists; a recovery key is never overwritten", field="file")
    key = X25519PrivateKey.generate()
    write_file(
        path,
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
    return public_of(key)


def load_recovery_key(path: Path) -> X25519PrivateKey:
    """Raises Refused where it is no X25519 key, or others can read the file."""
    try:
        key = serialization.load_pem_private_key(read_private(path), password=None)
    except (ValueError, TypeError) as bad:
        raise Refused.bad_field("key", "not an unencrypted PEM private key") from bad
    if not isinstance(key, X25519PrivateKey):
        raise Refused.bad_field("key", "not a recovery key (X25519)")
    return key


def public_of(key: X25519PrivateKey) -> str:
    """As configurations name it."""
    return key.public_key().public_bytes_raw().hex()
