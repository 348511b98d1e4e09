"""Long words of base64 and hex, which nobody reads. Pure.

A word has to be surely one of them: numbers, DNA sequences and paths stay."""

import re
from collections.abc import Callable

BASE64_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
# What stands before base64 in a data URI: `data:image/png;base64,iVBORw0K…`.
LABEL = ";base64,"
_LEAST_CHARS = 201
_LONG_WORD = (
    rf"(?:({LABEL})|(?<![A-Za-z0-9+/]))([A-Za-z0-9+/]{{{_LEAST_CHARS},}}={{0,2}})"
)
_HEX = r"[0-9a-f]+|[0-9A-F]+"
# Base64 of so much text or data has letters of both cases, digits, and this many
# different characters.
_KINDS_OF_CHARACTERS = (str.islower, str.isupper, str.isdigit)
_LEAST_DIFFERENT = 16
# In base64 one character in 64 is a slash, in a path each fifth or tenth.
_LEAST_CHARS_PER_SLASH = 16
# PNG and JPEG in base64, and in hex.
_PICTURES = ("iVBORw0KGgo", "/9j/", "89504e470d0a1a0a", "ffd8ff")


def replace_encoded(text: str, replace: Callable[[str, str], str]) -> str:
    """The text with `replace(kind, word)` for each long word of base64 or hex."""

    def replaced(found: re.Match[str]) -> str:
        label, word = found.groups("")
        kind = "base64" if label else _kind_of(word)
        return label + replace(kind, word) if kind else found[0]

    if len(text) < _LEAST_CHARS:
        return text
    return re.sub(_LONG_WORD, replaced, text)


def begins_picture(word: str) -> bool:
    return word.startswith(_PICTURES) or word.lower().startswith(_PICTURES[2:])


def _kind_of(word: str) -> str:
    """What it surely is: "base64", "hex" or, if it is neither, ""."""
    if re.fullmatch(_HEX, word):
        return "" if word.isdigit() or word.isalpha() else "hex"
    if begins_picture(word):
        return "base64"
    characters = set(word)
    is_base64 = (
        len(word) % 4 == 0
        and all(any(map(is_one, characters)) for is_one in _KINDS_OF_CHARACTERS)
        and len(characters) >= _LEAST_DIFFERENT
        and word.count("/") * _LEAST_CHARS_PER_SLASH <= len(word)
    )
    return "base64" if is_base64 else ""
