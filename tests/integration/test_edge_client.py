"""The library against a Core over real mTLS: leases, custody, failover, refusals, forged or replayed answers, forks."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.edge_core import L3, Pki, TestCore, connect_options, eventually

from keymesh.control.rows import ServiceRow
from keymesh.edge import Edge, EdgeTrust, SyncEdge
from keymesh.model.errors import Integrity, Refused, Unavailable

CONTEXT = {"table": "orders"}


@pytest.fixture(scope="module")
def mesh() -> Pki:
    return Pki()


@pytest.fixture
async def core(tmp_path: Path, mesh: Pki) -> AsyncIterator[TestCore]:
    core = TestCore(tmp_path, mesh)
    await core.start()
    yield core
    await core.stop()


async def test_mint_and_open_without_the_core(core: TestCore, tmp_path: Path) -> None:
    async with await Edge.connect(**connect_options(core, tmp_path)) as edge:
        created = await edge.create_key(CONTEXT, plaintext=True)
        await core.until("Hello")
        asked = sum(core.seen.values()) - core.seen["UsageReport"]
        assert await edge.decrypt_key(created.blob, CONTEXT) == created.plaintext
        made = await edge.create_keys(20, plaintext=True)
        assert await edge.decrypt_keys([m.blob for m in made]) == [m.plaintext for m in made]
        with pytest.raises(Integrity):
            await edge.decrypt_key(created.blob)
        assert sum(core.seen.values()) - core.seen["UsageReport"] == asked
        assert core.seen["LeaseRequest"] == 1
        status = edge.status()
        assert status["ready"]
        assert status["versions"] == [1, 2]
    with pytest.raises(Unavailable, match="closed"):
        await edge.create_key()


async def test_the_core_away_changes_nothing_until_the_deadline(core: TestCore, tmp_path: Path) -> None:
    core.ttl_ms = 1_500
    async with await Edge.connect(**connect_options(core, tmp_path)) as edge:
        created = await edge.create_key(plaintext=True)
        await core.stop()
        assert await edge.decrypt_key(created.blob) == created.plaintext
        await asyncio.sleep(1.7)
        with pytest.raises(Unavailable) as caught:
            await edge.decrypt_key(created.blob)
        assert caught.value.code == "expired"
        await core.start()
        await edge.wait_ready(10)
        assert await edge.decrypt_key(created.blob) == created.plaintext


async def test_refresh_comes_by_itself_and_keeps_serving(core: TestCore, tmp_path: Path) -> None:
    core.ttl_ms = 800
    async with await Edge.connect(**connect_options(core, tmp_path)) as edge:
        for _ in range(40):
            await edge.create_key()
            await asyncio.sleep(0.05)
        assert 3 <= core.seen["LeaseRequest"] <= 8


async def test_a_revocation_is_obeyed_acknowledged_and_unaffected_keys_come_back(
    core: TestCore, tmp_path: Path
) -> None:
    async with await Edge.connect(**connect_options(core, tmp_path)) as edge:
        old, core.versions = core.versions, [L3(3)]
        created = await edge.create_key()
        await core.until("Hello")
        core.revoke()
        await core.until_acked("lease-1")
        await edge.wait_ready(5)
        assert (await edge.create_key()).blob[2:18] == core.versions[0].kid
        with pytest.raises(Unavailable) as caught:
            await edge.decrypt_key(created.blob)
        assert caught.value.code == "unknown-key"
        assert created.blob[2:18] == old[-1].kid


async def test_a_version_made_elsewhere_just_after_the_lease_is_waited_for(core: TestCore, tmp_path: Path) -> None:
    """Another region's Edge mints under a version that came after our lease: the first open fetches it."""
    async with await Edge.connect(**connect_options(core, tmp_path)) as edge:
        newer = L3(3)
        core.versions.append(newer)
        plaintext = os.urandom(32)
        blob = core.blob(plaintext, newer)
        opened = await asyncio.gather(*(edge.decrypt_key(blob) for _ in range(20)))
        assert set(opened) == {plaintext}
        assert core.seen["LeaseRequest"] == 2, "one question for all of them"


