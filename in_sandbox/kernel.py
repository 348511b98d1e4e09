"""Has the caller's code run in the kernel as a cell of its own.

The first cell of a sandbox brings this file along. From then on a cell of the service
is one line, `shell.run_cell(code)`, and `run_cell` here runs the code inside of that
cell, in its place and with its number. So the lines are the caller's, and what E2B's
server puts before a cell is not among them.

Each thing that is changed in the kernel is a hook. One that fails, here or later,
costs what it is for, and never a run. Private names of IPython and ipykernel that are
used are held by tests/in_sandbox/test_kernel.py."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import getpass
import importlib.util
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from IPython.core.async_helpers import get_asyncio_loop
from IPython.core.getipython import get_ipython
from jupyter_client.jsonutil import json_default

DATA_FOLDER: str  # are set by what brings this file along
FIGURES: str  # what in_sandbox/figures.py holds
# The name of this file in the code of its functions: frames of it are not shown.
FILE = "<in_kernel>"
# A format of ours, for a value that is a string. E2B's server would take quotes off it.
STRING_FORMAT = "text/x-python-str"
# So long is waited for what the code has begun and did not wait for itself, but never
# up to a run's limit.
LONGEST_WAIT_S = 5.0
LEFT_OF_LIMIT_S = 1.0


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
                return self._run(args[0], limit_s=args[3])
        finally:
            self._is_running = False

    def _run(self, code: str, limit_s: float) -> Any:
        shell = self._shell
        next_number = shell.execution_count
        wait_s = min(LONGEST_WAIT_S, limit_s - LEFT_OF_LIMIT_S)
        last_moment = time.monotonic() + limit_s - LEFT_OF_LIMIT_S
        threads = set(threading.enumerate())
        if code.strip():
            with contextlib.suppress(Exception):
                take_place_of_outer_cell(shell)
        with contextlib.suppress(Exception):
            if self.drawings:
                self.drawings.begin()
        result = self._run_plain(code, store_history=True)
        shell.execution_count = max(next_number, shell.execution_count)
        with contextlib.suppress(Exception):
            error = result.error_before_exec or result.error_in_exec
            if error is not None and not self._has_shown_error:
                # That of a group, or of a magic that is used wrongly: it is on stderr,
                # and only the reply to a cell would have it, which is the outer one's.
                self.show_error(type(error), error, [])
            if error is None:
                give_up_at = min(last_moment, time.monotonic() + wait_s)
                wait_for_tasks(give_up_at)
                wait_for_threads(threads, give_up_at)
        with contextlib.suppress(Exception):
            if self.drawings:
                self.drawings.end()
        return result

    def show_error(self, kind: type, value: BaseException, lines: list[str]) -> None:
        """Send the error that ended a cell; a SystemExit of 0 is none."""
        self._has_shown_error = True
        if isinstance(value, SystemExit):
            if value.code is None or value.code == 0:
                return
            lines = [f"{kind.__name__}: {value}"]
        self._show_error_plain(kind, value, lines)


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


def wait_for_tasks(give_up_at: float) -> None:
    """Let the tasks of IPython's loop go on, which runs in cells only."""
    loop = get_asyncio_loop()
    tasks = asyncio.all_tasks(loop)
    left_s = give_up_at - time.monotonic()
    if tasks and left_s > 0:
        loop.run_until_complete(asyncio.wait(tasks, timeout=left_s))
    for task in tasks:
        if not task.done():
            say_that_it_runs("task " + task.get_name())


def wait_for_threads(known: set[threading.Thread], give_up_at: float) -> None:
    """Wait for threads that the caller's code has started, and that are no daemons."""
    for thread in set(threading.enumerate()) - known:
        work = getattr(thread, "_target", None) or getattr(thread, "function", thread)
        if thread.daemon or getattr(work, "__module__", "") != "__main__":
            continue
        thread.join(max(0, give_up_at - time.monotonic()))
        if thread.is_alive():
            say_that_it_runs("thread " + thread.name)


def say_that_it_runs(what: str) -> None:
    print("Still running at the end:", what, file=sys.stderr)


# --- hooks ----------------------------------------------------------------------------


def make_data_folder(shell: Any) -> None:
    """Where this cannot be done, only what needs the folder fails."""
    os.makedirs(DATA_FOLDER, exist_ok=True)  # noqa: F821


