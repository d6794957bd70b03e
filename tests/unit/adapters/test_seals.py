"""The MasterKey's seals: what opens, and what must not."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from keymesh.adapters import seals
from keymesh.adapters.files import write_file
from keymesh.adapters.seals import FILE_SEAL_KEY, MASTER_FILE, MasterRecord
from keymesh.crypto.kid import kid_hex, kid_of
from keymesh.crypto.pages import KeyPages
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, KeymeshError, Refused


@pytest.fixture
def pages() -> KeyPages:
    return KeyPages(allow_unlocked=True)


def record_of(directory: Path) -> MasterRecord:
    record = seals.load_record(directory)
    assert record is not None
    return record


def test_no_master_yet(tmp_path: Path) -> None:
    assert seals.load_record(tmp_path) is None


# --- a key file ------------------------------------------------------------------------------------------------------


def test_a_file_seal_opens_to_the_same_master(tmp_path: Path, pages: KeyPages) -> None:
    master = seals.create_file_seal(tmp_path, "eu", pages)
    record = record_of(tmp_path)
    assert (record.kind, record.kid) == ("file", kid_hex(kid_of(master.reveal())))
    again = seals.open_file_seal(tmp_path, "eu", record, pages)
    assert again.same_as(master)
    assert pages.slots_in_use == 2  # the sealing key's page was wiped


def test_neither_file_holds_the_master_and_both_are_the_owners(tmp_path: Path, pages: KeyPages) -> None:
    with seals.create_file_seal(tmp_path, "eu", pages) as secret:
        master = bytes(secret.reveal())
    for name in (MASTER_FILE, FILE_SEAL_KEY):
        raw = (tmp_path / name).read_bytes()
        assert master not in raw
        assert master.hex().encode() not in raw
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_another_key_file_opens_nothing(tmp_path: Path, pages: KeyPages) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for directory in (one, other):
        directory.mkdir()
        seals.create_file_seal(directory, "eu", pages)
    (one / FILE_SEAL_KEY).write_bytes((other / FILE_SEAL_KEY).read_bytes())
    before = pages.slots_in_use
    with pytest.raises(Integrity, match="could not be opened"):
        seals.open_file_seal(one, "eu", record_of(one), pages)
    assert pages.slots_in_use == before


def test_another_regions_record_opens_nothing(tmp_path: Path, pages: KeyPages) -> None:
    seals.create_file_seal(tmp_path, "eu", pages)
    with pytest.raises(Integrity):
        seals.open_file_seal(tmp_path, "us", record_of(tmp_path), pages)


def test_every_changed_byte_of_the_record_is_noticed(tmp_path: Path, pages: KeyPages) -> None:
    seals.create_file_seal(tmp_path, "eu", pages)
    record = record_of(tmp_path)
    blob = bytes.fromhex(record.sealed)
    for at in range(len(blob)):
        changed = bytearray(blob)
        changed[at] ^= 1
        with pytest.raises(KeymeshError):
            seals.open_file_seal(tmp_path, "eu", msgspec.structs.replace(record, sealed=changed.hex()), pages)
    for sealed in ("", "zz", record.sealed[:-2], record.sealed + "00", "0" * 9):
        with pytest.raises(KeymeshError):
            seals.open_file_seal(tmp_path, "eu", msgspec.structs.replace(record, sealed=sealed), pages)
    for kid in ("", "0" * 32, record.kid.upper(), record.kid[:-1], "x" * 32):
        with pytest.raises(KeymeshError):
            seals.open_file_seal(tmp_path, "eu", msgspec.structs.replace(record, kid=kid), pages)
    assert pages.slots_in_use == 0  # nothing half-opened is left behind


@pytest.mark.parametrize("content", [b"", b"x", bytes(31), bytes(33), bytes(64)])
def test_a_key_file_of_another_length_is_refused(tmp_path: Path, pages: KeyPages, content: bytes) -> None:
    seals.create_file_seal(tmp_path, "eu", pages)
    write_file(tmp_path / FILE_SEAL_KEY, content)
    with pytest.raises(KeymeshError):
        seals.open_file_seal(tmp_path, "eu", record_of(tmp_path), pages)


def test_a_missing_or_readable_key_file_is_refused(tmp_path: Path, pages: KeyPages) -> None:
    seals.create_file_seal(tmp_path, "eu", pages)
    (tmp_path / FILE_SEAL_KEY).chmod(0o640)
    with pytest.raises(Refused, match="0600"):
        seals.open_file_seal(tmp_path, "eu", record_of(tmp_path), pages)
    (tmp_path / FILE_SEAL_KEY).unlink()
    with pytest.raises(Refused, match="no file"):
        seals.open_file_seal(tmp_path, "eu", record_of(tmp_path), pages)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b'{"kind":"file"}',
        b'{"kind":1,"kid":"x"}',
        b'{"kind":"file","kid":"x","more":1}',
        b"x" * 70_000,
    ],
)
def test_a_damaged_record_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MASTER_FILE).write_bytes(content)
    with pytest.raises(Refused):
        seals.load_record(tmp_path)


# --- shares ----------------------------------------------------------------------------------------------------------


def test_any_threshold_of_shares_opens(tmp_path: Path, pages: KeyPages) -> None:
    master, shares = seals.create_shamir_seal(tmp_path, pages, threshold=3, n_shares=5)
    record = record_of(tmp_path)
    assert (record.kind, record.threshold, record.sealed) == ("shamir", 3, "")
    assert len(shares) == len(set(shares)) == 5
    for chosen in (shares[:3], shares[2:], shares, (shares[4], shares[0], shares[2])):
        again = seals.open_shamir_seal(record, chosen, pages)
        assert again.same_as(master)
        again.wipe()
    upper = [f"  {share.upper()}\n" for share in shares[:3]]
    assert seals.open_shamir_seal(record, upper, pages).same_as(master)


def test_nothing_on_disk_opens_it(tmp_path: Path, pages: KeyPages) -> None:
    master, shares = seals.create_shamir_seal(tmp_path, pages, threshold=2, n_shares=3)
    assert [path.name for path in tmp_path.iterdir()] == [MASTER_FILE]
    raw = (tmp_path / MASTER_FILE).read_text()
    assert bytes(master.reveal()).hex() not in raw
    assert not any(share in raw for share in shares)


def test_too_few_mixed_or_foreign_shares_open_nothing(tmp_path: Path, pages: KeyPages) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    _, shares = seals.create_shamir_seal(one, pages, threshold=3, n_shares=5)
    _, others = seals.create_shamir_seal(other, pages, threshold=3, n_shares=5)
    record, before = record_of(one), pages.slots_in_use
    for given in (
        (),
        shares[:2],
        (shares[0], shares[0], shares[0]),
        (shares[0], shares[1], others[2]),
        (shares[0], shares[1], "keymesh-share-aaaa"),
        (shares[0], shares[1], ""),
        (shares[0], shares[1], shares[2][:-1]),
        (shares[0], shares[1], shares[2][:-9] + "aaaaaaaaa"),
        (shares[0], shares[1], "x" * 100_000),
        (shares[0], shares[1], "keymesh-share-ÄÖ"),
    ):
        with pytest.raises(Refused):
            seals.open_shamir_seal(record, given, pages)
    with pytest.raises(Integrity):  # a whole set, but of another MasterKey
        seals.open_shamir_seal(record, others, pages)
    assert pages.slots_in_use == before


def test_shares_do_not_open_a_key_file_and_damage_is_noticed(tmp_path: Path, pages: KeyPages) -> None:
    seals.create_file_seal(tmp_path, "eu", pages)
    with pytest.raises(Refused, match="not sealed by shares"):
        seals.open_shamir_seal(record_of(tmp_path), (), pages)
    _, shares = seals.create_shamir_seal(tmp_path, pages, threshold=2, n_shares=2)
    for kid in ("0" * 32, "short"):
        with pytest.raises(KeymeshError):
            seals.open_shamir_seal(msgspec.structs.replace(record_of(tmp_path), kid=kid), shares, pages)


@pytest.mark.parametrize(("threshold", "n_shares"), [(0, 3), (1, 3), (4, 3), (2, 256), (-1, 3)])
def test_a_senseless_threshold_leaves_no_record(tmp_path: Path, pages: KeyPages, threshold: int, n_shares: int) -> None:
    with pytest.raises(Refused):
        seals.create_shamir_seal(tmp_path, pages, threshold=threshold, n_shares=n_shares)
    assert list(tmp_path.iterdir()) == []


def test_the_record_is_one_strict_json_object(tmp_path: Path, pages: KeyPages) -> None:
    seals.create_file_seal(tmp_path, "eu", pages)
    raw = (tmp_path / MASTER_FILE).read_bytes()
    assert strict_json.dumps(json.loads(raw)) == raw
