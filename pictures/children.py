"""Has a run's SVGs drawn, and its large pictures made smaller, by child processes."""

import re
import subprocess
import sys
import threading
from base64 import b64decode, b64encode
from dataclasses import replace
from pathlib import Path
from time import monotonic

from config import OVERHEAD_S, Config, log
from pictures.picture import SVG, BadPicture, Picture, picture_from
from run import Run

_BUDGET_S = 5.0  # for all pictures of a reply
_children = threading.BoundedSemaphore(2)  # each is a process of up to 1 GiB
_SVG_TEXT = rb"<(\w+:)?text"
# A reference, in an attribute or in CSS, to anything but a part of the same document or
# a picture inside it.
_REFERS_OUTSIDE = r"""(?ix)
    (?:href|src)\s*=\s*+
        (?!["']\s*+(?:\#|data:image/(?:png|jpeg|gif|webp);base64,))
    | url\s*+\(\s*+(?!["']?\s*+\#)
    | @import
    | <!ENTITY
    | <\?xml-stylesheet"""


class ChildBroke(BadPicture):
    """A child did not end well; `output` has the bytes that it wrote until then."""

    def __init__(self, why: str, output: bytes = b"") -> None:
        super().__init__(why)
        self.output = output


def rasterized(run: Run) -> Run:
    """The run with PNGs in place of its SVGs; one that cannot be drawn is left out."""
    give_up_at = _give_up_at(run)
    drawn = replace(run, pictures=[], left_out=run.left_out.copy())
    for picture in run.pictures:
        try:
            if picture.media_type == SVG:
                picture = _draw(picture.data, drawn, give_up_at)
            drawn.keep(picture)
        except BadPicture as exc:
            drawn.leave_out("picture", str(exc))
    return drawn


def shrunk(run: Run, config: Config) -> Run:
    """The run with PNGs and JPEGs that are small enough for a model to be shown.

    Each has MCP_IMAGE_BYTES at most, and all together have twice that. A picture that
    cannot be made smaller, or breaks the child, stays as it is: then the user sees it,
    and the model does not."""
    limit = config.mcp_image_bytes
    total_limit = 2 * limit
    if run.picture_bytes > total_limit:
        limit = min(limit, total_limit // len(run.pictures))
    sizes = [len(picture.data) for picture in run.pictures]
    if not limit or max(sizes, default=0) <= limit:
        return run
    give_up_at = _give_up_at(run)
    done: list[Picture] = []
    waiting = run.pictures
    while waiting:
        smaller = _made_smaller(waiting, limit, give_up_at)
        done += smaller
        waiting = waiting[len(smaller) :]
        # The first picture without an answer broke the child: it stays as it is, and
        # the others are tried without it.
        done += waiting[:1]
        waiting = waiting[1:]
    return replace(run, pictures=done)


def _made_smaller(
    pictures: list[Picture], limit_bytes: int, give_up_at: float
) -> list[Picture]:
    """These pictures made smaller: all of them, or only those before the one at which
    the child broke or the time was over."""
    command = ["shrink_pictures.py", str(limit_bytes), str(give_up_at)]
    data = b"\n".join(b64encode(picture.data) for picture in pictures)
    try:
        answer = _child(command, data, "a picture", give_up_at)
    except ChildBroke as exc:
        log.warning("a picture stays as large as it is: %s", exc)
        answer = exc.output
    # The text after the last newline is the start of a line that was not finished.
    lines = answer.split(b"\n")[:-1]
    return [picture_from(b64decode(line)) for line in lines]


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
    """The output of a script of ours, run with its arguments and `data` as its input.

    Raises ChildBroke, whose message begins with `what`, the thing that was not made."""
    left_s = give_up_at - monotonic()
    if left_s <= 0 or not _children.acquire(timeout=left_s):
        raise ChildBroke(f"{what} for which there was no time")
    try:
        child = subprocess.run(
            [sys.executable, "-I", *command],
            cwd=Path(__file__).parent,
            input=data,
            capture_output=True,
            timeout=max(0.1, give_up_at - monotonic()),
            env={},
        )
    except subprocess.TimeoutExpired as exc:
        why = f"{what} that takes too long to draw"
        raise ChildBroke(why, exc.stdout or b"") from None
    except OSError as exc:  # no descriptors, no processes
        log.error("a picture could not be drawn: %r", str(exc))
        raise ChildBroke(f"{what} that could not be drawn at the moment") from None
    finally:
        _children.release()
    if child.returncode:
        raise ChildBroke(f"{what} that cannot be drawn", child.stdout)
    return child.stdout
