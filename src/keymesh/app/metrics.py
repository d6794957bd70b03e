"""Prometheus collectors over the machines' states; nothing is counted on a hot path for their sake."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from keymesh.app.core_app import CoreProcess
    from keymesh.app.core_kmip import KmipDoor
    from keymesh.app.core_objects import CoreObjects
    from keymesh.app.registry_app import RegistryProcess

TENANTS_MAX: Final = 1_000  # of whom single figures are shown


def _counter(name: str, what: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, what, labels=[label])
    for key, count in sorted(values.items()):
        family.add_metric([key], count)
    return family


def _gauge(name: str, what: str, label: str, values: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(name, what, labels=[label])
    for key, value in sorted(values.items()):
        family.add_metric([key], value)
    return family


def _broker(name: str, lanes: Mapping[str, Mapping[str, int]]) -> Metric:
    """``up`` is 1 while there is a link; all else counts messages."""
    family = GaugeMetricFamily(name, "Messages by way of the broker, by lane.", labels=["lane", "what"])
    for lane, counts in sorted(lanes.items()):
        for what, count in sorted(counts.items()):
            family.add_metric([lane, what], count)
    return family


def _kmip(door: KmipDoor) -> Iterator[Metric]:
    yield GaugeMetricFamily("keymesh_kmip_connections", "Of KMIP clients.", door.connections)
    yield GaugeMetricFamily("keymesh_kmip_unreadable", "Stored objects that did not open.", door.store.unreadable)
    yield _counter("keymesh_kmip_operations", "Admitted.", "operation", door.records.operations)
    yield _counter("keymesh_kmip_denied", "Refused by the gate.", "reason", door.records.denied)


def _objects(objects: CoreObjects) -> Iterator[Metric]:
    shown = objects.describe()
    yield GaugeMetricFamily("keymesh_core_objects_open", "1 where KMIP objects are served.", int(shown["code"] == "ok"))
    tenants = dict(sorted(shown["tenants"].items())[:TENANTS_MAX])
    held = {tenant: found["objects"] for tenant, found in tenants.items()}
    yield _gauge("keymesh_core_objects", "KMIP objects held.", "tenant", held)
    lag = GaugeMetricFamily(
        "keymesh_core_objects_lag_seconds",
        "How old what is held here of another region's KMIP objects may be.",
        labels=["tenant", "region"],
    )
    for tenant, found in tenants.items():
        for region, behind_ms in sorted(found["behind_ms"].items()):
            lag.add_metric([tenant, region], behind_ms / 1_000)
    yield lag
    faults = {what: shown.get(what, 0) for what in ("forks", "damaged", "unreadable")}
    yield _gauge("keymesh_core_objects_faults", "KMIP objects that somebody should look at.", "what", faults)


def _budgets(core: CoreProcess) -> Iterator[Metric]:
    """Of all tenants together: whoever may connect reads this."""
    from keymesh.app.budget_view import show_budgets  # the Registry's process needs none of it

    state, now, rates = core.shell.state, core.shell.now(), core.edges.rates
    tenants = sorted(tenant for tenant, holding in state.tenants.items() if holding.view.budgets)
    left = [
        one["left_ops"] for tenant in tenants for one in show_budgets(state, now, tenant, rates) if "left_ops" in one
    ]
    counts = {"in_force": len(left), "spent": left.count(0)}
    yield _gauge("keymesh_core_budgets", "Of this region's shares, in their periods.", "what", counts)
    standing = len(rates.standing(now))
    yield GaugeMetricFamily("keymesh_core_open_rate_alarms_standing", "Services with an abnormal open rate.", standing)
    yield CounterMetricFamily("keymesh_core_open_rate_alarms", "Alarms raised.", core.edges.alarms)


class CoreCollector(Collector):
    """A Core's keys, leases, seal and notes."""

    def __init__(self, core: CoreProcess) -> None:
        self._core = core

    def collect(self) -> Iterator[Metric]:
        """As they are at this moment."""
        core = self._core
        state = core.shell.state
        yield GaugeMetricFamily("keymesh_core_keys_in_memory", "Keys in locked pages.", len(core.keyring))
        yield GaugeMetricFamily("keymesh_core_edge_leases", "Unsettled Edge leases.", len(state.edge_leases))
        yield GaugeMetricFamily("keymesh_core_sealed", "1 where there is no MasterKey.", int(state.sealed))
        is_open = int(core.store.shut is None)
        yield GaugeMetricFamily("keymesh_core_keystore_open", "1 where the key store is in use.", is_open)
        yield GaugeMetricFamily("keymesh_core_keystore_schema", "Its schema, 0 unseen.", core.region_store.schema)
        opens = GaugeMetricFamily("keymesh_core_seal_opens", "1 where its last try opened.", labels=["seal", "kind"])
        for seal in core.seals.show():
            if seal["kind"] != "shamir":
                opens.add_metric([seal["id"], seal["kind"]], int(seal["state"] == "opens"))
        yield opens
        yield _counter("keymesh_core_notes", "Notes by name.", "name", core.shell.notes)
        yield from _objects(core.objects)
        if core.broker is not None:
            yield _broker("keymesh_core_broker", core.broker.describe())
        yield from () if core.kmip is None else _kmip(core.kmip)
        used = {"minted": core.edges.minted, "opened": core.edges.opened}
        yield _counter("keymesh_core_l4", "Data keys reported by Edges.", "what", used)
        held = {"made": core.edges.held.made, "opened": core.edges.held.opened, "budget_spent": core.edges.held.spent}
        yield _counter(
            "keymesh_core_held", "Keys made and opened here; calls refused for a spent budget.", "what", held
        )
        yield from _budgets(core)


class RegistryCollector(Collector):
    """The Registry's log, kill switches and notes."""

    def __init__(self, process: RegistryProcess) -> None:
        self._process = process

    def collect(self) -> Iterator[Metric]:
        shell = self._process.shell
        state = shell.state
        yield GaugeMetricFamily("keymesh_registry_index", "Index of the control log.", state.index)
        yield GaugeMetricFamily("keymesh_registry_halted", "1 where the log does not verify.", int(bool(state.halted)))
        behind = int(self._process.read_model.behind)
        yield GaugeMetricFamily("keymesh_registry_read_model_behind", "1 where reads are not up to date.", behind)
        yield GaugeMetricFamily("keymesh_registry_open_kill_switches", "Not yet certified.", len(state.open_kills))
        if self._process.broker is not None:
            yield _broker("keymesh_registry_broker", self._process.broker.describe())
        yield _counter("keymesh_registry_notes", "Notes by name.", "name", shell.notes)
