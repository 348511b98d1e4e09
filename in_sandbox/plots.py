"""Where a script's figures go: into files, which LibreChat shows.

It is a matplotlib backend. `show()` writes each open figure to plot-1.png, plot-2.png
and so on, unless the script has saved that figure itself, and closes it, as a person
would have closed its window. What is shown without waiting for that
(`show(block=False)`, `pause`, `ion`) may change until it is closed, so it is written
then, or at the end of the script. startup.py calls the hooks at the end. Nothing but
the standard library, and what Python 3.8 knows.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import time
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import matplotlib
from matplotlib._pylab_helpers import Gcf
from matplotlib.backend_bases import FigureManagerBase
from matplotlib.backends.backend_agg import FigureCanvasAgg

BACKEND = f"module://{__name__}"
DATA = "/mnt/data"
# Pictures that LibreChat shows: a figure that was saved as another kind is written all
# the same.
SHOWN = (".png", ".jpg", ".jpeg", ".gif", ".webp")
# Backends that are for files of a kind, which is then what `savefig` writes.
FILE_FORMATS = ("pdf", "pgf", "ps", "svg")
# Of an animation the last frame is written, as far as it is reached within these.
MOST_FRAMES = 200
MOST_FRAMES_S = 1.0


class Plots:
    """What became of each figure."""

    def __init__(self) -> None:
        self._pictures: Any = WeakKeyDictionary()  # the figures of which there is one
        self._files: Any = WeakKeyDictionary()  # those written here, with their stamps
        self._animations: Any = WeakKeyDictionary()  # by their figures
        self._waiting: Any = WeakKeyDictionary()  # figures shown that may change
        self._is_writing = False
        self.last_shown: Any = None
        atexit.register(self.write_waiting)

    def show(self, figure: Any, is_final: bool) -> None:
        if is_final:
            self.last_shown = figure
            self.write(figure)
        else:
            self._waiting[figure] = True

    def is_waiting(self, figure: Any) -> bool:
        return figure in self._waiting or matplotlib.is_interactive()

    def write_waiting(self) -> None:
        for manager in open_managers():
            if self.is_waiting(manager.canvas.figure):
                self.write(manager.canvas.figure)

    def write(self, figure: Any) -> None:
        """Write it to a file, unless there is a picture of it as it is now."""
        self._waiting.pop(figure, None)
        has_picture = figure in self._pictures and not figure.stale
        if has_picture or is_blank(figure):
            return
        with suppress(Exception):
            self._go_to_last_frame(figure)
        self._is_writing = True
        try:
            with new_file() as file:
                figure.canvas.print_figure(file, format="png", bbox_inches="tight")
        finally:
            self._is_writing = False
        self._files[figure] = file.name, stamp_of(file.name)

    def _go_to_last_frame(self, figure: Any) -> None:
        animation = self._animations.get(figure)
        if not animation:
            return
        figure.canvas.draw()  # it starts with the first time that it is drawn
        until = time.monotonic() + MOST_FRAMES_S
        for frame in itertools.islice(animation.new_frame_seq(), MOST_FRAMES):
            animation._draw_frame(frame)
            if time.monotonic() > until:
                break

    def note_animation(self, animation: Any, figure: Any) -> None:
        self._animations[figure] = animation

    def note_saved(self, figure: Any, target: Any, was_changed: bool) -> None:
        """Note that a picture of the figure was saved, if it is one that is shown."""
        path = path_of(target)
        if not path.lower().endswith(SHOWN) or not is_in_data(path):
            return
        self._pictures[figure] = True
        figure.stale = False  # so that it tells of changes from now on
        if not self._is_writing and not was_changed:
            written, stamp = self._files.pop(figure, ("", None))
            # The script may have written to it meanwhile, just now for example.
            if written and stamp_of(written) == stamp:
                os.unlink(written)


class Canvas(FigureCanvasAgg):
    default_format = ""

    def print_figure(self, filename: Any, *args: Any, **options: Any) -> Any:
        figure = self.figure
        was_changed = figure.stale
        result = super().print_figure(filename, *args, **options)
        with suppress(Exception):
            PLOTS.note_saved(figure, filename, was_changed)
        return result

    @classmethod
    def get_default_filetype(cls) -> str:
        return cls.default_format or super().get_default_filetype()

    def start_event_loop(self, timeout: float = 0) -> None:
        """Does not wait: there is no window in which anybody could do something."""


class Manager(FigureManagerBase):
    def show(self) -> None:
        PLOTS.show(self.canvas.figure, is_final=False)

    def destroy(self) -> None:
        if PLOTS.is_waiting(self.canvas.figure):
            PLOTS.write(self.canvas.figure)


setattr(Canvas, "manager_class", Manager)  # noqa: B010 - a property for mypy
# What a backend is asked for, the last one by matplotlib before 3.6.
FigureCanvas = Canvas
FigureManager = Manager


def show(*args: Any, block: bool | None = None, **_options: Any) -> None:
    """What pyplot's function of this name calls."""
    is_final = args[0] if args else block
    if is_final is None:
        is_final = not matplotlib.is_interactive()
    for manager in open_managers():
        PLOTS.show(manager.canvas.figure, bool(is_final))
    if is_final:
        Gcf.destroy_all()


