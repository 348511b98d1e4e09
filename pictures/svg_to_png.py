"""A child process: SVG on stdin, PNG on stdout, in limits on memory, time and files.

The renderer aborts on huge sizes, crashes on deep nesting, takes minutes for some
filters and reads local files that an SVG names (measured with resvg_py 0.5). In here
that ends this process and no other."""

import sys
from resource import RLIMIT_AS, RLIMIT_CORE, RLIMIT_CPU, RLIMIT_NOFILE, setrlimit

import resvg_py

# NOFILE: nothing can be opened any more, neither a file that the SVG names, nor a font.
LIMITS = {RLIMIT_AS: 1024**3, RLIMIT_CPU: 5, RLIMIT_CORE: 0, RLIMIT_NOFILE: 3}
svg = sys.stdin.buffer.read().decode()
for what, limit in LIMITS.items():
    setrlimit(what, (limit, limit))
# Without a dpi, sizes in pt (matplotlib's) are refused as invalid.
png = resvg_py.svg_to_bytes(svg, dpi=96, background="white", skip_system_fonts=True)
sys.stdout.buffer.write(png[: 12 * 1024**2])  # more is refused anyway
