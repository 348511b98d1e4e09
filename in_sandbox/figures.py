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
IMAGE_FORMATS = ("image/png", "image/jpeg", "image/svg+xml")
PNG = b"\x89PNG"


class Saved:
    """A figure that was saved, and not shown since."""

    def __init__(self, figure: Any) -> None:
        self.figure = figure
        self.png = b""  # the file, where it is a PNG
        self.is_in_memory = False


class Drawings:
    """What was drawn, saved and shown in a cell."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._saving = 0  # a figure is being saved: it is no picture of its own
        self._last_shown: Any = None
        self.begin()
        self._plain_format = shell.display_formatter.format
        shell.display_formatter.format = self.format
        # Before the inline backend's, which shows the figures that are open.
        note = functools.partial(quietly, self.note_end_of_code)
        shell.events.register("post_execute", note)

    # --- a cell

    def begin(self) -> None:
        self._saved: list[Saved] = []
        self._shown: dict[int, Any] = {}  # by a figure's id, how it looked
        self._figures: list[Any] = []  # those, so that no other has their id
        self._pictures: set[Any] = set()  # those shown that are no figures
        self._files: dict[bytes, Any] = {}  # by what they hold, the figure, or None
        self._saves_to_memory = 0
        self._has_ended = False
        self._has_failed = False

    def note_end_of_code(self) -> None:
        self._has_ended = True
        self._has_failed = not self._shell.last_execution_succeeded

    def end(self) -> None:
        """Show what threads have drawn since the code ended, and what was saved."""
        inline = sys.modules.get("matplotlib_inline.backend_inline")
        if inline:
            inline.flush_figures()
        self.show_saved()

    # --- what is shown

    def format(self, value: Any, *args: Any, **options: Any) -> Any:
        """The formats in which a value is shown: none of a figure that was shown."""
        once = quietly(self._once, value)
        formats, metadata = self._plain_format(value, *args, **options)
        shown = quietly(once, value, formats) if once else None
        return (formats if shown is None else shown), metadata

    def _once(self, value: Any) -> Callable[..., Any] | None:
        """What decides in which formats this is shown, if it is a drawing."""
        if is_figure(value):
            self.show_saved(but=value)
            is_changed = value.stale
            return functools.partial(self._figure_once, is_changed=is_changed)
        kind = type(value)
        if kind.__module__.startswith("PIL."):
            return self._picture_once
        if kind.__module__ == "IPython.core.display" and kind.__name__ == "Image":
            return self._picture_once
        return None

    def _figure_once(self, figure: Any, formats: Any, is_changed: bool) -> Any:
        saved = self._take_saved(figure)
        if is_blank(figure) or (self._has_failed and not has_data(figure)):
            return {}
        if not any(name in formats for name in IMAGE_FORMATS):
            formats = {**formats, "image/png": drawn(figure)}
        looks = look_of(formats)
        if self._shown.get(id(figure)) == looks:
            return {}
        self._note_shown(figure, looks)
        if self._has_ended and saved and saved.png and not is_changed:
            formats = {**formats, "image/png": saved.png}
        return formats

    def _picture_once(self, picture: Any, formats: Any) -> Any:
        data = look_of(formats)
        if not data:
            return formats
        if isinstance(data, str):
            data = binascii.a2b_base64(data)
        path = getattr(picture, "filename", None)
        file = (read(path) if path else b"") or data
        if file in self._files:
            figure = self._files[file]
            if figure is None or not self._take_saved(figure):
                return {}
            self._note_shown(figure, self._look_if_shown_again(figure))
        elif data in self._pictures:
            return {}
        self._pictures.add(data)
        return formats

    def _note_shown(self, figure: Any, looks: Any) -> None:
        self._shown[id(figure)] = looks
        self._figures.append(figure)
        self._last_shown = figure

    def _look_if_shown_again(self, figure: Any) -> Any:
        """How a figure is drawn that was shown, or will be, as one that is open."""
        if is_open(figure) or id(figure) in self._shown:
            return look_of(self._plain_format(figure)[0])
        return None

    # --- what is saved

    def show_saved(self, but: Any = None) -> None:
        """Show the figures that were saved and not shown since.

        Before a figure `but` for which this is done, these are the closed ones: those
        that are open are shown with it, or at the end."""
        later = [one for one in self._saved if but and is_open(one.figure)]
        later += [one for one in self._saved if one.figure is but]
        saved = [one for one in self._saved if one not in later]
        self._saved = later
        for one in saved:
            is_frame = one.is_in_memory and self._saves_to_memory > MOST_IN_MEMORY
            if not is_frame and not is_blank(one.figure):
                self._show(one)

    def _show(self, saved: Saved) -> None:
        figure = saved.figure
        if not saved.png:
            display(figure)
        elif not self._has_failed or has_data(figure):
            look = self._look_if_shown_again(figure)
            if look is None or look != self._shown.get(id(figure)):
                self._note_shown(figure, look)
                formats = {"image/png": saved.png, "text/plain": repr(figure)}
                display(formats, raw=True)

    def _take_saved(self, figure: Any) -> Saved | None:
        for one in self._saved:
            if one.figure is figure:
                self._saved.remove(one)
                return one
        return None

    def note_saved(self, figure: Any, target: Any) -> None:
        """Note that a figure has been saved to a path, or to memory."""
        if is_blank(figure):
            return
        saved = next((one for one in self._saved if one.figure is figure), None)
        if not saved:
            saved = Saved(figure)
            self._saved.append(saved)
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

    def note_picture(self, picture: Any, path: Any, more_frames: Any) -> None:
        """Show a picture of the caller's own, which has been saved."""
        self.show_saved()
        display(picture)
        file = read(path)
        if file:
            self._files[file] = None
        if more_frames and str(path).lower().endswith(ANIMATED):
            display({ANIMATION_FORMAT: ""}, raw=True)

    # --- hooks, for modules when they are imported

    def hook_matplotlib(self, matplotlib: Any) -> None:
        """Whatever is asked for, the kernel's own backend is used: it shows figures."""

        def use(backend: str, *, force: bool = True) -> None:
            pass

        matplotlib.use = functools.wraps(matplotlib.use)(use)
        matplotlib.rcParams["backend"] = INLINE

    def hook_pyplot(self, pyplot: Any) -> None:
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

    def hook_figure(self, module: Any) -> None:
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
                quietly(self.note_saved, figure, fname)
            return result

        @functools.wraps(plain_clear)
        def clear(figure: Any, *args: Any, **options: Any) -> Any:
            quietly(self._show_before_change, figure)
            return plain_clear(figure, *args, **options)

        module.Figure.savefig = savefig
        module.Figure.clear = clear

    def hook_axes(self, module: Any) -> None:
        plain_clear = module._AxesBase.clear

        @functools.wraps(plain_clear)
        def clear(axes: Any) -> Any:
            # Axes that are being made are cleared, too.
            if axes in getattr(axes.figure, "axes", ()):
                quietly(self._show_before_change, axes.figure)
            return plain_clear(axes)

        module._AxesBase.clear = clear

    def _show_before_change(self, figure: Any) -> None:
        if any(one.figure is figure for one in self._saved):
            self.show_saved()

    def hook_pillow(self, module: Any) -> None:
        plain = module.Image.save

        @functools.wraps(plain)
        def save(image: Any, fp: Any, format: Any = None, **params: Any) -> Any:
            # E2B's own `save` shows what goes to a path that is a str, figures as well.
            target = pathlib.Path(fp) if isinstance(fp, str) else fp
            result = plain(image, target, format, **params)
            if isinstance(target, os.PathLike) and not self._saving:
                quietly(self.note_picture, image, target, params.get("append_images"))
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


