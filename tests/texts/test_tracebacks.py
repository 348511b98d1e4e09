"""A traceback speaks of the caller's code, whatever E2B put before it.

The facts are from recordings of E2B's server. The table of codes is run by IPython
itself, once with the lines that E2B puts before a first cell and once without: what is
renumbered must be what there would have been.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import re
import subprocess
import sys
import time
import warnings
from typing import Any

import pytest
from builders import empty_run

from run import Run
from texts.cell import Cell
from texts.tracebacks import prefix_lines, renumber_error, split_headings

DASHES = "-" * 75
SANDBOX_ID = "itls7re05vwhe0hmxkji"
PREFIX = (
    "import os; os.environ['E2B_SANDBOX'] = 'true'\n"
    f"import os; os.environ['E2B_SANDBOX_ID'] = '{SANDBOX_ID}'\n"
    "import os; os.environ['E2B_TEMPLATE_ID'] = 'code-interpreter-v1'\n"
    "\n"
)
SHORT_PREFIX = "import os; os.environ['E2B_SANDBOX'] = 'true'\n\n"
LONG_PREFIX = PREFIX.replace(
    "\n\n", "\n" + "import os; os.environ['A'] = 'b'\n" * 3 + "\n"
)


def heading(name: str) -> str:
    return f"{name:<42}Traceback (most recent call last)"


def quoted(prefix: str) -> str:
    return "".join(
        f"{number:>7} {text}\n" for number, text in enumerate(prefix.splitlines(), 1)
    )


def renumbered(code: str, traceback: str) -> str:
    text = split_headings(traceback)
    prefix = prefix_lines(code, text)
    return renumber_error(text, prefix, is_own_syntax=True)


def renumbered_run(code: str, value: str, traceback: str, stderr: str) -> Run:
    """What the service makes of a failed first cell."""
    run = empty_run(max_output_chars=100_000)
    run.error_value = value
    run.traceback = traceback
    run.stderr.add(stderr)
    Cell(code).mend(run, SANDBOX_ID, was_first=True)
    return run


class TestRecordings:
    def test_headings_stand_on_lines_of_their_own(self) -> None:
        glued = (
            f"{DASHES}{heading('ZeroDivisionError')}Cell In[2], line 1\n----> 1 "
            f"1/0\nZ: division"
        )
        lines = [
            DASHES,
            heading("ZeroDivisionError"),
            "Cell In[2], line 1",
            "----> 1 1/0",
        ]
        assert split_headings(glued).split("\n") == [*lines, "Z: division"]

    def test_an_error_of_the_first_cell_counts_from_the_callers_code(self) -> None:
        glued = (
            f"{DASHES}{heading('ZeroDivisionError')}Cell In[1], line 5\n"
            f"{quoted(PREFIX)}"
            "----> 5 1/0\nZeroDivisionError: division by zero"
        )
        assert renumbered("1/0", glued).split("\n") == [
            *(
                DASHES,
                heading("ZeroDivisionError"),
                "Cell In[1], line 1",
                "----> 1 1/0",
            ),
            "ZeroDivisionError: division by zero",
        ]

    def test_a_syntax_error_does_so_in_its_heading_and_in_its_value(self) -> None:
        run = renumbered_run(
            code="def f(:\n  pass",
            value="invalid syntax (1159740971.py, line 5)",
            traceback="  Cell In[1], line 5\n    def f(:\n          ^\n",
            stderr="",
        )
        assert run.traceback == "  Cell In[1], line 1\n    def f(:\n          ^\n"
        assert run.error_value == "invalid syntax (1159740971.py, line 1)"

    def test_a_warning_does_so_on_stderr(self) -> None:
        text = (
            "/tmp/ipykernel_304/1510321324.py:6: UserWarning: careful\n  "
            "warnings.warn('careful')\n"
        )
        code = "import warnings\nwarnings.warn('careful')\n'v'"
        run = renumbered_run(code, value="", traceback="", stderr=text)
        assert run.stderr.text() == text.replace(".py:6:", ".py:2:")

    def test_a_traceback_in_pythons_own_form_does_so(self) -> None:
        text = '  File "/tmp/ipykernel_304/15.py", line 7, in <module>\n    1/0\n'
        assert renumbered("a\nb\n1/0", text) == text.replace("line 7", "line 3")

    def test_the_rows_of_a_library_keep_their_numbers(self) -> None:
        library = (
            "File /usr/local/lib/python3.13/dist-packages/ipykernel/kernelbase.py:"
            "1274, in f(x)\n"
            "      2 if x:\n   1273     pass\n-> 1274     raise E(msg)\n   1275 "
            "return 1\n"
        )
        text = f"Cell In[1], line 5\n{quoted(PREFIX)}----> 5 input()\n{library}E: no"
        assert (
            renumbered("input()", text)
            == f"Cell In[1], line 1\n----> 1 input()\n{library}E: no"
        )

    def test_a_frame_goes_on_across_a_gap(self) -> None:
        text = (
            "Cell In[1], line 25, in f(a)\n      5 def f(a):\n   (...)\n---> 25  "
            "   1/0\nE: x"
        )
        code = "def f(a):\n" + "    0\n" * 19 + "    1/0"
        want = (
            "Cell In[1], line 21, in f(a)\n      1 def f(a):\n   (...)\n---> 21  "
            "   1/0\nE: x"
        )
        assert renumbered(code, text) == want

    @pytest.mark.parametrize("lines", [2, 3, 7, 40])
    def test_the_lines_before_are_as_many_as_they_are(self, lines: int) -> None:
        at = lines + 2
        text = f"Cell In[1], line {at}\n{at - 1:>7} x = 1\n----> {at} 1/0\nE: x"
        fill = "-" * (len(str(at)) - 1)
        want = (
            f"Cell In[1], line 2\n{1:>{max(7, len(str(at)))}} x = 1\n{fill}----> "
            f"2 1/0\nE: x"
        )
        assert renumbered("x = 1\n1/0", text) == want

    def test_nothing_quoted_means_the_four_lines_that_e2b_has(self) -> None:
        value = "invalid syntax (1385981374.py, line 6)"
        assert renumbered("%%bash\necho hi", value) == value.replace("6", "2")

    def test_a_number_within_the_prefix_stays(self) -> None:
        assert renumbered("1/0", "(15.py, line 3)") == "(15.py, line 3)"

    def test_no_row_of_the_prefix_is_left_even_with_a_wrong_number(self) -> None:
        """Seen under Python 3.11: the rows of a class's frame are counted from its
        first line."""
        rows = [
            f"{number + 4:>7} {text}"
            for number, text in enumerate(PREFIX.splitlines(), 1)
        ]
        text = "\n".join(
            ["Cell In[1], line 7, in A()", *rows, "      9 class A:", "E: x"]
        )
        assert "environ" not in renumbered("class A:\n    x = 1\n    y = x / 0", text)


class TestHostileTexts:
    @pytest.mark.parametrize(
        "start",
        [
            *("Cell In[1], line ", "/tmp/ipykernel_1/2.py:", "(1.py, line ", "<>:"),
            *("Cell In[1], line 5\n", "Cell In[1], line 5\n----> ", "  File <string>:"),
            *("(detected at line ", 'File "/tmp/ipykernel_1/2.py", line '),
        ],
    )
    def test_a_number_of_5000_digits_is_no_line_number(self, start: str) -> None:
        text = start + "9" * 5000
        assert renumbered("1/0", text).endswith("9" * 4900)

    @pytest.mark.parametrize(
        "message",
        [
            "Cell In[1], line 9",
            "see Cell In[1], line 9 and 10",
            "1 one\n      6 six\n----> 7 seven",
            "on line 9",
            "line 9",
        ],
    )
    def test_a_message_is_left_alone(self, message: str) -> None:
        text = f"Cell In[1], line 5\n----> 5 f()\nValueError: {message}"
        assert (
            renumbered("f()", text)
            == f"Cell In[1], line 1\n----> 1 f()\nValueError: {message}"
        )

    @pytest.mark.parametrize(
        "text",
        [
            "Cell In[1], line 5\n" + "1\n" * 60_000 + "9\n" * 60_000,
            "Cell In[1], line 5\n"
            + "".join(f"{n} x\n" for n in range(5, 20_000))
            + "100 y",
            *(" " * 200_000, "-" * 200_000, "ipykernel_1/" * 20_000, "(1" * 100_000),
            "ipykernel_" + "9" * 200_000,
            "Cell In[1], line 5\n" + " " * 100_000 + "-" * 100_000,
        ],
    )
    def test_a_long_one_is_renumbered_in_no_time(self, text: str) -> None:
        started = time.process_time()
        renumbered("x\n" * 50_000, text)
        assert time.process_time() - started < 2


CODES = {
    "one line": "1/0",
    "nested functions": """\
