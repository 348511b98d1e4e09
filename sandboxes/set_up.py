"""What a kernel is sent: a call's code, and lines that set up a new kernel before it.

These bring in_sandbox/kernel.py along. That and its parts are read as text, and sent
without their comments and long names: what is sent with a first cell is under 7 kB.
in_sandbox/shapes.py is sent, in the same way, with code that may need it only."""

import lzma
from base64 import b85encode
from pathlib import Path

from texts.cell import DATA_FOLDER, Cell, may_be_wrapped
from texts.shortening import shortened

_IN_SANDBOX = Path(__file__).parents[1] / "in_sandbox"
# kernel.py, and what it calls its parts, in its order.
FILES = ("kernel.py", "figures.py", "fonts.py", "waiting.py")
# Smaller than zlib's by 3 %; a small dictionary is enough for a small text.
_LZMA = [
    {
        "id": lzma.FILTER_LZMA1,
        "preset": 9 | lzma.PRESET_EXTREME,
        "dict_size": 65536,
        "lc": 0,
        "pb": 0,
    }
]
# Where something of it fails, the caller's code runs all the same, as in any kernel.
# There a cell within a cell cannot await, unless nest_asyncio lets it: the kernel's
# own loop is running. No name is left behind.
_SET_UP = """\
try:(lambda c,*p:exec(compile(c,"<in_kernel>","exec"),dict(__name__="in_kernel",\
PARTS=p,DATA_FOLDER={folder!r},MAX_IMAGE_BYTES={max_image_bytes})))(*__import__(\
"lzma").decompress(__import__("base64").b85decode({packed!r})).split(b"\\0"))
except Exception:exec("try:import nest_asyncio as n;n.apply()\\n"\
"except Exception:0",{{}})
"""
# Runs code as a cell of its own, inside of the one that is sent, so that all its lines
# are the caller's. in_sandbox/kernel.py says how; without it, IPython's own `run_cell`
# does so too. The shell is not taken from a name that the caller may have given away,
# and what an `if` looks at is not shown as a value.
_RUN_CELL = 'if __import__("IPython").get_ipython().run_cell({code},0,0,{limit_s}):0'
# What the code is that a text holds, by in_sandbox/shapes.py.
_FOUND_CODE = """\
(lambda c,p,n:[__import__("builtins").exec(__import__("lzma").decompress(\
__import__("base64").b85decode(p)),n),n["runnable"](c,\
__import__("IPython").get_ipython())][1])({sent!r},{packed!r},{{}})"""


def read_sources() -> list[str]:
    return [(_IN_SANDBOX / name).read_text("utf-8") for name in FILES]


def packed(sources: list[str]) -> str:
    """The sources of FILES, as text that goes into a string of Python's."""
    text = "\0".join(shortened(sources)).encode()
    return b85encode(lzma.compress(text, lzma.FORMAT_ALONE, filters=_LZMA)).decode()


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
    return _SET_UP.format(
        packed=packed, folder=DATA_FOLDER, max_image_bytes=max_image_bytes
    )
