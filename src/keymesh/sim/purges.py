"""A tenant's destruction as it truly goes: wipes that take time, receipts of the past, and what must hold of both.

Stands in for the shell's half (blob stores that take nothing more, and are emptied durably after a while), and judges:
no purge before its wait has truly passed, nor of a destruction that was taken back; no receipt, and no certificate,
while a region still has a blob or a key; and none of it comes back.
"""

from __future__ import annotations

from typing import Any, Final

from keymesh.control.destruction import DESTROY, PURGE_KIND, key_versions
from keymesh.control.purge_messages import PurgeReceipt, PurgeReceiptMessage
from keymesh.core.events import PurgeTenant, TenantPurged
from keymesh.model.machine import REGISTRY, Address, Received, node_address
from keymesh.model.scope import destruction_of
from keymesh.registry.events import CertificateReady
from keymesh.sim.draw import mix, stream_of
from keymesh.sim.ledger import Fact
from keymesh.sim.mesh import Mesh
from keymesh.sim.options import NODE
from keymesh.sim.process import Machine, Process

_STREAM: Final = stream_of("purges")
_OLD_RECEIPTS_MS: Final = 400
_RATE: Final = 500  # of 1/500 clocks may differ, from true time, in what they call a wait
_SLACK_MS: Final = 50


