"""What the stand-in for E2B answers instead
of the truth, and the output that it makes up.

A script maps a kind of request ("create", "run", "kill", "timeout", "list", "connect",
"get", "health", "write", "read") to an answer, a list of answers (the last one
repeats) or {"mix": [[weight, answer], ...], "seed": 1}; "api_key" makes every other key
a 401.
An answer may hold
  delay_s                 seconds before the answer
  status, body, headers   to be sent instead of the true answer
  fault                   any kind: reset, hang, not_found, gone.
                          create: lost_reply (made, then reset), late (made after
                          late_s, never answered).
                          kill: ignored (a 500), hang_alive; `hang` kills, the others
                          only with "really": true.
                          run: cut, no_end, not_json, silent, forever, vanish, drip
                          (after the output below).
                          write, read: cut and stall (in the middle of the bytes)
  write and read only (files): bytes_per_s.
  list only: unfiltered (all sandboxes, whatever metadata is asked for), page_size,
  endless (each page has a next one).
  run only: kernel (true: the real thing, after the delay), from_code (the answer is in
  the code's line `# answer: {json}`), delay_after_headers_s, run_s (the time that the
  run takes), events (or {"times": 9, "event": one}), stdout_bytes in lines of
  line_bytes, one_line_bytes, pngs of png_bytes, big_png_line_bytes, raw (no first and
  last line), keepalive_s.
"""

from __future__ import annotations

import ast
import base64
import functools
import json
import random
import re
import struct
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

CHUNK_BYTES = 65_536
END = {"type": "end_of_execution"}
KINDS = {
    "create",
    "run",
    "kill",
    "timeout",
    "list",
    "connect",
    "health",
    "get",
    "write",
    "read",
}

Answer = dict[str, Any]


class Script:
    """What to answer instead of the truth, by kind
    of request; a kind that is absent is real."""

    def __init__(self, script: dict[str, Any]) -> None:
        self.api_key: str | None = script.get("api_key")
        self._next: dict[str, Iterator[Answer]] = {
            kind: _answers(spec) for kind, spec in script.items() if kind != "api_key"
        }
        unknown = set(self._next) - KINDS
        if unknown:
            raise ValueError(f"no such kind of request: {', '.join(sorted(unknown))}")

    def has(self, kind: str) -> bool:
        return kind in self._next

    def answer(self, kind: str, body: Any) -> Answer | None:
        answers = self._next.get(kind)
        if answers is None:
            return None
        answer = next(answers)
        if answer.get("from_code"):
            return _answer_in(body.get("code", "") if isinstance(body, dict) else "")
        return answer


def callers_code(cell: str) -> str:
    """What a caller sent, where the service sends a cell that runs it: its last line.

    Where the code may be wrapped in something, it is given to a function there. Any
    other cell is as it is."""
    runs = re.search(
        r"\.run_cell\((?:\(lambda .*?\]\[1\]\)\()?(['\"].*?['\"])"
        r"(?:,'[^']*',\{\}\))?,0,0,\d+\):0\Z",
        cell,
    )
    return str(ast.literal_eval(runs[1])) if runs else cell


def _answer_in(code: str) -> Answer:
    """What the code asks for; the cell of an exec does so in its script."""
    script = re.search(r"^the_exec\.script = (.+)$", code, re.MULTILINE)
    if script:
        code = ast.literal_eval(script[1])
    found = re.search(r"^# answer: (\{.*\})\s*$", code, re.MULTILINE)
    return json.loads(found[1]) if found else {}


def _answers(spec: Any) -> Iterator[Answer]:
    """Answer k to request k; the last one of a list repeats forever."""
    if isinstance(spec, dict) and "mix" in spec:
        choose = random.Random(spec.get("seed", 1))
        weights, answers = zip(*spec["mix"], strict=True)
        while True:
            yield choose.choices(answers, weights)[0]
    listed = [spec] if isinstance(spec, dict) else list(spec)
    yield from listed[:-1]
    while True:
        yield listed[-1]


def _now() -> str:
    return datetime.now(UTC).isoformat()


def line_of(event: Any) -> bytes:
    return (
        event.encode() if isinstance(event, str) else json.dumps(event).encode() + b"\n"
    )


@functools.lru_cache(maxsize=16)
def _stdout_line(text_bytes: int, line_bytes: int) -> bytes:
    text = (("x" * (line_bytes - 1) + "\n") * (text_bytes // line_bytes + 1))[
        :text_bytes
    ]
    return line_of({"type": "stdout", "text": text, "timestamp": _now()})


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return (
        struct.pack(">I", len(data))
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data))
    )


def _png(number: int, size_bytes: int) -> bytes:
    """A PNG of 16 x 16 pixels in a colour of its own, padded with a private chunk."""
    colour = struct.pack(">I", (number * 2_654_435_761) % 2**32)[:3]
    pixels = zlib.compress((b"\0" + colour * 16) * 16)
    head = b"\x89PNG\r\n\x1a\n" + _png_chunk(
        b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0)
    )
    rest = _png_chunk(b"IDAT", pixels) + _png_chunk(b"IEND", b"")
    padding = size_bytes - len(head) - len(rest) - 12
    if padding > 0:
        head += _png_chunk(b"paDd", random.Random(number).randbytes(padding))
    return head + rest


@functools.lru_cache(maxsize=256)
def _png_line(number: int, size_bytes: int) -> bytes:
    png = base64.b64encode(_png(number, size_bytes)).decode()
    text = "<Figure size 16x16 with 1 Axes>"
    result = {
        "type": "result",
        "text": text,
        "png": png,
        "extra": {},
        "is_main_result": False,
    }
    return line_of(result)


def _filled(
    before: bytes, filler: bytes, after: bytes, line_bytes: int
) -> Iterator[bytes]:
    """One line of `line_bytes` bytes (its newline
    not counted), never whole in memory."""
    missing = line_bytes - len(before) - len(after)
    yield before
    chunk = filler * CHUNK_BYTES
    while missing > 0:
        yield chunk[:missing]
        missing -= CHUNK_BYTES
    yield after + b"\n"


def scripted_lines(answer: Answer) -> Iterator[bytes]:
    """The lines between number_of_executions and
    end_of_execution, in chunks of any length."""
    for event in answer.get("events", []):
        times = 1
        if isinstance(event, dict) and "times" in event:
            times, event = event["times"], event["event"]
        line = line_of(event)
        for _ in range(times):
            yield line
    missing = answer.get("stdout_bytes", 0)
    line_bytes = answer.get("line_bytes", 80)
    message_bytes = max(CHUNK_BYTES // line_bytes, 1) * line_bytes
    while missing > 0:
        yield _stdout_line(min(missing, message_bytes), line_bytes)
        missing -= message_bytes
    if "one_line_bytes" in answer:
        after = f'", "timestamp": "{_now()}"}}'.encode()
        yield from _filled(
            b'{"type": "stdout", "text": "', b"x", after, answer["one_line_bytes"]
        )
    for number in range(answer.get("pngs", 1 if "png_bytes" in answer else 0)):
        yield _png_line(number, answer.get("png_bytes", 0))
    if "big_png_line_bytes" in answer:
        png = _png(0, 0)
        start = base64.b64encode(png + bytes(-len(png) % 3))
        before = (
            b'{"type": "result", "text": "<Figure size 16x16 with 1 Axes>", "png": "'
            + start
        )
        after = b'", "extra": {}, "is_main_result": false}'
        missing = answer["big_png_line_bytes"] - len(start)
        line_bytes = len(before) + len(after) + missing - missing % 4
        yield from _filled(before, b"A", after, line_bytes)
