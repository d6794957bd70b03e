"""A real region under several seals: it boots when the first is gone, and keeps its list through kill -9."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.mesh.live import TIMING, until
from tests.servers.openbao import TRANSIT_RULES, OpenBaoServer, openbao
from tests.servers.softhsm import write_tokens

from keymesh.adapters.key_files import load_signing_key
from keymesh.adapters.receipt_file import verify_receipt_file
from keymesh.app import cli
from keymesh.app.admin_client import AdminClient
from keymesh.app.bootstrap import parse_regions
from keymesh.app.cli_mesh import start_mesh
from keymesh.app.layout import Layout, load_plan
from keymesh.app.servers.softhsm import SoftHsm
from keymesh.app.supervisor_client import ask_supervisor, stop_mesh
from keymesh.crypto.dsse import Ed25519Signer
from keymesh.model.errors import KeymeshError

pytestmark = pytest.mark.integration

R = "us-east"


class Region:
    """A mesh of one region, with a token and an OpenBao that its Core may use."""

    def __init__(self, layout: Layout, soft: SoftHsm, bao: OpenBaoServer) -> None:
        self.layout, self.soft, self.bao = layout, soft, bao

    async def do(self, *words: str, code: int = 0) -> Any:
        return await asyncio.to_thread(self._do, *words, code=code)

    def _do(self, *words: str, code: int) -> Any:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            line = [*words, "--dir", str(self.layout.root), "--json"]
            assert cli.main(line) == code, (words, said.getvalue())
        return json.loads(said.getvalue())

    async def seals(self) -> dict[str, str]:
        """Kind to state, in the order of trying."""
        return {seal["kind"]: seal["state"] for seal in (await self.do("region", "seals", R))["seals"]}

    async def ids(self) -> dict[str, str]:
        return {seal["id"]: seal["kind"] for seal in (await self.do("region", "seals", R))["seals"]}

    async def status(self) -> dict[str, Any]:
        async with AdminClient(self.layout, load_plan(self.layout)) as client:
            try:
                return dict(await client.call("GET", "/v1/status", target=R, timeout_s=5))
            except KeymeshError as away:
                return {"sealed": away.code}

    async def becomes(self, sealed: bool) -> None:
        async def done() -> bool:
            return (await self.status())["sealed"] is sealed

        await until(done, f"the region being {'sealed' if sealed else 'open'}")

    async def kill_core(self) -> None:
        """``kill -9``; returns once the next life answers."""
        answer = await asyncio.to_thread(ask_supervisor, self.layout, {"do": "status"})
        assert answer is not None
        before = answer["children"][f"core-{R}"]["pid"]
        await asyncio.to_thread(ask_supervisor, self.layout, {"do": "kill", "name": f"core-{R}"})

        async def next_life() -> bool:
            told = await asyncio.to_thread(ask_supervisor, self.layout, {"do": "status"})
            child = (told or {"children": {}})["children"].get(f"core-{R}", {})
            return bool(child.get("ready")) and child["pid"] != before

        await until(next_life, "another Core")


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    root = Path(tempfile.mkdtemp(prefix="km", dir="/tmp"))
    layout = Layout(root / "m")
    soft = SoftHsm(root / "hsm")
    soft.directory.mkdir()
    try:
        start_mesh(layout, regions=parse_regions(R), timing=TIMING, links=False, allow_unlocked_memory=True)
        write_tokens(layout.core(R), soft.init_token("keymesh"))
        ca = layout.ca.read_text(encoding="ascii")
        with openbao(tmp_path_factory.mktemp("openbao"), client_cas=(ca,)) as bao:
            bao.mount("transit", "transit")
            bao.transit_key("transit", "root")
            bao.policy("seal", TRANSIT_RULES)
            shutil.copy(bao.app_role_file("seal", "seal"), layout.core(R) / "openbao-seal.json")
            yield Region(layout, soft, bao)
    finally:
        with contextlib.suppress(Exception):
            stop_mesh(layout)
        shutil.rmtree(root, ignore_errors=True)


async def test_a_region_boots_when_its_first_seal_is_gone(region: Region, tmp_path: Path) -> None:
    pkcs11 = "pkcs11:token=keymesh;object=master"
    transit = f"openbao:{region.bao.url}/transit/root?ca={region.bao.directory / 'ca.pem'}&approle=seal"

    async def add(*words: str, code: int = 0) -> Any:
        return await region.do("region", "add-seal", R, "--kind", *words, code=code)

    await region.becomes(sealed=False)
    (file,) = await region.ids()
    await add("pkcs11", "--key", pkcs11, code=1)  # there is no such key yet
    await add("pkcs11", "--key", pkcs11, "--make-key")
    await add("openbao", "--key", transit)
    await add("openbao", "--key", pkcs11, code=1)
    await add("openbao", "--key", transit.replace("/root?", "/none?"), code=1)
    shares = (await add("shamir", "--shares", "2/3", "--out", str(tmp_path / "glass")))["files"]
    await add("shamir", "--shares", "2/3", "--out", str(tmp_path / "glass"), code=1)  # overwrites nothing
    assert all(Path(share).stat().st_mode & 0o777 == 0o600 for share in shares)
    await region.do("region", "remove-seal", R, file)
    assert not list(region.layout.core(R).glob("*.key"))
    assert await region.seals() == {"pkcs11": "opens", "openbao": "opens", "shamir": "waits-for-shares"}
    shown = await region.do("region", "show", R)
    assert (shown["sealed"], [s["kind"] for s in shown["seals"]]) == (False, ["pkcs11", "openbao", "shamir"])

    region.soft.tokens.rename(region.soft.directory / "away")  # the first is gone
    await region.kill_core()
    await region.becomes(sealed=False)
    assert await region.seals() == {"pkcs11": "unreachable", "openbao": "opens", "shamir": "waits-for-shares"}

    region.bao.kill()  # and the second: people's shares are left
    await region.kill_core()
    await region.becomes(sealed=True)

    async def both_tried() -> bool:
        return (await region.seals())["openbao"] == "unreachable"

    await until(both_tried, "both seals tried")
    unseal = ("region", "unseal", R)
    await region.do(*unseal, code=3)
    await region.do(*unseal, "--share", shares[0], code=1)
    await region.do(*unseal, "--share", shares[0], "--share", shares[2])
    await region.becomes(sealed=False)

    (region.soft.directory / "away").rename(region.soft.tokens)  # back; the other stays away
    await region.do("region", "seal", R)
    await region.becomes(sealed=True)
    await region.do(*unseal)
    await region.becomes(sealed=False)
    openbao_seal = next(name for name, kind in (await region.ids()).items() if kind == "openbao")
    await region.do("region", "remove-seal", R, openbao_seal)  # dead, and another opens
    region.bao.start()
    assert list((await region.ids()).values()) == ["pkcs11", "shamir"]


async def test_a_region_that_is_sealed_by_an_outage_opens_by_itself_when_that_ends(region: Region) -> None:
    region.soft.tokens.rename(region.soft.directory / "away")
    await region.kill_core()
    await region.becomes(sealed=True)
    (region.soft.directory / "away").rename(region.soft.tokens)
    await region.becomes(sealed=False)


async def test_kill_9_while_the_list_changes_loses_no_seal_that_was_acknowledged(region: Region) -> None:
    kept = set(await region.ids())
    gone: set[str] = set()
    chance = random.Random(11)
    for _ in range(3):
        async with AdminClient(region.layout, load_plan(region.layout)) as client:

            async def change(client: AdminClient = client) -> None:
                while True:
                    added = await client.call("POST", "/v1/seals", {"kind": "file"}, target=R)
                    kept.add(added["seal"])
                    doomed = added["seal"]
                    kept.discard(doomed)  # unknown from here until it is answered
                    await client.call("POST", "/v1/seals/remove", {"seal": doomed}, target=R)
                    gone.add(doomed)

            work = asyncio.create_task(change())
            await asyncio.sleep(chance.uniform(0.05, 0.4))
            await region.kill_core()
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        await region.becomes(sealed=False)
        now = set(await region.ids())
        assert kept <= now
        assert not gone & now
        for extra in now - kept:  # done, and the answer lost
            await region.do("region", "remove-seal", R, extra)
    assert gone

    core = region.layout.core(R)
    signer = Ed25519Signer(load_signing_key(core / "signing.pem"))
    plan = load_plan(region.layout)
    verify_receipt_file(
        core / "receipts.jsonl",
        origin=f"{plan.mesh}/{R}/{plan.regions[R].node}",
        keys={signer.key_id: signer.public_key},
    )
    pin = region.soft.pin_file("keymesh").read_bytes().strip()
    for path in region.layout.root.rglob("*"):
        if path.is_file():
            assert pin not in path.read_bytes(), path
