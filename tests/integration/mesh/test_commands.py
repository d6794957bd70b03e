"""Every command against a running mesh: JSON that parses, words for people, documented exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import time
from pathlib import Path

import pytest
from tests.integration.mesh.live import EU, FILES, HOME, MAIL, OTHER, US, LiveMesh, keymesh, until

from keymesh.app import cli
from keymesh.app.cli_service import change_policy
from keymesh.app.layout import Layout
from keymesh.model.errors import Refused


def human(layout: Layout, *words: str) -> str:
    """What a person sees on standard output; the command must succeed."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert cli.main([*words, "--dir", str(layout.root)]) == 0, words
    return said.getvalue()


READS = (
    (("status",), "processes"),
    (("tenant", "list"), "tenants"),
    (("tenant", "show", US), "bindings"),
    (("service", "list"), "services"),
    (("service", "list", "--tenant", US), "services"),
    (("service", "show", FILES, "--tenant", US), "wrapping"),
    (("key", "list"), "keys"),
    (("key", "list", "--tenant", EU), "keys"),
    (("key", "show", f"key:{US}/{FILES}@1"), "keys"),
    (("key", "show", f"tenant:{US}"), "keys"),
    (("region", "list"), "regions"),
    (("region", "show", "eu-west"), "in_sync"),
    (("pki", "show"), "certificates"),
)


@pytest.mark.parametrize(("words", "field"), READS, ids=[" ".join(words) for words, _ in READS])
async def test_reads_are_json_for_machines_and_text_for_people(
    mesh: LiveMesh, words: tuple[str, ...], field: str
) -> None:
    assert field in await mesh.cli(*words)
    shown = await asyncio.to_thread(human, mesh.layout, *words)
    assert shown.strip()
    with pytest.raises(ValueError):
        json.loads(shown)


