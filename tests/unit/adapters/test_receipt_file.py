"""The receipt file: what a crash may leave at its end, and what nothing may change before that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.ledger.test_receipts import receipt

from keymesh.adapters import receipt_file
from keymesh.adapters.receipt_file import FileReceiptLog, verify_receipt_file
from keymesh.crypto.dsse import Ed25519Signer
from keymesh.ledger.receipts import ReceiptLog
from keymesh.model.errors import Integrity, Refused, Unavailable

SIGNER, OTHER = (Ed25519Signer.from_seed(bytes((i,)) * 32) for i in (1, 2))
KEYS = {SIGNER.key_id: SIGNER.public_key}


def open_log(path: Path) -> FileReceiptLog:
    return FileReceiptLog(path, origin="eu-west", signer=SIGNER, keys=KEYS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "receipts.jsonl"


def written(path: Path, count: int) -> bytes:
    with open_log(path) as log:
        for number in range(1, count + 1):
            log.append(receipt(number))
    return path.read_bytes()


def test_append_reopen_append(path: Path) -> None:
    written(path, 3)
    with open_log(path) as log:
        port: ReceiptLog = log
        port.append_all([receipt(4), receipt(5)])
        port.append_all([])
        assert (log.seq, log.lamport, log.torn_tail) == (5, 5, None)
        assert [record.receipt.id for record in log.records()] == ["r-1", "r-2", "r-3", "r-4", "r-5"]
        assert verify_receipt_file(path, origin="eu-west", keys=KEYS) == (5, log.head)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_torn_tail_is_cut_off_wherever_it_was_torn(path: Path) -> None:
    whole = written(path, 3)
    start = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(start, len(whole), 3):
        path.write_bytes(whole[:cut])
        with open_log(path) as log:
            assert log.seq == 2
            assert (log.torn_tail is None) == (cut == start)
            if log.torn_tail is not None:
                assert (log.torn_tail.offset, log.torn_tail.n_bytes) == (start, cut - start)
            log.append(receipt(3))
        assert path.read_bytes() == whole


def test_a_tail_of_zeros_is_torn(path: Path) -> None:
    whole = written(path, 2)
    for tail in (bytes(4096), b'{"payload":' + bytes(500) + b"\n"):
        path.write_bytes(whole + tail)
        with open_log(path) as log:
            assert log.seq == 2
            assert log.torn_tail is not None
        assert path.read_bytes() == whole


def test_damage_before_the_end_is_integrity_and_stays(path: Path) -> None:
    """The chain vouches for a record's payload; whether its own signature is whole, only an auditor looks."""
    whole = written(path, 4)
    for at in range(0, whole.rindex(b"\n", 0, -1), 7):
        changed = bytearray(whole)
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(Integrity):
            verify_receipt_file(path, origin="eu-west", keys=KEYS)
        line = whole[whole.rfind(b"\n", 0, at) + 1 :]
        if at - (len(whole) - len(line)) < line.index(b'"signatures"'):
            with pytest.raises(Integrity):
                open_log(path)
        assert path.read_bytes() == changed


def test_damage_with_a_torn_tail_behind_it_loses_nothing(path: Path) -> None:
    whole = written(path, 4)
    changed = bytearray(whole + b'{"payl')
    changed[20] ^= 1
    path.write_bytes(changed)
    with pytest.raises(Integrity):
        open_log(path)
    assert path.read_bytes() == changed


def test_a_changed_last_record_is_integrity(path: Path) -> None:
    whole = written(path, 2)
    for at in range(whole.rindex(b"\n", 0, -1) + 1, len(whole) - 1, 5):
        changed = bytearray(whole)
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(Integrity):
            open_log(path)


def test_records_taken_out_swapped_or_repeated(path: Path) -> None:
    lines = written(path, 4).splitlines(keepends=True)
    for order in ([1, 2, 3], [0, 2, 3], [0, 2, 1, 3], [0, 0, 1, 2, 3], [0, 1, 2, 3, 3]):
        path.write_bytes(b"".join(lines[i] for i in order))
        with pytest.raises(Integrity):
            open_log(path)
        with pytest.raises(Integrity):
            verify_receipt_file(path, origin="eu-west", keys=KEYS)