def keep_no_history(shell: Any) -> None:
    """Its database would complain, on stdout, of two cells with one number."""
    shell.history_manager.enabled = False


def compute_no_charts(shell: Any) -> None:
    """E2B's server sends all data of a table or a chart, too, which nobody reads."""
    for name in ("e2b/data", "e2b/chart"):
        shell.display_formatter.formatters.pop(name, None)


def send_strings_as_they_are(shell: Any) -> None:
    """Have a value say that it is a string."""
    plain = shell.display_formatter.format

    def format(value: Any, *args: Any, **options: Any) -> tuple[Any, Any]:
        formats, metadata = plain(value, *args, **options)
        if type(value) is str:
            formats = {STRING_FORMAT: value}
        return formats, metadata

    shell.display_formatter.format = format


def exit_cells_only(shell: Any) -> None:
    """`exit()` would end the kernel a moment later, with all that it has."""

    def ask_exit() -> None:
        raise SystemExit

    shell.ask_exit = ask_exit
    warnings.filterwarnings("ignore", "To exit: use")


def clean_arguments(shell: Any) -> None:
    """Those of the kernel's own program would be taken for the code's."""
    sys.argv[:] = ["main.py"]


def let_pip_run_as_root(shell: Any) -> None:
    """It would warn of that each time, and there is no other user."""
    os.environ.setdefault("PIP_ROOT_USER_ACTION", "ignore")


def refuse_input(shell: Any) -> None:
    """Say at once that nobody can answer."""

    def input(prompt: object = "") -> str:
        raise EOFError(
            f"the code asked for input, {str(prompt)!r}, and nobody can answer here: "
            "set the value in the code"
        )

    def get_password(prompt: str = "Password: ", stream: Any = None) -> str:
        return input(prompt)

    # ipykernel takes them from here for each cell, and has done so for this one.
    shell.kernel.raw_input = input
    shell.kernel.getpass = get_password
    builtins.input = input
    getpass.getpass = get_password


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


def show_drawings(shell: Any) -> None:
    """Have figures.py see to what is drawn: from when it is needed, for it takes 3 ms.

    `%matplotlib` asks for the kernel's own backend, whichever it names."""
    plain = shell.enable_matplotlib
    shell.enable_matplotlib = lambda gui=None: plain("inline")
    FiguresLoader(shell)


class FiguresLoader:
    """Runs figures.py before matplotlib is imported, or when a picture is saved."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        sys.meta_path.insert(0, self)
        self._pillow: Any = sys.modules.get("PIL.Image")
        if self._pillow:
            plain = self._plain_save = self._pillow.Image.save

            def save(image: Any, *args: Any, **options: Any) -> Any:
                if self._load():
                    return image.save(*args, **options)
                return plain(image, *args, **options)

            self._own_save = self._pillow.Image.save = save

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name in ("matplotlib", "PIL.Image") and self._load():
            # What figures.py looks out for is found by it.
            return importlib.util.find_spec(name)
        return None

    def _load(self) -> bool:
        """Whether it runs now, and did not before.

        Its functions come between the caller's code and matplotlib's, whose warnings
        name the first place outside of matplotlib: so they count as a part of it."""
        if self._pillow and self._pillow.Image.save is self._own_save:
            self._pillow.Image.save = self._plain_save
        with contextlib.suppress(Exception):
            sys.meta_path.remove(self)
            spec: Any = importlib.util.find_spec("matplotlib")
            path = os.path.join(os.path.dirname(spec.origin), FILE)
            names: dict[str, Any] = {"__name__": "matplotlib.in_kernel"}
            exec(compile(FIGURES, path, "exec"), names)  # noqa: F821, S102
            cells = self._shell.run_cell.__self__
            cells.drawings = names["watch_drawings"](self._shell)
            return True
        return False


HOOKS = [
    make_data_folder,
    keep_no_history,
    compute_no_charts,
    send_strings_as_they_are,
    exit_cells_only,
    clean_arguments,
    let_pip_run_as_root,
    refuse_input,
    send_halves_of_characters,
    hide_own_frames,
    create_tasks_between_coroutines,
    show_drawings,
]


def set_up() -> None:
    """Change the kernel, once."""
    shell = get_ipython()
    if isinstance(getattr(shell.run_cell, "__self__", None), type(shell)):
        Cells(shell)
        for hook in HOOKS:
            with contextlib.suppress(Exception):
                hook(shell)