def outer():
    def inner(x):
        return 1 / x
    return inner(0)


# a comment

outer()""",
    "chained": """\
def f():
    try:
        {}['a']
    except KeyError as exc:
        raise ValueError('no') from exc

f()""",
    "in the handling of another": "try:\n    1/0\nexcept Exception:\n    int('x')",
    "lambda": "f = lambda x: 1/x\nlist(map(f, [1, 0]))",
    "method": "class A:\n    def go(self):\n        return self.missing\n\nA().go()",
    "decorator": """\
import functools
def deco(f):
    @functools.wraps(f)
    def w(*a):
        return f(*a)
    return w

@deco
def g(x):
    return 1/x

g(0)""",
    "statement of several lines": "a = 1\nb = (\n    a +\n    1 /\n    0\n)\nprint(b)",
    "dict of several lines": "d = {\n  'a': 1,\n\n\n\n\n\n  'b': 1/0,\n  'c': 2,\n}\n",
    "continued line": "x = 1 + \\\n    2 + \\\n    1/0\n",
    "exec": "src = 'x = 1\\ny = x / 0'\nexec(src)",
    "exec of a file": (
        "a = b = 1\nexec(compile('a\\nb\\nraise OSError(3)', 'other.py', 'exec'))"
    ),
    "eval": "x = 0\neval('1/x')",
    "syntax error in eval": "x = 0\neval('1/')",
    "library": "import decimal\n\n\nimport json\nx = 1\njson.loads('nonsense')",
    "generator": (
        "def g():\n    yield 1\n    raise RuntimeError('g')\n\nfor x in g():\n    pass"
    ),
    "context manager": """\
