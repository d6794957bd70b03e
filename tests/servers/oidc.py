"""A real OpenID provider for tests: the identity secrets engine of an OpenBao, with people, groups and clients."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

from tests.servers.openbao import OpenBaoServer

PASSWORD = "correct horse"
TEMPLATE = '{"groups": {{identity.entity.groups.names}}, "org": {{identity.entity.metadata.org}}}'


@dataclass
class Provider:
    """``algorithm``: of its key ``mesh``.  Each role is a client with its own audience."""

    bao: OpenBaoServer
    algorithm: str = "ES256"

    def set_up(self) -> None:
        admin = self.bao.admin
        admin("POST", "/v1/sys/auth/userpass", {"type": "userpass"})
        self._accessor = admin("GET", "/v1/sys/auth")["data"]["userpass/"]["accessor"]
        admin("POST", "/v1/identity/oidc/config", {"issuer": self.bao.url})
        self.key("mesh", self.algorithm)
        for role, audience in (("people", "keymesh"), ("mail", "mail")):
            self.role(role, audience)
        self.bao.policy("people", {"identity/oidc/token/*": ["read"]})

    @property
    def issuer(self) -> str:
        return f"{self.bao.url}/v1/identity/oidc"

    @property
    def jwks_url(self) -> str:
        return f"{self.issuer}/.well-known/keys"

    def key(self, name: str, algorithm: str) -> None:
        body = {
            "algorithm": algorithm,
            "allowed_client_ids": ["*"],
            "rotation_period": "24h",
            "verification_ttl": "24h",
        }
        self.bao.admin("POST", f"/v1/identity/oidc/key/{name}", body)

    def role(self, name: str, audience: str, *, key: str = "mesh", ttl: str = "10m") -> None:
        body = {"key": key, "client_id": audience, "template": TEMPLATE, "ttl": ttl}
        self.bao.admin("POST", f"/v1/identity/oidc/role/{name}", body)

    def person(self, name: str, *, groups: tuple[str, ...] = (), org: str = "none") -> str:
        """A new person; their entity's id, which tokens have as ``sub``."""
        admin = self.bao.admin
        admin("POST", f"/v1/auth/userpass/users/{name}", {"password": PASSWORD, "token_policies": ["people"]})
        made = admin("POST", "/v1/identity/entity", {"name": name, "metadata": {"org": org}})["data"]["id"]
        alias = {"name": name, "canonical_id": made, "mount_accessor": self._accessor}
        admin("POST", "/v1/identity/entity-alias", alias)
        for group in groups:
            members = self._members(group)
            admin("POST", "/v1/identity/group", {"name": group, "member_entity_ids": [*members, made]})
        return str(made)

    def _members(self, group: str) -> list[str]:
        status, answer = self.bao.ask("GET", f"/v1/identity/group/name/{group}")
        return list(answer["data"]["member_entity_ids"] or []) if status == 200 else []

    def token(self, name: str, role: str = "people") -> str:
        """What the provider gives that person for that client."""
        login = self.bao.admin("POST", f"/v1/auth/userpass/login/{name}", {"password": PASSWORD})
        status, answer = self.bao.ask("GET", f"/v1/identity/oidc/token/{role}", token=login["auth"]["client_token"])
        assert status == 200, answer
        return str(answer["data"]["token"])

    def rotate(self, *, keep: str = "24h") -> None:
        """A new key signs; the old one is published for ``keep`` more."""
        self.bao.admin("POST", "/v1/identity/oidc/key/mesh/rotate", {"verification_ttl": keep})

    def kids(self) -> set[str]:
        status, answer = self.bao.ask("GET", "/v1/identity/oidc/.well-known/keys")
        assert status == 200
        return {key["kid"] for key in answer["keys"]}


def kid_of(token: str) -> str:
    return str(_part(token, 0)["kid"])


def claims_of(token: str) -> dict[str, Any]:
    """Unverified."""
    return _part(token, 1)


def _part(token: str, index: int) -> dict[str, Any]:
    part = token.split(".")[index]
    return dict(json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))))
