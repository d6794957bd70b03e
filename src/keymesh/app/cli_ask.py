"""``keymesh sim ask``: "what are my real bounds?", answered by the simulator for a mesh of the asker's own shape."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from msgspec import structs
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from keymesh.app import ask_plot
from keymesh.app.args_common import show_ms
from keymesh.app.ask_faults import with_faults
from keymesh.app.cli_common import emit, stderr, table
from keymesh.app.cli_errors import BadUsage, usage
from keymesh.app.config_ask import EXAMPLE, AskConfig, load_ask
from keymesh.model.errors import ExitCode
from keymesh.sim.ask.figures import report
from keymesh.sim.ask.question import Question
from keymesh.sim.ask.run import ask_seeds
from keymesh.sim.ask.seen import FIGURES, Seen

_SEED_MAX: Final = 2**48


def run_ask(args: argparse.Namespace) -> int:
    """Exit code 1 where a bound was exceeded or a rule broken."""
    if args.example:
        print(EXAMPLE, end="")
        return int(ExitCode.DONE)
    if args.config is None:
        raise BadUsage("bad-field", "config: a file that says the mesh; --example prints one", field="config")
    config = _config(args)
    plot = None if args.plot is None else Path(args.plot)
    if plot is not None:
        ask_plot.check_plot(plot)
    question = config.question()
    seen = _ask(question, range(args.start, args.start + config.seeds), args.procs)
    answer = {"question": _plain(config, question, args.start), **report(question, seen)}
    if plot is not None:
        ask_plot.draw(plot, answer, seen)
    emit(args, answer, lambda: _show(answer))
    return int(ExitCode.DONE if answer["ok"] else ExitCode.REFUSED)


def _config(args: argparse.Namespace) -> AskConfig:
    """The file, and over it what the command line says."""
    for name, value, high in (("start", args.start, _SEED_MAX), ("procs", args.procs, 64)):
        if not (0 if name == "start" else 1) <= value <= high:
            raise BadUsage.bad_field(name, f"{0 if name == 'start' else 1} to {high}")
    config = load_ask(Path(args.config))
    said = {name: getattr(args, name) for name in ("hours", "seeds") if getattr(args, name) is not None}
    config = structs.replace(config, **said)
    with usage():
        config.check()
    if args.faults is None:
        return config
    with usage():
        return with_faults(config, args.faults)


def _ask(question: Question, seeds: range, procs: int) -> list[Seen]:
    columns = (
        SpinnerColumn(),
        TextColumn("seed {task.completed} of {task.total}"),
        BarColumn(),
        TimeElapsedColumn(),
    )
    seen: list[Seen] = []
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        bar = progress.add_task("asking", total=len(seeds))
        for one in ask_seeds(question, seeds, procs):
            seen.append(one)
            progress.update(bar, completed=len(seen))
            if not stderr.is_terminal:
                stderr.print(f"seed {len(seen)} of {len(seeds)}")
    return seen


def _plain(config: AskConfig, question: Question, start: int) -> dict[str, Any]:
    """What was asked, with everything that the file left to its default."""
    timing = {name: getattr(question, name) for name in config.timing.__struct_fields__}
    return {
        "registry": question.registry_regions,
        "voters": question.voters,
        "regions": {name: region.edges for name, region in sorted(config.regions.items())},
        "tenants": {
            t.name: {"home": t.home, "regions": t.regions, "ttl_ms": question.ttl_of(t.name)} for t in question.tenants
        },
        "timing": timing,
        "faults": {k: {"per_hour": r.per_hour, "lasts_ms": r.lasts_ms} for k, r in sorted(question.rates.items())},
        "messages": dict(sorted(question.shares.items())),
        "hours": question.hours,
        "seeds": [start, start + config.seeds - 1],
    }


def _show(answer: dict[str, Any]) -> None:
    figures = answer["figures"]
    rows = [_row(name, figures[name]) for name in FIGURES]
    for what in ("entries", "seconds"):
        rpo = figures["rpo"]
        rows.append([f"rpo, {what}", rpo["samples"], *(_or_none(rpo[what][p]) for p in _SPREAD), "", ""])
    hours = figures["availability"]["tenant_hours"]
    rows.append(["availability", hours["samples"], *(_share(hours[p]) for p in _SPREAD), "", ""])
    title = f"{answer['seeds']} seeds, {answer['virtual_hours']} virtual hours, {answer['orders']} orders"
    table(title, ("figure", "samples", "p50", "p99", "worst", "bound", "exceeded"), rows)
    for kind in ("decrypt", "encrypt"):
        asked = figures["availability"][kind]
        print(f"{kind}: {asked['served']} of {asked['asked']} served, {asked['served_elsewhere']} by another region")
    print("faults: " + (", ".join(f"{kind} {n}" for kind, n in answer["faults"].items()) or "none"))
    for one in answer["exceeded"]:
        limit = f"{one['ms']} ms, bound {one['bound_ms']} ms"
        print(f"EXCEEDED {one['figure']}: {one['what']} at {one['at_ms']} ms of seed {one['seed']}: {limit}")
    for violation in answer["violations"]:
        print(f"VIOLATION {violation}")


_SPREAD: Final = ("p50", "p99", "worst")


def _row(name: str, figure: dict[str, Any]) -> list[Any]:
    bound = figure["bound"]
    limit = "" if bound is None else f"{bound['name']} {'' if bound['ms'] is None else show_ms(bound['ms'])}".strip()
    times = (_none() if figure[p] is None else show_ms(figure[p]) for p in _SPREAD)
    return [name.replace("_", " "), figure["samples"], *times, limit, "" if bound is None else bound["exceeded"]]


def _none() -> str:
    return "nothing seen"


def _or_none(value: Any) -> Any:
    return _none() if value is None else value


def _share(value: float | None) -> str:
    return _none() if value is None else f"{100 * value:.3f}%"
