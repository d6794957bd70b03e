"""The Edge machine's state: one lease at most, one request at most, the newest policy, counts not yet reported."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final

from msgspec import Struct

from keymesh.control.rows import ServiceRow
from keymesh.edge.choice import Moves, Seen
from keymesh.edge.snapshot import EdgeConfig, LeaseSnapshot
from keymesh.model.machine import Address, edge_address
from keymesh.model.time import NEVER, Instant
from keymesh.orbital.edge_messages import UsageReport

ACKED_MAX: Final = 4_096
GRANTED_MAX: Final = 64


class Pending(Struct, frozen=True):
    """The one lease request in flight."""

    nonce: str
    to: Address
    sent_at: Instant


@dataclass(slots=True)
class Usage:
    """Counts that no report carries yet, and the one report in flight."""

    minted: int = 0
    opened: int = 0
    refused: int = 0
    reports: int = 0
    in_flight: UsageReport | None = None
    sent_at: Instant | None = None


@dataclass(slots=True)
class Budget:
    """What is known of the slices held: their window and its end, and how fast they are used up."""

    window: int = 0  # 0: no budget is in force, as far as is known
    until: Instant = NEVER
    ahead_ms: int = 0
    more: bool = True
    left: int = 0
    low: bool = False
    used: int = 0  # since the last request
    asked: int = 0  # and since the one before until then
    granted_by: dict[str, Address] = field(default_factory=dict)  # lease whose slice may come back -> whom to tell


@dataclass(slots=True)
class EdgeState:
    config: EdgeConfig
    address: Address
    entropy: bytes = b""
    draws: int = 0
    core_index: int = 0
    seen: dict[Address, Seen] = field(default_factory=dict)
    moves: Moves = field(default_factory=Moves)
    pending: Pending | None = None
    patience_ms: int = 0  # for the answer to a request
    failures: int = 0  # since the last grant
    next_request_at: Instant | None = None
    last_request_at: Instant | None = None
    lease: LeaseSnapshot | None = None
    policy: ServiceRow | None = None
    hint: Address | None = None  # a Core that said, while a request was in flight, that it would grant
    hints: int = 0  # heeded since the last grant, or since a long time without any
    hinted_at: Instant | None = None
    wanted_kids: frozenset[str] | None = None  # what was held when an unknown kid made us ask
    wanted_gap_ms: int = 0
    acked: dict[tuple[str, str], None] = field(default_factory=dict)  # (revocation, lease) lately acknowledged
    granted: dict[str, tuple[Address, Instant]] = field(default_factory=dict)  # lease -> by whom, until when
    closed: bool = False  # for good: nothing is taken any more
    usage_to: Address | None = None  # once closed: the Core that granted the last lease
    usage: Usage = field(default_factory=Usage)
    budget: Budget = field(default_factory=Budget)
    woken_at: Instant = NEVER  # the tick that is asked for


def new_edge(config: EdgeConfig) -> EdgeState:
    """A machine that has not booted."""
    address = edge_address(config.region, config.tenant, config.service, config.instance)
    return EdgeState(config, address, patience_ms=config.request_timeout_ms)


def address_at(state: EdgeState, core: Address) -> Address:
    """By which address that Core knows this Edge."""
    return state.config.known_as.get(core, state.address)


def seen_of(state: EdgeState, core: Address) -> Seen:
    """What is known of one of its Cores, to be added to."""
    return state.seen.setdefault(core, Seen())


def draw(state: EdgeState) -> str:
    """Fresh hex that nobody can guess: the boot's entropy, hashed with a counter."""
    state.draws += 1
    return hashlib.sha256(state.entropy + state.draws.to_bytes(8, "big")).hexdigest()[:32]


def jitter(state: EdgeState, what: str, limit: int) -> int:
    """0 to ``limit`` - 1, by hash: spread between Edges, the same again for the same word."""
    if limit <= 0:
        return 0
    digest = hashlib.sha256(b"%b/%b" % (state.address.encode(), what.encode())).digest()
    return int.from_bytes(digest[:8], "big") % limit
