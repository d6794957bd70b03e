"""A token's process that cannot be started: the host has no process, memory or descriptor left."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from keymesh.adapters import pkcs11_process
from keymesh.adapters.pkcs11_messages import Unwrap
from keymesh.adapters.pkcs11_process import TokenAccess, TokenProcess
from keymesh.model.errors import Unavailable


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE])
async def test_a_worker_that_cannot_be_started_is_silence_and_costs_no_pin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    pin = tmp_path / "pin"
    pin.write_bytes(b"1234")
    pin.chmod(0o600)
    tried = []

    async def fails(*argv: Any, **how: Any) -> Any:
        tried.append(argv)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("asyncio.create_subprocess_exec", fails)
    monkeypatch.setattr(pkcs11_process, "REST_S", 0.0)
    access = TokenAccess(module=tmp_path / "lib.so", token="t", serial="", pin_file=pin, marks=tmp_path)
    process = TokenProcess(access)
    for _ in range(2):  # the next call tries again: nothing was refused for good
        with pytest.raises(Unavailable) as silent:
            await process.call(Unwrap(key="k", wrapped=b"w", aad=b"a"))
        assert silent.value.code == "pkcs11-worker"
    assert len(tried) == 2 and process.pid is None
    assert [path.name for path in tmp_path.iterdir()] == ["pin"]
    await process.close()
