"""Has the caller's code run in the kernel as a cell of its own.

The first cell of a sandbox brings this file along. From then on a cell of the service
is one line, `shell.run_cell(code)`, and `run_cell` here runs the code inside of that
cell, in its place and with its number. So the lines are the caller's, and what E2B's
server puts before a cell is not among them.

Compiling takes most of the time that this costs. So what few cells need is in files of
its own, the parts, which are run when they are needed first.

Each thing that is changed in the kernel is a hook. One that fails, here or later,
costs what it is for, and never a run. Private names of IPython and ipykernel that are
used are held by tests/in_sandbox/test_kernel.py."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import functools
import getpass
import importlib.util
import json
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from IPython.core.async_helpers import get_asyncio_loop
from IPython.core.getipython import get_ipython
from jupyter_client.jsonutil import json_default

# What brings this file along sets these: the texts of the other files, and settings.
PARTS: list[str]
DATA_FOLDER: str
FIGURES, FONTS, WAITING = PARTS
# The name of this file in the code of its functions: frames of it are not shown.
FILE = "<in_kernel>"
# A format of ours, for a value that is a string. E2B's server would take quotes off it.
STRING_FORMAT = "text/x-python-str"
# So long is waited for what the code has begun and did not wait for itself, but never
# up to a run's limit.
LONGEST_WAIT_S = 5.0
LEFT_OF_LIMIT_S = 1.0
# Models link to documents that they have written. A line tells that no link works.
DOCUMENTS = (".csv", ".docx", ".gif", ".html", ".mp4", ".pdf", ".pptx", ".svg", ".xlsx")
NO_LINK = "No file or link from here reaches the user:"
MOST_NAMED = 5
MOST_GLYPHS = 30


def part(source: str, library: str = "") -> dict[str, Any]:
    """Run a part. Returns its names.

    Functions that come between the caller's code and a library's count as a part of
    that library: its warnings name the first place outside of it."""
    path = FILE
    if library:
        spec: Any = importlib.util.find_spec(library)
        path = os.path.join(os.path.dirname(spec.origin), FILE)
    names = {**globals(), "__name__": library + ".in_kernel"}
    exec(compile(source, path, "exec"), names)  # noqa: S102
    return names


# --- a cell ---------------------------------------------------------------------------


class Cells:
    """Runs the caller's cells, each inside of one that was sent."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._run_plain = shell.run_cell
        self._show_error_plain = shell._showtraceback
        self._is_running = False
        self._has_shown_error = False
        self.drawings: Any = None
        self.missing_glyphs: dict[str, bool] = {}  # in the order in which they came
        # Threads, processes and futures, as references, that the code has begun.
        self.begun: list[Any] = []
        shell._showtraceback = self.show_error
        shell.run_cell = self.run_cell

    def run_cell(self, *args: Any, **options: Any) -> Any:
        """The shell's, but for a call of the service: `code, 0, 0, limit_s`.

        To IPython's own that means: store no history, be not silent, share futures."""
        if self._is_running or options or len(args) != 4:
            return self._run_plain(*args, **options)
        self._is_running = True
        self._has_shown_error = False
        try:
            with without_running_loop():
                return self._run(args[0], args[3])
        finally:
            self._is_running = False

    def _run(self, code: str, limit_s: float) -> Any:
        shell = self._shell
        next_number = shell.execution_count
        last_moment = time.monotonic() + limit_s - LEFT_OF_LIMIT_S
        self.begun.clear()
        files: set[str] = set()
        tasks: set[Any] = set()
        if code.strip():
            with contextlib.suppress(Exception):
                take_place_of_outer_cell(shell)
        with contextlib.suppress(Exception):
            files = files_here()
            tasks = asyncio.all_tasks(get_asyncio_loop())
            if self.drawings:
                self.drawings.begin()
        result = self._run_plain(code, store_history=True)
        shell.execution_count = max(next_number, shell.execution_count)
        with contextlib.suppress(Exception):
            if result.success:
                give_up_at = min(last_moment, time.monotonic() + LONGEST_WAIT_S)
                tasks = asyncio.all_tasks(get_asyncio_loop()) - tasks
                if self.begun or tasks:
                    part(WAITING)["wait_for"](tasks, self.begun, give_up_at)
            elif not self._has_shown_error:
                # That of a group, or of a magic that is used wrongly: it is on stderr,
                # and only the reply to a cell would have it, which is the outer one's.
                error = result.error_before_exec or result.error_in_exec
                self.show_error(type(error), error, [])
        with contextlib.suppress(Exception):
            if self.drawings:
                self.drawings.end()
            if self.missing_glyphs:
                characters = "".join(self.missing_glyphs)[:MOST_GLYPHS]
                self.missing_glyphs.clear()
                print("No font here has", characters, file=sys.stderr)
            new_files = sorted(files_here() - files)
            if new_files and result.success:
                print(NO_LINK, ", ".join(new_files[:MOST_NAMED]), file=sys.stderr)
        return result

    def show_error(self, kind: type, value: BaseException, lines: list[str]) -> None:
        """Send the error that ended a cell; a SystemExit of 0 is none."""
        self._has_shown_error = True
        if isinstance(value, SystemExit):
            if value.code is None or value.code == 0:
                return
            lines = [f"{kind.__name__}: {value}"]
        self._show_error_plain(kind, value, lines)


