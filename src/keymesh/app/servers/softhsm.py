"""A private SoftHSM2 token: no server, but a library that keeps its tokens in a directory.

Which directory, the library reads from ``SOFTHSM2_CONF`` when it is loaded, once for each process; so the variable goes
to the process that loads it (``TokenConfig.env``), and two tokens in one process share a directory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keymesh.adapters.files import PUBLIC_MODE, write_file
from keymesh.adapters.pkcs11_config import TokenConfig
from keymesh.model.errors import Refused, Unavailable

INSTALL: Final = "apt-get install softhsm2"
LIBRARIES: Final = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
)
INIT_TIMEOUT_S: Final = 30.0


def softhsm_library() -> Path:
    """Raises Refused with the line that installs it."""
    for name in LIBRARIES:
        if Path(name).is_file():
            return Path(name)
    raise Refused("not-installed", f"no SoftHSM2 library here: {INSTALL}", field="softhsm2")


@dataclass(frozen=True, slots=True)
class SoftHsm:
    """``directory``: holds the configuration, ``tokens/`` and one PIN file for each token."""

    directory: Path

    @property
    def conf(self) -> Path:
        return self.directory / "softhsm2.conf"

    @property
    def tokens(self) -> Path:
        return self.directory / "tokens"

    @property
    def env(self) -> dict[str, str]:
        return {"SOFTHSM2_CONF": str(self.conf)}

    def pin_file(self, label: str) -> Path:
        return self.directory / f"{label}.pin"

    def init_token(self, label: str, *, tenant: str = "") -> TokenConfig:
        """A new token with a PIN of its own, and how a Core reaches it.  Without a tenant it is for seals.

        Raises Refused, Unavailable.
        """
        tool = shutil.which("softhsm2-util")
        if tool is None:
            raise Refused("not-installed", f"no softhsm2-util here: {INSTALL}", field="softhsm2")
        self.tokens.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings = f"directories.tokendir = {self.tokens}\nobjectstore.backend = file\nlog.level = ERROR\n"
        write_file(self.conf, settings.encode(), mode=PUBLIC_MODE)
        pin = os.urandom(8).hex()
        words = ["--init-token", "--free", "--label", label, "--pin", pin, "--so-pin", os.urandom(8).hex()]
        done = subprocess.run(
            [tool, "--module", str(softhsm_library()), *words],
            env={**os.environ, **self.env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=INIT_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise Unavailable("softhsm", f"the token could not be made: {done.stderr.decode(errors='replace')[:200]}")
        write_file(self.pin_file(label), pin.encode() + b"\n")
        return TokenConfig(
            token=label,
            tenant=tenant,
            seal=not tenant,
            module=str(softhsm_library()),
            pin_file=str(self.pin_file(label)),
            env=dict(self.env),
        )
