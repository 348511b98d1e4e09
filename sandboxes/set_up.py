"""The lines that set up a sandbox's new kernel: they bring in_sandbox/kernel.py along.

That and figures.py are read as text, and sent without their comments: what is sent with
a first cell is under 7 kB."""

import ast
import lzma
import re
from base64 import b85encode
from pathlib import Path

from texts.cell import DATA_FOLDER

_IN_SANDBOX = Path(__file__).parents[1] / "in_sandbox"
# Smaller than zlib's by 3 %; a small dictionary is enough for a small text.
_LZMA = [
    {
        "id": lzma.FILTER_LZMA1,
        "preset": 9 | lzma.PRESET_EXTREME,
        "dict_size": 65536,
        "pb": 0,
    }
]
# What is imported for types alone.
_OF_TYPES = ("__future__", "typing", "types", "collections.abc")
# Where something of it fails, the caller's code runs all the same, as in any kernel: a
# cell that awaits something does so in a thread, for the kernel's own loop is running.
# No name is left behind.
_SET_UP = """\
try: exec(compile(__import__("lzma").decompress(__import__("base64").b85decode(\
{packed!r})), "<in_kernel>", "exec"), \
{{"__name__": "in_kernel", "DATA_FOLDER": {folder!r}}})
except Exception: __import__("IPython").get_ipython().loop_runner = lambda cell: \
__import__("concurrent.futures").futures.ThreadPoolExecutor(1).submit(\
__import__("asyncio").run, cell).result()
"""


def set_up_lines(kernel: str, figures: str) -> str:
    """Lines for the start of a cell that run these sources, and fail in silence."""
    source = f"{_shortened(kernel)}\nFIGURES = {_shortened(figures)!r}\nset_up()"
    packed = lzma.compress(source.encode(), lzma.FORMAT_ALONE, filters=_LZMA)
    return _SET_UP.format(packed=b85encode(packed).decode(), folder=DATA_FOLDER)


def _shortened(source: str) -> str:
    """The source without comments, docstrings and types."""
    tree = _Shortener().visit(ast.parse(source))
    text = ast.unparse(ast.fix_missing_locations(tree))
    # Of what is unparsed, only an indentation is at a line's start.
    return re.sub(r"(?m)^ +", lambda spaces: " " * (len(spaces[0]) // 4), text)


class _Shortener(ast.NodeTransformer):
    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            has_more = len(node.body) > 1
            if ast.get_docstring(node) is not None and has_more:
                del node.body[0]
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        return None if node.module in _OF_TYPES else node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if node.value is None:
            return None
        return ast.Assign([node.target], node.value)


SET_UP = set_up_lines(
    (_IN_SANDBOX / "kernel.py").read_text("utf-8"),
    (_IN_SANDBOX / "figures.py").read_text("utf-8"),
)