def files_here() -> set[str]:
    """The names of the documents that are where code writes them."""
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = os.listdir(DATA_FOLDER) + os.listdir()
    return {name for name in names if name.endswith(DOCUMENTS)}


def take_place_of_outer_cell(shell: Any) -> None:
    """Give the next cell the number of the one that runs, and its place in `In`."""
    history = shell.history_manager
    history.input_hist_parsed.pop()
    history.input_hist_raw.pop()
    shell.execution_count -= 1


@contextlib.contextmanager
def without_running_loop() -> Iterator[None]:
    """Hide the kernel's loop, which runs this: `asyncio.run` and others refuse else.

    What is awaited at the top of a cell runs in IPython's own loop, as in a terminal,
    which stays the same for all cells."""
    loop: Any = None
    task: Any = None
    with contextlib.suppress(Exception):
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        asyncio.tasks._leave_task(loop, task)
        asyncio._set_running_loop(None)
        asyncio.set_event_loop(get_asyncio_loop())
    try:
        yield
    finally:
        with contextlib.suppress(Exception):
            asyncio._set_running_loop(loop)
            asyncio.set_event_loop(loop)
            asyncio.tasks._enter_task(loop, task)


# --- hooks ----------------------------------------------------------------------------


def make_data_folder(shell: Any) -> None:
    """Where this cannot be done, only what needs the folder fails."""
    os.makedirs(DATA_FOLDER, exist_ok=True)


def keep_no_history(shell: Any) -> None:
    """Its database would complain, on stdout, of two cells with one number."""
    shell.history_manager.enabled = False


def compute_no_charts(shell: Any) -> None:
    """E2B's server sends all data of a table or a chart, too, which nobody reads."""
    for name in ("e2b/data", "e2b/chart"):
        shell.display_formatter.formatters.pop(name, None)


def show_values(shell: Any) -> None:
    """Have a value say that it is a string, or a coroutine that did not run."""
    plain = shell.display_formatter.format

    def format(value: Any, *args: Any, **options: Any) -> tuple[Any, Any]:
        formats, metadata = plain(value, *args, **options)
        if type(value) is str:
            formats = {STRING_FORMAT: value}
        elif asyncio.iscoroutine(value):
            name = getattr(value, "__name__", "")
            text = f"<coroutine {name}, which did not run: write `await {name}(...)`>"
            formats = {STRING_FORMAT: text}
        return formats, metadata

    shell.display_formatter.format = format


def exit_cells_only(shell: Any) -> None:
    """`exit()` would end the kernel a moment later, with all that it has."""

    def ask_exit() -> None:
        raise SystemExit

    shell.ask_exit = ask_exit


def clean_arguments(shell: Any) -> None:
    """Those of the kernel's own program would be taken for the code's."""
    sys.argv[:] = ["main.py"]


def refuse_input(shell: Any) -> None:
    """Say at once that nobody can answer."""

    def input(prompt: object = "", stream: Any = None) -> str:
        raise EOFError(
            f"nobody can answer {str(prompt)!r} here: set the value in the code"
        )

    # ipykernel takes them from here for each cell, and has done so for this one.
    shell.kernel.raw_input = input
    shell.kernel.getpass = input
    builtins.input = input
    getpass.getpass = input


def send_halves_of_characters(shell: Any) -> None:
    r"""Join "\ud83d\ude00", which is printed as two halves: all would be lost else."""
    session = shell.kernel.session
    plain = session.pack

    def pack(content: Any) -> bytes:
        try:
            return plain(content)  # type: ignore[no-any-return]
        except UnicodeError:
            joined = json.loads(json.dumps(content, default=json_default))
            text = json.dumps(joined, ensure_ascii=False)
            return text.encode("utf-8", "replace")

    session.pack = pack


def hide_own_frames(shell: Any) -> None:
    """Leave the functions of this file out of tracebacks."""
    plain = shell._get_exc_info

    def get_exc_info(*args: Any) -> tuple[Any, Any, Any]:
        kind, value, trace = plain(*args)
        with contextlib.suppress(Exception):
            remove_own_frames(value, set())
        return kind, value, trace

    shell._get_exc_info = get_exc_info


def remove_own_frames(error: BaseException | None, seen: set[int]) -> None:
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    trace: TracebackType | None = error.__traceback__
    while trace:
        inner = trace.tb_next
        if inner and inner.tb_frame.f_code.co_filename.endswith(FILE):
            trace.tb_next = inner.tb_next
        else:
            trace = inner
    remove_own_frames(error.__cause__, seen)
    remove_own_frames(error.__context__, seen)


