"""Which control log a Registry has, whether it is this mesh's, and its founding."""

from __future__ import annotations

import ssl
from pathlib import Path

from keymesh.adapters.etcd_client import EtcdClient, client_context
from keymesh.adapters.etcd_log import EtcdControlLog
from keymesh.adapters.sqlite_log import SqliteControlLog
from keymesh.app.config_endpoint import Endpoint
from keymesh.app.config_log import LogConfig
from keymesh.control.entry import SignedEntry
from keymesh.control.log import Conflict, ControlLog, UnknownOutcome
from keymesh.model.errors import Integrity, Refused, Unavailable


def is_shared(config: LogConfig | None) -> bool:
    """Whether others may append to it too."""
    return config is not None and config.kind == "etcd"


def make_log(config: LogConfig | None, *, mesh: str, directory: Path, may_found: bool = False) -> ControlLog:
    """The log that ``config`` names; None: a file in ``directory``.  Nothing is asked of a server yet.

    ``may_found``: whether a log may be begun where there is nothing.  Raises Refused for files that are not what
    they must be.
    """
    if config is None or config.kind == "sqlite":
        return SqliteControlLog(directory / "log.db", mesh=mesh)
    client = EtcdClient(
        [endpoint.url for endpoint in config.endpoints],
        tls=[_context(f"log.endpoints[{n}]", endpoint) for n, endpoint in enumerate(config.endpoints)],
        cluster=None if config.cluster_id is None else int(config.cluster_id, 16),
        connections=config.connections,
        timeout_s=config.timeout_ms / 1000,
    )
    return EtcdControlLog(client, mesh=mesh, prefix=config.prefix, may_found=may_found)


def _context(field: str, endpoint: Endpoint) -> ssl.SSLContext:
    assert endpoint.ca_file is not None and endpoint.cert_file is not None  # ``LogConfig.check`` saw to it
    try:
        trust = Path(endpoint.ca_file).read_bytes()
    except OSError as bad:
        raise Refused.bad_field(f"{field}.ca_file", f"it cannot be read: {bad.strerror}") from bad
    key = None if endpoint.key_file is None else Path(endpoint.key_file)
    return client_context(trust_pem=trust, identity_file=Path(endpoint.cert_file), key_file=key)


async def check_founded(log: ControlLog, genesis: str) -> None:
    """The log begins with the entry whose hash ``genesis`` is.

    Raises Refused ``not-founded`` where it has not begun, Integrity ``foreign-mesh`` where it began otherwise,
    Unavailable.
    """
    first = await _first(log)
    if first is None:
        raise Refused("not-founded", "there is no log yet: `keymesh registry init` founds it", field="log")
    if first.hash != genesis:
        raise Integrity("foreign-mesh", "the log of another mesh, though of the same name", field="log")


async def found(log: ControlLog, genesis: SignedEntry) -> bool:
    """Begin the log with ``genesis``; False where it has begun with it already.

    Raises Integrity ``foreign-mesh`` where it began otherwise, Unavailable (found it again: it is the same once more).
    """
    if await _first(log) is None:
        try:
            await log.append((genesis,))
            return True
        except Conflict:  # somebody founded it meanwhile: with what, is looked at
            pass
        except UnknownOutcome as lost:
            raise Unavailable("unknown-outcome", lost.message) from lost
    await check_founded(log, genesis.hash)
    return False


async def _first(log: ControlLog) -> SignedEntry | None:
    _, rows = await log.read(0, 1)
    return rows[0][1] if rows else None
