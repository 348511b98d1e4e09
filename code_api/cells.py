"""The cell of an exec: Python that is sent to the sandbox's kernel."""

import json
import zlib
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from code_api import limits
from code_api.languages import LANGUAGES
from code_api.request import ExecRequest
from code_api.staging import Staging
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
_DIGEST = sha256(_PROGRAM.encode()).hexdigest()
_PROGRAM += f"DIGEST = {_DIGEST!r}\n"
# The program is a module of its own, which may be there already: a sandbox that was
# made ahead has started a Python with it, and that of a session has run execs, perhaps
# of another version of this service.
_LOAD_PROGRAM = f"""\
import sys, types
if getattr(sys.modules.get("exec_program"), "DIGEST", "") != {_DIGEST!r}:
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


def exec_cell(request: ExecRequest, staging: Staging, for_session: str = "") -> str:
    """The cell that runs an exec, once its staged files are there.

    An input that is gone by now becomes a note. `for_session`: lines of code that tell
    `the_exec` of its session."""
    lines = list(_carrying_lines(request, staging))
    plan = _plan(request, staging)
    new_exec = f"program.Exec(program.json.loads({plan!r}))"
    cell = f"{_LOAD_PROGRAM}program = sys.modules['exec_program']\n"
    cell += f"the_exec = {new_exec}\n"
    cell += for_session + "".join(lines)
    # Models write no scripts that are staged, and Python's own parser takes long for
    # each byte.
    if not staging.script and _may_be_wrapped(request):
        cell += f"the_exec.take_as_code({_SHAPES_PY!r})\n"
    return cell + "the_exec.run()"


def _may_be_wrapped(request: ExecRequest) -> bool:
    is_python = request.language == LANGUAGES["py"]
    return is_python and may_be_wrapped(request.code.decode())


def start_early_code(imports: str) -> str:
    """Code, for a cell, that starts a Python for the script of an exec that may come.

    It does the imports, whose names are separated by commas, and leaves no name behind
    in the kernel. A failure is none of the cell's."""
    names = [name.strip() for name in imports.split(",")]
    python = LANGUAGES["py"]
    arguments = (python.command, python.script_name, names)
    return _START_EARLY.format(program=_PROGRAM, arguments=arguments)


def _plan(request: ExecRequest, staging: Staging) -> str:
    language = request.language
    assert language  # noqa: S101 - an exec without one is never sent
    inputs = request.inputs.items()
    plan = {
        **asdict(language),
        "args": request.args,
        "limit_s": request.limit_s,
        "input_names": list(request.inputs),
        "read_only": [name for name, stored in inputs if stored.read_only],
        "other_names": request.other_names(),
        "output_bytes": limits.OUTPUT_BYTES,
        "pipe_bytes": limits.PIPE_BYTES,
        "chunk_bytes": limits.CHUNK_BYTES,
        "max_files": limits.MAX_FILES,
        "small_bytes": limits.CELL_OUTPUT_BYTES,
        "staging": staging.folder if staging.files else "",
        "staged_inputs": staging.inputs,
        "staged_script": staging.script,
    }
    return json.dumps(plan)


def _carrying_lines(request: ExecRequest, staging: Staging) -> Iterator[str]:
    """Lines of code, each of which carries the script or an input."""
    if not staging.script:
        yield f"the_exec.script = {request.code.decode()!a}\n"
    for name, stored in list(request.inputs.items()):
        if name in staging.inputs or name in staging.left_out:
            continue
        try:
            with stored.open() as file:
                packed = b64encode(zlib.compress(file.read(), 1)).decode()
        except NotStored as exc:
            request.drop(name, str(exc))
        else:
            yield f"the_exec.receive({name!r}, {packed!r})\n"
