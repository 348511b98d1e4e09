"""The lines that set up a sandbox's new kernel: they bring in_sandbox/kernel.py along.

That and its parts are read as text, and sent without their comments and long names:
what is sent with a first cell is under 7 kB."""

import lzma
from base64 import b85encode
from pathlib import Path

from texts.cell import DATA_FOLDER
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


def read_sources() -> list[str]:
    return [(_IN_SANDBOX / name).read_text("utf-8") for name in FILES]


def packed(sources: list[str]) -> str:
    """The sources of FILES, as text that goes into a string of Python's."""
    text = "\0".join(shortened(sources)).encode()
    return b85encode(lzma.compress(text, lzma.FORMAT_ALONE, filters=_LZMA)).decode()


_PACKED = packed(read_sources())


def set_up_lines(max_image_bytes: int, packed: str = _PACKED) -> str:
    """Lines for the start of a cell that run what is packed, and fail in silence."""
    return _SET_UP.format(
        packed=packed, folder=DATA_FOLDER, max_image_bytes=max_image_bytes
    )
