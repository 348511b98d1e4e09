"""The text of a run's result, and whether it is worth showing. Pure.

E2B's server sends a result in several forms: text, html, png and others."""

import html
import json
import re
from typing import Any

# Stands for a picture or an object: `<Figure size 640x480 with 1 Axes>`,
# `<PIL.Image.Image image mode=RGB size=8x8>`, `<IPython.core.display.HTML object>`,
# `<pandas.io.formats.style.Styler at 0x7f62c9d23e00>`.
_PLACEHOLDER = (
    r"<(?:Figure size|PIL\.|IPython\.)[^\n]*>"
    r"|<[\w.]+(?: object| at 0x\w+| object at 0x\w+)>"
)
# Values that drawing functions return: `Text(0.5, 1.0, 'x')`, `<Axes: xlabel='x'>`,
# `[<matplotlib.lines.Line2D at 0x7f…>]`, `(array([1., 2.]), <BarContainer object of …`.
_DRAWING = r"""(?sx) Text\(-?[\d.]+,[ ]-?[\d.]+,[ ]['"][^\n]*['"]\)
    | <Figure[ ]size[^\n]*>
    | (?=[<(\[{]|array\() .*
      (?: <matplotlib\.[\w.]+[ ](?:object[ ])?at[ ]0x | <\w{0,20}Axes\w{0,20}:
        | <\w{1,20}Container[ ]object[ ]of[ ] | <a[ ]list[ ]of[ ]\d
        | <seaborn\.axisgrid\. )
      .*"""
# A value that is a string, as it is: in_sandbox/kernel.py sends it so.
_STRING = "text/x-python-str"
# HTML that draws, plays or runs something, for which text would be no substitute.
_ACTIVE_HTML = r"(?i)<(?:script|svg|img|canvas|video|audio|iframe|object|embed)\b"
_MAX_HTML_CHARS = 100_000
# How other HTML becomes text, in this order.
_HTML_TO_TEXT = (
    (r"(?is)<(style|head)\b.*?(?:</\1>|\Z)", ""),
    (r"\s+", " "),
    (r"(?i)</t[dh]> ?(?=<t[dh]\b)", " | "),
    (r"(?i) ?<(?:br|/tr|/p|/div|/li|/h\d)\b[^<>]*> ?", "\n"),
    (r"<[^<>]*>", ""),
    (r"\n\s*", "\n"),
)
# Formats that only a browser shows, and files that LibreChat does not show as pictures.
_PAGES = ("html", "javascript")
_FILES = ("pdf", "image/gif", "image/webp")
# `application/vnd.plotly.v1+json`, but not `application/vnd.bokehjs_load.v0+json`.
_DATA = r"vnd\.(?!\S{0,100}load)"


def value_text(formats: dict[str, Any], has_picture: bool) -> str:
    """The text of a result; empty if it only stands for something that is shown."""
    if _STRING in formats:
        return str(formats[_STRING])
    text = str(formats.get("text", ""))
    if text and not re.fullmatch(_PLACEHOLDER, text):
        return text
    if has_picture:
        return ""
    for label in ("markdown", "latex", "json"):
        value = formats.get(label)
        if value is not None:
            return value if isinstance(value, str) else json.dumps(value)
    if any(formats.get(label) for label in _PAGES + _FILES):
        return _text_of_html(str(formats.get("html", "")))
    return text


def is_lost(formats: dict[str, Any], text: str) -> bool:
    """Whether a result without a picture, shown as `text`, is a figure all the same."""
    if any(formats.get(label) for label in _FILES):
        return True
    if text or not any(formats.get(label) for label in _PAGES):
        return False
    # A page without a text or data of its own only loads a library, such as plotly.js.
    labels = " ".join(formats)
    return "text" in formats or re.search(_DATA, labels) is not None


def is_drawing(text: str) -> bool:
    """Whether a value is only what a drawing function returned."""
    return re.fullmatch(_DRAWING, text) is not None


def _text_of_html(source: str) -> str:
    """The text and tables of HTML; empty if it has more than these to show."""
    if len(source) > _MAX_HTML_CHARS or re.search(_ACTIVE_HTML, source):
        return ""
    for pattern, text in _HTML_TO_TEXT:
        source = re.sub(pattern, text, source)
    return html.unescape(source).strip(" \n")