async def test_an_answer_under_way_is_not_the_fresh_lease(core: TestCore, tmp_path: Path) -> None:
    core.ttl_ms, core.answer_late_s = 2_000, 0.4
    async with await Edge.connect(**connect_options(core, tmp_path)) as edge:
        await core.until("LeaseRequest", 2)
        newer = L3(3)
        core.versions.append(newer)
        plaintext = os.urandom(32)
        assert await edge.decrypt_key(core.blob(plaintext, newer)) == plaintext
        assert core.seen["LeaseRequest"] == 3


async def test_a_suspension_refuses_and_a_resume_brings_it_back(core: TestCore, tmp_path: Path) -> None:
    async with await Edge.connect(**connect_options(core, tmp_path)) as edge:
        created = await edge.create_key(plaintext=True)
        await core.until("Hello")
        core.refuse = "restricted"
        core.revoke()
        await core.until_acked("lease-1")
        await core.until("LeaseRequest", 2)
        await asyncio.sleep(0.05)
        with pytest.raises(Refused) as caught:
            await edge.decrypt_key(created.blob)
        assert caught.value.code == "restricted"
        core.refuse = None
        await eventually(lambda: edge.ready)
        assert await edge.decrypt_key(created.blob) == created.plaintext


async def test_a_refused_edge_that_waits_for_long_is_told_and_serves_at_once(core: TestCore, tmp_path: Path) -> None:
    core.retry_after_ms = 24_000
    core.refuse = "restricted"
    async with Edge.start(**{k: v for k, v in connect_options(core, tmp_path).items() if k != "timeout_s"}) as edge:
        await core.until("LeaseRequest")
        await core.until("Hello")
        await eventually(lambda: edge.hot.reason == "restricted")
        core.refuse = None
        for _ in range(3):
            core.announce()
        await eventually(lambda: edge.ready, within_s=2.0)
        assert core.seen["LeaseRequest"] == 2
        core.announce()
        await asyncio.sleep(0.3)
        assert core.seen["LeaseRequest"] == 2, "of no use to one that holds a lease"


async def test_a_core_that_tells_it_all_the_time_and_refuses_does_not_make_it_spin(
    core: TestCore, tmp_path: Path
) -> None:
    core.refuse = "closed"
    core.retry_after_ms = 24_000
    async with Edge.start(**{k: v for k, v in connect_options(core, tmp_path).items() if k != "timeout_s"}):
        await core.until("Hello")
        for _ in range(150):
            core.announce()
            await asyncio.sleep(0.02)
        assert core.seen["LeaseRequest"] <= 6


async def test_the_end_gives_every_lease_back(core: TestCore, tmp_path: Path) -> None:
    async with await Edge.connect(**connect_options(core, tmp_path)) as edge:
        await asyncio.sleep(1.1)
        with pytest.raises(Unavailable):
            await edge.decrypt_key(b"\x01\x02" + bytes(88))  # a kid that is new: a second lease takes its place
    assert core.returned == set(core.leases) == {"lease-1", "lease-2"}
    with pytest.raises(Unavailable):
        await edge.create_key()


async def test_a_core_that_is_gone_or_stuck_does_not_hold_up_the_end(core: TestCore, tmp_path: Path) -> None:
    edge = await Edge.connect(**connect_options(core, tmp_path))
    await edge.create_key()
    core.delay_s = 30.0
    begun = time.monotonic()
    await edge.close()
    assert time.monotonic() - begun < 2.5
    core.delay_s = 0.0
    edge = await Edge.connect(**connect_options(core, tmp_path))
    await core.stop()
    begun = time.monotonic()
    await edge.close()
    assert time.monotonic() - begun < 2.0


async def test_a_replayed_grant_for_another_nonce_is_not_used(core: TestCore, tmp_path: Path) -> None:
    first = await Edge.connect(**connect_options(core, tmp_path))
    await first.close()
    core.replay = core.last_grant
    with pytest.raises(Unavailable):
        await Edge.connect(**connect_options(core, tmp_path, timeout_s=1.0))


async def test_keys_that_are_not_what_their_kid_says_are_not_used(core: TestCore, tmp_path: Path) -> None:
    core.swap_keys = True
    with pytest.raises(Unavailable):
        await Edge.connect(**connect_options(core, tmp_path, timeout_s=1.0))


