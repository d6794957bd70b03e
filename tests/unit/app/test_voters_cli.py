"""``voters show``: what the seats come to, from the voters' own words."""

from __future__ import annotations

from typing import Any

import pytest

from keymesh.app.cli_voters import judge
from keymesh.model.errors import Unavailable

REGIONS = ["eu-central", "us-east", "us-west"]


def word(region: str, heads: dict[str, str] | None = None, **changed: Any) -> dict[str, Any]:
    return {
        "region": region,
        "voters": {"set_id": 1, "regions": REGIONS},
        "seated": region in REGIONS,
        "set_id": 1,
        "epoch": 1,
        "reads_log": False,
        "registry_silent": False,
        "serial": 1,
        "heads": heads or {},
        "liars": [],
        "earlier": [],
        "sealed": 0,
        **changed,
    }


def test_seats_what_they_stored_and_who_is_behind() -> None:
    said = {
        "us-east": word("us-east", {"aa": "1:9", "bb": "1:2"}),
        "us-west": word("us-west", {"aa": "1:10"}),
        "eu-west": word("eu-west", {"cc": "7:7"}),
    }
    shown = judge(said)
    seats = {seat["region"]: seat for seat in shown["seats"]}
    assert list(seats) == REGIONS
    assert {r: (s["stored"], s["behind"]) for r, s in seats.items()} == {
        "eu-central": (None, None),
        "us-east": (2, 1),
        "us-west": (1, 1),
    }
    assert (shown["majority"], shown["reachable"], shown["serving"]) == (2, 2, 2)
    assert shown["commits"] and shown["standby"]


def test_a_voter_without_its_seat_or_of_another_set_does_not_serve() -> None:
    said = {
        "us-east": word("us-east"),
        "us-west": word("us-west", seated=False, reads_log=True),
        "eu-central": word("eu-central", set_id=0),
    }
    shown = judge(said)
    assert (shown["reachable"], shown["serving"], shown["commits"], shown["standby"]) == (3, 1, False, False)


def test_the_newest_set_counts_and_small_sets_have_no_standby() -> None:
    newer = {"set_id": 2, "regions": ["us-east"]}
    shown = judge({"us-west": word("us-west"), "us-east": word("us-east", voters=newer, set_id=2)})
    assert (shown["set_id"], shown["commits"], shown["standby"]) == (2, True, False)


def test_a_liar_is_named_whoever_has_the_proof() -> None:
    said = {r: word(r) for r in REGIONS} | {"eu-west": word("eu-west", liars=["node:us-west/n1"])}
    assert judge(said)["liars"] == ["node:us-west/n1"]


@pytest.mark.parametrize("said", [{}, {"us-east": word("us-east", voters=None)}])
def test_without_a_word_it_is_unavailable(said: dict[str, Any]) -> None:
    with pytest.raises(Unavailable):
        judge(said)


def test_half_way_the_old_set_is_sealed_and_nothing_commits() -> None:
    """Two have sealed, the third has not heard of it; no Core knows the next set yet."""
    said = {r: word(r, sealed=1) for r in REGIONS[:2]} | {"us-west": word("us-west")}
    shown = judge(said)
    assert [seat["sealed"] for seat in shown["seats"]] == [True, True, False]
    assert (shown["sealed"], shown["in_force"], shown["commits"], shown["standby"]) == (2, False, False, False)


def test_the_new_set_is_in_force_once_a_majority_sits_and_the_old_one_is_still_told() -> None:
    seats, old = ["eu-west", "us-east", "us-west"], {"set_id": 1, "regions": REGIONS, "until": 7}
    new: dict[str, Any] = {"voters": {"set_id": 2, "regions": seats}, "earlier": [old], "sealed": 1}
    said = {
        "us-east": word("us-east", **new, reads_log=True),
        "eu-west": word("eu-west", **new, seated=True, set_id=2),
        "eu-central": word("eu-central"),
    }
    shown = judge(said)
    assert (shown["set_id"], shown["in_force"], shown["earlier"]) == (2, False, [old])
    said["us-east"] |= {"set_id": 2}
    shown = judge(said)
    assert (shown["in_force"], shown["sealed"], shown["serving"]) == (True, 0, 2)
    assert [seat["region"] for seat in shown["seats"]] == seats
