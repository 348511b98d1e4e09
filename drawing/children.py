"""Has a run's SVGs drawn, and its large pictures made smaller, by child processes."""

import re
import subprocess
import sys
import threading
from base64 import b64decode, b64encode
from pathlib import Path
from time import monotonic

from config import OVERHEAD_S, Config, log
from pictures import SVG, BadPicture, Picture, picture_from
from run import Run

_BUDGET_S = 5.0  # for all pictures of a reply
_children = threading.BoundedSemaphore(2)  # each is a process of up to 1 GiB
_SVG_TEXT = rb"<(\w+:)?text"
# Anything but a part of the same document or a picture inside it, in attributes and
# in CSS.
_REFERS_OUTSIDE = r"""(?ix)
    (?:href|src)\s*=\s*+
        (?!["']\s*+(?:\#|data:image/(?:png|jpeg|gif|webp);base64,))
    | url\s*+\(\s*+(?!["']?\s*+\#)
    | @import
    | <!ENTITY
    | <\?xml-stylesheet"""


def rasterize(run: Run, config: Config) -> None:
    """Replace a run's SVGs by PNGs; one that cannot be drawn is left out."""
    give_up_at = _give_up_at(run)
    pictures = run.pictures
    run.pictures = []
    for picture in pictures:
        try:
            if picture.media_type == SVG:
                picture = _draw(picture.data, run, give_up_at)
            run.keep(picture, config)
        except BadPicture as exc:
            run.leave_out("picture", str(exc))


def shrink(run: Run, config: Config) -> None:
    """Replace a run's PNGs and JPEGs by smaller ones that a model can be shown.

    Each has MCP_IMAGE_BYTES at most, all together twice that. One that cannot be made
    smaller stays as it is: then the user sees it, and the model does not."""
    limit = config.mcp_image_bytes
    total_limit = 2 * limit
    if run.picture_bytes > total_limit:
        limit = min(limit, total_limit // len(run.pictures))
    sizes = [len(picture.data) for picture in run.pictures]
    if not limit or max(sizes, default=0) <= limit:
        return
    command = ["shrink_pictures.py", str(limit)]
    lines = [b64encode(picture.data) for picture in run.pictures]
    try:
        answer = _child(command, b"\n".join(lines), "a picture", _give_up_at(run))
    except BadPicture as exc:
        log.warning("pictures stay as large as they are: %s", exc)
        return
    smaller = map(b64decode, answer.split())
    run.pictures = [picture_from(data) for data in smaller]


def _give_up_at(run: Run) -> float:
    steps = run.durations_s
    overhead_s = sum(steps.values()) - steps.get("run", 0)
    return monotonic() + min(_BUDGET_S, OVERHEAD_S - overhead_s)


def _draw(svg: bytes, run: Run, give_up_at: float) -> Picture:
    if re.search(_SVG_TEXT, svg):
        why = "text is drawn from paths only (svg.fonttype: path)"
        run.leave_out("SVG text", why)
    document = svg.decode("utf-8", "replace")
    if re.search(_REFERS_OUTSIDE, document):
        raise BadPicture("an SVG that refers to something outside itself")
    png = _child(["svg_to_png.py"], svg, "an SVG", give_up_at)
    return picture_from(png)


def _child(command: list[str], data: bytes, what: str, give_up_at: float) -> bytes:
    """What a script of ours, with its arguments, makes of `data`.

    Raises BadPicture, which names `what` was not made."""
    left_s = give_up_at - monotonic()
    if left_s <= 0 or not _children.acquire(timeout=left_s):
        raise BadPicture(f"{what} for which there was no time")
    try:
        child = subprocess.run(
            [sys.executable, "-I", *command],
            cwd=Path(__file__).parent,
            input=data,
            capture_output=True,
            timeout=max(0.1, give_up_at - monotonic()),
            env={},
        )
    except subprocess.TimeoutExpired:
        raise BadPicture(f"{what} that takes too long to draw") from None
    except OSError as exc:  # no descriptors, no processes
        log.error("a picture could not be drawn: %r", str(exc))
        raise BadPicture(f"{what} that could not be drawn at the moment") from None
    finally:
        _children.release()
    if child.returncode:
        raise BadPicture(f"{what} that cannot be drawn")
    return child.stdout
