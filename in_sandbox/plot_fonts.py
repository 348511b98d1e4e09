"""Finds a font for what is written in a script's figures, whatever the script names.

startup.py calls the functions in HOOKS, while matplotlib is imported: nothing of that
can be imported here. Nothing but the standard library, and what Python 3.8 knows.
"""

from __future__ import annotations

import atexit
import functools
import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

# Where to look for a character that the fonts that are asked for lack: symbols are in
# the first, Chinese, Japanese and Korean in a family with the second in its name.
SYMBOLS = "DejaVu Sans"
EAST_ASIAN = "CJK"
MOST_GLYPHS = 50  # that no font has, in the line that says so


def hook_fonts(module: Any) -> None:
    """Let characters that a font lacks come from others, whatever font is asked for."""
    plain = module.FontManager._find_fonts_by_props

    @functools.wraps(plain)
    def find(manager: Any, prop: Any, *args: Any, **options: Any) -> Any:
        paths = plain(manager, prop, *args, **options)
        with suppress(Exception):
            prop = module.FontProperties._from_any(prop).copy()
            names = sorted(font.name for font in manager.ttflist)
            names = [name for name in names if EAST_ASIAN in name]
            for name in [SYMBOLS, *names[:1]]:
                prop.set_family(name)
                path = manager.findfont(prop, fallback_to_default=False)
                if path not in paths:
                    paths.append(path)
        return paths

    module.FontManager._find_fonts_by_props = find
    # It says of each text that a font which is asked for is not there.
    logging.getLogger(module.__name__).setLevel(logging.ERROR)


def hook_text(module: Any) -> None:
    """Say once which characters no font has, and not of each one that is drawn."""
    missing: dict[str, bool] = {}  # in the order in which they came

    def warn_on_missing_glyph(codepoint: int, fontnames: str) -> None:
        missing[chr(codepoint)] = True

    def say() -> None:
        if missing:
            print("No font here has", "".join(missing)[:MOST_GLYPHS], file=sys.stderr)

    module.warn_on_missing_glyph = warn_on_missing_glyph
    atexit.register(say)


HOOKS: dict[str, Callable[[Any], None]] = {
    "matplotlib._text_helpers": hook_text,
    "matplotlib.font_manager": hook_fonts,
}