def open_managers() -> list[Any]:
    return sorted(Gcf.get_all_fig_managers(), key=lambda manager: manager.num)


def is_blank(figure: Any) -> bool:
    """Whether nothing was drawn, not even axes."""
    return len(figure.get_children()) <= 1  # its background


def path_of(target: Any) -> str:
    """The path of a file that was saved; "" of what has none."""
    if not isinstance(target, (str, os.PathLike)):
        target = getattr(target, "name", "")
    path = os.fspath(target) if isinstance(target, (str, os.PathLike)) else ""
    if path and not os.path.splitext(path)[1]:
        path = f"{path}.{Canvas.get_default_filetype()}"
    return path


def is_in_data(path: str) -> bool:
    return os.path.realpath(path).startswith(os.path.join(DATA, ""))


def stamp_of(path: str) -> Any:
    """Another one than before means that the file was written; None if it is gone."""
    with suppress(OSError):
        status = os.stat(path)
        return status.st_ino, status.st_size, status.st_mtime_ns
    return None


def new_file() -> Any:
    """A file in the working folder, or in DATA if that one is not kept."""
    folder = os.getcwd()
    if not is_in_data(os.path.join(folder, "")) or not os.access(folder, os.W_OK):
        folder = DATA
    for number in itertools.count(1):
        with suppress(FileExistsError):
            return open(os.path.join(folder, f"plot-{number}.png"), "xb")


# --- hooks, for modules when they have been imported


def hook_pyplot(pyplot: Any) -> None:
    """Have it use this backend, whatever it is asked for."""
    plain_switch = pyplot.switch_backend
    plain_savefig = pyplot.savefig

    @functools.wraps(plain_switch)
    def switch_backend(newbackend: str) -> None:
        plain_switch(BACKEND)
        asked_for = str(newbackend).lower()
        Canvas.default_format = asked_for if asked_for in FILE_FORMATS else ""
        matplotlib.rcParams["backend"] = newbackend

    @functools.wraps(plain_savefig)
    def savefig(*args: Any, **options: Any) -> Any:
        # After show() no figure is open: a new one would be a white page.
        if PLOTS.last_shown and not pyplot.get_fignums():
            return PLOTS.last_shown.savefig(*args, **options)
        return plain_savefig(*args, **options)

    pyplot.switch_backend = switch_backend
    pyplot.savefig = savefig


def hook_animation(module: Any) -> None:
    """Know the animation of a figure, and when it is saved."""
    plain_init = module.Animation.__init__
    plain_save = module.Animation.save

    @functools.wraps(plain_init)
    def init(animation: Any, fig: Any, *args: Any, **options: Any) -> None:
        plain_init(animation, fig, *args, **options)
        PLOTS.note_animation(animation, fig)

    @functools.wraps(plain_save)
    def save(animation: Any, filename: Any, *args: Any, **options: Any) -> None:
        plain_save(animation, filename, *args, **options)
        PLOTS.note_saved(animation._fig, filename, was_changed=False)

    module.Animation.__init__ = init
    module.Animation.save = save


PLOTS = Plots()
