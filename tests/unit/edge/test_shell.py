"""The shell turns a deadline into readings of the raw clocks: the hot path and the machine agree to the millisecond."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.edge.world import POLICY, PUBLIC_KEY, SUITE, Clocks, config, counting_entropy, key_bytes, kid

from keymesh.crypto.dsse import key_id
from keymesh.crypto.pages import KeyPages
from keymesh.edge.client import Edge
from keymesh.edge.client_farewell import LAST_USAGE_S, RETURN_S
from keymesh.edge.client_shell import NOTES_MAX, EdgeShell, addresses
from keymesh.edge.client_transport import PROBLEM_MAX_BYTES, GrantedKeys, raise_problem
from keymesh.edge.snapshot import KeyWanted
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable
from keymesh.orbital.edge_messages import (
    LeasedVersion,
    LeaseGrant,
    LeaseRequest,
    LeaseReturned,
    LeaseReturnedMessage,
    UsageRecorded,
    UsageReport,
)

TTL_MS = 5_000


class OneGrant:
    """Answers the first request with a lease of 5 s, and no other."""

    def __init__(self) -> None:
        self.requests = 0
        self.given: list[GrantedKeys] = []

    async def post(self, core: str, message: Any) -> Any:
        if not isinstance(message, LeaseRequest):
            return None
        self.requests += 1
        if self.requests > 1:
            raise Unavailable("unreachable", "gone")
        grant = LeaseGrant(
            lease_id="l1",
            nonce=message.nonce,
            tenant="acme",
            service="files",
            ttl_ms=TTL_MS,
            versions=(LeasedVersion(kid=kid("v1"), version=1, may_wrap=True),),
            policy=POLICY,
            policy_entry=None,
        )
        self.given.append(GrantedKeys(grant, (KeyPages(allow_unlocked=True).put(bytearray(key_bytes("v1"))),)))
        return self.given[-1]

    async def ready(self, core: str) -> None:
        raise Unavailable("unreachable", "gone")

    @asynccontextmanager
    async def stream(self, core: str) -> AsyncIterator[AsyncIterator[Any]]:
        raise Unavailable("unreachable", "no stream")
        yield


async def leased(clocks: Clocks, transport: OneGrant | None = None) -> tuple[EdgeShell, OneGrant]:
    transport = transport or OneGrant()
    cores = addresses(["https://a"])
    shell = EdgeShell(
        config(cores=tuple(cores)),
        transport,
        cores=cores,
        boot_clock=lambda: clocks.boot,
        wall_clock=lambda: clocks.wall,
        entropy=counting_entropy(),
    )
    shell.start()
    assert await shell.changed(5)
    return shell, transport


@given(st.lists(st.tuples(st.integers(0, 1_500_000), st.integers(-900_000, 700_000)), min_size=1, max_size=15))
def test_hot_path_and_machine_agree_on_the_deadline(moves: list[tuple[int, int]]) -> None:
    """``moves`` are microseconds: of both clocks, and of the wall clock alone."""

    async def go() -> None:
        clocks = Clocks(boot=7_000_000_123, wall=1_700_000_000_000_999_999)
        shell, _ = await leased(clocks)
        snapshot = shell.state.lease
        assert snapshot is not None
        for both_us, wall_us in moves:
            clocks.boot += both_us * 1_000
            clocks.wall += max(0, both_us + wall_us) * 1_000
            alive = shell.hot.is_live()
            now = shell.now()
            if shell.hot.reason == "clock":
                assert not alive or shell.notes["edge.clock-went-back"]
                break
            assert alive == (now < snapshot.deadline)
            assert shell.hot.is_live() == alive, "taking notice changes nothing"
        await shell.stop()

    asyncio.run(go())


async def test_keys_leave_their_pages_once_they_are_ready() -> None:
    shell, transport = await leased(Clocks())
    assert all(secret.wiped for granted in transport.given for secret in granted.secrets)
    assert len(shell.hot.create_key().blob) == 90
    await shell.stop()
    assert shell.hot.reason == "edge-closed"


async def test_a_clock_that_went_back_is_noticed_by_the_hot_path_first() -> None:
    clocks = Clocks()
    shell, _ = await leased(clocks)
    clocks.pass_ms(100)
    clocks.wall -= 1_500_000_000
    try:
        shell.hot.create_key()
        raise AssertionError("a key was minted")
    except Unavailable as refused:
        assert refused.code == "clock"
    await asyncio.sleep(0.05)
    assert shell.notes["edge.clock-went-back"] == 1
    assert shell.state.lease is None
    await shell.stop()


# --- the end -----------------------------------------------------------------------------------------------------


class Core(OneGrant):
    """As ``OneGrant``, and takes what an Edge says at its end.  ``held``: whether its answers are on their way still;
    ``deaf``: whether it answers at all."""

    def __init__(self) -> None:
        super().__init__()
        self.held = asyncio.Event()
        self.held.set()
        self.deaf = False
        self.shell: EdgeShell | None = None
        self.reports: dict[str, UsageReport] = {}
        self.returned: list[str] = []

    async def post(self, core: str, message: Any) -> Any:
        if self.deaf:
            await asyncio.Event().wait()
        match message:
            case UsageReport():
                self.reports[message.report_id] = message
                await self.held.wait()
                return UsageRecorded(report_id=message.report_id)
            case LeaseReturnedMessage():
                assert self.shell is not None
                assert self.shell.hot.reason == "edge-closed", "dropped before it is said"
                assert not self.shell.hot.lease.versions
                keys = {key_id(bytes.fromhex(PUBLIC_KEY)): PUBLIC_KEY}
                self.returned.append(SUITE.unseal(message.returned, LeaseReturned, keys).lease_id)
                return None
            case _:
                return await super().post(core, message)


async def core_and_shell() -> tuple[EdgeShell, Core]:
    core = Core()
    shell, _ = await leased(Clocks(), core)
    core.shell = shell
    return shell, core


async def test_the_end_gives_the_lease_back() -> None:
    shell, core = await core_and_shell()
    await shell.stop()
    await shell.stop()
    assert core.returned == ["l1"]


async def test_the_last_usage_is_told_though_an_answer_is_still_on_its_way() -> None:
    """What was counted while a report was in flight was lost with the end."""
    shell, core = await core_and_shell()
    shell.hot.create_keys(7)
    core.held.clear()
    shell._feed_usage()
    await asyncio.sleep(0)
    assert [r.minted for r in core.reports.values()] == [7], "recorded there, and not known here"
    shell.hot.create_key()
    core.held.set()
    await shell.stop()
    assert sorted(r.minted for r in core.reports.values()) == [1, 7]
    assert shell.totals["minted"] == 8


async def test_a_core_that_does_not_answer_delays_the_end_by_no_more_than_a_second() -> None:
    shell, core = await core_and_shell()
    shell.hot.create_key()
    core.deaf = True
    begun = time.monotonic()
    await shell.stop()
    assert time.monotonic() - begun < LAST_USAGE_S + 0.5
    assert shell.hot.reason == "edge-closed"


async def test_without_usage_a_core_that_does_not_answer_delays_it_less() -> None:
    shell, core = await core_and_shell()
    core.deaf = True
    begun = time.monotonic()
    await shell.stop()
    assert time.monotonic() - begun < RETURN_S + 0.4


async def test_an_end_that_is_cancelled_ends_its_tasks_all_the_same() -> None:
    shell, core = await core_and_shell()
    core.deaf = True
    tasks = set(shell._tasks)
    assert tasks
    end = asyncio.create_task(shell.stop())
    await asyncio.sleep(0.05)
    end.cancel()
    with pytest.raises(asyncio.CancelledError):
        await end
    assert all(task.done() for task in tasks)
    assert not shell._tasks
    assert shell.hot.reason == "edge-closed"


async def test_the_library_hangs_up_though_its_end_is_cancelled() -> None:
    class Hanging(Core):
        closed = False

        async def close(self) -> None:
            self.closed = True

    core = Hanging()
    shell, _ = await leased(Clocks(), core)
    core.shell, core.deaf = shell, True
    parts: Any = (shell, core, None, ())
    end = asyncio.create_task(Edge(*parts).close())
    await asyncio.sleep(0.05)
    end.cancel()
    with pytest.raises(asyncio.CancelledError):
        await end
    assert core.closed


async def test_a_fork_gives_nothing_back() -> None:
    shell, core = await core_and_shell()
    shell.orphan("forked")
    await shell.stop()
    assert core.returned == []


async def test_a_grant_that_comes_after_the_end_is_wiped() -> None:
    shell, core = await core_and_shell()
    grant, transport = core.given[0].grant, OneGrant()
    late = await transport.post("", LeaseRequest(tenant="", service="", nonce="n", signing_key="", policy_version=0))
    shell.feed(KeyWanted())
    await shell.stop()
    shell._arrive(next(iter(shell.config.cores)), late)
    assert all(secret.wiped for secret in late.secrets)
    assert shell.state.lease is None
    assert shell.hot.reason == "edge-closed"
    assert core.returned == [grant.lease_id]


# --- what a Core can make it do ----------------------------------------------------------------------------------


class Flapping(Core):
    """Its streams open and end at once, or after ``lasts_s``; in time that the test makes."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[float] = []
        self.lasts_s = 0.0

    @asynccontextmanager
    async def stream(self, core: str) -> AsyncIterator[AsyncIterator[Any]]:
        async def nothing() -> AsyncIterator[Any]:
            await asyncio.sleep(self.lasts_s)
            return
            yield

        self.opened.append(asyncio.get_running_loop().time())
        yield nothing()