import contextlib
@contextlib.contextmanager
def m():
    yield
    1/0

with m():
    pass
""",
    "recursion": "def f(n):\n    return f(n + 1)\n\nf(0)",
    "gap in a function": "def f(a):\n    b = 1\n"
    + "".join(f"    c{n} = {n}\n" for n in range(30))
    + "    if a:\n        raise KeyError('q')\n    return b\n\nf(1)\n",
    "repeated lines": "x = 1\nx = 1\nx = 1\nx = 1\nx = 1\n1/0\nx = 1\nx = 1",
    "a hundred lines": "x = 1\n" * 99 + "1/0",
    "indented first line": "  x = 1\n  1/0",
    "indented first line, syntax error": "    y = 2\n    def f(:\n    z = 1",
    "tabs": "def f():\n\tx = 1\n\treturn x/0\n\nf()",
    "trailing spaces": "x = 1   \n1/0   \n",
    "CRLF": "x = 1\r\n1/0\r\n",
    "not ASCII": "é = '—'\n\nraise ValueError(é)",
    "async": (
        "import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    1/0\nawait f()"
    ),
    "note": "e = ValueError('x')\ne.add_note('a note')\nraise e",
    "group": "x = 1\nraise ExceptionGroup('g', [ValueError(1), KeyError(2)])",
    "shell command": "x = 1\n!exit 3\nx = 1\n1/0",
    "message that looks like a heading": (
        "x = 3\nassert x == 4, 'see Cell In[1], line 7'"
    ),
    "rows in a string": (
        "s = '''\n      1 one\n      2 two\n----> 3 three\n'''\nx = s\n1/0"
    ),
    "syntax error": "x = 1\nprint('a'\ny = 2",
    "unterminated string": "x = 1\ny = 'abc\n",
    "unterminated long string": "x = 1\ny = '''abc\nde\n",
    "other parenthesis": "x = [\n1)\n",
    "missing block": "def f():\nreturn 1",
    "missing block of an if": "if 1:\nelse:\n  pass",
    "wrong indentation": "if 1:\n        x = 1\n    y = 2\n",
    "character of a word processor": "x = 1\nprint(“hi”)",
    "return outside a function": "x = 1\nreturn 2",
    "warning": "import warnings\nwarnings.warn('careful')\n'v'",
    "warning and error": "import warnings\nwarnings.warn('b')\n\n1/0\n",
    "warning in a function": (
        "import warnings\ndef f():\n    warnings.warn('a')\n\n\nf()\n"
    ),
    "warning of the compiler": "x = 1\n\nprint(x is 1)\n",
    "unknown escape": "x = 1\ny = '\\d'",
    "traceback printed": (
        "import traceback\ntry:\n    1/0\nexcept:\n    traceback.print_exc()\n"
    ),
}
if sys.version_info >= (
    3,
    13,
):  # as on E2B; under older Pythons IPython quotes other rows here
    CODES["comprehension"] = "xs = [1, 2, 0]\nys = list(\n    1 / x\n    for x in xs\n)"
    CODES["class body"] = "class A:\n    x = 1\n    y = x / 0\n"

# A template with environment variables of its own has more lines than E2B's four.
OTHER_PREFIXES = [
    (name, prefix)
    for prefix in (SHORT_PREFIX, LONG_PREFIX)
    for name in CODES
    if name not in ("wrong indentation", "recursion", "a hundred lines")
]


def tell_tracebacks() -> None:
    """Run each code on stdin in a fresh session of IPython; tell what E2B's server
    would have."""
    from ipykernel.compiler import XCachingCompiler
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    said: list[str] = []

    class Shell(InteractiveShell):  # type: ignore[misc]
        def _showtraceback(self, kind: type, value: object, frames: list[str]) -> None:
            said[:] = [str(value), "".join(frames)]

    config = Config()
    config.InteractiveShell.colors = "NoColor"
    config.HistoryManager.enabled = False
    shell = Shell.instance(config=config, compiler_class=XCachingCompiler)
    told = []
    gc.freeze()  # each reset collects: what is there by now need not be looked through
    sys.setrecursionlimit(
        400
    )  # of endless recursion each frame costs, and no more are quoted
    for code in json.load(sys.stdin):
        shell.reset(new_session=True)
        said[:] = ["", ""]
        stderr = io.StringIO()
        with (
            contextlib.redirect_stderr(stderr),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.resetwarnings()
            warnings.simplefilter("always", UserWarning)
            shell.run_cell(code, store_history=True)
        told.append([*said, stderr.getvalue()])
    json.dump(told, sys.stdout)


def as_first_cell(code: str, prefix: str) -> str:
    """The cell that E2B runs: the prefix is indented like the first line of the
    code."""
    indent = re.match(r"\s*", next(filter(str.strip, code.split("\n"))))
    lines = [
        f"{indent[0] if indent and line else ''}{line}" for line in prefix.split("\n")
    ]
    return "\n".join(lines) + code


@pytest.fixture(scope="module")
def told(untraced: None) -> dict[str, Any]:
    """What IPython says to each cell: value, traceback and stderr, without what
    varies."""
    cells = [
        as_first_cell(code, prefix)
        for prefix in ("", PREFIX)
        for code in CODES.values()
    ]
    cells += [as_first_cell(CODES[name], prefix) for name, prefix in OTHER_PREFIXES]
    child = subprocess.run(
        [sys.executable, "-W", "ignore", __file__],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        input=json.dumps(cells),
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    texts = re.sub(r"ipykernel_\d+/\d+\.py|\d{6,}\.py", same_length, child.stdout)
    return dict(zip(cells, json.loads(texts), strict=True))


def same_length(match: re.Match[str]) -> str:
    return "ipykernel_7/7.py" if "/" in match[0] else "7.py"


def check(told: dict[str, Any], code: str, prefix: str) -> None:
    value, traceback, stderr = told[as_first_cell(code, prefix)]
    run = renumbered_run(code, value, traceback, stderr)
    plain_value, plain_traceback, plain_stderr = told[as_first_cell(code, "")]
    assert run.traceback == split_headings(plain_traceback)
    assert run.error_value == plain_value
    assert run.stderr.text() == plain_stderr
    assert plain_traceback or plain_stderr
    assert SANDBOX_ID not in run.traceback


@pytest.mark.parametrize("name", CODES)
def test_a_renumbered_traceback_is_the_one_there_would_have_been(
    told: dict[str, Any], name: str
) -> None:
    check(told, CODES[name], PREFIX)


@pytest.mark.parametrize(("name", "prefix"), OTHER_PREFIXES)
def test_it_is_so_with_a_template_that_has_more_lines_or_fewer(
    told: dict[str, Any], name: str, prefix: str
) -> None:
    check(told, CODES[name], prefix)


if __name__ == "__main__":
    tell_tracebacks()
