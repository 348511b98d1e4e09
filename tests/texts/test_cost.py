"""What the longest texts cost together: code, output and traceback, read and shown."""

from __future__ import annotations

import time

import pytest
from builders import END, error, lines, stderr, stdout

from config import Config
from formatter import echo, format_plain, format_run
from run import Run
from sandboxes.set_up import SET_UP
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


@pytest.mark.parametrize("piece", TEXTS, ids=range(len(TEXTS)))
def test_no_text_costs_more_than_a_second_or_so(piece: str) -> None:
    text = (piece * (1_000_000 // len(piece) + 1))[:1_000_000]
    halves = (text[:500_000], text[500_000:])
    failure = error("ValueError", "x", traceback=text * 8)
    stream = lines(stdout(halves[0]), stderr(halves[1]), failure, END)
    started = time.process_time()
    cell = Cell(text)
    run = Run.empty(CONFIG.run_limits())
    reader = StreamReader(run)
    cell.for_kernel(SET_UP, limit_s=50)
    for start in range(0, len(stream), 65_536):
        reader.feed(stream[start : start + 65_536])
    cell.mend(run, "a-sandboxs-id")
    shown = format_run(run, CONFIG.max_output_chars) + echo(cell.sent)
    took_s = time.process_time() - started
    assert reader.ended
    assert shown
    assert format_plain(run, CONFIG.max_output_chars)
    assert took_s < LIMIT_S
