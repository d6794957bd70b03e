"""Simulated regions for ``bench scale``: each one node with keys, a certificate and a connection of its own.

A node sends signed heartbeats and takes its signed answers by a long poll, as a Core does; a voter's answers the
Registry's polls.  It holds no keys, applies no task, and says from the start that it is in step.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from keymesh.access.identity import CoreIdentity, RegistryIdentity
from keymesh.adapters import key_files, pki
from keymesh.adapters.http_client import PeerClient
from keymesh.adapters.tls import Credentials, MeshTls
from keymesh.app.bench_scale_registry import NODE
from keymesh.app.bootstrap import issue
from keymesh.app.channels import split_messages
from keymesh.app.layout import Layout
from keymesh.control.messages import Answer, AnswerMessage, Heartbeat, HeartbeatMessage, Poll, PollAnswer
from keymesh.control.signing import DsseSuite
from keymesh.crypto.dsse import Ed25519Signer, key_id
from keymesh.model.errors import KeymeshError
from keymesh.model.ids import Digest, KeyId, MeshName, NodeId, RegionId
from keymesh.model.time import Instant
from keymesh.orbital.wire import MESSAGES

ANSWER_TIMEOUT_S: Final = 10.0
POLL_TIMEOUT_S: Final = 30.0
RETRY_S: Final = 0.05


@dataclass(slots=True)
class Beaten:
    """``ms``: of each heartbeat, from its sending to its answer.  ``lost``: those that had none in time."""

    ms: list[float] = field(default_factory=list)
    lost: int = 0
    errors: dict[str, int] = field(default_factory=dict)

    def lose(self, why: str) -> None:
        self.lost += 1
        self.errors[why] = self.errors.get(why, 0) + 1


@dataclass(slots=True)
class ScaleNode:
    """``root``: what it says it holds.  ``answers``: nonce -> who waits."""

    mesh: str
    region: str
    client: PeerClient
    suite: DsseSuite
    registry_keys: Mapping[KeyId, str]
    root: Digest
    is_voter: bool = False
    boot_id: str = field(default_factory=lambda: os.urandom(16).hex())
    counter: int = 0
    answers: dict[str, asyncio.Future[Answer]] = field(default_factory=dict)

    async def beat(self, seen: Beaten) -> None:
        """One heartbeat."""
        self.counter += 1
        nonce = os.urandom(16).hex()
        beat = Heartbeat(
            mesh=self.mesh,
            epoch=1,
            region=self.region,
            node=NODE,
            boot_id=self.boot_id,
            counter=self.counter,
            nonce=nonce,
            manifest_root=self.root,
            index_seen=0,
        )
        began = time.monotonic()
        waiter = self.answers[nonce] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await self._post(HeartbeatMessage(heartbeat=self.suite.seal(beat)))
                while not self.is_voter and not waiter.done():
                    await self._take()
                answer = await waiter
            seen.ms.append((time.monotonic() - began) * 1_000)
            if answer.heads_root != self.root:
                seen.lose("not in step")
        except TimeoutError:
            seen.lose("timeout")
        except KeymeshError as lost:
            seen.lose(lost.code)
        finally:
            del self.answers[nonce]

    async def attend(self) -> None:
        """A voter's: takes all that comes, for ever."""
        while True:
            try:
                await self._take()
            except KeymeshError:
                await asyncio.sleep(RETRY_S)

    async def _post(self, message: Any) -> None:
        await self.client.request("POST", "/v1/messages", MESSAGES.encode(message), timeout_s=ANSWER_TIMEOUT_S)

    async def _take(self) -> None:
        _, raw = await self.client.request("GET", "/v1/channels/control", timeout_s=POLL_TIMEOUT_S)
        for plain in split_messages(raw):
            match MESSAGES.from_plain(plain):
                case AnswerMessage(answer=sealed):
                    answer = self.suite.unseal(sealed, Answer, self.registry_keys)
                    waiter = self.answers.get(answer.nonce)
                    if waiter is not None and not waiter.done():
                        waiter.set_result(answer)
                case Poll() as poll if self.is_voter:
                    voice = PollAnswer(
                        mesh=poll.mesh, epoch=poll.epoch, set_id=poll.set_id, poll_id=poll.poll_id, voter=self.region
                    )
                    await self._post(voice)
                case _:  # tasks and requests that only a Core could take
                    pass


@dataclass(frozen=True, slots=True)
class Fleet:
    nodes: tuple[ScaleNode, ...]

    async def close(self) -> None:
        await asyncio.gather(*(node.client.close() for node in self.nodes))

    async def beat_for(self, seconds: float, interval_s: float, seen: Beaten) -> None:
        """Every node's heartbeats, spread evenly over the interval; those that began are waited for."""
        began = time.monotonic()

        async def one(n: int, node: ScaleNode) -> None:
            due = began + interval_s * n / len(self.nodes)
            while due < began + seconds:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                await node.beat(seen)
                due += interval_s

        await asyncio.gather(*(one(n, node) for n, node in enumerate(self.nodes)))


def make_identities(layout: Layout, mesh: MeshName, regions: Iterable[str], home: Path) -> dict[str, str]:
    """A CA, a certificate and a signing key for each region, under ``home``; region -> public signing key, hex."""
    now = Instant(time.time_ns() // 1_000_000)
    root = key_files.load_authority(layout.pki / "root-ca.pem", mesh=mesh)
    found = {}
    for region in regions:
        authority = pki.create_intermediate(root, region, now=now)
        identity = CoreIdentity(mesh=mesh, region=RegionId(region), node=NodeId(NODE))
        issue(authority, home / f"{region}.tls.pem", identity, now=now)
        key = key_files.new_signing_key()
        key_files.write_signing_key(home / f"{region}.signing.pem", key)
        found[region] = key_files.signing_public_raw(key).hex()
    return found


def make_node(
    layout: Layout, mesh: MeshName, region: str, files: tuple[Path, Path], url: str, root: Digest, *, voter: bool
) -> ScaleNode:
    """``files``: certificate and signing key."""
    tls = MeshTls(Credentials(files[0]), mesh, layout.ca.read_bytes())
    context = tls.client(lambda i: isinstance(i, RegistryIdentity))
    registry = key_files.signing_public_raw(key_files.load_signing_key(layout.registry / "signing.pem"))
    signer = Ed25519Signer(key_files.load_signing_key(files[1]))
    return ScaleNode(
        mesh=mesh,
        region=region,
        client=PeerClient(url, context, timeout_s=POLL_TIMEOUT_S, connections=4),
        suite=DsseSuite(signer),
        registry_keys={KeyId(key_id(registry)): registry.hex()},
        root=root,
        is_voter=voter,
    )
