"""A `Run` in, the text that a model and a person read out. Pure.

What comes from a run is quoted in a fence that it cannot close: nothing of it is ever
rendered."""

import re

from folding import fold_always, fold_logged, fold_printed, fold_traceback
from run import Clipped, Run

# Commands to a terminal.
_ANSI = re.compile(
    r"\x1b(?:"
    r"\[[0-?]*[ -/]*[@-~]"  # a colour: `\x1b[31m`
    r"|[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?"  # a title: `\x1b]0;title\x07`
    r"|[ -/]*[0-~]"  # a character set: `\x1b(B`
    r")"
)
# Neither text, tab nor newline: NUL, DEL, line separators, a byte order mark.
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"
    r"\u2028\u2029"
    r"\ufeff\ufffe\uffff]"
)
# They reorder what is read; shown as Python's repr shows them.
_BIDI = re.compile(r"[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_NO_OUTPUT = "Code executed successfully, without output. Use print() to see a value."
# Where a syntax error is, for those who do not see its line: ` (723130331.py, line 5)`.
_LINE_OF_ERROR = r" \(\S+, line \d+\)\Z"
# So many that a fence around them would be as long again.
_MANY_BACKTICKS = re.compile("`{100,}")


def format_run(run: Run, max_output_chars: int) -> str:
    """Parts and notes: `max_output_chars` of the run's own, under 6,000 of ours."""
    parts = _parts(run)
    _cut(parts, max_output_chars)
    texts = []
    for name, part in parts.items():
        if part.kept:
            quoted = fence(part.text())
            texts.append(f"**{name}:**\n{quoted}")
    if not texts and not run.pictures and not run.left_out:
        texts.append(_NO_OUTPUT)
    notes = _notes(run, parts)
    if notes:
        texts.append("\n".join(notes))
    return "\n\n".join(texts)


def _parts(run: Run) -> dict[str, Clipped]:
    """The texts of a run by their headings, printable."""
    error = _error_text(run)
    usage_error = f"UsageError: {run.error_value}"  # of a magic, is on stderr too
    stderr = run.stderr.map(_clean).map(lambda text: text.removesuffix(usage_error))
    is_drawn = run.pictures or run.values.kept
    values = run.values if is_drawn else run.drawings
    return {
        "Console Output": run.stdout.map(_clean).map(fold_printed),
        "Stderr": stderr.map(fold_logged),
        "Result": values.map(_clean).map(fold_always),
        "Execution Error": Clipped(len(error), error).map(_clean),
    }


def _cut(parts: dict[str, Clipped], max_chars: int) -> None:
    """Cut the parts to `max_chars` together, the longest ones most."""
    shortest_first = sorted(
        parts.values(),
        key=lambda part: part.kept,
    )
    count = len(parts)
    for part in shortest_first:
        # What a short one does not need is left to those after it.
        part.cut(max_chars // count)
        max_chars -= part.kept
        count -= 1


def _notes(run: Run, parts: dict[str, Clipped]) -> list[str]:
    notes = []
    for name, part in parts.items():
        if part.missing:
            notes.append(
                f"Note: {part.missing:,} characters of {name} are not shown.",
            )
    for (what, why), count in run.left_out.items():
        plural = "s" if count > 1 else ""
        notes.append(
            f"Note: {count:,} {what}{plural} left out: {why}.",
        )
    return notes


def echo(code: str) -> str:
    shown = _printable(code.removesuffix("\n"))
    return "**Executed Code:**\n" + fence(shown, "python")


def fence(text: str, language: str = "") -> str:
    """Quote a text so that nothing in it ends the quotation.

    https://spec.commonmark.org/0.31.2/#fenced-code-blocks"""
    backticks = re.findall("`+", text)
    longest = max(map(len, backticks), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}{language}\n{text}\n{ticks}"


def _error_text(run: Run) -> str:
    lines = [fold_traceback(run.traceback.rstrip())]
    value = re.sub(_LINE_OF_ERROR, "", run.error_value)
    is_quoted = run.error_name in run.traceback and value in run.traceback
    if run.error_name and not is_quoted:
        lines.append(f"{run.error_name}: {run.error_value}")
    lines.append(run.problem)
    return "\n".join(filter(None, lines))


def _clean(text: str) -> str:
    """Printable text, without its last newline, as a terminal shows it in the end."""
    text = _ANSI.sub("", text)
    text = text.removesuffix("\n")
    lines = []
    for line in text.split("\n"):
        # A progress bar writes over its line: `10%\r20%\r`.
        states = line.rstrip("\r").split("\r")
        lines.append(states[-1])
    return _printable("\n".join(lines))


def _printable(text: str) -> str:
    text = _CONTROL.sub("", text)
    text = _MANY_BACKTICKS.sub(
        lambda many: f"[{len(many[0]):,} backticks]",
        text,
    )
    text = _BIDI.sub(
        lambda character: f"\\u{ord(character[0]):04x}",
        text,
    )
    return text.encode("utf-8", "replace").decode()  # lone surrogates cannot be sent
