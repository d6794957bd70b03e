"""Our side of PKCS#11 against SoftHSM2 in a worker of its own: what is a no, what is silence, hangs and kills."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from tests.servers.softhsm import by_hand, destroy_key, make_key, named, write_tokens

from keymesh.adapters.pkcs11_config import TokenConfig
from keymesh.adapters.pkcs11_descriptor import Tokens
from keymesh.adapters.pkcs11_l1 import Pkcs11L1
from keymesh.adapters.pkcs11_process import REST_S, TokenProcess
from keymesh.app.servers.softhsm import SoftHsm
from keymesh.core.l1 import L1Denied, L1Unreachable
from keymesh.model.errors import Integrity, Refused, Unavailable

pytestmark = pytest.mark.integration

E = bytes(range(32))


class Hsm:
    """A token with the key ``root``, and a Core's directory that knows it."""

    def __init__(self, path: Path) -> None:
        self.soft = SoftHsm(path / "hsm")
        self.soft.directory.mkdir()
        self.core = path / "core"
        self.core.mkdir()
        self.config = self.soft.init_token("customer", tenant="acme")
        write_tokens(self.core, self.config)
        self.tokens = Tokens(self.core)

    def key(self, label: str = "root") -> Pkcs11L1:
        return self.tokens.open_tenants(named(self.config, label), "acme")

    @property
    def process(self) -> TokenProcess:
        (only,) = self.tokens._open.values()
        return only

    def again(self, **changes: object) -> None:
        """Another access to the same token, from now on."""
        self.config = msgspec.structs.replace(self.config, **changes)
        write_tokens(self.core, self.config)


@pytest.fixture
async def hsm(tmp_path: Path) -> AsyncIterator[Hsm]:
    made = Hsm(tmp_path)
    await made.key().make_key()
    yield made
    await made.tokens.close()


async def rested() -> None:
    """Until a silence is no longer answered from memory."""
    await asyncio.sleep(REST_S + 0.05)


async def silent(key: Pkcs11L1, wrapped: bytes, code: str) -> None:
    with pytest.raises(L1Unreachable) as caught:
        await key.unwrap(wrapped)
    assert caught.value.code == code


async def denied(key: Pkcs11L1, wrapped: bytes, code: str) -> None:
    with pytest.raises(L1Denied) as caught:
        await key.unwrap(wrapped)
    assert caught.value.code == code


async def test_a_key_wraps_and_never_leaves_the_token(hsm: Hsm) -> None:
    root = hsm.key()
    wrapped = await root.wrap(E)
    assert len(wrapped) <= 256 and E not in wrapped
    assert await root.unwrap(wrapped) == E
    assert await root.wrap(E) != wrapped
    shown = by_hand(
        hsm.config,
        "k, = keys('root'); names = 'SENSITIVE EXTRACTABLE ALWAYS_SENSITIVE NEVER_EXTRACTABLE PRIVATE'.split()\n"
        "print([bool(k[getattr(Attribute, n)]) for n in names])\n"
        "try: print(k[Attribute.VALUE])\nexcept pkcs11.AttributeSensitive: print('kept')",
    )
    assert shown.split("\n")[:2] == ["[True, False, True, True, True]", "kept"]
    with pytest.raises(L1Denied):
        await root.make_key()  # there is one
    with pytest.raises(Refused):
        await root.wrap(bytes(65))


async def test_every_changed_bit_and_every_other_key_is_one_answer(hsm: Hsm) -> None:
    await hsm.key("other").make_key()
    root = hsm.key()
    wrapped = await root.wrap(E)
    bad = [wrapped[:n] for n in (0, 1, 17, 18, 19, 30, len(wrapped) - 1)]
    bad += [wrapped[:i] + bytes((wrapped[i] ^ 1,)) + wrapped[i + 1 :] for i in (0, 5, 17, 18, 20, 31, 60, 77)]
    bad += [wrapped + b"\0", b"\0" * 300, await hsm.key("other").wrap(E)]
    seen = set()
    for blob in bad:
        with pytest.raises(Integrity) as caught:
            await root.unwrap(blob)
        seen.add((caught.value.code, caught.value.message))
    assert len(seen) == 1
    assert await root.unwrap(wrapped) == E


