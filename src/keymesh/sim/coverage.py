"""Which transitions and named situations a run has been through: what was never reached was never tested."""

from __future__ import annotations

from typing import Any, Final

from keymesh.model.machine import REGISTRY
from keymesh.model.states import Mode
from keymesh.sim.checkers import lens
from keymesh.sim.ledger import Fact
from keymesh.sim.mesh import Mesh
from keymesh.sim.process import Machine, Process

_MODE_WORDS: Final = {mode: mode.value for mode in Mode}
# A tenant that a region hears of begins CLOSED: its lease comes with the first answer after it was applied.
_MODES: Final = (
    ("none", "closed"),
    ("closed", "synced"),
    ("closed", "sealed"),
    ("closed", "autonomous"),
    ("synced", "autonomous"),
    ("autonomous", "standby"),
    ("closed", "standby"),
    ("standby", "synced"),
    ("standby", "closed"),
    ("standby", "sealed"),
    ("synced", "closed"),
    ("synced", "sealed"),
    ("autonomous", "synced"),
    ("autonomous", "closed"),
    ("autonomous", "sealed"),
    ("sealed", "closed"),
    ("sealed", "synced"),
)
_RESTRICTIONS: Final = (
    ("none", "suspended"),
    ("none", "revoked"),
    ("suspended", "suspended"),
    ("suspended", "none"),
    ("suspended", "revoked"),
)
_KEYS: Final = (
    ("absent", "pre-active"),
    ("pre-active", "active"),
    ("pre-active", "compromised"),
    ("active", "compromised"),
)
_LEASES: Final = (
    ("granted", "granted"),
    ("granted", "revoked"),
    ("granted", "expired"),
    ("revoked", "restricted"),
    ("revoked", "granted"),
    ("restricted", "restricted"),
    ("restricted", "granted"),
    ("closed", "granted"),
    ("expired", "granted"),
)
_KILLS: Final = (("none", "pending"), ("pending", "revoking"), ("revoking", "certified"), ("revoking", "lifted"))

TRANSITIONS: Final = frozenset(
    f"{kind}:{a}>{b}"
    for kind, pairs in (
        ("mode", _MODES),
        ("restriction", _RESTRICTIONS),
        ("key", _KEYS),
        ("edge-lease", _LEASES),
        ("kill-switch", _KILLS),
    )
    for a, b in pairs
)


class Coverage:
    """Notes transitions as they are seen; only those of ``TRANSITIONS`` count."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.world = world = mesh.world
        self.seen: dict[tuple[str, str], str] = {}
        self.nodes = [m for m in world.machines.values() if m.kind == "node"]
        world.on_logged.append(self._logged)
        world.on_crash.append(self._crashed)

    def move(self, kind: str, what: str, to: str, *, start: str = "none") -> None:
        key = (kind, what)
        old = self.seen.get(key, start)
        if old != to or kind in ("restriction", "edge-lease"):
            self.world.transitions.add(f"{kind}:{old}>{to}")
            self.seen[key] = to

    def _logged(self, fact: Fact) -> None:
        for scope, (state, seq) in fact.restrictions.items():
            if seq == fact.seq:
                self.move("restriction", scope, state)
        if fact.kind == "key.create":
            self.move(
                "key", f"{fact.namespace}/{fact.args['key']}/{fact.args['version']}", "pre-active", start="absent"
            )
        elif fact.kind == "key.activate":
            self.move("key", f"{fact.namespace}/{fact.args['key']}/{fact.args['version']}", "active", start="absent")
        elif fact.kind == "revoke" and str(fact.args["scope"]).startswith("key:"):
            service, _, version = str(fact.args["scope"]).partition("/")[2].partition("@")
            what = f"{fact.namespace}/l3/{service}/{version}"
            if ("key", what) in self.seen:
                self.move("key", what, "compromised")

    def _crashed(self, proc: Process) -> None:
        """A dead node is sealed, however soon it is back."""
        for m in proc.machines:
            if m.kind == "node":
                for tenant in self.world.ledger.allowed:
                    if ("mode", f"{m.address}/{tenant}") in self.seen:
                        self.move("mode", f"{m.address}/{tenant}", "sealed")

    def published(self, m: Machine, reason: str) -> None:
        self.move("edge-lease", m.proc.name, "granted" if m.published is not None else reason)

    def sample(self) -> None:
        """Modes of every tenant at every node, kill-switch records, situations worth counting."""
        t = self.world.t
        for m in self.nodes:
            for tenant in self.mesh.world.ledger.allowed:
                if lens.record_of(tenant) not in m.disk:
                    continue
                mode = "sealed" if not m.proc.alive else _MODE_WORDS[lens.node_mode(m, t, tenant)[0]]
                self.move("mode", f"{m.address}/{tenant}", mode)
                self.world.sometimes[f"mode-{mode}"] += 1
        registry = self.world.machines[REGISTRY]
        if registry.state is not None:
            self._sample_kills(registry.state)

    def _sample_kills(self, state: Any) -> None:
        for key in list(state.open_kills.values()):
            record = state.kills[key].record
            self.move("kill-switch", record.command_id, record.status)

    def ended(self, state: Any) -> None:
        """Kill-switch records at the end of the run."""
        for kill in state.kills.values():
            self.move("kill-switch", kill.record.command_id, kill.record.status)
