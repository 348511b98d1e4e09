"""How much there is to understand is what the README says."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import size
from size import Size, service_files, size_of, sizes_by_file

ROOT = Path(__file__).parents[2]
# Counted once, and only by the worker that runs these tests.
counted_sizes = functools.cache(sizes_by_file)


def total() -> Size:
    return size.total(list(counted_sizes().values()))


def test_the_readme_says_how_much_there_is_to_read() -> None:
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    found = re.search(r"([\d,]+) lines of Python .* about ([\d.]+) hours", readme)
    assert found
    # To the hundred: not each commit changes the README.
    assert abs(int(found[1].replace(",", "")) - total().lines) <= 100
    assert abs(float(found[2]) - size.hours_to_read(total())) <= 0.25


def test_the_service_is_all_but_tests_and_tools() -> None:
    names = {str(path.relative_to(ROOT)) for path in service_files()}
    assert {"proxy.py", "gunicorn.conf.py", "code_api/store.py"} <= names
    assert not {"test_proxy.py", "conftest.py", "dev/size.py"} & names


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("", Size(1, 0)),
        ("x = 1  # why\n", Size(5, 1)),
        ('"""Three\n\nlines."""\n\n# A comment.\nx = 1\n', Size(7, 1)),
        ('text = """Two\nlines."""\n', Size(5, 2)),
        ("x = (\n    # why\n    1\n)\n", Size(5, 3)),
    ],
    ids=["nothing", "a line", "a docstring", "a text", "a call"],
)
def test_lines_without_comments_docstrings_and_blanks_are_counted(
    source: str, expected: Size
) -> None:
    assert size_of(source) == expected


def test_the_command_prints_each_file_and_the_total() -> None:
    finished = subprocess.run(
        [sys.executable, str(ROOT / "dev" / "size.py")],
        capture_output=True,
        text=True,
        check=True,
    )
    for name, each in [*counted_sizes().items(), ("total", total())]:
        figures = rf"{each.nodes:,} +{each.lines:,} +{each.nodes_per_line:.1f}"
        assert re.search(rf"^{re.escape(name)} +{figures}$", finished.stdout, re.M)
