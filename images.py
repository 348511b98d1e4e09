"""Where pictures go: into the reply, or published as files that a link shows."""

import json
import re
import secrets
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic

from config import OVERHEAD_S, Config, log
from pictures import JPEG, PNG, SVG, BadPicture, Picture, picture_from
from run import Run

_NAME = re.compile(r"e2b-[A-Za-z0-9_-]{32}\.(png|jpg)")
_SVG_BUDGET_S = 5.0  # for all pictures of a reply
_renderers = threading.BoundedSemaphore(2)  # each is a process of up to 1 GiB
# Anything but a part of the same document or a picture inside it, in attributes and in CSS.
_REFERS_OUTSIDE = re.compile(
    r"""(?:href|src)\s*=\s*+(?!["']\s*+(?:\#|data:image/(?:png|jpeg|gif|webp);base64,))
    |url\s*+\(\s*+(?!["']?\s*+\#)|@import|<!ENTITY|<\?xml-stylesheet""",
    re.IGNORECASE | re.VERBOSE,
)
# Stands in a JSON body for bytes in base64; nobody can guess it, and so put it into a text.
BLOB = secrets.token_hex(16)


def rasterize(run: Run, config: Config) -> None:
    """Replace a run's SVGs by PNGs; one that cannot be drawn is left out, with a note."""
    overhead_s = sum(s for step, s in run.durations_s.items() if step != "run")
    give_up_at = monotonic() + min(_SVG_BUDGET_S, OVERHEAD_S - overhead_s)
    pictures, run.pictures = run.pictures, []
    for picture in pictures:
        is_svg = picture.media_type == SVG
        try:
            run.keep(_draw(picture.data, give_up_at) if is_svg else picture, config)
        except BadPicture as exc:
            run.leave_out("picture", str(exc))
        if is_svg and re.search(rb"<(\w+:)?text", picture.data):
            run.leave_out(
                "SVG text", "text is drawn from paths only (svg.fonttype: path)"
            )


def _draw(svg: bytes, give_up_at: float) -> Picture:
    if _REFERS_OUTSIDE.search(svg.decode("utf-8", "replace")):
        raise BadPicture("an SVG that refers to something outside itself")
    left_s = give_up_at - monotonic()
    if left_s <= 0 or not _renderers.acquire(timeout=left_s):
        raise BadPicture("an SVG for which there was no time")
    command = [sys.executable, "-I", str(Path(__file__).with_name("svg_to_png.py"))]
    left_s = max(0.1, give_up_at - monotonic())
    try:
        child = subprocess.run(
            command, input=svg, capture_output=True, timeout=left_s, env={}
        )
    except subprocess.TimeoutExpired:
        raise BadPicture("an SVG that takes too long to draw") from None
    finally:
        _renderers.release()
    if child.returncode:
        raise BadPicture("an SVG that cannot be drawn")
    return picture_from(child.stdout)


def publish(run: Run, config: Config) -> list[str]:
    """Write a run's pictures into IMAGE_DIR, whose old ones go; returns the addresses."""
    folder, urls = config.image_dir or Path(), []
    oldest = time.time() - config.image_ttl_hours * 3600
    for path in folder.glob("e2b-*") if config.image_ttl_hours else ():
        with suppress(OSError):
            if (
                _NAME.fullmatch(path.name.removesuffix(".part"))
                and path.lstat().st_mtime < oldest
            ):
                path.unlink()
    for picture in run.pictures:
        name = f"e2b-{secrets.token_urlsafe(24)}.{'png' if picture.media_type == PNG else 'jpg'}"
        part = folder / f"{name}.part"
        try:
            part.write_bytes(picture.data)
            part.chmod(0o644)  # whatever the umask: LibreChat runs as another user
            part.rename(folder / name)
            urls.append(f"{config.image_url.rstrip('/')}/{name}")
        except OSError as exc:
            with suppress(OSError):
                part.unlink()
            log.error("a picture could not be published, check IMAGE_DIR: %r", str(exc))
            run.leave_out("picture", "it could not be stored by this service")
    return urls


def published(name: str, config: Config) -> tuple[bytes, str] | None:
    """The bytes and the media type of a picture that this service wrote and serves."""
    path = (config.image_dir or Path()) / name
    is_own = _NAME.fullmatch(name) and path.is_file() and not path.is_symlink()
    if not is_own or not config.image_url.startswith("http"):
        return None
    return path.read_bytes(), PNG if path.suffix == ".png" else JPEG


def json_pieces(body: object, blobs: Sequence[bytes]) -> list[bytes]:
    """A JSON body in pieces, in which each BLOB became the next of `blobs`, as base64."""
    first, *texts = (text.encode() for text in json.dumps(body).split(BLOB))
    return [
        first,
        *(p for pair in zip(map(b64encode, blobs), texts, strict=True) for p in pair),
    ]
