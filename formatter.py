"""A `Run` in, the text that a model and a person read out. Pure.

What comes from a run is quoted in a fence that it cannot close: nothing of it is ever rendered."""

import re
from collections.abc import Iterator

from run import Clipped, Run

# Colours and other commands to a terminal: `\x1b[31m`, `\x1b]0;title\x07`.
_ANSI = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?|[ -/]*[0-~])"
)
# What is neither text, tab nor newline: NUL, DEL, a line separator, a byte order mark.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
# They reorder what is read; shown as Python's repr shows them.
_BIDI = re.compile(r"[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# So many that a fence around them would be as long again.
_MANY_BACKTICKS = re.compile("`{100,}")


def format_run(run: Run, max_output_chars: int) -> str:
    """Parts and notes: `max_output_chars` of the run's own, under 6,000 of ours."""
    parts = _parts(run, max_output_chars)
    texts = [
        f"**{name}:**\n{fence(part.text())}"
        for name, part in parts.items()
        if part.text()
    ]
    if not texts and not run.pictures:
        texts.append("Code executed successfully, without output.")
    notes = "\n".join(_notes(run, parts))
    return "\n\n".join(filter(None, [*texts, notes]))


def _parts(run: Run, max_chars: int) -> dict[str, Clipped]:
    """The texts of a run by their headings, printable, cut to `max_chars` together."""
    error = Clipped(2 * max_chars)
    error.add(_error_text(run))
    parts = {
        "Console Output": run.stdout.map(_clean),
        "Stderr": run.stderr.map(_clean),
        "Result": run.values.map(_clean),
        "Execution Error": error.map(_clean),
    }
    # The shortest first: it leaves what it does not need to the longer ones.
    chars_left = max_chars
    for rank, part in enumerate(sorted(parts.values(), key=lambda part: part.kept)):
        part.cut(chars_left // (len(parts) - rank))
        chars_left -= part.kept
    return parts


def _notes(run: Run, parts: dict[str, Clipped]) -> Iterator[str]:
    for name, part in parts.items():
        if part.missing:
            yield f"Note: {part.missing:,} characters of {name} are not shown."
    for (what, why), count in run.left_out.items():
        plural = "s" if count > 1 else ""
        yield f"Note: {count:,} {what}{plural} left out: {why}."


def echo(code: str) -> str:
    return "**Executed Code:**\n" + fence(_printable(code.removesuffix("\n")), "python")


def fence(text: str, language: str = "") -> str:
    """Quote a text so that nothing in it ends the quotation (CommonMark 0.31, section 4.5)."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}{language}\n{text}\n{ticks}"


def _error_text(run: Run) -> str:
    lines = [run.traceback.rstrip()]
    is_quoted = run.error_name in run.traceback and run.error_value in run.traceback
    if run.error_name and not is_quoted:
        lines.append(f"{run.error_name}: {run.error_value}")
    lines.append(run.problem)
    return "\n".join(filter(None, lines))


def _clean(text: str) -> str:
    """Printable text, without its last newline, as a terminal shows it in the end."""
    text = _ANSI.sub("", text).replace("\r\n", "\n").removesuffix("\n")
    # A progress bar writes over its line: `10%\r20%\r`.
    lines = [line.rstrip("\r").split("\r")[-1] for line in text.split("\n")]
    return _printable("\n".join(lines))


def _printable(text: str) -> str:
    text = _CONTROL.sub("", text.replace("\r\n", "\n"))
    text = _MANY_BACKTICKS.sub(lambda many: f"[{len(many[0]):,} backticks]", text)
    text = _BIDI.sub(lambda character: f"\\u{ord(character[0]):04x}", text)
    return text.encode("utf-8", "replace").decode()  # lone surrogates cannot be sent
