"""What is drawn is shown once and in order, on real kernels: number, order, sizes.

Each picture has a colour of its own, which tells which one it is and where it came."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import pytest
from builders import SET_UP
from kernels import CONFIG, Kernel, kernel
from PIL import Image

from config import Config
from formatter import format_run
from pictures.picture import size_in_pixels
from run import Run
from sandboxes.keeping import import_cell
from sandboxes.set_up import set_up_lines

pytestmark = pytest.mark.usefixtures("real_kernels")

COLOURS = {
    (255, 0, 0): "r",
    (0, 255, 0): "g",
    (0, 0, 255): "b",
    (255, 255, 0): "y",
    (255, 255, 255): "w",
    (0, 0, 0): "k",
}
# `fig("red")` is a figure of 200 x 150 pixels, on red.
DRAW = """
import io, os
import matplotlib.pyplot as plt
import pandas as pd
import pathlib, threading, time
from matplotlib.figure import Figure
from IPython.display import Image as I
from PIL import Image
def fig(colour, data=(1, 3, 2)):
    figure, axes = plt.subplots(facecolor=colour, figsize=(2, 1.5))
    axes.plot(data)
    return figure
def image(colour):
    return Image.new("RGB", (80, 60), colour)
COLOURS = RED, GREEN, BLUE = ["red", "lime", "blue"]
"""


@pytest.fixture(scope="module")
def drawing() -> Iterator[Kernel]:
    with kernel() as started:
        started.run(DRAW)
        yield started


def colours(run: Run) -> str:
    found = ""
    for picture in run.pictures:
        with Image.open(io.BytesIO(picture.data)) as image:
            pixel = image.convert("RGB").getpixel((1, 1))
        assert isinstance(pixel, tuple)
        found += COLOURS.get(pixel, "?")
    return found


def check(run: Run, wanted: str, outcome: str = "ok") -> None:
    text = format_run(run, CONFIG.max_output_chars)
    assert (colours(run), run.outcome) == (wanted, outcome), text
    assert not run.left_out, text
    assert "<Figure" not in text
    assert "<PIL." not in text


# --- backends -------------------------------------------------------------------------

PLOT = "plt.plot([1, 2, 3])\n"


@pytest.mark.parametrize(
    "before",
    [
        "import matplotlib\nmatplotlib.use('Agg')\nimport matplotlib.pyplot as plt",
        "import matplotlib.pyplot as plt\nplt.switch_backend('svg')",
        "import matplotlib.pyplot as plt\nplt.matplotlib.use('pdf')",
        "import os\nos.environ['MPLBACKEND'] = 'agg'\nimport matplotlib.pyplot as plt",
        "import matplotlib\nmatplotlib.rcParams['backend'] = 'agg'\n"
        "import matplotlib.pyplot as plt",
        "%matplotlib agg\nimport matplotlib.pyplot as plt",
        "%matplotlib qt\nimport matplotlib.pyplot as plt",
        "import matplotlib.pyplot as plt\n%matplotlib notebook",
        "%matplotlib inline\nimport matplotlib.pyplot as plt",
        "import matplotlib\nmatplotlib.use('TkAgg')\nimport matplotlib.pyplot as plt",
        "from pylab import *\nimport matplotlib.pyplot as plt",
    ],
)
@pytest.mark.parametrize("show", ["plt.show()", "plt.gcf().show()"])
def test_a_figure_is_shown_whatever_backend_is_asked_for(
    before: str, show: str
) -> None:
    with kernel() as new:
        run = new.run(f"{before}\n{PLOT}{show}")
        check(run, "w")
        assert not run.stderr.text()


@pytest.mark.parametrize("context", ["plt.rc_context()", "plt.style.context('ggplot')"])
def test_a_first_figure_in_a_context_hides_no_later_one(context: str) -> None:
    code = f"import matplotlib.pyplot as plt\nwith {context}:\n    plt.plot([1])\n"
    with kernel() as new:
        check(new.run(f"{code}    plt.show()\nplt.plot([1, 2])"), "ww")
        check(new.run("plt.plot([3, 1])"), "w")


def test_a_kernel_that_was_made_ready_draws_the_same() -> None:
    code = f"{DRAW}plt.switch_backend('agg')\nfig(RED).savefig('a.pdf'); plt.close()"
    code += "\nfig(GREEN); plt.show(); plt.savefig('b.png')"
    with kernel() as new:
        cold = new.run(code)
    with kernel(f"{SET_UP}{import_cell(Config.warm_imports)}\n") as ready:
        ready.run("pass")
        warm = ready.run(code)
    check(cold, "rg")
    assert warm.pictures == cold.pictures


# --- each figure once, in order -------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("fig(RED); fig(GREEN); plt.show()", "rg"),
        ("fig(RED); plt.show(); fig(GREEN); plt.show()", "rg"),
        ("fig(RED); fig(GREEN);", "rg"),
        ("f = fig(RED); f.savefig('a.png'); plt.show()", "r"),
        ("f = fig(RED); plt.show(); f.savefig('a.png', dpi=150)", "r"),
        ("fig(RED); plt.show(); plt.savefig('a.png')", "r"),
        ("fig(RED); plt.show(); plt.gcf().savefig('a.png')", "r"),
        ("fig(RED).savefig('a.pdf'); plt.close()", "r"),
        ("fig(RED).savefig('a.svg'); plt.close('all'); print('saved')", "r"),
        ("fig(RED).savefig(io.BytesIO()); plt.close()", "r"),
        ("f = fig(RED)\nfor e in ('png', 'svg', 'pdf'): f.savefig('a.' + e)", "r"),
        ("fig(RED).savefig(pathlib.Path('a.png')); plt.close()", "r"),
        (
            "for c in COLOURS:\n    fig(c).savefig(c + '.pdf')\n    plt.close()",
            "rgb",
        ),
        (
            "for c in COLOURS:\n    fig(c).savefig(c + '.png')\n    plt.close()",
            "rgb",
        ),
        ("for c in (RED, GREEN, BLUE):\n    fig(c).savefig(c + '.png')", "rgb"),
        (
            "f, ax = plt.subplots(figsize=(2, 1))\nfor c in (RED, GREEN):\n"
            "    f.set_facecolor(c); ax.plot([1, 2])\n"
            "    f.savefig(c + '.png'); ax.clear()\n"
            "plt.close()",
            "rg",
        ),
        (
            "f = plt.figure()\nfor c in (RED, GREEN, BLUE):\n    f.set_facecolor(c)\n"
            "    plt.plot([1, 2]); plt.savefig(c + '.svg'); plt.clf()",
            "rgb",
        ),
        ("fig(RED).savefig('a.png'); plt.close(); fig(GREEN); plt.show()", "rg"),
        ("a = fig(RED); a.savefig('a.png'); plt.close(); display(fig(GREEN))", "rg"),
        ("image(RED).save('a.png'); fig(GREEN); plt.show(); image(BLUE).save('b.png')",
         "rgb"),
        ("fig(RED).savefig('a.pdf'); plt.close(); image(GREEN).save('b.png')", "rg"),
        ("f = fig(RED)\nf", "r"),
        ("f = fig(RED); plt.close()\nf", "r"),
        ("f = fig(RED); display(f); plt.close()", "r"),
        ("f = fig(RED); f.savefig('a.png'); plt.close()\nf", "r"),
        ("def draw():\n    f = fig(RED); plt.show(); return f\ndraw()", "r"),
        ("def draw():\n    fig(RED).savefig('a.png'); plt.close()\ndraw()", "r"),
        ("f = fig(RED); f.savefig('a.png'); f.set_facecolor(GREEN); plt.show()", "g"),
        ("f = fig(RED); display(f); f.set_facecolor(GREEN)", "rg"),
        ("f = Figure(facecolor='red')\n"
         "f.subplots().plot([1, 2])\nf", "r"),
        ("f = Figure(facecolor='red')\n"
         "f.subplots().plot([1, 2])\nf.savefig('a.png')", "r"),
        ("f = plt.figure(facecolor=RED); f.text(0.5, 0.5, 'a text'); plt.show()", "r"),
        ("def draw():\n    time.sleep(0.2); fig(RED); plt.show()\n"
         "threading.Thread(target=draw).start()", "r"),
        ("ax = pd.Series([1, 2]).plot()\nax.figure.set_facecolor(RED)\n"
         "ax.get_figure().savefig('a.png')", "r"),
        ("plt.subplots(facecolor=RED);", "r"),
    ],
)  # fmt: skip
def test_each_figure_is_shown_once_and_in_order(
    drawing: Kernel, code: str, wanted: str
) -> None:
    check(drawing.run(code), wanted)


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("image(RED).save('a.png')", "r"),
        ("i = image(RED); i.save('a.png'); i.show()\ni", "r"),
        ("image(RED).save('a.png'); Image.open('a.png')", "r"),
        ("image(RED).save('a.jpg')\nI('a.jpg')", "r"),
        ("image(RED).save('a.png')\nI('a.png')", "r"),
        ("f = fig(RED); f.savefig('q.png'); plt.close()\nI('q.png')", "r"),
        ("f = fig(RED); f.savefig('q.png')\ndisplay(I(filename='q.png'))", "r"),
        ("fig(RED).savefig('q.png'); plt.close()\nImage.open('q.png')", "r"),
        ("b = io.BytesIO(); fig(RED).savefig(b, format='png'); plt.close()\n"
         "I(data=b.getvalue())", "r"),
        ("plt.imsave('a.png', [[1.0, 0], [0, 0]], cmap='gray')", "k"),
        ("image(RED).save(io.BytesIO(), 'PNG')", ""),
        ("def display(board): print('board', board)\n"
         "image(RED).save('a.png'); fig(GREEN).savefig('b.png')\ndel display", "rg"),
    ],
)  # fmt: skip
def test_each_picture_is_shown_once_and_in_order(
    drawing: Kernel, code: str, wanted: str
) -> None:
    check(drawing.run(code), wanted)


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("plt.figure(); print(1)", "ok"),
        ("plt.figure(); plt.savefig('a.png'); plt.close()", "ok"),
        ("plt.subplots(2, 2)\n1/0", "error"),
        ("plt.plot([1, 2, 3], [1, 2])", "error"),
        ("f, a = plt.subplots(); f.savefig('a.png'); plt.close()\n1/0", "error"),
        ("for n in range(6):\n    fig(RED).savefig(io.BytesIO()); plt.close()", "ok"),
        ("from IPython.lib.latextools import latex_to_png\n"
         "_ = latex_to_png('x', backend='matplotlib')", "ok"),
    ],
)  # fmt: skip
def test_nothing_is_shown_where_nothing_was_drawn(
    drawing: Kernel, code: str, outcome: str
) -> None:
    check(drawing.run(code), "", outcome)


def test_what_was_drawn_before_an_error_is_shown(drawing: Kernel) -> None:
    check(drawing.run("fig(RED); plt.subplots()\n1/0"), "r", "error")
    check(drawing.run("fig(RED).savefig('a.png'); plt.close()\n1/0"), "r", "error")


def test_a_cell_begins_with_nothing_of_the_one_before(drawing: Kernel) -> None:
    check(drawing.run("kept = fig(RED)"), "r")
    check(drawing.run("print(1)"), "")
    check(drawing.run("kept"), "r")
    check(drawing.run("kept.savefig('again.pdf')"), "r")
    check(drawing.run("image(RED).save('a.png')"), "r")
    check(drawing.run("Image.open('a.png')"), "r")


# --- sizes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "size"),
    [
        ("fig(RED).savefig('a.png', dpi=300); plt.close()", (600, 450)),
        ("fig(RED).savefig('a.png', dpi=300)", (600, 450)),
        ("f = fig(RED)\nfor d in (300, 100): f.savefig('a.png', dpi=d)", (200, 150)),
        ("plt.figure(figsize=(8, 4.944)); plt.plot([1]); plt.savefig('a.png')\n"
         "plt.close()", (800, 494)),
        ("import numpy as np\nf = plt.figure(figsize=(9, 9), facecolor=RED)\n"
         "plt.imshow(np.random.rand(900, 900, 3)); f.savefig('a.png', dpi=300)", None),
        ("Image.new('RGB', (400, 300)).save('a.png')", (400, 300)),
    ],
)  # fmt: skip
def test_what_was_saved_is_shown_as_it_was_saved_unless_it_is_huge(
    drawing: Kernel, code: str, size: tuple[int, int] | None
) -> None:
    run = drawing.run(code)
    sizes = [size_in_pixels(picture) for picture in run.pictures]
    if size:
        assert sizes == [size]
    else:
        assert len(sizes) == 1
        assert sizes[0][0] < 1_000  # as drawn for a screen
    assert not run.left_out


NOISE = "import numpy as np\nnoise = np.random.rand(1200, 1600, 3)\n"


@pytest.mark.parametrize(
    ("code", "is_smaller"),
    [
        ("Image.fromarray((noise * 255).astype('uint8'))", False),  # its JPEG is shown
        ("Image.fromarray((noise * 255).astype('uint8')).save('a.png')", False),
        ("alpha = np.dstack([noise, noise[:, :, 0]])\n"
         "Image.fromarray((alpha * 255).astype('uint8'), 'RGBA')", True),
        ("f = plt.figure(figsize=(20, 15)); plt.imshow(noise); plt.show()", True),
        ("f = plt.figure(figsize=(4, 3)); plt.imshow(noise); plt.show()", False),
    ],
)  # fmt: skip
def test_a_picture_that_is_too_large_is_made_smaller(
    drawing: Kernel, code: str, is_smaller: bool
) -> None:
    run = drawing.run(NOISE + code)
    (picture,) = run.pictures
    assert len(picture.data) <= CONFIG.max_image_bytes
    assert not run.left_out
    line = (
        r"A picture of \d+,\d{3},\d{3} bytes was made smaller: 5,242,880 is the limit\n"
    )
    if is_smaller:
        assert re.fullmatch(line, run.stderr.text()), run.stderr.text()
        # Not much smaller than it has to be.
        assert len(picture.data) > CONFIG.max_image_bytes / 2
    else:
        assert not run.stderr.text()


def test_the_limit_of_a_picture_is_the_one_that_is_set() -> None:
    code = "import os\nfrom PIL import Image\n"
    code += "Image.frombytes('LA', (300, 300), os.urandom(180_000))"
    with kernel(set_up_lines(20_000)) as new:
        run = new.run(code)
    assert len(run.pictures[0].data) <= 20_000
    assert "20,000 is the limit" in run.stderr.text()


def test_after_show_savefig_saves_what_was_shown(drawing: Kernel) -> None:
    code = (
        "fig(RED); plt.show(); plt.savefig('shown.png')\nImage.open('shown.png').size"
    )
    run = drawing.run(code)
    assert run.values.text() == "(200, 150)"
    check(drawing.run("Image.open('shown.png')"), "r")


def test_a_callers_own_way_to_save_stays() -> None:
    code = (
        "from PIL import Image\nplain = Image.Image.save\n"
        "def save(image, *args, **options):\n"
        "    calls.append(1)\n    plain(image, *args, **options)\ncalls = []\n"
        "Image.Image.save = save\nimport matplotlib.pyplot as plt\n"
        "for n in '12': Image.new('RGB', (9, 9), 'red').save('a.png')"
    )
    with kernel() as new:
        run = new.run(code)
        check(run, "r")
        assert new.run("len(calls) >= 2").values.text() == "True"


def test_large_pictures_are_each_shown(drawing: Kernel) -> None:
    run = drawing.run(
        "noise = [os.urandom(2_430_000) for _ in '12']\n"
        "big = [Image.frombytes('RGB', (900, 900), one) for one in noise]\n"
        "big[0].save('0.png'); big[1].save('1.png')\nImage.open('1.png')"
    )
    assert len(run.pictures) == 2
    # Without a picture in it: it is loaded from elsewhere.
    run = drawing.run("display(I(url='https://a.b/1.png'), I(url='https://a.b/2.png'))")
    assert not run.pictures
    assert run.left_out.total() == 2


def test_an_animation_is_one_picture_and_a_note(drawing: Kernel) -> None:
    code = (
        "from matplotlib.animation import FuncAnimation\nf = fig(RED)\n"
        "a = FuncAnimation(f, lambda i: f.axes[0].plot([i, 1]), frames=3)\n"
        "a.save('a.gif', writer='pillow')\nplt.close()"
    )
    run = drawing.run(code)
    assert len(run.pictures) == 1
    assert dict(run.left_out) == {("animation", "a picture of it is shown"): 1}
    run = drawing.run("image(RED).save('a.png', append_images=[])")
    assert not run.left_out


# --- warnings and tracebacks ----------------------------------------------------------


def test_our_functions_are_not_seen_in_warnings_and_errors(drawing: Kernel) -> None:
    # A warning of matplotlib's names the caller's line.
    run = drawing.run(
        "f = fig(RED)\nf.axes[0].legend()\nf.savefig('a.png')\nplt.close()\n"
        "f = fig(RED)\nf.set_layout_engine('constrained')\n"
        "f.add_axes([0, 0, 9, 9])\nf.savefig('a.png')"
    )
    for code in ("fig(RED).savefig('none/a.png')", "image(RED).save('none/a.png')"):
        run = drawing.run(f"x = 1\n{code}")
        assert run.error_name == "FileNotFoundError"
        assert "in_kernel" not in run.traceback
        assert f"----> 2 {code}" in run.traceback


def test_nothing_is_imported_for_it() -> None:
    code = "import sys\n'matplotlib' in sys.modules, 'pandas' in sys.modules"
    with kernel() as new:
        assert new.run(code).values.text() == "(False, False)"


# --- names of libraries ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "what_breaks"),
    [
        ("matplotlib.figure.Figure.savefig", "figures that are closed are not shown"),
        ("matplotlib.figure.Figure.clear", "figures that are cleared are not shown"),
        ("matplotlib.figure.Figure().stale", "a figure is shown as it was saved"),
        ("matplotlib.figure.Figure().get_children()[0]", "blank figures are shown"),
        ("matplotlib.axes._base._AxesBase.clear", "axes cleared in a loop are lost"),
        ("matplotlib.pyplot.switch_backend", "MPLBACKEND and use() show nothing"),
        (
            "matplotlib.pyplot._pylab_helpers.Gcf.get_all_fig_managers()",
            "an open figure is shown twice",
        ),
        ("matplotlib.rcParams['backend']", "MPLBACKEND shows nothing"),
        ("matplotlib.use", "use('Agg') shows nothing"),
        ("matplotlib_inline.backend_inline.flush_figures", "threads' figures are lost"),
        ("matplotlib_inline.backend_inline.show._draw_called", "they are lost as well"),
        ("PIL.Image.Image.save", "pictures are shown twice, by a caller's display()"),
        ("get_ipython().enable_matplotlib", "%matplotlib agg shows nothing"),
        ("get_ipython().display_formatter.format", "nothing is shown once"),
        ("get_ipython().last_execution_succeeded", "empty axes come after an error"),
    ],
)
def test_a_name_that_is_used_is_still_there(
    drawing: Kernel, expression: str, what_breaks: str
) -> None:
    run = drawing.run(
        "import matplotlib, matplotlib.figure, matplotlib.pyplot, PIL.Image\n"
        f"import matplotlib_inline.backend_inline\n{expression};"
    )
    assert run.outcome == "ok", (
        f"in_sandbox/figures.py rests on {expression}; where it is gone, {what_breaks}"
    )
