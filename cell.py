"""The caller's code as a cell that can run: without what models put around it. Pure.

Each line keeps its number: what goes becomes a blank line, so that tracebacks and the
echo, which shows what the caller sent, agree. The code is never parsed or compiled."""

import re

DATA_FOLDER = "/mnt/data"
# Leaves no name behind. Where the folder cannot be made, only what needs it fails.
MAKE_DATA_FOLDER = f"__import__('os').system('mkdir -p {DATA_FOLDER} 2>/dev/null')"

# A comment or a string, up to its end or to where that ought to be: `# it's`, `"a"`,
# `'''a` and more lines. No text is searched twice for an end that is missing.
_NO_CODE = r"""(?sx) \#[^\n]*
    | (?P<quotes>\"{3}|'{3}) (?:\\.|.)*? (?:(?P=quotes)|\Z)
    | "(?:\\.|[^"\\\n])*+
    | '(?:\\.|[^'\\\n])*+"""
_IN_STRING = "\n\0"  # a newline there; Python's code cannot have a NUL
# What stands before the code in "```python", code, "```", and what between two such
# fences or after the last one, the fences included. `tool_code` is Gemini's word. Not
# what may be Python: a line `~~~` after one that ends in an operator or a bracket.
_AROUND_FENCES = r"""(?imsx) (?: \A | ^[ ]{0,3} (?:`{3,}|~{3,}) [ \t\r]*$ )
    .*?
    (?: ^ (?<! [(\[{,=+\-*/%&|^<>~]\n ) [ ]{0,3} (?:`{3,}|~{3,}) [ \t]*+
        (?: [{.]*+ (?:i?py(?:thon)?3?|tool_code) \b [^\n`]*+ )?+ [ \t\r]*+ (?=\n)
    | \Z )"""
# A first line that is `python`, with code after it.
_LANGUAGE_LINE = r"(?i)\A(\s*)i?python3?[ \t]*(?=\r?\n\s*\S)"
# The spaces in `  import math`, the first line, if the next one has none.
_ONLY_INDENTATION = r"\A((?:[^\S\n]*\n)*)[ \t]+(?=\S[^\n]*\n(?:[^\S\n]*\n)*\S)"
# Blank lines and comments before a cell magic, as `%%time`, which has to come first. A
# comment takes the CR of its line along: were that CR also the newline's, n such lines
# could be matched in 2^n ways.
_BEFORE_MAGIC = r"\A(?:[ \t]*+(?:#[^\n]*+|\r?+)\n)*+(?=[ \t]*%%\w)"
# The first line, if it is blank, of code that does not begin with a cell magic.
_BLANK_FIRST_LINE = r"\A[^\S\n]*(?=\n(?:[^\S\n]*\n)*([ \t]*)(?!%%)\S)"


def runnable(code: str) -> str:
    """Without a BOM, fences and prose around the code, and a first line's indentation.

    What may be the code's own stays: a fence in a string, or in the text that a cell
    magic is given."""
    code = code.removeprefix("\ufeff")
    if not re.match(_BEFORE_MAGIC, code):
        code = _without_fences(code)
    code = re.sub(_LANGUAGE_LINE, r"\1", code)
    code = re.sub(_ONLY_INDENTATION, r"\1", code)
    code = re.sub(_BEFORE_MAGIC, _blank, code)
    # IPython drops blank lines at the start, and would count from there.
    return re.sub(_BLANK_FIRST_LINE, r"\1#", code)


def with_data_folder(code: str) -> str:
    """Code that names the data folder after a
    line that makes it; other code as it is."""
    if DATA_FOLDER not in code:
        return code
    unindented = code.lstrip(" \t")
    indentation = code.removesuffix(unindented)
    return f"{indentation}{MAKE_DATA_FOLDER}\n{code}"


def _without_fences(code: str) -> str:
    """What stands in fences, or all of the code if nothing does."""
    marked = re.sub(_NO_CODE, lambda text: text[0].replace("\n", _IN_STRING), code)
    kept = re.sub(_AROUND_FENCES, _blank, marked)
    if not kept.strip():
        return code
    return kept.replace(_IN_STRING, "\n")


def _blank(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n")
