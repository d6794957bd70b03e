"""The release after this one, as far as a test needs it: this tree, copied, with what a minor release may add.

Added are an entry kind (``note``) with a row of its own for a tenant or the mesh, an optional field of a row that there
is already (the colour of labels) with its argument, and a message from nodes to the Registry.  Each change replaces a
text that must be there once, so that the copy cannot silently become the same release.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import keymesh

VERSION: Final = "0.2.0"
_OLD: Final = Path(keymesh.__file__).parent

_CHANGES: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "__init__.py": ((f'__version__ = "{keymesh.__version__}"', f'__version__ = "{VERSION}"'),),
    "control/rows.py": (
        (
            "class LabelsRow(Row):\n    labels: dict[str, str]\n",
            "class LabelsRow(Row):\n    labels: dict[str, str]\n    colour: str | UnsetType = UNSET\n\n\n"
            "class NoteRow(Row):\n    text: str\n",
        ),
        ('    "labels": LabelsRow,\n', '    "labels": LabelsRow,\n    "note": NoteRow,\n'),
    ),
    "control/kinds.py": (
        (
            "class SetLabels(Args):\n    labels: dict[str, str]\n",
            "class SetLabels(Args):\n    labels: dict[str, str]\n    colour: str | UnsetType = UNSET\n\n\n"
            "class SetNote(Args):\n    text: str\n",
        ),
        ("from msgspec import Struct\n", "from msgspec import UNSET, Struct, UnsetType\n"),
        (
            '        _kind("tenant.labels", SetLabels, _N, "tenant"),\n',
            '        _kind("tenant.labels", SetLabels, _N, "tenant"),\n        _kind("note", SetNote, _N, "any"),\n',
        ),
    ),
    "control/reduce.py": (
        (
            'draft.put("labels", LabelsRow(labels=args.labels))\n',
            'draft.put("labels", LabelsRow(labels=args.labels, colour=args.colour))\n\n\n'
            "def _note(draft: Draft, args: Any) -> None:\n"
            "    from keymesh.control.rows import NoteRow\n\n"
            '    draft.put("note", NoteRow(text=args.text))\n',
        ),
        ('    "tenant.labels": _labels,\n', '    "tenant.labels": _labels,\n    "note": _note,\n'),
    ),
    "control/transition.py": (
        ('"region", "node", "restriction"})', '"region", "node", "restriction", "note"})'),
        (
            '        "key",\n        "restriction",\n    }',
            '        "key",\n        "restriction",\n        "note",\n    }',
        ),
    ),
    "access/admit.py": (
        ('    TENANT_LABELS = "tenant.labels"\n', '    TENANT_LABELS = "tenant.labels"\n    NOTE = "note"\n'),
        ("    Action.SUSPEND: Rule(", "    Action.NOTE: Rule(Reach.EITHER, _KILL),\n    Action.SUSPEND: Rule("),
    ),
    "registry/projection.py": (('frozenset({"keystore_schema"})', 'frozenset({"keystore_schema", "colour"})'),),
    "orbital/messages.py": (
        (
            "class Hello(Message):",
            'class Gossip(Message):\n    """New in this release."""\n\n    text: str\n\n\nclass Hello(Message):',
        ),
    ),
    "core/regional.py": (
        ("import KeyStoreReport\n", "import Gossip, KeyStoreReport\n"),
        (
            "    if state.store_schema:\n        config",
            '    out.append(Send(REGISTRY, Gossip(text="hear, hear")))\n    if state.store_schema:\n        config',
        ),
    ),
}


def make_next_release(directory: Path) -> Path:
    """A directory for ``PYTHONPATH`` that holds the next release's package."""
    package = directory / "keymesh"
    shutil.copytree(_OLD, package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, changes in _CHANGES.items():
        path = package / name
        text = path.read_text(encoding="utf-8")
        for old, new in changes:
            assert text.count(old) == 1, f"{name} has changed: {old!r} is there {text.count(old)} times"
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")
    return directory


@dataclass(slots=True)
class Processes:
    """Roles run by the test itself, of either release; ended with the block."""

    path: Path
    root: Path
    logs: Path
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str) -> None:
        """``registry`` or ``core-REGION``, of the next release."""
        role, _, region = name.partition("-")
        words = [sys.executable, "-m", f"keymesh.app.{role}_app", "--dir", str(self.root)]
        words += ["--region", region] if region else []
        environment = {**os.environ, "PYTHONPATH": str(self.path)}
        environment.pop("KEYMESH_PARENT_PID", None)
        with (self.logs / f"next-{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def stop(self, name: str) -> None:
        process = self.running.pop(name)
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def text(self, name: str) -> str:
        return (self.logs / f"next-{name}.log").read_text(encoding="utf-8", errors="replace")

    def check(self) -> None:
        """Every one is alive."""
        for name, process in self.running.items():
            assert process.poll() is None, self.text(name)[-4_000:]


@contextlib.contextmanager
def processes(path: Path, root: Path, logs: Path) -> Iterator[Processes]:
    made = Processes(path, root, logs)
    try:
        yield made
    finally:
        for name in list(made.running):
            made.stop(name)
