"""What regions say in a restore: kept where it came, asked for again, and not gone on without."""

from __future__ import annotations

import argparse
import base64
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.control.world import Mesh
from tests.unit.registry.test_restore import offer_of

from keymesh.app import restore_regions
from keymesh.app.cli_restore import check_heard, check_without
from keymesh.app.core_epoch import HAND_IN_PATH, STORE_PATH
from keymesh.app.restore_regions import Gathered, gather
from keymesh.crypto.dsse import envelope_to_json
from keymesh.model.errors import KeymeshError, Refused, Unavailable

REGIONS = ("us-east", "us-west")


class Asking:
    """Regions that answer as they are told: an error, or a plain value."""

    def __init__(self) -> None:
        self.mesh = Mesh()
        self.entries = [self.mesh.tenant().head, self.mesh.service(version=1).head]
        self.plan = SimpleNamespace(regions=dict.fromkeys(REGIONS, "us"))
        self.stored: dict[str, Any] = {r: self.store(r) for r in REGIONS}
        self.pages: dict[str, list[Any]] = {r: [self.page()] for r in REGIONS}
        self.asked: list[tuple[str, int]] = []

    def store(self, region: str) -> dict[str, Any]:
        return {"region": region, "stored": None, "refused": "", "namespaces": ["acme"]}

    def page(self, *, more: bool = False, **also: Any) -> dict[str, Any]:
        given = [base64.b64encode(envelope_to_json(e.envelope)).decode() for e in self.entries]
        return {"states": [], "entries": given, "more": more, **also}

    async def call(self, method: str, path: str, body: Any, *, target: str, timeout_s: float) -> Any:
        if path == STORE_PATH:
            answer = self.stored[target]
        else:
            assert path == HAND_IN_PATH
            self.asked.append((target, body["after"]))
            answer = self.pages[target].pop(0)
        if isinstance(answer, KeymeshError):
            raise answer
        return answer


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> Asking:
    monkeypatch.setattr(restore_regions, "AGAIN_S", (0.0, 0.0))
    return Asking()


async def heard(asking: Any, *without: str) -> Gathered:
    return await gather(asking, offer_of(asking.mesh), without=without)


async def test_a_page_that_does_not_come_is_asked_for_again(asking: Asking) -> None:
    away = Unavailable("unreachable", "away")
    asking.pages["us-east"] = [asking.page(more=True), away, away, asking.page()]
    found = await heard(asking)
    assert [len(h.entries) for h in found.handed] == [4, 2]
    assert (found.incomplete, found.refused) == ([], [])
    assert asking.asked.count(("us-east", 2)) == 3


@pytest.mark.parametrize(
    "failed", [Unavailable("unreachable", "away"), Refused("not-signed", "expired"), {"states": 7}]
)
async def test_what_came_is_kept_and_nothing_is_written_without_the_rest(asking: Asking, failed: Any) -> None:
    asking.pages["us-east"] = [asking.page(more=True), failed, failed, failed]
    found = await heard(asking)
    assert [len(h.entries) for h in found.handed] == [2, 2]
    assert found.incomplete == ["us-east"]
    with pytest.raises(Unavailable, match="us-east did not hand in all that it holds"):
        check_heard(found, None)
    asking.pages["us-west"] = [asking.page()]
    without = await heard(asking, "us-east")
    assert [(r.region, r.reason) for r in without.refused] == [("us-east", "left-out")]
    check_heard(without, None)


@pytest.mark.parametrize(
    "said",
    [{}, [], {"region": "us-east"}, {"region": "us-east", "stored": None, "refused": "", "namespaces": 7}],
)
async def test_a_region_that_does_not_speak_our_language_is_refused(asking: Asking, said: Any) -> None:
    asking.stored["us-east"] = said
    found = await heard(asking)
    assert [r.region for r in found.refused] == ["us-east"]
    assert [h.region for h in found.handed] == ["us-west"]


async def test_a_damaged_record_of_entries_is_said(asking: Asking) -> None:
    asking.pages["us-west"] = [{"states": [], "entries": [], "more": False, "unread": "storage"}]
    found = await heard(asking)
    assert [(r.region, r.namespace, r.what, r.reason) for r in found.refused] == [
        ("us-west", "acme", "entries", "storage")
    ]
    assert found.incomplete == []


def test_a_region_that_is_no_region_of_this_mesh_is_told() -> None:
    plan: Any = argparse.Namespace(regions=dict.fromkeys(REGIONS, "us"))
    check_without(["us-west"], plan)
    with pytest.raises(Refused, match="eu-west"):
        check_without(["eu-west"], plan)
