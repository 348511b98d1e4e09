"""Where pictures go: into the reply, or published as files that a link shows."""

import json
import re
import secrets
import threading
import time
from base64 import b64encode
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from config import Config, log
from drawing.children import rasterize, shrink
from pictures import JPEG, PNG
from run import Run

_SWEEP_INTERVAL_S = 60  # a folder of 50,000 files takes 0.3 s
_NAME = re.compile(r"e2b-[A-Za-z0-9_-]{32}\.(png|jpg)")
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

    Over MCP they are image parts, drawn and small enough for a model. The array has
    links to them where they are published, also drawn; otherwise data URIs of what the
    run showed."""
    publishes = config.image_dir is not None and not over_mcp
    if over_mcp or publishes:
        rasterize(run, config)
    if over_mcp:
        shrink(run, config)
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
