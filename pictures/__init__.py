"""What a picture is, and what becomes of a run's pictures.

`picture` is the value, `delivery` decides how a run's pictures go into a reply.
`children` starts the child processes that draw an SVG or make a picture smaller, with
little time each: `svg_to_png` and `shrink_pictures`, scripts that limit themselves.
Renderers and decoders crash, hang and take gigabytes: in a child that ends only the
child."""
