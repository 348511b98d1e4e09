"""Where pictures go: into the reply, or published as files that a link shows."""

from __future__ import annotations

import json
import logging
import math
import os
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

from config import MAX_REPLY_IMAGE_BYTES, Config
from run import JPEG, PNG, SVG, BadPicture, Picture, Run, picture_from

log = logging.getLogger("e2b_proxy")

_NAME = re.compile(r"e2b-[A-Za-z0-9_-]{32}\.(png|jpg)")
_SVG_BUDGET_S = 5.0  # for all pictures of a reply
_SWEEP_EVERY_S = 3600
_renderers = threading.BoundedSemaphore(2)  # each is a process of up to 1 GiB
# Anything but a part of the same document or a picture inside it, in attributes and in CSS.
_REFERS_OUTSIDE = re.compile(
    r"""(?:href|src)\s*=\s*(?!["']\s*(?:\#|data:image/(?:png|jpeg|gif|webp);base64,))
    |url\s*\(\s*(?!["']?\s*\#)|@import|<!ENTITY|<\?xml-stylesheet""",
    re.IGNORECASE | re.VERBOSE,
)
# Stands in a JSON body for bytes in base64; nobody can guess it, and so put it into a text.
BLOB = secrets.token_hex(16)


def rasterize(run: Run, config: Config) -> None:
    """Replace a run's SVGs by PNGs; one that cannot be drawn is left out, with a note."""
    give_up_at = monotonic() + _SVG_BUDGET_S
    room_bytes = MAX_REPLY_IMAGE_BYTES
    pictures, run.pictures = run.pictures, []
    for picture in pictures:
        try:
            drawn = _draw(picture.data, give_up_at) if picture.media_type == SVG else picture
            if len(drawn.data) > min(config.max_image_bytes, room_bytes):
                raise BadPicture(f"{len(drawn.data):,} bytes as PNG, which is over the limit")
        except BadPicture as exc:
            run.leave_out("SVG picture", str(exc))
            continue
        room_bytes -= len(drawn.data)
        run.pictures.append(drawn)
        if drawn is not picture and b"<text" in picture.data:
            run.leave_out("SVG text", "text is drawn from paths only (svg.fonttype: path)")


def _draw(svg: bytes, give_up_at: float) -> Picture:
    if _REFERS_OUTSIDE.search(svg.decode("utf-8", "replace")):
        raise BadPicture("it refers to something outside itself")
    if not _renderers.acquire(timeout=max(0, give_up_at - monotonic())):
        raise BadPicture("too many are being drawn at once")
    command = [sys.executable, "-I", str(Path(__file__).with_name("svg_to_png.py"))]
    limit_s = max(0.1, give_up_at - monotonic())
    try:
        child = subprocess.run(command, input=svg, capture_output=True, timeout=limit_s, env={})
    except subprocess.TimeoutExpired:
        raise BadPicture("drawing it took too long") from None
    finally:
        _renderers.release()
    if child.returncode:
        log.info("an SVG could not be drawn: %r", child.stderr[-200:])
        raise BadPicture("it could not be drawn")
    return picture_from(child.stdout)


class Publisher:
    """Writes pictures as files into IMAGE_DIR, where `IMAGE_URL/<name>` shows them."""

    def __init__(self, config: Config) -> None:
        self._folder = config.image_dir or Path()
        self._url, self._ttl_s = config.image_url, config.image_ttl_hours * 3600
        self._swept_at = -math.inf
        if not os.access(self._folder, os.W_OK | os.X_OK):
            log.warning("IMAGE_DIR cannot be written: pictures will be left out of replies")

    def publish(self, run: Run) -> list[str]:
        """Publish a run's pictures (PNG, JPEG); returns the addresses of those that could be."""
        self._sweep()
        urls = []
        for picture in run.pictures:
            name = (
                f"e2b-{secrets.token_urlsafe(24)}.{'png' if picture.media_type == PNG else 'jpg'}"
            )
            part = self._folder / f"{name}.part"
            try:
                part.write_bytes(picture.data)
                part.chmod(0o644)  # whatever the umask: LibreChat runs as another user
                part.rename(self._folder / name)
                urls.append(f"{self._url}/{name}")
            except OSError as exc:
                log.error("a picture could not be published, check IMAGE_DIR: %r", str(exc))
                run.leave_out("picture", "it could not be stored by this service")
        return urls

    def read(self, name: str) -> tuple[bytes, str] | None:
        """The bytes and the media type of a picture that this service wrote, if it is there."""
        path = self._folder / name
        if not _NAME.fullmatch(name) or path.is_symlink() or not path.is_file():
            return None
        return path.read_bytes(), PNG if path.suffix == ".png" else JPEG

    def _sweep(self) -> None:
        """Remove what is older than the time to live, of this service's own making only."""
        if not self._ttl_s or monotonic() - self._swept_at < _SWEEP_EVERY_S:
            return
        self._swept_at = monotonic()
        for path in self._folder.glob("e2b-*"):
            with suppress(OSError):
                is_own = _NAME.fullmatch(path.name.removesuffix(".part"))
                if is_own and time.time() - path.lstat().st_mtime > self._ttl_s:
                    path.unlink()


def json_pieces(body: object, blobs: Sequence[bytes]) -> list[bytes]:
    """A JSON body in pieces, in which each BLOB became the next of `blobs`, as base64."""
    first, *texts = (text.encode() for text in json.dumps(body, ensure_ascii=False).split(BLOB))
    return [first, *(p for pair in zip(map(b64encode, blobs), texts, strict=True) for p in pair)]
