"""``keymesh sim ask``: its file, its rates, its picture, what it prints and with which exit code it ends."""

from __future__ import annotations

import importlib.util
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from keymesh.app import ask_plot, cli
from keymesh.app.ask_faults import with_faults
from keymesh.app.config_ask import (
    EXAMPLE,
    KINDS,
    AskConfig,
    AskFault,
    AskLoad,
    AskRegion,
    AskTenant,
    AskTiming,
    load_ask,
)
from keymesh.app.config_faults import BadConfig
from keymesh.app.config_shape import fields_of
from keymesh.model.errors import Refused
from keymesh.sim.ask.figures import report
from keymesh.sim.ask.question import AT_ONCE, LASTING, OF_MESSAGES, Question
from keymesh.sim.ask.seen import Seen

DOCS = Path(__file__).resolve().parents[3] / "docs"
SMALL = """\
registry = ["us-east"]
hours = 0.2
seeds = 1
[regions.us-east]
[regions.us-west]
[tenants.acme]
home = "us-east"
regions = ["us-east", "us-west"]
[timing]
ttl_ms = 60_000
l1_probe_ms = 20_000
[load]
kill_switches_per_hour = 40
[faults.region-death]
per_hour = 10
lasts_ms = 30_000
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mesh.toml"
    path.write_text(text)
    return path


def read(tmp_path: Path, text: str) -> AskConfig:
    return load_ask(written(tmp_path, text))


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(["sim", "ask", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


# --- the file --------------------------------------------------------------------------------------------------------


def test_the_example_is_the_documents_and_says_what_it_says(tmp_path: Path) -> None:
    assert f"```toml\n{EXAMPLE}```" in (DOCS / "simulation.md").read_text()
    question = read(tmp_path, EXAMPLE).question()
    assert question.regions == ("eu-central", "us-east", "us-west") == question.voters
    assert question.edges == {"us-east": 2, "us-west": 1, "eu-central": 1}
    assert question.delays[frozenset(("us-east", "us-west"))] == 32
    assert (question.ttl_of("acme"), question.ttl_of("berlin")) == (900_000, 300_000)
    assert (question.tenants[1].standby, question.l1_ttl_ms) == (False, 900_000)
    assert question.rates["cut"].per_hour == 2
    assert question.rates["region-death"].lasts_ms == 600_000
    assert question.shares == {"loss": 0.001}


def test_every_field_and_kind_has_its_place_in_the_document() -> None:
    text = (DOCS / "simulation.md").read_text()
    section = text[text.index("## What are my real bounds?") :]
    rows = {
        name for names in re.findall(r"^\| (`.+?`) \|", section, re.MULTILINE) for name in re.findall(r"`(.+?)`", names)
    }
    shapes: tuple[Any, ...] = (AskConfig, AskRegion, AskTenant, AskTiming, AskLoad, AskFault)
    assert {field for shape in shapes for field in fields_of(shape)} - rows == set()
    assert {kind for kind in (*KINDS, *OF_MESSAGES) if f"`{kind}`" not in section} == set()


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    config = read(tmp_path, 'registry = ["a"]\n[regions.a]\n[tenants.t]\nhome = "a"\nregions = ["a"]\n')
    question = config.question()
    assert (question.ttl_ms, question.heartbeat_ms, question.edge_ttl_ms) == (3_600_000, 10_000, 300_000)
    assert (question.voters, question.hours, config.seeds) == (("a",), 1.0, 8)
    assert question.rates == {}


@pytest.mark.parametrize(
    ("old", "new", "field", "line", "reason"),
    [
        ("hours = 0.2", "hours = 0", "hours", 2, "0.1 to 168"),
        ("hours = 0.2", "hourz = 1", "hourz", 2, "did you mean hours?"),
        ("hours = 0.2", 'hours = "two"', "hours", 2, "expected a number"),
        ('registry = ["us-east"]', 'registry = ["mars"]', "registry[0]", 1, "one of the regions: us-east, us-west"),
        ('registry = ["us-east"]', "registry = []", "registry", 1, "one region, or two"),
        ('home = "us-east"', 'home = "us-south"', "tenants.acme.home", 7, "one of the tenant's regions"),
        ('home = "us-east"', 'home = "us-east"\nttl_ms = 5', "tenants.acme.ttl_ms", 8, "60000 to"),
        ('home = "us-east"', 'home = "us-east"\nttl_ms = 70000', "tenants.acme.ttl_ms", 8, "at most the mesh's, 60000"),
        ('home = "us-east"', 'home = "us-east"\nservices = ["A B"]', "tenants.acme.services[0]", 8, ""),
        ('home = "us-east"', 'home = "us-east"\nstandby = "no"', "tenants.acme.standby", 8, "one of allow, deny"),
        ("[regions.us-west]", "[regions.us-west]\nedges = 9", "regions.us-west.edges", 6, "0 to 8"),
        ("[regions.us-west]", '[regions."US West"]', 'regions."US West"', 5, "not a region's name"),
        (
            "[faults.region-death]",
            "[faults.meteor]",
            "faults.meteor",
            14,
            "no such kind; there are bit-rot, clock-back",
        ),
        ("per_hour = 10", "per_hour = -1", "faults.region-death.per_hour", 15, "0 to 60"),
        ("per_hour = 10", 'per_hour = "often"', "faults.region-death.per_hour", 15, "expected a number, got text"),
        ("[faults.region-death]", "[faults.reboot]", "faults.reboot.lasts_ms", 16, "over at once"),
        (
            "[timing]",
            '[latency_ms]\n"us-east mars" = 3\n[timing]',
            'latency_ms."us-east mars"',
            10,
            "two of the regions",
        ),
        ("[timing]", "[messages]\nloss = 0.7\n[timing]", "messages.loss", 10, "0 to 0.5"),
        ("[timing]", "[messages]\ngossip = 0.1\n[timing]", "messages.gossip", 10, "there are loss, duplicate"),
        ("ttl_ms = 60_000", "ttl_ms = 59_999", "timing.ttl_ms", 10, "60000 to"),
        ("hours = 0.2", "hours =", "", 2, "not TOML"),
        ("hours = 0.2", "voters = ['us-east', 'us-east']", "voters", 2, "each once"),
    ],
)
def test_a_mistake_is_told_with_field_line_and_reason(
    tmp_path: Path, old: str, new: str, field: str, line: int, reason: str
) -> None:
    assert old in SMALL
    with pytest.raises(BadConfig) as bad:
        read(tmp_path, SMALL.replace(old, new, 1))
    fault = bad.value.faults[0]
    assert (fault.field, fault.line) == (field, line)
    assert reason in fault.reason


# --- rates on the command line ---------------------------------------------------------------------------------------


def test_rates_on_the_command_line_go_over_the_files(tmp_path: Path) -> None:
    config = with_faults(read(tmp_path, SMALL), "cut=0.5/h:2m, region-death=0.1/h,kms-outage=1/h,loss=0.5%")
    assert config.faults["cut"] == AskFault(per_hour=0.5, lasts_ms=120_000)
    assert config.faults["region-death"] == AskFault(per_hour=0.1, lasts_ms=30_000)  # as long as the file says
    assert config.faults["kms-outage"] == AskFault(per_hour=1.0)
    assert config.messages == {"loss": 0.005}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("meteor=1/h", "no such kind; there are bit-rot"),
        ("cut", "cut=0.5/h"),
        ("cut=often", "so many per hour"),
        ("cut=1", "so many per hour"),
        ("cut=1/h:10", "so many per hour"),
        ("cut=61/h", "0 to 60"),
        ("cut=1/h:99d", "lasts_ms"),
        ("reboot=1/h:5m", "over at once"),
        ("loss=1/h", "a share of the messages"),
        ("loss=60%", "0 to 0.5"),
    ],
)
def test_a_bad_rate_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(Refused) as bad:
        with_faults(read(tmp_path, SMALL), text)
    assert bad.value.field == "faults"
    assert reason in bad.value.message


def test_every_kind_is_of_one_sort() -> None:
    kinds = (*LASTING, *AT_ONCE, *OF_MESSAGES)
    assert len(set(kinds)) == len(kinds)


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_answer_is_one_object_with_every_figure_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, SMALL)
    picture = tmp_path / "bounds.png"
    code, out, _ = run(capsys, "--config", str(path), "--procs", "1", "--json", "--plot", str(picture))
    value = json.loads(out)
    assert code == 0 and value["ok"]
    assert value["question"]["timing"]["l1_ttl_ms"] == 60_000
    assert value["question"]["seeds"] == [0, 0]
    assert set(value["figures"]) >= {"revocation_lag", "time_to_closed", "rto", "rpo", "availability"}
    lag = value["figures"]["revocation_lag"]
    assert lag["samples"] > 0 and 0 < lag["p50"] <= lag["p99"] <= lag["worst"]
    assert 0 < lag["within_1s"] <= 1
    assert lag["bound"] == {
        "name": "governance",
        "ms": 62_060,
        "counted_from": "commit",
        "judged": lag["samples"],
        "worst": lag["bound"]["worst"],
        "least_margin_ms": 62_060 - lag["bound"]["worst"],
        "exceeded": 0,
    }
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
    again, out_again, _ = run(capsys, "--config", str(path), "--procs", "1", "--json")
    assert (again, out_again) == (0, out)


def test_the_same_figures_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(
        capsys, "--config", str(written(tmp_path, SMALL)), "--procs", "1", "--faults", "region-death=0/h"
    )
    assert code == 0
    assert re.search(r"revocation lag +[0-9]+ .* governance 62.1s +0", out)
    assert re.search(r"rto +0 +nothing seen +nothing seen +nothing seen", out)
    assert "faults: none" in out


def test_a_bound_that_is_exceeded_ends_with_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Question, "lease_bound_ms", 0)
    monkeypatch.setattr(Question, "governance_bound_ms", lambda self, tenant: 3)
    code, out, _ = run(capsys, "--config", str(written(tmp_path, SMALL)), "--procs", "1")
    assert code == 1
    assert re.search(r"EXCEEDED edge_lag: \w+:acme\S* in us-\w+ at [0-9]+ ms of seed 0: [12] ms, bound 0 ms", out)


def test_the_example_is_printed_and_can_be_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--example")
    assert (code, out) == (0, EXAMPLE)
    tomllib.loads(out)
    path = written(tmp_path, out)
    code, out, _ = run(capsys, "--config", str(path), "--hours", "0.1", "--seeds", "1", "--procs", "1", "--json")
    assert code == 0
    assert json.loads(out)["virtual_hours"] == 0.1


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "--example prints one"),
        (("--config", "{config}", "--seeds", "0"), 2, "seeds"),
        (("--config", "{config}", "--hours", "999"), 2, "0.1 to 168"),
        (("--config", "{config}", "--procs", "0"), 2, "procs"),
        (("--config", "{config}", "--start", "-1"), 2, "start"),
        (("--config", "{config}", "--faults", "meteor=1/h"), 2, "there are bit-rot"),
        (("--config", "{config}", "--plot", "x.pdf"), 2, ".png or .svg"),
        (("--config", "{config}", "--plot", "/nowhere/x.png"), 2, "cannot be written"),
        (("--config", "/nowhere/mesh.toml"), 1, "cannot be read"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, said: str
) -> None:
    path = str(written(tmp_path, SMALL))
    got, out, err = run(capsys, *(word.replace("{config}", path) for word in words))
    assert got == code
    assert out == "" and said in err and err.count("\n") == 1


def test_without_matplotlib_the_line_to_install_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    path = written(tmp_path, SMALL)
    code, _, err = run(capsys, "--config", str(path), "--plot", str(tmp_path / "x.svg"))
    assert code == 3
    assert "pip install 'keymesh[plot]'" in err


# --- the picture -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_equal_figures_give_equal_pictures_even_of_nothing(tmp_path: Path, ending: str) -> None:

    config = read(tmp_path, SMALL)
    seen = [Seen(0, 720_000)]
    answer = report(config.question(), seen)
    first, second = tmp_path / f"a{ending}", tmp_path / f"b{ending}"
    ask_plot.draw(first, answer, seen)
    ask_plot.draw(second, answer, seen)
    assert first.read_bytes() == second.read_bytes()
    if ending == ".svg":
        assert b"<svg" in first.read_bytes()
