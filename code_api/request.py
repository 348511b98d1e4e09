"""The body of POST /v1/exec: what is to be run, how long, and with which files."""

from dataclasses import dataclass, field
from typing import Any

from code_api.languages import LANGUAGES, Language
from code_api.names import has_surrogate, name_problem, printable
from code_api.store import NotStored, Store, StoredFile
from config import MAX_CARRIED_BYTES

# What a process takes as arguments, with much to spare.
_MAX_ARGS_CHARS = 100_000
_MAX_ENTRIES = 1000  # of args, and of files

Fields = dict[str, Any]


class BadExec(ValueError):
    """The body is no exec; the message is for the caller."""


@dataclass
class ExecRequest:
    language_name: str  # one of LANGUAGES, or "other"
    language: Language | None
    code: str
    args: list[str]
    limit_s: int
    # By the name under which each is mounted.
    inputs: dict[str, StoredFile] = field(default_factory=dict)
    # What stderr says of it, line by line.
    notes: list[str] = field(default_factory=list)

    def input_bytes(self) -> int:
        return sum(stored.size for stored in self.inputs.values())


def parse_exec(body: object, store: Store, run_timeout_s: int) -> ExecRequest:
    """Unknown fields are ignored; a file that is gone is a note. Raises BadExec."""
    if not isinstance(body, dict):
        raise BadExec('Expected a JSON object such as {"lang": "bash", "code": …}.')
    name = _text(body, "lang")
    language = LANGUAGES.get(name)
    request = ExecRequest(
        language_name=name if language else "other",
        language=language,
        code=_text(body, "code"),
        args=_list(body, "args", str),
        limit_s=_limit_s(body, run_timeout_s),
    )
    _check_args(request.args)
    if not language:
        known = ", ".join(LANGUAGES)
        request.notes.append(f"language {printable(name)} is not known: {known}")
    for ref in _list(body, "files", dict):
        _mount(request, ref, store)
    return request


def _text(body: Fields, field_name: str) -> str:
    text = body.get(field_name)
    if not isinstance(text, str):
        raise BadExec(f"{field_name} must be a string.")
    if has_surrogate(text):
        raise BadExec(f"{field_name} must not hold a lone surrogate.")
    return text


def _list(body: Fields, field_name: str, kind: type) -> list[Any]:
    values = body.get(field_name) or []
    if not isinstance(values, list):
        raise BadExec(f"{field_name} must be an array.")
    if len(values) > _MAX_ENTRIES:
        raise BadExec(f"{field_name} has more than {_MAX_ENTRIES:,} entries.")
    if not all(isinstance(value, kind) for value in values):
        raise BadExec(f"{field_name} has an entry of a wrong type.")
    return values


def _check_args(args: list[str]) -> None:
    joined = "".join(args)
    if len(joined) > _MAX_ARGS_CHARS:
        raise BadExec(f"args has more than {_MAX_ARGS_CHARS:,} characters.")
    if "\0" in joined or has_surrogate(joined):
        raise BadExec("args must hold neither NUL nor a lone surrogate.")


def _limit_s(body: Fields, run_timeout_s: int) -> int:
    """`timeout`, in milliseconds, may shorten the run; anything else is ignored."""
    timeout_ms = body.get("timeout")
    if type(timeout_ms) is not int or timeout_ms < 1:
        return run_timeout_s
    timeout_s = max(1, timeout_ms // 1000)
    return min(timeout_s, run_timeout_s)


def _mount(request: ExecRequest, ref: Fields, store: Store) -> None:
    """Add a file to the inputs; of two with one name the last one counts."""
    name = ref.get("name")
    problem = name_problem(name)
    if problem:
        request.notes.append(f"input {printable(name)} was left out: {problem}")
        return
    name = str(name)
    request.inputs.pop(name, None)
    session_id = ref.get("storage_session_id") or ref.get("session_id")
    try:
        stored = store.find(session_id, ref.get("id"))
    except NotStored:
        request.notes.append(f"input {name} is not there any more")
        return
    total_bytes = request.input_bytes() + stored.size
    if total_bytes > MAX_CARRIED_BYTES:
        problem = f"all inputs are larger than {MAX_CARRIED_BYTES:,} bytes"
        request.notes.append(f"input {name} was left out: {problem}")
        return
    request.inputs[name] = stored
