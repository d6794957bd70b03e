"""``keymesh seal`` and ``open`` as processes against an Edge host: whole files or none, pipes, cuts, flips, offline."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.integration.edge_core import MESH, Pki, TestCore, now

from keymesh.access.identity import parse_identity
from keymesh.adapters import pki
from keymesh.adapters.customer_kms import OwnerClient
from keymesh.app import customer_kms
from keymesh.app.layout import Layout, MeshPlan, RegionPlan, TimingPlan, save_plan
from keymesh.app.servers.ports import free_ports
from keymesh.crypto.aad import Level, Subject
from keymesh.crypto.chain import Chain, ChainBinding, ChainL2, ChainL3, chain_to_json
from keymesh.crypto.kid import kid_of
from keymesh.crypto.pages import KeyPages
from keymesh.crypto.wrap import seal_binding, seal_key
from keymesh.crypto.xaes import XaesKey
from keymesh.edge.sidecar import Sidecar
from keymesh.edge.sidecar_door import Door
from keymesh.model.ids import BindingId

MIB = 1024 * 1024


@dataclass
class Outcome:
    code: int
    out: bytes
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Desk:
    """A mesh directory with one region's Edge, enrolled for acme/files, and the CLI beside it."""

    def __init__(self, root: Path, core: TestCore) -> None:
        self.layout = Layout(root / "m")
        self.files = root / "files"
        self.core = core

    async def open(self) -> None:
        layout, core = self.layout, self.core
        self.files.mkdir()
        for directory in (layout.root, layout.pki, layout.admin, layout.edge("eu")):
            directory.mkdir(parents=True, exist_ok=True)
        layout.ca.write_bytes(core.mesh.root_pem)
        core.mesh.regions["mesh"] = pki.create_intermediate(core.mesh.root, None, now=now())
        core.mesh.regions[MESH] = core.mesh.regions["mesh"]
        core.mesh.identity_file(layout.admin / "operator.pem", f"spiffe://{MESH}/admin/operator")
        timing = TimingPlan(
            ttl_ms=60_000,
            heartbeat_ms=1_000,
            edge_ttl_ms=60_000,
            l1_probe_ms=1_000,
            l1_ttl_ms=60_000,
            snapshot_ms=1_000,
        )
        plan = MeshPlan(
            version=1,
            mesh=MESH,
            registry_region="eu",
            registry_port=free_ports(1)[0],
            regions={"eu": RegionPlan(domain="eu", failure_domain="eu", port=core.port)},
            timing=timing,
        )
        save_plan(layout, plan)
        self.sidecar = Sidecar(
            layout.edge("eu"),
            mesh=MESH,
            region="eu",
            core_urls=[core.url],
            ca_file=layout.ca,
            trust=core.trust,
            allow_unlocked_memory=True,
        )
        self.door = Door(self.sidecar)
        await self.door.open_unix(layout.edge_socket("eu"))
        csr = self.sidecar.request_identity("acme", "files")
        identity = parse_identity(self.sidecar.store.uri("acme", "files"), MESH)
        authority = core.mesh.regions["eu"]
        leaf = pki.issue_from_csr(authority, csr.encode(), identity=identity, now=now())
        chain = pki.certificates_pem([leaf, authority.certificate]).decode()
        await self.sidecar.install_certificate("acme", "files", chain)

    async def start(self, *words: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "keymesh.app.cli",
            words[0],
            "--dir",
            str(self.layout.root),
            *words[1:],
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.files,
        )

    async def run(self, *words: str, stdin: bytes = b"") -> Outcome:
        process = await self.start(*words)
        out, err = await process.communicate(stdin)
        assert process.returncode is not None
        return Outcome(process.returncode, out, err.decode())

    async def seal(self, *words: str, stdin: bytes = b"") -> Outcome:
        return await self.run("seal", "--tenant", "acme", "--service", "files", *words, stdin=stdin)

    def write(self, name: str, content: bytes) -> Path:
        path = self.files / name
        path.write_bytes(content)
        return path

    def names(self) -> list[str]:
        """Everything in the directory, hidden files too."""
        return sorted(path.name for path in self.files.iterdir())


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    core = TestCore(tmp_path, Pki())
    await core.start()
    desk = Desk(tmp_path, core)
    await desk.open()
    yield desk
    await desk.door.close()
    await core.stop()


