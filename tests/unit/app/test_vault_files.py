"""``keymesh edge vault-login``, and the file of logins as a running face sees it."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from keymesh.app import cli
from keymesh.app.vault_files import LoginBook, changing, read_logins
from keymesh.app.watched_file import LOOK_S
from keymesh.compat.vault_tokens import VaultLogins, WrittenToken
from keymesh.model.errors import Refused


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "logins.json"


def login(capsys: pytest.CaptureFixture[str], file: Path, *words: str, code: int = 0) -> Any:
    assert cli.main(["edge", "vault-login", *words, "--file", str(file), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_logins_are_made_listed_and_removed_and_no_secret_is_kept(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    approle = login(capsys, file, "approle", "billing", "--tenant", "acme", "--service", "orders", "--right", "encrypt")
    token = login(capsys, file, "token", "billing", "--tenant", "acme", "--valid-s", "60")
    certificate = login(capsys, file, "certificate", "billing", "--tenant", "acme", "--edge", "orders")
    assert (approle["services"], approle["rights"], certificate["edge"]) == ("orders", "encrypt", "orders")
    assert token["rights"] == "encrypt, decrypt, rewrap, datakey, read"
    text = file.read_text()
    assert approle["secret_id"] not in text and token["token"] not in text and approle["role_id"] in text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    listed = login(capsys, file, "list")["logins"]
    assert [one["kind"] for one in listed] == ["approle", "token", "certificate"]
    assert approle["secret_id"] not in str(listed)
    login(capsys, file, "remove", "token", "billing")
    assert [len(each) for each in (read_logins(file).approles, read_logins(file).tokens)] == [1, 0]
    assert login(capsys, file, "remove", "token", "billing", code=1)["error"]["code"] == "not-found"


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["approle", "UP", "--tenant", "acme"], "approles.name"),
        (["approle", "a", "--tenant", "mesh"], "tenant"),
        (["approle", "a", "--tenant", "acme", "--ttl-s", "0"], "approles.a.ttl_s"),
        (["token", "a", "--tenant", "acme", "--service", "x y"], "service"),
        (["token", "a", "--tenant", "acme", "--valid-s", "0"], "valid-s"),
        (["certificate", "a", "--tenant", "acme", "--client", "X"], "certificates.a"),
    ],
)
def test_a_login_that_is_not_right_is_not_written(
    file: Path, capsys: pytest.CaptureFixture[str], words: list[str], field: str
) -> None:
    assert login(capsys, file, *words, code=1)["error"]["field"] == field
    assert not file.exists()


def test_a_name_is_taken_once(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    login(capsys, file, "token", "a", "--tenant", "acme")
    before = file.read_bytes()
    assert login(capsys, file, "token", "a", "--tenant", "zebra", code=1)["error"]["code"] == "conflict"
    assert file.read_bytes() == before


def test_a_book_sees_changes_and_admits_nobody_where_it_cannot_read(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    login(capsys, file, "token", "a", "--tenant", "acme")
    now = 0.0
    book = LoginBook(file, lambda: now)
    first = book.get()
    assert len(first.tokens) == 1 and book.tenants() == {"acme"}
    login(capsys, file, "token", "b", "--tenant", "zebra")
    assert book.get() is first
    now += LOOK_S
    assert book.tenants() == {"acme"} and len(book.get().tokens) == 2 and book.tenants() == {"acme", "zebra"}
    assert book.get() is book.get()
    file.chmod(0o644)
    now += LOOK_S
    assert book.get() == VaultLogins()
    file.chmod(0o600)
    now += LOOK_S
    assert len(book.get().tokens) == 2
    file.unlink()
    now += LOOK_S
    assert book.get() == VaultLogins()


def test_a_file_that_is_not_right_at_the_start_is_refused(file: Path) -> None:
    for text in ("", "{}x", '{"tokens": [{"name": "a"}]}', '{"more": []}'):
        file.write_text(text)
        file.chmod(0o600)
        with pytest.raises(Refused):
            LoginBook(file, lambda: 0.0)


def test_a_change_that_is_not_right_changes_nothing(file: Path) -> None:
    with pytest.raises(Refused), changing(file) as place:
        bad = WrittenToken(name="a", tenant="acme", services=("*",), rights=("read",), token_sha256="short")
        place[0] = VaultLogins(tokens=(bad,))
    assert not file.exists()
