"""Mends what E2B's server does to tracebacks, so that they speak of the caller's code. Pure.

It joins their headings, and it puts lines of its own before the first cell of a sandbox: four that
set its environment, or more by its template (measured in 2026). Tracebacks count from there, and
quote them. A cell run beforehand would take that prefix, and cost a round trip; this costs none."""

import re
from collections.abc import Callable, Iterator

GLUED = re.compile(
    r"(?<=-{75})(?=\w)|(?<=recent call last\))(?=Cell |File )|(?<=:)(?=-{75})"
)
_ROW = re.compile(r"( *(?:-+> )?)(\d{1,7})(?= |$)(.*)")
_PLACE = re.compile(
    r'(?m)(^ *Cell In\[1\], line |ipykernel_\d+/\d+\.py(?::|", line ))(\d{1,7})'
)
_WARNING = re.compile(r"(?m)(^<>:)(\d{1,7})(?=: \w+Warning)")
_SYNTAX_ERROR = re.compile(
    r"(?m)(\(\d+\.py, line |\(detected at line |(?:parenthesis '.'|statement|definition) on line |"
    r"\A  File <\w+>:|(?:level|indentation) \(<\w+>, line )(\d{1,7})"
)


def unprefixed(code: str, evidence: str) -> Callable[..., str]:
    """Return what mends a text that the first cell of a sandbox, `code`, gave.

    How many lines the prefix has is read from `evidence`, its traceback or warnings: the number
    for which each line that is quoted there is that line of the code."""
    own_lines = [line.strip() for line in code.split("\n")]
    # Shell commands and magics are quoted as the calls that they became.
    quoted = [row[1:] for row in _rows(evidence) if "get_ipython()." not in row[2]][
        :1000
    ]

    def fits(prefix: int) -> bool:
        own = [
            (number - prefix - 1, text) for number, text in quoted if number > prefix
        ]
        return bool(own) and all(own_lines[n : n + 1] == [text] for n, text in own)

    prefix = next(filter(fits, (4, *range(1, 100))), 4)

    def less(match: re.Match[str]) -> str:
        return (
            f"{match[1]}{int(match[2]) - prefix}"
            if int(match[2]) > prefix
            else match[0]
        )

    def mend(text: str, printed: bool = False, syntax_error: bool = True) -> str:
        lines: list[str | None] = [*text.split("\n")]
        for index, number, _ in () if printed else _rows(text):
            if row := _ROW.match(lines[index] or ""):
                # A row of the prefix goes; the others keep their width.
                of_prefix = number <= prefix or row[3].startswith(
                    " import os; os.environ['E2B_"
                )
                filled = row[1][:1] * (len(row[2]) - len(f"{number - prefix}")) + less(
                    row
                )
                lines[index] = None if of_prefix else filled + row[3]
        text = "\n".join(line for line in lines if line is not None)
        text = _WARNING.sub(less, _PLACE.sub(less, text))
        return _SYNTAX_ERROR.sub(less, text) if syntax_error and not printed else text

    return mend


def _rows(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield (index of a line, the line number that it gives, the code quoted with it)."""
    lines = [*text.split("\n"), ""]
    in_frame = False
    for index, line in enumerate(lines[:-1]):
        if in_frame and (row := _ROW.match(line)):
            yield index, int(row[2]), row[3].strip()
        elif not (in_frame and line.strip() == "(...)"):
            place = _PLACE.search(line)
            # The heading of a syntax error is indented; the code below it has no number.
            in_frame = bool(place) and line.startswith("Cell ")
            if place and not in_frame:
                yield index, int(place[2]), lines[index + 1].lstrip(" |").strip()
