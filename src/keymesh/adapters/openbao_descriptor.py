"""Where a tenant's L1 is in OpenBao, as its binding records it: nothing in it is secret.

``replicas``: region to the endpoints of one cluster, joined by commas in the order to try them.  ``login`` is
``cert:NAME`` (each Core shows the key and certificate in ``openbao-NAME.pem``, issued by the customer, under the role
NAME) or ``approle:NAME`` (each Core reads ``openbao-NAME.json``); the files lie beside the Core's own certificate.
That one will not do: OpenBao knows a client by its common name, which certificates of a mesh do not have.
"""

from __future__ import annotations

from typing import Final

from keymesh.adapters.openbao import ENDPOINTS_MAX, OpenBao, check_mount, check_name
from keymesh.adapters.openbao_l1 import OpenBaoL1
from keymesh.adapters.openbao_login import AppRoleLogin, CertLogin, Login
from keymesh.adapters.tls import Credentials
from keymesh.core.l1 import CA_PEM_MAX_CHARS, OPENBAO, REPLICAS_MAX, ProviderDescriptor, check_l1_url
from keymesh.model.errors import Refused
from keymesh.model.ids import check_region

LOGINS: Final = ("cert", "approle")


class OpenBaoDescriptor(ProviderDescriptor, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``key`` is a transit key at ``mount``."""

    mount: str
    login: str

    def check(self) -> None:
        """Raises Refused naming the field."""
        if self.provider != OPENBAO:
            raise Refused.bad_field("provider", OPENBAO)
        if not 0 < len(self.replicas) <= REPLICAS_MAX:
            raise Refused.bad_field("replicas", f"1..{REPLICAS_MAX}")
        for name in self.replicas:
            check_region(name)
            for url in self.endpoints(name):
                check_l1_url("replicas", url)
        if len(self.ca_pem) > CA_PEM_MAX_CHARS or not self.ca_pem.isascii():
            raise Refused.bad_field("ca_pem", f"at most {CA_PEM_MAX_CHARS} ASCII characters")
        check_mount("mount", self.mount)
        check_name("key", self.key)
        kind, _, name = self.login.partition(":")
        if kind not in LOGINS:
            raise Refused.bad_field("login", "cert:NAME or approle:NAME")
        check_name("login", name)

    def endpoints(self, replica: str) -> tuple[str, ...]:
        """Of one replica, in order.  Raises Refused where there are too many."""
        urls = tuple(self.replicas[replica].split(","))
        if len(urls) > ENDPOINTS_MAX:
            raise Refused.bad_field("replicas", f"at most {ENDPOINTS_MAX} endpoints each")
        return urls


def open_openbao(descriptor: OpenBaoDescriptor, region: str, credentials: Credentials) -> OpenBaoL1:
    """The cluster that ``region`` uses.  Raises Refused for a malformed descriptor."""
    descriptor.check()
    kind, _, name = descriptor.login.partition(":")
    directory = credentials.identity_file.parent
    login: Login
    if kind == "cert":
        credentials = Credentials(directory / f"openbao-{name}.pem")
        login = CertLogin(name, reload=credentials.reload)
    else:
        login = AppRoleLogin(directory / f"openbao-{name}.json")
    context = credentials.foreign_context(trust_pem=descriptor.ca_pem.encode("ascii"))
    bao = OpenBao(descriptor.endpoints(descriptor.replica_for(region)), context, login)
    return OpenBaoL1(bao, mount=descriptor.mount, key=descriptor.key)
