"""Where the Registry of a full mesh keeps its log and its projection.  Pure; ``full_setup`` fills them."""

from __future__ import annotations

from pathlib import Path

from keymesh.app.config_database import DatabaseConfig
from keymesh.app.config_endpoint import Endpoint
from keymesh.app.config_log import DEFAULT_PREFIX, LogConfig
from keymesh.app.full_plan import FullPlan
from keymesh.app.full_servers import CA_FILE, CLIENT_FILE, PASSWORD_FILE, servers_of
from keymesh.app.layout import Layout
from keymesh.app.servers.postgres import OWNER


def log_of(layout: Layout, full: FullPlan, directory: Path, *, prefix: str = "") -> LogConfig:
    """As the replica that lives in ``directory`` reaches it."""
    files = {"ca_file": str(directory / CA_FILE), "cert_file": str(directory / CLIENT_FILE)}
    members = servers_of(layout, full).etcd
    endpoints = tuple(Endpoint(url=member.url, **files) for member in members)
    return LogConfig(kind="etcd", endpoints=endpoints, prefix=prefix or DEFAULT_PREFIX)


def database_of(layout: Layout, full: FullPlan, directory: Path) -> DatabaseConfig:
    """As the replica that lives in ``directory`` reaches it; the standby counts once it is promoted."""
    endpoints = tuple(
        Endpoint(
            url=f"postgresql://localhost:{port}/{OWNER}",
            ca_file=str(directory / CA_FILE),
            cert_file=str(directory / CLIENT_FILE),
            username=OWNER,
            password_file=str(directory / PASSWORD_FILE),
        )
        for port in (full.postgres, full.standby)
    )
    return DatabaseConfig(kind="postgresql", endpoints=endpoints)
