"""The shell turns a deadline into readings of the raw clocks: the hot path and the machine agree to the millisecond."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.edge.world import POLICY, Clocks, config, counting_entropy, key_bytes, kid

from keymesh.crypto.pages import KeyPages
from keymesh.edge.client_shell import EdgeShell, addresses
from keymesh.edge.client_transport import GrantedKeys
from keymesh.model.errors import Unavailable
from keymesh.orbital.edge_messages import LeasedVersion, LeaseGrant, LeaseRequest

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

    @asynccontextmanager
    async def stream(self, core: str) -> AsyncIterator[AsyncIterator[Any]]:
        raise Unavailable("unreachable", "no stream")
        yield


async def leased(clocks: Clocks) -> tuple[EdgeShell, OneGrant]:
    transport = OneGrant()
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
