"""Which errors get a line that saves a turn, and which near ones get none."""

from __future__ import annotations

import pytest
from builders import empty_run

from formatter import format_plain, format_run
from run import Run
from texts.hints import add_hint

INSTALL = (
    "a line `%pip install -q {}` before the imports, in the same call, installs it."
)
NO_FILE = (
    "files of the chat do not come to this tool. Put what they hold into the code."
)
NO_NETWORK = "Hint: there is no network here, so that nothing can be loaded.\n"
DNS = "[Errno -3] Temporary failure in name resolution"


def hinted(name: str, value: str, has_network: bool = True) -> Run:
    run = empty_run()
    run.outcome = "error"
    run.add_error(name, value, f"{name}: {value}")
    add_hint(run, has_network=has_network)
    return run


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        (
            "ModuleNotFoundError",
            "No module named 'polars'",
            f"Hint: polars is not installed here; {INSTALL.format('polars')}\n",
        ),
        (
            "ModuleNotFoundError",
            "No module named 'pptx'",
            f"Hint: pptx is not installed here; {INSTALL.format('python-pptx')}\n",
        ),
        (
            "ImportError",
            "Missing optional dependency 'tabulate'.  Use pip or conda to install it.",
            f"Hint: tabulate is not installed here; {INSTALL.format('tabulate')}\n",
        ),
        (
            "FileNotFoundError",
            "[Errno 2] No such file or directory: '/mnt/data/sales 2024.csv'",
            f"Hint: /mnt/data/sales 2024.csv is not here: {NO_FILE}\n",
        ),
    ],
)
def test_an_error_that_is_well_known_has_a_hint(
    name: str, value: str, hint: str
) -> None:
    run = hinted(name, value)
    assert run.stderr.text() == hint
    assert hint.strip() in format_plain(run, 10_000)
    assert hint.strip() in format_run(run, 10_000)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ModuleNotFoundError", "No module named 'my_module'"),
        ("ModuleNotFoundError", "No module named 'utils'"),
        ("ModuleNotFoundError", "No module named 'docx.nothing'"),
        ("ModuleNotFoundError", "No module named 'cv2'"),
        ("ImportError", "cannot import name 'x' from 'polars' (/a/polars.py)"),
        ("ImportError", "libGL.so.1: cannot open shared object file"),
        ("NameError", "No module named 'polars'"),
        ("FileNotFoundError", "[Errno 2] No such file or directory: 'sales.csv'"),
        ("FileNotFoundError", "[Errno 2] No such file or directory: '/mnt/data'"),
        # This may be about a folder that is missing, for a file that is to be written.
        (
            "FileNotFoundError",
            "[Errno 2] No such file or directory: '/mnt/data/o/a.png'",
        ),
        ("FileNotFoundError", "[Errno 2] No such file or directory: '/tmp/mnt/data/a'"),
        ("IsADirectoryError", "[Errno 21] Is a directory: '/mnt/data/a'"),
        # A host that is not known is no sign of a network that is not there.
        ("gaierror", DNS),
        ("ConnectionError", "Failed to resolve 'a.b' (Name or service not known)"),
        ("", ""),
    ],
)
def test_an_error_that_is_near_to_one_has_none(name: str, value: str) -> None:
    assert not hinted(name, value).stderr.text()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gaierror", DNS),
        ("URLError", f"<urlopen error {DNS}>"),
        ("ConnectionError", f"HTTPSConnectionPool(host='a.b'): Max … ({DNS})"),
        ("OSError", "[Errno 101] Network is unreachable"),
    ],
)
def test_where_there_is_no_network_that_is_said(name: str, value: str) -> None:
    assert hinted(name, value, has_network=False).stderr.text() == NO_NETWORK


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ConnectionRefusedError", "[Errno 111] Connection refused"),
        ("TimeoutError", "timed out"),
        ("ValueError", "no host"),
    ],
)
def test_a_failure_that_needs_no_network_is_none_of_it(name: str, value: str) -> None:
    assert not hinted(name, value, has_network=False).stderr.text()


def test_without_a_network_nothing_is_said_of_pip() -> None:
    text = hinted(
        "ModuleNotFoundError", "No module named 'polars'", False
    ).stderr.text()
    assert text == (
        "Hint: polars is not installed here, and there is no network to get it from.\n"
    )


def test_a_hint_stands_on_a_line_of_its_own() -> None:
    run = empty_run()
    run.stderr.add("a warning without an end")
    run.error_name, run.error_value = "ModuleNotFoundError", "No module named 'polars'"
    add_hint(run, has_network=True)
    assert run.stderr.text().startswith("a warning without an end\nHint: polars")
