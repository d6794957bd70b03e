"""The grammar of scopes, and what each of them covers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keymesh.model.errors import Refused
from keymesh.model.ids import RegionId, ServiceName, TenantId
from keymesh.model.scope import Scope, ScopeKind, parse_scope

LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True).filter(lambda name: name != "mesh")


@given(LABEL, LABEL, st.integers(1, 999_999_999), LABEL)
def test_every_scope_is_its_text_and_back(tenant: str, service: str, version: int, region: str) -> None:
    for text, kind in (
        (f"tenant:{tenant}", ScopeKind.TENANT),
        (f"service:{tenant}/{service}", ScopeKind.SERVICE),
        (f"key:{tenant}/{service}@{version}", ScopeKind.KEY),
        (f"client:{tenant}/{service}", ScopeKind.CLIENT),
        (f"region:{region}", ScopeKind.REGION),
        ("mesh", ScopeKind.MESH),
    ):
        scope = parse_scope(text)
        assert (str(scope), scope.kind) == (text, kind)
        assert parse_scope(str(scope)) == scope


@given(st.text(alphabet="mesh:/@tk1-evrigonA 0\n²", max_size=14))
def test_what_is_taken_prints_as_it_was_given(text: str) -> None:
    try:
        scope = parse_scope(text)
    except Refused as refused:
        assert refused.code == "bad-field"
    else:
        assert str(scope) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "acme",
        "mesh:",
        "Mesh",
        " mesh",
        "mesh\n",
        "tenant:",
        "tenant:mesh",
        "tenant:a/b",
        "tenant:a:b",
        "tenant: a",
        "Tenant:a",
        "tenant:A",
        "tenant:a\n",
        "client:a",
        "client:a/B",
        "client:a/b/c",
        "client:mesh/b",
        "service:a",
        "service:a/",
        "service:/b",
        "service:a/b/c",
        "service:a/b@1",
        "service:mesh/b",
        "key:a/b",
        "key:a/b@",
        "key:a/b@0",
        "key:a/b@01",
        "key:a/b@-1",
        "key:a/b@+1",
        "key:a/b@1 ",
        "key:a/b@1.0",
        "key:a/b@x",
        "key:a/b@²",
        "key:a/b@١",
        "key:a/b@1@2",
        "key:a/b@1000000000",
        "key:a@1",
        "key:/b@1",
        "region:",
        "region:us/east",
        "region:US",
        "cluster:a",
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_scope(text)
    assert refused.value.field in ("scope", "tenant", "service", "client", "region")


def covers(
    text: str, *, region: str = "r", tenant: str = "t", service: str | None = "s", version: int | None = 1
) -> bool:
    return parse_scope(text).covers(
        region=RegionId(region),
        tenant=TenantId(tenant),
        service=None if service is None else ServiceName(service),
        version=version,
    )


def test_what_each_covers() -> None:
    assert covers("mesh") and covers("mesh", service=None, version=None)
    assert covers("region:r") and not covers("region:q")
    assert covers("tenant:t") and covers("tenant:t", service=None, version=None) and not covers("tenant:u")
    assert covers("service:t/s", version=9) and covers("service:t/s", version=None)
    assert not covers("service:t/s", service="x") and not covers("service:t/s", service=None)
    assert not covers("service:t/s", tenant="u")
    assert covers("key:t/s@1") and not covers("key:t/s@1", version=2) and not covers("key:t/s@1", version=None)
    assert not covers("client:t/s") and not covers("client:t/s", service=None, version=None)
    assert not covers("key:t/s@1", service="x") and not covers("key:t/s@1", tenant="u")


def test_where_a_scope_is_recorded_and_who_must_approve() -> None:
    expected = {
        "tenant:t": ("t", False),
        "destruction:t": ("t", False),
        "service:t/s": ("t", False),
        "key:t/s@3": ("t", False),
        "client:t/c": ("t", False),
        "region:r": ("mesh", True),
        "mesh": ("mesh", True),
    }
    assert {text: (parse_scope(text).namespace, parse_scope(text).needs_four_eyes) for text in expected} == expected
    assert {parse_scope(text).kind for text in expected} == set(ScopeKind)


def test_scopes_compare_and_hash_by_value() -> None:
    assert len({parse_scope("key:t/s@1"), parse_scope("key:t/s@1"), Scope(ScopeKind.MESH), parse_scope("mesh")}) == 2
