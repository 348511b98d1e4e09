"""What each Python that a script starts runs first: it is that Python's sitecustomize.

It lies in a folder of its own, together with plots.py and fonts.py, which are read only
by a Python that imports matplotlib: a start takes about a millisecond more. A
failure in here is none of the script's. Nothing but the standard library, and what
Python 3.8 knows.
"""

from __future__ import annotations

import os
import site
import sys

TYPE_CHECKING = False  # importing typing, or contextlib, takes milliseconds
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from typing import Any

MOST_GLYPHS = 30  # that no font has, in the line that says so


class Imports:
    """Does something with a module when it has been imported, once."""

    def __init__(self) -> None:
        self._after: dict[str, Any] = {}

    def after(self, name: str, do: Any) -> None:
        self._after[name] = do

    def find_spec(
        self, name: str, path: Any = None, target: Any = None
    ) -> ModuleSpec | None:
        """That of the other finders, with a loader that does what is to be done."""
        do = self._after.pop(name, None)
        if not do:
            return None
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path, target)
        if spec and spec.loader:
            plain = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                plain(module)
                quietly(do, module)

            setattr(spec.loader, "exec_module", exec_module)  # noqa: B010
        return spec


def find_fonts(_matplotlib: Any) -> None:
    """Find fonts for what is drawn, and say once, at the end, what no font has."""
    import atexit
    import logging

    missing_glyphs: dict[str, bool] = {}
    __import__("exec_fonts").watch_fonts(missing_glyphs, IMPORTS)
    # It says of each text that a font which is asked for is not there.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    atexit.register(say_missing, missing_glyphs)


def say_missing(glyphs: dict[str, bool]) -> None:
    if glyphs:
        print("No font here has", "".join(glyphs)[:MOST_GLYPHS], file=sys.stderr)


def write_plots(pyplot: Any) -> None:
    __import__("exec_plots").hook_pyplot(pyplot)


def write_animations(animation: Any) -> None:
    __import__("exec_plots").hook_animation(animation)


def quietly(do: Any, *args: Any) -> None:
    """A failure is none of the script's."""
    try:  # noqa: SIM105 - contextlib takes milliseconds
        do(*args)
    except Exception:  # noqa: S110
        pass


def add_site_folder() -> None:
    """Have what `pip install` brings be found by the script that ran it.

    A Python looks into its user's site folder only if that is there at its start."""
    folder = site.getusersitepackages()
    if site.ENABLE_USER_SITE and not os.path.isdir(folder):
        os.makedirs(folder)
        # Before those of all users, where it would have been.
        others = [path for path in sys.path if path.endswith("-packages")]
        place = sys.path.index(others[0]) if others else len(sys.path)
        sys.path.insert(place, folder)


def wait_for_script(imports: str) -> None:
    """Import these while there is no script yet, then wait for its arguments.

    A caller who goes away without one ends this Python. Nothing that it says while it
    imports is shown: it would be said before the script began."""
    stderr = os.dup(2)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 2)
    for name in imports.split(","):
        quietly(__import__, name)
    note_imported()
    arguments = b""
    while True:
        piece = os.read(0, 65536)
        if not piece:
            break
        arguments += piece
    if not arguments:
        os._exit(0)
    sys.argv[1:] = __import__("json").loads(arguments)
    os.dup2(null, 0)
    os.dup2(stderr, 2)
    os.close(stderr)
    os.close(null)
    # What they knew of folders is old by now.
    sys.path_importer_cache.clear()


def note_imported() -> None:
    """Say in a file which modules, by their first names, are imported."""
    path = os.path.join(os.path.dirname(__file__), "imported")
    names = {name.partition(".")[0] for name in sys.modules}
    with open(f"{path}.new", "w") as file:
        file.write(" ".join(sorted(names)))
    os.rename(f"{path}.new", path)


IMPORTS = Imports()
IMPORTS.after("matplotlib", find_fonts)
IMPORTS.after("matplotlib.pyplot", write_plots)
IMPORTS.after("matplotlib.animation", write_animations)
sys.meta_path.insert(0, IMPORTS)
quietly(add_site_folder)
# Set for the script's own Python only, where it is started before there is a script.
EARLY_IMPORTS = os.environ.pop("EXEC_IMPORTS", "")
if EARLY_IMPORTS:
    wait_for_script(EARLY_IMPORTS)