async def test_a_policy_of_another_registry_is_not_believed(core: TestCore, tmp_path: Path) -> None:
    other = EdgeTrust(mesh=core.trust.mesh, registry_keys=dict.fromkeys(core.trust.registry_keys, "00" * 32))
    with pytest.raises(Unavailable):
        await Edge.connect(**connect_options(core, tmp_path, trust=other, timeout_s=1.0))


async def test_a_rolled_back_policy_keeps_the_live_lease(core: TestCore, tmp_path: Path) -> None:
    core.ttl_ms = 3_000
    core.policy = ServiceRow(version=5, custody="leased", edge_ttl_ms=60_000)
    async with await Edge.connect(**connect_options(core, tmp_path)) as edge:
        core.policy = ServiceRow(version=4, custody="leased", edge_ttl_ms=60_000)
        await core.until("LeaseRequest", 2)
        await edge.create_key()
        assert edge.status()["policy_version"] == 5


async def test_custody_changes_without_a_restart_and_the_api_stays(core: TestCore, tmp_path: Path) -> None:
    core.ttl_ms = 1_000
    async with await Edge.connect(**connect_options(core, tmp_path)) as edge:
        created = await edge.create_key(CONTEXT, plaintext=True)
        core.policy = ServiceRow(version=2, custody="core-held", edge_ttl_ms=60_000)
        await eventually(lambda: edge.status()["custody"] == "core-held")
        assert await edge.decrypt_key(created.blob, CONTEXT) == created.plaintext
        again = await edge.create_keys(3, CONTEXT, plaintext=True)
        assert await edge.decrypt_keys([k.blob for k in again], CONTEXT) == [k.plaintext for k in again]
        assert core.seen["open"] == 2
        with pytest.raises(Integrity):
            await edge.decrypt_key(created.blob)
        with pytest.raises(Refused):
            await edge.decrypt_key(created.blob[:-1])
        with pytest.raises(Refused):
            await edge.create_key({"k": 1})  # type: ignore[dict-item]


async def test_budgets_hold_until_the_next_lease(core: TestCore, tmp_path: Path) -> None:
    core.policy = ServiceRow(version=1, custody="leased", edge_ttl_ms=60_000, mint_budget=5, open_budget=1)
    async with await Edge.connect(**connect_options(core, tmp_path)) as edge:
        made = await edge.create_keys(5)
        with pytest.raises(Unavailable) as caught:
            await edge.create_key()
        assert caught.value.code == "budget-spent"
        await edge.decrypt_key(made[0].blob)
        with pytest.raises(Unavailable):
            await edge.decrypt_key(made[0].blob)


async def test_usage_arrives_once_though_it_is_repeated(core: TestCore, tmp_path: Path) -> None:
    core.usage_answers = False
    async with await Edge.connect(**connect_options(core, tmp_path)) as edge:
        made = await edge.create_keys(7)
        await edge.decrypt_key(made[0].blob)
        await core.until("UsageReport", 2)
        core.usage_answers = True
        await eventually(lambda: core.usage)
        await edge.create_key()
    reports = core.usage.values()
    assert sum(r.minted for r in reports) == 8
    assert sum(r.opened for r in reports) == 1


async def test_the_second_core_takes_over(core: TestCore, tmp_path: Path, mesh: Pki) -> None:
    second = TestCore(tmp_path, mesh, node="n2")
    second.registry, second.versions, second.suite = core.registry, core.versions, core.suite
    await second.start()
    core.ttl_ms = 1_500
    try:
        async with await Edge.connect(**connect_options(core, tmp_path, second)) as edge:
            created = await edge.create_key(plaintext=True)
            await core.stop()
            async with asyncio.timeout(10):
                while not second.leases:
                    await edge.create_key()
                    await asyncio.sleep(0.05)
            assert await edge.decrypt_key(created.blob) == created.plaintext
            await second.until("Hello")
            second.revoke()
            await second.until_acked("lease-1")
    finally:
        await second.stop()


async def test_a_core_of_another_region_is_no_core(tmp_path: Path, mesh: Pki) -> None:
    foreign = TestCore(tmp_path, mesh, region="us")
    await foreign.start()
    try:
        with pytest.raises(Unavailable):
            await Edge.connect(**connect_options(foreign, tmp_path, timeout_s=1.0))
        assert not foreign.leases
    finally:
        await foreign.stop()


