"""A call's code: as the caller sent it, and what its run's texts say of it. Pure.

The code is never parsed or compiled here. Whether it may be wrapped in something that
is no code is looked at once, by signs; in_sandbox/shapes.py then knows for certain."""

import re
from dataclasses import dataclass

from run import Run
from texts.tracebacks import split_headings

DATA_FOLDER = "/mnt/data"
# Signs that a text may have to be looked at before it runs. What has one of them by
# chance runs as it is, only a few milliseconds later.
_SIGNS = re.compile(
    r"""(?xi)
    \A\s  # a blank or an indented first line: IPython would count lines from the next
    | \A (?: i?python3? \s | >>> | In \s?\[ | < )
    | > \s*+ \Z
    | ```
    | ~~~
    | &(?:lt|gt|amp|quot|apos|nbsp|\#\w{1,4});
    | [\u00a0\u00ad\u1680\u2000-\u200d\u202f\u205f\u2060\u3000\ufeff]
    | \n[ \t]*+ %%  # a cell magic, which may not be the first line
    # "pip install x", "!python -m pip install x", "sudo apt-get update"
    | ^[ \t]*+ [!%]?+ [ \t]*+ (?:sudo|pip3?|python3?[ ]-m[ ]pip|apt(?:-get)?) [ ]
    """,
    re.MULTILINE,
)
# A text that is nothing but a string, or an object of JSON.
_QUOTES = {'"': '"', "'": "'", "{": "}"}


@dataclass(frozen=True)
class Cell:
    """A call's code, from what the caller sent to the texts of its run."""

    sent: str

    def mend(self, run: Run, sandbox_id: str) -> None:
        """Have a run's texts not name the sandbox; part what E2B's server joined."""

        def without_id(text: str) -> str:
            return text.replace(sandbox_id, "[sandbox id]")

        run.traceback = without_id(split_headings(run.traceback))
        run.error_value = without_id(run.error_value)
        run.stdout = run.stdout.map(without_id)
        run.stderr = run.stderr.map(without_id)
        run.values = run.values.map(without_id)


def may_be_wrapped(code: str) -> bool:
    """Whether the code may stand in fences, in JSON, after prompts and the like."""
    stripped = code.strip()
    is_literal = _QUOTES.get(stripped[:1], "none") == stripped[-1:]
    is_one_line = "\\n" in stripped and "\n" not in stripped
    return is_literal or is_one_line or bool(_SIGNS.search(code))
