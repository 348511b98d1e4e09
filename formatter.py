"""A `Run` in, the text that a model and a person read out. Pure.

Everything that comes from a run is quoted in a fence that it cannot close, and has no control
characters: whoever shows the text, nothing of it is rendered.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from run import Clipped, Run

NO_OUTPUT = "Code executed successfully, without output."

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
# They reorder what is read; shown as Python's repr shows them.
_BIDI = re.compile(r"[\u202a-\u202e\u2066-\u2069]")


def format_run(run: Run, max_output_chars: int) -> str:
    """The text of a run: its parts and notes, parted by one blank line.

    At most `max_output_chars` characters of it are the run's own. On top come headings, marks and
    notes of our own, under 6,000 characters.
    """
    error = Clipped(2 * max_output_chars)
    error.add(_error_text(run))
    parts = [
        _Part.of("Console Output", run.stdout),
        _Part.of("Stderr", run.stderr),
        _Part.of("Result", run.values),
        _Part.of("Execution Error", error),
    ]
    _share_out(parts, max_output_chars)
    texts = [f"**{part.heading}:**\n{fence(part.text())}" for part in parts if part.text()]
    if not texts and not run.pictures:
        texts.append(NO_OUTPUT)
    notes = [
        f"Note: {part.heading} was cut: {part.missing:,} characters of it are not shown."
        for part in parts
        if part.missing
    ]
    for (what, why), count in run.left_out.items():
        notes.append(f"Note: {count:,} {what}{'s' * (count > 1)} left out: {why}.")
    return "\n\n".join([*texts, *(["\n".join(notes)] if notes else [])])


def echo(code: str) -> str:
    """The code that was run, quoted."""
    return f"**Executed Code:**\n{fence(_printable(code), 'python')}"


def fence(text: str, language: str = "") -> str:
    """Quote a text so that nothing in it ends the quotation (CommonMark 0.31, section 4.5)."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks}{language}\n{text}\n{ticks}"


def _error_text(run: Run) -> str:
    lines = [run.traceback.rstrip("\n")] if run.traceback.strip() else []
    if run.error_name and not (
        run.error_name in run.traceback and run.error_value in run.traceback
    ):
        lines.append(f"{run.error_name}: {run.error_value}")
    if run.problem:
        lines.append(run.problem)
    return "\n".join(lines)


@dataclass
class _Part:
    """A heading and a text in two pieces, `missing` characters of which were between them."""

    heading: str
    head: str
    tail: str
    missing: int

    @classmethod
    def of(cls, heading: str, output: Clipped) -> _Part:
        if output.missing:
            return cls(heading, _clean(output.head), _clean(output.tail), output.missing)
        text = _clean(output.head + output.tail)
        middle = len(text) // 2
        return cls(heading, text[:middle], text[middle:], 0)

    def size(self) -> int:
        return len(self.head) + len(self.tail)

    def cut(self, limit: int) -> None:
        size = self.size()
        if size > limit:
            half = limit // 2
            self.head, self.tail = self.head[:half], self.tail[len(self.tail) - half :]
            self.missing += size - self.size()

    def text(self) -> str:
        mark = f"\n[… {self.missing:,} characters cut …]\n" if self.missing else ""
        return self.head + mark + self.tail


def _share_out(parts: list[_Part], limit: int) -> None:
    """Cut parts to the limit together; a short one is not cut on account of a long one."""
    for rank, part in enumerate(sorted(parts, key=_Part.size)):
        part.cut(limit // (len(parts) - rank))
        limit -= part.size()


def _clean(text: str) -> str:
    """Printable text, each line as a terminal would show it last, without its last newline."""
    text = _ANSI.sub("", text).replace("\r\n", "\n").removesuffix("\n")
    if "\r" in text:
        states = (re.split("\r+", line.strip("\r")) for line in text.split("\n"))
        text = "\n".join(states_of_line[-1] for states_of_line in states)
    return _printable(text)


def _printable(text: str) -> str:
    text = _CONTROL.sub("", text.replace("\r\n", "\n"))
    text = _BIDI.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    return text.encode("utf-8", "replace").decode()  # lone surrogates cannot be sent
