"""Which pictures E2B sends twice. Pure.

Its server shows each picture that is saved with PIL, and matplotlib saves with PIL: so
`plt.savefig("x.png")` shows a figure, and the figure itself is shown when `plt.show()`
or the end of the cell closes it. That one is drawn anew, in another size."""

import re

from pictures.picture import Picture, size_in_pixels

# Code that names a gif, and makes more than one frame.
_ANIMATION = r"(?s)(?=.*\.gif\b).*(?:\bsave_all\b|Animation\()"
# What happens to a figure, in the code's order: `savefig(`, `plt.show(`, `close(`.
_STEPS = (
    r"\b(savefig"
    r"|(?:plt|pyplot)\.show"
    r"|close|clf|cla|clear"
    r")\("
)
# A figure that is saved and then closed or emptied is not shown again.
_SAVED_THEN_CLOSED = "savefig c"
# Code that may save other pictures, or draw figures that pyplot does not know.
_OTHER_PICTURES = (
    r"\bPIL\b"
    r"|\bim(?:save|write)\b"
    r"|\bFigure\("
)
# `<PIL.Image.Image image mode=RGBA size=640x480>`: as matplotlib saves.
_SAVED = "<PIL.Image.Image image mode=RGBA size="
# `<Figure size 640x480 with 1 Axes>`.
_FIGURE = r"<Figure size (\d{1,5})x(\d{1,5}) with \d+ Axes>"
# Sizes match if their aspect ratios differ by less than this, as pixels are rounded.
_TOLERANCE = 0.03


def saves_animation(code: str) -> bool:
    """Whether the code saves one, of which E2B shows the first frame."""
    return re.match(_ANIMATION, code) is not None


def figures_are_shown_twice(code: str) -> bool:
    """Whether each figure that the code saves is certain to be shown again."""
    if re.search(_OTHER_PICTURES, code):
        return False
    steps = re.findall(_STEPS, code)
    # Twice, for a loop: what comes first in it comes after the last, too.
    order = " ".join(steps * 2)
    return "savefig" in steps and _SAVED_THEN_CLOSED not in order


def is_saved_copy(picture: Picture, figure: Picture) -> bool:
    """Whether `picture` has the form of a saved `figure`, whole or without margins."""
    drawn = re.fullmatch(_FIGURE, figure.shown_as)
    if not drawn or not picture.shown_as.startswith(_SAVED):
        return False
    width, height = size_in_pixels(picture)
    whole = (int(drawn[1]), int(drawn[2]))
    without_margins = size_in_pixels(figure)
    for figure_width, figure_height in (whole, without_margins):
        expected = height * figure_width
        difference = abs(width * figure_height - expected)
        if difference < _TOLERANCE * expected:
            return True
    return False