def read(path: Any) -> bytes:
    """What a file holds; nothing of one that is too large, or not there."""
    with contextlib.suppress(OSError):
        if os.path.getsize(path) <= MAX_FILE_BYTES:
            with open(path, "rb") as file:
                return file.read()
    return b""


# --- imports --------------------------------------------------------------------------


class Watcher:
    """Calls a hook for each of these modules, once it has been imported."""

    def __init__(self, hooks: dict[str, Callable[[Any], None]]) -> None:
        self._hooks = hooks
        for name in list(hooks):
            if name in sys.modules:
                quietly(hooks.pop(name), sys.modules[name])

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """That of the other finders, with a loader that calls the hook."""
        hook = self._hooks.pop(name, None)
        if not hook:
            return None
        found = (
            finder.find_spec(name, path, target)
            for finder in sys.meta_path
            if finder is not self
        )
        spec = next((spec for spec in found if spec), None)
        if spec and spec.loader:
            plain = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                plain(module)
                quietly(hook, module)

            setattr(spec.loader, "exec_module", exec_module)  # noqa: B010
        return spec


def watch_drawings(shell: Any) -> Drawings:
    """Show what is drawn in this shell from now on."""
    drawings = Drawings(shell)
    hooks = {
        "PIL.Image": drawings.hook_pillow,
        "matplotlib": drawings.hook_matplotlib,
        "matplotlib.figure": drawings.hook_figure,
        "matplotlib.axes._base": drawings.hook_axes,
        "matplotlib.pyplot": drawings.hook_pyplot,
    }
    sys.meta_path.insert(0, Watcher(hooks))
    return drawings