def test_a_stream_that_ends_as_soon_as_it_opens_is_opened_ever_more_rarely() -> None:
    assert len(_streams(lasts_s=0.0, for_s=60.0)) <= 25


def test_after_a_steady_stream_the_next_one_is_soon() -> None:
    opened = _streams(lasts_s=10.0, for_s=60.0)
    assert all(later - earlier < 10.2 for earlier, later in pairwise(opened))
    assert len(opened) >= 5


def _streams(*, lasts_s: float, for_s: float) -> list[float]:
    """When streams were opened within ``for_s`` of a loop whose time goes by itself."""
    core = Flapping()
    core.lasts_s = lasts_s

    async def go() -> None:
        shell, _ = await leased(Clocks(), core)
        core.shell = shell
        await asyncio.sleep(for_s)
        shell.orphan("forked")
        await shell._end_tasks()

    loop = _Hurried()
    try:
        loop.run_until_complete(go())
    finally:
        loop.close()
    return core.opened


class _Hurried(asyncio.SelectorEventLoop):
    """Never waits for a timer: its time jumps to the next one."""

    def __init__(self) -> None:
        super().__init__()
        self._jumped = 0.0
        select = self._selector.select  # type: ignore[attr-defined]

        def hurry(timeout: float | None) -> Any:
            self._jumped += timeout or 0.0
            return select(0)

        self._selector.select = hurry  # type: ignore[attr-defined]

    def time(self) -> float:
        return super().time() + self._jumped


