"""What is searched: each scenario takes some of the machines and leaves one group of rules every freedom.

Together they cover the rules of DESIGN sections 2, 3 and 5.  A scenario is complete for its ``Limits``; what these
leave out is another scenario's, or too large.  ``deep_ticks`` are for a soak.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from keymesh.control import trust
from keymesh.control.kinds import OPEN_EPOCH
from keymesh.control.messages import (
    AckMessage,
    AnswerMessage,
    CountersignatureMessage,
    CountersignRequest,
    EpochOffer,
    HeartbeatMessage,
    Poll,
    PollAnswer,
    StandbyGrantMessage,
    StandbyRefused,
    StandbyRequest,
    StateRequest,
    VoterLog,
    VoterRead,
)
from keymesh.control.signing import to_plain
from keymesh.control.voter_state import EpochOffered
from keymesh.core.events import LocalRestrict
from keymesh.model.ids import MESH_NAMESPACE
from keymesh.orbital.edge_messages import (
    EdgeAckMessage,
    LeaseGrant,
    LeaseReady,
    LeaseRefused,
    LeaseRequest,
    Revocation,
)
from keymesh.orbital.messages import Hello, KeyStoreReport, Task
from keymesh.registry.events import Command
from keymesh.sim.client import MESH
from keymesh.sim.clocks import WALL_EPOCH_MS
from keymesh.sim.exhaust.judge import Judge
from keymesh.sim.exhaust.sets import SetsJudge, change_of_voters
from keymesh.sim.exhaust.start import HOME, TENANT, TICK_MS, TTL_TICKS, calm_mesh
from keymesh.sim.exhaust.worlds import Asked, Limits, System
from keymesh.sim.mesh import Mesh
from keymesh.sim.options import VOTERS
from keymesh.sim.process import Machine

_YEAR_MS: Final = 365 * 86_400_000
_ASIDE: Final = frozenset((Hello, KeyStoreReport, LeaseReady, StandbyRefused, StateRequest))
"""Of use to somebody, not to safety."""
_BEATS: Final = frozenset((HeartbeatMessage, AnswerMessage))
_POLLS: Final = frozenset((Poll, PollAnswer))
_VOTES: Final = frozenset((CountersignRequest, CountersignatureMessage))
_STANDBY: Final = frozenset((StandbyRequest, StandbyGrantMessage))
_EDGE_NEWEST: Final = frozenset((Revocation, LeaseGrant, AckMessage))
_ASKS: Final = frozenset((LeaseRequest, LeaseRefused))
_EDGE: Final = frozenset((LeaseRequest, LeaseGrant, LeaseRefused, Revocation, EdgeAckMessage))

REGISTRY, NODE_1 = 0, 1


@dataclass(frozen=True, slots=True)
class Scenario:
    """``machines`` after the Registry and the node; ``scripts`` (of a mesh) run side by side."""

    name: str
    about: str
    machines: tuple[str, ...]
    scripts: Callable[[Mesh], tuple[tuple[Asked, ...], ...]]
    limits: Limits
    deep_ticks: int
    registries: int = 1
    judge: type[Judge] = Judge

    def system(self, *, deep: bool = False) -> System:
        """Ready to be searched."""
        mesh = calm_mesh(self.registries, joining="joining" in self.machines)
        limits = replace(self.limits, ticks=self.deep_ticks) if deep else self.limits
        system = System(mesh, machines_of(mesh, self.machines), self.scripts(mesh), limits)
        system.judge = self.judge(system, ttl_ms=TTL_TICKS * TICK_MS)
        return system


def machines_of(mesh: Mesh, others: tuple[str, ...]) -> tuple[Machine, ...]:
    """The Registry, the tenant's node, and ``others``: voters by their number, "joining", "edge", "replica"."""
    world = mesh.world
    node = next(m for m in world.machines.values() if m.kind == "node" and m.proc.region == HOME)
    found = [world.registries[0], node]
    for other in others:
        if other == "replica":
            found.append(world.registries[1])
        elif other == "joining":
            found.append(next(m for m in world.voters.values() if m.proc.region == HOME))
        elif other == "edge":
            found.append(next(m for m in world.machines.values() if m.kind == "edge"))
        else:
            region = VOTERS[int(other)]
            found.append(next(m for m in world.voters.values() if m.proc.region == region))
    return tuple(found)


