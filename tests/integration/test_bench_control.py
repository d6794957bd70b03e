"""``keymesh bench control --json``: the promised fields on real servers, which it starts and ends itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from keymesh.adapters.etcd_http import Broken
from keymesh.app import bench_control
from keymesh.app.cli import main
from keymesh.app.config_endpoint import Endpoint
from keymesh.model.errors import Refused, Unavailable

pytestmark = pytest.mark.serial

WORDS = [sys.executable, "-m", "keymesh.app.cli", "bench", "control", "--json"]


def test_the_bench_measures_both_on_servers_of_its_own_() -> None:
    done = subprocess.run([*WORDS, "--seconds", "4"], capture_output=True, check=False, timeout=120)
    assert done.returncode in (0, 1), done.stderr
    figures = json.loads(done.stdout)
    assert figures["concurrency"] == 16
    assert figures["namespaces"] == 100
    assert figures["etcd_members"] == 3
    assert figures["commands"] > 50
    assert figures["puts"] > 50
    assert figures["commits"] < 102 + figures["commands"] + 16 * 8, "appends are grouped"
    assert figures["ratio"] == pytest.approx(figures["command_per_s"] / figures["put_per_s"], abs=0.01)
    assert figures["ratio"] > 0.1, "far from the promised 0.3, however busy the machine is"
    assert done.returncode == (0 if figures["ok"] else 1)
    assert figures["seconds"] < 60


def test_where_a_server_is_missing_it_says_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["bench", "control", "--json"]) == Refused("x", "x").exit_code
    assert "apt-get install -y etcd-server" in capsys.readouterr().out


class _Answers:
    def __init__(self, status: int | None) -> None:
        self.status = status

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        if self.status is None:
            raise Broken("cut")
        return self.status, b"{}"


@pytest.mark.parametrize("status", [None, 503])
async def test_a_bare_put_that_is_refused_or_cut_is_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int | None
) -> None:
    monkeypatch.setattr(bench_control, "client_context", lambda **_: None)
    (tmp_path / "ca.pem").write_bytes(b"")
    bare = bench_control.BarePuts(
        Endpoint(url="https://127.0.0.1:1", ca_file=str(tmp_path / "ca.pem"), cert_file="c.pem")
    )
    bare._connections = [_Answers(status)]  # type: ignore[list-item]
    with pytest.raises(Unavailable):
        await bare.run(0.01, bench_control.Tally())
