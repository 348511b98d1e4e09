"""Shortens text that says nothing, or the same again. Pure.

Each rule has to be sure of the text that it hides. A program's own text stays, except
for equal lines in a row, of which the number is given. Texts are read line by line,
each line once."""

import re
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import NamedTuple

# This many equal lines in a row are folded in printed text; fewer may draw a shape.
_LEAST_PRINTED = 20
# The same for the lines of a log, which may differ in their time: `03:29:02,164`.
_LEAST_LOGGED = 3
_TIME = r"(?:\d{4}-\d\d-\d\d[ T])?\d\d:\d\d:\d\d(?:[.,]\d+)?"
# `data:image/png;base64,iVBORw0K…`, if it is so long that nobody reads it.
_DATA_URI = (
    r"(data:\w{1,40}/[\w.+-]{1,80};base64,)"
    r"([A-Za-z0-9+/]{200,}={0,2})"
)

# The heading of a frame in a traceback: `Cell In[1], line 2`, `File /a/b.py:3, in f`.
_HEADINGS = ("Cell In[", "File ")
# The code in a frame: `   3804 try:`, `-> 3805     return x`, and a gap, `   (...)`.
_ROW = r" *(?:-*> )?\d+(?: .*)?"
_GAP = r" *\(\.\.\.\)"
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
# Of this many frames of libraries in a row, only the first and the last are kept.
_LEAST_LIBRARY_FRAMES = 4
# How many frames a repeated group may have, and how often it has to come to be folded.
_LONGEST_GROUP = 6
_LEAST_REPEATED = 3


def fold_printed(text: str) -> str:
    """Fold text that a program printed."""
    lines = fold_always(text).split("\n")
    return "\n".join(_counted(lines, _LEAST_PRINTED))


def fold_logged(text: str) -> str:
    """Fold text that came on stderr: warnings and logs."""
    lines = fold_always(text).split("\n")
    return "\n".join(_counted(lines, _LEAST_LOGGED, _without_time))


def fold_always(text: str) -> str:
    """Fold text that nobody reads, wherever it comes from."""
    if ";base64," in text:
        text = re.sub(_DATA_URI, _measured, text)
    return text


def fold_traceback(traceback: str) -> str:
    """Fold frames of libraries, except the first and the last, and repeated frames."""
    frames = _frames(traceback.split("\n"))
    frames = _without_library_frames(frames)
    return "\n".join(_without_repeated(frames))


# --- what is printed and logged -------------------------------------------------------


def _counted(
    lines: list[str], least: int, key: Callable[[str], str] | None = None
) -> Iterator[str]:
    """The lines. If `least` or more in a row are equal by `key`, the first stands for
    all, with their number."""
    for _, group in groupby(lines, key):
        equal = list(group)
        # Blank lines divide a log into parts, so more of them are kept.
        if len(equal) < (least if equal[0] else _LEAST_PRINTED):
            yield from equal
        else:
            yield f"{equal[0]} (× {len(equal):,})"


def _without_time(line: str) -> str:
    return re.sub(_TIME, "", line, count=1) if ":" in line else line


def _measured(uri: re.Match[str]) -> str:
    return f"{uri[1]}[{len(uri[2]):,} characters of base64]"


# --- frames ---------------------------------------------------------------------------


class _Frame(NamedTuple):
    """A frame of a traceback: its heading and its code; or lines that are in none."""

    text: str
    is_frame: bool = False
    library: str | None = None  # the name of the library that a frame is in


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
    return bool(re.fullmatch(_ROW, line) or re.fullmatch(_GAP, line))


def _without_library_frames(frames: list[_Frame]) -> list[_Frame]:
    kept = []
    for is_library, group in groupby(frames, lambda frame: frame.library is not None):
        same = list(group)
        if is_library and len(same) >= _LEAST_LIBRARY_FRAMES:
            first, *others, last = same
            names = {frame.library or "" for frame in others}
            listed = ", ".join(sorted(names))
            left_out = f"[{len(others):,} frames of {listed} left out]"
            same = [first, _Frame(left_out), last]
        kept += same
    return kept


def _without_repeated(frames: list[_Frame]) -> Iterator[str]:
    """The frames' texts. A group that is repeated is given once, with a count."""
    start = 0
    while start < len(frames):
        length, times = _repetition(frames, start)
        group = [frame.text for frame in frames[start : start + length]]
        yield from group
        if times > 1:
            lines = "\n".join(group).count("\n") + 1
            yield f"[the same {lines} lines {times - 1:,} more times]"
        start += length * times


def _repetition(frames: list[_Frame], start: int) -> tuple[int, int]:
    """How many frames from `start` on are a group that is repeated, and how often it
    comes: 1 frame that comes once, if none is repeated."""
    for length in range(1, _LONGEST_GROUP + 1):
        group = frames[start : start + length]
        if not group[-1].is_frame:
            break
        times = 1
        end = start + length
        while frames[end : end + length] == group:
            times += 1
            end += length
        if times >= _LEAST_REPEATED:
            return length, times
    return 1, 1
