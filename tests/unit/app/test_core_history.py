"""What a region records of the entries that it applied: together, without a fetch where it has them, and whole."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.unit.control.world import Mesh
from tests.unit.core.test_history import branch

from keymesh.app import core_history
from keymesh.app.core_history import CoreHistory
from keymesh.control.entry import SignedEntry
from keymesh.crypto.dsse import envelope_to_json
from keymesh.model import strict_json
from keymesh.model.errors import Unavailable
from keymesh.model.ids import Digest


class Region:
    """A Core as far as its history sees it, and the Registry's answer to it."""

    def __init__(self, directory: Path) -> None:
        world = Mesh()
        self.acme = [world.tenant().head]
        self.acme += [world.service(version=version).head for version in range(1, 5)]
        self.beta = Mesh().tenant("beta").head
        self.asked: list[tuple[str, str]] = []
        self.away = False
        self._holdings: dict[str, Any] = {}
        self.state = SimpleNamespace(tenants=self._holdings, holding=self._holdings.get)
        core: Any = SimpleNamespace(directory=directory, shell=SimpleNamespace(state=self.state))
        self.history = CoreHistory(core, self._ask)

    async def _ask(self, path: str, query: dict[str, str]) -> bytes:
        self.asked.append((query["after"], query["most"]))
        if self.away:
            raise Unavailable("peer", "away")
        after = int(query["after"])
        found = self.acme[after : after + int(query["most"])]
        return strict_json.dumps({"entries": [base64.b64encode(envelope_to_json(e.envelope)).decode() for e in found]})

    def apply(self, head: SignedEntry) -> None:
        self._holdings[head.entry.namespace] = SimpleNamespace(applied=SimpleNamespace(head=head))
        self.history.applied(head.entry.namespace)

    def seqs(self, namespace: str) -> list[int]:
        return [e.entry.seq for _, e in self.history.store.read(namespace, after=0, most=99)]

    def record(self) -> None:
        asyncio.run(self.history._catch_up_all())


def test_what_was_applied_one_by_one_is_recorded_together_and_nothing_is_fetched(tmp_path: Path) -> None:
    region = Region(tmp_path)
    for head in region.acme:
        region.apply(head)
    region.apply(region.beta)
    region.record()
    assert (region.seqs("acme"), region.seqs("beta"), region.asked) == ([1, 2, 3, 4, 5], [1], [])


def test_only_the_gap_before_what_is_at_hand_is_fetched(tmp_path: Path) -> None:
    region = Region(tmp_path)
    region.apply(region.acme[0])
    region.record()
    region.apply(region.acme[3])
    region.apply(region.acme[4])
    region.record()
    assert (region.seqs("acme"), region.asked) == ([1, 2, 3, 4, 5], [("1", "2")])


def test_a_registry_that_is_away_holds_up_no_other_namespace_and_is_asked_again(tmp_path: Path) -> None:
    region = Region(tmp_path)
    region.away = True
    region.apply(region.acme[3])
    region.apply(region.beta)
    region.record()
    assert (region.seqs("acme"), region.seqs("beta")) == ([], [1])
    region.away = False
    region.apply(region.acme[4])
    region.record()
    assert region.seqs("acme") == [1, 2, 3, 4, 5]


def test_a_chain_that_does_not_fit_is_not_recorded_and_the_others_are(tmp_path: Path) -> None:
    region = Region(tmp_path)
    region.apply(region.acme[0])
    region.record()
    second = region.acme[1]
    region.apply(SignedEntry(entry=Mesh().tenant().head.entry, hash=Digest("0" * 64), envelope=second.envelope))
    region.apply(region.beta)
    region.acme[1] = region.acme[0]  # and the Registry tells the same twice
    region.apply(region.acme[2])
    region.record()
    assert (region.seqs("acme"), region.seqs("beta")) == ([1], [1])


def test_what_a_crash_took_from_memory_is_fetched_in_the_next_life(tmp_path: Path) -> None:
    before = Region(tmp_path)
    for head in before.acme:
        before.apply(head)
    before.history.store.close()
    after = Region(tmp_path)
    after.acme = before.acme
    after.apply(after.acme[4])
    after.record()
    assert (after.seqs("acme"), after.asked) == ([1, 2, 3, 4, 5], [("0", "4")])


def test_heads_that_wait_are_bounded_and_what_comes_beyond_is_fetched(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(core_history, "PASSED_MAX", 2)
    region = Region(tmp_path)
    for head in region.acme:
        region.apply(head)
    assert sum(len(heads) for heads in region.history._dirty.values()) == 2
    region.record()
    assert (region.seqs("acme"), region.asked) == ([1, 2, 3, 4, 5], [("0", "4")])


def test_a_damaged_file_is_kept_and_the_region_starts(tmp_path: Path) -> None:
    (tmp_path / "history.db").write_bytes(b"no database" * 500)
    region = Region(tmp_path)
    assert (tmp_path / "history.db.damaged").read_bytes() == b"no database" * 500
    region.apply(region.acme[-1])
    region.record()
    assert region.seqs("acme") == [1, 2, 3, 4, 5]
    region.history.store.close()
    again = Region(tmp_path)
    assert again.seqs("acme") == [1, 2, 3, 4, 5]


def test_a_branch_of_a_later_epoch_is_fetched_from_its_beginning(tmp_path: Path) -> None:
    region = Region(tmp_path)
    old = region.acme
    region.apply(old[-1])
    region.record()
    region.acme = branch(3, 6)  # the seq right behind the record follows another entry
    region.apply(region.acme[-1])
    region.record()
    assert {e.hash for _, e in region.history.store.read("acme", after=0, most=99)} == {
        e.hash for e in (*old, *region.acme)
    }
    region.acme = branch(2, 4, epoch=3)  # and one that is shorter than what is recorded
    region.apply(region.acme[-1])
    region.record()
    last = region.history.store.last("acme")
    assert last is not None and (last.epoch, last.hash) == (3, region.acme[-1].hash)
