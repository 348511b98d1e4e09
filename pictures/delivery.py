"""Where pictures go: into the reply, or published as files that a link shows."""

import re
import secrets
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from config import Config, log
from json_body import Blob
from pictures.children import rasterized, shrunk
from pictures.picture import JPEG, PNG, Picture
from run import Run

_SWEEP_INTERVAL_S = 60  # a folder of 50,000 files takes 0.3 s
_NAME = r"e2b-[A-Za-z0-9_-]{32}\.(png|jpg)"


@dataclass(frozen=True)
class Delivery:
    """What of a run's pictures is in a reply."""

    run: Run  # with the pictures that are shown, and notes of those that are not
    parts: list[dict[str, Any]]  # of the array's or of MCP's content
    # Addresses of published pictures, for the text.
    links: list[str] = field(default_factory=list)


def deliver(run: Run, config: Config, *, over_mcp: bool) -> Delivery:
    """Decide what becomes of a run's pictures.

    Over MCP they are image parts, drawn and small enough for a model. The array has
    links to them where they are published, also drawn; otherwise data URIs of what the
    run showed."""
    if over_mcp:
        run = shrunk(rasterized(run), config)
        parts = [_mcp_part(picture) for picture in run.pictures]
        return Delivery(run, parts)
    if config.image_dir:
        run = rasterized(run)
        links = publish(run, config.image_dir, config.image_url)
        parts = [_url_part(link) for link in links]
        return Delivery(run, parts, links)
    parts = [_url_part(_data_uri(picture)) for picture in run.pictures]
    return Delivery(run, parts)


def _mcp_part(picture: Picture) -> dict[str, Any]:
    return {
        "type": "image",
        "data": Blob(picture.data),
        "mimeType": picture.media_type,
    }


def _url_part(url: str | Blob) -> dict[str, Any]:
    return {
        "type": "image_url",
        "image_url": {"url": url},
    }


def _data_uri(picture: Picture) -> Blob:
    prefix = f"data:{picture.media_type};base64,"
    return Blob(picture.data, prefix)


def publish(run: Run, folder: Path, base_url: str) -> list[str]:
    """Write a run's pictures into IMAGE_DIR. Returns their addresses."""
    base_url = base_url.rstrip("/")
    urls = []
    for picture in run.pictures:
        suffix = "png" if picture.media_type == PNG else "jpg"
        token = secrets.token_urlsafe(24)  # nobody guesses 192 bits
        name = f"e2b-{token}.{suffix}"
        try:
            _write(folder, name, picture.data)
        except OSError as exc:
            log.error("a picture could not be published, check IMAGE_DIR: %r", str(exc))
            run.leave_out("picture", "it could not be stored by this service")
        else:
            urls.append(f"{base_url}/{name}")
    return urls


def _write(folder: Path, name: str, data: bytes) -> None:
    """Write a file that nobody sees before it is whole. Raises OSError."""
    part = folder / f"{name}.part"
    try:
        part.write_bytes(data)
        part.chmod(0o644)  # whatever the umask: LibreChat runs as another user
        part.rename(folder / name)
    except OSError:
        with suppress(OSError):  # the first error says more
            part.unlink()
        raise


def start_removing_old(config: Config) -> None:
    """Remove what is past IMAGE_TTL_HOURS now and each minute, in the background."""
    if config.image_dir and config.image_ttl_hours:
        threading.Thread(
            target=_keep_removing_old,
            args=(config.image_dir, config.image_ttl_hours),
            daemon=True,
        ).start()


def _keep_removing_old(folder: Path, ttl_hours: int) -> None:
    while True:
        remove_old(folder, ttl_hours)
        time.sleep(_SWEEP_INTERVAL_S)


def remove_old(folder: Path, ttl_hours: int) -> None:
    oldest = time.time() - ttl_hours * 3600
    for path in folder.glob("e2b-*"):
        name = path.name.removesuffix(".part")
        if not re.fullmatch(_NAME, name):
            continue
        with suppress(OSError):
            if path.lstat().st_mtime < oldest:
                path.unlink()


def published(name: str, config: Config) -> tuple[Path, str] | None:
    """The file and the media type of a picture that this service published."""
    if not config.image_dir or not re.fullmatch(_NAME, name):
        return None
    path = config.image_dir / name
    if path.is_symlink() or not path.is_file():
        return None
    media_type = PNG if path.suffix == ".png" else JPEG
    return path, media_type
