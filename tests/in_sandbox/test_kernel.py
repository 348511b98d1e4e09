"""What in_sandbox/kernel.py does in real kernels: cells, their errors, its failures."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator

import pytest
from builders import SET_UP
from kernels import Kernel, kernel

from config import Config
from run import Run
from sandboxes.set_up import FILES, bare, for_kernel, packed, read_sources, set_up_lines
from texts.cell import Cell

pytestmark = pytest.mark.usefixtures("real_kernels")
SOURCES = dict(zip(FILES, read_sources(), strict=True))
KERNEL_PY, FIGURES_PY, *_ = SOURCES.values()
# With its headers it is sent before TCP waits for an answer: ten packets.
MAX_FIRST_CELL_BYTES = 12_000
MAX_LATER_CELL_BYTES = 60


@pytest.fixture(scope="module")
def shared() -> Iterator[Kernel]:
    """A kernel for tests that leave nothing behind: starting one takes a while."""
    with kernel() as started:
        started.run("pass")
        yield started


# --- what is sent ---------------------------------------------------------------------


def test_what_is_sent_is_small() -> None:
    code = "print(1)"
    assert len(for_kernel(Cell(code), SET_UP, 60)) < MAX_FIRST_CELL_BYTES
    assert len(for_kernel(Cell(code), "", 60)) <= len(repr(code)) + MAX_LATER_CELL_BYTES


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_the_files_are_python_3_8(source: str) -> None:
    ast.parse(source, feature_version=(3, 8))


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_what_is_sent_has_no_comments_and_docstrings_and_is_python_3_8(
    source: str,
) -> None:
    sent = bare(source)
    ast.parse(sent, feature_version=(3, 8))
    assert '"""' not in sent
    assert "#" not in sent


def test_a_docstring_that_is_all_there_is_leaves_a_body() -> None:
    source = '"""It."""\nclass Own(Exception):\n    """Why."""\n\ndef f():\n    "x"\n'
    assert bare(source) == "class Own(Exception):\n    pass\n\ndef f():\n    pass"


# --- the caller's lines ---------------------------------------------------------------

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


def told(run: Run) -> tuple[str, ...]:
    """What a run says, without what differs from one kernel to another.

    Python 3.13 compiles some cells twice, and says each warning as often."""
    stderr = re.sub(r"(?m)^(.+\n)\1+", r"\1", run.stderr.text())
    texts = (run.error_name, run.error_value, run.traceback, stderr)
    return tuple(
        re.sub(r"/\S*ipykernel_\d+/\d+\.py|\d{6,}\.py|0x[0-9a-f]+", "…", t)
        for t in texts
    )


@pytest.fixture(scope="module")
def plain() -> Iterator[Kernel]:
    """A kernel in which a cell has run that took E2B's own lines, and no other."""
    with kernel() as started:
        started.run_as_it_is("pass")
        yield started


@pytest.fixture(scope="module")
def same_numbers() -> Iterator[Kernel]:
    """A kernel in which as many cells have run as in `plain`."""
    with kernel() as started:
        started.run("pass")
        yield started


# IPython compiles each code twice where it looks for `await`, in a cell that is not
# nested: the compiler's warnings come twice. And a nested cell is some frames deeper.
OTHERWISE = {"warning of the compiler", "recursion"}


@pytest.mark.parametrize("name", sorted(CODES.keys() - OTHERWISE))
def test_an_error_or_a_warning_is_the_one_of_a_cell_of_its_own(
    plain: Kernel, same_numbers: Kernel, name: str
) -> None:
    code = CODES[name]
    assert told(same_numbers.run(code)) == told(plain.run_as_it_is(code))


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("x = 1\n1/0", ("Cell In[1], line 2\n", "----> 2 1/0")),
        ("import warnings\nwarnings.warn('w')\n", (".py:2: UserWarning: w",)),
        ("x = 1\nprint('a'\ny = 2", ("Cell In[1], line 2\n",)),
        ("  if 1:\n      x = 1\n    y = 2", (">:3\n", "IndentationError")),
    ],
)
def test_a_first_cell_has_the_callers_lines(code: str, lines: tuple[str, ...]) -> None:
    with kernel() as new:
        text = new.text(code)
    for line in lines:
        assert line in text
    assert "environ" not in text
    assert "run_cell" not in text


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("%%bash\necho hello", "hello\n"),
        ("%%writefile a.txt\nx\n", "Writing a.txt\n"),
        ("!echo hello", "hello\r\n"),
        ("%pwd\nprint(1)", "1\n"),
        ("print('''\n%%time\n!ls\n''')", "\n%%time\n!ls\n\n"),
        ("print('\\\\n', \"'\", '\\u2028', '\N{PARTY POPPER}')", "\\n ' \u2028 🎉\n"),
        ("print(1)\r\nprint(2)\r\n", "1\n2\n"),
    ],
)
def test_a_first_cell_may_be_of_any_kind(code: str, text: str) -> None:
    with kernel() as new:
        assert new.printed(code) == text


