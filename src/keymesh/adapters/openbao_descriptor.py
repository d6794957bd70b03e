"""Where a tenant's L1 is in OpenBao, as its binding records it: nothing in it is secret.

``replicas``: region to the endpoints of one cluster, joined by commas in the order to try them.  ``login`` is
``cert:NAME`` (each Core shows the key and certificate in ``openbao-NAME.pem``, issued by the customer, under the role
NAME) or ``approle:NAME`` (each Core reads ``openbao-NAME.json``).  A tenant's files lie in a directory of its own
(``l1_credentials``), a seal's beside the Core's own certificate, where no tenant's binding reaches.  That certificate
will not do: OpenBao knows a client by its common name, which certificates of a mesh do not have.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

from keymesh.adapters.l1_credentials import AllowedLogin, allowed_trust, l1_directory
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


def open_seals_openbao(descriptor: OpenBaoDescriptor, region: str, credentials: Credentials) -> OpenBaoL1:
    """The cluster that ``region`` uses for a seal, which an operator added.  Raises Refused for a malformed record."""
    descriptor.check()
    login, shown = _login(descriptor, credentials.identity_file.parent, credentials)
    return _opened(descriptor, region, shown, login, descriptor.ca_pem.encode("ascii"))


def open_tenants_openbao(
    descriptor: OpenBaoDescriptor, region: str, credentials: Credentials, tenant: str
) -> OpenBaoL1:
    """The cluster that ``region`` uses for ``tenant``, by what its customer gave this Core for these very servers.

    Raises Refused for a malformed descriptor, and for one that names servers which this Core's files do not.
    """
    descriptor.check()
    directory = l1_directory(credentials.identity_file.parent, tenant)
    urls = [url for replica in descriptor.replicas for url in descriptor.endpoints(replica)]
    allowed = partial(allowed_trust, directory, urls, descriptor.ca_pem)
    trust_pem = allowed()
    login, shown = _login(descriptor, directory, credentials)
    return _opened(descriptor, region, shown, AllowedLogin(login, allowed), trust_pem)


def _login(descriptor: OpenBaoDescriptor, directory: Path, credentials: Credentials) -> tuple[Login, Credentials]:
    """With what is in ``directory``, and the certificate that connections show."""
    kind, _, name = descriptor.login.partition(":")
    if kind == "cert":
        shown = Credentials(directory / f"openbao-{name}.pem")
        return CertLogin(name, reload=shown.reload), shown
    return AppRoleLogin(directory / f"openbao-{name}.json"), credentials


def _opened(
    descriptor: OpenBaoDescriptor, region: str, shown: Credentials, login: Login, trust_pem: bytes
) -> OpenBaoL1:
    context = shown.foreign_context(trust_pem=trust_pem)
    bao = OpenBao(descriptor.endpoints(descriptor.replica_for(region)), context, login)
    return OpenBaoL1(bao, mount=descriptor.mount, key=descriptor.key)
