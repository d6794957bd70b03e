"""``keymesh demo``: the product shown and measured on real processes and real files, start to end.

Decides the order of what is shown and how it is told: people read on standard error as it happens, ``--json`` puts one
object on standard output at the end.  Every figure is measured in this run.  The first step that fails ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from keymesh.app import demo_kill, demo_outage, demo_steps
from keymesh.app.cli_common import stderr, stdout
from keymesh.app.demo_files import check_source
from keymesh.app.demo_world import Failed, Figures, World, staged
from keymesh.app.full_servers import BINARIES
from keymesh.app.layout import resolve_dir
from keymesh.app.servers import postgres
from keymesh.app.servers.binaries import require_all
from keymesh.app.servers.ownership import let_through
from keymesh.model.errors import ExitCode, KeymeshError, Refused

SHORT_DIRS: Final = ("/tmp", "/var/tmp")  # noqa: S108  mkdtemp makes a private directory in there
ROOT_MAX_CHARS: Final = 60
"""Unix sockets lie 39 characters deeper; a path of theirs has at most 100 bytes."""


@dataclass(frozen=True, slots=True)
class Step:
    """``run`` returns figures, or raises where what it shows is not so."""

    name: str
    title: str
    run: Callable[[World], Awaitable[Figures]]
    by_hand: str = ""
    """The command with which a person does the same."""


STEPS: Final = (
    Step(
        "mesh-up", "A mesh of four regions: each Core and each Edge its own process", demo_steps.mesh_up, "up --links"
    ),
    Step(
        "customer-kms",
        "Two customers, each with their own KMS, outside the mesh",
        demo_steps.customer_kms,
        "customer-kms run --dir globex-kms --replicas eu-central,eu-west --allow-ca pki/ca.pem",
    ),
    Step(
        "onboard",
        "Onboard acme (US) and globex (EU) under those root keys",
        demo_steps.onboard,
        "tenant create globex --home eu-central --l1 kms:globex-kms#globex-root",
    ),
    Step(
        "seal",
        "Encrypt a directory for both, each file under its own key",
        demo_steps.seal_files,
        "seal FILE --tenant acme --service files",
    ),
    Step(
        "open-elsewhere",
        "Decrypt it in the other allowed region, compare SHA-256",
        demo_steps.open_elsewhere,
        "open FILE.sealed --region us-west",
    ),
    Step("residency", "globex is refused in us-west, and leaves no trace there", demo_steps.residency),
    Step("cut-off", "Cut eu-central off: use goes on, grants pause, at the ttl it closes", demo_outage.cut_off),
    Step("heal", "Heal the links, and nothing else", demo_outage.heal),
    Step(
        "rotate",
        "Rotate L2, L3 and IVK, re-wrap; old data still opens",
        demo_steps.rotation,
        "key rotate service:acme/files",
    ),
    Step(
        "kill-switch",
        "Kill switch: suspend tenant:acme while both its regions work",
        demo_kill.kill_switch,
        "suspend tenant:acme; keymesh verify tenant-acme.cert.json",
    ),
    Step("resume", "Resume it", demo_kill.resume, "resume tenant:acme"),
    Step(
        "l1-pull",
        "globex disables its root key on its own side; nobody tells the mesh",
        demo_kill.l1_pull,
        "customer-kms disable globex-root --dir globex-kms",
    ),
    Step("crash", "kill -9 a Core and an Edge while files are being sealed", demo_outage.crash),
    Step("mesh-down", "Take everything down", demo_steps.mesh_down, "down"),
)


@dataclass(slots=True)
class Report:
    """What happened, step by step; ``planned``: how many steps there are."""

    planned: int
    steps: list[dict[str, Any]] = field(default_factory=list)

    def figure(self, name: str) -> Any:
        """The figure ``name`` of whichever step has it; None where that step did not come to it."""
        return next((s["figures"][name] for s in self.steps if name in s["figures"]), None)

    @property
    def ok(self) -> bool:
        return len(self.steps) == self.planned and all(step["ok"] for step in self.steps)

    def as_json(self, began: float) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "steps": self.steps,
            "kill_switch_ms": self.figure("kill_switch_ms"),
            "l1_pull_ms": self.figure("l1_pull_ms"),
            "certificate_verified": self.figure("certificate_verified") is True,
            "ms": round((time.monotonic() - began) * 1_000),
        }


def run_demo(args: argparse.Namespace, steps: Sequence[Step] = STEPS) -> int:
    """Show it; 0 where every step did what it says, 1 where one did not, 143 after SIGTERM.

    Raises Refused for arguments that do not fit.
    """
    source = check_source(args.path)
    began = time.monotonic()
    report = Report(planned=len(steps))
    if args.full:
        require_all(BINARIES)
    with _stage(args.dir, keep=args.keep) as stage:
        if args.full:
            let_through(postgres.USER, stage.root)
        stderr.print(f"[bold]keymesh demo[/bold]: real processes and files, in {stage.root}")
        try:
            asyncio.run(_play(stage.root, source, steps, report, full=args.full))
        except asyncio.CancelledError:
            stderr.print("ended by SIGTERM; everything is taken down")
            return 128 + signal.SIGTERM
        shown = report.as_json(began)
        if not shown["ok"]:
            stage.keep = True
            stderr.print(f"logs: {stage.root / 'mesh' / 'logs'}", markup=False)
    if args.json:
        print(json.dumps(shown, indent=2))
    else:
        _summary(stdout, shown)
    return int(ExitCode.DONE if shown["ok"] else ExitCode.REFUSED)


@dataclass(slots=True)
class Stage:
    root: Path
    keep: bool


@contextlib.contextmanager
def _stage(given: str | None, *, keep: bool) -> Iterator[Stage]:
    """The demo's directory, empty at the start and gone at the end, unless it is to be kept."""
    if given is None:
        places = [tempfile.gettempdir(), *SHORT_DIRS]
        place = next((p for p in places if len(p) + 12 <= ROOT_MAX_CHARS and os.access(p, os.W_OK)), places[0])
        root = Path(tempfile.mkdtemp(prefix="km", dir=place)).resolve()
    else:
        root = resolve_dir(given)
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise Refused.bad_field("dir", f"{root} is not an empty directory")
        if len(os.fsencode(str(root))) > ROOT_MAX_CHARS:
            raise Refused.bad_field("dir", f"its path has more than {ROOT_MAX_CHARS} characters")
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    stage = Stage(root, keep)
    try:
        yield stage
    finally:
        if stage.keep:
            stderr.print(f"kept: {root}", markup=False)
        else:
            shutil.rmtree(root, ignore_errors=True)


