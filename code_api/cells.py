"""The cells of an exec: Python that is sent to the sandbox's kernel."""

import json
import zlib
from base64 import b64encode
from codecs import getincrementaldecoder
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from code_api import limits
from code_api.languages import LANGUAGES
from code_api.request import ExecRequest
from code_api.store import NotStored
from texts.cell import may_be_wrapped

_IN_SANDBOX = Path(__file__).parents[1] / "in_sandbox"
_PYTHON_FILES = {
    "sitecustomize.py": (_IN_SANDBOX / "startup.py").read_text("ascii"),
    "exec_fonts.py": (_IN_SANDBOX / "fonts.py").read_text("ascii"),
    "exec_plots.py": (_IN_SANDBOX / "plots.py").read_text("ascii"),
}
_SCRIPT_PY = (_IN_SANDBOX / "script.py").read_text("ascii")
_SHAPES_PY = (_IN_SANDBOX / "shapes.py").read_text("ascii")
_PROGRAM = f"{_SCRIPT_PY}\nPYTHON_FILES.update({_PYTHON_FILES!r})\n"
# The program is a module of its own, which may be there already: a sandbox that was
# made ahead has started a Python with it.
_LOAD_PROGRAM = f"""\
import sys, types
if "exec_program" not in sys.modules:
    sys.modules["exec_program"] = types.ModuleType("exec_program")
    exec({_PROGRAM!r}, sys.modules["exec_program"].__dict__)
"""
_START_EARLY = """
def start_early():
    import contextlib, types
    program = types.ModuleType("exec_program")
    with contextlib.suppress(Exception):
        exec({program!r}, program.__dict__)
        program.start_early(*{arguments!r})
        __import__("sys").modules["exec_program"] = program
start_early()
del start_early
"""
# E2B's server refuses cells above 10 MiB as JSON, and the kernel keeps each cell.
_CELL_CHARS = 2_000_000
_PIECE_BYTES = 768 * 1024  # 1 MiB as base64: one that does not shrink fills a cell
_SCRIPT_PIECE_BYTES = 200_000  # a byte takes up to four in a literal: \x80
# Models write no longer scripts, and Python's own parser takes time for each byte.
_MAX_WRAPPED_BYTES = 200_000


def exec_cells(request: ExecRequest) -> Iterator[str]:
    """The cells of an exec, of which the last runs the script.

    An input that is gone by now becomes a note."""
    plan = _plan(request)
    new_exec = f"program.Exec(program.json.loads({plan!r}))"
    cell = f"{_LOAD_PROGRAM}program = sys.modules['exec_program']\n"
    cell += f"the_exec = {new_exec}\n"
    for line in _carrying_lines(request):
        if len(cell) + len(line) > _CELL_CHARS:
            yield cell
            cell = ""
        cell += line
    if _may_be_wrapped(request):
        cell += f"the_exec.take_as_code({_SHAPES_PY!r})\n"
    yield cell + "the_exec.run()"


def _may_be_wrapped(request: ExecRequest) -> bool:
    is_python = request.language == LANGUAGES["py"]
    is_short = len(request.code) <= _MAX_WRAPPED_BYTES
    return is_python and is_short and may_be_wrapped(request.code.decode())


def start_early_code(imports: str) -> str:
    """Code, for a cell, that starts a Python for the script of an exec that may come.

    It does the imports, whose names are separated by commas, and leaves no name behind
    in the kernel. A failure is none of the cell's."""
    names = [name.strip() for name in imports.split(",")]
    python = LANGUAGES["py"]
    arguments = (python.command, python.script_name, names)
    return _START_EARLY.format(program=_PROGRAM, arguments=arguments)


def send_cell(name: str, start: int) -> str:
    """A cell that reports a piece of a written file, from byte `start` on."""
    return f"the_exec.send({name!r}, {start})"


def _plan(request: ExecRequest) -> str:
    language = request.language
    assert language  # noqa: S101 - an exec without one is never sent
    inputs = request.inputs.items()
    plan = {
        **asdict(language),
        "args": request.args,
        "limit_s": request.limit_s,
        "read_only": [name for name, stored in inputs if stored.read_only],
        "other_names": request.other_names(),
        "output_bytes": limits.OUTPUT_BYTES,
        "pipe_bytes": limits.PIPE_BYTES,
        "chunk_bytes": limits.CHUNK_BYTES,
        "chunks_a_cell": limits.CHUNKS_A_CELL,
        "max_files": limits.MAX_FILES,
        "small_bytes": limits.SMALL_BYTES,
    }
    return json.dumps(plan)


def _carrying_lines(request: ExecRequest) -> Iterator[str]:
    """Lines of code, each of which carries a piece of the script or of an input."""
    decoder = getincrementaldecoder("utf-8")()
    for start in range(0, len(request.code), _SCRIPT_PIECE_BYTES):
        # A piece may end in the middle of a character, which then comes with the next.
        piece = decoder.decode(request.code[start : start + _SCRIPT_PIECE_BYTES])
        yield f"the_exec.script += {piece!a}\n"
    for name, stored in request.inputs.items():
        try:
            with stored.open() as file:
                for data in _pieces(file):
                    packed = b64encode(zlib.compress(data, 1)).decode()
                    yield f"the_exec.receive({name!r}, {packed!r})\n"
        except NotStored as exc:
            request.leave_out(name, str(exc))


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    yield file.read(_PIECE_BYTES)  # an empty file has one piece, too
    while data := file.read(_PIECE_BYTES):
        yield data
