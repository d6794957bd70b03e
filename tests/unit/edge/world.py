"""One Edge machine with a real signing key, a Core that speaks to it, and raw clocks that tests turn by hand."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keymesh.control.rows import ServiceRow
from keymesh.control.signing import DsseSuite
from keymesh.crypto.dsse import Ed25519Signer
from keymesh.crypto.kid import kid_of
from keymesh.crypto.xaes import XaesKey
from keymesh.edge.hot import HotPath
from keymesh.edge.hot_lease import HotLease, LeasedKey, Meter
from keymesh.edge.machine import EdgeConfig, EdgeState, new_edge, step
from keymesh.edge.snapshot import LeaseSnapshot, Publish
from keymesh.model.machine import Address, Booted, BootMark, Received, Send
from keymesh.model.time import Instant
from keymesh.orbital.edge_messages import LeasedVersion, LeaseGrant, LeaseRequest, Revocation

CORE = Address("node:eu/n1")
OTHER_CORE = Address("node:eu/n2")
SIGNER = Ed25519Signer(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
SUITE = DsseSuite(SIGNER)
PUBLIC_KEY = SIGNER.public_key.hex()
POLICY = ServiceRow(version=1, custody="leased", edge_ttl_ms=60_000)

T = TypeVar("T")


def key_bytes(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def kid(name: str) -> str:
    return kid_of(key_bytes(name)).hex()


def good(grant: LeaseGrant) -> None:
    """A verifier for grants whose policy is not the point."""


def config(**changes: Any) -> EdgeConfig:
    fields: dict[str, Any] = {
        "region": "eu",
        "tenant": "acme",
        "service": "files",
        "instance": "e1",
        "cores": (CORE, OTHER_CORE),
        "suite": SUITE,
        "signing_key": PUBLIC_KEY,
        "verify_policy": good,
    }
    return EdgeConfig(**fields | changes)


@dataclass
class Bench:
    """A booted machine at instant 0, and everything it has said."""

    state: EdgeState = field(default_factory=lambda: new_edge(config()))
    now: int = 0
    log: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.feed(Booted(records={}, mark=BootMark("b", 0), entropy=bytes(32)))

    def feed(self, event: Any, *, at: int | None = None) -> list[Any]:
        self.now = self.now if at is None else at
        effects = step(self.state, Instant(self.now), event)
        self.log += effects
        return effects

    def receive(self, message: Any, *, at: int | None = None, sender: Address = CORE) -> list[Any]:
        return self.feed(Received(sender, message), at=at)

    @property
    def request(self) -> LeaseRequest:
        """The newest lease request."""
        return sent(self.log, LeaseRequest)[-1]

    def grant(self, **changes: Any) -> LeaseGrant:
        fields: dict[str, Any] = {
            "lease_id": "lease-1",
            "nonce": self.request.nonce,
            "tenant": "acme",
            "service": "files",
            "ttl_ms": 10_000,
            "versions": (
                LeasedVersion(kid=kid("v1"), version=1, may_wrap=False),
                LeasedVersion(kid=kid("v2"), version=2, may_wrap=True),
            ),
            "policy": POLICY,
            "policy_entry": None,
        }
        return LeaseGrant(**fields | changes)

    def lease(self) -> LeaseSnapshot:
        """The published lease; fails where nothing is."""
        published = [effect for effect in self.log if isinstance(effect, Publish)][-1].lease
        assert published is not None
        return published


def revocation(*lease_ids: str, revocation_id: str = "r1", **changes: Any) -> Revocation:
    fields: dict[str, Any] = {
        "revocation_id": revocation_id,
        "lease_ids": lease_ids,
        "tenant": "acme",
        "service": "files",
        "epoch": 1,
        "seq": 7,
        "correlation_id": "c1",
    }
    return Revocation(**fields | changes)


def sent(effects: list[Any], shape: type[T]) -> list[T]:
    return [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, shape)]


def of(effects: list[Any], shape: type[T]) -> list[T]:
    return [e for e in effects if isinstance(e, shape)]


@dataclass
class Clocks:
    """Raw readings in ns."""

    boot: int = 5_000_000_000
    wall: int = 1_700_000_000_000_000_000
    deaths: list[str] = field(default_factory=list)

    def pass_ms(self, ms: int) -> None:
        self.boot += ms * 1_000_000
        self.wall += ms * 1_000_000


def counting_entropy() -> Any:
    """Distinct draws without chance."""
    drawn = [0]

    def draw(n_bytes: int) -> bytes:
        drawn[0] += 1
        return hashlib.shake_256(drawn[0].to_bytes(8, "big")).digest(n_bytes)

    return draw


def hot_path(clocks: Clocks) -> HotPath:
    return HotPath(
        boot_ns=lambda: clocks.boot,
        wall_ns=lambda: clocks.wall,
        entropy=counting_entropy(),
        on_death=clocks.deaths.append,
    )


def hot_lease(
    clocks: Clocks,
    *names: str,
    ttl_ms: int = 10_000,
    tenant: str = "acme",
    mint_budget: int | None = None,
    open_budget: int | None = None,
) -> HotLease:
    """A lease over the keys named; the last one wraps."""
    keys = [LeasedKey(XaesKey(key_bytes(name)), kid_of(key_bytes(name)), tenant) for name in names]
    lease = HotLease(keys=keys, wrapping=keys[-1] if keys else None, meter=Meter(mint_budget, open_budget))
    boot_ms, wall_ms = clocks.boot // 1_000_000, clocks.wall // 1_000_000
    lease.set_bounds(
        boot_end_ms=boot_ms + ttl_ms, wall_end_ms=wall_ms + ttl_ms, lead_floor_ms=wall_ms - boot_ms - 1_000
    )
    return lease
