"""The body of POST /v1/exec: what is to be run, how long, and with which files."""

from dataclasses import dataclass, field
from typing import Any

from code_api.languages import LANGUAGES, Language
from code_api.names import name_problem, printable
from code_api.store import NotStored, Store, StoredFile
from config import MAX_CARRIED_BYTES

# What a process takes as arguments, with much to spare.
_MAX_ARGS_CHARS = 100_000
MAX_INPUTS = 1000


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
        args=_args(body),
        limit_s=_limit_s(body, run_timeout_s),
    )
    if not language:
        known = ", ".join(LANGUAGES)
        request.notes.append(f"language {printable(name)} is not known: {known}")
    _mount(request, _refs(body), store)
    return request


def _text(body: dict[str, Any], field_name: str) -> str:
    text = body.get(field_name)
    if not isinstance(text, str):
        raise BadExec(f"{field_name} must be a string.")
    return _encodable(text, field_name)


def _encodable(text: str, field_name: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadExec(f"{field_name} must not hold a lone surrogate.") from None
    return text


def _args(body: dict[str, Any]) -> list[str]:
    args = body.get("args") or []
    if not isinstance(args, list) or not all(isinstance(arg, str) for arg in args):
        raise BadExec("args must be an array of strings.")
    joined = _encodable("".join(args), "args")
    if "\0" in joined or len(joined) > _MAX_ARGS_CHARS:
        raise BadExec(f"args: no NUL, at most {_MAX_ARGS_CHARS:,} characters.")
    return args


def _limit_s(body: dict[str, Any], run_timeout_s: int) -> int:
    """`timeout`, in milliseconds, may shorten the run; anything else is ignored."""
    timeout_ms = body.get("timeout")
    if type(timeout_ms) is not int or timeout_ms < 1:
        return run_timeout_s
    return min(max(1, timeout_ms // 1000), run_timeout_s)


def _refs(body: dict[str, Any]) -> list[dict[str, Any]]:
    refs = body.get("files") or []
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise BadExec("files must be an array of objects.")
    if len(refs) > MAX_INPUTS:
        raise BadExec(f"files must not hold more than {MAX_INPUTS} entries.")
    return refs


def _mount(request: ExecRequest, refs: list[dict[str, Any]], store: Store) -> None:
    """Find the files; of two with one name the last one counts."""
    for ref in refs:
        name = ref.get("name")
        problem = name_problem(name)
        if problem:
            request.notes.append(f"input {printable(name)} was left out: {problem}")
            continue
        try:
            session_id = ref.get("storage_session_id") or ref.get("session_id")
            request.inputs[str(name)] = store.find(session_id, ref.get("id"))
        except NotStored:
            request.inputs.pop(str(name), None)
            request.notes.append(f"input {name} is not there any more")
    total_bytes = 0
    for name, stored in list(request.inputs.items()):
        total_bytes += stored.size
        if total_bytes > MAX_CARRIED_BYTES:
            del request.inputs[name]
            problem = f"all inputs are larger than {MAX_CARRIED_BYTES:,} bytes"
            request.notes.append(f"input {name} was left out: {problem}")
