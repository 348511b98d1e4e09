"""Parses a large JSON body without ever making a `str` of a long text in it. Pure.

Python takes four bytes for each character of a text that has an emoji in it: a script
of 32 MB would take 128 MB.
"""

import secrets
from typing import Any

from json_body import TOO_MANY_VALUES, BadBody, parse_json, text_of, text_so_far

# A text that is longer becomes a LongText; paths and arguments are shorter.
_LONG_BYTES = 64 * 1024
_PIECE_BYTES = 48 * 1024
# Stands for a long text. Nobody can guess it, so no body contains it.
_PLACEHOLDER = secrets.token_hex(16)
_TOO_MUCH_ELSE = (
    "The body has more than {:,} bytes beside the texts of its own fields that are"
    f" longer than {_LONG_BYTES:,}."
)


class LongText:
    """A long text of a body, as it came: escaped, and in UTF-8."""

    def __init__(self, literal: bytes) -> None:
        self._literal = literal

    def utf8(self) -> bytes:
        """The text in UTF-8. Raises ValueError if it is not valid JSON.

        For a lone surrogate that is a UnicodeEncodeError."""
        data = bytearray()
        rest = memoryview(self._literal)
        while len(rest) > _PIECE_BYTES:
            text, size = text_so_far(bytes(rest[:_PIECE_BYTES]))
            data += text.encode()
            rest = rest[size:]
        data += text_of(bytes(rest)).encode()
        return bytes(data)


def parse_large(body: bytes | bytearray, max_rest_bytes: int) -> Any:
    """The value that a body holds. Raises BadBody, ValueError or RecursionError.

    Long texts may only be fields of the body itself, where they become LongTexts. The
    rest of the body may have `max_rest_bytes`."""
    if len(body) <= max_rest_bytes:
        return parse_json(body)
    rest, texts = _without_long_texts(body, max_rest_bytes)
    if len(rest) > max_rest_bytes:
        raise BadBody(_TOO_MUCH_ELSE.format(max_rest_bytes))
    value = parse_json(rest)
    fields = value if isinstance(value, dict) else {}
    put_back = 0
    for name, text in fields.items():
        if isinstance(text, str) and text.startswith(_PLACEHOLDER):
            number = int(text.removeprefix(_PLACEHOLDER))
            fields[name] = texts[number]
            put_back += 1
    if put_back < len(texts):
        raise BadBody(_TOO_MUCH_ELSE.format(max_rest_bytes))
    return value


def _without_long_texts(
    body: bytes | bytearray, max_quotes: int
) -> tuple[bytearray, list[LongText]]:
    """The body with a placeholder and a number for each long text, and these texts."""
    # It is as long as the body, and each quote that is left begins or ends a text.
    masked = body.replace(rb"\\", b"--").replace(rb"\"", b"--")
    if masked.count(b'"') > max_quotes:
        raise BadBody(TOO_MANY_VALUES)
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
