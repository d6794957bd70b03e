"""Whether somebody could take a tenant: each thing that is missing is said, by name; silence is a no."""

from __future__ import annotations

from typing import Any

import pytest

from keymesh.app.ready_rules import RegionFound, TenantFound, Wanted, judge


def tenant(**changes: Any) -> TenantFound:
    fields: dict[str, Any] = {
        "allowed": True,
        "seq": 7,
        "binding": "b1",
        "l1": {"eu": "ok", "us": "ok"},
        "keys": 3,
        "stored": 3,
        "blobs": 3,
    }
    return TenantFound(**fields | changes)


def region(name: str, tenants: dict[str, TenantFound], **changes: Any) -> RegionFound:
    fields: dict[str, Any] = {"region": name, "at": 1, "why": (), "room": 100, "missing": 0, "tenants": tenants}
    return RegionFound(**fields | changes)


ACME = Wanted(tenant="acme", regions=("eu", "us"))


def two(us: TenantFound | None, **of_us: Any) -> dict[str, Any]:
    held = {} if us is None else {"acme": us}
    return judge([ACME], {"eu": region("eu", {"acme": tenant()}), "us": region("us", held, **of_us)})


def test_all_is_there() -> None:
    shown = two(tenant())
    assert shown["ok"] is True and shown["why"] == []
    assert shown["tenants"]["acme"]["copies"] == 2
    assert shown["regions"]["us"] == {"ok": True, "why": [], "tenants": 1, "room": 100, "missing": 0, "at": 1}


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (None, "us: the tenant has not arrived"),
        (tenant(allowed=False), "us: the region is not allowed"),
        (tenant(binding=""), "us: no key of it is there that L1 could open"),
        (tenant(l1={}), "us: L1 could not be asked from there"),
        (tenant(l1={"eu": "denied", "us": "ok"}), "us: L1 denies it (eu)"),
        (tenant(l1={"eu": "unreachable", "us": "unreachable"}), "us: no replica of L1 is reached from there"),
        (tenant(stored=1), "us: 2 of 3 wrapped keys are not in its key store"),
        (tenant(blobs=2), "wrapped blobs are whole in 1 of its regions, 2 are needed"),
    ],
)
def test_what_is_missing_is_said(held: TenantFound | None, words: str) -> None:
    shown = two(held)
    assert shown["ok"] is False and shown["tenants"]["acme"]["ok"] is False
    assert any(why.startswith(f"acme: {words}") for why in shown["why"]), shown["why"]
    assert shown["regions"]["us"]["ok"] is True, "the region could take others"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"why": ("sealed",)}, "us: sealed"),
        ({"missing": 101}, "us: room for 100 more key versions, 101 are not loaded"),
    ],
)
def test_what_keeps_a_whole_region_keeps_its_tenants(changes: dict[str, Any], words: str) -> None:
    shown = two(tenant(), **changes)
    assert shown["ok"] is False and shown["why"] == [words]
    assert shown["tenants"]["acme"]["ok"] is False
    assert shown["tenants"]["acme"]["regions"]["us"]["ok"] is False


def test_a_region_that_does_not_answer_is_not_ready() -> None:
    shown = judge([ACME], {"eu": region("eu", {"acme": tenant()}), "us": None})
    assert shown["ok"] is False
    assert shown["why"][0] == "us: its Core does not answer"
    assert shown["tenants"]["acme"]["ok"] is False


def test_one_silent_replica_is_a_note() -> None:
    shown = two(tenant(l1={"eu": "unreachable", "us": "ok"}))
    assert shown["ok"] is True
    assert shown["tenants"]["acme"]["regions"]["us"]["notes"] == ["L1 replica eu is not reached from there"]


def test_a_tenant_of_one_region_is_ready_and_nobody_can_take_it() -> None:
    shown = judge([Wanted(tenant="solo", regions=("eu",))], {"eu": region("eu", {"solo": tenant()})})
    assert shown["ok"] is True
    assert shown["tenants"]["solo"]["notes"] == ["no second region is allowed: nobody can take it"]


def test_a_region_that_nobody_asked_makes_its_tenants_not_ready() -> None:
    shown = judge([ACME], {"eu": region("eu", {"acme": tenant()})})
    assert shown["tenants"]["acme"]["ok"] is False


def test_objects_that_may_be_old_are_noted_and_are_no_fault() -> None:
    shown = two(tenant(objects_behind_s=61))
    assert shown["ok"] is True
    assert shown["tenants"]["acme"]["regions"]["us"]["notes"] == ["KMIP objects of other regions may be 61 s old there"]
    assert two(tenant(objects_behind_s=60))["tenants"]["acme"]["regions"]["us"]["notes"] == []
