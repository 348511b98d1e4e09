"""Where pictures go: into the reply, or published as files that a link shows."""

import json
import re
import secrets
import subprocess
import sys
import threading
import time
from base64 import b64encode
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from config import OVERHEAD_S, Config, log
from pictures import JPEG, PNG, SVG, BadPicture, Picture, picture_from
from run import Run

_NAME = re.compile(r"e2b-[A-Za-z0-9_-]{32}\.(png|jpg)")
_SVG_TO_PNG = Path(__file__).with_name("svg_to_png.py")
_SWEEP_INTERVAL_S = 60  # a folder of 50,000 files takes 0.3 s
_SVG_BUDGET_S = 5.0  # for all pictures of a reply
_renderers = threading.BoundedSemaphore(2)  # each is a process of up to 1 GiB
_SVG_TEXT = re.compile(rb"<(\w+:)?text")
# Anything but a part of the same document or a picture inside it, in attributes and
# in CSS.
_REFERS_OUTSIDE = re.compile(
    r"""(?:href|src)\s*=\s*+(?!["']\s*+(?:\#|data:image/(?:png|jpeg|gif|webp);base64,))
    |url\s*+\(\s*+(?!["']?\s*+\#)|@import|<!ENTITY|<\?xml-stylesheet""",
    re.IGNORECASE | re.VERBOSE,
)
# Stands in a body for a blob; nobody can guess it, and so put it into a text.
_PLACEHOLDER = secrets.token_hex(16)


@dataclass(frozen=True)
class Blob:
    """Bytes in a body for `json_pieces`: there they are a text, as base64."""

    data: bytes = field(repr=False)
    prefix: str = ""


@dataclass(frozen=True)
class Delivery:
    """What of a run's pictures is in a reply."""

    parts: list[dict[str, Any]]  # of the array's or of MCP's content
    links: list[str]  # addresses of published pictures, for the text


def deliver(run: Run, config: Config, *, over_mcp: bool) -> Delivery:
    """Decide what becomes of a run's pictures.

    Over MCP they are image parts, and SVGs are drawn. The array has links to them where
    they are published, also drawn; otherwise data URIs of what the run showed."""
    publishes = config.image_dir is not None and not over_mcp
    if over_mcp or publishes:
        rasterize(run, config)
    if publishes:
        links = publish(run, config)
        return Delivery([_url_part(link) for link in links], links)
    parts = []
    for picture in run.pictures:
        media_type = picture.media_type
        if over_mcp:
            data = Blob(picture.data)
            parts.append({"type": "image", "data": data, "mimeType": media_type})
        else:
            parts.append(_url_part(Blob(picture.data, f"data:{media_type};base64,")))
    return Delivery(parts, [])


def _url_part(url: str | Blob) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def rasterize(run: Run, config: Config) -> None:
    """Replace a run's SVGs by PNGs; one that cannot be drawn is left out."""
    overhead_s = sum(s for step, s in run.durations_s.items() if step != "run")
    give_up_at = monotonic() + min(_SVG_BUDGET_S, OVERHEAD_S - overhead_s)
    pictures = run.pictures
    run.pictures = []
    for picture in pictures:
        try:
            if picture.media_type == SVG:
                picture = _draw(picture.data, run, give_up_at)
            run.keep(picture, config)
        except BadPicture as exc:
            run.leave_out("picture", str(exc))


def _draw(svg: bytes, run: Run, give_up_at: float) -> Picture:
    if _SVG_TEXT.search(svg):
        why = "text is drawn from paths only (svg.fonttype: path)"
        run.leave_out("SVG text", why)
    if _REFERS_OUTSIDE.search(svg.decode("utf-8", "replace")):
        raise BadPicture("an SVG that refers to something outside itself")
    left_s = give_up_at - monotonic()
    if left_s <= 0 or not _renderers.acquire(timeout=left_s):
        raise BadPicture("an SVG for which there was no time")
    try:
        child = subprocess.run(
            [sys.executable, "-I", str(_SVG_TO_PNG)],
            input=svg,
            capture_output=True,
            timeout=max(0.1, give_up_at - monotonic()),
            env={},
        )
    except subprocess.TimeoutExpired:
        raise BadPicture("an SVG that takes too long to draw") from None
    except OSError as exc:  # no descriptors, no processes
        log.error("a picture could not be drawn: %r", str(exc))
        raise BadPicture("an SVG that could not be drawn at the moment") from None
    finally:
        _renderers.release()
    if child.returncode:
        raise BadPicture("an SVG that cannot be drawn")
    return picture_from(child.stdout)


def publish(run: Run, config: Config) -> list[str]:
    """Write a run's pictures into IMAGE_DIR. Returns their addresses."""
    folder = config.image_dir or Path()
    urls = []
    for picture in run.pictures:
        suffix = "png" if picture.media_type == PNG else "jpg"
        name = f"e2b-{secrets.token_urlsafe(24)}.{suffix}"
        try:
            _write(folder, name, picture.data)
        except OSError as exc:
            log.error("a picture could not be published, check IMAGE_DIR: %r", str(exc))
            run.leave_out("picture", "it could not be stored by this service")
        else:
            urls.append(f"{config.image_url.rstrip('/')}/{name}")
    return urls


def _write(folder: Path, name: str, data: bytes) -> None:
    """Write a file that nobody sees before it is whole. Raises OSError."""
    part = folder / f"{name}.part"
    try:
        part.write_bytes(data)
        part.chmod(0o644)  # whatever the umask: LibreChat runs as another user
        part.rename(folder / name)
    except OSError:
        with suppress(OSError):
            part.unlink()
        raise


def start_removing_old(config: Config) -> None:
    """Remove what is past IMAGE_TTL_HOURS now and each minute, in the background."""

    def keep_removing() -> None:
        while True:
            remove_old(config)
            time.sleep(_SWEEP_INTERVAL_S)

    if config.image_ttl_hours:
        threading.Thread(target=keep_removing, daemon=True).start()


def remove_old(config: Config) -> None:
    oldest = time.time() - config.image_ttl_hours * 3600
    folder = config.image_dir or Path()
    for path in folder.glob("e2b-*"):
        if not _NAME.fullmatch(path.name.removesuffix(".part")):
            continue
        with suppress(OSError):
            if path.lstat().st_mtime < oldest:
                path.unlink()


def published(name: str, config: Config) -> tuple[bytes, str] | None:
    """The bytes and the media type of a picture that this service published."""
    if not config.image_dir or not _NAME.fullmatch(name):
        return None
    path = config.image_dir / name
    if path.is_symlink() or not path.is_file():
        return None
    return path.read_bytes(), PNG if path.suffix == ".png" else JPEG


def json_pieces(body: object) -> list[bytes]:
    """A JSON body in pieces. JSON's own pass over megabytes of base64 is spared."""
    blobs: list[bytes] = []

    def placeholder(blob: Blob) -> str:
        blobs.append(blob.data)
        return blob.prefix + _PLACEHOLDER

    first, *others = json.dumps(body, default=placeholder).split(_PLACEHOLDER)
    pieces = [first.encode()]
    for blob, text in zip(blobs, others, strict=True):
        pieces.append(b64encode(blob))
        pieces.append(text.encode())
    return pieces
