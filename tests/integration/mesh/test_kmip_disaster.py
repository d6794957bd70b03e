"""KMIP while a region is cut off, and after its home is dead: PyKMIP's clients in both regions, without end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kmip import enums
from tests.integration.mesh.kmip_user import KmipUser, enrol, make, opened, sealed
from tests.integration.mesh.live import FILES, HOME, OTHER, US, LiveMesh, until

IV = bytes(range(16))
TEXT = b"a line of text, and more than a block of it"
FOLLOWS_S = 100.0


@dataclass
class Traffic:
    """What one client saw: keys that it was given, how often it read them, what it was refused."""

    user: KmipUser
    uid: str
    key: bytes
    made: dict[str, bytes] = field(default_factory=dict)
    reads: int = 0
    wrong: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    last_served: float = 0.0  # wall clock, s: when the last request began that was served

    def run(self, stop: threading.Event) -> None:
        """Get the shared key, and now and then make one; connect anew after whatever went wrong."""
        while not stop.is_set():
            try:
                with self.user.connected() as client:
                    while not stop.is_set():
                        began = time.time()
                        self.wrong += client.get(self.uid).value != self.key
                        self.reads += 1
                        if self.reads % 5 == 0:
                            uid, key = make(client)
                            self.made[uid] = key
                        self.last_served = began
            except Exception as no:  # whatever PyKMIP makes of a refusal or of a connection that ended
                self.errors[type(no).__name__] += 1
                time.sleep(0.05)


@asynccontextmanager
async def running(*traffics: Traffic) -> AsyncIterator[None]:
    stop = threading.Event()
    threads = [asyncio.create_task(asyncio.to_thread(traffic.run, stop)) for traffic in traffics]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*threads)


async def goes_on(traffic: Traffic, what: str) -> None:
    """Reads and creations, from now on."""
    reads, made = traffic.reads, len(traffic.made)

    async def more() -> bool:
        return traffic.reads > reads + 5 and len(traffic.made) > made

    await until(more, what)


async def follows(user: KmipUser, keys: dict[str, bytes]) -> None:
    """Until each key is given by ``user``'s region, the same."""

    async def there() -> bool:
        for uid, key in keys.items():
            try:
                if (await user.do(lambda client, uid=uid: client.get(uid))).value != key:  # type: ignore[misc]
                    raise AssertionError(f"{uid} has other bytes")
            except AssertionError:
                raise
            except Exception:
                return False
        return True

    await until(there, f"{len(keys)} keys in the other region", within_s=FOLLOWS_S)


async def pair(mesh: LiveMesh, name: str, where: Path) -> tuple[Traffic, Traffic]:
    """The same client in both regions, and a key that both give."""
    home = await enrol(mesh, name, US, FILES, where)
    far = await enrol(mesh, name, US, FILES, where / "far", "--region", OTHER[US])
    uid, key = await home.do(make)
    await follows(far, {uid: key})
    return Traffic(home, uid, key), Traffic(far, uid, key)


async def test_a_cut_off_region_reads_and_creates_until_its_ttl_and_what_it_made_follows(
    mesh: LiveMesh, tmp_path: Path
) -> None:
    """Tier 1."""
    home, far = await pair(mesh, "tier1", tmp_path)
    async with running(home, far):
        await goes_on(home, "traffic at the home region")
        await goes_on(far, "traffic at the other region")
        cut_at = await mesh.isolate(HOME[US])
        served_before, made_before = home.reads, set(home.made)
        await mesh.reaches(HOME[US], US, "autonomous")

        async def cut_off_still_serves() -> bool:
            return home.reads > served_before and set(home.made) > made_before

        await until(cut_off_still_serves, "reads and creations while cut off")
        await mesh.reaches(HOME[US], US, "closed")
        ended_at = time.time()
        await asyncio.sleep(1.0)
        assert home.last_served < ended_at
        assert home.last_served > cut_at
        refused = await home.user.refusal(lambda client: client.get(home.uid))
        assert refused.startswith("PERMISSION_DENIED")
        await goes_on(far, "traffic at the region that was not cut off")
        made_cut_off = {uid: home.made[uid] for uid in set(home.made) - made_before}
        await mesh.link("heal")
        await goes_on(home, "traffic at the home region after the cut")
    assert home.wrong == far.wrong == 0
    await follows(far.user, made_cut_off)
    await follows(home.user, far.made)


async def test_when_the_home_is_dead_the_other_region_has_the_same_keys(mesh: LiveMesh, tmp_path: Path) -> None:
    """Tier 2."""
    home, far = await pair(mesh, "tier2", tmp_path)
    async with running(home, far):
        await goes_on(home, "traffic at the home region")
    secret = await home.user.do(lambda client: sealed(client, home.uid, TEXT, IV))
    await follows(far.user, home.made)
    await mesh.hold(f"core-{HOME[US]}")
    async with running(far):
        await goes_on(far, "traffic at the surviving region")
        assert await far.user.do(lambda client: opened(client, home.uid, secret, IV)) == TEXT
        await follows(far.user, home.made)
        # a change waits for its writer, and changes nothing
        revoke = enums.RevocationReasonCode.CESSATION_OF_OPERATION
        refused = await far.user.refusal(lambda client: client.revoke(revoke, home.uid))
        assert refused == "GENERAL_FAILURE: not available now; ask again later"
        assert (
            await far.user.do(lambda client: opened(client, home.uid, sealed(client, home.uid, TEXT, IV), IV)) == TEXT
        )
    assert far.wrong == 0
    mesh.release(f"core-{HOME[US]}")
    await mesh.settled()
    await follows(home.user, far.made)
    await far.user.do(lambda client: client.revoke(revoke, home.uid))  # by way of the writer
    for traffic in (home, far):
        assert "state" in await traffic.user.refusal(lambda client: sealed(client, home.uid, TEXT, IV))
    assert await far.user.do(lambda client: opened(client, home.uid, secret, IV)) == TEXT
