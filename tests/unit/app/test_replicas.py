"""Two Registry processes over one log, in memory: neither refuses by a view that the other has moved on from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.unit.app.founded import founded
from tests.unit.app.test_processes import Face, creation, life_of_registry

from keymesh.adapters.memory_log import MemoryControlLog
from keymesh.adapters.sqlite_log import SqliteControlLog
from keymesh.app import registry_log
from keymesh.app.log_follow import follow_log
from keymesh.app.registry_app import RegistryProcess
from keymesh.model.errors import Integrity, Refused, Unavailable
from keymesh.registry.events import LogMoved, LogRead

pytestmark = pytest.mark.usefixtures("template")


class SharedLog(MemoryControlLog):
    """May be away, or broken; closed by nobody."""

    wrong: Exception | None = None

    async def read(self, after_index: int, limit: int | None = None) -> Any:
        if self.wrong is not None:
            raise self.wrong
        return await super().read(after_index, limit)

    async def append(self, entries: Any) -> int:
        if self.wrong is not None:
            raise self.wrong
        return await super().append(entries)


@asynccontextmanager
async def replicas(
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[tuple[RegistryProcess, Face, RegistryProcess, Face, SharedLog]]:
    with founded() as (layout, plan), founded() as (other, _):
        genesis = SqliteControlLog(layout.registry / "log.db", mesh=plan.mesh)
        shared = SharedLog(plan.mesh)
        await shared.append([(await genesis.read(0))[1][0][1]])
        await genesis.close()
        monkeypatch.setattr(registry_log, "make_log", lambda *args, **named: shared)
        monkeypatch.setattr(registry_log.RegistryLog, "shared", True)
        async with life_of_registry(layout, plan) as (a, face_a), life_of_registry(other, plan) as (b, face_b):
            yield a, face_a, b, face_b, shared


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not check():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def created(process: RegistryProcess, face: Face, tenant: str) -> dict[str, Any]:
    command_id = f"c-{tenant}"
    done: dict[str, Any] = await face.ask(
        "POST", "/v1/commands", body=creation(process, tenant, command_id), key=command_id
    )
    return done


async def test_what_one_has_acknowledged_the_other_knows_at_the_next_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async with replicas(monkeypatch) as (a, face_a, b, face_b, _):
        done = await created(a, face_a, "acme")
        assert "acme" not in b.shell.state.spaces
        status = await face_b.ask("GET", "/v1/commands/acme/c-acme")
        assert (status["seq"], status["index"]) == (done["seq"], done["index"])
        again = await created(a, face_b, "acme")
        assert (again["duplicate"], again["index"]) == (True, done["index"])


async def test_a_command_is_not_refused_by_an_old_view(monkeypatch: pytest.MonkeyPatch) -> None:
    async with replicas(monkeypatch) as (a, face_a, b, face_b, _):
        await created(a, face_a, "acme")
        assert "acme" not in b.shell.state.spaces
        body = {"namespace": "acme", "kind": "tenant.labels", "args": {"labels": {"n": "1"}}}
        assert (await face_b.ask("POST", "/v1/commands", body=body, key="l1"))["seq"] == 2


async def test_a_suspend_at_one_and_a_resume_at_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async with replicas(monkeypatch) as (a, face_a, b, face_b, _):
        await created(a, face_a, "acme")
        for face, kind in ((face_a, "suspend"), (face_b, "resume"), (face_a, "suspend"), (face_b, "resume")):
            body = {"namespace": "acme", "kind": kind, "args": {"scope": "tenant:acme"}}
            index = a.shell.state.index + b.shell.state.index
            await face.ask("POST", "/v1/commands", body=body, key=f"{kind}-{index}")
        assert [s.entry.kind for s in b.shell.state.spaces["acme"].entries[1:]] == ["suspend", "resume"] * 2


async def test_what_is_refused_by_a_current_view_is_refused_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with replicas(monkeypatch) as (_, _, b, face_b, _):
        tries = 0

        async def work() -> None:
            nonlocal tries
            tries += 1
            raise Refused("not-found", "no such thing")

        with pytest.raises(Refused):
            await b.log.when_current(work)
        assert tries == 1
        with pytest.raises(Refused):
            await face_b.ask("GET", "/v1/tenants/nobody")


async def test_nobody_is_refused_while_it_is_not_known_whether_the_view_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    async with replicas(monkeypatch) as (_, _, _, face_b, shared):
        shared.wrong = Unavailable("etcd", "away")
        with pytest.raises(Unavailable):
            await face_b.ask("GET", "/v1/commands/acme/c1")
        with pytest.raises(Refused) as bad:
            await face_b.ask("GET", "/v1/certificates/c1", wait_ms="x")
        assert bad.value.code == "bad-field"


async def test_a_log_that_cannot_be_read_on_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_log, "CATCH_UP_S", 0.05)
    async with replicas(monkeypatch) as (a, face_a, b, face_b, _):
        await created(a, face_a, "acme")
        feed = b.shell.feed

        def deaf(event: Any) -> None:
            if not isinstance(event, LogRead):
                feed(event)

        b.shell.feed = deaf  # type: ignore[method-assign]
        with pytest.raises(Unavailable) as behind:
            await face_b.ask("GET", "/v1/commands/acme/c-acme")
        assert behind.value.code == "behind"


@pytest.mark.parametrize("by", ["read", "append"])
async def test_a_log_that_is_not_ours_any_more_halts_it(monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    async with replicas(monkeypatch) as (a, face_a, _, _, shared):
        await created(a, face_a, "acme")
        shared.wrong = Integrity("rolled-back", "the log is at 1, and was at 2")
        if by == "read":
            a.shell.feed(LogMoved(9))
            await asyncio.gather(*a.tasks)
        else:
            body = {"namespace": "acme", "kind": "tenant.labels", "args": {"labels": {"n": "1"}}}
            asked = asyncio.create_task(face_a.ask("POST", "/v1/commands", body=body, key="l1"))
            await until(lambda: bool(a.shell.state.halted))
            asked.cancel()
        assert a.shell.state.halted.startswith("rolled-back")
        assert a.api.readiness() == [f"halted: {a.shell.state.halted}"]


async def test_following_gives_hints_waits_out_an_absence_and_ends_at_what_is_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("keymesh.app.log_follow.AWAY_S", 0.01)
    async with replicas(monkeypatch) as (a, face_a, b, _, shared):
        broken: list[Integrity] = []
        hints: list[int] = []

        def moved(index: int) -> None:
            hints.append(index)
            b.shell.feed(LogMoved(index))

        following = asyncio.create_task(
            follow_log(shared, every_ms=1, known=lambda: b.shell.state.index, moved=moved, broken=broken.append)
        )
        async with asyncio.timeout(10):
            await created(a, face_a, "acme")
            await until(lambda: "acme" in b.shell.state.spaces)
            shared.wrong = Unavailable("etcd", "away")
            await asyncio.sleep(0.05)
            assert not following.done()
            shared.wrong = Integrity("rolled-back", "it went back")
            await following
        assert [bad.code for bad in broken] == ["rolled-back"]
        assert set(hints) == {2}


@pytest.mark.parametrize("wrong", ["absent", "foreign", "away"])
async def test_before_anything_is_changed_the_log_is_looked_at(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setattr(registry_log, "START_S", 0.05)
    monkeypatch.setattr(registry_log, "AWAY_S", 0.01)
    async with replicas(monkeypatch) as (_, _, b, _, shared):
        if wrong == "absent":
            b.log.control = SharedLog(b.config.mesh)
        elif wrong == "foreign":
            b._genesis = "0" * 64
        else:
            shared.wrong = Unavailable("etcd", "away")
        with pytest.raises((Refused, Integrity, Unavailable)) as refused:
            await b.run()
        assert refused.value.code == {"absent": "not-founded", "foreign": "foreign-mesh", "away": "etcd"}[wrong]