async def _play(root: Path, source: Path, steps: Sequence[Step], report: Report, *, full: bool = False) -> None:
    """Every step in its order until one fails; SIGTERM ends it like ctrl-c, with everything taken down."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with staged(root, source, full=full) as world:
        for number, step in enumerate(steps, 1):
            stderr.print(f"[bold cyan]{number:>2}[/bold cyan] {step.title}")
            if step.by_hand:
                stderr.print(f"     $ keymesh {step.by_hand}", style="dim", markup=False, soft_wrap=True)
            done = await _perform(step, world)
            report.steps.append(done)
            _tell(stderr, done)
            if not done["ok"]:
                return


async def _perform(step: Step, world: World) -> dict[str, Any]:
    began = time.monotonic()
    figures: Figures = {}
    error: str | None = None
    try:
        figures = await step.run(world)
    except (Failed, KeymeshError) as failed:
        error = str(failed)
    except Exception as bug:
        error = f"{type(bug).__name__}: {bug}"
    done = {
        "name": step.name,
        "ok": error is None,
        "ms": round((time.monotonic() - began) * 1_000),
        "figures": figures,
    }
    return done if error is None else {**done, "error": error}


def _tell(console: Console, done: dict[str, Any]) -> None:
    for name, value in done["figures"].items():
        console.print(f"     {name.replace('_', ' ')}: {value}", markup=False, soft_wrap=True)
    if done["ok"]:
        console.print(f"     [green]done[/green] in {done['ms']} ms")
    else:
        console.print(f"     failed after {done['ms']} ms: {done['error']}", style="red", markup=False)


def _summary(console: Console, shown: dict[str, Any]) -> None:
    console.print(f"[bold]{'everything held' if shown['ok'] else 'FAILED'}[/bold] in {shown['ms'] / 1_000:.1f} s")
    for name in ("kill_switch_ms", "l1_pull_ms", "certificate_verified"):
        console.print(f"  {name.replace('_', ' ')}: {shown[name]}", markup=False)
