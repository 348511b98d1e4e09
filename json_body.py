"""JSON bodies in bounded memory: one that came is parsed, one that goes is made.

A long text is never a `str`: Python takes four bytes for each of its characters where
one of them is an emoji. Pure.
"""

import json
import secrets
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from config import MAX_BODY_BYTES
from sandboxes.stream import is_costly

# Parsing takes so many times the memory that the body has.
PARSE_FACTOR = 3
# A text of a large body that is longer is a LongText; a path or an argument is not.
_LONG_BYTES = 64 * 1024
_PIECE_BYTES = 48 * 1024  # 64 KiB as base64
# JSON writes a character in at most this many: `\ud83d\ude00`.
_CHARACTER_BYTES = 12
# The first half of a character that JSON writes as two.
_HIGH_SURROGATES = ("\ud800", "\udbff")
# Stands in a body for what is long; nobody can guess it, and so put it into a text.
_PLACEHOLDER = secrets.token_hex(16)
_TOO_MANY_VALUES = "The body has more values than any call needs."
_TOO_MUCH_ELSE = (
    f"The body has more than {MAX_BODY_BYTES:,} bytes beside the texts of its own"
    f" fields that are longer than {_LONG_BYTES:,}."
)


class BadBody(ValueError):
    """Says in our words why a body is not taken."""


class LongText:
    """A long text of a body, as it came: escaped, and in UTF-8."""

    def __init__(self, literal: bytes) -> None:
        self._literal = literal

    def utf8(self) -> bytes:
        """Raises ValueError; UnicodeEncodeError, which is one, for a lone surrogate."""
        data = bytearray()
        start = 0
        while start < len(self._literal):
            text, start = self._piece(start)
            data += text.encode()
        return bytes(data)

    def _piece(self, start: int) -> tuple[str, int]:
        """Some text, and where the next begins. Raises ValueError."""
        size = len(self._literal)
        end = min(start + _PIECE_BYTES, size)
        # That may be in the middle of a character.
        for stop in range(end, max(start, end - _CHARACTER_BYTES), -1):
            literal = b'"' + self._literal[start:stop] + b'"'
            try:
                text = json.loads(literal.decode())
            except ValueError:
                continue
            low, high = _HIGH_SURROGATES
            if stop == size or not low <= text[-1] <= high:
                return str(text), stop
        raise ValueError("no text of JSON")


def parse_json(body: bytes | bytearray) -> Any:
    """Raises BadBody, ValueError or RecursionError.

    The long texts of a large body's own fields are LongTexts; none may lie deeper.
    """
    if len(body) > MAX_BODY_BYTES:
        return _parse_large(body)
    text = body.decode(json.detect_encoding(body), "surrogatepass")
    if is_costly(text.encode("utf-8", "surrogatepass")):
        raise BadBody(_TOO_MANY_VALUES)
    return json.loads(text)


def _parse_large(body: bytes | bytearray) -> Any:
    rest, texts = _without_long_texts(body)
    if len(rest) > MAX_BODY_BYTES:
        raise BadBody(_TOO_MUCH_ELSE)
    value = parse_json(rest)
    fields = value if isinstance(value, dict) else {}
    put_back = 0
    for name, text in fields.items():
        if isinstance(text, str) and text.startswith(_PLACEHOLDER):
            number = int(text.removeprefix(_PLACEHOLDER))
            fields[name] = texts[number]
            put_back += 1
    if put_back < len(texts):
        raise BadBody(_TOO_MUCH_ELSE)
    return value


def _without_long_texts(body: bytes | bytearray) -> tuple[bytearray, list[LongText]]:
    """The body with a placeholder and a number instead of each long text."""
    # As long as the body; each quote that is left begins or ends a text.
    masked = body.replace(rb"\\", b"--").replace(rb"\"", b"--")
    if masked.count(b'"') > MAX_BODY_BYTES:
        raise BadBody(_TOO_MANY_VALUES)
    texts: list[LongText] = []
    rest = bytearray()
    view = memoryview(body)
    kept_to = 0
    start = masked.find(b'"')
    end = masked.find(b'"', start + 1)
    while 0 <= start < end:
        if end - start > _LONG_BYTES:
            rest += view[kept_to : start + 1]
            rest += f"{_PLACEHOLDER}{len(texts)}".encode()
            texts.append(LongText(bytes(view[start + 1 : end])))
            kept_to = end
        start = masked.find(b'"', end + 1)
        end = masked.find(b'"', start + 1)
    rest += view[kept_to:]
    return rest, texts


class Long(Protocol):
    """Stands in a body for a text that is made while it is sent."""

    prefix: str

    def size_bytes(self) -> int:
        """As it is sent."""

    def pieces(self) -> Iterator[bytes]:
        """JSON without its quotes, in UTF-8."""


@dataclass(frozen=True)
class Blob:
    """Bytes in a body: there they are a text, as base64 after `prefix`."""

    data: bytes = field(repr=False)
    prefix: str = ""

    def size_bytes(self) -> int:
        return (len(self.data) + 2) // 3 * 4

    def pieces(self) -> Iterator[bytes]:
        for start in range(0, len(self.data), _PIECE_BYTES):
            yield b64encode(self.data[start : start + _PIECE_BYTES])


class JsonBody:
    """A JSON body in pieces, each made when it is its turn."""

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
    """JSON in UTF-8. A lone surrogate, which has none, stays escaped."""
    text = json.dumps(value, ensure_ascii=False, default=default)
    return text.encode("utf-8", "backslashreplace")
