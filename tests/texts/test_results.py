"""What of a result is shown as text."""

from __future__ import annotations

from typing import Any

import pytest

from texts.results import is_drawing, is_lost, value_text

STYLER = (
    '<style type="text/css">\n#T_1_row1_col0 {\n  background-color: yellow;\n}\n'
    "</style>\n"
    '<table id="T_1">\n  <thead>\n    <tr>\n      <th class="blank level0" '
    ">&nbsp;</th>\n"
    '      <th id="T_1_level0_col0" >a</th>\n    </tr>\n  </thead>\n  <tbody>\n    '
    "<tr>\n"
    '      <th id="T_1_level0_row0" >0</th>\n      <td id="T_1_row0_col0" >1</td>\n'
    "    </tr>\n  </tbody>\n</table>\n"
)
PLACEHOLDERS = [
    "<Figure size 640x480 with 1 Axes>",
    "<PIL.Image.Image image mode=RGB size=40x40>",
    "<PIL.PngImagePlugin.PngImageFile image mode=RGB size=4x4 at 0x7F62C9D23E00>",
    "<IPython.core.display.HTML object>",
    "<pandas.io.formats.style.Styler at 0x7f62c9d23e00>",
    "<__main__.Shape object at 0x7f62c9d23e00>",
    "<graphviz.graphs.Digraph at 0x7f62c9d23e00>",
]


@pytest.mark.parametrize("text", PLACEHOLDERS)
def test_a_placeholder_is_not_shown_beside_a_picture_or_html(text: str) -> None:
    assert value_text({"text": text}, has_picture=True) == ""
    assert value_text({"text": text, "html": "<script>1</script>"}, False) == ""
    assert value_text({"text": text, "html": "<b>1 &lt; 2</b>"}, False) == "1 < 2"
    assert value_text({"text": text, "latex": "$x$"}, False) == "$x$"


@pytest.mark.parametrize("text", PLACEHOLDERS)
def test_a_placeholder_alone_is_shown(text: str) -> None:
    assert value_text({"text": text}, has_picture=False) == text


@pytest.mark.parametrize(
    "text",
    [
        "[(-3, -4), (4, 3)]",
        "<Figure it out>",
        "<b>",
        "<Point 3 at home>",
        "Figure size 3",
        "<a.b at 0x12> and more",
    ],
)
def test_a_text_that_says_something_is_shown_beside_a_picture(text: str) -> None:
    assert value_text({"text": text, "latex": "$x$"}, has_picture=True) == text


@pytest.mark.parametrize(
    ("html", "text"),
    [
        (STYLER, "\xa0 | a\n0 | 1"),
        (
            "<table><tr><th>a</th><th>b</th></tr><tr><td>1</td>\n"
            "<td>2</td></tr></table>",
            "a | b\n1 | 2",
        ),
        ("<h3>Sum</h3><p>1 &amp; 2</p>", "Sum\n1 & 2"),
        ("a<br>b<br/>c", "a\nb\nc"),
        ("<script src='x'></script><table><tr><td>1</td></tr></table>", ""),
        ("<div><svg></svg>1</div>", ""),
        ("<p><IMG src='x'>1</p>", ""),
        ("<p>" + 100_000 * "x", ""),
        ("<style>p {", ""),
    ],
)
def test_plain_html_is_shown_as_text(html: str, text: str) -> None:
    formats = {"text": "<IPython.core.display.HTML object>", "html": html}
    assert value_text(formats, has_picture=False) == text


@pytest.mark.parametrize("text", ["a\nb", r"a\nb", "b'a'", "<Figure size 1x1>", ""])
def test_a_string_is_shown_as_it_is(text: str) -> None:
    assert value_text({"text/x-python-str": text}, has_picture=False) == text


@pytest.mark.parametrize("text", [r"line1\nline2", r"b'a\nb\t'", r"Folder(C:\new)"])
def test_another_value_with_a_backslash_stays(text: str) -> None:
    assert value_text({"text": text}, has_picture=False) == text


@pytest.mark.parametrize(
    "text",
    [
        "Text(0.5, 1.0, 'x')",
        'Text(0, -1.5, "it\'s")',
        "<Axes: >",
        "<Axes: title={'center': 'x'}, xlabel='a'>",
        "<PolarAxes: >",
        "<Axes3D: zlabel='z'>",
        "<Figure size 120x80 with 0 Axes>",
        "[<matplotlib.lines.Line2D at 0x7f62c9d23e00>]",
        "<matplotlib.legend.Legend at 0x7f62c9d23e00>",
        "<matplotlib.collections.PathCollection object at 0x7f62c9d23e00>",
        "(<Figure size 640x480 with 1 Axes>, <Axes: >)",
        "(array([1., 0.]),\n array([1. , 1.2]),\n <BarContainer object of 10 artists>)",
        "(array([[1.]]), array([0.]), <a list of 2 BarContainer objects>)",
        "{'whiskers': [<matplotlib.lines.Line2D at 0x7f62c9d23e00>],\n 'caps': []}",
        "array([[<Axes: title={'center': 'a'}>]], dtype=object)",
        "<seaborn.axisgrid.FacetGrid at 0x7f62c9d23e00>",
    ],
)
def test_what_drawing_functions_return_is_known(text: str) -> None:
    assert is_drawing(text)


@pytest.mark.parametrize(
    "text",
    [
        "(0.0, 10.0)",
        "Text",
        "Text(0.5, 1.0, 'x').upper()",
        "Text('hello')",
        "Text(name='a', size=3)",
        "The value is <Axes: >",
        "Axes: x and y",
        "<Container of 3>",
        "array([1., 2.])",
        "[1, 2, 3]",
        "<Figures: 3>",
        "'<matplotlib.lines.Line2D at 0x7f62c9d23e00>'",
        "<Shape object at 0x7f62c9d23e00>",
    ],
)
def test_a_value_that_looks_like_it_stays(text: str) -> None:
    assert not is_drawing(text)


@pytest.mark.parametrize(
    ("formats", "is_one"),
    [
        ({"text": "<IPython.core.display.HTML object>", "html": "<script>"}, True),
        ({"text": "<IPython.core.display.Image object>", "image/gif": "R0"}, True),
        ({"text": "<Figure size 1x1 with 1 Axes>", "pdf": "JV"}, True),
        ({"html": "<div>", "application/vnd.plotly.v1+json": {}}, True),
        ({"html": "<div>", "application/vnd.bokehjs_exec.v0+json": ""}, True),
        ({"javascript": "f()", "application/vnd.bokehjs_load.v0+json": ""}, False),
        ({"html": "<script>/* plotly.js */</script>"}, False),
        ({"image/gif": "R0"}, True),
        ({"text": "3"}, False),
        ({}, False),
    ],
)
def test_a_figure_is_told_from_what_loads_a_library(
    formats: dict[str, Any], is_one: bool
) -> None:
    assert is_lost(formats, text="") == is_one
