"""Who is killed in a round, and what the client's record makes of what it was told."""

from __future__ import annotations

import random

from keymesh.app.faults import ETCD_LEADER, component_of, victims
from keymesh.app.faults_record import KEEP_MAX, Done, Record, sample, twice

CHILDREN = [
    "registry",
    "core-us-east",
    "core-eu-west",
    "edge-us-east",
    "edge-eu-west",
    "customer-kms",
    "etcd-1",
    "etcd-2",
]


def test_a_round_has_one_member_of_each_component() -> None:
    chosen = victims(CHILDREN, random.Random(1))
    assert sorted(component_of(name) for name in chosen) == [
        "core",
        "customer-kms",
        "edge",
        "etcd",
        "etcd-leader",
        "registry",
    ]
    assert "etcd-leader" not in victims(["registry", "core-us-east"], random.Random(1))
    assert chosen == victims(list(reversed(CHILDREN)), random.Random(1)), "the same seed, the same victims"
    drawn = {name for n in range(40) for name in victims(CHILDREN, random.Random(n))}
    assert drawn == {*CHILDREN, ETCD_LEADER}, "every process has its turn"


def test_two_commands_at_one_place_are_found() -> None:
    first, second = Done("a", "acme", "suspend", 5), Done("b", "acme", "resume", 5)
    assert twice([first, Done("a", "acme", "suspend", 5), Done("b", "globex", "resume", 5)]) == []
    assert twice([first, second]) == ["acme:5 was given to a and to b"]


def test_a_command_is_looked_up_once() -> None:
    record = Record()
    record.acknowledge(Done("a", "acme", "suspend", 1))
    assert [d.command_id for d in record.unchecked()] == ["a"]
    record.checked = len(record.commands)
    record.acknowledge(Done("b", "acme", "resume", 2))
    assert [d.command_id for d in record.unchecked()] == ["b"]
    assert record.acknowledged == 2


def test_blobs_are_kept_within_a_bound_and_the_newest_are_in_a_sample() -> None:
    record = Record()
    for n in range(KEEP_MAX * 2):
        record.mint("acme", "files", f"blob-{n}", f"key-{n}")
    kept = record.minted["acme", "files"]
    assert len(kept) == KEEP_MAX
    assert record.acknowledged == KEEP_MAX * 2
    assert any(int(blob.partition("-")[2]) >= KEEP_MAX for blob, _ in kept), "later ones are among them"
    taken = sample(kept, 20)
    assert len(taken) == 20 == len(set(taken))
    assert taken[0] == kept[-1]
    assert sample(kept[:3], 20) == kept[:3]
