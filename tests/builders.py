"""What a sandbox answers, event by event, and pictures: built here for all tests."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from typing import TYPE_CHECKING, Any

from local_e2b import LocalE2B
from PIL import Image

from config import Config
from run import Run
from sandboxes.set_up import for_kernel, set_up_lines
from sandboxes.stream import StreamReader
from texts.cell import Cell

if TYPE_CHECKING:
    from sandboxes.sandbox import Sandbox

SET_UP = set_up_lines(Config.max_image_bytes)
Event = dict[str, Any]
TIMESTAMP = "2026-01-01T00:00:00.000000+00:00"  # as E2B writes it
FIGURE = "<Figure size 640x480 with 1 Axes>"
RED_SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30">'
    '<rect width="40" height="30" fill="#ff0000"/></svg>'
)


def is_running(state: dict[str, Any]) -> bool:
    """Whether code runs. Lists may follow, in search of a create without an answer."""
    kinds = [request["kind"] for request in state["requests"]]
    own = [kind for kind in kinds if kind in ("create", "run")]
    return bool(state["alive"]) and own[-1:] == ["run"]


# --- events ---------------------------------------------------------------------------


def stdout(text: str) -> Event:
    return {"type": "stdout", "text": text, "timestamp": TIMESTAMP}


def stderr(text: str) -> Event:
    return {"type": "stderr", "text": text, "timestamp": TIMESTAMP}


def result(text: str | None = None, main: bool = False, **formats: Any) -> Event:
    """A value or a picture: its formats are png, svg, html and so on."""
    shown = formats if text is None else {"text": text, **formats}
    more = {"extra": formats.get("extra", {}), "is_main_result": main}
    return {"type": "result", **shown, **more}


def figure(png: bytes) -> Event:
    return result(FIGURE, png=encoded(png))


def error(name: str, value: str, traceback: str | None = None) -> Event:
    if traceback is None:
        head = "Traceback (most recent call last)\nCell In[1], line 1"
        traceback = f"{head}\n{name}: {value}"
    return {"type": "error", "name": name, "value": value, "traceback": traceback}


END = {"type": "end_of_execution"}


def lines(*events: Event) -> bytes:
    """These events as E2B sends them, one JSON a line."""
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def answer_with(e2b: LocalE2B, *events: Event, **faults: Any) -> None:
    """Every run from now on answers with these events."""
    e2b.set_script({"run": {"events": list(events), **faults}})


# --- pictures -------------------------------------------------------------------------


def picture(
    kind: str = "PNG",
    colour: str | tuple[int, int, int] = "red",
    size: tuple[int, int] = (8, 6),
) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def padded_png(size_bytes: int, colour: str | tuple[int, int, int] = "red") -> bytes:
    """A valid PNG of exactly so many bytes."""
    png = picture(colour=colour)
    body = b"tEXt" + b"x" * (size_bytes - len(png) - 12)
    length = struct.pack(">I", len(body) - 4)
    chunk = length + body + struct.pack(">I", zlib.crc32(body))
    return png[:-12] + chunk + png[-12:]


def png_of_pixels(width: int, height: int) -> bytes:
    """A PNG that claims this size."""
    png = bytearray(picture())
    png[16:24] = struct.pack(">2I", width, height)
    return bytes(png)


def jpeg_of_pixels(width: int, height: int) -> bytes:
    """A JPEG that claims this size."""
    jpeg = bytearray(picture("JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">2H", height, width)
    return bytes(jpeg)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def decoded(data_uri: str, media_type: str = "image/png") -> bytes:
    head, data = data_uri.split(",", 1)
    assert head == f"data:{media_type};base64"
    return base64.b64decode(data, validate=True)


# --- streams ----------------------------------------------------------------------


def empty_run(**settings: Any) -> Run:
    """A run of which nothing has come, with the limits that these settings give."""
    return Run.empty(Config(**settings).run_limits())


def run_cell(sandbox: Sandbox, code: str, limit_s: int = 20, **settings: Any) -> Run:
    """Run code as the pool does, and mend the texts of its run."""
    cell = Cell(code)
    run = Run.empty(Config(**settings).run_limits())
    set_up = "" if sandbox.is_set_up else SET_UP
    sandbox.run(for_kernel(cell, set_up, limit_s), limit_s, run)
    sandbox.is_set_up = True
    cell.mend(run, sandbox.id)
    return run


def facts(reader: StreamReader) -> tuple[object, ...]:
    """All that a stream came to, in a form that can be compared."""
    run = reader.run
    outputs = [
        (p.head, p.tail, p.missing) for p in (run.stdout, run.stderr, run.values)
    ]
    error = (run.error_name, run.error_value, run.traceback)
    return (*outputs, error, run.pictures, run.left_out, reader.ended, reader.broken)