async def test_another_root_is_not_trusted(core: TestCore, tmp_path: Path) -> None:
    other = Pki().ca_file(tmp_path / "..")
    with pytest.raises(Unavailable):
        await Edge.connect(**connect_options(core, tmp_path, ca=other, timeout_s=1.0))
    assert not core.leases


async def test_bad_arguments_are_refused_by_name(core: TestCore, tmp_path: Path) -> None:
    options = connect_options(core, tmp_path)
    readable = tmp_path / "open.pem"
    readable.write_bytes(Path(options["identity"]).read_bytes())
    readable.chmod(0o644)
    junk = tmp_path / "junk.pem"
    junk.touch(0o600)
    changes: list[dict[str, Any]] = [
        {"cores": []},
        {"cores": ["http://127.0.0.1:1"]},
        {"identity": tmp_path / "none.pem"},
        {"identity": readable},
        {"identity": junk},
        {"trust": tmp_path / "none.json"},
        {"trust": EdgeTrust(mesh="other", registry_keys={})},
    ]
    for change in changes:
        with pytest.raises(Refused):
            await Edge.connect(**options | change)


async def test_a_stuck_core_costs_one_request_not_the_lease(core: TestCore, tmp_path: Path) -> None:
    core.ttl_ms = 2_000
    async with await Edge.connect(**connect_options(core, tmp_path)) as edge:
        core.delay_s = 0.4
        await core.until("LeaseRequest", 2)
        for _ in range(10):
            await edge.create_key()
            await asyncio.sleep(0.02)
        assert core.seen["LeaseRequest"] == 2, "single flight"


# --- the synchronous face ------------------------------------------------------------------------------------------


async def test_the_synchronous_face_in_threads(core: TestCore, tmp_path: Path) -> None:
    def work() -> None:
        with SyncEdge.connect(**connect_options(core, tmp_path)) as edge:
            created = edge.create_key(CONTEXT, plaintext=True)
            failed: list[BaseException] = []

            def use() -> None:
                try:
                    for _ in range(200):
                        made = edge.create_key(CONTEXT, plaintext=True)
                        assert edge.decrypt_key(made.blob, CONTEXT) == made.plaintext
                except BaseException as bad:
                    failed.append(bad)

            threads = [threading.Thread(target=use) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not failed
            assert edge.decrypt_keys([created.blob], CONTEXT) == [created.plaintext]
            assert len(edge.create_keys(4)) == 4
            assert edge.ready
        with pytest.raises(Unavailable):
            edge.create_key()

    await asyncio.to_thread(work)


async def test_core_held_works_synchronously_too(core: TestCore, tmp_path: Path) -> None:
    core.policy = ServiceRow(version=1, custody="core-held", edge_ttl_ms=60_000)

    def work() -> None:
        with SyncEdge.connect(**connect_options(core, tmp_path)) as edge:
            created = edge.create_key(CONTEXT, plaintext=True)
            assert edge.decrypt_key(created.blob, CONTEXT) == created.plaintext

    await asyncio.to_thread(work)
    assert core.seen["create"] == 1
    assert core.returned == {"lease-1"}


async def test_a_fork_holds_no_lease(core: TestCore, tmp_path: Path) -> None:
    def work() -> int:
        with SyncEdge.connect(**connect_options(core, tmp_path)) as edge:
            created = edge.create_key(plaintext=True)
            asked = core.seen["LeaseRequest"]
            child = os.fork()
            if child == 0:
                code = 0
                for use in (lambda: edge.create_key(), lambda: edge.decrypt_keys([created.blob])):
                    try:
                        use()
                        code = 1
                    except Unavailable as refused:
                        code = code or (0 if refused.code == "forked" else 2)
                os._exit(code)
            status = os.waitpid(child, 0)[1]
            assert edge.decrypt_key(created.blob) == created.plaintext, "the parent goes on"
            assert core.seen["LeaseRequest"] == asked
            assert not core.returned, "what the child holds is not its to give back"
            return os.waitstatus_to_exitcode(status)

    assert await asyncio.to_thread(work) == 0
