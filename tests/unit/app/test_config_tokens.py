"""The ``tokens`` section: what is accepted, and every field that is refused by its name."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from keymesh.access.role import Role
from keymesh.app.config_tokens import CoreTokens, IssuerSection, RegistryTokens
from keymesh.app.token_door import issuer_from
from keymesh.app.token_parts import core_door, node_login, registry_door
from keymesh.model.errors import Refused

GOOD: dict[str, Any] = {
    "name": "corp",
    "issuer": "https://id.example",
    "audience": "keymesh",
    "algorithm": "ES256",
    "jwks_file": "jwks.json",
    "names": {"u-1": "ann"},
}
ROLES: dict[str, Any] = {"names": {}, "roles_claim": "groups", "roles": {"ops": ("operator",)}}
URL: dict[str, Any] = {"jwks_file": None, "jwks_url": "https://id.example/keys"}


def section(**changed: Any) -> IssuerSection:
    return IssuerSection(**(GOOD | changed))


@pytest.mark.parametrize(
    "changed",
    [
        {},
        ROLES,
        ROLES | {"tenant": "acme", "roles": {"a": ("tenant-admin", "key-admin", "auditor")}},
        ROLES | {"tenant_claim": "org", "roles": {"a": ("key-admin",)}},
        URL | {"ca_file": "ca.pem"},
        URL | {"ca_file": "ca.pem", "cert_file": "c.pem", "key_file": "k.pem"},
        {"leeway_s": 0, "lifetime_max_s": 1, "refresh_s": 10, "max_age_s": 10},
        {"leeway_s": 300, "lifetime_max_s": 86_400, "refresh_s": 86_400, "max_age_s": 86_400},
    ],
    ids=str,
)
def test_what_is_accepted(changed: dict[str, Any]) -> None:
    section(**changed).check()


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"name": "Corp!"}, "name"),
        ({"issuer": ""}, "issuer"),
        ({"issuer": "x" * 256}, "issuer"),
        ({"issuer": "spiffe://example/registry/r1"}, "issuer"),
        ({"audience": ""}, "audience"),
        ({"name_claim": ""}, "name_claim"),
        ({"algorithm": "none"}, "algorithm"),
        ({"algorithm": "HS256"}, "algorithm"),
        ({"algorithm": "rs256"}, "algorithm"),
        ({"algorithm": "ES256K"}, "algorithm"),
        ({"jwks_file": None}, "jwks_file"),
        ({"jwks_url": "https://id.example/keys"}, "jwks_file"),
        ({"ca_file": "ca.pem"}, "ca_file"),
        ({"cert_file": "c.pem"}, "cert_file"),
        (URL, "ca_file"),
        (URL | {"ca_file": "ca.pem", "key_file": "k.pem"}, "key_file"),
        (URL | {"ca_file": "ca.pem", "jwks_url": "http://id.example/keys"}, "jwks_url"),
        ({"leeway_s": -1}, "leeway_s"),
        ({"leeway_s": 301}, "leeway_s"),
        ({"lifetime_max_s": 0}, "lifetime_max_s"),
        ({"lifetime_max_s": 86_401}, "lifetime_max_s"),
        ({"max_age_s": 9}, "max_age_s"),
        ({"max_age_s": 86_401}, "max_age_s"),
        ({"refresh_s": 9}, "refresh_s"),
        ({"refresh_s": 3_601}, "refresh_s"),
        ({"names": {}}, "names"),
        ({"roles": {"a": ("operator",)}}, "names"),
        ({"roles_claim": "groups"}, "names"),
        ({"names": {"u": "Ann B"}}, "names.u"),
        ({"tenant": "acme"}, "tenant"),
        ({"tenant_claim": "org"}, "tenant"),
        (ROLES | {"tenant": "mesh", "roles": {"a": ("auditor",)}}, "tenant"),
        (ROLES | {"roles": {"a": ()}}, "roles.a"),
        (ROLES | {"roles": {"a": ("king",)}}, "roles.a"),
        (ROLES | {"roles": {"a": ("tenant-admin",)}}, "roles.a"),  # of every tenant: nobody is
        (ROLES | {"tenant": "acme", "roles": {"a": ("operator",)}}, "roles.a"),  # a customer makes no operators
        (ROLES | {"tenant_claim": "org", "roles": {"a": ("recovery-officer",)}}, "roles.a"),
    ],
    ids=str,
)
def test_what_is_refused(changed: dict[str, Any], field: str) -> None:
    with pytest.raises(Refused) as no:
        section(**changed).check()
    assert no.value.field == field


def test_sections_of_the_roles() -> None:
    RegistryTokens(nodes=True).check()
    RegistryTokens(issuers=(section(),)).check()
    CoreTokens().check()
    with pytest.raises(Refused, match="at least one"):
        RegistryTokens().check()
    with pytest.raises(Refused, match=r"issuers\[1\].leeway_s: 0 to 300"):
        CoreTokens(issuers=(section(), section(name="b", issuer="https://b", leeway_s=301))).check()
    for twin in ({"name": "other"}, {"issuer": "https://other"}):
        with pytest.raises(Refused, match="twice"):
            CoreTokens(issuers=(section(), section(**twin))).check()
    many = tuple(section(name=f"n{n}", issuer=f"https://{n}") for n in range(17))
    with pytest.raises(Refused, match="at most 16"):
        RegistryTokens(issuers=many).check()


def test_an_issuer_from_its_section(tmp_path: Path) -> None:
    made = issuer_from(section(**ROLES, once=True, bound=True, leeway_s=5, max_age_s=77, refresh_s=20))
    assert (made.rules.tokens.leeway_ms, made.rules.tokens.once, made.rules.tokens.confirm) == (5_000, True, "x5t#S256")
    assert (made.keys.max_age_ms, made.refresh_s) == (77_000, 20)
    assert made.rules.roles == {"ops": frozenset({Role.OPERATOR})}
    with pytest.raises(Refused, match="ca_file"):
        issuer_from(section(**URL, ca_file=str(tmp_path / "none.pem")))


def test_the_example_in_the_document_is_a_section() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "tokens.md").read_text()
    (block,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    made = msgspec.convert(tomllib.loads(block)["tokens"], RegistryTokens, strict=True)
    made.check()
    assert made.nodes
    assert made.issuers[0].roles == {"mesh-operators": ("operator",)}
    rows = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| `.*?\|", text, re.MULTILINE))))
    shown = set(tomllib.loads(block)["tokens"]["issuers"][0])
    assert rows | shown | {"jwks_file"} == set(IssuerSection.__struct_fields__)


def test_without_a_section_nothing_is_different() -> None:
    class Config:
        tokens = None

    nothing: Any = Config()
    assert [registry_door(nothing, nothing), core_door(nothing, nothing), node_login(nothing, nothing)] == [None] * 3
    nothing.tokens = CoreTokens()
    assert [core_door(nothing, nothing), node_login(nothing, nothing)] == [None] * 2
