"""Finds a font for what is written in a figure, also where the code names none of it.

in_sandbox/kernel.py runs this when matplotlib has been imported, and startup.py does in
each Python of a script. The names of it that are used are held by
tests/in_sandbox/test_fonts.py."""

from __future__ import annotations

import contextlib
from typing import Any

# Where to look for a character that the fonts that are asked for lack: symbols are in
# the first, Chinese, Japanese and Korean in a family with the second in its name.
SYMBOLS = "DejaVu Sans"
EAST_ASIAN = "CJK"


def watch_fonts(missing_glyphs: dict[str, bool], imports: Any) -> None:
    """Add fonts to those that are asked for, and note characters that none has.

    They are the keys of `missing_glyphs`, in the order in which they came. `imports`
    calls a function after a module is imported."""

    def hook_manager(module: Any) -> None:
        plain = module.FontManager._find_fonts_by_props

        def find(manager: Any, prop: Any, *args: Any, **options: Any) -> Any:
            paths = plain(manager, prop, *args, **options)
            with contextlib.suppress(Exception):
                prop = module.FontProperties._from_any(prop).copy()
                names = [font.name for font in manager.ttflist]
                names = [name for name in names if EAST_ASIAN in name]
                for name in [SYMBOLS, *names[:1]]:
                    prop.set_family(name)
                    path = manager.findfont(prop, fallback_to_default=False)
                    if path not in paths:
                        paths.append(path)
            return paths

        module.FontManager._find_fonts_by_props = find

    def hook_text(module: Any) -> None:
        def warn_on_missing_glyph(codepoint: int, fontnames: str) -> None:
            missing_glyphs[chr(codepoint)] = True

        module.warn_on_missing_glyph = warn_on_missing_glyph

    def hook_pdf(module: Any) -> None:
        plain = module.PdfFile.writeFonts

        def write(file: Any) -> None:
            # All of Latin-1 is measured here; what is drawn has been noted before.
            noted = dict(missing_glyphs)
            try:
                plain(file)
            finally:
                missing_glyphs.clear()
                missing_glyphs.update(noted)

        module.PdfFile.writeFonts = write

    imports.after("matplotlib.font_manager", hook_manager)
    imports.after("matplotlib._text_helpers", hook_text)
    imports.after("matplotlib.backends.backend_pdf", hook_pdf)
