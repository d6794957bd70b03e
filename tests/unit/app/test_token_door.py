"""Tokens of people at the door: honest ones, and every forgery of the list, each with the one answer."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.app.token_world import (
    ANN,
    AUDIENCE,
    CHANNEL,
    EC_KEY,
    ED_KEY,
    ISSUER,
    KEYS,
    MESH,
    NO,
    OTHER_RSA,
    RSA_KEY,
    START,
    World,
    b64,
    by_roles,
    claims,
    jwk,
    jwks,
    people,
    sign,
)

from keymesh.access import token_people
from keymesh.access.identity import PersonIdentity
from keymesh.access.role import Role
from keymesh.access.token_people import SPENT_SUBJECT_MAX
from keymesh.access.tokens import Channel
from keymesh.app.token_door import TokenDoor
from keymesh.crypto.jws import JWS_MAX_CHARS
from keymesh.model.ids import TenantId

S = START // 1000
PEM = RSA_KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)  # fmt: skip
CERTIFICATE = hashlib.sha256(b"a certificate").digest()


def with_header(**fields: Any) -> str:
    return sign(claims(), header={"alg": "RS256", "kid": "k1", **fields})


def unsigned(algorithm: str) -> str:
    return f"{b64(json.dumps({'alg': algorithm, 'kid': 'k1'}).encode())}.{b64(json.dumps(claims()).encode())}."


def hmac_with_public_key(algorithm: str = "HS256") -> str:
    signed = f"{b64(json.dumps({'alg': algorithm, 'kid': 'k1'}).encode())}.{b64(json.dumps(claims()).encode())}"
    return f"{signed}.{b64(hmac.new(PEM, signed.encode(), hashlib.sha256).digest())}"


def raw_claims(text: str) -> str:
    """An honest token but for ``text``, appended to its claims as it is."""
    return sign(json.dumps(claims(exp=None))[:-1] + text + "}")


def changed_part(index: int) -> str:
    parts = sign(claims()).split(".")
    parts[index] = ("A" if parts[index][0] != "A" else "B") + parts[index][1:]
    return ".".join(parts)


FORGERIES: dict[str, Callable[[], str]] = {
    "alg none": lambda: unsigned("none"),
    "alg None": lambda: unsigned("None"),
    "alg nOnE": lambda: unsigned("nOnE"),
    "alg none, signed all the same": lambda: sign(claims(), header={"alg": "none", "kid": "k1"}),
    "alg missing": lambda: sign(claims(), header={"kid": "k1"}),
    "alg empty": lambda: sign(claims(), header={"alg": "", "kid": "k1"}),
    "alg a list": lambda: sign(claims(), header={"alg": ["RS256"], "kid": "k1"}),
    "HS256 with the RSA public key": hmac_with_public_key,
    "HS256 under the name of RS256": lambda: hmac_with_public_key("RS256"),
    "RS512 by the issuer's own key": lambda: sign(claims(), header={"alg": "RS512", "kid": "k1"}),
    "PS256 by the issuer's own key": lambda: sign(claims(), algorithm="PS256", header={"alg": "PS256", "kid": "k1"}),
    "header jwk": lambda: sign(claims(), key=OTHER_RSA, header={"alg": "RS256", "kid": "k1", "jwk": jwk(OTHER_RSA, "k1", "RS256")}),  # noqa: E501
    "header jwk, no kid": lambda: sign(claims(), key=OTHER_RSA, header={"alg": "RS256", "jwk": jwk(OTHER_RSA, "k1", "RS256")}),  # noqa: E501
    "header jku": lambda: with_header(jku="https://evil.example/jwks"),
    "header x5u": lambda: with_header(x5u="https://evil.example/cert"),
    "header x5c": lambda: with_header(x5c=["MIIB"]),
    "kid missing": lambda: sign(claims(), header={"alg": "RS256"}),
    "kid a path": lambda: with_header(kid="../../../../dev/null"),
    "kid SQL": lambda: with_header(kid="x' UNION SELECT 'k1"),
    "kid with NUL": lambda: with_header(kid="k1\x00"),
    "kid null": lambda: with_header(kid=None),
    "kid a number": lambda: with_header(kid=1),
    "kid endless": lambda: with_header(kid="k" * 5000),
    "unknown crit": lambda: with_header(crit=["exp"]),
    "crit empty": lambda: with_header(crit=[]),
    "b64 false": lambda: with_header(b64=False, crit=["b64"]),
    "zip": lambda: with_header(zip="DEF"),
    "p2c huge": lambda: with_header(p2c=2**31),
    "JWE in place of JWS": lambda: ".".join([b64(b'{"alg":"RSA-OAEP","enc":"A256GCM"}'), "a" * 20, "b" * 16, "c" * 20, "d" * 22]),  # noqa: E501
    "JSON serialisation with no signatures": lambda: json.dumps({"payload": b64(json.dumps(claims()).encode()), "signatures": []}),  # noqa: E501
    "empty signature": lambda: sign(claims()).rpartition(".")[0] + ".",
    "no signature part": lambda: sign(claims()).rpartition(".")[0],
    "signature of zeros": lambda: sign(claims()).rpartition(".")[0] + "." + b64(bytes(256)),
    "signature padded": lambda: sign(claims()) + "=",
    "signature's last bits changed": lambda: sign(claims())[:-1] + ("B" if sign(claims())[-1] == "A" else "A"),
    "signature of another key": lambda: sign(claims(), key=OTHER_RSA),
    "header changed": lambda: changed_part(0),
    "claims changed": lambda: changed_part(1),
    "signature changed": lambda: changed_part(2),
    "four parts": lambda: sign(claims()) + ".x",
    "nothing": lambda: "",
    "dots": lambda: "..",
    "blank inside": lambda: sign(claims()).replace(".", ". ", 1),
    "1 MB": lambda: sign(claims(padding="x" * 1_000_000)),
    "one character too long": lambda: "a" * (JWS_MAX_CHARS + 1),
    "claims not an object": lambda: sign("[]"),
    "claims nested deeply": lambda: raw_claims(f', "exp": {S + 600}, "x": ' + "[" * 900 + "]" * 900),
    "claims with a lone surrogate": lambda: raw_claims(f', "exp": {S + 600}, "x": "\\ud800"'),
    "claims twice": lambda: raw_claims(f', "exp": {S + 600}, "sub": "u-1"'),
    "exp twice": lambda: raw_claims(f', "exp": {S - 600}, "exp": {S + 600}'),
    "exp missing": lambda: raw_claims(""),
    "exp float": lambda: raw_claims(f', "exp": {S + 600}.5'),
    "exp with exponent": lambda: raw_claims(', "exp": 1e999'),
    "exp NaN": lambda: raw_claims(', "exp": NaN'),
    "exp Infinity": lambda: raw_claims(', "exp": Infinity'),
    "exp a string": lambda: raw_claims(f', "exp": "{S + 600}"'),
    "exp true": lambda: raw_claims(', "exp": true'),
    "exp null": lambda: raw_claims(', "exp": null'),
    "exp negative": lambda: raw_claims(f', "exp": -{S}'),
    "exp beyond 64 bits": lambda: raw_claims(f', "exp": {2**63}'),
    "exp beyond the lifetime": lambda: sign(claims(exp=S + 3_601)),
    "expired by a second more than the leeway": lambda: sign(claims(iat=S - 661, exp=S - 61)),
    "expired at that very instant": lambda: sign(claims(iat=S - 660, exp=S - 60)),
    "exp before iat": lambda: sign(claims(exp=S - 1)),
    "iat missing": lambda: sign(claims(iat=None)),
    "iat in the future": lambda: sign(claims(iat=S + 61, exp=S + 600)),
    "iat a float": lambda: sign(claims(iat=S + 0.5)),
    "nbf in the future": lambda: sign(claims(nbf=S + 61)),
    "nbf a string": lambda: sign(claims(nbf="now")),
    "nbf after exp": lambda: sign(claims(exp=S + 10, nbf=S + 20)),
    "iss missing": lambda: sign(claims(iss=None)),
    "iss cut short": lambda: sign(claims(iss=ISSUER[:-1])),
    "iss with more behind it": lambda: sign(claims(iss=ISSUER + "/other")),
    "iss in a list": lambda: sign(claims(iss=[ISSUER])),
    "iss of a stranger": lambda: sign(claims(iss="https://evil.example")),
    "aud missing": lambda: sign(claims(aud=None)),
    "aud of another client": lambda: sign(claims(aud="mail")),  # the issuer's key, good for somebody else
    "aud cut short": lambda: sign(claims(aud=AUDIENCE[:-1])),
    "aud with others": lambda: sign(claims(aud=[AUDIENCE, "mail"])),
    "aud twice": lambda: sign(claims(aud=[AUDIENCE, AUDIENCE])),
    "aud an empty list": lambda: sign(claims(aud=[])),
    "aud an object": lambda: sign(claims(aud={AUDIENCE: 1})),
    "sub missing": lambda: sign(claims(sub=None)),
    "sub nobody's": lambda: sign(claims(sub="u-2")),
    "sub with a line break": lambda: sign(claims(sub="u-1\nu-2")),
    "sub a number": lambda: sign(claims(sub=1)),
    "typ of an access token": lambda: with_header(typ="at+jwt"),
    "typ of a node's token": lambda: with_header(typ="keymesh-node+jwt"),
    "SVID of another trust domain": lambda: sign(claims(iss="spiffe://evil/core/n1", sub="spiffe://evil/core/n1")),
    "SVID of a node, where nodes show none": lambda: sign(claims(iss="spiffe://eu.example/core/n1")),
    "cnf of another certificate": lambda: sign(claims(cnf={"x5t#S256": b64(CERTIFICATE)})),
    "cnf of another connection": lambda: sign(claims(cnf={"tls-finished": b64(bytes(32))})),
    "cnf jkt, which nobody here can prove": lambda: sign(claims(cnf={"jkt": b64(bytes(32))})),
    "cnf empty": lambda: sign(claims(cnf={})),
    "cnf null": lambda: sign(json.dumps(claims())[:-1] + ', "cnf": null}'),
    "cnf of two methods": lambda: sign(claims(cnf={"x5t#S256": "a", "jkt": "b"})),
    "cnf a list": lambda: sign(claims(cnf=["x5t#S256"])),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
async def test_a_forgery_has_the_one_answer(name: str) -> None:
    world = World()
    assert await world.who(FORGERIES[name]()) == NO
    assert await world.who(sign(claims())) == ANN  # the door itself is in order


@pytest.mark.parametrize("algorithm", KEYS)
async def test_each_algorithm_where_it_is_the_issuers(algorithm: str) -> None:
    world = World(people(tokens={"algorithm": algorithm}))
    assert await world.who(sign(claims(), algorithm=algorithm)) == ANN
    for other in KEYS.keys() - {algorithm}:
        assert await world.who(sign(claims(), algorithm=other)) == NO, other


@pytest.mark.parametrize(
    "changed",
    [
        {"aud": [AUDIENCE]},
        {"nbf": S + 60},
        {"iat": S + 60, "exp": S + 700},
        {"iat": S - 650, "exp": S - 59},
        {"nbf": S - 3_000, "iat": S - 10},
        {"jti": None},
    ],
    ids=str,
)
async def test_what_is_within_the_rules(changed: dict[str, Any]) -> None:
    assert await World().who(sign(claims(**changed))) == ANN


@pytest.mark.parametrize("skew_s", [-300, 300])
async def test_clocks_five_minutes_apart_need_that_leeway(skew_s: int) -> None:
    wide = World(people(tokens={"leeway_ms": 300_000}))
    token = sign(claims(iat=S + skew_s, exp=S + skew_s + 60))
    assert await wide.who(token) == ANN
    assert await World().who(token) == NO
    further = sign(claims(iat=S + 301, exp=S + 400) if skew_s > 0 else claims(iat=S - 400, exp=S - 300))
    assert await wide.who(further) == NO


@pytest.mark.parametrize("part", ["r", "s", "both"])
async def test_es256_with_a_zero_in_it(part: str) -> None:
    world = World(people(tokens={"algorithm": "ES256"}))
    signed, _, signature = sign(claims(), algorithm="ES256").rpartition(".")
    honest = bytes(32) + bytes([1] * 32)
    zeros = {"r": honest, "s": honest[::-1], "both": bytes(64)}[part]
    assert await world.who(f"{signed}.{b64(zeros)}") == NO
    assert await world.who(f"{signed}.{signature}") == ANN
    assert await world.who(f"{signed}.{b64(bytes(63))}") == NO
    assert await world.who(f"{signed}.{b64(bytes(20_00))}") == NO


async def test_eddsa_signatures_of_another_length() -> None:
    world = World(people(tokens={"algorithm": "EdDSA"}))
    signed, _, _ = sign(claims(), algorithm="EdDSA").rpartition(".")
    for length in (1, 63, 65, 2_000):
        assert await world.who(f"{signed}.{b64(bytes(length))}") == NO


async def test_typ_where_one_is_configured() -> None:
    """An ID token is no access token, whatever it is signed with."""
    world = World(people(tokens={"typ": "at+jwt"}))
    for typ, answer in (("at+jwt", ANN), ("AT+JWT", ANN), ("application/at+jwt", ANN), ("JWT", NO), ("at", NO)):
        assert await world.who(with_header(typ=typ)) == answer, typ
    assert await world.who(sign(claims())) == NO
    assert await World().who(with_header(typ="JWT", x5t="abc")) == ANN


# --- keys ------------------------------------------------------------------------------------------------------------


async def test_a_key_of_the_set_that_says_another_algorithm_verifies_nothing() -> None:
    """One algorithm for each issuer: what a key says of itself can only take away."""
    world = World()
    world.source.raw = jwks(jwk(RSA_KEY, "k1", "RS256", alg="PS256"))
    assert await world.who(sign(claims())) == NO
    assert await world.who(sign(claims(), algorithm="PS256", header={"alg": "PS256", "kid": "k1"})) == NO


async def test_a_new_key_is_fetched_when_it_is_met_and_an_old_one_is_gone() -> None:
    world = World()
    assert await world.who(sign(claims())) == ANN
    first = await world.door.accept(sign(claims()), CHANNEL)
    assert world.door.still_accepts(first)
    world.source.raw = jwks(jwk(OTHER_RSA, "k2", "RS256"))
    fresh = sign(claims(), key=OTHER_RSA, header={"alg": "RS256", "kid": "k2"})
    assert await world.who(fresh) == NO  # asked a moment ago
    world.pass_ms(10_000)
    assert await world.who(fresh) == ANN
    assert await world.who(sign(claims())) == NO
    assert not world.door.still_accepts(first)  # nor on a connection that had shown it
    assert world.source.asked == 2


async def test_a_key_replaced_under_its_own_id_ends_what_the_old_one_vouched_for() -> None:
    world = World()
    first = await world.door.accept(sign(claims()), CHANNEL)
    world.source.raw = jwks(jwk(OTHER_RSA, "k1", "RS256"))
    await world.door._ask(world.issuer)
    assert not world.door.still_accepts(first)
    assert await world.who(sign(claims())) == NO


async def test_unknown_key_ids_do_not_become_requests_to_the_issuer() -> None:
    world = World()
    for n in range(200):
        world.pass_ms(100)
        assert await world.who(sign(claims(), header={"alg": "RS256", "kid": f"x{n}"})) == NO
    assert world.source.asked == 2  # 20 s, one in 10 s


async def test_with_the_issuer_away_its_keys_count_for_their_age_and_no_longer() -> None:
    world = World(people(tokens={"lifetime_max_ms": 86_400_000}), max_age_ms=600_000)
    token = sign(claims(exp=S + 86_000))
    accepted = await world.door.accept(token, CHANNEL)
    world.source.down = True
    world.pass_ms(599_999)
    assert await world.who(token) == ANN
    assert world.door.still_accepts(accepted)
    world.pass_ms(1)
    assert not world.door.still_accepts(accepted)
    assert await world.who(token) == NO
    world.source.down = False
    world.pass_ms(10_000)
    assert await world.who(token) == ANN


@pytest.mark.parametrize(
    "raw",
    [b"", b"{}", b"[]", b'{"keys": {}}', b'{"keys": [1]}', b"<html>", b"{" * 40, b'{"keys": [' + b"{}," * 64 + b"{}]}",
     jwks(jwk(RSA_KEY, "k1", "RS256"), jwk(OTHER_RSA, "k1", "RS256")), b" " * 70_000],
    ids=["empty", "no keys", "list", "keys an object", "key a number", "HTML", "deep", "too many", "two alike", "huge"],
)  # fmt: skip
async def test_a_set_that_is_none_changes_nothing(raw: bytes) -> None:
    world = World()
    assert await world.who(sign(claims())) == ANN
    world.source.raw = raw
    assert not await world.door._ask(world.issuer)
    assert await world.who(sign(claims())) == ANN


async def test_a_set_without_keys_is_an_answer() -> None:
    world = World()
    assert await world.who(sign(claims())) == ANN
    world.source.raw = jwks()
    assert await world.door._ask(world.issuer)
    assert await world.who(sign(claims())) == NO


def small_rsa() -> dict[str, Any]:
    n = int.from_bytes(bytes([0xC3] * 64), "big") | 1
    return {"kty": "RSA", "kid": "k1", "n": b64(n.to_bytes(64, "big")), "e": "AQAB"}


UNFIT: dict[str, Callable[[], dict[str, Any]]] = {
    "for encryption": lambda: jwk(RSA_KEY, "k1", "RS256", use="enc"),
    "for signing only": lambda: jwk(RSA_KEY, "k1", "RS256", key_ops=["sign"]),
    "key_ops a string": lambda: jwk(RSA_KEY, "k1", "RS256", key_ops="verify"),
    "its secret beside it": lambda: jwk(RSA_KEY, "k1", "RS256", d="AAAA"),
    "RSA of 512 bits": small_rsa,
    "RSA with exponent 3": lambda: jwk(RSA_KEY, "k1", "RS256", e="Aw"),
    "n no base64": lambda: jwk(RSA_KEY, "k1", "RS256", n="!!"),
    "n a number": lambda: jwk(RSA_KEY, "k1", "RS256", n=5),
    "n missing": lambda: {"kty": "RSA", "kid": "k1", "e": "AQAB"},
    "another kind": lambda: jwk(EC_KEY, "k1", "ES256", alg="RS256"),
    "symmetric": lambda: {"kty": "oct", "kid": "k1", "k": b64(PEM)},
    "kid missing": lambda: {k: v for k, v in jwk(RSA_KEY, "k1", "RS256").items() if k != "kid"},
    "kid a number": lambda: jwk(RSA_KEY, "k1", "RS256") | {"kid": 1},
}


@pytest.mark.parametrize("name", UNFIT)
async def test_a_key_that_does_not_fit_is_passed_over(name: str) -> None:
    world = World()
    world.source.raw = jwks(UNFIT[name](), jwk(OTHER_RSA, "k2", "RS256"))
    assert await world.who(sign(claims())) == NO
    assert await world.who(sign(claims(), key=OTHER_RSA, header={"alg": "RS256", "kid": "k2"})) == ANN


@pytest.mark.parametrize(
    "key",
    [
        jwk(ec.generate_private_key(ec.SECP384R1()), "k1", "ES384", alg="ES256"),
        jwk(EC_KEY, "k1", "ES256", y=b64(bytes(32))),
        jwk(EC_KEY, "k1", "ES256", x=b64(bytes(31))),
    ],
    ids=["another curve", "not on the curve", "short"],
)
async def test_an_unfit_curve_key_is_passed_over(key: dict[str, Any]) -> None:
    world = World(people(tokens={"algorithm": "ES256"}))
    world.source.raw = jwks(key)
    assert await world.who(sign(claims(), algorithm="ES256")) == NO


async def test_an_ed25519_key_of_small_order_is_passed_over() -> None:
    """Under such a key anybody can sign."""
    world = World(people(tokens={"algorithm": "EdDSA"}))
    world.source.raw = jwks(jwk(ED_KEY, "k1", "EdDSA", x=b64(bytes([1]) + bytes(31))))
    signed, _, _ = sign(claims(), algorithm="EdDSA").rpartition(".")
    assert await world.who(f"{signed}.{b64(bytes([1]) + bytes(63))}") == NO


# --- once, bound, whose ----------------------------------------------------------------------------------------------


async def test_a_token_that_serves_once_is_refused_again() -> None:
    world = World(people(tokens={"once": True}))
    world.pass_ms(120_000)
    later = {"iat": S + 120, "exp": S + 300}
    assert await world.who(sign(claims(**later))) == ANN
    assert await world.who(sign(claims(**later))) == NO
    assert await world.who(sign(claims(**later, nbf=S + 120))) == NO  # another token of the same id
    assert await world.who(sign(claims(**later, jti="j-2"))) == ANN
    for jti in (None, "", 7, "x" * 256):
        assert await world.who(sign(claims(**later) | {"jti": jti} if jti is not None else claims(jti=None))) == NO


async def test_what_may_have_served_before_the_start_does_not_serve() -> None:
    world = World(people(tokens={"once": True, "leeway_ms": 30_000}))
    world.pass_ms(40_000)
    assert await world.who(sign(claims(iat=S + 29, exp=S + 300))) == NO
    assert await world.who(sign(claims(iat=S + 30, exp=S + 300))) == ANN


def once(number: int, **changed: Any) -> str:
    """A short-lived token of its own id, cheap to sign."""
    return sign(claims(**{"iat": S + 60, "exp": S + 600, "jti": f"j-{number}", **changed}), algorithm="EdDSA")


async def test_a_person_who_fills_their_share_keeps_no_tenants_admin_out(caplog: pytest.LogCaptureFixture) -> None:
    world = World(by_roles(tenant_claim="org", tokens={"algorithm": "EdDSA", "once": True}))
    world.pass_ms(60_000)
    loud = {"sub": "mallory", "org": "acme", "groups": []}  # also who holds no role
    answers = [await world.who(once(n, **loud)) for n in range(SPENT_SUBJECT_MAX + 50)]
    filled = SPENT_SUBJECT_MAX - answers.count(NO) + 50
    assert SPENT_SUBJECT_MAX // 2 < filled <= SPENT_SUBJECT_MAX
    assert set(answers[filled:]) == {NO}
    for number, (org, sub) in enumerate([("other", "u-1"), ("acme", "u-1"), ("other", "mallory2")]):
        admin = once(number, sub=sub, org=org)
        assert await world.who(admin) == f"spiffe://example/tenant/{org}/person/corp/{sub}"
    assert "subject mallory has" in str([record.__dict__ for record in caplog.records])
    world.pass_ms(540_000 + 60_000)
    assert (await world.who(once(0, **loud | {"iat": S + 660, "exp": S + 900}))).endswith("/mallory")


async def test_a_tenant_of_many_people_keeps_no_other_tenant_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keymesh.app.token_door.SPENT_MAX", 80)
    monkeypatch.setattr(token_people, "SPENT_TENANT_MAX", 20)
    world = World(by_roles(tenant_claim="org", tokens={"algorithm": "EdDSA", "once": True}))
    world.pass_ms(60_000)
    answers = [await world.who(once(n, sub=f"m-{n}", org="acme")) for n in range(100)]
    assert 10 <= len(answers) - answers.count(NO) <= 20
    for n in range(5):
        assert await world.who(once(n, org="other")) == "spiffe://example/tenant/other/person/corp/u-1"


async def test_an_issuer_whose_book_is_full_keeps_no_other_issuers_people_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keymesh.app.token_door.SPENT_MAX", 10)
    bad = World(by_roles(tokens={"algorithm": "EdDSA", "once": True}))
    good = World(by_roles(issuer="shop", tokens={"algorithm": "EdDSA", "once": True, "issuer": "https://id.other"}))
    bad.door = TokenDoor(MESH, [bad.issuer, good.issuer], now=lambda: bad.now)
    bad.pass_ms(60_000)
    answers = [await bad.who(once(n, sub=f"m-{n}")) for n in range(15)]
    assert answers[9] != NO
    assert answers[10:] == [NO] * 5
    assert await bad.who(once(0, iss="https://id.other")) == "spiffe://example/person/shop/u-1"


async def test_a_token_that_is_not_accepted_takes_no_place() -> None:
    world = World(by_roles(tenant="acme", tenant_claim="org", tokens={"algorithm": "EdDSA", "once": True}))
    world.pass_ms(60_000)
    for wrong in ({"org": "other"}, {"aud": "mail"}, {"sub": "Not A Label"}, {"exp": S + 99_999}):
        assert await world.who(once(1, **{"org": "acme"} | wrong)) == NO
    assert await world.who(sign(claims(org="acme"), algorithm="EdDSA", key=ed25519.Ed25519PrivateKey.generate())) == NO
    assert len(world.door._spent[ISSUER]) == 0
    assert await world.who(once(1, org="acme")) != NO
    assert len(world.door._spent[ISSUER]) == 1


async def test_a_token_bound_to_a_certificate_needs_that_certificate() -> None:
    world = World(people(tokens={"confirm": "x5t#S256"}))
    bound = sign(claims(cnf={"x5t#S256": b64(CERTIFICATE)}))
    shown = Channel(CERTIFICATE, b"f")
    assert await world.who(bound, shown) == ANN
    assert await world.who(bound) == NO
    assert await world.who(bound, Channel(bytes(32), b"f")) == NO
    assert await world.who(sign(claims()), shown) == NO
    assert await World().who(bound, shown) == ANN


@pytest.mark.parametrize(
    ("tenancy", "token", "answer"),
    [
        ({}, {"groups": ["mesh-ops"]}, "spiffe://example/person/corp/u-1"),
        ({}, {"groups": "mesh-ops"}, "spiffe://example/person/corp/u-1"),
        ({"tenant": "acme"}, {"groups": ["acme-admins"]}, "spiffe://example/tenant/acme/person/corp/u-1"),
        ({"tenant_claim": "org"}, {"org": "acme"}, "spiffe://example/tenant/acme/person/corp/u-1"),
        ({"tenant_claim": "org"}, {}, NO),
        ({"tenant_claim": "org"}, {"org": ""}, NO),
        ({"tenant_claim": "org"}, {"org": "mesh"}, NO),
        ({"tenant_claim": "org"}, {"org": ["acme"]}, NO),
        ({"tenant_claim": "org"}, {"org": "ac\u006de\u0301"}, NO),
        ({"tenant_claim": "org", "tenant": "acme"}, {"org": "other"}, NO),
        ({"tenant_claim": "org", "tenant": "acme"}, {}, NO),
        ({}, {"sub": "Ann.Admin"}, NO),
        ({"name_claim": "login"}, {"login": "ann"}, "spiffe://example/person/corp/ann"),
        ({"name_claim": "login"}, {}, NO),
    ],
    ids=str,
)
async def test_whose_person_it_is(tenancy: dict[str, Any], token: dict[str, Any], answer: str) -> None:
    assert await World(by_roles(**tenancy)).who(sign(claims(**token))) == answer


@pytest.mark.parametrize(
    ("tenant", "groups", "roles"),
    [
        (None, ["mesh-ops", "acme-admins", "golf"], {Role.OPERATOR}),
        ("acme", ["mesh-ops", "acme-admins"], {Role.TENANT_ADMIN}),
        (None, ["golf", 7, None, {"mesh-ops": 1}], set()),
        (None, {"mesh-ops": True}, set()),
        (None, ["mesh-ops"] * 257, set()),
        (None, None, set()),
    ],
)
async def test_which_roles_the_claim_stands_for(tenant: str | None, groups: Any, roles: set[Role]) -> None:
    """A tenant's issuer never makes an operator, the mesh's never a tenant's admin."""
    world = World(by_roles(tenant=None if tenant is None else TenantId(tenant)))
    accepted = await world.door.accept(sign(claims(groups=groups)), CHANNEL)
    assert isinstance(accepted.identity, PersonIdentity)
    assert accepted.identity.roles == roles


