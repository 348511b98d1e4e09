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

from run import Run

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
# A frame of the first cell: its heading, then quoted lines.
_FRAME = (
    r"(?m)^Cell In\[1\], line \d.*(?:\n(?:"
    r" *(?:-+> )?\d{1,7}(?: .*)?"  # `----> 5 1/0`
    r"|\s*\(\.\.\.\)\s*"  # `(...)`, for a gap
    r")$)*"
)
# The same line in its parts: `----> `, `5`, ` 1/0`.
_ROW = r"(?m)\n( *(?:-+> )?)(\d{1,7})(?= |$)(.*)"
# A place in the first cell, then its line.
_PLACE = (
    r"^ *Cell In\[1\], line "  # `Cell In[1], line 5`
    r'|ipykernel_\d+/\d+\.py(?::|", line )'  # `…/ipykernel_304/15.py:6: UserWarning`
)
# The same in a text without rows: the next line quotes the code.
_QUOTING = rf"(?m)(?!^Cell)({_PLACE})(\d{{1,7}}).*\n[ |]*(.*)"
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


def renumber_run(
    run: Run,
    code: str,
    sandbox_id: str,
    is_first_cell: bool,
) -> None:
    """Have a run's texts count from the caller's first line, and not name the sandbox.

    `code` is the cell as it was sent; of a later cell
    only the headings are put on lines of their own."""
    run.traceback = split_headings(run.traceback)
    stderr = run.stderr.text()
    evidence = f"{run.traceback}\n{stderr}"
    prefix = prefix_lines(code, evidence) if is_first_cell else 0
    # With frames in it, the error is in other code that this code ran, by exec or eval.
    is_own_syntax = "(most recent call last)" not in run.traceback

    def error(text: str) -> str:
        text = renumber_error(text, prefix, is_own_syntax)
        return text.replace(sandbox_id, "[sandbox id]")

    def printed(text: str) -> str:
        text = _renumber(text, prefix, _PRINTED)
        return text.replace(sandbox_id, "[sandbox id]")

    run.traceback = error(run.traceback)
    run.error_value = error(run.error_value)
    run.stdout = run.stdout.map(printed)
    run.stderr = run.stderr.map(printed)
    run.values = run.values.map(printed)


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
    own_lines = map(str.strip, code.split("\n"))
    numbered = set(enumerate(own_lines, 1))
    frames = "\n".join(re.findall(_FRAME, evidence))
    rows = re.findall(_ROW, frames)
    rows += re.findall(_QUOTING, evidence + "\n")
    quoted = []
    for _, number, text in rows[:_MAX_QUOTED]:
        # Shell commands and magics are quoted as the calls that they became.
        if "get_ipython()." not in text:
            row = (int(number), text.strip())
            quoted.append(row)
    for prefix in _PREFIXES:
        own_rows = {
            (number - prefix, text) for number, text in quoted if number > prefix
        }
        if own_rows and own_rows <= numbered:
            return prefix
    return _E2B_LINES


def renumber_error(text: str, prefix: int, is_own_syntax: bool) -> str:
    """Renumber a traceback or a message, and drop the lines that the prefix has in it.

    `is_own_syntax`: it may be of code that is no Python."""

    def renumbered(row: re.Match[str]) -> str:
        margin, number, code = row.groups()
        own_number = int(number) - prefix
        if own_number < 1 or code.startswith(_E2B_CODE):
            return ""
        # As wide as before.
        width = len(margin + number)
        fill = margin[:1] or " "
        start = f"{margin}{own_number}".rjust(width, fill)
        return f"\n{start}{code}"

    def frame_renumbered(frame: re.Match[str]) -> str:
        return re.sub(_ROW, renumbered, frame[0])

    if prefix:
        text = re.sub(_FRAME, frame_renumbered, text)
    text = _renumber(text, prefix, _PRINTED)
    if is_own_syntax:
        text = _renumber(text, prefix, _SYNTAX_ERROR)
    return text


def _renumber(text: str, prefix: int, pattern: str) -> str:
    """Subtract `prefix` from each number that is the pattern's second group."""

    def renumbered(match: re.Match[str]) -> str:
        number = int(match[2]) - prefix
        return f"{match[1]}{number}" if number > 0 else match[0]

    return re.sub(pattern, renumbered, text)
