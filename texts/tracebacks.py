"""Line numbers as the caller wrote them. Pure.

E2B's server puts lines of its own before the first cell of a sandbox: four that set its
environment, or more by its template (measured in 2026). Tracebacks count from there and
quote them. It also joins their headings, in every cell. So `1/0` comes as

    ----…----ZeroDivisionError      Traceback (most recent call last)Cell In[1], line 5
          1 import os; os.environ['E2B_SANDBOX'] = 'true'
          2 import os; os.environ['E2B_SANDBOX_ID'] = 'itls7re05vwhe0hmxkji'
          3 import os; os.environ['E2B_TEMPLATE_ID'] = 'code-interpreter-v1'
    ----> 5 1/0
    ZeroDivisionError: division by zero

and leaves as

    ----…----
    ZeroDivisionError               Traceback (most recent call last)
    Cell In[1], line 1
    ----> 1 1/0
    ZeroDivisionError: division by zero

A cell run beforehand would take those lines, and cost a round trip; this costs none."""

import re
from collections.abc import Iterator
from itertools import islice, pairwise

_E2B_LINES = 4  # that its own template has before the first cell
# How many there may be, likeliest first; each is a variable of the template.
_PREFIXES: list[int] = [_E2B_LINES, *range(1, 100)]
# So many quoted lines tell how many there are, and bound the search.
_MAX_QUOTED = 1000
_E2B_CODE = " import os; os.environ['E2B_"

# Where two lines are joined.
_JOINT = (
    r"(?<=-{75})(?=\w)"  # `-----ZeroDivisionError`
    r"|(?<=recent call last\))(?=Cell |File )"  # `… last)Cell In[2], line 1`
    r"|(?<=:)(?=-{75})"  # `… another exception occurred:-----`
    r"|(?<=due dynamically evaluated source code\.')(?=\w)"  # `….'File index.pyx:167`
)
# A frame of the first cell: its heading, then code in rows, and gaps: `(...)`.
_HEADING = "Cell In[1], line "
_GAP = "(...)"
# A row in its parts: `----> `, `5`, ` 1/0`.
_ROW = r"( *(?:-+> )?)(\d{1,7})((?: .*)?)"
# A place in the first cell, then its line.
_PLACE = (
    r"^ *Cell In\[1\], line "  # `Cell In[1], line 5`
    r'|ipykernel_\d+/\d+\.py(?::|", line )'  # `…/ipykernel_304/15.py:6: UserWarning`
)
# A place in a text without rows: the next line quotes the code.
_QUOTING = rf"({_PLACE})(\d{{1,7}})"
# What code prints of itself: warnings, and frames in Python's own form.
_PRINTED = (
    rf"(?m)({_PLACE}"
    r"|^<>:(?=\d+: \w+Warning)"  # `<>:3: SyntaxWarning: …`
    r")(\d{1,7})"
)
# What is said of code that is no Python.
_SYNTAX_ERROR = (
    r"(?m)("
    r"\(\d+\.py, line "  # `invalid syntax (15.py, line 5)`
    r"|\(detected at line "  # `unterminated string literal (detected at line 5)`
    r"|(?:parenthesis '.'|statement|definition) on line "  # `… statement on line 5`
    r"|\A  File <\w+>:"  # `  File <tokenize>:5`
    r"|(?:level|indentation) \(<\w+>, line "  # `… level (<tokenize>, line 5)`
    r")(\d{1,7})"
)


def split_headings(traceback: str) -> str:
    """Give each heading that E2B's server joined to another a line of its own."""
    return re.sub(_JOINT, "\n", traceback)


def split_notes(traceback: str, error: str) -> str:
    """Give what E2B's server joined to the error a line of its own: its notes."""
    frames, found, notes = traceback.rpartition(error)
    if not found or not notes.strip():
        return traceback
    return f"{frames}{found}\n{notes}"


def prefix_lines(code: str, evidence: str) -> int:
    """How many lines E2B put before `code`, the first cell of a sandbox.

    It is the number for which each line that is quoted in `evidence`, the cell's
    traceback and warnings, is that line of the code."""
    own_lines = code.split("\n")
    quoted = list(islice(_quoted(evidence), _MAX_QUOTED))
    for prefix in _PREFIXES:
        if _is_prefix(prefix, quoted, own_lines):
            return prefix
    return _E2B_LINES


def _quoted(evidence: str) -> Iterator[tuple[int, str]]:
    """The number and the text, without blanks around it, of each line that is quoted.

    Shell commands and magics are quoted as the calls that they became: they are left
    out."""
    lines = evidence.split("\n")
    rows = _rows_of_first_cell(lines) if _HEADING in evidence else []
    for row in rows:
        if row and "get_ipython()." not in row[3]:
            yield int(row[2]), row[3].strip()
    for line, next_line in pairwise([*lines, ""]):
        has_place = "ipykernel_" in line or line.startswith(" ")
        place = re.search(_QUOTING, line) if has_place else None
        if place and "get_ipython()." not in next_line:
            yield int(place[2]), next_line.lstrip(" |").rstrip()


def _rows_of_first_cell(lines: list[str]) -> Iterator[re.Match[str] | None]:
    """For each line, its parts if it is a row in a frame of the first cell, or None."""
    is_in_frame = False
    for line in lines:
        row = re.fullmatch(_ROW, line) if is_in_frame else None
        yield row
        if line.startswith(_HEADING):
            is_in_frame = True
        elif not row and line.strip() != _GAP:
            is_in_frame = False


def _is_prefix(
    prefix: int, quoted: list[tuple[int, str]], own_lines: list[str]
) -> bool:
    """Whether each line that is quoted, but for the prefix's own, is that of the code.

    There has to be one."""
    own_numbers = [
        (number - prefix, text) for number, text in quoted if number > prefix
    ]
    for own_number, text in own_numbers:
        is_there = own_number <= len(own_lines)
        if not is_there or own_lines[own_number - 1].strip() != text:
            return False
    return bool(own_numbers)


def renumber_error(text: str, prefix: int, is_own_syntax: bool) -> str:
    """Renumber a traceback or a message, and drop the lines that the prefix has in it.

    `is_own_syntax`: it may be of code that is no Python."""
    if prefix and _HEADING in text:
        text = "\n".join(_renumbered_rows(text.split("\n"), prefix))
    text = renumber_printed(text, prefix)
    if is_own_syntax:
        text = _renumber(text, prefix, _SYNTAX_ERROR)
    return text


def renumber_printed(text: str, prefix: int) -> str:
    """Renumber what code printed of itself: warnings, frames in Python's own form."""
    return _renumber(text, prefix, _PRINTED)


def _renumbered_rows(lines: list[str], prefix: int) -> Iterator[str]:
    for line, row in zip(lines, _rows_of_first_cell(lines), strict=True):
        if not row:
            yield line
            continue
        margin, number, code = row.groups()
        own_number = int(number) - prefix
        if own_number < 1 or code.startswith(_E2B_CODE):
            continue
        # As wide as before.
        width = len(margin + number)
        fill = margin[:1] or " "
        yield f"{margin}{own_number}".rjust(width, fill) + code


def _renumber(text: str, prefix: int, pattern: str) -> str:
    """Subtract `prefix` from each number that is the pattern's second group."""

    def renumbered(match: re.Match[str]) -> str:
        number = int(match[2]) - prefix
        return f"{match[1]}{number}" if number > 0 else match[0]

    return re.sub(pattern, renumbered, text)