# --- what is asked ---------------------------------------------------------------------------------------------------


def command(kind: str, n: int) -> Asked:
    """The Registry is asked to suspend or resume the tenant."""
    args = {"scope": f"tenant:{TENANT}", "reason": ""}
    return Asked(REGISTRY, Command(f"{kind}-{n}", TENANT, kind, args, "admin", f"k{n}"))


def commands(*kinds: str) -> Callable[[Mesh], tuple[tuple[Asked, ...], ...]]:
    """One script: these, in order."""
    return lambda mesh: (tuple(command(kind, n) for n, kind in enumerate(kinds)),)


def _local_and(*kinds: str) -> Callable[[Mesh], tuple[tuple[Asked, ...], ...]]:
    """The node is asked to suspend the tenant; and the Registry what ``commands`` says, at any time."""
    mine = Asked(NODE_1, LocalRestrict("local-0", f"tenant:{TENANT}", "suspend", "admin", "k-local"))
    return lambda mesh: ((mine,), *commands(*kinds)(mesh))


def _next_epoch(mesh: Mesh) -> tuple[tuple[Asked, ...], ...]:
    """Recovery officers bring their word for epoch 2 to a majority of the voters, while the Registry goes on."""
    signed = trust.make_authority(
        mesh=MESH, namespace=MESH_NAMESPACE, command_id="open", kind=OPEN_EPOCH, args={"epoch": 2},
        not_after=WALL_EPOCH_MS + _YEAR_MS, signers=mesh.officers[:2],
    )  # fmt: skip
    offer = EpochOffer(mesh=MESH, epoch=2, command_id="open", authority=(to_plain(signed),))
    quorum = trust.Quorum({key: public for suite in mesh.officers for key, public in suite.keys.items()}, 2)
    event = EpochOffered("t", offer, quorum)
    return (Asked(2, event),), (Asked(3, event),)


def _next_epoch_and_suspend(mesh: Mesh) -> tuple[tuple[Asked, ...], ...]:
    return *_next_epoch(mesh), (command("suspend", 0),)


def _change_and_suspend(mesh: Mesh) -> tuple[tuple[Asked, ...], ...]:
    return *change_of_voters(mesh), (command("suspend", 0),)


# --- the scenarios ---------------------------------------------------------------------------------------------------

_ONLY_LEASES: Final = Limits(
    ticks=2,
    lost=_ASIDE | {AckMessage} | _EDGE,
    instant=frozenset((Poll,)),
    newest=_BEATS | _POLLS,
    as_one=(2, 3),
    asleep=frozenset((REGISTRY,)),
)
_NO_BEATS: Final = _ASIDE | _BEATS | _POLLS

