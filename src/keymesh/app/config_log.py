"""The Registry's section ``log``: where the control log is."""

from __future__ import annotations

import re
from typing import Final, Literal

from msgspec import Struct

from keymesh.app.config_endpoint import Endpoint
from keymesh.model.errors import Refused

ENDPOINTS_MAX: Final = 9
FOLLOW_MIN_MS, FOLLOW_MAX_MS = 10, 5_000
TIMEOUT_MIN_MS, TIMEOUT_MAX_MS = 100, 30_000
CONNECTIONS_MAX: Final = 256
_URL: Final = re.compile(r"https://([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):([0-9]{1,5})/?")
DEFAULT_PREFIX: Final = "keymesh/"
_CLUSTER: Final = re.compile(r"[0-9a-f]{1,16}")
_PREFIX: Final = re.compile(r"[!-~]{1,255}/")


class LogConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Every replica of one mesh's Registry names the same log.

    ``kind``: ``sqlite``, a file in ``data_dir`` for the one Registry that has it; or ``etcd``, for any number of
    replicas.  The rest is etcd's.  ``endpoints``: its members, in the order to try them, each with ``ca_file`` and
    ``cert_file``.  ``prefix``: under which keys of that etcd, ending in a slash.  ``cluster_id``: of the only cluster
    that is believed, in hex as `etcdctl member list -w json` has it in its header (there in decimal); without it that
    of the first member that answers.  ``connections``: at most so many at a time, 1 to 256.  ``timeout_ms``: for one
    exchange, 100 to 30000.  ``follow_ms``: how often a replica looks whether another one has appended, 10 to 5000.
    """

    kind: Literal["sqlite", "etcd"] = "sqlite"
    endpoints: tuple[Endpoint, ...] = ()
    prefix: str = DEFAULT_PREFIX
    cluster_id: str | None = None
    connections: int = 16
    timeout_ms: int = 3_000
    follow_ms: int = 50

    def check(self) -> None:
        """Raises Refused naming the field."""
        if self.kind == "sqlite":
            if self.endpoints:
                raise Refused.bad_field("endpoints", "none where the log is a file")
            return
        if not 1 <= len(self.endpoints) <= ENDPOINTS_MAX:
            raise Refused.bad_field("endpoints", f"1 to {ENDPOINTS_MAX}, got {len(self.endpoints)}")
        for n, endpoint in enumerate(self.endpoints):
            _check_endpoint(f"endpoints[{n}]", endpoint)
            if any(endpoint.url.rstrip("/") == other.url.rstrip("/") for other in self.endpoints[:n]):
                raise Refused.bad_field(f"endpoints[{n}].url", "the same member twice")
        if _PREFIX.fullmatch(self.prefix) is None:
            raise Refused.bad_field("prefix", "up to 256 ASCII characters that end in a slash")
        if self.cluster_id is not None and _CLUSTER.fullmatch(self.cluster_id) is None:
            raise Refused.bad_field("cluster_id", "1 to 16 hex digits")
        for field, value, least, most in (
            ("connections", self.connections, 1, CONNECTIONS_MAX),
            ("timeout_ms", self.timeout_ms, TIMEOUT_MIN_MS, TIMEOUT_MAX_MS),
            ("follow_ms", self.follow_ms, FOLLOW_MIN_MS, FOLLOW_MAX_MS),
        ):
            if not least <= value <= most:
                raise Refused.bad_field(field, f"{least} to {most}")


def _check_endpoint(field: str, endpoint: Endpoint) -> None:
    match = _URL.fullmatch(endpoint.url)
    if match is None or not 1 <= int(match[2]) <= 65_535:
        raise Refused.bad_field(f"{field}.url", "https://HOST:PORT")
    if endpoint.ca_file is None:
        raise Refused.bad_field(f"{field}.ca_file", "the CA of etcd's members is named")
    if endpoint.cert_file is None:
        raise Refused.bad_field(f"{field}.cert_file", "etcd asks for a client certificate")
    if endpoint.username is not None or endpoint.password_file is not None:
        raise Refused.bad_field(f"{field}.username", "none: the client certificate says who we are")
