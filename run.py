"""What one run produced: E2B's NDJSON stream in, a `Run` out, in bounded memory. Pure.

The stream's form: https://github.com/e2b-dev/code-interpreter (template/server)."""

import binascii
import json
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Literal, Self

from config import MAX_REPLY_IMAGE_BYTES, Config

MAX_PIXELS = 50_000_000
PNG, JPEG, SVG = "image/png", "image/jpeg", "image/svg+xml"
# How much of a line of output is decoded at a time; JSON writes a character in 12 bytes at most.
_LONG_OUTPUT_BYTES, _CHARACTER_BYTES = 256 * 1024, 12
_OUTPUT = re.compile(rb'\s*\{\s*"type"\s*:\s*"(stdout|stderr)"\s*,\s*"text"\s*:\s*"')
_LABEL = re.compile(rb'"(stdout|stderr|error|text|png|jpeg|svg|pdf|html)"')
_JPEG_SIZE = re.compile(
    rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf]\0[\x0b\x11\x14].(..)(..)", re.S
)
_PLACEHOLDER = re.compile(r"<[\w.]+ object(?: at 0x[0-9a-f]+)?>")
# What a result may carry that is never shown; a gif or a pdf is a loss even beside a text.
_ALWAYS_NAMED = {"image/gif": "gif", "image/webp": "webp", "pdf": "pdf"}
_NOT_SHOWN = {**_ALWAYS_NAMED, "html": "html", "javascript": "javascript"}


class Clipped:
    """Text whose middle is dropped as it grows: head and tail keep `limit` characters together."""

    def __init__(self, limit: int) -> None:
        self.head = self.tail = ""
        self.missing, self._half = 0, limit // 2  # characters

    def add(self, text: str) -> None:
        room = self._half - len(self.head) if not self.tail else 0
        self.head, tail = self.head + text[:room], self.tail + text[room:]
        surplus = max(0, len(tail) - self._half)
        self.missing += surplus
        self.tail = tail[surplus:]

    def cut(self, limit: int) -> None:
        size, half = len(self.head) + len(self.tail), limit // 2
        if size > limit:
            self.head, self.tail = self.head[:half], self.tail[-half:]
            self.missing += size - len(self.head) - len(self.tail)

    def text(self) -> str:
        mark = f"\n[… {self.missing:,} characters cut …]\n" if self.missing else ""
        return self.head + mark + self.tail


@dataclass(frozen=True)
class Picture:
    media_type: str
    data: bytes = field(repr=False)


class BadPicture(ValueError):
    """The bytes are no picture that can be shown; the message is the reason."""


@dataclass
class Run:
    """What came of one run; `problem` says in our own words why it was not a normal one."""

    stdout: Clipped
    stderr: Clipped
    values: Clipped
    outcome: Literal["ok", "error", "timeout", "unavailable"] = "unavailable"
    error_name: str = ""
    error_value: str = ""
    traceback: str = ""
    problem: str = ""
    pictures: list[Picture] = field(default_factory=list)
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)
    started_at: float = field(default_factory=monotonic)
    durations_s: dict[str, float] = field(default_factory=dict)

    @classmethod
    def empty(cls, max_output_chars: int) -> Self:
        return cls(
            Clipped(max_output_chars),
            Clipped(max_output_chars),
            Clipped(max_output_chars),
        )

    def keep(self, picture: Picture, config: Config) -> None:
        """Keep a picture, once, within the limits. Raises BadPicture."""
        kept, size = self.pictures, len(picture.data)
        if picture in kept:
            return
        if len(kept) >= config.max_images:
            raise BadPicture(f"a reply holds at most {config.max_images} pictures")
        if size > config.max_image_bytes:
            raise BadPicture(
                f"{size:,} bytes (the limit is {config.max_image_bytes:,})"
            )
        if sum(len(one.data) for one in kept) + size > MAX_REPLY_IMAGE_BYTES:
            raise BadPicture(
                f"a reply holds at most {MAX_REPLY_IMAGE_BYTES:,} bytes of pictures"
            )
        kept.append(picture)

    def leave_out(self, what: str, why: str) -> None:
        known = (what, why) in self.left_out or len(self.left_out) < 20
        self.left_out[(what, why) if known else ("output", "various reasons")] += 1


