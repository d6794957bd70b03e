"""A link that does not last is made again ever later, and its reason is said once."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time

import pytest

from keymesh.app.broker_redial import BACKOFF_MAX_S, BACKOFF_MIN_S, LASTING_S, keep_linked
from keymesh.model.errors import Unavailable
from keymesh.model.states import Lane


class Over(Exception):
    """The script is played."""


async def played(lasting: list[tuple[float, str]], monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses after links that last so many seconds and are lost for that reason."""
    now, pauses, links = 0.0, list[float](), iter(lasting)

    async def once() -> None:
        nonlocal now
        try:
            lasts, why = next(links)
        except StopIteration:
            raise Over from None
        now += lasts
        raise Unavailable("broker-away", why)

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: now)
        patch.setattr(random, "uniform", lambda a, b: b)
        patch.setattr(asyncio, "sleep", sleep)
        with pytest.raises(Over):
            await keep_linked(Lane.RESTRICTION, once, lost="link lost")
    return pauses


async def test_the_pause_grows_while_links_do_not_last(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="keymesh.broker"):
        pauses = await played([(0.5, "refused")] * 8, monkeypatch)
    assert pauses[0] == BACKOFF_MIN_S
    assert all(b == min(BACKOFF_MAX_S, a * 2) for a, b in itertools.pairwise(pauses))
    assert pauses[-1] == BACKOFF_MAX_S
    assert len(caplog.records) == 1


async def test_a_link_that_lasted_is_made_again_soon_and_its_end_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="keymesh.broker"):
        pauses = await played([(0.5, "away"), (0.5, "away"), (LASTING_S + 1, "away"), (0.5, "cut")], monkeypatch)
    assert pauses == [BACKOFF_MIN_S, BACKOFF_MIN_S * 2, BACKOFF_MIN_S, BACKOFF_MIN_S * 2]
    assert len(caplog.records) == 3