async def test_there_and_back(desk: Desk) -> None:
    content = os.urandom(3 * MIB + 17)
    source = desk.write("report.pdf", content)
    source.chmod(0o640)
    sealed = await desk.seal("report.pdf", "--context", "case=7", "--json")
    assert sealed.code == 0, sealed.err
    assert sealed.json["files"][0]["bytes"] == len(content)
    made = desk.files / "report.pdf.sealed"
    assert content[:64] not in made.read_bytes()
    assert stat.S_IMODE(made.stat().st_mode) == 0o640
    source.unlink()
    opened = await desk.run("open", "report.pdf.sealed", "--json")
    assert opened.code == 0, opened.err
    assert opened.json["files"][0]["tenant"] == "acme"
    assert hashlib.sha256(source.read_bytes()).digest() == hashlib.sha256(content).digest()
    assert desk.names() == ["report.pdf", "report.pdf.sealed"]


async def test_each_file_has_a_key_of_its_own_and_goes_where_it_is_told(desk: Desk) -> None:
    desk.write("a", b"same")
    desk.write("b", b"same")
    (desk.files / "out").mkdir()
    assert (await desk.seal("a", "b", "-o", "out")).code == 0
    a, b = (desk.files / "out" / name for name in ("a.sealed", "b.sealed"))
    assert a.read_bytes()[40:130] != b.read_bytes()[40:130]
    assert (await desk.seal("a", "b", "-o", "one")).code == 2
    assert (await desk.seal("a", "-o", "one")).code == 0
    assert (await desk.run("open", "one", "-o", "back")).code == 0
    assert (desk.files / "back").read_bytes() == b"same"
    assert (await desk.run("open", "one")).code == 2, "no .sealed to strip"


async def test_nothing_is_overwritten_without_force(desk: Desk) -> None:
    desk.write("a", b"new")
    desk.write("a.sealed", b"precious")
    refused = await desk.seal("a")
    assert refused.code == 1
    assert "exists" in refused.err
    assert (desk.files / "a.sealed").read_bytes() == b"precious"
    assert (await desk.seal("a", "--force")).code == 0
    assert (await desk.run("open", "a.sealed")).code == 1
    assert (await desk.run("open", "a.sealed", "--force")).code == 0
    assert (desk.files / "a").read_bytes() == b"new"
    assert desk.names() == ["a", "a.sealed"]


async def test_pipes(desk: Desk) -> None:
    for content in (b"", os.urandom(2 * MIB)):
        sealed = await desk.seal("-", stdin=content)
        assert sealed.code == 0, sealed.err
        opened = await desk.run("open", "-", stdin=sealed.out)
        assert opened.code == 0, opened.err
        assert opened.out == content
    assert (await desk.seal("-", "--json", stdin=b"x")).code == 2


async def test_a_cut_stream_is_an_integrity_error(desk: Desk) -> None:
    sealed = (await desk.seal("-", stdin=os.urandom(3 * MIB))).out
    for cut in (0, 5, 12, 100, 2 * MIB + 300, -1):
        desk.write("f.sealed", sealed[:cut])
        opened = await desk.run("open", "f.sealed")
        assert opened.code == 4, opened.err
        assert desk.names() == ["f.sealed"], "no plaintext, no leftovers"
    opened = await desk.run("open", "-", stdin=sealed[:-1])
    assert opened.code == 4