def test_another_origin_or_signer(path: Path) -> None:
    written(path, 2)
    with pytest.raises(Integrity):
        FileReceiptLog(path, origin="us-east", signer=SIGNER, keys=KEYS)
    with pytest.raises(Integrity, match="no known key"):
        FileReceiptLog(path, origin="eu-west", signer=SIGNER, keys={OTHER.key_id: OTHER.public_key})
    with pytest.raises(Integrity, match="record 1"):
        verify_receipt_file(path, origin="eu-west", keys={})


def test_a_new_signing_key_goes_on(path: Path) -> None:
    written(path, 1)
    keys = {**KEYS, OTHER.key_id: OTHER.public_key}
    with FileReceiptLog(path, origin="eu-west", signer=OTHER, keys=keys) as log:
        log.append(receipt(2))
    assert verify_receipt_file(path, origin="eu-west", keys=keys)[0] == 2


def test_one_writer(path: Path) -> None:
    with open_log(path):
        with pytest.raises(Unavailable) as caught:
            open_log(path)
        assert caught.value.code == "receipt-log-locked"
    with open_log(path) as log:
        log.append(receipt())


def test_a_refused_receipt_changes_nothing(path: Path) -> None:
    whole = written(path, 1)
    with open_log(path) as log:
        with pytest.raises(Refused):
            log.append_all([receipt(2), receipt(3, actor="")])
        assert path.read_bytes() == whole
        log.append(receipt(2))
    assert verify_receipt_file(path, origin="eu-west", keys=KEYS)[0] == 2


def test_a_failed_sync_closes_the_log_until_it_is_opened_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = written(path, 1)
    log = open_log(path)

    def fail(fd: int) -> None:
        raise OSError(5, "input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(Unavailable):
            log.append(receipt(2))
    with pytest.raises(Unavailable, match="open the log anew"):
        log.append(receipt(2))
    log.close()
    log.close()
    assert path.read_bytes() == whole
    with open_log(path) as again:
        again.append(receipt(2))
        assert again.seq == 2


def test_a_full_disk_is_unavailable_and_leaves_whole_records(tmp_path: Path) -> None:
    """A limit on the file's size stands in for the full disk: the write comes back short, then fails."""
    path = tmp_path / "receipts.jsonl"
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from tests.unit.adapters.test_receipt_file import open_log, receipt\n"
        "from keymesh.model.errors import Unavailable\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "log = open_log(Path(sys.argv[1]))\n"
        "try:\n"
        "    for number in range(1, 99): log.append(receipt(number))\n"
        "except Unavailable as e: print(log.seq, e.code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    count, said = done.stdout.split()
    assert said == "receipt-log"
    assert int(count) >= 1
    assert verify_receipt_file(path, origin="eu-west", keys=KEYS)[0] == int(count)


def test_when_there_is_room_again_the_log_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "receipts.jsonl"
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from tests.unit.adapters.test_receipt_file import open_log, receipt\n"
        "from keymesh.model.errors import Unavailable\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n"
        "log = open_log(Path(sys.argv[1]))\n"
        "log.append(receipt(1))\n"
        "for limit in (0, Path(sys.argv[1]).stat().st_size + 100):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))\n"
        "    try: log.append(receipt(2))\n"
        "    except Unavailable: print(log.seq)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))\n"
        "log.append(receipt(2))\n"
        "print(log.seq)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        timeout=60,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["1", "1", "2"]), done.stderr
    assert verify_receipt_file(path, origin="eu-west", keys=KEYS)[0] == 2


def test_an_endless_line_is_not_read_into_memory(path: Path) -> None:
    path.write_bytes(b"x" * (receipt_file.LINE_MAX_BYTES + 10) + b"\n")
    with pytest.raises(Integrity):
        open_log(path)