# --- the state that cells share -------------------------------------------------------


def test_cells_of_a_kernel_share_what_a_notebooks_cells_share() -> None:
    with kernel() as new:
        assert new.run("6 * 7").values.text() == "42"
        assert new.printed("print(_, Out[1], In[1], len(In))") == "42 42 6 * 7 3\n"
        assert new.run("1/0").error_name == "ZeroDivisionError"
        assert "Cell In[4], line 2" in new.text("x = (\n1")
        assert new.printed("%%bash\necho hello") == "hello\n"
        assert new.run("print('a')\nexit()\nprint('b')").stdout.text() == "a\n"
        assert new.printed("quit_was_no_end = 1\nprint(Out[1])") == "42\n"
        assert new.printed("%history").startswith("6 * 7\nprint(_, Out[1], In[1]")


def test_what_is_awaited_is_awaited_in_one_loop() -> None:
    with kernel() as new:
        new.run(
            "import asyncio\nasync def f():\n    return await asyncio.sleep(0.05, 7)"
        )
        assert new.printed("print(await f())") == "7\n"
        new.run("async def wait(event):\n    await event.wait()\n    return 8")
        new.run("event = asyncio.Event()\ntask = asyncio.create_task(wait(event))")
        assert new.printed("event.set()\nprint(await task)") == "8\n"
        assert new.printed("print(asyncio.run(f()))") == "7\n"
        assert (
            new.printed("print(asyncio.get_event_loop().run_until_complete(f()))")
            == "7\n"
        )
        assert (
            new.printed(
                "async def late():\n    print(await f())\n"
                "_ = asyncio.create_task(late())\nprint(1)"
            )
            == "1\n7\n"
        )
        assert (
            new.printed(
                "import nest_asyncio\nnest_asyncio.apply()\nprint(asyncio.run(f()))"
            )
            == "7\n"
        )
        assert new.printed("print(await f())") == "7\n"


def test_no_name_and_no_module_is_left() -> None:
    names = "sorted(n for n in globals() if n != 'os')"
    modules = (
        "import sys; sorted(m for m in sys.modules if not m.startswith('encodings'))"
    )
    with kernel() as new, kernel() as other:
        other.run_as_it_is("pass")
        new.run("pass")
        assert new.run(names).values.text() == other.run_as_it_is(names).values.text()
        assert (
            new.run(modules).values.text() == other.run_as_it_is(modules).values.text()
        )


# --- what the kernel knows ------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "value"),
    [
        (r"'line1\nline2'", "line1\nline2"),
        (r"'C:\\new'", r"C:\new"),
        ("'\"quoted\"'", '"quoted"'),
        ('"it\'s"', "it's"),
        ("b'a\\nb'", r"b'a\nb'"),
        ("['a\\nb']", r"['a\nb']"),
        (
            "class Folder:\n    def __repr__(self): return 'C:\\\\new'\nFolder()",
            r"C:\new",
        ),
        ("'x';", ""),
        ("print('a')\nNone", ""),
        ("display('a\\tb')", "a\tb"),
    ],
)
def test_a_value_is_shown_as_what_it_is(shared: Kernel, code: str, value: str) -> None:
    run = shared.run(code)
    assert run.values.text() == value
    assert run.outcome == "ok"


@pytest.mark.parametrize(
    ("code", "outcome", "text"),
    [
        ("exit()", "ok", ""),
        ("quit()", "ok", ""),
        ("import sys\nsys.exit()", "ok", ""),
        ("raise SystemExit(0)", "ok", ""),
        ("import sys\nsys.exit(3)", "error", "SystemExit: 3"),
        ("import sys\nsys.exit('no file')", "error", "SystemExit: no file"),
        ("raise SystemExit('')", "error", "SystemExit: "),
    ],
)
def test_an_exit_ends_the_cell_and_not_the_kernel(
    shared: Kernel, code: str, outcome: str, text: str
) -> None:
    shared.run("kept = 41")
    run = shared.run(f"print('before')\n{code}\nprint('after')")
    assert (run.outcome, run.traceback) == (outcome, text)
    assert (run.stdout.text(), run.stderr.text()) == ("before\n", "")
    assert shared.printed("print(kept)") == "41\n"


