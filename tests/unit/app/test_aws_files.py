"""The AWS face's files: credentials that come and go, records that last, commands that take turns."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path

import pytest

from keymesh.app import cli
from keymesh.app.aws_files import AwsRecords, CredentialBook, read_credentials
from keymesh.compat import aws_records
from keymesh.compat.aws_records import Deletion, KeyRecord
from keymesh.model.errors import Refused


def add(file: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, str]:
    assert cli.main(["edge", "aws-credential", "add", "--file", str(file), "--json", *words]) == 0
    made: dict[str, str] = json.loads(capsys.readouterr().out)
    return made


def test_a_secret_is_shown_once_and_kept_in_a_private_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.json"
    made = add(file, capsys, "--tenant", "acme", "--service", "files", "--role", "use")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    kept = read_credentials(file)[made["access_key_id"]]
    assert kept.secret == made["secret_access_key"]
    assert (kept.services, kept.roles) == (frozenset({"files"}), frozenset({"use"}))
    assert kept.secret not in repr(kept)
    assert cli.main(["edge", "aws-credential", "list", "--file", str(file), "--json"]) == 0
    shown = capsys.readouterr().out
    assert made["access_key_id"] in shown
    assert kept.secret not in shown


@pytest.mark.parametrize("words", [("--tenant", "No Good"), ("--tenant", "acme", "--service", "A/B")])
def test_names_that_are_none_are_refused(tmp_path: Path, words: tuple[str, ...]) -> None:
    assert cli.main(["edge", "aws-credential", "add", "--file", str(tmp_path / "c.json"), *words]) == 1
    assert not (tmp_path / "c.json").exists()


def test_a_file_that_others_can_read_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.json"
    add(file, capsys, "--tenant", "acme")
    file.chmod(0o640)
    with pytest.raises(Refused, match="others can read"):
        read_credentials(file)
    assert cli.main(["edge", "aws-credential", "list", "--file", str(file)]) == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b'{"version":2,"credentials":[]}',
        b'{"version":1,"credentials":[{"access_key_id":"A","secret":"short","tenant":"a","services":null,"roles":["use"]}]}',
        b'{"version":1,"credentials":[{"access_key_id":"A","secret":"' + b"s" * 40 + b'","tenant":"a","services":null,'
        b'"roles":["root"]}]}',
    ],
)
def test_a_malformed_file_is_refused_without_quoting_it(tmp_path: Path, raw: bytes) -> None:
    file = tmp_path / "c.json"
    file.write_bytes(raw)
    file.chmod(0o600)
    with pytest.raises(Refused) as refused:
        read_credentials(file)
    assert "short" not in refused.value.message
    assert "root" not in refused.value.message


def test_a_running_face_hears_of_a_change_and_fails_closed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, now = tmp_path / "c.json", [0.0]
    first = add(file, capsys, "--tenant", "acme")["access_key_id"]
    book = CredentialBook(file, lambda: now[0])
    assert book.get(first) is not None
    second = add(file, capsys, "--tenant", "acme")["access_key_id"]
    assert book.get(second) is None  # looked at once a second
    now[0] += 1
    assert book.get(second) is not None
    assert cli.main(["edge", "aws-credential", "remove", first, "--file", str(file)]) == 0
    now[0] += 1
    assert book.get(first) is None
    file.write_text("nonsense")
    now[0] += 1
    assert book.get(second) is None
    file.unlink()
    now[0] += 1
    assert book.get(second) is None
    assert cli.main(["edge", "aws-credential", "remove", first, "--file", str(file)]) == 1


async def test_records_last(tmp_path: Path) -> None:
    file = tmp_path / "records.json"
    records = AwsRecords(file)
    made = KeyRecord(created_ms=1, description="d", tags={"a": "b"}, deletion=Deletion(at_ms=2, days=7))
    await records.put_key("acme", "files", made)
    await asyncio.gather(*(records.put_alias("acme", f"alias/{n}", "files") for n in range(20)))
    await records.put_alias("acme", "alias/3", None)
    again = AwsRecords(file)
    assert again.key("acme", "files") == made
    assert again.key("acme", "mail") == KeyRecord()
    assert set(again.aliases("acme")) == {f"alias/{n}" for n in range(20) if n != 3}
    assert again.aliases("zebra") == {}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_records_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keymesh.app.aws_files.ALIASES_MAX", 2)
    assert aws_records.ALIASES_MAX == 10_000
    records = AwsRecords(tmp_path / "records.json")
    for n in range(2):
        await records.put_alias("acme", f"alias/{n}", "files")
    with pytest.raises(Refused, match="at most 2"):
        await records.put_alias("acme", "alias/3", "files")
    await records.put_alias("acme", "alias/0", None)
    await records.put_alias("acme", "alias/3", "files")


async def test_what_could_not_be_written_is_not_there(tmp_path: Path) -> None:
    records = AwsRecords(tmp_path / "gone" / "records.json")
    with pytest.raises(OSError):
        await records.put_alias("acme", "alias/a", "files")
    assert records.aliases("acme") == {}
