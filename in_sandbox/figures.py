"""Shows what is drawn: each figure and picture once, in the order in which it was made.

in_sandbox/kernel.py runs this, too, when it is needed first. What is shown goes
through `format` here, whatever shows it: plt.show(), the end of a cell, display() or a
value. A figure that is saved is noted, and shown before another one is, before it is
cleared, or at the end of the cell, unless it has been shown by then.

A failure in here is none of the caller's: then things are shown as without it. Names of
matplotlib, IPython and Pillow that are used are held by tests/in_sandbox/."""

from __future__ import annotations

import binascii
import contextlib
import functools
import io
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from IPython.core.display_functions import display

MAX_IMAGE_BYTES: int  # is set by what brings kernel.py along
INLINE = "module://matplotlib_inline.backend_inline"
# A larger file is not shown as it was saved: the figure is drawn as for a screen.
MAX_FILE_BYTES = 2_000_000
# A figure that is saved to memory oftener than this is a frame of something else.
MOST_IN_MEMORY = 3
# What saves figures for purposes of its own.
OTHER_SAVERS = ("matplotlib.animation", "matplotlib_inline", "IPython.")
ANIMATED = (".gif", ".webp", ".apng")
# A format of ours, which says that of an animation only a picture is shown.
ANIMATION_FORMAT = "application/x-animation"
PIXELS = ("image/png", "image/jpeg")
IMAGE_FORMATS = (*PIXELS, "image/svg+xml")
PNG = b"\x89PNG"


class Saved:
    """A figure that was saved, and not shown since."""

    def __init__(self) -> None:
        self.png = b""  # the file, where it is a PNG
        self.is_in_memory = False


