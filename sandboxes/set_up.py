"""What a kernel is sent: a call's code, and lines that set up a new kernel before it.

These bring in_sandbox/kernel.py along. That and its parts are read as text, and sent
without their comments and docstrings. in_sandbox/shapes.py is sent, in the same way,
with code that may need it only."""

import ast
import zlib
from base64 import b64encode
from pathlib import Path

from texts.cell import DATA_FOLDER, Cell, may_be_wrapped

_IN_SANDBOX = Path(__file__).parents[1] / "in_sandbox"
# kernel.py, and what it calls its parts, in its order.
FILES = ("kernel.py", "figures.py", "fonts.py", "waiting.py")
# What is run has names of its own, so none is left behind in the caller's.
_SET_UP = """\
try:
    exec({load!r}, {names!r})
except Exception:
    exec({do_without!r}, {{}})
"""
_LOAD = r"""
import base64, zlib
SOURCE, *PARTS = zlib.decompress(base64.b64decode(PACKED)).decode().split("\0")
exec(compile(SOURCE, "<in_kernel>", "exec"))
"""
# Where something of it fails, the caller's code runs all the same, as in any kernel.
# There a cell within a cell cannot await, unless nest_asyncio lets it: the kernel's
# own loop is running.
_DO_WITHOUT = """
try:
    import nest_asyncio
    nest_asyncio.apply()
except Exception:
    pass
"""
# Runs code as a cell of its own, inside of the one that is sent, so that all its lines
# are the caller's. in_sandbox/kernel.py says how; without it, IPython's own `run_cell`
# does so too. The shell is not taken from a name that the caller may have given away,
# and what an `if` looks at is not shown as a value.
_RUN_CELL = 'if __import__("IPython").get_ipython().run_cell({code},0,0,{limit_s}):0'
# What the code is that a text holds, by in_sandbox/shapes.py.
_FOUND_CODE = """\
(lambda c,p,n:[__import__("builtins").exec(__import__("zlib").decompress(\
__import__("base64").b64decode(p)),n),n["runnable"](c,\
__import__("IPython").get_ipython())][1])({sent!r},{packed!r},{{}})"""


def read_sources() -> list[str]:
    return [(_IN_SANDBOX / name).read_text("utf-8") for name in FILES]


def bare(source: str) -> str:
    """The source without comments and docstrings, which are a third of it when packed.

    A cell is the first thing on a new connection, and all of it should leave at once:
    TCP waits for an answer after some 14 kB."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def packed(sources: list[str]) -> str:
    """The sources as text that goes into a string of Python's.

    Base85 and lzma would save 1 kB, and take 0.7 ms to unpack instead of 0.04 ms."""
    text = "\0".join(map(bare, sources))
    return b64encode(zlib.compress(text.encode(), 9)).decode()


_PACKED = packed(read_sources())
_PACKED_SHAPES = packed([(_IN_SANDBOX / "shapes.py").read_text("utf-8")])


def for_kernel(
    cell: Cell, set_up: str, limit_s: int, shapes: str = _PACKED_SHAPES
) -> str:
    """The code as it is sent, after lines of ours that `set_up` a new kernel."""
    code = repr(cell.sent)
    if may_be_wrapped(cell.sent):
        code = _FOUND_CODE.format(sent=cell.sent, packed=shapes)
    return set_up + _RUN_CELL.format(code=code, limit_s=limit_s)


def set_up_lines(max_image_bytes: int, packed: str = _PACKED) -> str:
    """Lines for the start of a cell that run what is packed, and fail in silence."""
    names = {
        "__name__": "in_kernel",
        "PACKED": packed,
        "DATA_FOLDER": DATA_FOLDER,
        "MAX_IMAGE_BYTES": max_image_bytes,
    }
    return _SET_UP.format(load=_LOAD, names=names, do_without=_DO_WITHOUT)