def create_tasks_between_coroutines(shell: Any) -> None:
    """`asyncio.create_task` needs a loop that runs; here it is the next to run."""
    plain = asyncio.create_task

    def create_task(coroutine: Any, **options: Any) -> Any:
        if asyncio._get_running_loop() is None:
            return get_asyncio_loop().create_task(coroutine, **options)
        return plain(coroutine, **options)

    asyncio.create_task = create_task  # type: ignore[assignment]


def note_what_is_begun(shell: Any) -> None:
    """Note the threads, processes and futures that the caller's own code begins.

    What a library begins is its own affair."""
    begun = shell.run_cell.__self__.begun

    def note(owner: Any, name: str) -> None:
        plain = getattr(owner, name)

        @functools.wraps(plain)
        def call(one: Any, *args: Any, **options: Any) -> Any:
            result = plain(one, *args, **options)
            with contextlib.suppress(Exception):
                frame: Any = sys._getframe(1)
                # `map` calls `submit` from within.
                while frame.f_globals["__name__"].startswith("concurrent."):
                    frame = frame.f_back
                is_callers = frame.f_globals["__name__"] == "__main__"
                if is_callers and not getattr(one, "daemon", False):
                    begun.append(weakref.ref(one if result is None else result))
            return result

        setattr(owner, name, call)

    note(threading.Thread, "start")
    note(subprocess.Popen, "__init__")
    IMPORTS.after(
        "concurrent.futures.thread", lambda m: note(m.ThreadPoolExecutor, "submit")
    )


def write_for_a_model(shell: Any) -> None:
    """Tables as wide as a model reads them, and no warnings that are none of its code.

    Those are of what the template has."""
    messages = r"\s*Support for Kaleido|IProgress not found|To exit: use"
    warnings.filterwarnings("ignore", messages)
    os.environ.setdefault("PIP_ROOT_USER_ACTION", "ignore")
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)

    def set_options(pandas: Any) -> None:
        pandas.set_option(
            *("display.width", 160),
            *("display.max_columns", 40),
            *("display.max_colwidth", 120),
        )

    IMPORTS.after("pandas", set_options)


def show_drawings(shell: Any) -> None:
    """Have figures.py see to what is drawn, from when it is needed.

    `%matplotlib` asks for the kernel's own backend, whichever it names."""
    plain = shell.enable_matplotlib
    shell.enable_matplotlib = lambda gui=None: plain("inline")
    cells = shell.run_cell.__self__

    def start(_: Any = None) -> bool:
        """Whether it has been started now, and was not before."""
        if cells.drawings:
            return False
        with contextlib.suppress(Exception):
            watch_fonts = part(FONTS, "matplotlib")["watch_fonts"]
            watch_fonts(cells.missing_glyphs, IMPORTS)
        with contextlib.suppress(Exception):
            figures = part(FIGURES, "matplotlib")
            cells.drawings = figures["Drawings"](shell, IMPORTS)
        return bool(cells.drawings)

    IMPORTS.after("matplotlib", start)
    start_at_a_picture(shell.display_formatter, "format", start)
    IMPORTS.after("PIL.Image", lambda m: start_at_a_picture(m.Image, "save", start))


def start_at_a_picture(owner: Any, name: str, start: Callable[[], bool]) -> None:
    """Start at the first call of this function that is for a picture."""
    plain = getattr(owner, name)

    def call(*args: Any, **options: Any) -> Any:
        if "Image" in str(type(args[0])):
            if getattr(owner, name) is call:
                setattr(owner, name, plain)
            if start():
                return getattr(owner, name)(*args, **options)
        return plain(*args, **options)

    setattr(owner, name, call)


class Imports:
    """Does something with a module when it has been imported, once."""

    def __init__(self) -> None:
        self._after: dict[str, Callable[[Any], Any]] = {}

    def after(self, name: str, do: Callable[[Any], Any]) -> None:
        if name in sys.modules:
            do(sys.modules[name])
        else:
            self._after[name] = do

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """That of the other finders, with a loader that does what is to be done."""
        do = self._after.pop(name, None)
        if not do:
            return None
        spec: Any = importlib.util.find_spec(name)  # which this has no part in now
        if spec:
            plain = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                plain(module)
                with contextlib.suppress(Exception):
                    do(module)

            spec.loader.exec_module = exec_module
        return spec


IMPORTS = Imports()
HOOKS = [
    make_data_folder,
    keep_no_history,
    compute_no_charts,
    show_values,
    exit_cells_only,
    clean_arguments,
    refuse_input,
    send_halves_of_characters,
    hide_own_frames,
    create_tasks_between_coroutines,
    note_what_is_begun,
    write_for_a_model,
    show_drawings,
]


def set_up() -> None:
    """Change the kernel, once."""
    shell = get_ipython()
    if isinstance(getattr(shell.run_cell, "__self__", None), type(shell)):
        Cells(shell)
        sys.meta_path.insert(0, IMPORTS)
        for hook in HOOKS:
            with contextlib.suppress(Exception):
                hook(shell)


set_up()
