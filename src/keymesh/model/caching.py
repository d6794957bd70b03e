"""A memory of pure functions' results that is bounded in bytes, not only in number (I17)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")

CACHED_MAX_BYTES = 4_096
"""What is larger is worked out each time: a cache of ``n`` holds at most ``n`` times this much of others' bytes."""


def cached(n: int, size: Callable[..., int]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Remember the ``n`` latest results of calls whose arguments ``size`` finds small enough.

    For functions of positional arguments.
    """

    def decorate(work: Callable[P, R]) -> Callable[P, R]:
        remembered = lru_cache(maxsize=n)(work)

        def ask(*args: Any) -> Any:
            return remembered(*args) if size(*args) <= CACHED_MAX_BYTES else work(*args)  # type: ignore[call-arg]

        return cast(Callable[P, R], wraps(work)(ask))

    return decorate
