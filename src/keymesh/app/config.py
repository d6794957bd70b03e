"""What each role is told at its start: one typed configuration for a role, from a file or from an embedded mesh's plan.

Decides which fields there are and what they may be; reading a file is ``config_file``'s, deriving one from a plan
``config_of_plan``'s.  A section that is None leaves the embedded default in its place.  Names tell how a value is
treated: ``*_file``, ``*_dir``, ``*_path`` and ``*_socket`` are paths (relative ones start at the configuration file's
directory; a ``*_file`` must exist at the start), other names end in their unit.  Secrets are never values: a
``*_file`` names where one lies.

A part with a section of its own keeps it in ``config_<part>.py``, and is one line here in each role that has it.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final, Literal

from msgspec import Struct

from keymesh.access.callers import parse_callers
from keymesh.app.config_backup import BackupConfig
from keymesh.app.config_broker import CoreBroker, RegistryBroker
from keymesh.app.config_database import DatabaseConfig
from keymesh.app.config_keystore import KeyStoreConfig
from keymesh.app.config_kmip import KmipConfig
from keymesh.app.config_log import LogConfig
from keymesh.app.config_objects import ObjectsConfig
from keymesh.app.config_parts import (
    Checks,
    CoreTiming,
    IdentityFiles,
    Listen,
    check_fields,
    check_peers,
    check_region_name,
    check_service_name,
    check_services,
    check_urls,
)
from keymesh.app.config_seals import SealsConfig
from keymesh.app.config_tokens import CoreTokens, RegistryTokens
from keymesh.model.errors import Refused
from keymesh.model.hostport import parse_tcp
from keymesh.model.ids import check_label
from keymesh.model.limits import WORKERS_MAX


def check_callers(field: str, callers: dict[str, tuple[str, ...]]) -> None:
    """Raises Refused naming ``field`` and the uid."""
    for uid, names in callers.items():
        if not names:
            raise Refused.bad_field(f"{field}.{uid}", "at least one TENANT/SERVICE")
        check_services(f"{field}.{uid}", names)
        try:
            parse_callers([f"{uid}={','.join(names)}"])
        except Refused as bad:
            raise Refused.bad_field(f"{field}.{uid}", "a uid, and TENANT/SERVICE names") from bad


def check_tcp(field: str, where: str | None) -> None:
    """Raises Refused naming ``field``."""
    if where is not None:
        try:
            parse_tcp(where)
        except Refused as bad:
            raise Refused.bad_field(field, "HOST:PORT, the port 1 to 65535") from bad


def check_tcp_identity(field: str, name: str | None) -> None:
    """Raises Refused naming ``field``."""
    if name is not None:
        check_service_name(field, name, ())


def check_workers(field: str, workers: int) -> None:
    """Raises Refused naming ``field``."""
    if not 0 < workers <= WORKERS_MAX:
        raise Refused.bad_field(field, f"1 to {WORKERS_MAX}")


class RegistryConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The Registry, or one of its replicas.

    ``mesh``: the mesh's name.  ``node``: this replica's name, as its certificate has it.  ``data_dir``: where it keeps
    what it must not lose.
    """

    CHECKS: ClassVar[Checks] = {"mesh": check_label, "node": check_label}

    mesh: str
    data_dir: str
    listen: Listen
    identity: IdentityFiles
    node: str = "r1"
    role: Literal["registry"] = "registry"
    # sections of parts, each None for its embedded default:
    log: LogConfig | None = None
    database: DatabaseConfig | None = None
    tokens: RegistryTokens | None = None
    backup: BackupConfig | None = None
    broker: RegistryBroker | None = None

    def check(self) -> None:
        """Raises Refused naming the field."""
        check_fields(self)


class CoreConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One Crypto Core.

    ``mesh``, ``region``, ``node``: its name in the mesh, as its certificate has it.  ``data_dir``: where it keeps what
    it must not lose.  ``registries``: addresses of the Registry's replicas, in the order to try them.  ``peers``: for
    each other region, the addresses of its Cores, in order.  ``allow_unlocked_memory``: start though key memory cannot
    be locked.
    """

    CHECKS: ClassVar[Checks] = {
        "mesh": check_label,
        "region": check_region_name,
        "node": check_label,
        "registries": check_urls,
        "peers": check_peers,
    }

    mesh: str
    region: str
    data_dir: str
    listen: Listen
    identity: IdentityFiles
    registries: tuple[str, ...]
    node: str = "n1"
    peers: dict[str, tuple[str, ...]] = {}
    timing: CoreTiming = CoreTiming()
    allow_unlocked_memory: bool = False
    role: Literal["core"] = "core"
    # sections of parts, each None for its embedded default:
    keystore: KeyStoreConfig | None = None
    seals: SealsConfig | None = None
    objects: ObjectsConfig | None = None
    tokens: CoreTokens | None = None
    backup: BackupConfig | None = None
    broker: CoreBroker | None = None
    kmip: KmipConfig | None = None

    def check(self) -> None:
        """Raises Refused naming the field."""
        check_fields(self)
        if self.region in self.peers:
            raise Refused.bad_field(f"peers.{self.region}", "a Core is no peer of its own region")


class EdgeConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One Edge host beside its applications.

    ``mesh``, ``region``: where it is.  ``data_dir``: where it keeps its identities.  ``listen_socket``: the Unix socket
    that applications use, of mode 0600.  ``cores``: addresses of its region's Cores, in the order to try them.
    ``ca_file``: PEM of the mesh's root certificates.  ``trust_file``: whose policies count.  ``services``:
    ``TENANT/SERVICE`` names for which a key and a certificate request are made at the start.
    ``elsewhere``: addresses of other regions' Cores, by region, for when its own fail.
    ``callers``: for each other user that may open the socket, by uid, the TENANT/SERVICE names that it may use.
    ``listen_tcp``: HOST:PORT to serve on as well, over mutual TLS; ``tcp_identity``: the TENANT/SERVICE whose
    certificate is shown there (by default the first).  ``workers``: processes that serve.
    ``allow_unlocked_memory``: start though key memory cannot be locked.
    """

    CHECKS: ClassVar[Checks] = {
        "mesh": check_label,
        "region": check_region_name,
        "elsewhere": check_peers,
        "callers": check_callers,
        "listen_tcp": check_tcp,
        "tcp_identity": check_tcp_identity,
        "workers": check_workers,
        "cores": check_urls,
        "services": check_services,
    }

    mesh: str
    region: str
    data_dir: str
    listen_socket: str
    cores: tuple[str, ...]
    ca_file: str
    trust_file: str
    services: tuple[str, ...] = ()
    elsewhere: dict[str, tuple[str, ...]] = {}
    callers: dict[str, tuple[str, ...]] = {}
    listen_tcp: str | None = None
    tcp_identity: str | None = None
    workers: int = 1
    allow_unlocked_memory: bool = False
    role: Literal["edge"] = "edge"
    # sections of parts, each None for its embedded default:

    def check(self) -> None:
        """Raises Refused naming the field."""
        check_fields(self)
        if self.region in self.elsewhere:
            raise Refused.bad_field(f"elsewhere.{self.region}", "its own region's Cores are under cores")


Config = RegistryConfig | CoreConfig | EdgeConfig
ROLES: Final[dict[str, type[Any]]] = {"registry": RegistryConfig, "core": CoreConfig, "edge": EdgeConfig}
