"""What ``bench scale`` puts into a Registry, and what its simulated nodes make of the answers."""

from __future__ import annotations

import base64
import os
from typing import Any

import pytest
from tests.unit.registry.harness import Bench, mesh_up

from keymesh.adapters import key_files
from keymesh.app import bench_scale
from keymesh.app.bench_scale_nodes import Beaten, Fleet, ScaleNode
from keymesh.app.bench_scale_registry import NODE, add_region, add_tenant
from keymesh.app.cli import main
from keymesh.control.messages import Answer, AnswerMessage, HeartbeatMessage, Poll, PollAnswer
from keymesh.control.rows import KeyRow, get
from keymesh.control.signing import DsseSuite
from keymesh.crypto.dsse import Ed25519Signer
from keymesh.model import strict_json
from keymesh.model.errors import ExitCode, Unavailable
from keymesh.model.ids import KeyId, MeshName
from keymesh.model.machine import node_address
from keymesh.orbital.wire import MESSAGES

SIGNING_KEY = "ab" * 32


def told() -> Bench:
    bench = mesh_up()
    add_region(bench.state, "region-0000", SIGNING_KEY)
    add_tenant(bench.state, 7, ("us-east", "region-0000"), 3)
    return bench


def test_a_region_that_is_put_in_is_offered_what_one_in_the_log_is() -> None:
    state = told().state
    assert state.regions["region-0000"].show().keys() == {"mesh", "scale-000007"}
    assert state.regions["region-0000"].show()["mesh"] == state.regions["us-east"].show()["mesh"]
    assert state.regions["us-east"].show()["scale-000007"] == state.regions["region-0000"].show()["scale-000007"]
    assert set(state.sessions[node_address("region-0000", NODE)].keys.values()) == {SIGNING_KEY}


def test_every_key_entry_is_a_row_of_its_own() -> None:
    rows = told().state.spaces["scale-000007"].rows
    found = [get(rows, name, KeyRow) for name in rows]
    assert len({row.kid for row in found if row is not None}) == len(rows) == 3


class Registry:
    """Answers a node's requests: its mailbox, and what it was sent."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.posted = list(answers), list[Any]()

    async def request(self, method: str, path: str, body: bytes = b"", **_: Any) -> tuple[int, bytes]:
        if method == "POST":
            self.posted.append(MESSAGES.decode(body, max_bytes=2**20))
            return 204, b""
        made = self.answers.pop(0)
        if isinstance(made, Exception):
            raise made
        message = made(self.posted) if callable(made) else made
        return 200, b"[" + MESSAGES.encode(message) + b"]"

    async def close(self) -> None:
        pass


def suite() -> DsseSuite:
    return DsseSuite(Ed25519Signer(key_files.new_signing_key()))


def node(registry: Registry, of: DsseSuite, *, voter: bool = False) -> ScaleNode:
    keys = {KeyId(of.key_id): of.public_hex}
    return ScaleNode("dev", "us-east", registry, suite(), keys, root="root", is_voter=voter)  # type: ignore[arg-type]


def answering(of: DsseSuite, root: str = "root", nonce: str = "") -> Any:
    def answer(posted: list[Any]) -> AnswerMessage:
        assert isinstance(posted[-1], HeartbeatMessage)
        beat = strict_json.loads(_payload(posted[-1].heartbeat), max_bytes=2**20)
        said = Answer(
            mesh="dev", epoch=1, region="us-east", node=NODE, nonce=nonce or beat["nonce"], index=1, ttl_ms=1,
            poll_age_ms=0, heads_root=root, clock="r/0", clock_ms=0,  # type: ignore[arg-type]
        )  # fmt: skip
        return AnswerMessage(answer=of.seal(said))

    return answer


def _payload(sealed: Any) -> bytes:
    return base64.b64decode(sealed["payload"])


async def test_a_heartbeat_counts_by_its_own_signed_answer_alone() -> None:
    theirs, stranger = suite(), suite()
    seen = Beaten()
    registry = Registry(answering(theirs, nonce="other"), answering(theirs))
    await node(registry, theirs).beat(seen)
    assert (len(seen.ms), seen.lost, len(registry.posted)) == (1, 0, 1)
    await node(Registry(answering(stranger)), theirs).beat(seen)
    await node(Registry(Unavailable("unreachable", "gone")), theirs).beat(seen)
    await node(Registry(answering(theirs, root="another")), theirs).beat(seen)
    assert (len(seen.ms), seen.lost) == (2, 3)
    assert seen.errors["unreachable"] == seen.errors["not in step"] == 1


async def test_a_voter_answers_polls_and_nobody_else_does() -> None:
    theirs = suite()
    poll = Poll(mesh=MeshName("dev"), epoch=1, set_id=1, poll_id=9)
    for voter in (True, False):
        registry = Registry(poll, Exception())
        attending = node(registry, theirs, voter=voter)
        with pytest.raises(Exception):  # noqa: B017  the end of the mailbox
            await attending.attend()
        assert [m.poll_id for m in registry.posted if isinstance(m, PollAnswer)] == ([9] if voter else [])


async def test_heartbeats_are_spread_over_the_interval() -> None:
    theirs, seen = suite(), Beaten()
    registries = [Registry(*[answering(theirs)] * 2) for _ in range(5)]
    await Fleet(tuple(node(r, theirs) for r in registries)).beat_for(0.15, 0.1, seen)
    assert [len(r.posted) for r in registries] == [2, 2, 2, 1, 1]
    assert len(seen.ms) == 8


@pytest.mark.parametrize(
    "words", [("--regions", "3"), ("--regions", "5000"), ("--entries", "0"), ("--entries", "9999999")]
)
def test_bad_sizes_are_refused_by_name(words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "scale", "--json", *words]) == ExitCode.REFUSED
    assert strict_json.loads(capsys.readouterr().out.encode(), max_bytes=2**16)["error"]["field"] == words[0].strip("-")


def test_the_time_of_a_process_is_its_own() -> None:
    before = bench_scale.cpu_s(os.getpid())
    while bench_scale.cpu_s(os.getpid()) < before + 0.05:
        pass
    assert bench_scale.cpu_s(1) >= 0
