"""Texts that are made to keep a pattern busy, and everybody else waiting."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from in_sandbox.shapes import runnable
from texts.cell import may_be_wrapped
from texts.folding import fold_logged, fold_traceback
from texts.results import is_lost, value_text

# None takes a tenth of a second; with a pattern that goes back it is minutes and more.
LIMIT_S = 10


def lost(formats: dict[str, Any]) -> None:
    is_lost(formats, "")


def value(text: str) -> None:
    value_text({"text": text}, has_picture=False)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (fold_traceback, ("File " + "/site-packages" * 700 + "/x\n") * 3),
        (fold_traceback, "File " + "/lib/python3" * 25_000 + "\n"),
        (fold_logged, f"12:00:00{'1' * 500_000}\n12:00:00.{'1' * 500_000}"),
        (runnable, "```" + " " * 100_000 + "x"),
        (runnable, "``` python " + " " * 100_000 + "`x"),
        (runnable, "```{" + "{" * 100_000 + "x"),
        (runnable, "<|a|>" * 20_000 + "x"),
        (runnable, "'''" * 33_000 + "\\\\n"),
        (may_be_wrapped, "\n" + " " * 500_000 + "x"),
        (may_be_wrapped, ">" + " " * 500_000 + "x"),
        (lost, {"html": "<script>", "vnd." * 25_000 + "load": 1}),
        (lost, {"html": "<script>", **{f"a{n}": 1 for n in range(100_000)}}),
        (value, "a" * 15_000_000),
        (value, "\\n" * 2_000_000),
    ],
    ids=range(14),
)
def test_no_text_keeps_a_pattern_busy(
    function: Callable[[Any], object], text: Any
) -> None:
    started = time.process_time()
    function(text)
    assert time.process_time() - started < LIMIT_S
