"""Carries out the fault items of a plan, and undoes all of them when the world is healed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from keymesh.edge.snapshot import Closing
from keymesh.model.machine import REGISTRY
from keymesh.sim.draw import mix, stream_of
from keymesh.sim.keys import KeyShells
from keymesh.sim.network import Link
from keymesh.sim.plan import Item
from keymesh.sim.process import Process
from keymesh.sim.world import World

ForeignAppend = Callable[[str], bool]
FIRST: Final = "registry-1"
_REPLICA: Final = stream_of("replica")


class Faults:
    """``foreign_append(tenant)`` is another Registry replica's entry, which makes the next append conflict."""

    def __init__(self, world: World, keys: KeyShells, foreign_append: ForeignAppend) -> None:
        self.world = world
        self.keys = keys
        self._foreign_append = foreign_append
        self.spares_last_copies = True
        self.watches: list[Callable[[Item | None], None]] = []  # told of each fault begun, and (None) of each ended
        self._healed = False
        self._draws = 0
        self._does: dict[str, Callable[..., bool | None]] = {
            "cut": self._cut,
            "cut-one-way": self._cut_one_way,
            "slow-link": self._slow,
            "crash": self._crash,
            "retire": self._retire,
            "pause": self._pause,
            "clock-jump": self._jump,
            "clock-back": self._back,
            "clock-in-write": self._jump_in_write,
            "reboot": self._reboot,
            "disk-full": self._disk_full,
            "torn-write": self._torn,
            "log-unavailable": self._log_unavailable,
            "log-conflict": self._log_conflict,
            "log-unknown": self._log_unknown,
            "l1-disabled": self._l1_disabled,
            "l1-unreachable": self._l1_unreachable,
            "wipe": self._wipe,
            "bit-rot": self._rot,
            "region-death": self._region_death,
            "registry-death": self._registry_death,
            "kms-outage": self._kms_outage,
        }

    def run(self, item: Item) -> None:
        if not self._healed and self._does[item.what](*item.args) is not False:
            self.world.faults[item.what] += 1
            self.world.say(f"FAULT {item.what} {' '.join(map(str, item.args))}")
            for watch in self.watches:
                watch(item)

    def heal(self) -> None:
        """Everything works again, and stays so."""
        self._healed = True
        world = self.world
        world.say("HEALED")
        world.network.heal()
        world.log.down = world.log.unknowns = 0
        for customer in self.keys.customers.values():
            customer.enabled = True
            customer.disabled_at = None
            customer.denied.clear()
            customer.unreachable.clear()
        for proc in world.processes.values():
            proc.fuse = -1
            proc.torn = proc.disk_full = proc.jump_in_write = 0
            if proc.paused:
                proc.paused = 1
                world.unpause(proc, proc.life)
            if not proc.alive:
                world.boot(proc)

    def _later(self, delay_ms: int, undo: Callable[[], Any]) -> None:
        def over(a: Any, b: Any) -> None:
            if not self._healed:
                undo()
                for watch in self.watches:
                    watch(None)

        self.world.schedule(delay_ms, over)

    # --- links -------------------------------------------------------------------------------------------------------

    def _cut(self, a: str, b: str, length_ms: int) -> None:
        self._cut_one_way(a, b, length_ms)
        self._cut_one_way(b, a, length_ms)

    def _cut_one_way(self, a: str, b: str, length_ms: int) -> None:
        for link in self._links(a, b):
            link.cuts += 1

            def undo(link: Link = link) -> None:
                link.cuts -= 1

            self._later(length_ms, undo)

    def _slow(self, a: str, b: str, extra_ms: int, length_ms: int) -> None:
        for link in self._links(a, b):
            link.slow_ms += extra_ms

            def undo(link: Link = link) -> None:
                link.slow_ms -= extra_ms

            self._later(length_ms, undo)

    def _links(self, a: str, b: str) -> list[Link]:
        """The link from ``a`` to ``b``; of a Registry with replicas those of one of them, or of all; ``registry-1`` is
        the first alone."""
        return [self.world.network.link(x, y) for x in self._replicas(a) for y in self._replicas(b)]

    def _replicas(self, name: str) -> list[str]:
        if name == FIRST:
            return [str(REGISTRY)]
        names = [m.proc.name for m in self.world.registries]
        if name != REGISTRY or len(names) < 2:
            return [name]
        self._draws += 1
        draw = mix(self.world.options.seed, _REPLICA, self._draws) % (2 * len(names))
        return [names[draw]] if draw < len(names) else names

    # --- processes ---------------------------------------------------------------------------------------------------

    def _proc(self, name: str) -> Process:
        return self.world.processes[self._replicas(name)[-1]]

    def _crash(self, name: str, fuse: int, down_ms: int) -> None:
        """Dies before ``fuse`` effects more, whichever they are."""
        proc = self._proc(name)
        if fuse == 0:
            self.world.crash(proc, down_ms)
        elif proc.alive:
            proc.fuse = fuse

    def _retire(self, name: str, linger_ms: int) -> bool:
        """An Edge ends in order; its process lingers for a while, and another life follows."""
        proc = self._proc(name)
        if not proc.alive:
            return False
        life = proc.life
        self.world.deliver(proc.machines[0], Closing())

        def gone(a: Any, b: Any) -> None:
            if proc.alive and proc.life == life:
                self.world.crash(proc)

        self.world.schedule(linger_ms, gone)
        return True

    def _pause(self, name: str, length_ms: int) -> None:
        proc = self._proc(name)
        self.world.pause(proc)
        self._later(length_ms, lambda: self.world.unpause(proc, proc.life))

    def _jump(self, name: str, by_ms: int) -> None:
        self.world.step_wall_clock(self._proc(name).host, by_ms)

    def _jump_in_write(self, name: str, by_ms: int) -> None:
        self._proc(name).jump_in_write = by_ms

    def _back(self, name: str, by_ms: int) -> None:
        self.world.step_wall_clock(self._proc(name).host, -by_ms)

    def _reboot(self, name: str) -> None:
        proc = self._proc(name)
        proc.host.reboot(self.world.t)
        for other in list(self.world.processes.values()):
            if other.host is proc.host:
                self.world.crash(other, 2_000)

    # --- disks -------------------------------------------------------------------------------------------------------

    def _disk_full(self, name: str, length_ms: int) -> None:
        proc = self._proc(name)
        proc.disk_full += 1

        def undo() -> None:
            proc.disk_full -= 1

        self._later(length_ms, undo)

    def _torn(self, name: str) -> None:
        self._proc(name).torn += 1

    def _region_death(self, region: str, down_ms: int) -> None:
        """Core and Edges of the region die, and come back with their disks; a Registry there is another fault."""
        self._proc(region).host.reboot(self.world.t)
        for other in list(self.world.processes.values()):
            if other.region == region and other.machines[0].kind != "registry":
                self.world.crash(other, down_ms)

    def _registry_death(self, down_ms: int) -> None:
        """Every replica of it."""
        for machine in self.world.registries:
            self.world.crash(machine.proc, down_ms)

    def _wipe(self, region: str, down_ms: int = 5_000) -> bool:
        """The region is gone, Edges and all; its node comes back empty: no records, blobs, IVK.

        Not where a blob has its last copy there (``spares_last_copies``): no design brings that back.
        """
        if self.spares_last_copies and not self.keys.has_copies_elsewhere(region):
            return False
        proc = self._proc(region)
        self._region_death(region, down_ms)
        for machine in proc.machines:
            machine.disk.clear()
        proc.rotten.clear()
        self.keys.wipe_region(region)
        for hook in self.world.on_wipe:
            hook(proc)
        return True

    def _rot(self, region: str, tenant: str) -> bool:
        proc = self._proc(region)
        key = f"ns/{tenant}"
        if not any(key in m.disk for m in proc.machines):
            return False
        proc.rotten.add(key)
        return True

    # --- the log and the customers -----------------------------------------------------------------------------------

    def _log_unavailable(self, length_ms: int) -> None:
        log = self.world.log
        log.down += 1

        def undo() -> None:
            log.down -= 1

        self._later(length_ms, undo)

    def _log_unknown(self, count: int) -> None:
        self.world.log.unknowns += count

    def _log_conflict(self, tenant: str) -> bool:
        return self._foreign_append(tenant)

    def _l1_disabled(self, tenant: str, length_ms: int) -> bool:
        customer = self.keys.customer(tenant)
        if not customer.enabled:
            return False
        customer.enabled = False
        customer.disabled_at = self.world.t
        for hook in self.world.on_l1_disabled:
            hook(tenant)

        def undo() -> None:
            customer.enabled = True
            customer.disabled_at = None

        self._later(length_ms, undo)
        return True

    def _kms_outage(self, tenant: str, length_ms: int) -> None:
        """The tenant's L1 answers nobody."""
        for region in self.world.ledger.allowed.get(tenant, ()):
            self._l1_unreachable(tenant, region, length_ms)

    def _l1_unreachable(self, tenant: str, region: str, length_ms: int) -> None:
        customer = self.keys.customer(tenant)
        customer.unreachable[region] += 1

        def undo() -> None:
            customer.unreachable[region] -= 1

        self._later(length_ms, undo)
