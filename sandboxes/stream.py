"""Reads E2B's stream of a run: NDJSON that comes in pieces, in bounded memory. Pure.

The stream's form: https://github.com/e2b-dev/code-interpreter (template/server)."""

import json
import re
from typing import Any

from json_body import is_costly, text_so_far
from run import Run

# A shorter line is cheap to parse, whatever is in it. Longer ones are handled while
# they grow: output is decoded in parts, any other line has its parsing cost checked.
_LONG_LINE_BYTES = 256 * 1024
# How much is kept of the start of a dropped line: the text of a value is in it.
_LINE_START_BYTES = 64 * 1024
# The start of a value whose JSON is long:
# `{"type": "result", "text": "[1, 2, …]", "json": [`.
_JSON_VALUE = (
    rb'\s*\{\s*"type"\s*:\s*"result"\s*,'
    rb'\s*"text"\s*:\s*("(?:[^"\\]|\\.)*+")\s*,'
    rb'\s*"json"'
)
# The start of a line of output: `{"type": "stdout", "text": "`.
_OUTPUT = (
    rb'\s*\{\s*"type"\s*:\s*"(stdout|stderr)"\s*,'
    rb'\s*"text"\s*:\s*"'
)
# What comes in base64, which is a third longer.
_IN_BASE64 = ("png", "jpeg", "pdf")
_LABEL = rb'"(stdout|stderr|error|text|png|jpeg|svg|pdf|html)"'


class StreamReader:
    """Reads a stream into `run`, in the order in which its parts arrive.

    A line of output is read in parts, however long it is. Any other line that is over
    every limit is dropped."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.ended = False  # the end marker was seen
        self.run_number = 0  # the kernel's, from 1 on; 0: it has not come
        self.broken = ""  # why the stream could not be understood; "" if it could
        self._line = bytearray()
        self._dropped_bytes = 0
        # A PIL image carries its png and its jpeg in one line; base64 adds a third.
        self._max_line_bytes = run.limits.image_bytes * 3 + 2 * _LONG_LINE_BYTES

    def feed(self, chunk: bytes) -> None:
        first, *others = chunk.split(b"\n")
        self._grow(first)
        for piece in others:
            self._end_line()
            self._grow(piece)

    def _grow(self, piece: bytes) -> None:
        if self._dropped_bytes:
            self._dropped_bytes += len(piece)
            return
        size_before = len(self._line)
        self._line += piece
        size = len(self._line)
        # Checking scans the whole line, so it is done only when the length passes a
        # power of two.
        is_due = size.bit_length() > size_before.bit_length()
        if size >= _LONG_LINE_BYTES and (is_due or size > self._max_line_bytes):
            self._take_output()
            self._bound()

    def _bound(self) -> None:
        """Drop a line that is over every limit; only its start is kept."""
        size = len(self._line)
        if size < _LONG_LINE_BYTES:
            return
        if size > self._max_line_bytes or is_costly(self._line):
            self._dropped_bytes = size
            del self._line[_LINE_START_BYTES:]

    def _take_output(self) -> None:
        """If this is a line of output, take its text so far; its start stays."""
        output = re.match(_OUTPUT, self._line)
        if not output:
            return
        kind = output[1].decode()
        start = output.end()
        try:
            text, size = text_so_far(self._line[start:])
        except ValueError:
            return  # the text has ended already, and something else follows it
        self.run.add_printed(kind, text)
        del self._line[start : start + size]

    def _end_line(self) -> None:
        self._bound()
        line = self._line
        self._line = bytearray()
        if self._dropped_bytes:
            self._note_dropped(line)
        elif line.strip() and not self.broken:
            self._read(line)

    def _note_dropped(self, line: bytearray) -> None:
        found = re.findall(_LABEL, line)
        labels = [b"an unknown kind", *found]
        label = labels[-1].decode()
        size_bytes = self._dropped_bytes
        advice = ""
        if label in _IN_BASE64:
            size_bytes = size_bytes * 3 // 4
            advice = ": draw it smaller"
        size = f"{size_bytes / 1e6:,.1f} MB of {label}"
        self.run.leave_out("output", f"{size}, which is over every limit{advice}")
        self._dropped_bytes = 0
        if label == "error":
            self.run.error_name = "Error"
        if value := re.match(_JSON_VALUE, line):
            try:
                text = json.loads(value[1])
            except ValueError:
                return  # it is no text of JSON
            self.run.add_value(text)

    def _read(self, line: bytearray) -> None:
        try:
            self._take_event(json.loads(line))
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as e:
            kind = type(e).__name__
            self.broken = f"a line of E2B's answer could not be read ({kind})"

    def _take_event(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "stdout" | "stderr" as kind:
                text = str(event["text"])
                self.run.add_printed(kind, text)
            case "result":
                extra = event.get("extra") or {}
                self.run.add_result(extra | event)
            case "error":
                self.run.add_error(
                    name=str(event["name"]),
                    value=str(event["value"]),
                    traceback=str(event["traceback"]),
                )
            case "number_of_executions":
                self.run_number = int(event.get("execution_count") or 0)
            case "end_of_execution":
                self.ended = True