async def test_a_key_that_only_wraps_serves_too(hsm: Hsm) -> None:
    make_key(hsm.config, "wrapper", use="WRAP UNWRAP")
    key = hsm.key("wrapper")
    wrapped = await key.wrap(E)
    assert wrapped[17] in (2, 3)
    assert await key.unwrap(wrapped) == E
    for blob in (wrapped[:-1], wrapped[:-1] + bytes((wrapped[-1] ^ 1,)), wrapped[:18], wrapped + bytes(8)):
        with pytest.raises(Integrity):
            await key.unwrap(blob)


async def test_a_key_that_could_leave_the_token_or_cannot_serve_is_refused(hsm: Hsm) -> None:
    make_key(hsm.config, "loose", EXTRACTABLE=True)
    make_key(hsm.config, "plain", SENSITIVE=False)
    for label in ("loose", "plain"):
        with pytest.raises(Refused) as caught:
            await hsm.key(label).wrap(E)
        assert caught.value.field == "key"
    make_key(hsm.config, "signer", use="SIGN VERIFY")
    with pytest.raises(L1Denied):
        await hsm.key("signer").wrap(E)


async def test_a_destroyed_key_is_a_no_and_two_of_a_name_are_not(hsm: Hsm) -> None:
    root = hsm.key()
    wrapped = await root.wrap(E)
    make_key(hsm.config, "root")
    await silent(root, wrapped, "pkcs11-ambiguous")
    destroy_key(hsm.config, "root")
    await denied(root, wrapped, "pkcs11-no-key")
    make_key(hsm.config, "root")  # another key of that label did not wrap it
    with pytest.raises(Integrity):
        await root.unwrap(wrapped)


async def test_use_taken_away_is_a_no(hsm: Hsm) -> None:
    root = hsm.key()
    wrapped = await root.wrap(E)
    by_hand(hsm.config, "k, = keys('root')\nk[Attribute.DECRYPT] = False")
    await denied(root, wrapped, "pkcs11-not-permitted")
    by_hand(hsm.config, "k, = keys('root')\nk[Attribute.DECRYPT] = True")
    assert await root.unwrap(wrapped) == E


async def test_a_token_that_is_taken_away_is_silence_until_it_is_back(hsm: Hsm, tmp_path: Path) -> None:
    root = hsm.key()
    wrapped = await root.wrap(E)
    hsm.soft.tokens.rename(tmp_path / "away")
    await silent(root, wrapped, "pkcs11-library")
    hsm.soft.tokens.mkdir()  # a library that serves, without the token
    await rested()
    await silent(root, wrapped, "pkcs11-token")
    shutil.rmtree(hsm.soft.tokens)
    (tmp_path / "away").rename(hsm.soft.tokens)
    await rested()
    assert await root.unwrap(wrapped) == E


async def test_a_wrong_pin_is_sent_once_and_remembered_across_processes(hsm: Hsm) -> None:
    root = hsm.key()
    wrapped = await root.wrap(E)
    await hsm.tokens.close()
    right = Path(hsm.config.pin_file).read_bytes()
    Path(hsm.config.pin_file).write_bytes(b"0000\n")
    await denied(root, wrapped, "pkcs11-pin")
    assert hsm.process.pid is None
    Path(hsm.config.pin_file).with_name("unchanged").write_bytes(b"")
    later = Tokens(hsm.core)  # as after a restart of the Core
    for _ in range(5):
        await denied(later.open_tenants(named(hsm.config, "root"), "acme"), wrapped, "pkcs11-pin")
    (process,) = later._open.values()
    assert process.pid is None  # no library was loaded, so no PIN was sent
    Path(hsm.config.pin_file).write_bytes(right)
    assert await later.open_tenants(named(hsm.config, "root"), "acme").unwrap(wrapped) == E
    await later.close()
    marks = [file for file in hsm.core.iterdir() if file.name.endswith(".pin-refused")]
    assert len(marks) == 1 and right.strip() not in marks[0].read_bytes()


