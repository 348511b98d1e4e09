"""Ids and names of files: what is accepted, on both ways."""

import re
import secrets

# The most that LibreChat's own server takes.
MAX_NAME_CHARS = 256
MAX_DEPTH = 10
# What a file system takes for one part of a path.
MAX_PART_BYTES = 255
_ID = re.compile(r"[A-Za-z0-9_-]{21}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def new_id() -> str:
    """126 random bits: who knows an id may read what it stands for."""
    return secrets.token_urlsafe(16)[:21]


def is_id(value: object) -> bool:
    return isinstance(value, str) and bool(_ID.fullmatch(value))


def has_surrogate(text: str) -> bool:
    """Whether it cannot be encoded: JSON may hold half of a pair alone."""
    return bool(_SURROGATE.search(text))


def name_problem(name: object) -> str:
    """Why this cannot be the name of a file below /mnt/data; "" when it can."""
    if not isinstance(name, str) or not name:
        return "it has no name"
    if len(name) > MAX_NAME_CHARS:
        return f"its name is longer than {MAX_NAME_CHARS} characters"
    if has_surrogate(name):
        return "its name is not UTF-8"
    if _CONTROL.search(name):
        return "its name has control characters"
    if "\\" in name:
        return "its name has a backslash"
    parts = name.split("/")
    if len(parts) > MAX_DEPTH:
        return f"it lies deeper than {MAX_DEPTH} folders"
    for part in parts:
        if part in ("", ".", ".."):
            return "its name is no plain path below /mnt/data"
        if len(part.encode()) > MAX_PART_BYTES:
            return f"a part of its name is longer than {MAX_PART_BYTES} bytes"
    return ""


def printable(name: object) -> str:
    """A name from outside as one harmless line of bounded length."""
    if name_problem(name):
        return ascii(name)[:100]
    return str(name)
