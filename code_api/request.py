"""The body of POST /v1/exec: the script to run, for how long, and with which files."""

import re
from dataclasses import dataclass, field
from typing import Any

from werkzeug.exceptions import BadRequest

from code_api.languages import LANGUAGES, Language
from code_api.large_body import LongText
from code_api.names import name_problem, new_id, printable
from code_api.store import NotStored, Store, StoredFile
from config import MAX_CARRIED_BYTES

MAX_ENTRIES = 1000  # of args, and of files

_HINT = re.compile(r"[A-Za-z0-9._:-]{1,128}")

Fields = dict[str, Any]


@dataclass
class ExecRequest:
    language_name: str  # one of LANGUAGES, or "other"
    language: Language | None
    code: bytes  # UTF-8
    args: list[str]
    limit_s: int
    # Which session the exec is one of; "" if it has a sandbox of its own.
    session_hint: str = ""
    # What the ids of its outputs are made with; "" if these are random.
    id_secret: str = ""
    # Each by the name under which it is mounted.
    inputs: dict[str, StoredFile] = field(default_factory=dict)
    # Lines that stderr has after the script's own.
    notes: list[str] = field(default_factory=list)

    def input_bytes(self) -> int:
        return sum(stored.size for stored in self.inputs.values())

    def other_names(self) -> dict[str, str]:
        """The names under which inputs are there, too: those that scripts gave them.

        Each has the name under which its file is mounted."""
        names: dict[str, str] = {}
        for name, stored in self.inputs.items():
            original = stored.original_name
            if original and original not in self.inputs and not stored.read_only:
                names.setdefault(original, name)
        return names

    def drop(self, name: str, why: str) -> None:
        """Leave out an input that was found before."""
        del self.inputs[name]
        self.leave_out(name, why)

    def leave_out(self, name: object, why: str) -> None:
        self.notes.append(f"input {printable(name)} was left out: {why}")


def parse_exec(body: object, store: Store, run_timeout_s: int) -> ExecRequest:
    """The request that a body describes. Raises BadRequest.

    Unknown fields are ignored; a file that is gone becomes a note."""
    if not isinstance(body, dict):
        raise BadRequest('Expected a JSON object such as {"lang": "bash", "code": …}.')
    name = _text(body, "lang")
    language = LANGUAGES.get(name)
    code = _code(body)
    if name == "bash":
        code = _with_unix_lines(code)
    request = ExecRequest(
        language_name=name if language else "other",
        language=language,
        code=code,
        args=_list(body, "args", str),
        limit_s=_limit_s(body, run_timeout_s),
        session_hint=_hint(body),
    )
    if request.session_hint:
        request.id_secret = new_id()
    if not language:
        known = ", ".join(LANGUAGES)
        why = f"language {printable(name)} is not known: {known}"
        request.notes.append(f"Error: {why}")
    for ref in _list(body, "files", dict):
        _mount(request, ref, store)
    return request


def _text(body: Fields, field_name: str) -> str:
    text = body.get(field_name)
    if not isinstance(text, str):
        raise BadRequest(f"{field_name} must be a string.")
    return text


def _code(body: Fields) -> bytes:
    """The script, of up to 32 MB, as bytes: a `str` would take four times as much."""
    text = body.get("code")
    try:
        if isinstance(text, LongText):
            return text.utf8()
        return _text(body, "code").encode()
    except UnicodeEncodeError:
        raise BadRequest("code must not hold a lone surrogate.") from None
    except ValueError:
        raise BadRequest("code is no text of JSON that can be read.") from None


def _with_unix_lines(code: bytes) -> bytes:
    """A script of bash without the carriage returns that each of its lines ends in.

    To bash they would be a part of each line's last word."""
    if code.count(b"\r\n") != code.count(b"\n"):
        return code
    return code.replace(b"\r\n", b"\n")


def _list(body: Fields, field_name: str, kind: type) -> list[Any]:
    items = body.get(field_name) or []
    if not isinstance(items, list):
        raise BadRequest(f"{field_name} must be an array.")
    if len(items) > MAX_ENTRIES:
        raise BadRequest(f"{field_name} has more than {MAX_ENTRIES:,} entries.")
    for item in items:
        if not isinstance(item, kind):
            raise BadRequest(f"{field_name} has an entry of a wrong type.")
    return items


def _limit_s(body: Fields, run_timeout_s: int) -> int:
    """`timeout`, in milliseconds, may shorten the run; anything else is ignored."""
    timeout_ms = body.get("timeout")
    if type(timeout_ms) is not int or timeout_ms < 1:
        return run_timeout_s
    timeout_s = max(1, timeout_ms // 1000)
    return min(timeout_s, run_timeout_s)


def _hint(body: Fields) -> str:
    """What LibreChat's stateful code sessions are told apart by."""
    hint = body.get("runtime_session_hint")
    if hint in (None, ""):
        return ""
    if not isinstance(hint, str) or not _HINT.fullmatch(hint):
        raise BadRequest(
            "runtime_session_hint must be 1 to 128 letters, digits, dots, underscores,"
            " colons and hyphens, or be absent."
        )
    return hint


def _mount(request: ExecRequest, ref: Fields, store: Store) -> None:
    """Find an input file; if two have the same name the last one counts."""
    name = ref.get("name")
    problem = name_problem(name)
    if problem:
        request.leave_out(name, problem)
        return
    name = str(name)
    request.inputs.pop(name, None)
    session_id = ref.get("storage_session_id") or ref.get("session_id")
    try:
        stored = store.find(session_id, ref.get("id"))
    except NotStored as exc:
        request.leave_out(name, str(exc))
        return
    total_bytes = request.input_bytes() + stored.size
    if total_bytes > MAX_CARRIED_BYTES:
        why = f"all inputs are larger than {MAX_CARRIED_BYTES:,} bytes"
        request.leave_out(name, why)
        return
    request.inputs[name] = stored
