"""The file of ``keymesh sim ask``: a mesh's shape, its timings, what is asked of it, and how often what goes wrong.

Checked like every other configuration, each fault with its field, line and reason; then it becomes the simulator's
``Question``.  ``docs/simulation.md`` has a row for each field, and ``EXAMPLE`` is the example there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from msgspec import Struct, field

from keymesh.app.config_faults import BadConfig, Fault
from keymesh.app.config_file import nearest, parsed
from keymesh.app.config_lines import join
from keymesh.app.config_parts import Checks, check_fields, check_region_name
from keymesh.app.config_shape import shaped
from keymesh.control import checks
from keymesh.model.errors import Refused
from keymesh.model.ids import check_service, check_tenant
from keymesh.sim.ask.question import AT_ONCE, LASTING, OF_MESSAGES, Question, Rate
from keymesh.sim.options import TenantSpec

REGIONS_MAX: Final = 16
TENANTS_MAX: Final = 16
SERVICES_MAX: Final = 4
EDGES_MAX: Final = 256
HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
RATE_MAX: Final = 60
KINDS: Final = tuple(sorted((*LASTING, *AT_ONCE)))
LASTS_MS: Final = 600_000

EXAMPLE: Final = """\
# keymesh sim ask --config mesh.toml: three regions, two tenants, and what goes wrong there
registry = ["us-east"]
voters = ["eu-central", "us-east", "us-west"]
hours = 2
seeds = 4

[regions.us-east]
edges = 2
[regions.us-west]
[regions.eu-central]

[latency_ms]                    # one way; 40 where nothing is said
"us-east us-west" = 32
"us-east eu-central" = 45
"us-west eu-central" = 75

[tenants.acme]
home = "us-east"
regions = ["us-east", "us-west"]
services = ["db", "files"]

[tenants.berlin]
home = "eu-central"
regions = ["eu-central", "us-east"]
ttl_ms = 300_000                # this tenant closes sooner
standby = "deny"

[timing]
ttl_ms = 900_000
heartbeat_ms = 10_000
edge_ttl_ms = 300_000
l1_probe_ms = 60_000
drift_ppm = 200

[load]
operation_every_ms = 1_000
kill_switches_per_hour = 6
writes_per_hour = 2

[faults.cut]
per_hour = 2
lasts_ms = 600_000              # on the average
[faults.region-death]
per_hour = 0.5
[faults.registry-death]
per_hour = 0.25
[faults.wipe]
per_hour = 0.25
[faults.l1-disabled]
per_hour = 0.5

[messages]
loss = 0.001
"""


def _within(least: float, most: float) -> Callable[[str, Any], None]:
    def check(field: str, value: Any) -> None:
        if value is not None and not least <= value <= most:
            raise Refused.bad_field(field, f"{least} to {most}")

    return check


def _ttl(field: str, ttl_ms: int | None) -> None:
    if ttl_ms is not None:
        checks.ttl(field, ttl_ms, development=False)


class _Checked(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    CHECKS: ClassVar[Checks] = {}

    def check(self) -> None:
        """Raises Refused naming the field."""
        check_fields(self)


class AskRegion(_Checked, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``edges``: how many for each service of each tenant that may be there, 0 to 8."""

    CHECKS: ClassVar[Checks] = {"edges": _within(0, 8)}

    edges: int = 1


