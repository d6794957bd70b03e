"""The picture of ``keymesh sim ask``: what share of the samples came within which time, and the bound beside them.

matplotlib is heavy and optional: imported here alone, and only where a picture is asked for.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from keymesh.adapters.files import check_writable
from keymesh.app.args_common import show_ms
from keymesh.app.cli_errors import BadUsage
from keymesh.model.errors import Unavailable
from keymesh.sim.ask.seen import FIGURES, Seen

ENDINGS: Final = (".png", ".svg")
_TITLES: Final = {
    "revocation_lag": "revocation: accepted to last Edge",
    "commit_lag": "accepted to committed",
    "edge_lag": "Core applied to its last Edge",
    "proof": "accepted to certificate",
    "root_lag": "root: L1 disabled to last Edge",
    "time_to_closed": "cut to closed",
    "rto": "RTO: region dead to decrypt elsewhere",
}
_SEEN: Final = "#1f5fa8"
_BOUND: Final = "#c0392b"


def check_plot(path: Path) -> None:
    """That a picture can be made there, before anything is run.  Raises BadUsage or Unavailable."""
    if path.suffix.lower() not in ENDINGS:
        raise BadUsage("bad-field", f"plot: a file that ends in {' or '.join(ENDINGS)}", field="plot")
    try:
        check_writable(path)
    except OSError as bad:
        raise BadUsage("not-writable", f"plot: cannot be written to {path} ({bad.strerror})", field="plot") from bad
    if importlib.util.find_spec("matplotlib") is None:
        raise Unavailable("no-matplotlib", "a plot needs matplotlib: pip install 'keymesh[plot]'")


def draw(path: Path, report: dict[str, Any], seen: Sequence[Seen]) -> None:
    """One panel a figure, into ``path``: PNG or SVG by its ending.  Equal figures give equal files."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "keymesh", "font.size": 8}):
        picture = Figure(figsize=(14, 9), layout="constrained")
        panels = picture.subplots(3, 3).flat
        for name in FIGURES:
            values = sorted(sample.value_ms for one in seen for sample in one.samples[name])
            bound = report["figures"][name]["bound"]
            _times(next(panels), _TITLES[name], values, bound)
        losses = sorted(loss.entries for one in seen for loss in one.losses)
        _panel(next(panels), "RPO: entries lost with a disk", losses, "entries")
        hours = sorted(hour.served / hour.asked for one in seen for hour in one.hours.values() if hour.asked)
        panel = next(panels)
        _panel(panel, "availability of tenant-hours", hours, "served of what was asked")
        if hours:
            panel.set_xlim(min(0.9, *hours) - 0.02, 1.01)
        faults = ", ".join(f"{kind} {n}" for kind, n in report["faults"].items()) or "no faults"
        hold = "every bound held" if not report["exceeded"] else f"{len(report['exceeded'])} beyond a bound"
        picture.suptitle(
            f"{report['seeds']} seeds, {report['virtual_hours']} virtual hours: {hold}\n{faults}", fontsize=9, wrap=True
        )
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else {"Software": None}
        picture.savefig(path, format=path.suffix.lower()[1:], dpi=110, metadata=metadata)


def _panel(panel: Any, title: str, values: Sequence[float], axis: str) -> None:
    panel.set_title(f"{title}  (n={len(values)})", fontsize=9)
    panel.set_ylim(0, 1.05)
    panel.grid(alpha=0.25)
    panel.set_xlabel(axis)
    panel.set_ylabel("share of samples")
    if not values:
        panel.text(0.5, 0.5, "nothing seen", ha="center", va="center", transform=panel.transAxes, color="gray")
        panel.set_xticks([])
        return
    if values[-1] == 0:
        panel.set_xlim(-0.05, 1)
    panel.ecdf(values, color=_SEEN)
    panel.plot(values, [(n + 1) / len(values) for n in range(len(values))], ".", color=_SEEN, markersize=4)


def _times(panel: Any, title: str, values: Sequence[int], bound: dict[str, Any] | None) -> None:
    """Times span from milliseconds to hours: a logarithmic axis, with what is under a millisecond at one."""
    _panel(panel, title, [max(1, value) for value in values], "")
    limit = None if bound is None else bound["ms"]
    if not values:
        return
    panel.set_xscale("log")
    ticks = [1, 10, 100, 1_000, 10_000, 60_000, 600_000, 3_600_000, 36_000_000]
    top = max(10, *values, limit or 0) * 2
    panel.set_xlim(0.7, top)
    shown = [tick for tick in ticks if tick <= top]
    panel.set_xticks(shown, labels=[show_ms(tick) for tick in shown])
    panel.minorticks_off()
    if limit is not None and bound is not None:
        panel.axvline(limit, color=_BOUND, linestyle="--")
        panel.set_xlabel(f"the bound counts from: {bound['counted_from']}")
        name = f"{bound['name']} bound {show_ms(limit)} ".replace("ttl bound", "ttl")
        panel.text(limit, 0.03, name, color=_BOUND, ha="right", va="bottom", rotation=90)
