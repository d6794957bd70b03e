"""``keymesh kmip conformance``: the published cases over mutual TLS, and a runner that can fail."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from keymesh.app import cli
from keymesh.app.kmip_conformance import Report, find_cases, run_cases
from keymesh.app.kmip_loopback import (
    connected,
    fresh,
    loopback,
    new_engine,
    seconds,
    serving,
)
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import Item, decode, encode

Send = Callable[[bytes], Awaitable[bytes]]

VERSION = """<ProtocolVersion><ProtocolVersionMajor type="Integer" value="2"/>
<ProtocolVersionMinor type="Integer" value="1"/></ProtocolVersion>"""


def case(*turns: tuple[str, str, str]) -> str:
    """A case of (operation, payload of the request, payload of the answer)."""
    count = '<BatchCount type="Integer" value="1"/>'
    text = ""
    for name, request, answer in turns:
        operation = f'<Operation type="Enumeration" value="{name}"/>'
        stamp = '<TimeStamp type="DateTime" value="$NOW"/>'
        status = '<ResultStatus type="Enumeration" value="Success"/>'
        text += (
            f"<RequestMessage><RequestHeader>{VERSION}{count}</RequestHeader><BatchItem>{operation}"
            f"<RequestPayload>{request}</RequestPayload></BatchItem></RequestMessage>"
            f"<ResponseMessage><ResponseHeader>{VERSION}{stamp}{count}</ResponseHeader><BatchItem>{operation}{status}"
            f"<ResponsePayload>{answer}</ResponsePayload></BatchItem></ResponseMessage>"
        )
    return f"<KMIP>{text}</KMIP>"


KEY = """<ObjectType type="Enumeration" value="SymmetricKey"/><Attributes>
<CryptographicAlgorithm type="Enumeration" value="AES"/><CryptographicLength type="Integer" value="256"/>
<CryptographicUsageMask type="Integer" value="Encrypt Decrypt"/></Attributes>"""
MADE = """<ObjectType type="Enumeration" value="SymmetricKey"/>
<UniqueIdentifier type="TextString" value="$UNIQUE_IDENTIFIER_0"/>"""
NAMED = '<UniqueIdentifier type="TextString" value="$UNIQUE_IDENTIFIER_0"/>'
STATE = '<AttributeReference type="Enumeration" value="State"/>'


def state_case(state: str) -> str:
    shown = f'{NAMED}<Attributes><State type="Enumeration" value="{state}"/></Attributes>'
    return case(("Create", KEY, MADE), ("GetAttributes", NAMED + STATE, shown))


def run(capsys: pytest.CaptureFixture[str], directory: Path) -> tuple[int, dict[str, Any]]:
    code = cli.main(["kmip", "conformance", str(directory), "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_every_published_case_that_is_not_skipped_passes(capsys: pytest.CaptureFixture[str], shared_dir: Path) -> None:
    code, said = run(capsys, shared_dir / "vectors" / "kmip")
    assert said["failures"] == []
    assert (code, said["passed"], said["failed"], len(said["skipped"])) == (
        0,
        131,
        0,
        46,
    )
    assert all(one["file"].endswith(".xml") and one["reason"] for one in said["skipped"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "was", "minor"),
    [("-12.xml", 2, 3), ("-12.xml", 2, 4), ("-21.xml", 1, 0)],
    ids=["1.3", "1.4", "2.0"],
)
def test_the_cases_of_a_neighbour_pass_in_versions_without_cases_here(
    capsys: pytest.CaptureFixture[str],
    shared_dir: Path,
    tmp_path: Path,
    ending: str,
    was: int,
    minor: int,
) -> None:
    said_in = '<ProtocolVersionMinor type="Integer" value="{}"'
    for path in (shared_dir / "vectors" / "kmip").rglob(f"*{ending}"):
        text = path.read_text()
        (tmp_path / path.name).write_text(text.replace(said_in.format(was), said_in.format(minor)))
    code, said = run(capsys, tmp_path)
    assert said["failures"] == []
    assert code == 0
    assert said["passed"] == {3: 24, 4: 24, 0: 59}[minor]


def test_cases_that_nobody_has_seen_are_judged_by_what_they_say(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "good.xml").write_text(state_case("PreActive"))
    (tmp_path / "wrong.xml").write_text(state_case("Active"))
    (tmp_path / "BL-M-9-21.xml").write_text(state_case("PreActive"))
    (tmp_path / "pair.xml").write_text(case(("CreateKeyPair", "", "")))
    (tmp_path / "broken.xml").write_text("<KMIP>")
    (tmp_path / "entities.xml").write_text("<!DOCTYPE a [<!ENTITY e 'x'>]><KMIP>&e;</KMIP>")
    (tmp_path / "unbound.xml").write_text(case(("Get", NAMED, "")))
    (tmp_path / "alone.xml").write_text(case(("Locate", f"<Attributes>{STATE}</Attributes>", NAMED)))
    (tmp_path / "notes.txt").write_text("none")
    code, said = run(capsys, tmp_path)
    assert code == 1
    assert (said["ok"], said["passed"], said["failed"]) == (False, 2, 5)
    assert said["skipped"] == [{"file": "pair.xml", "reason": "needs key pairs"}]
    told = {one["file"]: (one["step"], one["differences"][0]) for one in said["failures"]}
    assert told["wrong.xml"][0] == 1
    assert told["wrong.xml"][1].endswith("Attributes/State: expected Active, got PreActive")
    assert "no element found" in told["broken.xml"][1]
    assert "no document type" in told["entities.xml"][1]
    assert "$UNIQUE_IDENTIFIER_0 was in no answer yet" in told["unbound.xml"][1]
    assert "no case beside it makes" in told["alone.xml"][1]


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()], ids=["missing", "empty"])
def test_a_directory_without_cases_is_a_mistake(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "cases")
    code, said = run(capsys, tmp_path / "cases")
    assert code == 1
    assert said["error"]["field"] == "dir"


async def played(directory: Path, spoil: Callable[[Item], Item] | None) -> Report:
    """The cases of ``directory`` against the real server, its answers spoilt on the way."""
    with loopback() as ends:

        @asynccontextmanager
        async def spoilt() -> AsyncIterator[Send]:
            async with fresh(ends) as send:

                async def sent(request: bytes) -> bytes:
                    answer = await send(request)
                    return answer if spoil is None else encode(spoil(decode(answer)))

                yield sent

        return await run_cases(find_cases(directory), spoilt, seconds)


def changed(item: Item, tag: Tag, value: Any) -> Item:
    if item.tag == tag:
        return replace(item, value=value)
    if isinstance(item.value, tuple):
        return replace(item, value=tuple(changed(one, tag, value) for one in item.value))
    return item


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        (Tag.State, 2),
        (Tag.Operation, 1),
        (Tag.ResultStatus, 1),
        (Tag.BatchCount, 2),
        (Tag.ProtocolVersionMinor, 0),
    ],
)
async def test_a_server_that_answers_otherwise_fails(tmp_path: Path, tag: Tag, value: int) -> None:
    (tmp_path / "case.xml").write_text(state_case("PreActive"))
    assert (await played(tmp_path, None)).passed == ["case.xml"]
    report = await played(tmp_path, lambda answer: changed(answer, tag, value))
    assert report.passed == []
    (failure,) = report.failures
    assert tag.name in failure.differences[0]


async def test_each_case_meets_an_empty_store(tmp_path: Path) -> None:
    nothing = case(("Locate", "", ""))
    (tmp_path / "a.xml").write_text(case(("Create", KEY, MADE)))
    (tmp_path / "b.xml").write_text(nothing)
    assert (await played(tmp_path, None)).passed == ["a.xml", "b.xml"]
    with loopback() as ends:
        async with serving(ends, new_engine()) as port:

            @asynccontextmanager
            async def same() -> AsyncIterator[Send]:
                async with connected(ends, port) as send:
                    yield send

            report = await run_cases(find_cases(tmp_path), same, seconds)
    assert [one.file for one in report.failures] == ["b.xml"], "the runner sees what another case left"


async def test_a_server_that_hangs_up_fails_the_case(tmp_path: Path) -> None:
    (tmp_path / "case.xml").write_text(state_case("PreActive"))

    @asynccontextmanager
    async def gone() -> AsyncIterator[Send]:
        async def send(_: bytes) -> bytes:
            raise ConnectionResetError("gone")

        yield send

    report = await run_cases(find_cases(tmp_path), gone, seconds)
    assert "ended the connection" in report.failures[0].differences[0]
