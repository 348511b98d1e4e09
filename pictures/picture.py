"""Pictures: the value, and recognizing one by its bytes, not by its label. Pure."""

import binascii
import math
import re
from dataclasses import dataclass, field

PNG = "image/png"
JPEG = "image/jpeg"
SVG = "image/svg+xml"
MAX_PIXELS = 50_000_000  # decoded by a viewer they take 200 MB
# The start of an SVG: `<svg `, or what may stand before it: `<?xml version="1.0"?>`.
_SVG_START = rb"\s*(?:<\?xml|<!--|<!DOCTYPE svg|<svg)"
_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR"
_JPEG_START = b"\xff\xd8\xff"
_PNG_END = b"IEND\xaeB`\x82"
_JPEG_END = b"\xff\xd9"
_JPEG_UNIT = 13  # where a JPEG says in which unit its size is: 1 is the inch
_SIZES = {
    PNG: rb"(?s)\A.{12}IHDR(?P<width>.{0,4})(?P<height>.{0,4})",
    # A "start of frame": ff c0, a length of 11 to 20, 8 bits a sample, its size.
    JPEG: (
        rb"(?s)\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf]\0[\x0b\x11\x14]."
        rb"(?P<height>..)(?P<width>..)"
    ),
    SVG: rb"(?!)",  # never matches: an SVG is drawn in any size
}


@dataclass(frozen=True)
class Picture:
    media_type: str
    data: bytes = field(repr=False)


class BadPicture(ValueError):
    """The bytes are no picture that can be shown; the message is the reason."""


def decode(label: str, text: str) -> bytes:
    """The bytes of a picture that E2B sent as png, jpeg or svg. Raises BadPicture."""
    try:
        if label == "svg":
            return text.encode()
        return binascii.a2b_base64("".join(text.split()), strict_mode=True)
    except UnicodeEncodeError:
        reason = "an SVG with a lone surrogate, which is no character"
    except ValueError:
        reason = "not valid base64"
    raise BadPicture(reason)


def picture_from(data: bytes) -> Picture:
    """Recognize a picture by its first bytes. Raises BadPicture."""
    if re.match(_SVG_START, data) and b"<svg" in data:
        return Picture(SVG, data)
    if data.startswith(_PNG_START):
        picture = Picture(PNG, data)
    elif data.startswith(_JPEG_START):
        picture = Picture(JPEG, data)
    else:
        raise BadPicture("neither PNG, JPEG nor SVG")
    width, height = size_in_pixels(picture)
    if not 0 < width * height <= MAX_PIXELS:
        size = f"{width} x {height} pixels"
        raise BadPicture(f"{size} (the limit is {MAX_PIXELS:,} in all)")
    return picture


def size_in_pixels(picture: Picture) -> tuple[int, int]:
    """The width and height that a PNG or a JPEG claims, (0, 0) if it claims none."""
    sizes = []
    pattern = _SIZES[picture.media_type]
    for match in re.finditer(pattern, picture.data):
        width = int.from_bytes(match["width"])
        height = int.from_bytes(match["height"])
        sizes.append((width, height))
    # A viewer may take any of them: the largest counts.
    return max(sizes, key=math.prod, default=(0, 0))


def is_whole(picture: Picture) -> bool:
    """Whether a PNG or a JPEG has its end."""
    return picture.data.endswith((_PNG_END, _JPEG_END))


def may_be_figure(picture: Picture) -> bool:
    """Whether matplotlib may have made it.

    It names itself in the first bytes of its PNGs. Its JPEGs have their size in dots
    per inch; those that programs save have that only if they ask for it."""
    if picture.media_type == JPEG:
        return picture.data[_JPEG_UNIT : _JPEG_UNIT + 1] == b"\1"
    return b"Matplotlib" in picture.data[:1000]