def test_a_program_has_arguments_of_its_own(shared: Kernel) -> None:
    code = (
        "import argparse\np = argparse.ArgumentParser()\n"
        "p.add_argument('--n', type=int, default=3)\nprint(p.parse_args().n, p.prog)"
    )
    assert shared.printed(code) == "3 main.py\n"
    run = shared.run("p.parse_args(['--m', '1'])")
    assert run.error_name == "SystemExit"
    assert "unrecognized arguments: --m 1" in run.stderr.text()
    assert "To exit" not in run.stderr.text()


def test_input_says_at_once_that_nobody_can_answer(shared: Kernel) -> None:
    for code in (
        "input('Your name? ')",
        "import getpass\ngetpass.getpass('Your name? ')",
    ):
        run = shared.run(code)
        assert run.error_name == "EOFError"
        assert "'Your name? '" in run.error_value
        assert "in_kernel" not in run.traceback
        assert run.traceback.count("----> ") == 1
    code = (
        "try:\n    name = input()\nexcept EOFError:\n    name = 'nobody'\nprint(name)"
    )
    assert shared.printed(code) == "nobody\n"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (r"print('Great \ud83d\ude00')", "Great 😀\n"),
        (r"print('caf\u00e9 \ud800')", "café ?\n"),
        (r"print(r'\ud83d\ude00')", "\\ud83d\\ude00\n"),
        (r"print('before'); print('\ud83d'); print('after')", "before\n?\nafter\n"),
    ],
)
def test_halves_of_characters_lose_nothing(
    shared: Kernel, code: str, text: str
) -> None:
    assert shared.printed(code) == text


def test_code_with_half_a_character_is_an_error_and_no_more(shared: Kernel) -> None:
    assert shared.run("'\ud800'").error_name == "UnicodeEncodeError"
    assert shared.printed("print(1)") == "1\n"


def test_an_error_of_a_group_is_the_runs(shared: Kernel) -> None:
    run = shared.run("print(1)\nraise ExceptionGroup('several', [ValueError('a')])")
    assert (run.outcome, run.error_name) == ("error", "ExceptionGroup")
    assert run.stderr.text().count("ValueError: a") == 1
    assert shared.run("%nosuch").error_name == "UsageError"


def test_a_large_table_is_shown_as_its_first_and_last_rows(shared: Kernel) -> None:
    code = "import pandas as pd\npd.DataFrame({'a': range(200_000), 'b': 'x' * 90})"
    run = shared.run(code)
    assert "199999" in run.values.text()
    assert not run.left_out
    assert len(run.values.text()) < 2_000


def test_cells_within_a_cell_are_the_callers(shared: Kernel) -> None:
    assert shared.printed("get_ipython().run_cell('print(5)');") == "5\n"
    assert shared.printed("%%capture out\nprint(6)") == ""
    assert shared.printed("print(out.stdout, end='')") == "6\n"


# --- what was not waited for ----------------------------------------------------------

SLEEP = "import subprocess, threading, time\nfrom concurrent.futures import *\n"


@pytest.mark.parametrize(
    ("code", "printed"),
    [
        ("threading.Timer(0.3, print, ['late']).start()", "late\n"),
        ("threading.Thread(target=lambda: (time.sleep(0.3), print(1))).start()", "1\n"),
        ("ThreadPoolExecutor(1).submit(lambda: (time.sleep(0.3), print(3)));", "3\n"),
        ("e = ThreadPoolExecutor(1)\nr = e.map(lambda n: (time.sleep(0.2), print(n)),"
         " 'ab')", "a\nb\n"),
        ("ThreadPoolExecutor(1).submit(lambda: 1 / 0);", ""),
        ("subprocess.Popen(['sh', '-c', 'sleep 0.3; echo later']);", "later\n"),
        ("subprocess.run(['true']);", ""),
        ("import asyncio\nasync def f():\n    await asyncio.sleep(0.3); print(4)\n"
         "t = asyncio.create_task(f())", "4\n"),
    ],
)  # fmt: skip
def test_what_the_code_has_begun_is_waited_for(
    shared: Kernel, code: str, printed: str
) -> None:
    assert shared.printed(SLEEP + code) == printed


