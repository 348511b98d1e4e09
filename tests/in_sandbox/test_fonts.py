"""Characters that a figure's fonts lack come from others, on real kernels.

The fonts are made here: each glyph is a black square, which a picture shows."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from fonts import make_font
from kernels import Kernel, kernel
from PIL import Image

from run import Run

pytestmark = pytest.mark.usefixtures("real_kernels")

EAST_ASIAN = "图表日本語한국"
# `draw("图")` draws text and nothing else, 100 points high; `save` writes no file.
DRAW = """
import io
import matplotlib.pyplot as plt
from matplotlib import font_manager, rcParams
def draw(text, **options):
    plt.figure(figsize=(6, 2))
    plt.axis("off")
    plt.text(0, 0, text, fontsize=100, **options)
def save(form):
    plt.savefig(io.BytesIO(), format=form)
"""


@pytest.fixture(scope="module")
def font(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the name of E2B's own for Chinese, Japanese and Korean."""
    path = tmp_path_factory.mktemp("fonts") / "east-asian.ttf"
    make_font(path, "Noto Sans CJK JP", EAST_ASIAN)
    return path


@pytest.fixture(scope="module")
def drawing(font: Path) -> Iterator[Kernel]:
    with kernel() as started:
        started.run(f"{DRAW}\nfont_manager.fontManager.addfont({str(font)!r})")
        yield started


def ink(run: Run) -> float:
    """Which part of the only picture is black."""
    (picture,) = run.pictures
    with Image.open(io.BytesIO(picture.data)) as image:
        histogram = image.convert("L").histogram()
    return sum(histogram[:64]) / sum(histogram)


FAMILIES = (
    "SimHei",
    "Microsoft YaHei",
    "PingFang SC",
    "Arial Unicode MS",
    "monospace",
    "serif",
    "DejaVu Sans",
    "sans-serif",
)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "asked",
    [
        "rcParams['font.family'] = {!r}; draw('图表')",
        "rcParams['font.sans-serif'] = [{!r}]; draw('图表')",
        "draw('图表', family={!r})",
        "draw('图表', fontproperties=font_manager.FontProperties(family=[{!r}]))",
        "rcParams['font.family'] = {!r}; plt.rcdefaults(); draw('图表')",
    ],
)
def test_what_a_font_lacks_comes_from_another(
    drawing: Kernel, family: str, asked: str
) -> None:
    run = drawing.run(
        f"with plt.rc_context():\n    {asked.format(family)}\n    plt.show()"
    )
    assert ink(run) > 0.25  # boxes have a tenth of that
    assert not run.stderr.text()


def test_the_text_of_a_mixed_title_is_whole(drawing: Kernel) -> None:
    assert ink(drawing.run("draw('图 abc')")) > 2 * ink(drawing.run("draw('  abc')"))


def test_latin_text_is_drawn_as_without_it() -> None:
    """Byte for byte, whatever is named, and whatever else there is."""
    code = (
        "import matplotlib.pyplot as plt\n"
        "for family in ('sans-serif', 'serif', 'monospace'):\n"
        "    with plt.rc_context({'font.family': family}):\n"
        "        plt.figure(); plt.plot([1, 2]); plt.title('Größe, naïve: ± β → ∞')\n"
        "        plt.xlabel('$x^2$'); plt.show()"
    )
    with kernel() as new, kernel("") as plain:
        pictures = new.run(code).pictures
        assert len(pictures) == 3
        assert pictures == plain.run(code).pictures


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("draw('a🎉b🚀'); draw('🚀')", "No font here has 🎉🚀\n"),
        ("draw('图🎉')", "No font here has 🎉\n"),
        ("draw('图')", ""),
        ("plt.plot([1], label='\u0b95'); plt.legend()", "No font here has \u0b95\n"),
        ("draw('abc', family='Comic Sans MS')", ""),
        ("plt.xkcd(); draw('abc'); plt.rcdefaults()", ""),
        ("draw('abc'); save('pdf')", ""),
        ("draw('图'); save('pdf')", ""),
        ("draw('a🎉'); save('pdf')", "No font here has 🎉\n"),
        ("draw('a🎉'); save('pdf'); plt.close()\ndraw('🎉')", "No font here has 🎉\n"),
        ("draw('abc'); save('eps'); save('svg')", ""),
    ],
)
def test_what_no_font_has_is_one_line(drawing: Kernel, code: str, line: str) -> None:
    run = drawing.run(f"{code}\nplt.show()")
    assert run.stderr.text() == line
    assert run.pictures
    assert not drawing.run("draw('a')").stderr.text()


@pytest.mark.parametrize(
    ("expression", "what_breaks"),
    [
        ("font_manager.FontManager._find_fonts_by_props", "Chinese text is boxes"),
        ("font_manager.FontProperties._from_any('a')", "Chinese text is boxes"),
        ("font_manager.fontManager.ttflist[0].name", "Chinese text is boxes"),
        (
            "__import__('matplotlib')._text_helpers.warn_on_missing_glyph",
            "a missing character is many warnings",
        ),
        (
            "__import__('matplotlib.backends.backend_pdf').backends.backend_pdf"
            ".PdfFile.writeFonts",
            "a PDF is said to lack characters that are in no text",
        ),
        ("font_manager._log.name == 'matplotlib.font_manager' or 1/0", "noise"),
    ],
)
def test_a_name_that_is_used_is_still_there(
    drawing: Kernel, expression: str, what_breaks: str
) -> None:
    assert drawing.run(f"{expression};").outcome == "ok", (
        f"in_sandbox/fonts.py rests on {expression}; where it is gone: {what_breaks}"
    )


def test_a_kernel_has_the_settings_of_e2bs_template(font: Path) -> None:
    with kernel() as new:
        new.run(f"{DRAW}\nfont_manager.fontManager.addfont({str(font)!r})")
        families = new.run("rcParams['font.family']").values.text()
        assert families == "['sans-serif', 'Noto Sans CJK JP']"
        assert ink(new.run("draw('图表')")) > 0.25
