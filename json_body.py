"""JSON bodies: parses those that arrive, and makes those to send in pieces. Pure."""

import json
import re
import secrets
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

TOO_MANY_VALUES = "The body has more values than any call needs."
# Parsing a body takes this many times its size in memory.
PARSE_FACTOR = 3
# Tokens are quotes, separators and brackets. Parsing this many takes 30 MB, and 50 ms
# in which no other thread runs.
_MAX_TOKENS = 200_000
_PIECE_BYTES = 48 * 1024  # 64 KiB as base64
# JSON writes a character in at most this many: `\ud83d\ude00`.
_CHARACTER_BYTES = 12
# The first half of a character that JSON writes as two.
_HALF_A_CHARACTER = "[\ud800-\udbff]\\Z"
# Stands in a body for a long text. Nobody can guess it, so no other text contains it.
_PLACEHOLDER = secrets.token_hex(16)


class BadBody(ValueError):
    """A body is refused; the message says why in our own words."""


def parse_json(body: bytes | bytearray) -> Any:
    """The value that a body holds. Raises BadBody, ValueError or RecursionError."""
    text = body.decode(json.detect_encoding(body), "surrogatepass")
    if is_costly(text.encode("utf-8", "surrogatepass")):
        raise BadBody(TOO_MANY_VALUES)
    return json.loads(text)


def is_costly(text: bytes | bytearray) -> bool:
    """Whether JSON in UTF-8 has too many tokens, however long its strings are."""
    bare = text.replace(rb"\\", b"").replace(rb"\"", b"")
    quotes = bare.count(b'"')
    if quotes > _MAX_TOKENS:
        return True
    outside_strings = b"".join(bare.split(b'"')[::2])
    separators = sum(map(outside_strings.count, (b",", b"[", b"{")))
    return quotes + separators > _MAX_TOKENS


def text_so_far(literal: bytes | bytearray) -> tuple[str, int]:
    """The text of the first part of a JSON string, and how many bytes it takes there.

    `literal` has no quotes around it, and may end in the middle of a character. Raises
    ValueError if it is no text of JSON."""
    size = len(literal)
    for end in range(size, max(size - _CHARACTER_BYTES, -1), -1):
        try:
            text = text_of(literal[:end])
        except ValueError:
            continue
        if not re.search(_HALF_A_CHARACTER, text):
            return text, end
    raise ValueError("no text of JSON")


def text_of(literal: bytes | bytearray) -> str:
    """The text of a JSON string without quotes around it. Raises ValueError."""
    text = literal.decode("utf-8", "surrogatepass")
    return str(json.loads(f'"{text}"'))


class Long(Protocol):
    """A text of a body that is made only while the body is sent."""

    prefix: str

    def size_bytes(self) -> int:
        """How many bytes `pieces` yields in all."""

    def pieces(self) -> Iterator[bytes]:
        """The text as JSON in UTF-8, without the quotes around it or `prefix`."""


@dataclass(frozen=True)
class Blob:
    """Bytes that stand in a body as a text: `prefix`, and then their base64."""

    data: bytes = field(repr=False)
    prefix: str = ""

    def size_bytes(self) -> int:
        return (len(self.data) + 2) // 3 * 4

    def pieces(self) -> Iterator[bytes]:
        for start in range(0, len(self.data), _PIECE_BYTES):
            yield b64encode(self.data[start : start + _PIECE_BYTES])


class JsonBody:
    """A JSON body in pieces, each of which is made only when it is sent."""

    def __init__(self, body: object) -> None:
        self._longs: list[Long] = []
        first, *others = to_json(body, self._placeholder).split(_PLACEHOLDER.encode())
        self._first = first
        self._others = others
        self.size_bytes = len(first) + sum(map(len, others))
        self.size_bytes += sum(long.size_bytes() for long in self._longs)

    def _placeholder(self, long: Long) -> str:
        self._longs.append(long)
        return long.prefix + _PLACEHOLDER

    def __iter__(self) -> Iterator[bytes]:
        yield self._first
        for long, other in zip(self._longs, self._others, strict=True):
            yield from long.pieces()
            yield other


def to_json(value: object, default: Any = None) -> bytes:
    """JSON in UTF-8. A lone surrogate, which UTF-8 cannot encode, stays escaped."""
    text = json.dumps(value, ensure_ascii=False, default=default)
    return text.encode("utf-8", "backslashreplace")
