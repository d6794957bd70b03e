"""A mesh that lives as long as one command: its directory, and its end also where the command is interrupted."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keymesh.app.layout import Layout
from keymesh.app.servers import postgres
from keymesh.app.servers.ownership import let_through
from keymesh.model.errors import Refused


@contextmanager
def own_directory(given: str | None, *, what: str, full: bool = False) -> Iterator[Layout]:
    """A short-lived directory, or the one given, which is kept; it must not hold a mesh already.

    ``full``: real servers will lie in it, which may run as users of their own.
    """
    if given is not None:
        layout = Layout(Path(given).resolve())
        if layout.plan.exists():
            raise Refused.bad_field("dir", f"{what} makes a mesh of its own; name a directory without one")
        yield layout
        return
    made = Path(tempfile.mkdtemp(prefix="kmb"))
    if full:
        let_through(postgres.USER, made)
    try:
        yield Layout(made / "m")
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the run as ctrl-C does, so that the mesh is taken down."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