class AskTenant(_Checked, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``ttl_ms``: shorter than the mesh's, 60000 at least; without it the mesh's."""

    CHECKS: ClassVar[Checks] = {"ttl_ms": _ttl}

    home: str
    regions: tuple[str, ...]
    services: tuple[str, ...] = ("db",)
    ttl_ms: int | None = None
    standby: Literal["allow", "deny"] = "allow"

    def check(self) -> None:
        """Raises Refused naming the field."""
        check_fields(self)
        if not 1 <= len(self.services) <= SERVICES_MAX or len(set(self.services)) != len(self.services):
            raise Refused.bad_field("services", f"1 to {SERVICES_MAX}, each once")
        for n, service in enumerate(self.services):
            _named(f"services[{n}]", check_service, service)
        if not self.regions or len(set(self.regions)) != len(self.regions):
            raise Refused.bad_field("regions", "at least one, each once")
        if self.home not in self.regions:
            raise Refused.bad_field("home", "one of the tenant's regions")


class AskTiming(_Checked, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """As the settings of a mesh.  ``l1_ttl_ms``: without it the ttl.  ``drift_ppm``: clocks are off by up to that."""

    CHECKS: ClassVar[Checks] = {
        "ttl_ms": _ttl,
        "heartbeat_ms": _within(1_000, 60_000),
        "edge_ttl_ms": _within(1_000, HOUR_MS),
        "l1_probe_ms": _within(1_000, DAY_MS),
        "l1_ttl_ms": _within(1_000, DAY_MS),
        "snapshot_ms": _within(10_000, DAY_MS),
        "drift_ppm": _within(0, 1_000),
    }

    ttl_ms: int = HOUR_MS
    heartbeat_ms: int = 10_000
    edge_ttl_ms: int = 300_000
    l1_probe_ms: int = 300_000
    l1_ttl_ms: int | None = None
    snapshot_ms: int = 300_000
    drift_ppm: int = 100


class AskLoad(_Checked, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``operation_every_ms``: each service's users in each region ask for one encryption and one decryption."""

    CHECKS: ClassVar[Checks] = {
        "operation_every_ms": _within(100, HOUR_MS),
        "timeout_ms": _within(1, 60_000),
        "kill_switches_per_hour": _within(0, RATE_MAX),
        "writes_per_hour": _within(0, RATE_MAX),
    }

    operation_every_ms: int = 1_000
    timeout_ms: int = 1_000
    kill_switches_per_hour: float = 4.0
    writes_per_hour: float = 4.0


class AskFault(_Checked, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``per_hour``: in the whole mesh, 0 to 60.  ``lasts_ms``: on the average, up to a day."""

    CHECKS: ClassVar[Checks] = {"per_hour": _within(0, RATE_MAX), "lasts_ms": _within(1, DAY_MS)}

    per_hour: float
    lasts_ms: int | None = None


class AskConfig(_Checked, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that a question says.  ``registry``: the regions of one replica or two.  ``voters``: without it the first
    three regions by name, or where there are fewer, all."""

    CHECKS: ClassVar[Checks] = {
        "hours": _within(0.1, 168),
        "seeds": _within(1, 10_000),
        "default_latency_ms": _within(1, 10_000),
    }

    regions: dict[str, AskRegion]
    tenants: dict[str, AskTenant]
    registry: tuple[str, ...]
    voters: tuple[str, ...] = ()
    hours: float = 1.0
    seeds: int = 8
    default_latency_ms: int = 40
    latency_ms: dict[str, int] = field(default_factory=dict)
    timing: AskTiming = AskTiming()
    load: AskLoad = AskLoad()
    faults: dict[str, AskFault] = field(default_factory=dict)
    messages: dict[str, float] = field(default_factory=dict)

    def check(self) -> None:
        """Raises Refused naming the field."""
        check_fields(self)
        self._check_regions()
        self._check_tenants()
        for pair, delay in self.latency_ms.items():
            place, names = join("latency_ms", pair), pair.split()
            if len(names) != 2 or names[0] == names[1] or not set(names) <= self.regions.keys():
                raise Refused.bad_field(place, "two of the regions, with a space between them")
            _within(1, 10_000)(place, delay)
        for kind, fault in self.faults.items():
            check_kind(join("faults", kind), kind, KINDS)
            if fault.lasts_ms is not None and kind not in LASTING:
                raise Refused.bad_field(f"{join('faults', kind)}.lasts_ms", "this kind is over at once")
        for kind, share in self.messages.items():
            check_kind(join("messages", kind), kind, OF_MESSAGES)
            _within(0, 0.5)(join("messages", kind), share)

    def _check_regions(self) -> None:
        if not 1 <= len(self.regions) <= REGIONS_MAX:
            raise Refused.bad_field("regions", f"1 to {REGIONS_MAX}")
        for region in self.regions:
            check_region_name(join("regions", region[:64]), region)
        self._known("registry", self.registry)
        if not 1 <= len(self.registry) <= 2:
            raise Refused.bad_field("registry", "one region, or two for two replicas")
        self._known("voters", self.voters)
        if len(self.voters) not in (0, 1, 2, 3, 5, 7) or len(set(self.voters)) != len(self.voters):
            raise Refused.bad_field("voters", "3, 5 or 7 regions, each once (or fewer than 3: no Standby)")

    def _check_tenants(self) -> None:
        if not 1 <= len(self.tenants) <= TENANTS_MAX:
            raise Refused.bad_field("tenants", f"1 to {TENANTS_MAX}")
        for name, tenant in self.tenants.items():
            place = join("tenants", name[:64])
            _named(place, check_tenant, name)
            self._known(f"{place}.regions", tenant.regions)
            if tenant.ttl_ms is not None and tenant.ttl_ms > self.timing.ttl_ms:
                raise Refused.bad_field(f"{place}.ttl_ms", f"at most the mesh's, {self.timing.ttl_ms}")
        edges = sum(self.regions[region].edges * len(t.services) for t in self.tenants.values() for region in t.regions)
        if not 1 <= edges <= EDGES_MAX:
            raise Refused.bad_field("regions", f"1 to {EDGES_MAX} Edges in all; these are {edges}")

    def _known(self, place: str, names: tuple[str, ...]) -> None:
        for n, name in enumerate(names):
            if name not in self.regions:
                raise Refused.bad_field(f"{place}[{n}]", f"one of the regions: {', '.join(self.regions)}")

    def question(self) -> Question:
        """The same for the simulator.  Regions are in the order of their names there."""
        regions, timing, load = tuple(sorted(self.regions)), self.timing, self.load
        said = {frozenset(pair.split()): delay for pair, delay in self.latency_ms.items()}
        pairs = [frozenset((a, b)) for n, a in enumerate(regions) for b in regions[n + 1 :]]
        return Question(
            regions=regions,
            registry_regions=self.registry,
            voters=tuple(sorted(self.voters or regions[: 3 if len(regions) >= 3 else len(regions)])),
            delays={pair: said.get(pair, self.default_latency_ms) for pair in pairs},
            edges={name: region.edges for name, region in self.regions.items()},
            tenants=tuple(
                TenantSpec(name, t.home, tuple(sorted(t.regions)), t.services, t.ttl_ms, t.standby == "allow")
                for name, t in sorted(self.tenants.items())
            ),
            ttl_ms=timing.ttl_ms,
            heartbeat_ms=timing.heartbeat_ms,
            edge_ttl_ms=timing.edge_ttl_ms,
            l1_probe_ms=timing.l1_probe_ms,
            l1_ttl_ms=timing.ttl_ms if timing.l1_ttl_ms is None else timing.l1_ttl_ms,
            snapshot_ms=timing.snapshot_ms,
            drift_ppm=timing.drift_ppm,
            operation_every_ms=load.operation_every_ms,
            timeout_ms=load.timeout_ms,
            kill_switches_per_hour=load.kill_switches_per_hour,
            writes_per_hour=load.writes_per_hour,
            rates={kind: Rate(f.per_hour, LASTS_MS if f.lasts_ms is None else f.lasts_ms)
                   for kind, f in self.faults.items()},
            shares=self.messages,
            hours=self.hours,
        )  # fmt: skip


def _named(place: str, check: Callable[[str], object], name: str) -> None:
    try:
        check(name)
    except Refused as bad:
        raise Refused.bad_field(place, bad.message.partition(": ")[2]) from bad


def check_kind(place: str, kind: str, kinds: tuple[str, ...]) -> None:
    """Raises Refused naming all there are."""
    if kind not in kinds:
        raise Refused.bad_field(place, f"no such kind; there are {', '.join(kinds)}")


def load_ask(path: Path) -> AskConfig:
    """The question in ``path``.  Raises BadConfig with every fault."""
    plain, lines = parsed(path)
    return shaped_ask(plain, lines, str(path))


def shaped_ask(plain: dict[str, Any], lines: dict[str, int], source: str) -> AskConfig:
    """``plain`` checked; ``lines``: place -> line.  Raises BadConfig with every fault."""
    faults: list[Fault] = []
    config = shaped(plain, AskConfig, lambda field, reason: faults.append(Fault(field, nearest(field, lines), reason)))
    if faults or not isinstance(config, AskConfig):
        raise BadConfig(source, faults)
    return config
