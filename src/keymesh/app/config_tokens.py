"""The configuration section ``tokens``: whose bearer tokens count here, and how a Core shows itself to the Registry."""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct

from keymesh.access.role import IN_TENANT, MESH_WIDE, Role
from keymesh.access.token_nodes import is_node_issuer
from keymesh.access.tokens import ALGORITHMS, TEXT_MAX_CHARS
from keymesh.model.errors import Refused
from keymesh.model.ids import check_label, check_tenant

ISSUERS_MAX: Final = 16
NAMES_MAX: Final = 4_096
LEEWAY_MAX_S: Final = 300
DAY_S: Final = 24 * 3_600
ASK_MIN_S: Final = 10


class IssuerSection(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One issuer of people's tokens: an OpenID provider, or whatever else signs JWTs.

    ``name``: a label, by which our logs and the control log know it.  ``issuer``: the exact ``iss``.  ``audience``: the
    exact and only ``aud``.  ``algorithm``: the only one it signs with, RS, PS or ES with 256, 384 or 512, or EdDSA.
    ``typ``: the header's, where the issuer sets one, as ``at+jwt``; None: ``JWT`` or none.

    Keys: ``jwks_file``, or ``jwks_url`` (https) with ``ca_file``, PEM of the only authorities that are believed there,
    and ``cert_file`` with ``key_file`` (or both in one) where it asks for a certificate.  ``refresh_s``: how often the
    set is fetched, 10 to ``max_age_s``; ``max_age_s``: for how long it counts after the last answer, up to a day.

    Time: ``leeway_s``: by how much clocks may differ, 0 to 300.  ``lifetime_max_s``: from ``iat`` to ``exp``, 1 to a
    day.  ``once``: a token serves one connection and needs a ``jti``.  ``bound``: a token must be bound to the client's
    certificate (``cnf.x5t#S256``, RFC 8705), which must then be shown.

    Who it is: ``name_claim`` holds the subject.  Either ``names``, subject -> name of a mesh administrator, who then
    has what a certificate of that name would have; or ``roles_claim`` and ``roles``, value of that claim -> roles:
    ``auditor``, ``operator``, ``recovery-officer``; or, where ``tenant`` (the only one that this issuer speaks of) or
    ``tenant_claim`` (the claim that names it) is given, that tenant's ``tenant-admin``, ``key-admin``, ``auditor``.
    """

    name: str
    issuer: str
    audience: str
    algorithm: str
    typ: str | None = None
    jwks_file: str | None = None
    jwks_url: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    refresh_s: int = 300
    max_age_s: int = 3_600
    leeway_s: int = 60
    lifetime_max_s: int = 3_600
    once: bool = False
    bound: bool = False
    name_claim: str = "sub"
    names: dict[str, str] = {}
    roles_claim: str | None = None
    roles: dict[str, tuple[str, ...]] = {}
    tenant: str | None = None
    tenant_claim: str | None = None

    def check(self) -> None:
        """Raises Refused naming the field."""
        check_label("name", self.name)
        for field, text in (("issuer", self.issuer), ("audience", self.audience), ("name_claim", self.name_claim)):
            if not 0 < len(text) <= TEXT_MAX_CHARS:
                raise Refused.bad_field(field, f"1 to {TEXT_MAX_CHARS} characters")
        if is_node_issuer(self.issuer):
            raise Refused.bad_field("issuer", "spiffe:// names are the mesh's own nodes")
        if self.algorithm not in ALGORITHMS:
            raise Refused.bad_field("algorithm", f"one of {', '.join(sorted(ALGORITHMS))}")
        self._check_keys()
        self._check_times()
        self._check_people()

    def _check_keys(self) -> None:
        if (self.jwks_file is None) == (self.jwks_url is None):
            raise Refused.bad_field("jwks_file", "either jwks_file or jwks_url")
        if self.jwks_url is None:
            for field, given in (("ca_file", self.ca_file), ("cert_file", self.cert_file), ("key_file", self.key_file)):
                if given is not None:
                    raise Refused.bad_field(field, "only with jwks_url")
            return
        if not self.jwks_url.startswith("https://"):
            raise Refused.bad_field("jwks_url", "https only")
        if self.ca_file is None:
            raise Refused.bad_field("ca_file", "required with jwks_url")
        if self.key_file is not None and self.cert_file is None:
            raise Refused.bad_field("key_file", "only with cert_file")

    def _check_times(self) -> None:
        if not ASK_MIN_S <= self.max_age_s <= DAY_S:
            raise Refused.bad_field("max_age_s", f"{ASK_MIN_S} to {DAY_S}")
        if not ASK_MIN_S <= self.refresh_s <= self.max_age_s:
            raise Refused.bad_field("refresh_s", f"{ASK_MIN_S} to max_age_s")
        if not 0 <= self.leeway_s <= LEEWAY_MAX_S:
            raise Refused.bad_field("leeway_s", f"0 to {LEEWAY_MAX_S}")
        if not 1 <= self.lifetime_max_s <= DAY_S:
            raise Refused.bad_field("lifetime_max_s", f"1 to {DAY_S}")

    def _check_people(self) -> None:
        if bool(self.names) == bool(self.roles) or bool(self.roles) != (self.roles_claim is not None):
            raise Refused.bad_field("names", "either names, or roles with roles_claim")
        if max(len(self.names), len(self.roles)) > NAMES_MAX:
            raise Refused.bad_field("names" if self.names else "roles", f"at most {NAMES_MAX}")
        for subject, name in self.names.items():
            if self.tenant is not None or self.tenant_claim is not None:
                raise Refused.bad_field("tenant", "names are the mesh's administrators, not a tenant's")
            check_label(f"names.{subject[:64]}", name)
        if self.tenant is not None:
            check_tenant(self.tenant)
        able = MESH_WIDE if self.tenant is None and self.tenant_claim is None else IN_TENANT
        known = {role.value for role in able}
        for value, roles in self.roles.items():
            if not roles or not known.issuperset(roles):
                raise Refused.bad_field(f"roles.{value[:64]}", f"one or more of {', '.join(sorted(known))}")

    def held_roles(self) -> dict[str, frozenset[Role]]:
        return {value: frozenset(map(Role, roles)) for value, roles in self.roles.items()}


class RegistryTokens(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``issuers``: of people's tokens.  ``nodes``: whether Cores may show a token of their own in place of a
    certificate."""

    issuers: tuple[IssuerSection, ...] = ()
    nodes: bool = False

    def check(self) -> None:
        """Raises Refused naming the field."""
        check_issuers(self.issuers)
        if not self.issuers and not self.nodes:
            raise Refused.bad_field("issuers", "at least one, or nodes = true")


class CoreTokens(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``issuers``: of the tokens of people who may restrict here, when the Registry is away.  ``registry_auth``: how
    this Core shows itself to the Registry, ``certificate`` or ``jwt``."""

    issuers: tuple[IssuerSection, ...] = ()
    registry_auth: Literal["certificate", "jwt"] = "certificate"

    def check(self) -> None:
        """Raises Refused naming the field."""
        check_issuers(self.issuers)


def check_issuers(issuers: tuple[IssuerSection, ...]) -> None:
    """Raises Refused naming the position and the field."""
    if len(issuers) > ISSUERS_MAX:
        raise Refused.bad_field("issuers", f"at most {ISSUERS_MAX}")
    for n, section in enumerate(issuers):
        try:
            section.check()
        except Refused as bad:
            field = f"issuers[{n}].{bad.field}"
            raise Refused("bad-field", bad.message.replace(f"{bad.field}: ", f"{field}: ", 1), field=field) from bad
        for other in issuers[:n]:
            if section.name == other.name or section.issuer == other.issuer:
                raise Refused.bad_field(f"issuers[{n}].issuer", "the same name or issuer twice")
