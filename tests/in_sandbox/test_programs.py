"""102 programs as models write them: how many pictures a person sees of each.

In programs.txt each begins with `#@ name|number of pictures`: a figure counts once, and
a blank one never. Order and sizes are looked at in test_figures.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from kernels import CONFIG, kernel

from formatter import format_plain

pytestmark = pytest.mark.usefixtures("real_kernels")

TEXT = Path(__file__).with_name("programs.txt").read_text("utf-8")
PROGRAMS = {
    name: (int(pictures), code)
    for name, pictures, code in re.findall(
        r"(?ms)^#@ (\w+)\|(\d+)\n(.*?)(?=^#@ |\Z)", TEXT
    )
}


def test_all_are_read() -> None:
    assert len(PROGRAMS) == TEXT.count("#@ ") == 102


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_shows_each_of_its_figures_once(name: str) -> None:
    pictures, code = PROGRAMS[name]
    with kernel() as new:
        run = new.run(code)
    text = format_plain(run, CONFIG.max_output_chars)
    if run.error_name == "ModuleNotFoundError":
        pytest.skip(f"a package is not installed: {run.error_value}")
    assert len(run.pictures) == pictures, text