async def test_changed_reordered_and_repeated_chunks_are_noticed(desk: Desk) -> None:
    content = os.urandom(4 * MIB)
    sealed = (await desk.seal("-", stdin=content)).out
    chunk = MIB + 16
    head = len(sealed) - 4 * chunk
    chunks = [sealed[head + n * chunk : head + (n + 1) * chunk] for n in range(4)]
    flipped = bytearray(sealed)
    flipped[-1] ^= 1
    bad = {
        "flip": bytes(flipped),
        "swap": sealed[:head] + chunks[1] + chunks[0] + chunks[2] + chunks[3],
        "drop": sealed[:head] + chunks[0] + chunks[2] + chunks[3],
        "twice": sealed + sealed,
    }
    for name, raw in bad.items():
        desk.write("f.sealed", raw)
        opened = await desk.run("open", "f.sealed")
        assert opened.code == 4, name
        assert desk.names() == ["f.sealed"]


async def test_what_is_no_sealed_file_is_refused(desk: Desk) -> None:
    for content in (b"KMSEALEX\x01" + bytes(100), b"short"):
        desk.write("f.sealed", content)
        opened = await desk.run("open", "f.sealed")
        assert opened.code == 1
        assert opened.err == "error: f.sealed: file: not a sealed file [bad-field]\n"
    (desk.files / "d.sealed").mkdir()
    assert (await desk.run("open", "d.sealed")).code == 1
    assert (await desk.run("open", "none.sealed")).code == 1
    assert (await desk.seal("none")).code == 1
    assert desk.names() == ["d.sealed", "f.sealed"]


async def test_a_changed_head_is_never_worth_another_try(desk: Desk) -> None:
    """A script that retries on 3 must not loop on a file that was changed."""
    sealed = (await desk.seal("-", stdin=b"mine")).out
    blob = sealed.index(b"files") + len(b"files") + 4
    said = {}
    for at in (8, 9, 14, 22, blob, blob + 1, blob + 2, blob + 20, blob + 50, blob + 90, len(sealed) - 1):
        flipped = bytearray(sealed)
        flipped[at] ^= 1
        desk.write("f.sealed", bytes(flipped))
        opened = await desk.run("open", "--socket", str(desk.layout.edge_socket("eu")), "f.sealed")
        assert opened.code == 4, (at, opened.err)
        assert opened.err.startswith("error: f.sealed: "), "the file has a name"
        said[at - blob] = opened.err
        assert desk.names() == ["f.sealed"]
    assert said[2] == said[20] == said[50], "a failed unwrap is one answer"
    flipped = bytearray(sealed)
    flipped[blob + 2] ^= 1
    desk.write("f.sealed", bytes(flipped))
    assert (await desk.run("open", "f.sealed")).err == said[2], "through the mesh's directory as through the socket"


async def test_of_several_files_what_was_done_is_told_and_what_was_not(desk: Desk) -> None:
    for name in ("m1", "m2"):
        desk.write(name, b"x")
    stopped = await desk.seal("m1", "zz", "m2", "--json")
    assert stopped.code == 1
    assert [one["output"] for one in stopped.json["files"]] == ["m1.sealed"]
    assert (stopped.json["ok"], stopped.json["failed"], stopped.json["not_tried"]) == (False, "zz", ["m2"])
    assert "zz" in stopped.json["error"]["message"]
    told = (await desk.seal("m1", "zz", "m2", "--force")).err.splitlines()
    assert told[0].startswith("sealed m1 -> m1.sealed (1 bytes")
    assert told[1:] == ["error: No such file or directory: zz [file]", "not tried: m2"]
    refused = await desk.seal("m2", "-o", "no/such/x")
    assert (refused.code, "no/such/x cannot be written" in refused.err) == (1, True), refused.err


async def test_usage(desk: Desk) -> None:
    desk.write("a", b"x")
    assert (await desk.run("seal", "a")).code == 2
    for words in (("--context", "k"), ("--context", "k=1", "--context", "k=2")):
        assert (await desk.seal("a", *words)).code == 2
    assert (await desk.seal("a", "--region", "us")).code == 1
    assert (await desk.run("seal", "--tenant", "A!", "--service", "files", "a")).code == 2
    assert desk.names() == ["a"]


async def test_a_suspended_service_is_refused_and_leaves_nothing(desk: Desk) -> None:
    desk.write("a", b"x")
    await desk.core.until("Hello")
    desk.core.refuse = "restricted"
    desk.core.revoke(*desk.core.leases)
    await desk.core.until("LeaseRequest", 2)
    refused = await desk.seal("a", "--json")
    assert refused.code == 1
    assert refused.json["error"]["code"] == "restricted"
    assert desk.names() == ["a"]


