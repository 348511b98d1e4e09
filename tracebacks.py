"""Mends what E2B's server does to tracebacks, so that they speak of the caller's code. Pure.

It joins their headings without a newline, and it puts lines of its own before the first cell of a
sandbox (they set its environment), so that tracebacks count from there and quote those lines, the
sandbox's id among them. Measured with code-interpreter 2.11.5 in 2026: four lines; a template with
environment variables of its own has more. A cell that is run beforehand would take that prefix,
and cost a round trip; this costs none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

_GLUED = re.compile(r"(?<=-{75})(?=\w)|(?<=recent call last\))(?=Cell |File )|(?<=:)(?=-{75})")
_HEADING = re.compile(r"(Cell In\[1\], line )(\d+)")
_ROW = re.compile(r"( *(?:-+> )?)(\d+)(?= |$)(.*)")
_WARNING = re.compile(r'(ipykernel_\d+/\d+\.py(?::|", line ))(\d+)')
_SYNTAX_ERROR = re.compile(r"(\(\d+\.py, line )(\d+)(?=\))")


def unglued(traceback: str) -> str:
    """Put each heading on a line of its own."""
    return _GLUED.sub("\n", traceback)


def unprefixed(code: str, evidence: str) -> Callable[[str], str]:
    """Return what mends a text that the first cell of a sandbox, `code`, gave.

    How many lines the prefix has is read from `evidence`, its traceback or warnings: the number
    for which each line that is quoted there is that line of the code.
    """
    own_lines = [line.strip() for line in code.split("\n")]
    quoted = [(number, text) for _, number, text in _rows(evidence)]

    def fits(prefix: int) -> bool:
        own = [(number - prefix - 1, text) for number, text in quoted if number > prefix]
        return bool(own) and all(own_lines[n : n + 1] == [text] for n, text in own)

    prefix = next(filter(fits, (4, *range(1, 100))), 4)

    def less(match: re.Match[str], width: int = 0) -> str:
        number = int(match[2]) - prefix
        return f"{match[1]}{number:>{width}}" if number > 0 else match[0]

    def mend(text: str) -> str:
        lines = text.split("\n")
        for index, number, _ in reversed(list(_rows(text))):
            if row := _ROW.match(lines[index]):
                # A row of the prefix goes; the others keep their width.
                lines[index : index + 1] = (
                    [less(row, len(row[2])) + row[3]] if number > prefix else []
                )
        text = "\n".join(lines)
        for pattern in (_HEADING, _WARNING, _SYNTAX_ERROR):
            text = pattern.sub(less, text)
        return text

    return mend


def _rows(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield (index of a line, the line number that it gives, the code quoted with it)."""
    lines = [*text.split("\n"), ""]
    in_frame = False
    for index, line in enumerate(lines[:-1]):
        if in_frame and (row := _ROW.match(line)):
            yield index, int(row[2]), row[3].strip()
        elif not (in_frame and line.strip() == "(...)"):
            heading = _HEADING.search(line)
            # The heading of a syntax error is indented; the code below it has no number.
            in_frame = bool(heading) and not line.startswith(" ")
            if (match := heading or _WARNING.search(line)) and not in_frame:
                yield index, int(match[2]), lines[index + 1].strip()
