"""Where pictures go: into the reply, or to the publisher."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from config import Config
from json_body import Blob
from pictures.children import rasterized, shrunk
from pictures.picture import Picture
from run import Run

if TYPE_CHECKING:
    from pictures.publishing import Publisher


@dataclass(frozen=True)
class Delivery:
    """A run's pictures, as they go into a reply."""

    run: Run  # with the pictures that are shown, and notes of those that are not
    parts: list[dict[str, Any]]  # of the content, in the array's form or in MCP's
    # Addresses of published pictures, for the text.
    links: list[str] = field(default_factory=list)


def without_pictures(run: Run, why: str) -> Delivery:
    """A reply that has the run's texts only, with a note for the pictures."""
    told = replace(run, pictures=[], left_out=run.left_out.copy())
    for _ in run.pictures:
        told.leave_out("picture", why)
    return Delivery(told, parts=[])


def deliver(
    run: Run, config: Config, publisher: "Publisher | None", *, over_mcp: bool
) -> Delivery:
    """Decide what becomes of a run's pictures.

    Over MCP they are image parts, with SVGs drawn, and small enough for a model. The
    array has links to them if there is a publisher, also with SVGs drawn; otherwise it
    has data URIs of the pictures as the run showed them."""
    if over_mcp:
        run = shrunk(rasterized(run), config)
        parts = [_mcp_part(picture) for picture in run.pictures]
        return Delivery(run, parts)
    if publisher:
        run = rasterized(run)
        links = publisher.publish(run)
        parts = [_url_part(link) for link in links]
        return Delivery(run, parts, links)
    parts = [_url_part(_data_uri(picture)) for picture in run.pictures]
    return Delivery(run, parts)


def _mcp_part(picture: Picture) -> dict[str, Any]:
    return {"type": "image", "data": Blob(picture.data), "mimeType": picture.media_type}


def _url_part(url: str | Blob) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def _data_uri(picture: Picture) -> Blob:
    prefix = f"data:{picture.media_type};base64,"
    return Blob(picture.data, prefix)