async def test_an_edge_that_is_away_is_unavailable(desk: Desk) -> None:
    desk.write("a", b"x")
    await desk.door.close()
    assert (await desk.seal("a")).code == 3


async def test_sigterm_leaves_neither_a_file_nor_a_leftover(desk: Desk) -> None:
    desk.write("big.sealed", (await desk.seal("-", stdin=os.urandom(2 * MIB))).out)
    process = await desk.start("open", "-", "-o", "out")
    assert process.stdin is not None
    process.stdin.write((desk.files / "big.sealed").read_bytes()[: MIB + 4096])
    await process.stdin.drain()
    async with asyncio.timeout(10):
        while desk.names() == ["big.sealed"]:  # noqa: ASYNC110 - another process makes it
            await asyncio.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    await process.communicate()
    assert process.returncode == 143
    assert desk.names() == ["big.sealed"]


async def test_offline_by_the_customers_own_key(desk: Desk, tmp_path: Path) -> None:
    sealed = (await desk.seal("-", "--context", "a=b", stdin=b"mine")).out
    desk.write("f.sealed", sealed)
    await desk.door.close()
    await desk.core.stop()
    async with customer_kms.running(tmp_path / "kms", {"eu": 0}):
        async with OwnerClient.open(tmp_path / "kms") as owner:
            await owner.create("root")
            chain = await export(desk.core, owner)
            desk.write("acme.chain", chain)
            l1 = f"kms:{tmp_path / 'kms'}#root"
            words = ("open", "f.sealed", "-o", "-", "--offline", "--chain", "acme.chain", "--l1")
            opened = await desk.run(*words, l1)
            assert opened.code == 0, opened.err
            assert opened.out == b"mine"
            url = min(owner.replicas.values()) + "/keys/root"
            assert (await desk.run(*words, url, "--l1-credentials", str(tmp_path / "kms"))).out == b"mine"
            assert (await desk.run(*words, url)).code == 1, "an address alone says not whom to trust"
            assert (await desk.run("open", "f.sealed", "-o", "-", "--offline")).code == 2
            await owner.create("other")
            assert (await desk.run(*words, f"kms:{tmp_path / 'kms'}#other")).code == 4
            await owner.disable("root")
            refused = await desk.run(*words, l1)
            assert refused.code == 1
            assert refused.out == b""
            await owner.enable("root")
            desk.write("acme.chain", chain.replace(b'"acme"', b'"acne"'))
            assert (await desk.run(*words, l1)).code == 1
    assert (await desk.run(*words, l1)).code in (1, 3)


async def export(core: TestCore, owner: OwnerClient) -> bytes:
    """What ``tenant export`` writes, for the counterpart Core's newest key."""
    pages = KeyPages(allow_unlocked=True)
    l2, l3 = os.urandom(32), core.versions[-1]
    e = os.urandom(32)
    l2_kid = kid_of(l2)
    above = Subject(Level.L2, "acme", "eu", "l2", 1, l2_kid)
    below = Subject(Level.L3, "acme", "eu", "files", l3.version, l3.kid)
    binding = seal_binding(
        XaesKey(e), BindingId("b1"), await owner.wrap("root", e), above, pages.put(bytearray(l2)), os.urandom(24)
    )
    wrapped = seal_key(XaesKey(l2), l2_kid, below, pages.put(bytearray(l3.key)), os.urandom(24))
    chain = Chain(
        mesh=MESH,
        tenant="acme",
        domain="eu",
        bindings=(ChainBinding(id="b1", provider="keymesh-kms", descriptor={}),),
        l2=(ChainL2(kid=l2_kid.hex(), version=1, binding_id="b1", blob=binding),),
        l3=(ChainL3(kid=l3.kid.hex(), version=l3.version, service="files", parent_kid=l2_kid.hex(), blob=wrapped),),
    )
    return chain_to_json(chain)
