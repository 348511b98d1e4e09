"""The value of a run: its text is cut in the middle, exactly."""

from __future__ import annotations

import pytest

from run import Clipped


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