class Drawings:
    """What was drawn, saved and shown in a cell."""

    def __init__(self, shell: Any, imports: Any) -> None:
        self._shell = shell
        self._saving = 0  # a figure is being saved: it is no picture of its own
        self._last_shown: Any = None
        self.begin()
        self._plain_format = shell.display_formatter.format
        shell.display_formatter.format = self.format
        # Before the inline backend's, which shows the figures that are open.
        note = functools.partial(quietly, self._note_end_of_code)
        shell.events.register("post_execute", note)
        imports.after("PIL.Image", self._hook_pillow)
        imports.after("matplotlib", self._hook_matplotlib)
        imports.after("matplotlib.figure", self._hook_figure)
        imports.after("matplotlib.axes._base", self._hook_axes)
        imports.after("matplotlib.pyplot", self._hook_pyplot)

    # --- a cell

    def begin(self) -> None:
        self._saved: dict[Any, Saved] = {}  # by the figure
        self._shown: dict[Any, Any] = {}  # by the figure, how it looked
        self._pictures: set[Any] = set()  # those shown that are no figures
        self._files: dict[bytes, Any] = {}  # by what they hold, the figure, or None
        self._saves_to_memory = 0
        self._has_ended = False
        self._has_failed = False

    def _note_end_of_code(self) -> None:
        self._has_ended = True
        self._has_failed = not self._shell.last_execution_succeeded

    def end(self) -> None:
        """Show what threads have drawn since the code ended, and what was saved.

        After a first figure within `rc_context` the backend no longer sees to it."""
        inline: Any = sys.modules.get("matplotlib_inline.backend_inline")
        if inline:
            inline.show._draw_called = True
            inline.flush_figures()
        self._show_saved()

    # --- what is shown

    def format(self, value: Any, *args: Any, **options: Any) -> Any:
        """The formats in which a value is shown: none of a figure that was shown."""
        once = quietly(self._once, value)
        formats, metadata = self._plain_format(value, *args, **options)
        for change in (once, small_enough):
            shown = quietly(change, value, formats) if change else None
            formats = formats if shown is None else shown
        return formats, metadata

    def _once(self, value: Any) -> Callable[..., Any] | None:
        """What decides in which formats this is shown, if it is a drawing."""
        if is_figure(value):
            self._show_saved(value)
            return functools.partial(self._figure_once, value.stale)
        kind = type(value)
        if kind.__module__.startswith("PIL."):
            return self._picture_once
        if kind.__module__ == "IPython.core.display" and kind.__name__ == "Image":
            return self._picture_once
        return None

    def _figure_once(self, is_changed: bool, figure: Any, formats: Any) -> Any:
        saved = self._saved.pop(figure, None)
        if is_blank(figure) or (self._has_failed and not has_data(figure)):
            return {}
        if not any(name in formats for name in IMAGE_FORMATS):
            formats = {**formats, "image/png": drawn(figure)}
        looks = look_of(formats)
        if self._shown.get(figure) == looks:
            return {}
        self._note_shown(figure, looks)
        if self._has_ended and saved and saved.png and not is_changed:
            formats = {**formats, "image/png": saved.png}
        return formats

    def _picture_once(self, picture: Any, formats: Any) -> Any:
        data = look_of(formats)
        if not data:
            return formats
        data = bytes_of(data)
        path = getattr(picture, "filename", None)
        file = (read(path) if path else b"") or data
        if file in self._files:
            figure = self._files[file]
            if not self._saved.pop(figure, None):
                return {}
            self._note_shown(figure, self._look_if_shown_again(figure))
        elif data in self._pictures:
            return {}
        self._pictures.add(data)
        return formats

    def _note_shown(self, figure: Any, looks: Any) -> None:
        self._shown[figure] = looks
        self._last_shown = figure

    def _look_if_shown_again(self, figure: Any) -> Any:
        """How a figure is drawn that was shown, or will be, as one that is open."""
        if is_open(figure) or figure in self._shown:
            return look_of(self._plain_format(figure)[0])
        return None

    # --- what is saved

    def _show_saved(self, but: Any = None) -> None:
        """Show the figures that were saved and not shown since.

        Before a figure `but` for which this is done, these are the closed ones: those
        that are open are shown with it, or at the end."""
        saved = self._saved
        self._saved = {}
        for figure in list(saved):
            if figure is but or (but and is_open(figure)):
                self._saved[figure] = saved.pop(figure)
        for figure, one in saved.items():
            is_frame = one.is_in_memory and self._saves_to_memory > MOST_IN_MEMORY
            if not is_frame and not is_blank(figure):
                self._show(figure, one)

    def _show(self, figure: Any, saved: Saved) -> None:
        if not saved.png:
            display(figure)
        elif not self._has_failed or has_data(figure):
            look = self._look_if_shown_again(figure)
            if look is None or look != self._shown.get(figure):
                self._note_shown(figure, look)
                formats = {"image/png": saved.png, "text/plain": repr(figure)}
                display(formats, raw=True)

    def _note_saved(self, figure: Any, target: Any) -> None:
        """Note that a figure has been saved to a path, or to memory."""
        if is_blank(figure):
            return
        saved = self._saved.setdefault(figure, Saved())
        if isinstance(target, (str, os.PathLike)):
            file = read(target)
            saved.is_in_memory = False
        else:
            saved.is_in_memory = True
            self._saves_to_memory += 1
            file = target.getvalue() if hasattr(target, "getvalue") else b""
        if file:
            self._files[file] = figure
        if file.startswith(PNG):
            saved.png = file
            figure.stale = False  # so that it tells of changes from now on

    def _note_picture(self, picture: Any, path: Any, more_frames: Any) -> None:
        """Show a picture of the caller's own, which has been saved."""
        self._show_saved()
        display(picture)
        file = read(path)
        if file:
            self._files[file] = None
        if more_frames and str(path).lower().endswith(ANIMATED):
            display({ANIMATION_FORMAT: ""}, raw=True)

    # --- hooks, for modules when they are imported

    def _hook_matplotlib(self, matplotlib: Any) -> None:
        """Whatever is asked for, the kernel's own backend is used: it shows figures."""

        def use(backend: str, *, force: bool = True) -> None:
            pass

        matplotlib.use = functools.wraps(matplotlib.use)(use)
        matplotlib.rcParams["backend"] = INLINE

    def _hook_pyplot(self, pyplot: Any) -> None:
        plain_switch = pyplot.switch_backend
        plain_savefig = pyplot.savefig

        @functools.wraps(plain_switch)
        def switch_backend(newbackend: str) -> None:
            pyplot.rcParams["backend"] = INLINE
            plain_switch(INLINE)

        @functools.wraps(plain_savefig)
        def savefig(*args: Any, **options: Any) -> Any:
            # After show() no figure is open: a new one would be a white page.
            figure = self._last_shown
            if figure and not pyplot.get_fignums():
                return figure.savefig(*args, **options)
            return plain_savefig(*args, **options)

        pyplot.switch_backend = switch_backend
        pyplot.savefig = savefig

    def _hook_figure(self, module: Any) -> None:
        plain_savefig = module.Figure.savefig
        plain_clear = module.Figure.clear

        @functools.wraps(plain_savefig)
        def savefig(figure: Any, fname: Any, **options: Any) -> Any:
            saver = str(sys._getframe(1).f_globals.get("__name__"))
            self._saving += 1
            try:
                result = plain_savefig(figure, fname, **options)
            finally:
                self._saving -= 1
            if not saver.startswith(OTHER_SAVERS):
                quietly(self._note_saved, figure, fname)
            return result

        @functools.wraps(plain_clear)
        def clear(figure: Any, *args: Any, **options: Any) -> Any:
            quietly(self._show_before_change, figure)
            return plain_clear(figure, *args, **options)

        module.Figure.savefig = savefig
        module.Figure.clear = clear

    def _hook_axes(self, module: Any) -> None:
        plain_clear = module._AxesBase.clear

        @functools.wraps(plain_clear)
        def clear(axes: Any) -> Any:
            # Axes that are being made are cleared, too.
            if axes in getattr(axes.figure, "axes", ()):
                quietly(self._show_before_change, axes.figure)
            return plain_clear(axes)

        module._AxesBase.clear = clear

    def _show_before_change(self, figure: Any) -> None:
        if figure in self._saved:
            self._show_saved()

    def _hook_pillow(self, module: Any) -> None:
        plain = module.Image.save

        @functools.wraps(plain)
        def save(image: Any, fp: Any, format: Any = None, **params: Any) -> Any:
            # E2B's own `save` shows what goes to a path that is a str, figures as well.
            target = pathlib.Path(fp) if isinstance(fp, str) else fp
            result = plain(image, target, format, **params)
            if isinstance(target, os.PathLike) and not self._saving:
                quietly(self._note_picture, image, target, params.get("append_images"))
            return result

        module.Image.save = save


