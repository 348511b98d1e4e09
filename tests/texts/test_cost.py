"""What the longest texts cost together: code, output and traceback, read and shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from builders import END, SET_UP, error, lines, stderr, stdout

from config import Config
from formatter import echo, format_plain, format_run
from run import Run
from sandboxes.set_up import for_kernel
from sandboxes.stream import StreamReader
from texts.cell import Cell

CONFIG = Config(max_code_chars=1_000_000, max_output_chars=1_000_000)
# It is promised to be under 1 s, and took 0.65 s at most. A busy machine takes longer.
LIMIT_S = 2
TEXTS = [
    "\n",
    "\r\n",
    "#\n",
    "# a\r\n",
    "'\n",
    "```\n",
    "~~~\n",
    "x\n",
    "1\n",
    "12:00:00 a\n",
    "\nFile \n",
    "Cell In[1], line 5\n      1 x\n",
    "ipykernel_1/1.py:1: UserWarning\n x\n",
    "\u202e",
    "\x1b[",
    "\x00",
    "\U0001f600",
]


def cost_s(piece: str) -> float:
    """Seconds of CPU for a call that has this in all of its texts, to their limits."""
    text = (piece * (1_000_000 // len(piece) + 1))[:1_000_000]
    halves = (text[:500_000], text[500_000:])
    failure = error("ValueError", "x", traceback=text * 8)
    stream = lines(stdout(halves[0]), stderr(halves[1]), failure, END)
    started = time.process_time()
    cell = Cell(text)
    run = Run.empty(CONFIG.run_limits())
    reader = StreamReader(run)
    for_kernel(cell, SET_UP, limit_s=50)
    for start in range(0, len(stream), 65_536):
        reader.feed(stream[start : start + 65_536])
    cell.mend(run, "a-sandboxs-id")
    shown = format_run(run, CONFIG.max_output_chars) + echo(cell.sent)
    took_s = time.process_time() - started
    assert reader.ended
    assert shown
    assert format_plain(run, CONFIG.max_output_chars)
    return took_s


@pytest.fixture(scope="module")
def costs_s(untraced: None) -> list[float]:
    """Measured in a process of its own: measuring coverage takes twice the time."""
    child = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    costs: list[float] = json.loads(child.stdout)
    return costs


@pytest.mark.parametrize("number", range(len(TEXTS)))
def test_no_text_costs_more_than_a_second_or_so(
    costs_s: list[float], number: int
) -> None:
    assert costs_s[number] < LIMIT_S, repr(TEXTS[number])


if __name__ == "__main__":
    print(json.dumps([cost_s(piece) for piece in TEXTS]))
