"""What the Registry shows of large heads trees, and what it believes of a node's manifest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from keymesh.control.entry import Leaf
from keymesh.control.heads import heads_root
from keymesh.model.ids import Digest
from keymesh.model.limits import WALK_DIFFERENCES_MAX, WALK_PREFIXES_MAX
from keymesh.model.machine import Received
from keymesh.orbital.messages import ManifestAsk, ManifestDiffers, ManifestTell, Task
from tests.unit.registry.harness import Bench, mesh_up, node

WEST = "us-west"


def walked() -> tuple[Bench, dict[str, Leaf]]:
    """A Registry that sends no heads tree whole; a node that lacks one tenant was just answered.  What it holds."""
    bench = mesh_up()
    bench.tenant("acme")
    bench.tenant("globex")
    bench.state.config = replace(bench.state.config, leaves_in_full=0)
    bench.beat_in_step(WEST)  # what waited for it is settled
    held = bench.offered(WEST)
    del held["globex"]
    bench.beat(WEST, manifest_root=heads_root(held))
    bench.sent.clear()
    return bench, held


def say(bench: Bench, shape: type[Any], **fields: Any) -> None:
    root = bench.state.regions[WEST].root
    message = shape(**{"region": WEST, "node": "n1", "root": root, **fields})
    bench.feed(Received(node(WEST), message))


def differs(bench: Bench, own: dict[str, Leaf], held: dict[str, Leaf | None], **fields: Any) -> None:
    say(bench, ManifestDiffers, **{"manifest_root": heads_root(own), "held": held, **fields})


def tasks(bench: Bench) -> list[str]:
    return [m.namespace for _, m in bench.sent if isinstance(m, Task)]


def test_an_answer_brings_no_leaves_and_the_tree_is_shown_on_demand() -> None:
    bench, _ = walked()
    assert bench.answers(WEST) == []  # cleared
    say(bench, ManifestAsk, prefixes=("",))
    (told,) = [m for _, m in bench.sent if isinstance(m, ManifestTell)]
    assert told.root == bench.state.regions[WEST].root


def test_what_is_lacking_is_sent() -> None:
    bench, own = walked()
    differs(bench, own, {"globex": None})
    assert tasks(bench) == ["globex"]
    assert dict(bench.state.sessions[node(WEST)].reported) == own


@pytest.mark.parametrize("lie", ["lacks-more", "lacks-less", "other-leaf", "other-manifest"])
def test_a_node_that_lies_about_its_manifest_gets_nothing(lie: str) -> None:
    bench, own = walked()
    before = dict(bench.state.sessions[node(WEST)].reported)
    other = Leaf(epoch=1, seq=9, entry_hash=Digest("a" * 64), state=Digest("b" * 64))
    match lie:
        case "lacks-more":
            differs(bench, own, {"globex": None, "acme": None})
        case "lacks-less":
            differs(bench, own, {})
        case "other-leaf":
            differs(bench, own, {"globex": other})
        case "other-manifest":
            differs(bench, {**own, "globex": other}, {"globex": other})
    assert tasks(bench) == []
    assert bench.state.sessions[node(WEST)].reported == before


def test_the_limits() -> None:
    bench, own = walked()
    before = len(bench.sent)
    say(bench, ManifestAsk, prefixes=("0",) * (WALK_PREFIXES_MAX + 1))
    say(bench, ManifestAsk, prefixes=("0" * 257,))
    differs(bench, own, {f"t-{n}": None for n in range(WALK_DIFFERENCES_MAX + 1)}, more=True)
    assert len(bench.sent) == before
    assert bench.note_names()[-3:] == ["manifest-refused"] * 3


def test_a_report_in_part_names_what_to_begin_with() -> None:
    bench, own = walked()
    differs(bench, own, {"globex": None}, more=True)
    assert tasks(bench) == ["globex"]


def test_no_tree_but_the_last_answers_and_no_node_but_its_own() -> None:
    bench, own = walked()
    say(bench, ManifestAsk, prefixes=("",), root=bench.state.regions["eu-west"].root)
    say(bench, ManifestAsk, prefixes=("",), region="us-east")
    bench.feed(Received(node("eu-west"), ManifestAsk(
        region="eu-west", node="n1", root=bench.state.regions[WEST].root, prefixes=("",)
    )))  # fmt: skip
    assert bench.sent == []
    differs(bench, own, {"globex": None})
    differs(bench, own, {"globex": None})  # said once
    assert tasks(bench) == ["globex"]
