"""Ids and names of files: which are accepted, on the way in and out. Pure."""

import hmac
import re
import secrets
from base64 import urlsafe_b64encode

# The most that LibreChat's own server takes.
MAX_NAME_CHARS = 256
MAX_DEPTH = 10
# The most that a file system takes for one part of a path.
MAX_PART_BYTES = 255
_ID = re.compile(r"[A-Za-z0-9_-]{21}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")
# Characters that make a name look like another one, or like two lines. Joiners are not
# among them, because emoji and Persian need them; nor are the marks that Windows puts
# before Hebrew names.
_MISLEADING = re.compile(
    "[\u2028\u2029"  # line and paragraph separators
    "\u202a-\u202e"  # embeddings and overrides
    "\u2066-\u206f"  # isolates, and controls that are deprecated
    "\ufff9-\ufffb]"  # annotations between lines
)
_NO_PLAIN_TEXT = (_CONTROL, _SURROGATE, _MISLEADING)


def new_id() -> str:
    """126 random bits: whoever knows an id may read the file or session that has it."""
    return secrets.token_urlsafe(16)[:21]


def id_of_output(secret: str, name: str) -> str:
    """An id that whoever has the secret can make, too: in_sandbox/workspace.py."""
    digest = hmac.digest(secret.encode(), name.encode(), "sha256")
    return urlsafe_b64encode(digest)[:21].decode()


def is_id(value: object) -> bool:
    return isinstance(value, str) and bool(_ID.fullmatch(value))


def has_surrogate(text: str) -> bool:
    """Whether it has a lone surrogate, which JSON may hold but UTF-8 cannot encode."""
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


def display_problem(name: str) -> str:
    """Why a new file is not to be shown under this name; "" when it can be."""
    found = _MISLEADING.search(name)
    if not found:
        return ""
    return f"its name has U+{ord(found[0]):04X}, which misleads: rename the file"


def printable(name: object) -> str:
    """A name from outside as one harmless line of bounded length."""
    if name_problem(name):
        return ascii(name)[:100]
    return escaped(str(name))


def escaped(text: str) -> str:
    """A text as one line of plain characters: others become `\\u202e`."""
    for pattern in _NO_PLAIN_TEXT:
        text = pattern.sub(_escape, text)
    return text


def _escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"
