"""A figure that is saved and shown is one figure; another picture is another one."""

from __future__ import annotations

import pytest

from saved_figures import figures_are_shown_twice


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
