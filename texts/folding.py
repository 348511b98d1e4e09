"""Shortens text that says nothing, or the same again. Pure.

Each rule has to be sure of the text that it hides. A program's own text stays, except
for equal lines in a row, of which the number is given. Texts are read line by line,
each line once."""

import re
from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

# This many equal lines in a row are folded in printed text; fewer may draw a shape.
_LEAST_PRINTED = 20
# The same for the lines of a log, which may differ in their time: `03:29:02,164`.
_LEAST_LOGGED = 3
_TIME = r"(?:\d{4}-\d\d-\d\d[ T])?\d\d:\d\d:\d\d(?:[.,]\d+)?"
# How many lines of a log, or frames of a traceback, a repeated block may have.
_LONGEST_BLOCK = 6

# The heading of a frame in a traceback: `Cell In[1], line 2`, `File /a/b.py:3, in f`.
_HEADINGS = ("Cell In[", "File ")
# The code in a frame: `   3804 try:`, `-> 3805     return x`, and a gap, `   (...)`,
# to which E2B's server joins the line after it: `   (...)     70     """`.
_CODE = r" *(?:(?:-*> )?\d+(?: .*)?|\(\.\.\.\)(?: .*)?)"
_FIRST_OF_CODE = " -(0123456789"
# The heading of a frame in a library, up to the library's name.
_LIBRARY = (
    r"File (?:"
    r"\S*?/(?:site|dist)-packages/"  # `File /usr/…/dist-packages/pandas/io.py:3, in f`
    r"|\S*?/lib/python3[\d.]*/"  # `File /usr/lib/python3.13/json/…`
    r"|<frozen "  # `File <frozen importlib…`
    r"|\w+\.pyx:\d+, in "  # `File index.pyx:167, in pandas.…`
    r"|(?=\w+/[\w/]*\.px[id]:)"  # `File pandas/_libs/x.pxi:7`
    r")(\w+)"
)
# What stands between an error and one that came of it.
_CHAIN = ("\nThe above exception was the ", "\nDuring handling of the above exception,")
# How often frames have to come in a row to be folded.
_LEAST_FRAMES = 3


def fold_printed(text: str) -> str:
    """Fold text that a program printed."""
    lines = text.split("\n")
    return "\n".join(_counted(lines, lines, _LEAST_PRINTED, longest=1))


def fold_logged(text: str) -> str:
    """Fold text that came on stderr: warnings and logs."""
    lines = text.split("\n")
    keys = [_without_time(line) for line in lines]
    return "\n".join(_counted(lines, keys, _LEAST_LOGGED, _LONGEST_BLOCK))


def fold_traceback(traceback: str) -> str:
    """Fold frames of libraries and repeated frames.

    Of the first and the last frame of a library in a row the code is shown; of those of
    an error that has none of the caller's, and led to one that has, nothing is."""
    *earlier, last = _errors(traceback)
    is_last_callers = _callers_frame(last) != ""
    texts: list[str] = []
    for error in earlier:
        has_ends = not is_last_callers or _callers_frame(error) != ""
        texts += _without_library_frames(error, has_ends)
    texts += _without_library_frames(last, has_ends=True)
    return "\n".join(_counted(texts, texts, _LEAST_FRAMES, _LONGEST_BLOCK))


def callers_frame(traceback: str) -> str:
    """The first frame of the caller's own code in the last error, if another error
    stands before that; else ""."""
    *earlier, last = _errors(traceback)
    return _callers_frame(last) if earlier else ""


# --- lines and blocks of them ---------------------------------------------------------


def _counted(
    texts: list[str], keys: list[str], least: int, longest: int
) -> Iterator[str]:
    """The texts. Of a block of up to `longest` that comes `least` times in a row, equal
    by its keys, the first stands for all, with their number."""
    start = 0
    while start < len(texts):
        length, times = _repetition(keys, start, least, longest)
        block = "\n".join(texts[start : start + length])
        lines = block.count("\n") + 1
        if times == 1:
            yield block
        elif lines == 1:
            yield f"{block} (× {times:,})"
        else:
            yield f"{block}\n[the same {lines} lines {times - 1:,} more times]"
        start += length * times


def _repetition(
    keys: list[str], start: int, least: int, longest: int
) -> tuple[int, int]:
    """How many keys from `start` on are a block that is repeated, and how often it
    comes: 1 that comes once, if none is repeated."""
    if not keys[start]:
        # Blank lines divide a log into parts: no block begins with one, and more of
        # them are kept.
        least = _LEAST_PRINTED
        longest = 1
    for length in range(1, longest + 1):
        block = keys[start : start + length]
        times = 1
        end = start + length
        while keys[end : end + length] == block:
            times += 1
            end += length
        if times >= least:
            return length, times
    return 1, 1


def _without_time(line: str) -> str:
    return re.sub(_TIME, "", line, count=1) if ":" in line else line


# --- frames ---------------------------------------------------------------------------


class _Frame(NamedTuple):
    """A frame of a traceback: its heading and its code; or lines that are in none."""

    text: str
    is_frame: bool = False
    library: str | None = None  # the name of the library that a frame is in


def _errors(traceback: str) -> list[list[_Frame]]:
    """The frames of each error in a chain, with the lines between them."""
    errors: list[list[_Frame]] = [[]]
    for frame in _frames(traceback.split("\n")):
        errors[-1].append(frame)
        if not frame.is_frame and any(words in frame.text for words in _CHAIN):
            errors.append([])
    return errors


def _callers_frame(error: list[_Frame]) -> str:
    """The text of the first frame that is in no library, "" if there is none."""
    own = (each.text for each in error if each.is_frame and each.library is None)
    return next(own, "")


def _frames(lines: list[str]) -> list[_Frame]:
    frames = []
    start = 0
    while start < len(lines):
        end = start + 1
        is_frame = lines[start].startswith(_HEADINGS)
        library = None
        if is_frame:
            while end < len(lines) and _is_code(lines[end]):
                end += 1
            found = re.match(_LIBRARY, lines[start])
            library = found and found[1]
        else:
            while end < len(lines) and not lines[end].startswith(_HEADINGS):
                end += 1
        text = "\n".join(lines[start:end])
        frames.append(_Frame(text, is_frame, library))
        start = end
    return frames


def _is_code(line: str) -> bool:
    if not line or line[0] not in _FIRST_OF_CODE:
        return False  # quickly: a traceback may have a million lines
    return re.fullmatch(_CODE, line) is not None


def _without_library_frames(error: list[_Frame], has_ends: bool) -> Iterator[str]:
    """The frames' texts. Of those of libraries in a row, only the ends are shown, or
    none."""
    for is_library, group in groupby(error, lambda frame: frame.library is not None):
        same = list(group)
        ends = int(has_ends)
        others = same[ends : len(same) - ends]
        if not is_library or len(others) <= ends:
            yield from (frame.text for frame in same)
            continue
        names = {frame.library or "" for frame in others}
        plural = "s" if len(others) > 1 else ""
        listed = ", ".join(sorted(names))
        yield from (frame.text for frame in same[:ends])
        yield f"[{len(others):,} frame{plural} of {listed} left out]"
        yield from (frame.text for frame in same[len(same) - ends :])
