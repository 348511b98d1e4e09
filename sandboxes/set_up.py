"""The lines that set up a sandbox's new kernel: they bring in_sandbox/kernel.py along.

The file is read as text, and sent without its comments: what is sent with a first cell
is under 7 kB."""

import ast
import zlib
from base64 import b64encode
from pathlib import Path

from texts.cell import DATA_FOLDER

_KERNEL_PY = Path(__file__).parents[1] / "in_sandbox" / "kernel.py"
# Where something of it fails, the caller's code runs all the same, as in any kernel: a
# cell that awaits something does so in a thread, for the kernel's own loop is running.
# No name is left behind.
_SET_UP = """\
try: exec(compile(__import__("zlib").decompress(__import__("base64").b64decode(\
{packed!r})), "<in_kernel>", "exec"), \
{{"__name__": "in_kernel", "DATA_FOLDER": {folder!r}}})
except Exception: __import__("IPython").get_ipython().loop_runner = lambda cell: \
__import__("concurrent.futures").futures.ThreadPoolExecutor(1).submit(\
__import__("asyncio").run, cell).result()
"""


def set_up_lines(source: str) -> str:
    """Lines for the start of a cell that run this source, and fail in silence."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        _remove_docstring(node)
    packed = b64encode(zlib.compress(ast.unparse(tree).encode(), 9))
    return _SET_UP.format(packed=packed.decode(), folder=DATA_FOLDER)


def _remove_docstring(node: ast.AST) -> None:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
        has_more = len(node.body) > 1
        if ast.get_docstring(node) is not None and has_more:
            del node.body[0]


SET_UP = set_up_lines(_KERNEL_PY.read_text("utf-8"))