async def test_the_log_says_why_and_nothing_of_the_token(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    token = sign(claims(aud="mail", secret="canary-77aa"))
    with caplog.at_level(logging.DEBUG):
        assert await world.who(token) == NO
    said = [record.__dict__["fields"] for record in caplog.records if record.name == "keymesh.tokens"]
    assert said == [{"issuer": "corp", "field": "aud", "reason": "aud: not for us alone"}]
    assert "canary-77aa" not in str([record.__dict__ for record in caplog.records])
    assert token.rpartition(".")[2][:20] not in str([record.__dict__ for record in caplog.records])


async def test_an_accepted_token_ends_at_its_time() -> None:
    world = World()
    accepted = await world.door.accept(sign(claims()), CHANNEL)
    world.pass_ms(600_000 + 60_000 - 1)
    assert world.door.still_accepts(accepted)
    world.pass_ms(1)
    assert not world.door.still_accepts(accepted)


# --- anything --------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = ["iss", "aud", "sub", "exp", "iat", "nbf", "jti", "cnf", "groups", "org", "alg", "kid", "typ", "crit"]


@given(text=st.text(max_size=200) | st.binary(max_size=300).map(lambda raw: f"{b64(raw)}.{b64(raw)}.{b64(raw)}"))
async def test_any_text_is_refused(text: str) -> None:
    assert await World().who(text) == NO


@given(
    head=st.dictionaries(st.sampled_from(NAMES), JSON, max_size=3),
    body=st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4),
)
async def test_any_json_that_is_signed_is_somebody_or_refused(head: dict[str, Any], body: dict[str, Any]) -> None:
    """Also where the issuer itself signs nonsense: an identity or the one answer, never another error."""
    world = World(by_roles(tenant_claim="org", tokens={"algorithm": "EdDSA", "once": True, "leeway_ms": 0}))
    header = {"alg": "EdDSA", "kid": "k1", **head}
    token = sign(claims(org="acme") | body, algorithm="EdDSA", header=json.dumps(header))
    answer = await world.who(token)
    assert answer == NO or answer.startswith("spiffe://example/tenant/")


@given(position=st.integers(0, 10_000), new=st.sampled_from("AZaz09-_.=+/ \x00é"))
async def test_one_changed_character_is_refused(position: int, new: str) -> None:
    world = World(people(tokens={"algorithm": "EdDSA"}))
    token = sign(claims(), algorithm="EdDSA")
    at = position % len(token)
    changed = token[:at] + new + token[at + 1 :]
    assert await world.who(changed) == (ANN if changed == token else NO)


async def test_hostile_texts_cost_little() -> None:
    """The size is looked at first; within it nothing is more than linear."""
    world = World()
    await world.who(sign(claims()))
    hostile = [
        "." * 7_900,
        "A" * 100_000_000,
        *(
            f"{b64(raw)}.e30.e30"
            for raw in (
                b"[" * 5_900,
                b"{" + b'"a":1,' * 900 + b'"b":1}',
                b"9" * 5_900,
                b'"' + b"\\u0000" * 900 + b'"',
            )
        ),
    ]
    for text in hostile:
        started = time.process_time()
        for _ in range(10):
            assert await world.who(text) == NO
        assert time.process_time() - started < 1.0, text[:20]
