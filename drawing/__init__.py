"""What child processes make of a run's pictures: an SVG drawn, a large one smaller.

`children` starts them, with little time each; `svg_to_png` and `shrink_pictures` are
scripts that limit themselves. Renderers and decoders crash, hang and take gigabytes:
there that ends a child."""