@pytest.mark.parametrize("how", ["absent", "readable", "directory", "long"])
async def test_a_pin_file_that_cannot_be_used_is_silence(hsm: Hsm, how: str) -> None:
    wrapped = await hsm.key().wrap(E)
    await hsm.tokens.close()
    file = Path(hsm.config.pin_file)
    if how == "readable":
        file.chmod(0o644)
    elif how == "long":
        file.write_bytes(b"1" * 300)
    else:
        file.unlink()
    if how == "directory":
        file.mkdir()
    await silent(hsm.key(), wrapped, "pkcs11-pin-file")


async def test_a_library_that_is_absent_or_is_none_is_silence(hsm: Hsm, tmp_path: Path) -> None:
    wrapped = await hsm.key().wrap(E)
    (tmp_path / "none.so").write_bytes(b"not a library")
    for module in (tmp_path / "absent.so", tmp_path / "none.so", Path("/usr/lib/x86_64-linux-gnu/libc.so.6")):
        hsm.again(module=str(module))
        await silent(hsm.key(), wrapped, "pkcs11-library")


async def test_a_token_that_is_not_configured_is_silence_until_it_is(hsm: Hsm) -> None:
    wrapped = await hsm.key().wrap(E)
    stranger = named(msgspec.structs.replace(hsm.config, token="stranger"), "root")
    await silent(hsm.tokens.open_tenants(stranger, "acme"), wrapped, "pkcs11-not-configured")
    path = hsm.core / "pkcs11.json"
    good = path.read_bytes()
    for bad in (b"", b"{}", b'{"tokens":[{"token":"x"}]}', good[:-2] + b',{"token":"customer"}]}', good * 2):
        path.write_bytes(bad)
        await silent(hsm.key(), wrapped, "pkcs11-not-configured")
    path.unlink()
    await silent(hsm.key(), wrapped, "pkcs11-not-configured")
    path.write_bytes(good)
    assert await hsm.key().unwrap(wrapped) == E


async def test_a_token_answers_its_owner_alone(hsm: Hsm) -> None:
    wrapped = await hsm.key().wrap(E)
    named_by_anyone = named(hsm.config, "root")
    await silent(hsm.tokens.open_tenants(named_by_anyone, "globex"), wrapped, "pkcs11-not-configured")
    await silent(hsm.tokens.open_seals(named_by_anyone), wrapped, "pkcs11-not-configured")
    hsm.again(tenant="", seal=True)  # the region's own: no tenant reaches it by naming it
    await silent(hsm.key(), wrapped, "pkcs11-not-configured")
    assert await hsm.tokens.open_seals(named_by_anyone).unwrap(wrapped) == E
    with pytest.raises(Refused) as refused:
        hsm.tokens.open_tenants(named_by_anyone, "")
    assert refused.value.field == "tenant"


async def test_one_token_cannot_be_given_to_two_by_its_label_alone(hsm: Hsm) -> None:
    wrapped = await hsm.key().wrap(E)
    twin = msgspec.structs.replace(hsm.config, tenant="globex", serial="1")
    write_tokens(hsm.core, hsm.config, twin)
    await silent(hsm.key(), wrapped, "pkcs11-not-configured")


async def test_the_serial_tells_tokens_of_one_label_apart(hsm: Hsm) -> None:
    wrapped = await hsm.key().wrap(E)
    serial = by_hand(hsm.config, "print(token.serial.decode())").strip()
    first = Path(hsm.config.pin_file).read_bytes()
    hsm.soft.init_token("customer")
    Path(hsm.config.pin_file).write_bytes(first)
    await hsm.tokens.close()
    await silent(hsm.key(), wrapped, "pkcs11-token")
    hsm.again(serial=serial)
    assert await hsm.key().unwrap(wrapped) == E