def picture_from(data: bytes) -> Picture:
    """Know a picture by its first bytes, not by its label. Raises BadPicture."""
    if re.match(rb"\s*(?:<\?xml|<!--|<!DOCTYPE svg|<svg)", data) and b"<svg" in data:
        return Picture(SVG, data)
    if data.startswith(b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR"):
        media_type, sizes = PNG, [(data[20:24], data[16:20])]
    elif data.startswith(b"\xff\xd8\xff"):
        media_type, sizes = JPEG, _JPEG_SIZE.findall(data)
    else:
        raise BadPicture("neither PNG, JPEG nor SVG")
    claims = [
        (int.from_bytes(height), int.from_bytes(width)) for height, width in sizes
    ]
    height, width = max(claims, key=math.prod, default=(0, 0))
    if not 0 < height * width <= MAX_PIXELS:
        raise BadPicture(
            f"{width} x {height} pixels (the limit is {MAX_PIXELS:,} in all)"
        )
    return Picture(media_type, data)


class StreamReader:
    """Collects a run from its stream; another line than output, over every limit, is dropped."""

    def __init__(self, run: Run, config: Config) -> None:
        self.run, self._config = run, config
        self.ended = False  # the end marker was seen
        self.broken = ""  # what about the stream could not be understood
        self._line, self._take_at, self._dropped_bytes = (
            bytearray(),
            _LONG_OUTPUT_BYTES,
            0,
        )
        # A PIL image carries its png and its jpeg in one line; base64 adds a third.
        self._max_line_bytes = config.max_image_bytes * 3 + 2 * _LONG_OUTPUT_BYTES

    def feed(self, chunk: bytes) -> None:
        first, *lines = chunk.split(b"\n")
        self._grow(first)
        for line in lines:
            self._end_line()
            self._grow(line)

    def _grow(self, piece: bytes) -> None:
        if self._dropped_bytes:
            self._dropped_bytes += len(piece)
            return
        self._line += piece
        if len(self._line) > self._take_at:
            self._take_at = 2 * len(self._line)
            if output := _OUTPUT.match(self._line):
                self._take_part(output[1].decode(), output.end())
        if len(self._line) > self._max_line_bytes:
            self._dropped_bytes = len(self._line)
            del self._line[4096:]

    def _take_part(self, kind: str, start: int) -> None:
        """Take what there is of a long line of output, as if it were a line of its own."""
        for cut in range(len(self._line), len(self._line) - _CHARACTER_BYTES, -1):
            try:
                text = json.loads(b'"' + self._line[start:cut] + b'"')
            except ValueError:
                continue  # the cut tears a character apart, or the text has ended before it
            if not "\ud800" <= text[-1:] <= "\udbff":  # half of a pair
                getattr(self.run, kind).add(text)
                del self._line[start:cut]
                self._take_at = _LONG_OUTPUT_BYTES
                return

    def _end_line(self) -> None:
        line, self._line, self._take_at = self._line, bytearray(), _LONG_OUTPUT_BYTES
        # A list or an object takes some 100 bytes once parsed.
        if (
            b'"error"' not in line[:40]
            and line.count(b"[") + line.count(b"{") > 250_000
        ):
            self._dropped_bytes = len(line)
        if self._dropped_bytes:
            labels = _LABEL.findall(line[:4096]) or [b"an unknown kind"]
            size = f"{self._dropped_bytes / 1e6:,.1f} MB of {labels[-1].decode()}"
            self.run.leave_out("output", f"{size}, which is over every limit")
            self._dropped_bytes = 0
        elif line.strip() and not self.broken:
            try:
                self._event(json.loads(line))
            except (
                ValueError,
                LookupError,
                TypeError,
                AttributeError,
                RecursionError,
            ) as exc:
                self.broken = (
                    f"a line of E2B's answer could not be read ({type(exc).__name__})"
                )

    def _event(self, event: dict[str, Any]) -> None:
        run, limit = self.run, self._config.max_output_chars
        match event["type"]:
            case "stdout" | "stderr" as name:
                getattr(run, name).add(str(event["text"]))
            case "result":
                self._result(event)
            case "error":
                run.error_name = str(event["name"])[:200] or "Error"
                run.error_value = str(event["value"])[: limit // 4]
                traceback = Clipped(8 * limit)
                traceback.add(str(event["traceback"]))
                run.traceback = traceback.text()
            case "end_of_execution":
                self.ended = True

    def _result(self, event: dict[str, Any]) -> None:
        formats = {**(event.get("extra") or {}), **event}
        labels = [label for label in ("png", "jpeg", "svg") if formats.get(label)]
        problems = []
        for label in labels:
            text = str(formats[label])
            try:
                encoded = "".join(text.split()) if label != "svg" else ""
                data = binascii.a2b_base64(encoded, strict_mode=True) or text.encode()
                self.run.keep(picture_from(data), self._config)
                break
            except ValueError as exc:
                problems.append(
                    str(exc) if isinstance(exc, BadPicture) else "not valid base64"
                )
        if labels and len(problems) == len(labels):
            self.run.leave_out("picture", problems[0])
        shown = bool(labels) or self._value(formats)
        for label, name in (_ALWAYS_NAMED if shown else _NOT_SHOWN).items():
            if formats.get(label):
                self.run.leave_out(f"{name} output", "this format is not shown")

    def _value(self, formats: dict[str, Any]) -> bool:
        """Keep the text of a result without a picture; whether there is one that says something."""
        text = formats.get("text")
        if text is None or _PLACEHOLDER.fullmatch(str(text)):
            found = [
                formats[x]
                for x in ("markdown", "latex", "json")
                if formats.get(x) is not None
            ]
            if found:
                text = found[0] if isinstance(found[0], str) else json.dumps(found[0])
            elif text is None or any(formats.get(label) for label in _NOT_SHOWN):
                return False
        self.run.values.add(("\n" if self.run.values.head else "") + str(text))
        return True