def test_a_thread_of_the_callers_own_class_is_waited_for() -> None:
    # In a kernel of its own: ipykernel takes such a thread for an earlier one that had
    # its identity, and sends what it prints to that one's cell.
    code = (
        "class Own(threading.Thread):\n    def run(self): time.sleep(0.3); print(2)\n"
    )
    with kernel() as new:
        assert new.printed(f"{SLEEP}{code}Own().start()") == "2\n"


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("threading.Thread(target=w, name='server').start()", "thread server"),
        ("t = threading.Timer(30, print); t.name = 'alarm'; t.start()", "thread alarm"),
        ("ThreadPoolExecutor(1).submit(w);", "call of an executor"),
        ("p = subprocess.Popen(['sleep', '30'])", "process ['sleep', '30']"),
        ("import asyncio\nt = asyncio.create_task(asyncio.sleep(30), name='poll')",
         "task poll"),
        ("e = ThreadPoolExecutor(9)\nfor n in range(7): e.submit(w)",
         ", ".join(["call of an executor"] * 5)),
    ],
)  # fmt: skip
def test_what_goes_on_is_named_in_one_line(code: str, name: str) -> None:
    with kernel() as new:
        run = new.run(f"{SLEEP}def w(): time.sleep(30)\n{code}\nprint(1)")
        assert run.outcome == "ok"
        assert run.stdout.text() == "1\n"
        assert run.stderr.text().count("\n") == 1
        assert f"still running at the end: {name}\n" in run.stderr.text()
        # It is named once.
        assert new.printed("print(2)") == "2\n"


@pytest.mark.parametrize(
    "code",
    [
        "threading.Thread(target=w, daemon=True).start()",
        "e = ThreadPoolExecutor(2); e.submit(int).result()",
        "from http.server import HTTPServer, BaseHTTPRequestHandler as H\n"
        "s = HTTPServer(('127.0.0.1', 0), H)\n"
        "threading.Thread(target=s.serve_forever, daemon=True).start()",
        # A library's own, which calls neither of these from the caller's code.
        "import queue, logging.handlers as h\n"
        "listener = h.QueueListener(queue.Queue()); listener.start()",
        "with ThreadPoolExecutor(2) as e: e.submit(time.sleep, 0.01)",
    ],
)
def test_what_nobody_would_wait_for_is_not_named(shared: Kernel, code: str) -> None:
    assert shared.printed(f"{SLEEP}def w(): time.sleep(30)\n{code}\nprint(1)") == "1\n"


def test_waiting_ends_before_the_runs_limit() -> None:
    with kernel() as new:
        code = "import threading\nthreading.Thread(target=input).start()"
        assert new.run(code).outcome == "ok"
        cell = Cell("threading.Thread(target=threading.Event().wait).start()")
        run = Run.empty(Config(max_output_chars=1000).run_limits())
        new.sandbox.run(for_kernel(cell, "", 3), 3, run)
        assert run.outcome == "ok"
        assert "still running" in run.stderr.text()


def test_a_coroutine_that_did_not_run_says_how_to_run_it(shared: Kernel) -> None:
    run = shared.run("async def main(n): return n\nmain(3)")
    text = "<coroutine main, which did not run: write `await main(...)`>"
    assert run.values.text() == text
    assert not run.stderr.text()
    assert shared.run("await _").values.text() == "3"
    assert shared.run("await main(4)").values.text() == "4"


# --- for a reader that is a model -----------------------------------------------------


def test_tables_are_as_wide_as_a_model_can_read(shared: Kernel) -> None:
    code = (
        "import pandas as pd\n"
        "print(pd.DataFrame({f'column_{n}': [n] for n in range(30)}))"
    )
    text = shared.printed(code)
    assert all(f"column_{n} " in text for n in range(30))
    assert max(map(len, text.splitlines())) <= 160
    text = shared.printed("print(pd.DataFrame({'a': ['x' * 119, 'y' * 300]}))")
    assert "x" * 119 in text
    assert "y" * 121 not in text
    text = shared.printed("print(pd.DataFrame({f'c{n}': [n] for n in range(90)}))")
    assert "..." in text


