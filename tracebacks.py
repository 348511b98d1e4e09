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
_PREFIXES: tuple[int, ...] = (_E2B_LINES, *range(1, 100))
# So many quoted lines tell how many there are, and bound the search.
_MAX_QUOTED = 1000
_E2B_CODE = " import os; os.environ['E2B_"

# Between two lines that are joined: `-----ZeroDivisionError`, `last)Cell In[2], line 1`.
_JOINT = re.compile(
    r"(?<=-{75})(?=\w)|(?<=recent call last\))(?=Cell |File )|(?<=:)(?=-{75})"
)
# A frame of the first cell: `Cell In[1], line 5`, then rows, and `(...)` for a gap.
_FRAME = re.compile(
    r"(?m)^Cell In\[1\], line \d.*(?:\n(?: *(?:-+> )?\d{1,7}(?: .*)?|\s*\(\.\.\.\)\s*)$)*"
)
# A row of it, its number and its code: `      4 x = 1`, `----> 5 1/0`.
_ROW = re.compile(r"(?m)\n( *(?:-+> )?)(\d{1,7})(?= |$)(.*)")
# A place, the line in it, and the next line, which quotes it: of a syntax error
# `  Cell In[1], line 5`, of a warning `…/ipykernel_304/15.py:6: UserWarning`.
_QUOTING = re.compile(
    r"(?m)(?:^ +Cell In\[1\], line |ipykernel_\d+/\d+\.py(?::|\", line ))(\d{1,7}).*"
    r"\n[ |]*(.*)"
)
# What stands before a line number in what is printed: `Cell In[1], line 5`,
# `…/ipykernel_304/15.py:6`, `…/15.py", line 7`, `<>:3: SyntaxWarning`.
_PRINTED = re.compile(
    r"(?m)(^ *Cell In\[1\], line |ipykernel_\d+/\d+\.py(?::|\", line )"
    r"|^<>:(?=\d+: \w+Warning))(\d{1,7})"
)
# And in a syntax error: `(15.py, line 5)`, `(detected at line 5)`, `after 'if'
# statement on line 5`, `  File <tokenize>:5`, `… level (<tokenize>, line 5)`.
_SYNTAX_ERROR = re.compile(
    r"(?m)(\(\d+\.py, line |\(detected at line "
    r"|(?:parenthesis '.'|statement|definition) on line "
    r"|\A  File <\w+>:|(?:level|indentation) \(<\w+>, line )(\d{1,7})"
)


def renumber_run(run: Run, code: str, sandbox_id: str, is_first_cell: bool) -> None:
    """Have a run's texts count from the caller's first line, and not name the sandbox.

    `code` is the cell as it was sent; of a later cell only the headings are parted."""
    run.traceback = split_headings(run.traceback)
    evidence = f"{run.traceback}\n{run.stderr.text()}"
    prefix = prefix_lines(code, evidence) if is_first_cell else 0
    # With frames in it, the error is in other code that this code ran, by exec or eval.
    is_own_syntax = "(most recent call last)" not in run.traceback
    renumber_error = renumber_syntax_error if is_own_syntax else renumber_traceback

    def error(text: str) -> str:
        return renumber_error(text, prefix).replace(sandbox_id, "[sandbox id]")

    def printed(text: str) -> str:
        return renumber_printed(text, prefix).replace(sandbox_id, "[sandbox id]")

    run.traceback = error(run.traceback)
    run.error_value = error(run.error_value)
    run.stdout = run.stdout.map(printed)
    run.stderr = run.stderr.map(printed)
    run.values = run.values.map(printed)


def split_headings(traceback: str) -> str:
    """Give each heading that E2B's server joined to another a line of its own."""
    return _JOINT.sub("\n", traceback)


def prefix_lines(code: str, evidence: str) -> int:
    """How many lines E2B put before `code`, the first cell of a sandbox.

    It is the number for which each line that is quoted in `evidence`, the cell's
    traceback and warnings, is that line of the code."""
    lines = [line.strip() for line in code.split("\n")]
    frames = "\n".join(_FRAME.findall(evidence))
    rows = [(number, text) for _, number, text in _ROW.findall(frames)]
    rows += _QUOTING.findall(evidence)
    # Shell commands and magics are quoted as the calls that they became.
    quoted = [
        (int(number), text.strip())
        for number, text in rows[:_MAX_QUOTED]
        if "get_ipython()." not in text
    ]
    for prefix in _PREFIXES:
        own = [(number - prefix, text) for number, text in quoted if number > prefix]
        if own and all(lines[at - 1 : at] == [text] for at, text in own):
            return prefix
    return _E2B_LINES


def renumber_printed(text: str, prefix: int) -> str:
    """Renumber what the code printed: warnings, and frames in Python's own form."""
    return _subtract(prefix, _PRINTED, text)


def renumber_traceback(text: str, prefix: int) -> str:
    """Renumber a traceback, and drop the lines that the prefix has in it."""

    def renumbered(row: re.Match[str]) -> str:
        margin, number, code = row.groups()
        if int(number) <= prefix or code.startswith(_E2B_CODE):
            return ""
        own_number = str(int(number) - prefix)
        padding = margin[:1] * (len(number) - len(own_number))
        return f"\n{padding}{margin}{own_number}{code}"

    if prefix:
        text = _FRAME.sub(lambda frame: _ROW.sub(renumbered, frame[0]), text)
    return renumber_printed(text, prefix)


def renumber_syntax_error(text: str, prefix: int) -> str:
    """Renumber a traceback or a message of code that is no Python."""
    return _subtract(prefix, _SYNTAX_ERROR, renumber_traceback(text, prefix))


def _subtract(prefix: int, pattern: re.Pattern[str], text: str) -> str:
    """Subtract `prefix` from each number that is the pattern's second group."""

    def renumbered(match: re.Match[str]) -> str:
        number = int(match[2])
        return f"{match[1]}{number - prefix}" if number > prefix else match[0]

    return pattern.sub(renumbered, text)
