"""The few of Vault's ``sys`` paths that clients and load balancers ask before anything else.

``sealed`` is said where nothing that is hosted here may be used just now, ``standby`` where nothing is hosted yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from keymesh import __version__
from keymesh.compat.vault_form import VaultError

ACTIVE, STANDBY, SEALED = "active", "standby", "sealed"
_CODES: Final = {ACTIVE: ("activecode", 200), STANDBY: ("standbycode", 429), SEALED: ("sealedcode", 503)}
_KIND: Final = "transit"


def health(state: str, query: Mapping[str, str], *, mesh: str, now_s: int) -> tuple[int, dict[str, Any]]:
    """(status, body); ``query`` may name other statuses.  Raises VaultError."""
    option, status = _CODES[state]
    if state == STANDBY and query.get("standbyok", "false") not in ("false", "0"):
        option, status = _CODES[ACTIVE]
    if option in query:
        status = _status(option, query[option])
    return status, {
        "initialized": True,
        "sealed": state == SEALED,
        "standby": state != ACTIVE,
        "replication_performance_mode": "disabled",
        "replication_dr_mode": "disabled",
        "server_time_utc": now_s,
        "version": __version__,
        "cluster_name": mesh,
        "cluster_id": mesh,
    }


def _status(name: str, text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) == 3 and 200 <= int(text) <= 599:
        return int(text)
    raise VaultError(400, f"{name}: a status, 200 to 599")


def seal_status(state: str, mesh: str) -> dict[str, Any]:
    """What ``vault status`` shows.  Keys are sealed and opened by the mesh, not by shares given here."""
    return {
        "type": "keymesh",
        "initialized": True,
        "sealed": state == SEALED,
        "t": 0,
        "n": 0,
        "progress": 0,
        "nonce": "",
        "recovery_seal": False,
        "version": __version__,
        "migration": False,
        "cluster_name": mesh,
        "cluster_id": mesh,
        "storage_type": "keymesh",
    }


def mount(path: str) -> dict[str, Any]:
    """The one mount."""
    return {
        "accessor": f"{_KIND}_keymesh",
        "config": {"default_lease_ttl": 0, "force_no_cache": False, "max_lease_ttl": 0},
        "description": "services of one tenant: the token's",
        "external_entropy_access": False,
        "local": False,
        "options": None,
        "path": f"{path}/",
        "seal_wrap": False,
        "type": _KIND,
        "uuid": "",
    }
