"""A figure that is saved and shown is one figure; another picture is another one."""

from __future__ import annotations

import pytest
from builders import RED_SVG, Event, encoded, lines, picture, result

from config import Config
from sandboxes.stream import StreamReader
from texts.cell import Cell
from texts.saved_figures import figures_are_shown_twice, saves_animation


@pytest.mark.parametrize(
    "code",
    [
        "plt.savefig('x.png')",
        "plt.savefig('x.png')\nplt.show()",
        "fig.savefig('x.png', dpi=300, bbox_inches='tight')\nplt.show()\nplt.close()",
        "for n in a:\n plt.savefig(n)\n plt.show()\n plt.close(fig)",
        "plt.savefig('x.png')\nplt.savefig('x.pdf')\npyplot.show()\nplt.clf()",
    ],
)
def test_saved_figures_that_stay_open_are_shown_twice(code: str) -> None:
    assert figures_are_shown_twice(code)


@pytest.mark.parametrize(
    "code",
    [
        "plt.show()",
        "plt.savefig('x.png')\nplt.close()",
        "plt.savefig('a.png')\nplt.close()\nplt.plot(x)\nplt.show()",
        "for n in a:\n plt.close('all')\n plt.plot(n)\n plt.savefig(n)",
        "for n in a:\n ax.clear()\n ax.plot(n)\n fig.savefig(n)",
        "plt.savefig('a.png')\nplt.show()\nfig.savefig('b.png')\nplt.close(fig)",
        "plt.savefig('a.png')\nplt.clf()\nplt.savefig('b.png')",
        "from PIL import Image\nimage.save('a.png')\nplt.savefig('b.png')",
        "plt.imsave('a.png', x)\nplt.savefig('b.png')\nplt.show()",
        "fig = Figure()\nfig.savefig('a.png')\nplt.show()",
        "image.show()\nfig.savefig('a.png')\nfig.show()\nplt.close()",
        "image.save('a.png')",
        "savefig = 3",
    ],
)
def test_where_a_picture_may_be_another_one_none_is_dropped(code: str) -> None:
    assert not figures_are_shown_twice(code)


@pytest.mark.parametrize(
    ("code", "is_one"),
    [
        ("frames[0].save('a.gif', save_all=True, append_images=frames[1:])", True),
        ("path = 'a.gif'\nFuncAnimation(f, g).save(path, writer='pillow')", True),
        ("Image.open('a.gif').save('a.png')", False),
        ("pages[0].save('a.pdf', save_all=True)", False),
        ("plt.savefig('a.png')", False),
    ],
)
def test_code_that_saves_an_animation_is_known(code: str, is_one: bool) -> None:
    assert saves_animation(code) == is_one


# --- as E2B sends them: the sizes are recorded ------------------------------------

OPEN = "plt.savefig('x.png')"
CLOSED = "plt.savefig('x.png')\nplt.close()\nplt.plot([2, 1])\nplt.show()"
made = 0


def png(width: int, height: int) -> str:
    """Another picture each time."""
    global made
    made += 1
    return encoded(picture(colour=(made % 256, made // 256, 0), size=(width, height)))


def saved(width: int = 120, height: int = 80, mode: str = "RGBA") -> Event:
    text = f"<PIL.Image.Image image mode={mode} size={width}x{height}>"
    return result(text, png=png(width, height))


def inline(width: int, height: int, nominal: str = "120x80") -> Event:
    return result(f"<Figure size {nominal} with 1 Axes>", png=png(width, height))


def kept(code: str, events: list[Event]) -> list[int]:
    """Which of the events' pictures a reply has."""
    run = Cell(code).new_run(Config().run_limits())
    StreamReader(run).feed(lines(*events))
    assert not run.left_out
    assert not run.values.head
    sent = [event.get("png") or event["svg"] for event in events]
    data = [
        one.data.decode() if one.media_type.endswith("xml") else encoded(one.data)
        for one in run.pictures
    ]
    return [sent.index(one) for one in data]


SVG = result("<Figure size 120x80 with 1 Axes>", svg=RED_SVG)
PIL_IMAGE = saved(mode="RGB") | {"jpeg": encoded(picture("JPEG", size=(120, 80)))}


@pytest.mark.parametrize(
    ("events", "left"),
    [
        pytest.param([saved(), inline(113, 86)], [1], id="savefig"),
        pytest.param(
            [saved(), inline(117, 86), saved(), inline(117, 86)], [1, 3], id="in a loop"
        ),
        pytest.param([saved(121, 78), inline(121, 78)], [1], id="tight"),
        pytest.param([saved(360, 240), inline(113, 86)], [1], id="dpi=120"),
        pytest.param([saved(364, 233), inline(121, 78)], [1], id="tight and dpi=120"),
        pytest.param([saved(), SVG], [1], id="inline as SVG"),
        pytest.param(
            [saved() for _ in range(6)] + [inline(113, 86) for _ in range(6)],
            [6, 7, 8, 9, 10, 11],
            id="six, shown at the end",
        ),
        pytest.param(
            [
                *(saved(), saved(200, 200)),
                *(inline(113, 86), inline(180, 190, "200x200")),
            ],
            [2, 3],
            id="two forms",
        ),
        pytest.param([inline(119, 78), inline(119, 78)], [0, 1], id="two of one size"),
        pytest.param([saved()], [0], id="savefig, then no figure"),
        pytest.param([PIL_IMAGE, inline(119, 78)], [0, 1], id="an image of that size"),
        pytest.param([saved(200, 80), inline(113, 86)], [0, 1], id="another form"),
        pytest.param([inline(113, 86), saved()], [0, 1], id="the other order"),
        pytest.param([saved(), saved(), inline(113, 86)], [0, 2], id="saved, changed"),
        pytest.param([saved(40, 60), SVG], [0, 1], id="another form, and SVG"),
    ],
)
def test_a_saved_figure_that_is_shown_is_kept_once(
    events: list[Event], left: list[int]
) -> None:
    assert kept(OPEN, events) == left


def test_where_figures_are_closed_all_are_kept() -> None:
    assert kept(CLOSED, [saved(), inline(113, 86)]) == [0, 1]
