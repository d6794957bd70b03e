"""From the configuration of a Core's key store to the store: which adapter, with which credentials."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

from keymesh.adapters.key_files import read_private
from keymesh.adapters.openbao import OpenBao
from keymesh.adapters.openbao_keystore import OpenBaoKeyStore
from keymesh.adapters.openbao_login import AppRoleLogin, CertLogin, Login
from keymesh.adapters.sqlite_keystore import SqliteKeyStore
from keymesh.app.config_endpoint import Endpoint
from keymesh.app.config_keystore import KeyStoreConfig
from keymesh.core.keystore import KeyStore
from keymesh.model.errors import Refused

SQLITE_FILE: Final = "keystore.db"
_PEM_MAX_BYTES: Final = 64 * 1024


def open_keystore(config: KeyStoreConfig | None, directory: Path) -> KeyStore:
    """The store that ``config`` names (None: SQLite).  Relative paths are below ``directory``, the Core's own.

    Nothing is asked of a server yet.  Raises Refused naming the field or file that is wrong.
    """
    if config is None or config.kind == "sqlite":
        return SqliteKeyStore(directory / SQLITE_FILE)
    config.check()
    contexts = [_context(endpoint, directory) for endpoint in config.endpoints]

    def reload() -> None:
        for context, endpoint in zip(contexts, config.endpoints, strict=True):
            _show(context, endpoint, directory)

    login: Login
    if config.login == "cert":
        login = CertLogin(config.role or "", mount=config.login_mount or "cert", reload=reload)
    else:
        login = AppRoleLogin(directory / (config.approle_file or ""), mount=config.login_mount or "approle")
    bao = OpenBao([endpoint.url for endpoint in config.endpoints], contexts, login)
    return OpenBaoKeyStore(bao, mount=config.mount, prefix=config.prefix)


def _context(endpoint: Endpoint, directory: Path) -> ssl.SSLContext:
    """Believes the endpoint's own authority alone, and shows its certificate where it has one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET
    try:
        context.load_verify_locations(cafile=directory / (endpoint.ca_file or ""))
    except (OSError, ssl.SSLError) as bad:
        raise Refused.bad_field("ca_file", "a file of PEM certificates") from bad
    _show(context, endpoint, directory)
    return context


def _show(context: ssl.SSLContext, endpoint: Endpoint, directory: Path) -> None:
    """Load what is on disk now into ``context``, for connections made from now on."""
    if endpoint.cert_file is None:
        return
    key = directory / (endpoint.key_file or endpoint.cert_file)
    read_private(key, max_bytes=_PEM_MAX_BYTES)
    try:
        context.load_cert_chain(directory / endpoint.cert_file, key)
    except (OSError, ssl.SSLError) as bad:
        raise Refused.bad_field("cert_file", "a PEM certificate and its key") from bad