class Purges:
    """Of one mesh."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.world = world = mesh.world
        self.ledger = world.ledger
        self.clean: set[tuple[str, str]] = set()  # (region, tenant) of which a receipt was given
        world.handlers[PurgeTenant] = self._begin
        world.on_send.setdefault(PurgeReceiptMessage, []).append(self._said)
        world.on_logged.append(self._logged)
        world.on_crash.append(self._crashed)
        world.on_wipe.append(self._wiped)
        mesh.on_certificate.append(self._certified)

    # --- the shell's half ----------------------------------------------------------------------------------------

    def _begin(self, m: Machine, e: PurgeTenant) -> None:
        """From now on the region's store takes nothing of the tenant; it is empty after a while."""
        self.mesh.keys.forbidden.add((m.proc.region, e.namespace))
        self.mesh.keys.kids(m.proc.name, e.namespace).clear()
        draw = mix(self.world.t, _STREAM, self.world.seq)
        self.world.schedule(5 + draw % 3_000, self._empty, (m, m.proc.life), e.namespace)

    def _empty(self, life: Any, tenant: str) -> None:
        m, number = life
        if m.proc.life != number:
            return
        store = self.mesh.keys.blobs.setdefault(m.proc.region, {})
        gone = [place for place in store if place[0] == tenant]
        for place in gone:
            del store[place]
        self.mesh.keys.kids(m.proc.name, tenant).clear()
        self.world.sometimes["purge-wiped"] += bool(gone)
        self.world.reply(life, TenantPurged(tenant, tuple(sorted(digest for _, digest in gone))))

    def _crashed(self, proc: Process) -> None:
        keys = self.mesh.keys
        keys.forbidden = {(r, tenant) for r, tenant in keys.forbidden if r != proc.name}

    def _wiped(self, proc: Process) -> None:
        """With its disk a region lost that it had said so."""
        self.clean = {(r, tenant) for r, tenant in self.clean if r != proc.name}

    # --- receipts of the past ----------------------------------------------------------------------------------------

    def _logged(self, fact: Fact) -> None:
        if fact.kind != PURGE_KIND:
            return
        destroyed = self.ledger.fact(fact.namespace, fact.args["destroy_seq"])
        if destroyed is None or destroyed.kind != "tenant.destroy":
            self.world.fail("I3", f"{fact.namespace} is purged by {fact.seq} though nobody asked for it")
            return
        between = self.ledger.facts[fact.namespace][destroyed.seq : fact.seq - 1]
        if any(f.kind == "tenant.cancel-destroy" for f in between):
            self.world.fail("I3", f"{fact.namespace} is purged by {fact.seq} though that was taken back")
        waited, wait_ms = self.world.t - destroyed.logged_at, destroyed.args["wait_ms"]
        if waited < wait_ms - wait_ms // _RATE - _SLACK_MS:
            self.world.fail("I1", f"{fact.namespace} is purged after {waited} of {wait_ms} ms")
        self.world.sometimes["purged"] += 1
        self.world.schedule(_OLD_RECEIPTS_MS, self._old_receipts, fact)

    def _old_receipts(self, fact: Fact, _: Any) -> None:
        """What a region said when it was purged once before, and allowed again, is still on its way: all of it is true
        but which purge it was, under which admission."""
        registry = self.world.machines[REGISTRY]
        space = None if registry.state is None else registry.state.spaces.get(fact.namespace)
        if space is None or space.seq < fact.seq:
            return
        for region in sorted(self.ledger.allowed[fact.namespace]):
            old = PurgeReceipt(
                mesh=registry.state.config.mesh,
                region=region,
                node=NODE,
                boot_id="before",
                counter=1,
                namespace=fact.namespace,
                epoch=1,
                seq=fact.seq - 1,
                entry_hash=None,
                admitted_seq=0,
                keys=key_versions(space.rows),
                others=(),
                backups=(),
                edge_leases_end_in_ms=0,
                open_edge_leases=0,
                correlation_id="before",
            )
            sealed = self.mesh.suite(f"node-{region}").seal(old)
            self.world.sometimes["old-receipt"] += 1
            self.world.deliver(registry, Received(node_address(region, NODE), PurgeReceiptMessage(receipt=sealed)))

    # --- judging -------------------------------------------------------------------------------------------------

    def _has(self, region: str, tenant: str) -> str:
        """What that region still has of the tenant; empty for nothing."""
        keys = self.mesh.keys
        if any(of == tenant for of, _ in keys.blobs.get(region, ())):
            return "a blob"
        return "a key in memory" if keys.memory.get(region, {}).get(tenant) else ""

    def _said(self, m: Machine, to: Address, message: PurgeReceiptMessage) -> None:
        receipt: PurgeReceipt = message.receipt.message
        held = self._has(m.proc.region, receipt.namespace)
        if held:
            self.world.fail("I13", f"{m.address} says that {receipt.namespace} is gone, and has {held}")
        if f"purge/{receipt.namespace}" not in m.disk:
            self.world.fail("I2", f"{m.address} says that {receipt.namespace} is gone before that is durable")
        self.clean.add((m.proc.region, receipt.namespace))
        self.world.sometimes["purge-receipt"] += 1

    def _certified(self, m: Machine, e: CertificateReady) -> None:
        statement = self.mesh.statement_of(e)
        if statement.action != DESTROY:
            return
        tenant = statement.scope.partition(":")[2]
        for region in sorted(self.ledger.allowed[tenant]):
            held = "" if (region, tenant) in self.clean else self._has(region, tenant)
            if held:
                self.world.fail("I13", f"{tenant} is certified destroyed while {region} has {held}")
        self.world.sometimes["destroyed"] += 1

    def sample(self) -> None:
        """What is gone stays gone."""
        for region, tenant in sorted(self.clean):
            held = self._has(region, tenant)
            if held:
                self.world.fail("I3", f"{region} has {held} of {tenant} again")

    def ended(self) -> None:
        """Every destruction that was not taken back came to its certificate."""
        self.sample()
        state = self.world.machines[REGISTRY].state
        for tenant in self.ledger.allowed:
            word = self.ledger.words.get(str(destruction_of(tenant)))
            if word is None or word.kind == "tenant.cancel-destroy":
                continue
            kill = state.kills.get((tenant, word.command_id))
            if word.kind != PURGE_KIND:
                self.world.fail("I10", f"{tenant} was never purged")
            elif kill is None or kill.record.status != "certified":
                self.world.fail("I10", f"the destruction of {tenant} was never certified")