async def test_status_in_a_process_of_its_own(mesh: LiveMesh) -> None:
    done = await asyncio.to_thread(keymesh, "status", "--dir", mesh.layout.root, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    shown = json.loads(done.stdout)
    assert set(shown["regions"]) == set(mesh.plan.regions)
    assert {t["mode"] for r in shown["regions"].values() for n, t in r["tenants"].items() if n in HOME} == {"synced"}
    assert all(region["drift"] == [] for region in shown["registry"]["regions"].values())
    done = await asyncio.to_thread(keymesh, "tenant", "show", "nosuch", "--dir", mesh.layout.root)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")


REFUSED = (
    ("tenant", "show", "nosuch"),
    ("tenant", "show", "No Such"),
    ("tenant", "create", US, "--home", "us-east"),
    ("tenant", "create", "mesh", "--home", "us-east"),
    ("tenant", "create", "x" * 64, "--home", "us-east"),
    ("tenant", "create", "newone", "--home", "mars"),
    ("tenant", "create", "newone", "--home", "us-east", "--regions", "us-west"),
    ("tenant", "create", "newone", "--home", "us-east", "--regions", "us-east,eu-west"),
    ("tenant", "create", "newone", "--home", "us-east", "--ttl", "1ms"),
    ("tenant", "create", "newone", "--home", "us-east", "--l1", "http://169.254.169.254/keys/x"),
    ("tenant", "create", "newone", "--home", "us-east", "--l1", "kms:/nonexistent#key"),
    ("tenant", "create", "newone", "--home", "us-east", "--l1", "file:///etc/passwd"),
    ("tenant", "switch-l1", US, "--l1", "https://127.0.0.1:1/keys/x"),
    ("tenant", "switch-l1", "nosuch", "--l1", "kms:/nonexistent#key"),
    ("tenant", "export", "nosuch"),
    ("service", "show", "nosuch", "--tenant", US),
    ("service", "show", FILES, "--tenant", "nosuch"),
    ("service", "create", FILES, "--tenant", US),
    ("service", "create", "s1", "--tenant", "nosuch"),
    ("service", "create", "s1", "--tenant", US, "--mint-budget", "-1"),
    ("service", "set", FILES, "--tenant", US),
    ("service", "set", f"{US}/nosuch", "--edge-ttl", "1m"),
    ("service", "set", f"nosuch/{FILES}", "--edge-ttl", "1m"),
    ("service", "set", f"{US}/{FILES}", "--mint-budget", "-1"),
    ("key", "show", "nonsense"),
    ("key", "show", f"key:{US}/{FILES}@99"),
    ("key", "show", "mesh"),
    ("key", "list", "--tenant", "nosuch"),
    ("key", "rotate", f"key:{US}/{FILES}@1"),
    ("key", "rotate", f"service:{US}/nosuch"),
    ("key", "rotate", "region:eu-west"),
    ("key", "rewrap", f"service:{US}/nosuch"),
    ("key", "rewrap", "mesh"),
    ("region", "show", "mars"),
    ("region", "rotate-ivk", "mars"),
    ("suspend", "tenant:nosuch"),
    ("suspend", "region:mars", "--approve-key", "officer-2"),
    ("suspend", "mesh"),
    ("resume", f"tenant:{US}"),
    ("resume", "tenant:nosuch"),
    ("revoke", "tenant:nosuch"),
    ("verify", "/nonexistent"),
    ("verify", "/"),
    ("pki", "renew", "nobody"),
    ("pki", "show", "/nonexistent"),
    ("seal", "/nonexistent", "--tenant", US, "--service", FILES),
    ("open", "/nonexistent.sealed"),
    ("customer-kms", "status", "nosuch"),
)


MALFORMED = (
    ("service", "create", "Bad_Name", "--tenant", US),
    ("service", "create", "s1", "--tenant", US, "--edge-ttl", "2h"),
    ("suspend", "nonsense"),
    ("suspend", "tenant:"),
    ("suspend", f"key:{US}/{FILES}@0"),
    ("suspend", f"key:{US}/{FILES}@01"),
)
MISTAKES = [*((words, 1) for words in REFUSED), *((words, 2) for words in MALFORMED)]


@pytest.mark.parametrize(("words", "code"), MISTAKES, ids=[" ".join(words)[:60] for words, _ in MISTAKES])
async def test_mistakes_are_one_line_and_an_exit_code(
    mesh: LiveMesh, words: tuple[str, ...], code: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = [str(mesh.layout.keys / "officer-2.pem") if w == "officer-2" else w for w in words]
    directory = mesh.layout.customer_kms if words[0] == "customer-kms" else mesh.layout.root
    if words[:2] == ("tenant", "export"):
        line += ["-o", str(tmp_path / "out")]
    ended = await asyncio.to_thread(cli.main, [*line, "--dir", str(directory)])
    said = capsys.readouterr()
    assert ended == code, said
    assert said.err.startswith("error: ") and "Traceback" not in said.err
    assert said.out == ""
    assert not (tmp_path / "out").exists()
    if words[0] not in ("seal", "open", "customer-kms"):
        refused = await mesh.cli(*line, code=code)
        assert refused["ok"] is False and refused["error"]["message"]


async def test_a_services_policy_is_changed_and_no_change_lost(mesh: LiveMesh) -> None:
    name = f"tuned-{time.time_ns() % 10**9}"
    made = await mesh.cli("service", "create", f"{US}/{name}", "--edge-ttl", "2s", "--mint-budget", "7")
    changed = await mesh.cli("service", "set", f"{US}/{name}", "--edge-ttl", "1500ms", "--open-budget", "9")
    assert changed["version"] == made["version"] + 1 and changed["index"] >= changed["command"]["index"]
    policy = ("custody", "edge_ttl_ms", "mint_budget", "open_budget")
    assert [changed[field] for field in policy] == ["leased", 1_500, 7, 9]  # what is not named stays
    same = await mesh.cli("service", "set", f"{US}/{name}", "--mint-budget", "7")
    assert (same["command"], same["version"]) == (None, changed["version"])
    held = await mesh.cli("service", "set", f"{US}/{name}", "--custody", "core-held", "--mint-budget", "none")
    assert [held[field] for field in policy] == ["core-held", 1_500, None, 9]

    with pytest.raises(Refused) as overtaken:  # read before the last change
        await change_policy(mesh.client, changed, {"edge_ttl_ms": 3_000})
    assert overtaken.value.code == "conflict"
    assert f"{US}/{name}" in overtaken.value.message and "version 2" in overtaken.value.message
    shown = await mesh.cli("service", "show", f"{US}/{name}")
    assert (shown["version"], shown["edge_ttl_ms"]) == (held["version"], 1_500)


async def test_rotate_rewrap_and_the_internal_keys(mesh: LiveMesh, tmp_path: Path) -> None:
    """Blobs of before open after every change of what is above them, in both regions."""
    here, away = await mesh.doors(US, MAIL)
    blob, key = await here.mint()
    l2 = await mesh.cli("key", "rotate", f"tenant:{US}")
    assert l2["key"] == "l2" and l2["version"] >= 2
    wrapped = await mesh.cli("key", "rewrap", f"tenant:{US}")
    assert {k["parent"] for k in wrapped["keys"]} == {wrapped["parent"]}
    l3 = await mesh.cli("key", "rotate", f"service:{US}/{MAIL}")
    for region in (HOME[US], OTHER[US]):
        before = (await mesh.cli("region", "show", region))["ivk_generation"]
        assert (await mesh.cli("region", "rotate-ivk", region))["ivk_generation"] == before + 1
    keys = (await mesh.cli("key", "list", "--tenant", US))["keys"]
    assert [k["version"] for k in keys if k["key"] == f"l3/{MAIL}" and k["wrapping"]] == [l3["version"]]
    await mesh.settled()
    for door in (here, away):
        assert await door.open(blob) == key
    for name in ("core-us-east", "core-us-west"):  # from cold, under the new keys all the way down
        mesh.kill(name)
    await mesh.settled()

    async def open_again() -> bool:
        return not await here.refusal(blob) and not await away.refusal(blob)

    await until(open_again, "opening after a cold start")
    assert await here.open(blob) == await away.open(blob) == key


async def test_certificates_are_renewed_while_everything_runs(mesh: LiveMesh) -> None:
    door = await mesh.door("us-west", US)
    blob, key = await door.mint()
    shown = {c["role"]: c for c in (await mesh.cli("pki", "show"))["certificates"]}
    for role in ("operator", "registry", "core-us-west"):
        renewed = await mesh.cli("pki", "renew", role)
        assert renewed["fingerprint"] not in json.dumps(shown[role])
    await mesh.settled()
    assert await door.open(blob) == key
    assert (await mesh.cli("status"))["registry"]["reachable"]


async def test_files_through_the_mesh_and_without_it(mesh: LiveMesh, tmp_path: Path) -> None:
    plain = bytes(range(256)) * 700
    file = tmp_path / "report.bin"
    file.write_bytes(plain)
    common = ("--dir", str(mesh.layout.root))
    seal = ["seal", str(file), "--tenant", US, "--service", FILES, *common]
    assert await asyncio.to_thread(cli.main, seal) == 0
    sealed = tmp_path / "report.bin.sealed"
    assert plain[:64] not in sealed.read_bytes()
    assert await asyncio.to_thread(cli.main, seal) == 1  # nothing is overwritten
    file.unlink()
    assert await asyncio.to_thread(cli.main, ["open", str(sealed), "--region", OTHER[US], *common]) == 0
    assert file.read_bytes() == plain
    file.unlink()
    await mesh.cli("tenant", "export", US, "-o", tmp_path / "c.chain")
    tenant = await mesh.cli("tenant", "show", US)
    offline = ["open", str(sealed), "--offline", "--chain", str(tmp_path / "c.chain")]
    for l1 in (f"kms:{mesh.layout.customer_kms}#{US}", tenant["bindings"][-1]["url"]):
        assert await asyncio.to_thread(cli.main, [*offline, "--l1", l1, *common]) == 0
        assert file.read_bytes() == plain
        file.unlink()
    damaged = bytearray(sealed.read_bytes())
    for cut in (damaged[:-1], damaged[: len(damaged) // 2], damaged[:40], damaged + b"x", flip(damaged)):
        sealed.write_bytes(bytes(cut))
        assert await asyncio.to_thread(cli.main, ["open", str(sealed), *common]) in (1, 4)
        assert not file.exists()


def flip(data: bytearray) -> bytearray:
    out = bytearray(data)
    out[len(out) // 2] ^= 1
    return out


async def test_the_customers_own_commands(mesh: LiveMesh) -> None:
    kms = ("--dir", str(mesh.layout.customer_kms))
    assert "Traceback" not in (await asyncio.to_thread(keymesh, "customer-kms", "status", EU, *kms, "--json")).stderr
    for words, enabled in ((("disable", EU), False), (("enable", EU), True), (("status", EU), True)):
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assert await asyncio.to_thread(cli.main, ["customer-kms", *words, *kms, "--json"]) == 0
        assert json.loads(said.getvalue())["enabled"] is enabled


async def test_exit_code_3_where_nobody_answers(mesh: LiveMesh, tmp_path: Path) -> None:
    await mesh.hold("registry")
    for words in (
        ("tenant", "list"),
        ("key", "rotate", f"service:{US}/{MAIL}"),
        ("region", "list"),
        ("tenant", "export", US, "-o", str(tmp_path / "x")),
        ("status",),
    ):
        shown = await mesh.cli(*words, code=3)
        assert shown.get("ok") is False or shown["registry"]["reachable"] is False
