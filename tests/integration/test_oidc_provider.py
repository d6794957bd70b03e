"""People's tokens of a real OpenID provider: its keys rotated and withdrawn without our restart, its other clients, its
absence."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.servers.oidc import Provider, claims_of, kid_of
from tests.servers.openbao import openbao

from keymesh.access.tokens import Channel
from keymesh.app.config_tokens import IssuerSection
from keymesh.app.token_door import TokenDoor, issuer_from
from keymesh.model.errors import Refused
from keymesh.model.ids import MeshName
from keymesh.model.time import Instant

MESH = MeshName("example")
ANN = "spiffe://example/admin/ann"
NO = "unauthenticated"


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    with openbao(tmp_path_factory.mktemp("oidc")) as bao:
        made = Provider(bao)
        made.set_up()
        yield made


class Desk:
    """A door for that provider's people, with a clock that can be moved on."""

    def __init__(self, provider: Provider, subject: str, **more: Any) -> None:
        directory = provider.bao.directory
        if not (directory / "keymesh.pem").exists():
            provider.bao.ca.issue(directory / "keymesh.pem", "keymesh")
        section = IssuerSection(
            **{
                "name": "corp",
                "issuer": provider.issuer,
                "audience": "keymesh",
                "algorithm": "ES256",
                "jwks_url": provider.jwks_url,
                "ca_file": str(directory / "ca.pem"),
                "cert_file": str(directory / "keymesh.pem"),
                "names": {subject: "ann"},
                "max_age_s": 30,
                "refresh_s": 30,
                **more,
            }
        )
        section.check()
        self.ahead_ms = 0
        self.door = TokenDoor(MESH, [issuer_from(section)], now=self.now)

    def now(self) -> Instant:
        return Instant(time.time_ns() // 1_000_000 + self.ahead_ms)

    async def who(self, token: str) -> str:
        try:
            return str((await self.door.accept(token, Channel(None, b"f"))).identity)
        except Refused as no:
            return no.code


async def test_a_person_and_the_providers_other_clients(provider: Provider) -> None:
    desk = Desk(provider, provider.person("ann1"))
    stranger = provider.person("bob1")
    assert await desk.who(provider.token("ann1")) == ANN
    assert await desk.who(provider.token("ann1", "mail")) == NO  # same person, same key, for another client
    assert claims_of(provider.token("bob1"))["sub"] == stranger
    assert await desk.who(provider.token("bob1")) == NO
    wrong_ca = Desk(provider, stranger, ca_file=str(_other_ca(provider)))
    assert await wrong_ca.who(provider.token("bob1")) == NO


def _other_ca(provider: Provider) -> Path:
    from keymesh.app.servers.infra_ca import InfraCa

    path = provider.bao.directory / "other-ca.pem"
    path.write_bytes(InfraCa.make("another CA").pem)
    return path


async def test_groups_and_tenants_of_the_provider(provider: Provider) -> None:
    provider.person("eve", groups=("acme-admins", "golf"), org="acme")
    provider.person("max", org="acme")
    roles = {"roles_claim": "groups", "roles": {"acme-admins": ("tenant-admin",)}, "names": {}}
    desk = Desk(provider, "", tenant_claim="org", **roles)
    subject = claims_of(provider.token("eve"))["sub"]
    assert await desk.who(provider.token("eve")) == f"spiffe://example/tenant/acme/person/corp/{subject}"
    accepted = await desk.door.accept(provider.token("max"), Channel(None, b"f"))
    assert getattr(accepted.identity, "roles", None) == frozenset()
    elsewhere = Desk(provider, "", tenant_claim="org", tenant="zebrabank", **roles)
    assert await elsewhere.who(provider.token("eve")) == NO


async def test_its_keys_rotate_under_us(provider: Provider) -> None:
    desk = Desk(provider, provider.person("ann2"))
    first = provider.token("ann2")
    assert await desk.who(first) == ANN
    for _ in range(3):
        provider.rotate()
        desk.ahead_ms += 10_000  # an unknown key id is asked about every 10 s
        fresh = provider.token("ann2")
        assert kid_of(fresh) != kid_of(first)
        assert await desk.who(fresh) == ANN
        assert await desk.who(first) == ANN  # still published
    provider.key("later", "ES256")
    provider.role("people", "keymesh", key="later")
    moved = provider.token("ann2")
    desk.ahead_ms += 10_000
    assert await desk.who(moved) == ANN
    provider.role("mail", "mail", key="later")
    provider.bao.admin("DELETE", "/v1/identity/oidc/key/mesh")
    desk.ahead_ms += 10_000
    assert kid_of(first) not in provider.kids()
    await desk.door._ask(desk.door._issuers[provider.issuer])
    assert await desk.who(first) == NO  # withdrawn
    assert await desk.who(moved) == ANN
    provider.key("mesh", "ES256")
    for role, audience in (("people", "keymesh"), ("mail", "mail")):
        provider.role(role, audience)


async def test_another_algorithm_of_the_same_provider(provider: Provider) -> None:
    """One algorithm for each issuer: a second key of its is nobody's here."""
    desk = Desk(provider, provider.person("ann3"))
    provider.key("rsa", "RS256")
    provider.role("rsa", "keymesh", key="rsa")
    assert await desk.who(provider.token("ann3", "rsa")) == NO
    rsa = Desk(provider, claims_of(provider.token("ann3"))["sub"], algorithm="RS256")
    assert await rsa.who(provider.token("ann3", "rsa")) == ANN
    assert await rsa.who(provider.token("ann3")) == NO


async def test_while_it_is_away_its_keys_count_for_their_age(provider: Provider) -> None:
    desk = Desk(provider, provider.person("ann4"))
    token = provider.token("ann4")
    assert await desk.who(token) == ANN
    provider.bao.kill()
    try:
        desk.ahead_ms += 20_000
        assert await desk.who(token) == ANN
        desk.ahead_ms += 10_000
        assert await desk.who(token) == NO
    finally:
        provider.bao.start()
    desk.ahead_ms += 10_000
    assert await desk.who(token) == ANN
    assert await desk.who(provider.token("ann4")) == ANN


async def test_a_token_that_ran_out_is_over(provider: Provider) -> None:
    desk = Desk(provider, provider.person("ann5"), leeway_s=0)
    provider.role("short", "keymesh", ttl="30s")
    token = provider.token("ann5", "short")
    assert await desk.who(token) == ANN
    desk.ahead_ms += 30_000
    assert await desk.who(token) == NO
