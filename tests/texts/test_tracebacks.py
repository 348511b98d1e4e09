"""The lines of a traceback that E2B's server joins are apart again."""

from __future__ import annotations

import pytest

from texts.tracebacks import split_headings, split_notes

DASHES = "-" * 75


def heading(name: str) -> str:
    return f"{name:<42}Traceback (most recent call last)"


@pytest.mark.parametrize(
    "lines",
    [
        [DASHES, heading("ZeroDivisionError"), "Cell In[2], line 1\n----> 1 1/0"],
        [DASHES, heading("KeyError"), "File /usr/lib/a.py:3, in f(x)\n      3 x"],
        ["During handling, another exception occurred:", DASHES, heading("E")],
        ["'Could not get it, probably due dynamically evaluated source code.'", "F"],
    ],
)
def test_headings_stand_on_lines_of_their_own(lines: list[str]) -> None:
    assert split_headings("".join(lines)) == "\n".join(lines)


@pytest.mark.parametrize(
    "text", ["", "x", "Cell In[1], line 5\n----> 5 f()", f"{DASHES}\n{heading('E')}\nx"]
)
def test_other_texts_stay(text: str) -> None:
    assert split_headings(text) == text


def test_notes_stand_on_a_line_of_their_own() -> None:
    assert split_notes("a\nE: bhint", "E: b") == "a\nE: b\nhint"
    assert split_notes("a\nE: b\n", "E: b") == "a\nE: b\n"
