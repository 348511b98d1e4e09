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
from typing import NamedTuple

from run import Run

_E2B_LINES = 4  # that its own template has before the first cell
# How many there may be, likeliest first; each is a variable of the template.
_PREFIXES: tuple[int, ...] = (_E2B_LINES, *range(1, 100))
# What can tell how many there are: this many rows do, and bound the search.
_MAX_ROWS = 1000
_E2B_CODE = "import os; os.environ['E2B_"

# Between two lines that are joined: `-----ZeroDivisionError`, `last)Cell In[2], line 1`.
_JOINT = re.compile(
    r"(?<=-{75})(?=\w)|(?<=recent call last\))(?=Cell |File )|(?<=:)(?=-{75})"
)
# A quoted line, with its number: `      4 x = 1`, `----> 5 1/0`.
_ROW = re.compile(r"(?P<margin> *(?:-+> )?)(?P<number>\d{1,7})(?= |$)(?P<code>.*)")
# `Cell In[1], line 5`; `…/ipykernel_304/15.py:6: UserWarning`, `…/15.py", line 7`.
_FRAME = re.compile(
    r'(?m)(^ *Cell In\[1\], line |ipykernel_\d+/\d+\.py(?::|", line ))(\d{1,7})'
)
# `<>:3: SyntaxWarning: "is" with 'int' literal`.
_WARNING = re.compile(r"(?m)(^<>:)(\d{1,7})(?=: \w+Warning)")
# `(15.py, line 5)`, `(detected at line 5)`, `after 'if' statement on line 5`,
# `  File <tokenize>:5`, `unindent does not match … level (<tokenize>, line 5)`.
_SYNTAX_ERROR = re.compile(
    r"(?m)(\(\d+\.py, line |\(detected at line "
    r"|(?:parenthesis '.'|statement|definition) on line "
    r"|\A  File <\w+>:|(?:level|indentation) \(<\w+>, line )(\d{1,7})"
)


def renumber_run(run: Run, code: str, sandbox_id: str, is_first_cell: bool) -> None:
    """Have a run's texts count from the caller's first line, and not name the sandbox.

    `code` is the cell as it was sent; of a later cell only the headings are parted."""
    run.traceback = split_headings(run.traceback)
    if is_first_cell:
        _renumber_texts(run, code)

    def without_id(text: str) -> str:
        return text.replace(sandbox_id, "[sandbox id]")

    run.traceback = without_id(run.traceback)
    run.error_value = without_id(run.error_value)
    run.stdout = run.stdout.map(without_id)
    run.stderr = run.stderr.map(without_id)
    run.values = run.values.map(without_id)


def _renumber_texts(run: Run, code: str) -> None:
    prefix = prefix_lines(code, f"{run.traceback}\n{run.stderr.text()}")

    def renumbered(text: str) -> str:
        return renumber_printed(text, prefix)

    run.stdout = run.stdout.map(renumbered)
    run.stderr = run.stderr.map(renumbered)
    run.values = run.values.map(renumbered)
    # With frames in it, the error is of other code that this code ran, by exec or eval.
    is_own_syntax = "(most recent call last)" not in run.traceback
    renumber = renumber_syntax_error if is_own_syntax else renumber_traceback
    run.traceback = renumber(run.traceback, prefix)
    run.error_value = renumber(run.error_value, prefix)


def split_headings(traceback: str) -> str:
    """Give each heading that E2B's server joined to another a line of its own."""
    return _JOINT.sub("\n", traceback)


def prefix_lines(code: str, evidence: str) -> int:
    """How many lines E2B put before `code`, the first cell of a sandbox.

    It is the number for which each line that is quoted in `evidence`, the cell's
    traceback and warnings, is that line of the code."""
    lines = dict(enumerate(map(str.strip, code.split("\n")), 1))
    # Shell commands and magics are quoted as the calls that they became.
    rows = [row for row in _quoted_rows(evidence) if "get_ipython()." not in row.code]
    for prefix in _PREFIXES:
        own = [row for row in rows[:_MAX_ROWS] if row.number > prefix]
        if own and all(lines.get(row.number - prefix) == row.code for row in own):
            return prefix
    return _E2B_LINES


def renumber_printed(text: str, prefix: int) -> str:
    """Renumber what the code printed: warnings, and frames in Python's own form."""
    return _subtract(prefix, _WARNING, _subtract(prefix, _FRAME, text))


def renumber_traceback(text: str, prefix: int) -> str:
    """Renumber a traceback, and drop the lines that the prefix has in it."""
    lines = text.split("\n")
    dropped = set()
    for row in _quoted_rows(text):
        match = _ROW.match(lines[row.at])
        if not match:
            continue
        if row.number <= prefix or row.code.startswith(_E2B_CODE):
            dropped.add(row.at)
        else:
            lines[row.at] = _renumbered_row(match, prefix)
    kept = [line for index, line in enumerate(lines) if index not in dropped]
    return renumber_printed("\n".join(kept), prefix)


def renumber_syntax_error(text: str, prefix: int) -> str:
    """Renumber a traceback or a message of code that is no Python."""
    return _subtract(prefix, _SYNTAX_ERROR, renumber_traceback(text, prefix))


def _subtract(prefix: int, pattern: re.Pattern[str], text: str) -> str:
    """Subtract `prefix` from each number that is the pattern's second group."""

    def renumbered(match: re.Match[str]) -> str:
        number = int(match[2])
        return f"{match[1]}{number - prefix}" if number > prefix else match[0]

    return pattern.sub(renumbered, text)


def _renumbered_row(row: re.Match[str], prefix: int) -> str:
    """A quoted line with the number that it has in the code, as wide as before."""
    margin = row["margin"]
    number = str(int(row["number"]) - prefix)
    padding = margin[:1] * (len(row["number"]) - len(number))
    return f"{padding}{margin}{number}{row['code']}"


class _QuotedRow(NamedTuple):
    at: int  # index of the line that gives the number
    number: int
    code: str  # that is quoted with it, stripped


def _quoted_rows(text: str) -> Iterator[_QuotedRow]:
    """The lines of the first cell that a text quotes."""
    lines = text.split("\n")
    in_frame = False
    for index, line in enumerate(lines):
        row = _ROW.match(line) if in_frame else None
        if row:
            yield _QuotedRow(index, int(row["number"]), row["code"].strip())
            continue
        if in_frame and line.strip() == "(...)":
            continue
        frame = _FRAME.search(line)
        in_frame = frame is not None and line.startswith("Cell ")
        if frame and not in_frame:
            # The heading of a syntax error or a warning: its code is in the next line.
            code = "".join(lines[index + 1 : index + 2]).lstrip(" |").strip()
            yield _QuotedRow(index, int(frame[2]), code)