async def test_a_worker_that_hangs_ends_with_the_deadline_and_the_next_one_serves(hsm: Hsm) -> None:
    hsm.again(deadline_ms=1_500)
    root = hsm.key()
    wrapped = await root.wrap(E)
    process = next(p for p in hsm.tokens._open.values() if p.pid is not None and p.access.deadline_s == 1.5)
    assert process.pid is not None
    stopped = process.pid
    os.kill(stopped, signal.SIGSTOP)
    answers = await asyncio.gather(*(root.unwrap(wrapped) for _ in range(4)), return_exceptions=True)
    assert all(isinstance(a, L1Unreachable) and a.code == "pkcs11-deadline" for a in answers), answers
    assert not Path(f"/proc/{stopped}").exists()
    await rested()
    assert await root.unwrap(wrapped) == E


async def test_a_library_that_hangs_when_loaded_holds_up_nobody(hsm: Hsm, tmp_path: Path) -> None:
    wrapped = await hsm.key().wrap(E)
    os.mkfifo(tmp_path / "hangs.so")  # opening it waits for a writer that never comes
    hsm.again(module=str(tmp_path / "hangs.so"), deadline_ms=1_000)
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            beats += 1
            await asyncio.sleep(0.02)

    heart = asyncio.create_task(beat())
    await silent(hsm.key(), wrapped, "pkcs11-deadline")
    heart.cancel()
    assert beats > 10
    assert all(process.pid is None for process in hsm.tokens._open.values() if process.access.deadline_s == 1)


async def test_a_killed_worker_is_replaced_within_the_call(hsm: Hsm) -> None:
    root = hsm.key()
    wrapped = await root.wrap(E)
    for _ in range(3):
        pid = hsm.process.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert await root.unwrap(wrapped) == E
        assert hsm.process.pid != pid


async def test_a_caller_that_leaves_takes_no_ones_answer_along(hsm: Hsm) -> None:
    root = hsm.key()
    blobs = [await root.wrap(bytes((n,)) * 32) for n in range(6)]
    calls = [asyncio.create_task(root.unwrap(blob)) for blob in blobs]
    await asyncio.sleep(0)
    for n in (0, 3):
        calls[n].cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for n, answer in enumerate(answers):
        assert answer == bytes((n,)) * 32 or (n in (0, 3) and isinstance(answer, asyncio.CancelledError))


async def test_too_many_waiting_are_turned_away(hsm: Hsm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keymesh.adapters.pkcs11_process.WAITING_MAX", 3)
    root = hsm.key()
    wrapped = await root.wrap(E)
    answers = await asyncio.gather(*(root.unwrap(wrapped) for _ in range(6)), return_exceptions=True)
    assert answers.count(E) == 3
    assert [a.code for a in answers if isinstance(a, Unavailable)] == ["pkcs11-busy"] * 3


async def test_the_worker_ends_with_its_parent(hsm: Hsm) -> None:
    await hsm.key().wrap(E)
    pid = hsm.process.pid
    assert pid is not None
    assert Path(f"/proc/{pid}/environ").read_bytes().count(b"SOFTHSM2_CONF=") == 1
    pin = Path(hsm.config.pin_file).read_bytes().strip()
    for name in ("cmdline", "environ"):
        assert pin not in Path(f"/proc/{pid}/{name}").read_bytes()
    await hsm.tokens.close()
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"module": "libsofthsm2.so"}, "module"),
        ({"token": ""}, "token"),
        ({"token": "t" * 33}, "token"),
        ({"token": "a\nb"}, "token"),
        ({"serial": "s" * 33}, "serial"),
        ({"pin_file": ""}, "pin_file"),
        ({"tenant": ""}, "tenant"),
        ({"seal": True}, "tenant"),
        ({"tenant": "../acme"}, "tenant"),
        ({"deadline_ms": 0}, "deadline_ms"),
        ({"deadline_ms": 60_001}, "deadline_ms"),
        ({"env": {"A=B": "c"}}, "env"),
        ({"env": {str(n): "" for n in range(17)}}, "env"),
    ],
    ids=str,
)
def test_a_tokens_configuration_is_checked(change: dict[str, object], field: str) -> None:
    good = TokenConfig(token="customer", tenant="acme", module="/usr/lib/p11.so", pin_file="pin")
    good.check()
    with pytest.raises(Refused) as caught:
        msgspec.structs.replace(good, **change).check()
    assert caught.value.field == field