async def test_a_core_that_answers_ever_new_codes_fills_no_memory() -> None:
    shell, _ = await core_and_shell()
    for n in range(3 * NOTES_MAX):
        shell._count("edge.send-failed", f"code-{n}")
    assert len(shell.notes) <= NOTES_MAX + 1
    assert shell.notes["edge.send-failed.other"] > NOTES_MAX
    await shell.stop()


@pytest.mark.parametrize("code", ["", "x" * 129, "two words", "line\nbreak", "\u00e4"])
def test_a_code_that_is_no_token_is_no_problem_body(code: str) -> None:
    with pytest.raises(Unavailable) as caught:
        raise_problem(400, strict_json.dumps({"error": {"code": code, "message": "m"}}))
    assert caught.value.code == "peer-answer"


@pytest.mark.parametrize(
    ("status", "code", "error", "as_code"),
    [
        (400, "restricted", Refused, "restricted"),
        (422, "integrity", Integrity, "integrity"),
        (429, "budget", Unavailable, "budget"),
        (503, "closed", Unavailable, "closed"),
        (302, "moved", Unavailable, "peer-answer"),
    ],
)
def test_what_a_problem_stands_for(status: int, code: str, error: type[KeymeshError], as_code: str) -> None:
    with pytest.raises(error) as caught:
        raise_problem(status, strict_json.dumps({"error": {"code": code, "message": "m"}}))
    assert caught.value.code == as_code


def test_a_problem_beyond_the_limit_is_none() -> None:
    with pytest.raises(Unavailable, match="without a problem body"):
        raise_problem(400, b" " * (PROBLEM_MAX_BYTES + 1))