def test_a_callers_own_options_stay(shared: Kernel) -> None:
    shared.run("import pandas as pd\npd.set_option('display.max_columns', 4)")
    text = shared.printed("print(pd.DataFrame({f'c{n}': [n] for n in range(9)}))")
    assert "..." in text
    shared.run("pd.reset_option('display.max_columns')")


@pytest.mark.parametrize(
    "warning",
    [
        "'IProgress not found. Please update jupyter and ipywidgets.'",
        "'\\nSupport for Kaleido versions less than 1.0.0 is deprecated'",
        "\"To exit: use 'exit', 'quit', or Ctrl-D.\"",
    ],
)
def test_warnings_that_are_none_of_the_codes_are_not_shown(
    shared: Kernel, warning: str
) -> None:
    assert not shared.run(f"import warnings\nwarnings.warn({warning})").stderr.text()
    run = shared.run(f"warnings.warn('Beware: ' + {warning})")
    assert "Beware" in run.stderr.text()


def test_a_document_that_is_written_reaches_nobody_and_that_is_said() -> None:
    with kernel() as new:
        written = new.run(
            "open('/mnt/data/report.pdf', 'w').write('x')\nopen('b.svg','w');"
        )
        assert written.outcome == "ok"
        line = "No file or link from here reaches the user:"
        assert written.stderr.text() == f"{line} b.svg, report.pdf\n"
        for code in (
            "print(open('/mnt/data/report.pdf').read())",
            "for name in ('/mnt/data/notes.txt', 'm.py', 'a.png'): open(name, 'w')",
            "import tempfile; tempfile.NamedTemporaryFile(suffix='.pdf');",
            "import os; os.makedirs('out'); open('out/a.pdf', 'w');",
            "open('b.svg', 'a').write('x')",
        ):
            assert not new.run(code).stderr.text(), code
        assert "link" not in new.run("open('c.csv', 'w').close()\n1/0").stderr.text()


# --- a kernel that began anew ---------------------------------------------------------


def test_a_kernel_that_has_ended_is_noticed() -> None:
    with kernel() as new:
        assert not new.run("x = 1").began_anew
        # It ends when this cell has been answered, as after `exit()` without our file.
        new.run(
            "import os, threading\ntimer = threading.Timer(0.3, os._exit, [1])\n"
            "timer.daemon = True\ntimer.start()"
        )
        run = new.run("import time\ntime.sleep(1)")
        assert run.error_name == "ContextRestarting"
        run = new.run("print(2)")
        assert run.began_anew
        assert run.stdout.text() == "2\n"


# --- failures of the file -------------------------------------------------------------

PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 3, 2])\n"
PROGRAMS = {
    "value": ("import os\n6 * 7", "42"),
    "printed": ("print('a', [1])", "a [1]"),
    "error": ("x = 1\n1/0", "----> 2 1/0"),
    "magic": ("%%bash\necho hello", "hello"),
    "figure": (f"{PLOT}plt.savefig('a.png')\nplt.show()\nprint('drawn')", "drawn"),
    "closed": (f"{PLOT}plt.savefig('a.png')\nplt.clf()\nprint('drawn')", "drawn"),
    "await": ("import asyncio\nawait asyncio.sleep(0, 'slept')", "slept"),
}


def lines_with(**changed: str) -> str:
    """What sets up a kernel, with these sources in place of ours: `kernel="1/0"`."""
    sources = SOURCES | {f"{name}.py": text for name, text in changed.items()}
    return set_up_lines(Config.max_image_bytes, packed(list(sources.values())))


def lines_that_fail_in(name: str) -> str:
    """What sets up a kernel, with a failure in each function of this name."""
    pattern = rf'(?s)(def {name}\([^)]*\)[^:]*:\n(?: +""".*?"""\n+)?)( +)'
    broken = r"\1\g<2>raise OSError('broken on purpose')\n\g<2>"
    sources = [re.sub(pattern, broken, one) for one in SOURCES.values()]
    assert sources != list(SOURCES.values()), name
    return set_up_lines(Config.max_image_bytes, packed(sources))


