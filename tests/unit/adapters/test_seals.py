"""The MasterKey's seals by file and by shares, and records of earlier releases: what opens, and what must not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import msgspec
import pytest

from keymesh.adapters import seals
from keymesh.adapters.files import write_file
from keymesh.adapters.seal_forms import (
    FILE_SEAL_KEY,
    drop_file_seal,
    make_file_seal,
    make_shamir_seal,
    open_file_seal,
    open_shamir_seal,
)
from keymesh.adapters.seals import MASTER_FILE
from keymesh.core.seals import Kind, MasterRecord, Seal, new_record, verify_record
from keymesh.crypto.kid import kid_hex, kid_of
from keymesh.crypto.pages import KeyPages, SecretBytes
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, KeymeshError, Refused


@pytest.fixture
def pages() -> KeyPages:
    return KeyPages(allow_unlocked=True)


@pytest.fixture
def master(pages: KeyPages) -> SecretBytes:
    return pages.put(bytearray(range(32)))


def kid(master: SecretBytes) -> str:
    return kid_hex(kid_of(master.reveal()))


def record_of(directory: Path) -> MasterRecord:
    record = seals.load_record(directory)
    assert record is not None
    return record


def test_no_master_yet(tmp_path: Path) -> None:
    assert seals.load_record(tmp_path) is None


# --- a key file ------------------------------------------------------------------------------------------------------


def test_a_file_seal_opens_to_the_same_master(tmp_path: Path, pages: KeyPages, master: SecretBytes) -> None:
    seal = make_file_seal(tmp_path, "eu", master, pages)
    again = open_file_seal(tmp_path, "eu", kid(master), seal, pages)
    assert again.same_as(master)
    assert pages.slots_in_use == 2  # the sealing key's page was wiped
    another = make_file_seal(tmp_path, "eu", master, pages)  # of one key, several
    assert open_file_seal(tmp_path, "eu", kid(master), seal, pages).same_as(master)
    drop_file_seal(tmp_path, seal)
    with pytest.raises(Refused):
        open_file_seal(tmp_path, "eu", kid(master), seal, pages)
    assert open_file_seal(tmp_path, "eu", kid(master), another, pages).same_as(master)


def test_neither_file_holds_the_master_and_both_are_the_owners(
    tmp_path: Path, pages: KeyPages, master: SecretBytes
) -> None:
    seal = make_file_seal(tmp_path, "eu", master, pages)
    seals.save_record(tmp_path, new_record("eu", master.reveal(), [seal]))
    plain = bytes(master.reveal())
    for path in tmp_path.iterdir():
        raw = path.read_bytes()
        assert plain not in raw
        assert plain.hex().encode() not in raw
        assert path.stat().st_mode & 0o777 == 0o600
    assert len(list(tmp_path.iterdir())) == 2


def test_another_key_file_region_kid_or_bit_opens_nothing(tmp_path: Path, pages: KeyPages, master: SecretBytes) -> None:
    seal = make_file_seal(tmp_path, "eu", master, pages)
    other = make_file_seal(tmp_path, "eu", master, pages)
    change = msgspec.structs.replace
    raw = bytes.fromhex(seal.sealed)
    bad = [change(seal, parameters=other.parameters)]
    bad += [change(seal, sealed=sealed) for sealed in ("", "zz", "0202", seal.sealed[:-2], seal.sealed + "00")]
    bad += [change(seal, sealed=(raw[:n] + bytes((raw[n] ^ 1,)) + raw[n + 1 :]).hex()) for n in range(len(raw))]
    bad += [change(seal, parameters={"key_file": name}) for name in (1, "", "../seal.key", "a/b.key", ".key", "x")]
    before = pages.slots_in_use
    for one in bad:
        with pytest.raises(Integrity) as caught:
            open_file_seal(tmp_path, "eu", kid(master), one, pages)
        assert (caught.value.code, caught.value.message) == ("integrity", "could not be opened")
    with pytest.raises(Integrity):
        open_file_seal(tmp_path, "us", kid(master), seal, pages)
    for wrong in ("0" * 32, kid(master)[:-1] + ("0" if kid(master)[-1] != "0" else "1")):
        with pytest.raises(Integrity):
            open_file_seal(tmp_path, "eu", wrong, seal, pages)
    assert pages.slots_in_use == before  # nothing half-opened is left behind


@pytest.mark.parametrize("content", [b"", b"x", bytes(31), bytes(33), bytes(64)])
def test_a_key_file_of_another_length_is_refused(
    tmp_path: Path, pages: KeyPages, master: SecretBytes, content: bytes
) -> None:
    seal = make_file_seal(tmp_path, "eu", master, pages)
    write_file(tmp_path / seal.parameters["key_file"], content)
    with pytest.raises(KeymeshError):
        open_file_seal(tmp_path, "eu", kid(master), seal, pages)


def test_a_missing_or_readable_key_file_is_refused(tmp_path: Path, pages: KeyPages, master: SecretBytes) -> None:
    seal = make_file_seal(tmp_path, "eu", master, pages)
    file = tmp_path / seal.parameters["key_file"]
    file.chmod(0o640)
    with pytest.raises(Refused, match="0600"):
        open_file_seal(tmp_path, "eu", kid(master), seal, pages)
    file.unlink()
    with pytest.raises(Refused, match="no file"):
        open_file_seal(tmp_path, "eu", kid(master), seal, pages)


# --- shares ----------------------------------------------------------------------------------------------------------


def test_any_threshold_of_shares_opens(pages: KeyPages, master: SecretBytes) -> None:
    seal, shares = make_shamir_seal("eu", master, pages, threshold=3, n_shares=5)
    assert seal.parameters == {"threshold": 3, "shares": 5}
    assert len(shares) == len(set(shares)) == 5
    assert pages.slots_in_use == 1
    upper = tuple(f"  {share.upper()}\n" for share in shares[:3])
    for chosen in (shares[:3], shares[2:], shares, (shares[4], shares[0], shares[2]), upper):
        with open_shamir_seal("eu", kid(master), seal, chosen, pages) as again:
            assert again.same_as(master)
    assert not any(share in repr(seal) for share in shares)


def test_nothing_on_disk_opens_it(tmp_path: Path, pages: KeyPages) -> None:
    shares = seals.found_by_shares(tmp_path, "eu", pages, threshold=2, n_shares=3)
    assert pages.slots_in_use == 0
    assert [path.name for path in tmp_path.iterdir()] == [MASTER_FILE]
    record, (seal,) = record_of(tmp_path), record_of(tmp_path).seals
    with open_shamir_seal("eu", record.kid, seal, shares[1:], pages) as master:
        verify_record(record, "eu", master.reveal())
        raw = (tmp_path / MASTER_FILE).read_text()
        assert bytes(master.reveal()).hex() not in raw
    assert not any(share in raw for share in shares)


def test_too_few_mixed_or_foreign_shares_open_nothing(pages: KeyPages, master: SecretBytes) -> None:
    seal, shares = make_shamir_seal("eu", master, pages, threshold=3, n_shares=5)
    _, others = make_shamir_seal("eu", master, pages, threshold=3, n_shares=5)
    before = pages.slots_in_use
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
            open_shamir_seal("eu", kid(master), seal, given, pages)
    with pytest.raises(Integrity):  # a whole set, but of another seal
        open_shamir_seal("eu", kid(master), seal, others, pages)
    with pytest.raises(Integrity):
        open_shamir_seal("us", kid(master), seal, shares, pages)
    with pytest.raises(Integrity):
        open_shamir_seal("eu", "0" * 32, seal, shares, pages)
    assert pages.slots_in_use == before


@pytest.mark.parametrize(("threshold", "n_shares"), [(0, 3), (1, 3), (4, 3), (2, 256), (-1, 3)])
def test_a_senseless_threshold_leaves_no_record(tmp_path: Path, pages: KeyPages, threshold: int, n_shares: int) -> None:
    with pytest.raises(Refused):
        seals.found_by_shares(tmp_path, "eu", pages, threshold=threshold, n_shares=n_shares)
    assert list(tmp_path.iterdir()) == []
    assert pages.slots_in_use == 0


# --- the record ------------------------------------------------------------------------------------------------------


def test_the_record_is_one_strict_json_object_and_comes_back(
    tmp_path: Path, pages: KeyPages, master: SecretBytes
) -> None:
    made = new_record(
        "eu",
        master.reveal(),
        [
            make_file_seal(tmp_path, "eu", master, pages),
            make_shamir_seal("eu", master, pages, threshold=2, n_shares=3)[0],
        ],
    )
    seals.save_record(tmp_path, made)
    raw = (tmp_path / MASTER_FILE).read_bytes()
    assert strict_json.dumps(json.loads(raw)) == raw
    assert record_of(tmp_path) == made
    verify_record(record_of(tmp_path), "eu", master.reveal())


OLD_FILE: Final = (
    '{"kid":"644fc5c2f9173731b8e1f19ec3869be0","kind":"file","sealed":"0202c144f0b3db6b267b32fb015e3b3cca0b8905f96b8143'
    "a800c7a212727c466d4f426c91b36e335a8cba4429965275947ae3ee9ecda4fae4250768075b253f82e6b81dcc2d1208d490a4ffc7423c3565"
    'cdabc456ea524fd53d","threshold":0}'
)
OLD_FILE_KEY: Final = "755e35efda87c709a462651ec0f611e6876a3e1e147a6992e3c6df50992c37b6"
OLD_FILE_MASTER: Final = "f997ea20c5b07e9b4460f4e065c077aa5baf2eddc74a59e9223da62837d86d58"
OLD_SHARED: Final = '{"kid":"923eccfa472fe48117b6f8623fd1968f","kind":"shamir","sealed":"","threshold":2}'
OLD_SHARES: Final = (
    "keymesh-share-agujy7i4kznvpdk44fxocmesxdcqeajlllld2setkx5zgmzhhjobobynpwqcwdibjdic77pkxalw2pjj25gsysmfbjhutn4s5ye5"
    "3q5eus4hzbdlpot53m7n",
    "keymesh-share-agujy7i4kznvpdk44fxocmesxdcqea6khbdzaucviqjxvluwkj5rxmp6u35qmjrl3s4qpymnzhwg5kssmychcd4hfy6brovkbpah"
    "jeecopedppr4a5pwx3uk",
)
OLD_SHARED_MASTER: Final = "d66b13e644f0d08f6af0f20ec2115cf99d00b0951402693bf3540de7e1fb9902"


def test_a_file_sealed_record_of_the_first_release_still_opens(tmp_path: Path, pages: KeyPages) -> None:
    (tmp_path / MASTER_FILE).write_text(OLD_FILE)
    write_file(tmp_path / FILE_SEAL_KEY, bytes.fromhex(OLD_FILE_KEY))
    record = record_of(tmp_path)
    (seal,) = record.seals
    assert (record.version, seal.id, seal.kind, seal.parameters) == (1, "file", Kind.FILE, {})
    with open_file_seal(tmp_path, "eu", record.kid, seal, pages) as master:
        assert bytes(master.reveal()).hex() == OLD_FILE_MASTER
        verify_record(record, "eu", master.reveal())
        again = new_record("eu", master.reveal(), record.seals)  # as it is written once something changes
        seals.save_record(tmp_path, again)
        assert record_of(tmp_path).version == 2
        assert open_file_seal(tmp_path, "eu", again.kid, again.seals[0], pages).same_as(master)
    with pytest.raises(Integrity):
        open_file_seal(tmp_path, "us", record.kid, seal, pages)


def test_shares_of_the_first_release_still_open(tmp_path: Path, pages: KeyPages) -> None:
    (tmp_path / MASTER_FILE).write_text(OLD_SHARED)
    record = record_of(tmp_path)
    (seal,) = record.seals
    assert (seal.id, seal.parameters) == ("shamir", {"threshold": 2})
    with open_shamir_seal("eu", record.kid, seal, OLD_SHARES, pages) as master:
        assert bytes(master.reveal()).hex() == OLD_SHARED_MASTER
    with pytest.raises(Integrity):
        open_shamir_seal("eu", "0" * 32, seal, OLD_SHARES, pages)
    assert pages.slots_in_use == 0


GOOD: Final = Seal(id="file", kind=Kind.FILE, sealed="00")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'{"kind":"file"}',
        b'{"kind":1,"kid":"x"}',
        b'{"kind":"file","kid":"x","more":1}',
        b'{"kind":"tpm","kid":"00000000000000000000000000000000"}',
        b'{"kind":"file","kid":"short"}',
        b"x" * 300_000,
        strict_json.dumps({"version": 3, "kid": "0" * 32, "seals": [GOOD], "tag": "0" * 64}),
        strict_json.dumps({"version": 1, "kid": "0" * 32, "seals": [GOOD], "tag": "0" * 64}),
        strict_json.dumps({"version": 2, "kid": "0" * 32, "seals": [GOOD]}),
        strict_json.dumps({"version": 2, "kid": "0" * 32, "seals": [GOOD], "tag": "0" * 63}),
        strict_json.dumps({"version": 2, "kid": "0" * 32, "seals": [], "tag": "0" * 64}),
        strict_json.dumps({"version": 2, "kid": "0" * 32, "seals": [GOOD, GOOD], "tag": "0" * 64}),
        strict_json.dumps({"version": 2, "kid": "0" * 32, "seals": [{"id": "../x", "kind": "file"}], "tag": "0" * 64}),
        strict_json.dumps(
            {
                "version": 2,
                "kid": "0" * 32,
                "seals": [{"id": f"s{n}", "kind": "file"} for n in range(9)],
                "tag": "0" * 64,
            }
        ),
        strict_json.dumps(
            {
                "version": 2,
                "kid": "0" * 32,
                "seals": [{"id": "s", "kind": "file", "sealed": "0" * 20_000}],
                "tag": "0" * 64,
            }
        ),
    ],
    ids=range(19),
)
def test_a_malformed_record_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MASTER_FILE).write_bytes(content)
    with pytest.raises(Refused):
        seals.load_record(tmp_path)
