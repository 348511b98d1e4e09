"""Turns a `Run` into the text that a model and a person read. Pure.

A run's texts are quoted in a fence that they cannot close, or are plain text: nothing
in them is ever rendered."""

import re

from pictures.picture import Picture, size_in_pixels
from run import Run
from texts.clipped import Clipped
from texts.folding import callers_frame, fold_logged, fold_printed, fold_traceback

# Commands to a terminal.
_ANSI = (
    r"\x1b(?:"
    r"\[[0-?]*[ -/]*[@-~]"  # a colour: `\x1b[31m`
    r"|[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?"  # a title: `\x1b]0;title\x07`
    r"|[ -/]*[0-~]"  # a character set: `\x1b(B`
    r")"
)
# Characters that are neither text, tab nor newline: the other controls of C0 and C1,
# line separators, the byte order mark and two code points that are no characters.
_CONTROLS = [*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0)]
_CONTROLS += [0x2028, 0x2029, 0xFEFF, 0xFFFE, 0xFFFF]
# Marks, embeddings, overrides and isolates, which reorder text on the screen.
_BIDI = [0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
# Controls are removed; the others are shown as Python's repr shows them.
_PRINTED_AS = dict.fromkeys(_CONTROLS, "") | {
    character: f"\\u{character:04x}" for character in _BIDI
}
# The part of a line that a progress bar has written over: `10%\r20%\r`.
_OVERWRITTEN = r"(?m)^.*\r(?=[^\r\n])"
_MAX_LINE_CHARS = 300
_NO_OUTPUT = "Code executed successfully, without output. Use print() to see a value."
# The place that ends a syntax error's message: ` (723130331.py, line 5)`.
_LINE_OF_ERROR = r" \(\S+, line \d+\)\Z"
# This many in a row are shown as a number, because a fence would need even more.
_MANY_BACKTICKS = "`{100,}"


def format_run(run: Run, max_output_chars: int) -> str:
    """The parts of a run and notes on it.

    At most `max_output_chars` are the run's own, and fewer than 6,000 are ours."""
    parts = _parts(run, max_output_chars)
    texts = []
    for name, part in parts.items():
        quoted = fence(part.text())
        texts.append(f"**{name}:**\n{quoted}")
    notes = [f"Note: {note}." for note in _notes(run, parts)]
    return _joined(run, texts, notes)


def format_plain(run: Run, max_output_chars: int) -> str:
    """The same for MCP, as plain text, because LibreChat shows it as it is.

    If the run failed, the first line says how. The run's pictures have to be those of
    the reply already: a note counts them. A client that renders Markdown finds no
    picture to load in the text."""
    parts = _parts(run, max_output_chars)
    failure = _failure(run)
    shown = {name: part.text() for name, part in parts.items()}
    first, _, rest = shown.get("Execution Error", "").partition("\n")
    if first == failure:
        shown["Execution Error"] = rest
    shown = {name: text for name, text in shown.items() if text}
    if len(shown) > 1:
        shown = {name: f"{name}:\n{text}" for name, text in shown.items()}
    texts = [failure, *shown.values()]
    notes = _notes(run, parts)
    if run.pictures:
        notes.append(_drawn(run.pictures))
    notes = [f"[{note}]" for note in notes]
    text = _joined(run, texts, notes)
    return text.replace("![", "!\u200b[")


def _joined(run: Run, texts: list[str], notes: list[str]) -> str:
    all_notes = "\n".join(notes)
    paragraphs = filter(None, [*texts, all_notes])
    text = "\n\n".join(paragraphs)
    if not text and not run.pictures:
        return _NO_OUTPUT
    return text


def _parts(run: Run, max_chars: int) -> dict[str, Clipped]:
    """The texts of a run by their headings, printable, cut to `max_chars` together."""
    error = _clean(_error_text(run))
    stderr = run.stderr.map(_clean)
    usage_error = f"UsageError: {run.error_value}"  # a magic prints it on stderr too
    stderr = stderr.map(lambda text: text.removesuffix(usage_error))
    values = run.values
    if not (run.pictures or run.is_mixed or values.kept):
        values = run.drawings
    parts = {
        "Console Output": run.stdout.map(_clean).map(fold_printed),
        "Stderr": stderr.map(fold_logged),
        "Result": values.map(_clean),
        "Execution Error": Clipped(max_chars, error),
    }
    shown = {}
    for name, part in parts.items():
        if part.kept:
            shown[name] = part
    _cut(shown, max_chars)
    return shown


def _cut(parts: dict[str, Clipped], max_chars: int) -> None:
    """Cut the parts to `max_chars` together, the longest ones most."""
    count = len(parts)
    shortest_first = sorted(parts.values(), key=lambda part: part.kept)
    for part in shortest_first:
        # Characters that a short part does not need are left to those after it.
        part.cut(max_chars // count)
        max_chars -= part.kept
        count -= 1


def _notes(run: Run, parts: dict[str, Clipped]) -> list[str]:
    notes = []
    if run.note:
        notes.append(run.note)
    for name, part in parts.items():
        if part.missing:
            notes.append(f"{part.missing:,} characters of {name} are not shown")
    for (what, why), count in run.left_out.items():
        plural = "s" if count > 1 else ""
        notes.append(f"{count:,} {what}{plural} left out: {why}")
    return notes


def _failure(run: Run) -> str:
    """The line that best says why a run was not a normal one, "" if it was."""
    if run.outcome == "ok":
        return ""
    value = run.error_value.strip()
    text = run.problem or f"{run.error_name}: {value}"
    lines = _clean(text).split("\n")
    return lines[0][:_MAX_LINE_CHARS]


def _drawn(pictures: list[Picture]) -> str:
    """A note about the pictures: all that the model has of them on the next turn."""
    sizes = []
    for picture in pictures:
        width, height = size_in_pixels(picture)
        sizes.append(f"{width} x {height}")
    count = len(pictures)
    drawn = "1 picture was drawn and is"
    if count > 1:
        drawn = f"{count} pictures were drawn and are"
    all_sizes = ", ".join(sizes)
    return f"{drawn} shown to the user: {all_sizes}"


def echo(code: str) -> str:
    shown = _printable(code.removesuffix("\n"))
    quoted = fence(shown, "python")
    return f"**Executed Code:**\n{quoted}"


def fence(text: str, language: str = "") -> str:
    """Quote a text so that nothing in it ends the quotation.

    https://spec.commonmark.org/0.31.2/#fenced-code-blocks"""
    backticks = re.findall("`+", text)
    longest = max(map(len, backticks), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}{language}\n{text}\n{ticks}"


def _error_text(run: Run) -> str:
    name = run.error_name
    traceback = run.traceback
    value = re.sub(_LINE_OF_ERROR, "", run.error_value)
    is_quoted = name in traceback and value in traceback
    lines = []
    if frame := callers_frame(traceback):
        lines.append(f"{_failure(run)}\n{frame}\n")
    lines.append(fold_traceback(traceback.rstrip()))
    if name and not is_quoted:
        lines.append(f"{name}: {run.error_value}")
    lines.append(run.problem)
    return "\n".join(filter(None, lines))


def _clean(text: str) -> str:
    """Printable text, as a terminal shows it in the end, without its last newline."""
    text = re.sub(_ANSI, "", text)
    text = text.removesuffix("\n")
    text = re.sub(_OVERWRITTEN, "", text)
    return _printable(text)


def _printable(text: str) -> str:
    text = text.translate(_PRINTED_AS)
    text = re.sub(_MANY_BACKTICKS, lambda many: f"[{len(many[0]):,} backticks]", text)
    # Lone surrogates cannot be sent.
    encoded = text.encode("utf-8", "replace")
    return encoded.decode()