SCENARIOS: Final[tuple[Scenario, ...]] = (
    Scenario(
        "lease",
        "heartbeats, answers, tasks and countersignatures of a suspension; the certificate's bound",
        ("0", "1"), commands("suspend"), _ONLY_LEASES, deep_ticks=3,
    ),
    Scenario(
        "replicas",
        "two Registry replicas over one log, one of which has not read it lately",
        ("0", "1", "replica"), commands("suspend"),
        replace(_ONLY_LEASES, ticks=1, lost=_ONLY_LEASES.lost | {Task}, asleep=frozenset((REGISTRY, 4))),
        deep_ticks=2, registries=2,
    ),
    Scenario(
        "order",
        "suspend, resume, suspend: tasks and acknowledgements late and in any order",
        ("0", "1"), commands("suspend", "resume", "suspend"),
        Limits(1, lost=_NO_BEATS | _EDGE, instant=_VOTES, as_one=(2, 3)), deep_ticks=2,
    ),
    Scenario(
        "crash",
        "the node dies before or after any record while a suspension comes, and its leases are renewed",
        ("0", "1"), commands("suspend", "resume"),
        Limits(
            1, crashes={NODE_1: 1}, lost=_ASIDE | _EDGE, instant=_VOTES | _POLLS, newest=_BEATS, as_one=(2, 3),
        ), deep_ticks=2,
    ),
    Scenario(
        "standby",
        "the node no longer hears the Registry, and asks three voters, each of which has stored what it has",
        ("0", "1", "2"), commands("suspend"),
        Limits(
            5, first_tick=4, lost=_NO_BEATS | _EDGE | {AckMessage}, newest=_STANDBY,
            instant=frozenset((StandbyGrantMessage, CountersignatureMessage)),
            in_order=(2, 3, 4), ordered=frozenset((CountersignRequest,)), asleep=frozenset((REGISTRY,)),
        ), deep_ticks=6,
    ),
    Scenario(
        "edge",
        "an Edge takes and renews leases, is told to drop them and acknowledges, while a suspension comes",
        ("0", "1", "edge"), commands("suspend"),
        Limits(
            2, lost=_NO_BEATS, instant=_VOTES | _ASKS, as_one=(2, 3), newest=_EDGE_NEWEST,
            asleep=frozenset((REGISTRY,)),
        ),
        deep_ticks=3,
    ),
    Scenario(
        "edge-crash",
        "the same, and the node dies before or after any record",
        ("0", "1", "edge"), commands("suspend"),
        Limits(
            1, crashes={NODE_1: 1}, lost=_NO_BEATS, instant=_VOTES | _ASKS, as_one=(2, 3), newest=_EDGE_NEWEST,
            asleep=frozenset((REGISTRY,)),
        ), deep_ticks=2,
    ),
    Scenario(
        "local",
        "a suspension issued at the node, another and its resume at the Registry",
        ("0", "1"), _local_and("suspend", "resume"),
        Limits(1, lost=_NO_BEATS | _EDGE | {AckMessage}, instant=_VOTES, as_one=(2, 3)), deep_ticks=2,
    ),
    Scenario(
        "local-crash",
        "a suspension issued at the node that dies before or after any record, and one at the Registry",
        ("0", "1"), _local_and("suspend"),
        Limits(
            0, crashes={NODE_1: 2}, lost=_NO_BEATS | _EDGE | {AckMessage}, instant=_VOTES, as_one=(2, 3),
            asleep=frozenset((REGISTRY,)),
        ), deep_ticks=1,
    ),
    Scenario(
        "superseded",
        "voters store the next epoch while the Registry of this one polls and answers",
        ("0", "1"), _next_epoch,
        Limits(
            2, lost=_ASIDE | _EDGE | _VOTES | {AckMessage, Task}, newest=_BEATS | _POLLS, in_order=(2, 3),
            ordered=frozenset((Poll,)), asleep=frozenset((REGISTRY,)),
        ), deep_ticks=3,
    ),
    Scenario(
        "epoch",
        "two of three voters store the next epoch and tell what they have, while this one commits and a voter dies",
        ("0", "1", "2"), _next_epoch_and_suspend,
        Limits(
            0, crashes={2: 1}, lost=_NO_BEATS | _EDGE | {AckMessage, Task}, asleep=frozenset((REGISTRY,)),
        ), deep_ticks=1,
    ),
    Scenario(
        "voters",
        "one of three voters is replaced: seals, the change and the new seats in any order, and a suspension",
        ("0", "1", "2", "joining"), _change_and_suspend,
        Limits(
            0, lost=_NO_BEATS | _EDGE | {AckMessage, Task}, asleep=frozenset((REGISTRY, NODE_1)),
            instant=frozenset((VoterRead, VoterLog, CountersignatureMessage)),
        ), deep_ticks=1, judge=SetsJudge,
    ),
)  # fmt: skip


def scenario(name: str) -> Scenario:
    return next(s for s in SCENARIOS if s.name == name)
