"""The cells of an exec: Python that is sent to the sandbox's kernel. Pure but for reading."""

import json
import zlib
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from code_api.request import ExecRequest
from code_api.store import NotStored

_PROGRAM = Path(__file__).with_name("in_sandbox.py").read_text("ascii")
# E2B's server refuses cells above 10 MiB as JSON, and the kernel keeps each cell.
_PIECE_BYTES = 1024 * 1024
_CELL_CHARS = 2_000_000
# A longer script, as JSON, travels in pieces.
_LONG_SCRIPT_CHARS = 1_000_000
STDOUT_LIMIT_BYTES = 12 * 1024 * 1024  # edit_file reads files of 10 MiB by `cat`
STDERR_LIMIT_BYTES = 1024 * 1024
# Files up to this come with the run, larger ones in cells of their own, after it.
SMALL_BYTES = 1024 * 1024
MAX_FILES = 50
MAX_WRITTEN = 1000  # files that are reported by name


@dataclass(frozen=True)
class Cell:
    code: str
    runs_script: bool = False


def exec_cells(request: ExecRequest) -> Iterator[Cell]:
    """The last cell runs the script. An input that is gone by now becomes a note."""
    is_long = len(json.dumps(request.code)) > _LONG_SCRIPT_CHARS
    plan = _plan(request, "" if is_long else request.code)
    lines = [f"exec({_PROGRAM!r})", f"the_exec = Exec(json.loads({plan!r}))"]
    chars = len(plan)
    for number, piece in _pieces(request, is_long):
        packed = b64encode(zlib.compress(piece, 1)).decode()
        if chars + len(packed) > _CELL_CHARS:
            yield Cell("\n".join(lines))
            lines = []
            chars = 0
        lines.append(f"the_exec.receive({number}, {packed!r})")
        chars += len(packed)
    lines.append("the_exec.run()")
    yield Cell("\n".join(lines), runs_script=True)


def _plan(request: ExecRequest, script: str) -> str:
    language = request.language
    assert language  # noqa: S101 - an exec without one is never sent
    return json.dumps(
        {
            "script": script,
            "script_name": language.script_name,
            "beside_data": language.beside_data,
            "tool": language.tool,
            "command": language.command,
            "args": request.args,
            "limit_s": request.limit_s,
            "inputs": list(request.inputs),
            "read_only": [
                name for name, stored in request.inputs.items() if stored.read_only
            ],
            "stdout_bytes": STDOUT_LIMIT_BYTES,
            "stderr_bytes": STDERR_LIMIT_BYTES,
            "small_bytes": SMALL_BYTES,
            "max_files": MAX_FILES,
            "max_written": MAX_WRITTEN,
        }
    )


def _pieces(request: ExecRequest, script_too: bool) -> Iterator[tuple[int, bytes]]:
    """(number, the next bytes) of each input, -1 for the script; one at least."""
    if script_too:
        script = request.code.encode()
        for start in range(0, len(script), _PIECE_BYTES):
            yield -1, script[start : start + _PIECE_BYTES]
    for number, (name, stored) in enumerate(request.inputs.items()):
        try:
            with stored.open() as file:
                yield number, file.read(_PIECE_BYTES)
                while piece := file.read(_PIECE_BYTES):
                    yield number, piece
        except NotStored:
            request.notes.append(f"input {name} is not there any more")
