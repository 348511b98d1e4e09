"""A text in bounded memory: it is cut in the middle, exactly."""

from __future__ import annotations

import time

import pytest

from texts.clipped import Clipped


class TestClipped:
    def test_a_text_within_its_limit_is_whole(self) -> None:
        clipped = Clipped(10)
        for piece in ("abc", "", "defgh", "ij"):
            clipped.add(piece)
        assert clipped.head + clipped.tail == "abcdefghij"
        assert clipped.missing == 0

    @pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
    def test_head_and_tail_are_kept_however_it_grows(self, step: int) -> None:
        text, clipped = "".join(map(chr, range(100, 1100))), Clipped(20)
        for start in range(0, len(text), step):
            clipped.add(text[start : start + step])
        assert (clipped.head, clipped.tail) == (text[:10], text[-10:])
        assert clipped.missing == len(text) - 20


def test_many_small_texts_cost_little_however_long_the_text_is_already() -> None:
    clipped = Clipped(1_000_000)
    clipped.add("\U0001f600" * 1_500_000)
    started = time.process_time()
    for number in range(20_000):
        clipped.add(f"{number}\n")
    assert clipped.tail.endswith("19998\n19999\n")
    # Half a second of each would be copying two megabytes, 20,000 times.
    assert time.process_time() - started < 2
    assert len(clipped.head) == len(clipped.tail) == 500_000
    assert (
        clipped.missing
        == 1_500_000 + sum(len(f"{number}\n") for number in range(20_000)) - 1_000_000
    )
