"""Key pages: wiped, bounded, locked, silent; and what a fork, a small limit or a core dump meets."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keymesh.crypto.pages import PAGE_BYTES, SLOT_BYTES, KeyPages, SecretBytes, key_pages
from keymesh.model.errors import Refused, Unavailable

CANARY = b"canary-key-of-thirty-two-bytes!!"


def secret_of(pool: KeyPages, data: bytes = CANARY) -> SecretBytes:
    return pool.put(bytearray(data))


def test_put_wipes_its_source_where_it_can() -> None:
    source = bytearray(CANARY)
    secret = KeyPages().put(source)
    assert bytes(secret.reveal()) == CANARY
    assert source == bytes(32)
    assert len(secret) == 32
    writable = memoryview(bytearray(CANARY))
    KeyPages().put(writable)
    assert bytes(writable) == bytes(32)


def test_wipe_is_final_and_may_be_repeated() -> None:
    pool = KeyPages()
    secret = secret_of(pool)
    view = secret.reveal()
    secret.wipe()
    secret.wipe()
    assert secret.wiped
    with pytest.raises(ValueError, match="released"):
        bytes(view)
    with pytest.raises(Refused) as caught:
        secret.reveal()
    assert caught.value.code == "key-wiped"
    assert pool.slots_in_use == 0


def test_context_manager_and_garbage_collection_wipe() -> None:
    pool = KeyPages()
    with secret_of(pool) as secret:
        assert pool.slots_in_use == 1
    assert secret.wiped
    secret_of(pool)  # nobody holds it
    assert pool.slots_in_use == 0


def test_the_view_is_read_only() -> None:
    secret = secret_of(KeyPages())
    with pytest.raises(TypeError):
        secret.reveal()[0] = 1


def test_a_slot_that_is_still_read_is_wiped_but_never_used_again() -> None:
    pool = KeyPages(pages_max=1)
    secret = secret_of(pool)
    kept = pickle.PickleBuffer(secret.reveal())  # an export that outlives the wipe
    secret.wipe()
    assert bytes(kept.raw()) == bytes(32)
    others = [secret_of(pool) for _ in range(PAGE_BYTES // SLOT_BYTES - 1)]
    with pytest.raises(Unavailable):
        secret_of(pool)
    assert bytes(kept.raw()) == bytes(32)
    assert len(others) == PAGE_BYTES // SLOT_BYTES - 1


def test_no_way_out_but_reveal() -> None:
    secret = secret_of(KeyPages())
    shown = [repr(secret), str(secret), f"{secret}", f"{secret!r:>40}", format(secret, ">40"), repr([secret])]
    assert all("canary" not in text and "SecretBytes" in text for text in shown)
    leaks: list[Any] = [pickle.dumps, copy.copy, copy.deepcopy, hash, bytes, memoryview, iter]
    for leak in (*leaks, json.dumps, msgspec.json.encode, "".join, b"".join):
        with pytest.raises(TypeError):
            leak(secret)
    with pytest.raises(TypeError, match="same_as"):
        assert secret == secret_of(KeyPages())
    with pytest.raises(TypeError):
        assert secret != CANARY
    with pytest.raises(TypeError):
        pickle.dumps(KeyPages())
    with pytest.raises(AttributeError):
        secret.label = "x"  # type: ignore[attr-defined]


def test_same_as() -> None:
    pool = KeyPages()
    assert secret_of(pool).same_as(secret_of(KeyPages()))
    assert not secret_of(pool).same_as(secret_of(pool, CANARY[:-1] + b"?"))
    assert not secret_of(pool).same_as(secret_of(pool, CANARY[:-1]))


@pytest.mark.parametrize("n_bytes", [0, PAGE_BYTES + 1])
def test_size_limits(n_bytes: int) -> None:
    with pytest.raises(Refused):
        KeyPages().put(bytes(n_bytes))


def test_the_pool_is_bounded_and_recovers() -> None:
    pool = KeyPages(pages_max=1)
    held = [secret_of(pool) for _ in range(PAGE_BYTES // SLOT_BYTES)]
    with pytest.raises(Unavailable) as caught:
        secret_of(pool)
    assert caught.value.code == "key-memory-full"
    held.pop().wipe()
    assert bytes(secret_of(pool).reveal()) == CANARY
    assert len(held) == 127


def test_a_writer_that_fails_leaves_nothing() -> None:
    pool = KeyPages()

    def write(view: memoryview) -> None:
        view[:] = CANARY
        raise OSError("no more entropy")

    with pytest.raises(OSError, match="entropy"):
        pool.fill(32, write)
    assert pool.slots_in_use == 0


def test_wipe_all_reaches_every_secret() -> None:
    pool = KeyPages()
    held = [secret_of(pool) for _ in range(200)]
    views = [secret.reveal() for secret in held]
    pool.wipe_all()
    assert all(bytes(view) == bytes(32) for view in views)
    for secret in held:
        assert secret.wiped
        with pytest.raises(Refused):
            secret.reveal()
        secret.wipe()
    assert bytes(secret_of(pool).reveal()) == CANARY


@given(st.lists(st.tuples(st.integers(1, 300), st.booleans()), max_size=60))
def test_secrets_never_overlap(steps: list[tuple[int, bool]]) -> None:
    """Whatever is taken and given back in between, each secret keeps its own bytes."""
    pool = KeyPages(pages_max=8)
    held: list[tuple[SecretBytes, bytes]] = []
    for i, (n_bytes, drop) in enumerate(steps):
        content = bytes((i % 251 + 1,)) * n_bytes
        held.append((pool.put(content), content))
        if drop:
            held.pop(len(held) // 2)[0].wipe()
        assert all(bytes(secret.reveal()) == expected for secret, expected in held)
    for secret, _ in held:
        secret.wipe()
    assert pool.slots_in_use == 0


def test_threads_share_a_pool() -> None:
    pool = KeyPages()
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(200):
            with pool.put(bytes((i,)) * 40) as secret:
                if bytes(secret.reveal()) != bytes((i,)) * 40:
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert pool.slots_in_use == 0


def test_pages_are_locked_and_kept_out_of_dumps() -> None:
    pool = KeyPages()
    held = secret_of(pool)
    assert pool.all_locked
    flags = [line for line in Path("/proc/self/smaps").read_text().splitlines() if line.startswith("VmFlags:")]
    assert any({"lo", "dd", "wf"} <= set(line.split()) for line in flags)  # locked, no dump, wiped on fork
    assert held.reveal()


def test_a_fork_finds_no_key() -> None:
    secret = secret_of(KeyPages())
    view = secret.reveal()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        answer = b"leak"
        try:
            secret.reveal()
        except Refused:
            answer = b"gone" if bytes(view) == bytes(32) else b"left"
        os.write(writer, answer)
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"gone"
    assert bytes(view) == CANARY


def run(code: str) -> str:
    lines = [
        "import ctypes, resource",
        "from keymesh.crypto.pages import *",
        "from keymesh.model.errors import Refused",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*lines, code])],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_harden_process() -> None:
    out = run(
        "resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]))\n"
        "h = harden_process(allow_unlocked_memory=False)\n"
        "s = resource.getrlimit(resource.RLIMIT_MEMLOCK)\n"
        "print(h.memory_locked, resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3), s[0] == s[1])"
    )
    assert out == "True (0, 0) 0 True"


# A limit of no bytes binds only a process without CAP_IPC_LOCK: give it up first.
UNPRIVILEGED = (
    "import os\n"
    "resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))\n"
    "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
)


def test_memory_that_cannot_be_locked_is_refused_unless_allowed() -> None:
    refused = run(
        UNPRIVILEGED
        + "for make in (lambda: harden_process(allow_unlocked_memory=False), lambda: KeyPages().put(bytes(32))):\n"
        "    try: make()\n"
        "    except Refused as e: print(e.code, e.field)\n"
    )
    assert refused.split() == ["memory-lock", "RLIMIT_MEMLOCK"] * 2
    allowed = run(
        UNPRIVILEGED
        + "h = harden_process(allow_unlocked_memory=True)\n"
        + "print(h.memory_locked, len(key_pages().put(bytes(32))))"
    )
    assert allowed == "False 32"


def test_the_process_has_one_pool() -> None:
    assert key_pages() is key_pages()
