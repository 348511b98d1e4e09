"""A child process with limits: pictures on stdin, smaller ones on stdout.

Each line is a picture in base64. The arguments are how many bytes a picture may have,
and the time at which to stop, on the clock of monotonic(). A picture that is no larger,
or cannot be made smaller, comes back as it is. Attackers look at decoders first: a
decoder that breaks ends this process and no other. The parent process has the pictures
that were finished, and starts another child for the rest."""

import io
import sys
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import suppress
from resource import RLIMIT_AS, RLIMIT_CORE, RLIMIT_CPU, RLIMIT_NOFILE, setrlimit
from signal import ITIMER_REAL, setitimer
from time import monotonic

from PIL import Image, ImageChops, ImageStat

LIMITS = {
    RLIMIT_AS: 1024**3,
    RLIMIT_CPU: 5,
    RLIMIT_CORE: 0,
    RLIMIT_NOFILE: 3,  # nothing can be opened any more
}
LEAST_S = 0.01  # to a timer, 0 means never
FORMATS = ("PNG", "JPEG")
BOX = (768, 2000)  # LibreChat shows no more
# Tried in this order: PNG for drawings, JPEG for photographs.
COLOURS = (256, 64, 16)
QUALITIES = (85, 70, 55, 40)
# Up to this difference, as a root mean square of 0 to 255, no eye sees that colours are
# missing. At 256 colours plots have 2 to 4, photographs 5 to 7.
INVISIBLE = 5


def encodings(image: Image.Image) -> Iterator[bytes]:
    """The encodings to try, the best first: PNGs without a visible loss, then JPEGs."""
    for colours in COLOURS:
        reduced = image.quantize(colours, Image.Quantize.FASTOCTREE)
        shown = reduced.convert("RGB")
        difference = ImageChops.difference(image, shown)
        statistics = ImageStat.Stat(difference)
        if max(statistics.rms) < INVISIBLE:
            yield encoded(reduced, "PNG")
    for quality in QUALITIES:
        yield encoded(image, "JPEG", quality)


def encoded(image: Image.Image, file_format: str, quality: int = 0) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, quality=quality)
    return file.getvalue()


def shrunk(data: bytes, max_bytes: int) -> bytes:
    file = io.BytesIO(data)
    picture = Image.open(file, formats=FORMATS)
    drawn = picture.convert("RGBA")
    drawn.thumbnail(BOX, Image.Resampling.LANCZOS)
    image = Image.new("RGB", drawn.size, "white")
    image.paste(drawn, mask=drawn)
    while True:
        for smaller in encodings(image):
            if len(smaller) <= max_bytes:
                return smaller
        width = image.width * 4 // 5
        height = image.height * 4 // 5
        image = image.resize((width, height))


Image.preinit()  # PIL loads its modules while files can still be opened
for what, limit in LIMITS.items():
    setrlimit(what, (limit, limit))
max_bytes = int(sys.argv[1])
give_up_at = float(sys.argv[2])
lines = sys.stdin.readlines()
for number, line in enumerate(lines, 1):
    left_s = give_up_at - monotonic()
    # A picture may take half of the time that is left, so that those after it have the
    # other half. Then a signal ends this process, even in the middle of a decoder.
    may_take_s = left_s if number == len(lines) else left_s / 2
    setitimer(ITIMER_REAL, max(may_take_s, LEAST_S))
    with suppress(OSError, ValueError, SyntaxError):  # a broken picture
        data = b64decode(line)
        if len(data) > max_bytes:
            smaller = shrunk(data, max_bytes)
            line = b64encode(smaller).decode()
    print(line.strip(), flush=True)