HOOKS = re.findall(r"^def (\w+)\(shell: Any\)", KERNEL_PY, re.MULTILINE)
PARTS = "\n".join(SOURCES[name] for name in FILES[1:])
FUNCTIONS = [
    *("__init__", "remove_own_frames", "take_place_of_outer_cell", "files_here"),
    *("part", "after"),
    *re.findall(r" def (\w+)\((?:self|module)", PARTS),
    *re.findall(r"^def (\w+)\(", PARTS, re.MULTILINE),
]
# What IPython and Python call is the caller's own path; and what holds the failures of
# others has to work.
FUNCTIONS = sorted({*HOOKS, *FUNCTIONS} - {"format", "quietly"})
BROKEN: dict[str, Callable[[], str]] = {
    "damaged": lambda: SET_UP.replace("b64decode(", 'b64decode("x"+', 1),
    "no Python": lambda: lines_with().replace("exec(", "exec('(' or ", 1),
    "fails at its import": lambda: lines_with(kernel="1/0"),
    "wrong IPython": lambda: lines_with(kernel="import IPython.no_such_module"),
    **{
        f"{name} fails": lambda name=name: lines_with(**{name[:-3]: "1/0"})
        for name in FILES[1:]
    },
    **{name: lambda name=name: lines_that_fail_in(name) for name in FUNCTIONS},
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_failure_of_the_file_harms_no_run(fault: str) -> None:
    with kernel(BROKEN[fault]()) as new:
        for code, text in PROGRAMS.values():
            shown = new.text(code)
            assert text in shown
            assert "broken on purpose" not in shown
            assert "run_cell" not in shown


def test_a_later_cell_runs_in_a_kernel_that_has_ended_and_lacks_the_file() -> None:
    with kernel("") as new:
        for name in ("value", "printed", "error", "magic"):
            code, text = PROGRAMS[name]
            assert text in new.text(code)


@pytest.mark.parametrize(
    "undoing",
    [
        "import sys\n[sys.modules.pop(m) for m in list(sys.modules) if 'kernel' in m]",
        "import sys\nsys.meta_path.clear()",
        "get_ipython = display = exec = print_ = __import__('os')",
        "cell = run = run_cell = shell = FILE = None",
        "import warnings\nwarnings.resetwarnings()",
        "import builtins\nbuiltins.input = builtins.display = None",
        "import asyncio, importlib\nimportlib.reload(asyncio)",
        "ip = get_ipython()\ndel ip.run_cell, ip._showtraceback",
        "get_ipython().reset()",
    ],
)
def test_who_undoes_it_loses_comfort_only(undoing: str) -> None:
    with kernel() as new:
        new.run(undoing)
        for name in ("value", "printed", "error"):
            code, text = PROGRAMS[name]
            assert text in new.text(code)


# --- private names --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "what_breaks"),
    [
        ("get_ipython()._showtraceback", "errors without a traceback are lost"),
        ("get_ipython()._get_exc_info", "frames of our file are shown"),
        ("get_ipython().ask_exit", "exit() ends the kernel"),
        (
            "get_ipython().display_formatter.formatters['text/plain']",
            "E2B's data is sent",
        ),
        ("get_ipython().history_manager.input_hist_parsed", "In and numbers are wrong"),
        ("get_ipython().history_manager.input_hist_raw", "In and numbers are wrong"),
        ("get_ipython().history_manager.enabled", "the history complains on stdout"),
        ("get_ipython().execution_count", "cells have wrong numbers"),
        ("__import__('threading').Thread.start", "threads are not waited for"),
        ("__import__('subprocess').Popen.__init__", "processes are not waited for"),
        (
            "__import__('concurrent.futures').futures.ThreadPoolExecutor.submit",
            "futures are not waited for",
        ),
        ("__import__('nest_asyncio').apply", "a kernel without the file cannot await"),
        ("get_ipython().kernel.raw_input", "input() is an error of ipykernel's"),
        ("get_ipython().kernel.getpass", "getpass() is an error of ipykernel's"),
        ("get_ipython().kernel.session.pack", "halves of characters lose all output"),
        ("__import__('asyncio').tasks._leave_task", "asyncio.run fails in a cell"),
        ("__import__('asyncio').tasks._enter_task", "asyncio.run fails in a cell"),
        ("__import__('asyncio')._set_running_loop", "asyncio.run fails in a cell"),
        ("__import__('asyncio')._get_running_loop", "asyncio.create_task fails"),
        ("__import__('IPython').core.async_helpers.get_asyncio_loop", "await fails"),
    ],
)
def test_a_private_name_is_still_there(
    plain: Kernel, expression: str, what_breaks: str
) -> None:
    run = plain.run_as_it_is(f"{expression};")
    assert run.outcome == "ok", (
        f"in_sandbox/kernel.py rests on {expression}; where it is gone, {what_breaks}"
    )
