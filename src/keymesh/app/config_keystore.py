"""The section ``keystore`` of a Core's configuration: where the region's wrapped keys lie."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from keymesh.adapters.openbao import ENDPOINTS_MAX, check_mount, check_name
from keymesh.app.config_endpoint import Endpoint
from keymesh.model.errors import Refused

KINDS: Final = ("sqlite", "openbao")
LOGINS: Final = ("cert", "approle")


class KeyStoreConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``kind``: ``sqlite`` (a file in the Core's directory; no other field then) or ``openbao``.

    For ``openbao``: ``endpoints`` are the nodes of one cluster, each by itself and no load balancer before them, in
    the order to try them; ``mount`` is a KV version 2 mount and ``prefix`` the path below it that is this region's
    alone.  ``login`` is ``cert`` (by the endpoint's ``cert_file``, under ``role``) or ``approle`` (``approle_file``: a
    private JSON file of ``role_id`` and ``secret_id``, read anew at each login); ``login_mount`` is where that method
    is mounted, its own name unless told.
    """

    kind: str = "sqlite"
    endpoints: tuple[Endpoint, ...] = ()
    mount: str = "kv"
    prefix: str = "keymesh"
    login: str = "cert"
    login_mount: str | None = None
    role: str | None = None
    approle_file: str | None = None

    def check(self) -> None:
        """Raises Refused naming the field."""
        if self.kind not in KINDS:
            raise Refused.bad_field("kind", " or ".join(KINDS))
        if self.kind == "sqlite":
            if self != KeyStoreConfig():
                raise Refused.bad_field("kind", "sqlite takes no other field")
            return
        if not 0 < len(self.endpoints) <= ENDPOINTS_MAX:
            raise Refused.bad_field("endpoints", f"1..{ENDPOINTS_MAX} of them")
        for at, endpoint in enumerate(self.endpoints):
            _check_endpoint(f"endpoints[{at}]", endpoint)
        check_mount("mount", self.mount)
        check_mount("prefix", self.prefix)
        if self.login not in LOGINS:
            raise Refused.bad_field("login", " or ".join(LOGINS))
        if self.login_mount is not None:
            check_mount("login_mount", self.login_mount)
        if self.login == "cert":
            check_name("role", self.role or "")
        elif not self.approle_file:
            raise Refused.bad_field("approle_file", "needed for an approle login")


def _check_endpoint(name: str, endpoint: Endpoint) -> None:
    if not endpoint.url.startswith("https://"):
        raise Refused.bad_field(f"{name}.url", "https://HOST:PORT")
    if endpoint.ca_file is None:
        raise Refused.bad_field(f"{name}.ca_file", "needed: the only authority that is believed")
    if endpoint.username is not None or endpoint.password_file is not None:
        raise Refused.bad_field(f"{name}.username", "OpenBao is logged in to by certificate or approle")
