"""A Core's list of seals: tried in order, changed by the operator with a receipt, whole after a failure anywhere."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.app.test_processes import core, opened

from keymesh.access.roles import Role
from keymesh.adapters import receipt_file, seals
from keymesh.adapters.files import write_file
from keymesh.app import core_seal_changes, core_seals
from keymesh.app.config_seals import SealsConfig
from keymesh.app.core_app import CoreProcess
from keymesh.app.core_seals import RegionSeals
from keymesh.app.layout import ASSIGNED
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable

pytestmark = pytest.mark.usefixtures("template")

FILE = {"kind": "file"}


def ids(shown: Any) -> list[str]:
    return [seal["id"] for seal in shown["seals"]]


def receipts(process: CoreProcess) -> list[tuple[str, str, str, str]]:
    return [
        (r.receipt.action, r.receipt.outcome.value, r.receipt.actor, r.receipt.subject)
        for r in process.receipts.records()
    ]


def again(process: CoreProcess, config: SealsConfig | None = None) -> RegionSeals:
    """As after a restart of the process."""
    process.seal()
    process.seals = RegionSeals(process, config or SealsConfig())
    return process.seals


async def until(done: Callable[[], bool]) -> None:
    for _ in range(2_000):
        if done():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not in time")


async def started(process: CoreProcess) -> str:
    """The kid of the MasterKey that the region opened to."""
    await opened(process)
    return process.keyring.master.kid


async def test_seals_come_and_go_and_each_alone_opens_the_region() -> None:
    async with core() as (process, face):
        kid = await started(process)
        (first,) = ids(await face.ask("GET", "/v1/seals"))
        second = (await face.ask("POST", "/v1/seals", body=FILE))["seal"]
        shown = await face.ask("GET", "/v1/seals")
        assert ids(shown) == [first, second]
        assert [s["state"] for s in shown["seals"]] == ["opens", "opens"]
        (process.directory / f"{first}.key").unlink()  # the first seal is gone
        again(process)
        assert await started(process) == kid
        states = {s["id"]: (s["state"], s["reason"]) for s in (await face.ask("GET", "/v1/status"))["seals"]}
        assert states == {first: ("unreachable", "not-found"), second: ("opens", "")}
        left = await face.ask("POST", "/v1/seals/remove", body={"seal": first})
        assert ids(left) == [second]
        again(process)
        assert await started(process) == kid
        with pytest.raises(Refused) as last:
            await face.ask("POST", "/v1/seals/remove", body={"seal": second})
        assert last.value.code == "last-seal"
        operator = "spiffe://dev/admin/operator"
        assert receipts(process) == [
            ("seal.add", "done", operator, f"us-east/{second}"),
            ("seal.remove", "done", operator, f"us-east/{first}"),
        ]
        assert sorted(p.name for p in process.directory.glob("*.key")) == [f"{second}.key"]


async def test_the_configured_order_is_kept() -> None:
    async with core() as (process, face):
        await started(process)
        (first,) = ids(await face.ask("GET", "/v1/seals"))
        second = (await face.ask("POST", "/v1/seals", body=FILE))["seal"]
        third = (await face.ask("POST", "/v1/seals", body=FILE))["seal"]
        again(process, SealsConfig(order=(third,)))
        await started(process)
        assert ids(await face.ask("GET", "/v1/seals")) == [third, first, second]
        assert [s["state"] for s in process.seals.show()] == ["opens", "untried", "untried"]
        await process.seals.check()
        assert {s["state"] for s in process.seals.show()} == {"opens"}


async def test_a_seal_that_hangs_or_breaks_is_passed_over_within_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    async with core() as (process, face):
        kid = await started(process)
        (first,) = ids(await face.ask("GET", "/v1/seals"))
        second = (await face.ask("POST", "/v1/seals", body=FILE))["seal"]
        real = seals.SealTools.open

        async def hangs(self: Any, kid: str, seal: Any) -> Any:
            if seal.id == first:
                await asyncio.sleep(60)
            return await real(self, kid, seal)

        with monkeypatch.context() as patched:
            patched.setattr(seals.SealTools, "open", hangs)
            again(process, SealsConfig(deadline_ms=100))
            assert await started(process) == kid
        assert {s["id"]: (s["state"], s["reason"]) for s in process.seals.show()} == {
            first: ("unreachable", "deadline"),
            second: ("opens", ""),
        }
        (process.directory / f"{first}.key").unlink()
        (process.directory / f"{first}.key").mkdir()  # cannot be read at all
        again(process)
        assert await started(process) == kid
        assert process.seals.show()[0]["reason"] == "file"
        (process.directory / f"{first}.key").rmdir()
        write_file(process.directory / f"{first}.key", bytes(32))
        again(process)
        assert await started(process) == kid
        assert (process.seals.show()[0]["state"], process.seals.show()[0]["reason"]) == ("broken", "integrity")


async def test_shares_count_once_enough_of_them_came_back() -> None:
    async with core() as (process, face):
        kid = await started(process)
        (first,) = ids(await face.ask("GET", "/v1/seals"))
        asked = {"kind": "shamir", "threshold": 2, "shares": 3}
        lost = await face.ask("POST", "/v1/seals", body=asked)  # the answer never arrived
        made = await face.ask("POST", "/v1/seals", body=asked)
        assert ids(await face.ask("GET", "/v1/seals")) == [first]
        for seal, shares in (
            (lost["seal"], lost["shares"]),
            (made["seal"], lost["shares"]),
            (made["seal"], made["shares"][:1]),
            ("", made["shares"]),
            (made["seal"], made["shares"] * 6),
        ):
            with pytest.raises(KeymeshError):
                await face.ask("POST", "/v1/seals/confirm", body={"seal": seal, "shares": shares})
        assert ids(await face.ask("GET", "/v1/seals")) == [first]
        body = {"seal": made["seal"], "shares": made["shares"]}
        assert ids(await face.ask("POST", "/v1/seals/confirm", body=body)) == [first, made["seal"]]
        with pytest.raises(Refused):
            await face.ask("POST", "/v1/seals/confirm", body=body)
        (process.directory / f"{first}.key").unlink()
        again(process)
        assert not await process.seals.start()  # sealed, and up
        assert [s["state"] for s in process.seals.show()] == ["unreachable", "waits-for-shares"]
        with pytest.raises(Integrity):
            await face.ask("POST", "/v1/unseal", body={"shares": lost["shares"][:2]})
        with pytest.raises(Unavailable) as none:
            await face.ask("POST", "/v1/unseal", body={"shares": []})
        assert none.value.code == "no-seal-opens"
        path = process.directory / seals.MASTER_FILE
        good = path.read_bytes()
        path.write_text(json.dumps(json.loads(good) | {"tag": "0" * 64}))
        with pytest.raises(Integrity):
            await face.ask("POST", "/v1/unseal", body={"shares": made["shares"][1:]})
        path.write_bytes(good)
        assert ("region.unseal", "done") not in [entry[:2] for entry in receipts(process)]
        assert not process.keyring.has_master
        await face.ask("POST", "/v1/unseal", body={"shares": made["shares"][1:]})
        assert process.keyring.master.kid == kid
        assert receipts(process)[-1][:2] == ("region.unseal", "done")
        # The file's seal opens no more: with shares left it may go, and then the shares stay.
        assert ids(await face.ask("POST", "/v1/seals/remove", body={"seal": first})) == [made["seal"]]
        with pytest.raises(Refused):
            await face.ask("POST", "/v1/seals/remove", body={"seal": made["seal"]})
        wrongs: list[dict[str, Any]] = [
            {"threshold": 1},
            {"shares": 17},
            {"threshold": 4},
            {"parameters": {"a": 1}},
            {"make_key": True},
        ]
        for wrong in wrongs:
            with pytest.raises(Refused):
                await face.ask("POST", "/v1/seals", body=asked | wrong)


async def test_the_only_seal_that_opens_is_not_removed() -> None:
    async with core() as (process, face):
        await started(process)
        (first,) = ids(await face.ask("GET", "/v1/seals"))
        second = (await face.ask("POST", "/v1/seals", body=FILE))["seal"]
        key = (process.directory / f"{second}.key").read_bytes()
        (process.directory / f"{second}.key").unlink()
        with pytest.raises(Refused) as none:
            await face.ask("POST", "/v1/seals/remove", body={"seal": first})
        assert none.value.code == "no-seal-opens"
        write_file(process.directory / f"{second}.key", key)
        assert ids(await face.ask("POST", "/v1/seals/remove", body={"seal": first})) == [second]


async def test_nothing_changes_while_sealed_or_for_anyone_but_the_operator() -> None:
    async with core() as (process, face):
        await started(process)
        (first,) = ids(await face.ask("GET", "/v1/seals"))
        stranger = "spiffe://dev/admin/stranger"
        for path, body in (("/v1/seals", FILE), ("/v1/seals/remove", {"seal": first}), ("/v1/seal", {})):
            with pytest.raises(Refused) as denied:
                await face.ask("POST", path, stranger, body)
            assert denied.value.code == "denied"
        await face.ask("POST", "/v1/seal", body={})
        asked: list[tuple[str, dict[str, Any]]] = [
            ("/v1/seals", FILE),
            ("/v1/seals", {"kind": "shamir", "threshold": 2, "shares": 2}),
            ("/v1/seals/remove", {"seal": first}),
        ]
        for path, body in asked:
            with pytest.raises(Unavailable) as sealed:
                await face.ask("POST", path, body=body)
            assert sealed.value.code == "sealed"
        await face.ask("POST", "/v1/unseal", body={"shares": []})
        assert not process.seals.held
        bodies: list[dict[str, Any]] = [
            {"kind": "file", "parameters": {"key_file": "x.key"}},
            {"kind": "file", "shares": 3},
            {"kind": "file", "make_key": True},
            {"kind": "tpm"},
            {"kind": "openbao"},
            {"kind": "pkcs11", "parameters": {"key": "k"}},
        ]
        for body in bodies:
            with pytest.raises(Refused):
                await face.ask("POST", "/v1/seals", body=body)
        assert [(action, outcome) for action, outcome, _, _ in receipts(process)] == [
            ("region.seal", "done"),
            ("region.unseal", "pending"),
        ]
        assert len(list(process.directory.glob("*.key"))) == 1


async def test_too_many_seals_are_refused_and_leave_nothing() -> None:
    async with core() as (process, face):
        await started(process)
        for _ in range(7):
            await face.ask("POST", "/v1/seals", body=FILE)
        with pytest.raises(Refused):
            await face.ask("POST", "/v1/seals", body=FILE)
        assert len(list(process.directory.glob("*.key"))) == len(receipts(process)) + 1 == 8


async def test_a_failure_at_any_step_leaves_the_record_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> Any:
        raise OSError(28, "No space left on device")

    async with core() as (process, face):
        kid = await started(process)
        before = (process.directory / seals.MASTER_FILE).read_bytes()
        (first,) = ids(await face.ask("GET", "/v1/seals"))

        async def unchanged() -> None:
            assert (process.directory / seals.MASTER_FILE).read_bytes() == before
            assert [p.name for p in process.directory.glob("*.key")] == [f"{first}.key"]
            again(process)
            assert await started(process) == kid

        with monkeypatch.context() as patched:
            patched.setattr(core_seal_changes, "save_record", full)
            with pytest.raises(Unavailable):
                await face.ask("POST", "/v1/seals", body=FILE)
        await unchanged()
        assert [outcome for _, outcome, _, _ in receipts(process)] == ["done", "failed"]
        with monkeypatch.context() as patched:
            patched.setattr(receipt_file.FileReceiptLog, "_write", full)
            with pytest.raises(Unavailable):
                await face.ask("POST", "/v1/seals", body=FILE)
        await unchanged()
        assert len(receipts(process)) == 2

        async def broken(*_: object) -> Any:
            raise Integrity.opaque()

        with monkeypatch.context() as patched:
            patched.setattr(seals.SealTools, "open", broken)  # what was made does not open again
            with pytest.raises(Integrity):
                await face.ask("POST", "/v1/seals", body=FILE)
        await unchanged()
        assert len(receipts(process)) == 2


async def test_a_tampered_record_leaves_the_region_sealed_and_is_mended_by_the_right_one() -> None:
    async with core() as (process, face):
        kid = await started(process)
        await face.ask("POST", "/v1/seals", body=FILE)
        path = process.directory / seals.MASTER_FILE
        good = path.read_bytes()
        record = json.loads(good)
        bads: list[dict[str, Any]] = [
            record | {"seals": record["seals"][:1]},
            record | {"seals": record["seals"][::-1]},
            record | {"tag": "0" * 64},
            record | {"kid": "0" * 32},
            record | {"version": 3},
            {},
        ]
        for bad in bads:
            path.write_text(json.dumps(bad))
            with pytest.raises(KeymeshError):  # also while the region is open, before anything is made
                await face.ask("POST", "/v1/seals", body=FILE)
            again(process)
            assert not await process.seals.start()
            assert process.shell.state.sealed and not process.keyring.has_master
            path.write_bytes(good)
            assert await started(process) == kid
        assert len(list(process.directory.glob("*.key"))) == 2


async def test_a_lost_record_is_not_replaced_by_a_new_master_key() -> None:
    async with core() as (process, face):
        kid = await started(process)
        path = process.directory / seals.MASTER_FILE
        path.rename(process.directory / "elsewhere")
        again(process)
        assert not await process.seals.start()
        with pytest.raises(Refused):
            await face.ask("POST", "/v1/unseal", body={})
        assert not path.exists()
        (process.directory / "elsewhere").rename(path)
        assert await started(process) == kid


async def test_another_regions_record_and_key_open_nothing_here() -> None:
    async with core("us-west") as (west, _):
        await started(west)
        stolen = {p.name: p.read_bytes() for p in west.directory.iterdir() if p.suffix in (".key", ".json")}
    async with core() as (process, _):
        for name, content in stolen.items():
            write_file(process.directory / name, content)
        assert not await process.seals.start()
        assert [(s["state"], s["reason"]) for s in process.seals.show()] == [("broken", "integrity")]


async def test_a_first_seal_that_cannot_be_had_leaves_no_master_key() -> None:
    async with core() as (process, _):
        absent = "pkcs11:token=none;object=none"
        process.seals = RegionSeals(process, SealsConfig(initial=("file", absent)))
        assert not await process.seals.start()
        assert not (process.directory / seals.MASTER_FILE).exists()
        assert not list(process.directory.glob("*.key"))
        process.seals = RegionSeals(process, SealsConfig(initial=("file", "file")))
        await started(process)
        assert len(process.seals.show()) == 2


async def test_a_region_that_nobody_sealed_opens_again_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_seals, "RETRY_MIN_S", 0.01)
    async with core() as (process, face):
        kid = await started(process)
        (first,) = ids(await face.ask("GET", "/v1/seals"))
        key = process.directory / f"{first}.key"
        content = key.read_bytes()
        key.unlink()
        again(process, SealsConfig(check_every_ms=1_000))
        process.seals.held = False
        assert not await process.seals.start()
        keeper = asyncio.create_task(process.seals.keep())
        write_file(key, content)
        await until(lambda: not process.shell.state.sealed)
        assert process.keyring.master.kid == kid
        key.unlink()
        await until(lambda: process.seals.show()[0]["state"] != "opens")  # noticed while it is not needed
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)


async def test_what_the_operator_sealed_stays_sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_seals, "RETRY_MIN_S", 0.01)
    async with core() as (process, face):
        await started(process)
        await face.ask("POST", "/v1/seal", body={})
        tries = 0
        real = RegionSeals.start

        async def counted(self: RegionSeals, *, asked: bool = False) -> bool:
            nonlocal tries
            tries += 1
            return await real(self, asked=asked)

        monkeypatch.setattr(RegionSeals, "start", counted)
        keeper = asyncio.create_task(process.seals.keep())
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert (tries, process.shell.state.sealed) == (0, True)
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)


async def test_sealing_ends_an_opening_that_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    real = seals.SealTools.open
    async with core() as (process, face):
        await started(process)
        again(process)
        reached, goes_on = asyncio.Event(), asyncio.Event()

        async def slow(self: Any, kid: str, seal: Any) -> Any:
            reached.set()
            await goes_on.wait()
            return await real(self, kid, seal)

        monkeypatch.setattr(seals.SealTools, "open", slow)
        before = process.pages.slots_in_use
        opening = asyncio.create_task(process.seals.start())
        await reached.wait()
        await face.ask("POST", "/v1/seal", body={})
        goes_on.set()
        assert not await opening
        assert not await process.seals.start()  # nor one that comes later and nobody asked for
        assert not process.keyring.has_master
        assert process.pages.slots_in_use == before
        await face.ask("POST", "/v1/unseal", body={})
        assert process.keyring.has_master


@pytest.mark.parametrize("role", [Role.AUDITOR, Role.RECOVERY_OFFICER])
async def test_who_may_look_may_not_touch(monkeypatch: pytest.MonkeyPatch, role: Role) -> None:
    monkeypatch.setitem(ASSIGNED, "stranger", frozenset({role}))
    looks = "spiffe://dev/admin/stranger"
    async with core() as (process, face):
        await started(process)
        assert len(ids(await face.ask("GET", "/v1/seals", looks))) == 1
        for path in ("/v1/seals", "/v1/seals/confirm", "/v1/seals/remove", "/v1/seal", "/v1/unseal"):
            with pytest.raises(Refused) as denied:
                await face.ask("POST", path, looks, {})
            assert denied.value.code == "denied"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"order": ("a", "a")}, "order"),
        ({"order": tuple(map(str, range(9)))}, "order"),
        ({"initial": ()}, "initial"),
        ({"initial": ("file",) * 9}, "initial"),
        ({"initial": ("file", "tpm")}, "initial[1]"),
        ({"initial": ("shamir",)}, "initial[0]"),
        ({"deadline_ms": 99}, "deadline_ms"),
        ({"deadline_ms": 60_001}, "deadline_ms"),
        ({"check_every_ms": 999}, "check_every_ms"),
    ],
    ids=str,
)
def test_the_section_is_checked(change: dict[str, Any], field: str) -> None:
    SealsConfig().check()
    SealsConfig(initial=("openbao:x", "pkcs11:y"), tokens=()).check()
    with pytest.raises(Refused) as bad:
        SealsConfig(**change).check()
    assert bad.value.field == field
