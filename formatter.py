"""A `Run` in, the text that a model and a person read out. Pure.

What comes from a run is quoted in a fence that it cannot close: nothing of it is ever rendered."""

import re

from run import Clipped, Run

_HEADINGS = ("Console Output", "Stderr", "Result", "Execution Error")

_ANSI = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?|[ -/]*[0-~])"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
# They reorder what is read; shown as Python's repr shows them.
_BIDI = re.compile(r"[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def format_run(run: Run, max_output_chars: int) -> str:
    """Parts and notes; `max_output_chars` of the run's own at most, under 6,000 of ours on top."""
    error = Clipped(2 * max_output_chars)
    error.add(_error_text(run))
    outputs = (run.stdout, run.stderr, run.values, error)
    parts = dict(zip(_HEADINGS, map(_cleaned, outputs), strict=True))
    # A short part is not cut on account of a long one.
    left = max_output_chars
    for rank, part in enumerate(
        sorted(parts.values(), key=lambda part: len(part.text()))
    ):
        part.cut(left // (len(parts) - rank))
        left -= len(part.head + part.tail)
    texts = [
        f"**{name}:**\n{fence(part.text())}"
        for name, part in parts.items()
        if part.text()
    ]
    if not texts and not run.pictures:
        texts.append("Code executed successfully, without output.")
    notes = []
    for name, part in parts.items():
        if part.missing:
            notes.append(f"Note: {part.missing:,} characters of {name} are not shown.")
    for (what, why), count in run.left_out.items():
        notes.append(f"Note: {count:,} {what}{'s' * (count > 1)} left out: {why}.")
    return "\n\n".join([*texts, *(["\n".join(notes)] if notes else [])])


def echo(code: str) -> str:
    return "**Executed Code:**\n" + fence(_printable(code.removesuffix("\n")), "python")


def fence(text: str, language: str = "") -> str:
    """Quote a text so that nothing in it ends the quotation (CommonMark 0.31, section 4.5)."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks}{language}\n{text}\n{ticks}"


def _error_text(run: Run) -> str:
    told = run.error_name in run.traceback and run.error_value in run.traceback
    error = (
        f"{run.error_name}: {run.error_value}" if run.error_name and not told else ""
    )
    return "\n".join(filter(None, (run.traceback.rstrip(), error, run.problem)))


def _cleaned(output: Clipped) -> Clipped:
    cleaned = Clipped(0)
    cleaned.missing = output.missing
    cleaned.head, cleaned.tail = _clean(output.head), _clean(output.tail)
    if not output.missing:
        text = _clean(output.head + output.tail)
        cleaned.head, cleaned.tail = text[: len(text) // 2], text[len(text) // 2 :]
    return cleaned


def _clean(text: str) -> str:
    """Printable text, each line as a terminal would show it last, without its last newline."""
    text = _ANSI.sub("", text).replace("\r\n", "\n").removesuffix("\n")
    return _printable(
        "\n".join(line.rstrip("\r").split("\r")[-1] for line in text.split("\n"))
    )


def _printable(text: str) -> str:
    text = _CONTROL.sub("", text.replace("\r\n", "\n"))
    text = re.sub("`{100,}", lambda match: f"[{len(match[0]):,} backticks]", text)
    text = _BIDI.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    return text.encode("utf-8", "replace").decode()  # lone surrogates cannot be sent