# --- figures and files ----------------------------------------------------------------


def quietly(do: Callable[..., Any], *args: Any) -> Any:
    """What it returns. After a failure, which is none of the caller's, None."""
    with contextlib.suppress(Exception):
        return do(*args)


def is_figure(value: Any) -> bool:
    module = sys.modules.get("matplotlib.figure")
    return module is not None and isinstance(value, module.Figure)


def is_open(figure: Any) -> bool:
    """Whether pyplot has it, and shows it at the end of the cell."""
    pyplot: Any = sys.modules.get("matplotlib.pyplot")
    managers = pyplot._pylab_helpers.Gcf.get_all_fig_managers() if pyplot else ()
    return any(manager.canvas.figure is figure for manager in managers)


def is_blank(figure: Any) -> bool:
    """Whether nothing was drawn, not even axes."""
    return len(figure.get_children()) <= 1  # its background


def has_data(figure: Any) -> bool:
    return any(axes.has_data() or axes.texts for axes in figure.axes)


def drawn(figure: Any) -> bytes:
    """A figure as the kernel draws one; as PNG."""
    file = io.BytesIO()
    figure.canvas.print_figure(file, format="png", bbox_inches="tight")
    return file.getvalue()


def look_of(formats: Any) -> Any:
    return next((formats[name] for name in IMAGE_FORMATS if name in formats), None)


def small_enough(value: Any, formats: Any) -> Any:
    """The formats, with one picture that a reply can hold, if there is one.

    Pillow's have two, as PNG and as JPEG."""
    pictures = {name: bytes_of(formats[name]) for name in PIXELS if name in formats}
    others = {name: formats[name] for name in formats if name not in pictures}
    for name, data in pictures.items():
        if len(data) <= MAX_IMAGE_BYTES:
            return {**others, name: data}
    for data in pictures.values():
        return {**others, "image/png": shrunk(data)}
    return formats


def shrunk(data: bytes) -> bytes:
    """A picture as PNG, with as many pixels as a reply can hold; a line tells of it."""
    from PIL import Image

    image: Any = Image.open(io.BytesIO(data))
    smaller = data
    while len(smaller) > MAX_IMAGE_BYTES:
        factor = 0.9 * (MAX_IMAGE_BYTES / len(smaller)) ** 0.5
        image = image.resize([int(side * factor) + 1 for side in image.size])
        file = io.BytesIO()
        image.save(file, "png")
        smaller = file.getvalue()
    limit = f"{MAX_IMAGE_BYTES:,} is the limit"
    print(f"A picture of {len(data):,} bytes was made smaller:", limit, file=sys.stderr)
    return smaller


def bytes_of(data: Any) -> bytes:
    return binascii.a2b_base64(data) if isinstance(data, str) else data


def read(path: Any) -> bytes:
    """What a file holds; nothing of one that is too large, or not there."""
    with contextlib.suppress(OSError):
        if os.path.getsize(path) <= MAX_FILE_BYTES:
            with open(path, "rb") as file:
                return file.read()
    return b""
