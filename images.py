"""Where pictures go: into the reply, or published as files that a link shows."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import monotonic

from config import MAX_REPLY_IMAGE_BYTES, Config
from run import JPEG, PNG, SVG, BadPicture, Picture, Run, picture_from

log = logging.getLogger("e2b_proxy")

_NAME = re.compile(r"e2b-[A-Za-z0-9_-]{32}\.(png|jpg)")
_SUFFIXES = {PNG: "png", JPEG: "jpg"}
_MEDIA_TYPES = {suffix: media_type for media_type, suffix in _SUFFIXES.items()}
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
    try:
        child = subprocess.run(
            [sys.executable, "-I", str(Path(__file__).with_name("svg_to_png.py"))],
            input=svg,
            capture_output=True,
            timeout=max(0.1, give_up_at - monotonic()),
            env={},
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise BadPicture("drawing it took too long") from None
    except (subprocess.CalledProcessError, OSError) as exc:
        log.info("an SVG could not be drawn: %r", str(exc)[:200])
        raise BadPicture("it could not be drawn") from None
    finally:
        _renderers.release()
    return picture_from(child.stdout)


class Publisher:
    """Writes pictures as files into IMAGE_DIR, where `IMAGE_URL/<name>` shows them."""

    def __init__(self, config: Config) -> None:
        self._folder = config.image_dir or Path()
        self._url, self._ttl_s = config.image_url, config.image_ttl_hours * 3600
        self._swept_at = 0.0
        if not os.access(self._folder, os.W_OK | os.X_OK):
            log.warning("IMAGE_DIR cannot be written: pictures will be left out of replies")

    def publish(self, run: Run) -> list[str]:
        """Publish a run's pictures (PNG, JPEG); returns the addresses of those that could be."""
        self._sweep()
        urls = []
        for picture in run.pictures:
            name = f"e2b-{secrets.token_urlsafe(24)}.{_SUFFIXES[picture.media_type]}"
            try:
                self._write(name, picture.data)
                urls.append(f"{self._url}/{name}")
            except OSError as exc:
                log.error("a picture could not be published, check IMAGE_DIR: %r", str(exc))
                run.leave_out("picture", "it could not be stored by this service")
        return urls

    def _write(self, name: str, data: bytes) -> None:
        part = self._folder / f"{name}.part"
        try:
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb") as file:
                os.fchmod(file.fileno(), 0o644)  # whatever the umask: another user serves it
                file.write(data)
            part.rename(self._folder / name)
        except OSError:
            part.unlink(missing_ok=True)
            raise

    def read(self, name: str) -> tuple[bytes, str] | None:
        """The bytes and the media type of a picture that this service wrote, if it is there."""
        match = _NAME.fullmatch(name)
        if not match:
            return None
        try:
            with open(os.open(self._folder / name, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
                return file.read(), _MEDIA_TYPES[match[1]]
        except OSError:
            return None

    def _sweep(self) -> None:
        """Remove what is older than the time to live, of this service's own making only."""
        if not self._ttl_s or monotonic() - self._swept_at < _SWEEP_EVERY_S:
            return
        self._swept_at = monotonic()
        try:
            for entry in os.scandir(self._folder):
                if _NAME.fullmatch(entry.name.removesuffix(".part")):
                    age_s = time.time() - entry.stat(follow_symlinks=False).st_mtime
                    if age_s > self._ttl_s:
                        os.unlink(entry.path)
        except OSError as exc:
            log.warning("old pictures could not be removed: %r", str(exc))


def json_pieces(body: object, blobs: Sequence[bytes]) -> tuple[int, Iterator[bytes]]:
    """A JSON body in which each BLOB stands for the next of `blobs`, as base64.

    Returns its length in bytes, and its pieces: a large picture is encoded when it is sent.
    """
    texts = [text.encode() for text in json.dumps(body, ensure_ascii=False).split(BLOB)]
    length = sum(map(len, texts)) + sum((len(data) + 2) // 3 * 4 for data in blobs)

    def pieces() -> Iterator[bytes]:
        yield texts[0]
        for data, text in zip(blobs, texts[1:], strict=True):
            yield b64encode(data)
            yield text

    return length, pieces()
