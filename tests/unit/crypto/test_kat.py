"""The start-up self-test passes here, is quick, and stops the process whichever part of it fails."""

from __future__ import annotations

import time

import pytest

from keymesh.crypto import kat
from keymesh.model.errors import Integrity


def test_known_answers_hold_and_are_quick() -> None:
    kat.run_known_answer_tests()
    started = time.process_time()
    kat.run_known_answer_tests()
    assert time.process_time() - started < 0.05


@pytest.mark.parametrize("name", sorted(kat.TESTS))
def test_each_failure_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash() -> bool:
        raise ValueError("broken library")

    for broken in (lambda: False, crash):
        monkeypatch.setitem(kat.TESTS, name, broken)
        with pytest.raises(Integrity, match=name):
            kat.run_known_answer_tests()
