"""Who the subject of a person's token is to us: claims to an administrator, or to roles in one tenant or the mesh.

Pure.  An issuer is configured in one of two ways.  With ``names`` it only proves who somebody is: the listed subjects
are the mesh's administrators of those names, with the rights that their certificates would have, and everybody else
is nobody.  With ``roles`` it also says what somebody may do: values of one claim stand for roles, in the tenant that
the issuer is confined to or that another claim names, else mesh-wide.  Source: DESIGN section 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from keymesh.access.identity import AdminIdentity, ClientIdentity, Identity, PersonIdentity
from keymesh.access.role import IN_TENANT, MESH_WIDE, Role
from keymesh.access.token_spent import Party
from keymesh.access.tokens import TEXT_MAX_CHARS, Sound, TokenRules
from keymesh.model.errors import Refused
from keymesh.model.ids import MeshName, TenantId, check_label, check_tenant

ROLE_VALUES_MAX: Final = 256
SPENT_MAX: Final = 32_768
"""Of one issuer, as the next two: how many tokens that serve once may be alive at a process."""
SPENT_TENANT_MAX: Final = 4_096
SPENT_SUBJECT_MAX: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class PeopleRules:
    """``issuer``: its name with us, a label.  ``names``: subject -> administrator's name.  ``roles``: value of
    ``roles_claim`` -> the roles that it stands for.  ``tenant``: the only one that this issuer may speak of.
    """

    issuer: str
    tokens: TokenRules
    name_claim: str = "sub"
    names: Mapping[str, str] = field(default_factory=dict)
    roles_claim: str | None = None
    roles: Mapping[str, frozenset[Role]] = field(default_factory=dict)
    tenant: TenantId | None = None
    tenant_claim: str | None = None


def person_of(rules: PeopleRules, claims: Mapping[str, Any], sound: Sound, *, mesh: MeshName) -> Identity:
    """Who that is, of a token that is sound.  Raises Refused where it is nobody we know, or another's tenant."""
    subject = sound.subject if rules.name_claim == "sub" else claims.get(rules.name_claim)
    if not isinstance(subject, str) or len(subject) > TEXT_MAX_CHARS:
        raise Refused.bad_field(rules.name_claim, "required: text")
    if rules.roles_claim is None:
        if subject not in rules.names:
            raise Refused.bad_field(rules.name_claim, "names nobody that is listed")
        return AdminIdentity(mesh=mesh, name=rules.names[subject])
    tenant = _tenant_of(rules, claims)
    able = MESH_WIDE if tenant is None else IN_TENANT
    return PersonIdentity(
        mesh=mesh,
        issuer=rules.issuer,
        name=check_label(rules.name_claim, subject),
        tenant=tenant,
        roles=_roles_of(rules, claims.get(rules.roles_claim)) & able,
    )


def _tenant_of(rules: PeopleRules, claims: Mapping[str, Any]) -> TenantId | None:
    """The tenant that the token speaks of; None only where the issuer is the mesh's own."""
    if rules.tenant_claim is None:
        return rules.tenant
    named = claims.get(rules.tenant_claim)
    if not isinstance(named, str) or len(named) > TEXT_MAX_CHARS:
        raise Refused.bad_field(rules.tenant_claim, "required: a tenant")
    if rules.tenant is not None and named != rules.tenant:
        raise Refused.bad_field(rules.tenant_claim, "a tenant that this issuer does not speak of")
    return check_tenant(named)


def _roles_of(rules: PeopleRules, value: Any) -> frozenset[Role]:
    """Values that stand for nothing here are other systems' groups; a value of another shape stands for nothing."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or len(values) > ROLE_VALUES_MAX:
        return frozenset()
    held: frozenset[Role] = frozenset()
    for one in values:
        if isinstance(one, str):
            held |= rules.roles.get(one, frozenset())
    return held


def spenders(rules: PeopleRules, sound: Sound, person: Identity) -> tuple[Party, ...]:
    """Whose shares of the issuer's tokens that serve once a person's are: the subject's, in those of the tenant.

    A tenant may make itself as many subjects as it likes, so where an issuer speaks of several, each has a share.
    """
    subject = Party(f"subject {sound.subject}", SPENT_SUBJECT_MAX)
    if rules.tenant_claim is None or not isinstance(person, PersonIdentity):
        return (subject,)
    return (Party(f"tenant {person.tenant}", SPENT_TENANT_MAX), subject)


def agrees(certificate: Identity | None, token: Identity) -> bool:
    """Whether both prove the same: a connection with a certificate takes no token of somebody else.

    The same identity, or a person of the tenant whose client the certificate names.
    """
    if certificate is None or str(certificate) == str(token):
        return True
    return (
        isinstance(certificate, ClientIdentity)
        and isinstance(token, PersonIdentity)
        and certificate.tenant == token.tenant
    )
