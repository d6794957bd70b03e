"""Results are remembered for small arguments only."""

from __future__ import annotations

from keymesh.model.caching import CACHED_MAX_BYTES, cached


def test_what_is_large_is_worked_out_each_time() -> None:
    asked: list[int] = []

    @cached(2, lambda name, raw: len(raw))
    def work(name: str, raw: bytes) -> int:
        asked.append(len(raw))
        return len(raw)

    small, large = bytes(CACHED_MAX_BYTES), bytes(CACHED_MAX_BYTES + 1)
    assert [work("a", small), work("a", small), work("a", large), work("a", large)] == [
        len(small),
        len(small),
        len(large),
        len(large),
    ]
    assert asked == [len(small), len(large), len(large)]
    work("b", small)
    work("c", small)  # the oldest gives way
    work("a", small)
    assert asked[3:] == [len(small)] * 3
