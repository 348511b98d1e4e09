"""A call's code: as a cell that can run, and what its run's texts say of it. Pure.

What models put around code goes. Each line keeps its number: what goes becomes a blank
line, so that tracebacks and the echo, which shows what the caller sent, agree. The code
is never parsed or compiled: it is read line by line, a few times, so that no code can
keep the service busy."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from run import Run
from texts.tracebacks import split_headings

DATA_FOLDER = "/mnt/data"
# Runs code as a cell of its own, inside of the one that is sent, so that all its lines
# are the caller's. in_sandbox/kernel.py says how; without it, IPython's own `run_cell`
# does so too. The shell is not taken from a name that the caller may have given away,
# and what an `if` looks at is not shown as a value.
_RUN_CELL = 'if __import__("IPython").get_ipython().run_cell({!r},0,0,{}):0'

_FENCES = ("```", "~~~")
_MOST_FENCE_INDENTATION = 3  # with more it is no fence to Markdown
# What a fence says of the code below it: "python", "{.python}", "python title='a.py'".
# `tool_code` is Gemini's word.
_PYTHON_INFO = r"(?i)[{.]*+(?:i?py(?:thon)?3?|tool_code)\b[^`]*"
# If the line before ends in one of these, `~~~` may be Python: its operator `~` three
# times.
_OPERATORS = tuple("([{,=+-*/%&|^<>~")
# A first line that names the language, and is no code.
_LANGUAGE_LINE = r"(?i)i?python3?"
_CELL_MAGIC = r"%%\w"
# Where a comment or a string begins, in what is neither.
_COMMENT_OR_STRING = re.compile(r"""#|'''|\"{3}|['"]""")
# From inside a string to its end, by the quotes that end it.
_TO_END_OF_STRING = {
    "'''": re.compile(r"(?:[^\\]|\\.)*?'''"),
    '"""': re.compile(r'(?:[^\\]|\\.)*?"""'),
    "'": re.compile(r"(?:[^'\\]|\\.)*+'"),
    '"': re.compile(r'(?:[^"\\]|\\.)*+"'),
}


@dataclass(frozen=True)
class Cell:
    """A call's code, from what the caller sent to the texts of its run."""

    sent: str

    @cached_property
    def code(self) -> str:
        """What is run: line for line what was sent, without what is no code."""
        return runnable(self.sent)

    def for_kernel(self, set_up: str, limit_s: int) -> str:
        """The code as it is sent, after lines of ours that `set_up` a new kernel."""
        return set_up + _RUN_CELL.format(self.code, limit_s)

    def mend(self, run: Run, sandbox_id: str) -> None:
        """Have a run's texts not name the sandbox; part what E2B's server joined."""

        def without_id(text: str) -> str:
            return text.replace(sandbox_id, "[sandbox id]")

        run.traceback = without_id(split_headings(run.traceback))
        run.error_value = without_id(run.error_value)
        run.stdout = run.stdout.map(without_id)
        run.stderr = run.stderr.map(without_id)
        run.values = run.values.map(without_id)


def runnable(code: str) -> str:
    """Without a BOM, fences and prose around the code, and a first line's indentation.

    What may be the code's own stays: a fence in a string, or in the text that a cell
    magic is given."""
    lines = code.removeprefix("\ufeff").split("\n")
    has_fence = any(marks in code for marks in _FENCES)
    if has_fence and _lines_to_magic(lines) is None:
        lines = _without_fences(lines)
    _remove_language(lines)
    _remove_lone_indentation(lines)
    for number in range(_lines_to_magic(lines) or 0):
        lines[number] = ""
    _fill_blank_first_line(lines)
    return "\n".join(lines)


def _not_blank(lines: list[str]) -> Iterator[int]:
    """The numbers of the lines that are not blank, the first line's being 0."""
    return (number for number, line in enumerate(lines) if line and not line.isspace())


