"""A child process: pictures on stdin, smaller ones on stdout, in the same limits.

Each line is a picture in base64; the arguments are how many bytes one may have, and
until when there is time, on the clock of monotonic(). One that has no more, or cannot
be made smaller, comes back as it is. Decoders are what attackers look at first: one
that breaks ends this process and no other, and whoever started it has what was
finished, and starts another for the rest."""

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
# Tried in this order: PNG for what is drawn, JPEG for photographs.
COLOURS = (256, 64, 16)
QUALITIES = (85, 70, 55, 40)
# The root mean square, of 255, up to which no eye sees that colours are missing:
# plots have 2 to 4 at 256 colours, photographs 5 to 7.
INVISIBLE = 5


def encodings(image: Image.Image) -> Iterator[bytes]:
    """What shows no difference, or is usual for photographs, the best first."""
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


Image.preinit()  # what it needs is loaded while files can be opened
for what, limit in LIMITS.items():
    setrlimit(what, (limit, limit))
max_bytes = int(sys.argv[1])
give_up_at = float(sys.argv[2])
lines = sys.stdin.readlines()
for number, line in enumerate(lines, 1):
    left_s = give_up_at - monotonic()
    # A picture that takes too long leaves half of the time to those after it: the
    # signal ends this process, in the midst of a decoder too.
    may_take_s = left_s if number == len(lines) else left_s / 2
    setitimer(ITIMER_REAL, max(may_take_s, LEAST_S))
    with suppress(OSError, ValueError, SyntaxError):  # a broken picture
        data = b64decode(line)
        if len(data) > max_bytes:
            smaller = shrunk(data, max_bytes)
            line = b64encode(smaller).decode()
    print(line.strip(), flush=True)