def _first_two(lines: list[str]) -> list[int]:
    """The numbers of the first two lines that are not blank, or fewer."""
    return list(islice(_not_blank(lines), 2))


def _lines_to_magic(lines: list[str]) -> int | None:
    """How many lines, blank or comments, stand before a cell magic such as `%%time`.

    None where other code comes first, or there is none: then no magic is meant."""
    for number in _not_blank(lines):
        line = lines[number].lstrip(" \t")
        if line[0] != "#":
            return number if re.match(_CELL_MAGIC, line) else None
    return None


def _without_fences(lines: list[str]) -> list[str]:
    """The lines that stand in fences, the others blank; all lines if none does.

    What stands in the fences of another language is no code."""
    kept = [""] * len(lines)
    block = ""  # what is in the fences that are open: "code", "other" or nothing
    quotes = ""  # of the string that a line begins in
    before = ""
    for number, line in enumerate(lines):
        info = None if quotes else _info_of_fence(line)
        if block and info == "":
            block = ""
        elif not block and info is not None and _is_before_code(line, info, before):
            block = "code"
        elif not block and info and line.lstrip().startswith("`"):
            block = "other"
        elif block != "other":
            if block == "code":
                kept[number] = line
            if line:
                quotes = _quotes_left_open(line, quotes)
        before = line
    return kept if _first_two(kept) else lines


def _info_of_fence(line: str) -> str | None:
    """What stands after a fence's marks, "" if nothing does; None if it is no fence."""
    unindented = line.lstrip(" ")
    indentation = len(line) - len(unindented)
    if not unindented.startswith(_FENCES) or indentation > _MOST_FENCE_INDENTATION:
        return None
    return unindented.lstrip(unindented[0]).strip()


def _is_before_code(line: str, info: str, before: str) -> bool:
    """Whether a fence that says `info` opens code; `before` is the line before it."""
    may_be_operators = line.lstrip().startswith("~")
    if may_be_operators and before.removesuffix("\r").endswith(_OPERATORS):
        return False
    return not info or re.fullmatch(_PYTHON_INFO, info) is not None


def _quotes_left_open(line: str, quotes: str) -> str:
    """The quotes of the string that is open at a line's end, "" for none.

    `quotes` are those of the string that is open at its beginning. In a string a fence
    is no fence."""
    at = 0
    while True:
        if not quotes:
            start = _COMMENT_OR_STRING.search(line, at)
            if not start or start[0] == "#":
                return ""
            quotes = start[0]
            at = start.end()
        end = _TO_END_OF_STRING[quotes].match(line, at)
        if not end:
            spans_lines = len(quotes) > 1 or _ends_in_backslash(line)
            return quotes if spans_lines else ""
        quotes = ""
        at = end.end()


def _ends_in_backslash(line: str) -> bool:
    """Whether its end is escaped, so that a string in it goes on in the next line."""
    line = line.removesuffix("\r")
    backslashes = len(line) - len(line.rstrip("\\"))
    return backslashes % 2 == 1


def _remove_language(lines: list[str]) -> None:
    """Make a first line blank that is `python`, if code follows it."""
    numbers = _first_two(lines)
    if len(numbers) == 2 and re.fullmatch(_LANGUAGE_LINE, lines[numbers[0]].strip()):
        lines[numbers[0]] = ""


def _remove_lone_indentation(lines: list[str]) -> None:
    """Remove the spaces of `  import math`, the first line, if the next has none."""
    numbers = _first_two(lines)
    if len(numbers) == 2 and not lines[numbers[1]][0].isspace():
        lines[numbers[0]] = lines[numbers[0]].lstrip(" \t")


def _fill_blank_first_line(lines: list[str]) -> None:
    """Make a blank first line a comment, indented as the code below it.

    IPython drops blank lines at the start, and would count from there."""
    first = next(_not_blank(lines), 0)
    code = lines[first].lstrip()
    if first > 0 and not code.startswith("%%"):
        lines[0] = lines[first].removesuffix(code) + "#"
