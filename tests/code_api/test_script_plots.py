"""What a script of LibreChat's draws comes back as files, in the order of drawing."""

from __future__ import annotations

import importlib.util
import io
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from code_api_client import CodeApi
from fonts import make_font
from local_e2b import LocalE2B
from local_e2b_kernels import own_mount_command
from PIL import Image

from conftest import Service, e2b_at

pytestmark = pytest.mark.skipif(
    not own_mount_command(), reason="this machine allows no mount namespace"
)
PYPLOT = "import matplotlib.pyplot as plt\n"
# A wide figure and a tall one, so that a picture's form tells which one it is.
WIDE = "plt.figure(figsize=(6, 3)); plt.plot([1, 3, 2])\n"
TALL = "plt.figure(figsize=(3, 6)); plt.plot([1, 3, 2])\n"
SHOW = "plt.show()\n"
ANIMATION = (
    f"{PYPLOT}from matplotlib.animation import FuncAnimation\n"
    "figure, axes = plt.subplots(figsize=(6, 3))\n"
    "(line,) = axes.plot([], [])\n"
    "axes.set(xlim=(0, 9), ylim=(0, 9))\n"
    "def step(i):\n"
    "    line.set_data(range(i), range(i))\n"
    "    return (line,)\n"
    "animation = FuncAnimation(figure, step, frames=9, blit=True)\n"
)
# What a program draws: the files that come back, in their order, with their forms.
PROGRAMS = {
    "show": (PYPLOT + WIDE + SHOW, {"plot-1.png": "wide"}),
    "show thrice": (
        PYPLOT + WIDE + SHOW + TALL + SHOW + WIDE + SHOW,
        {"plot-1.png": "wide", "plot-2.png": "tall", "plot-3.png": "wide"},
    ),
    "eleven, by their numbers": (
        f"{PYPLOT}for i in range(11):\n"
        "    plt.figure(figsize=(3, 6) if i == 10 else (6, 3)); plt.plot([i])\n"
        "    plt.show()\n",
        {f"plot-{n}.png": "tall" if n == 11 else "wide" for n in range(1, 12)},
    ),
    "the same figure shown thrice": (
        PYPLOT + WIDE + SHOW + SHOW + "plt.gcf()\n" + SHOW,
        {"plot-1.png": "wide"},
    ),
    "two figures at once": (
        PYPLOT + WIDE + TALL + "plt.figure(1)\n" + SHOW,
        {"plot-1.png": "wide", "plot-2.png": "tall"},
    ),
    "each show begins anew": (
        f"{PYPLOT}for i in range(2):\n    plt.plot([i]); plt.show()\n"
        "    assert not plt.get_fignums()\n",
        {"plot-1.png": "wide", "plot-2.png": "wide"},
    ),
    "saved, then shown": (
        PYPLOT + WIDE + "plt.savefig('own.png')\n" + SHOW,
        {"own.png": "wide"},
    ),
    "shown, then saved": (
        PYPLOT + WIDE + SHOW + "plt.savefig('own.png')\n",
        {"own.png": "wide"},
    ),
    "shown, then saved by its figure": (
        f"{PYPLOT}figure, axes = plt.subplots(figsize=(3, 6)); axes.plot([1])\n"
        f"{SHOW}figure.savefig('own')\n",
        {"own.png": "tall"},
    ),
    "shown, then saved by the name that it got": (
        PYPLOT + WIDE + SHOW + "plt.savefig('plot-1.png')\n",
        {"plot-1.png": "wide"},
    ),
    "shown in a subfolder, then saved by that name": (
        "import os\nos.mkdir('out'); os.chdir('out')\n"
        f"{PYPLOT}{WIDE}{SHOW}plt.savefig('plot-1.png')\n",
        {"out/plot-1.png": "wide"},
    ),
    "shown, then saved when another has that name": (
        f"{PYPLOT}figure, axes = plt.subplots(figsize=(6, 3)); axes.plot([1])\n"
        f"{SHOW}{TALL}plt.savefig('plot-1.png'); figure.savefig('own.png')\n",
        {"own.png": "wide", "plot-1.png": "tall"},
    ),
    "saved, changed and shown": (
        PYPLOT + WIDE + "plt.savefig('own.png'); plt.title('new')\n" + SHOW,
        {"own.png": "wide", "plot-1.png": "wide"},
    ),
    "saved in a subfolder": (
        f"import os\nos.mkdir('out')\n{PYPLOT}{WIDE}plt.savefig('out/own.png')\n{SHOW}",
        {"out/own.png": "wide"},
    ),
    "shown in a subfolder": (
        f"import os\nos.mkdir('out'); os.chdir('out')\n{PYPLOT}{WIDE}{SHOW}",
        {"out/plot-1.png": "wide"},
    ),
    "saved where no file is kept": (
        "import tempfile\nfolder = tempfile.mkdtemp()\n"
        f"{PYPLOT}{WIDE}plt.savefig(folder + '/own.png')\n{SHOW}",
        {"plot-1.png": "wide"},
    ),
    "shown where no file is kept": (
        "import os, tempfile\nos.chdir(tempfile.mkdtemp())\n" + PYPLOT + WIDE + SHOW,
        {"plot-1.png": "wide"},
    ),
    "saved to memory": (
        f"import io\n{PYPLOT}{WIDE}plt.savefig(io.BytesIO())\n{SHOW}",
        {"plot-1.png": "wide"},
    ),
    # LibreChat shows no PDF: whoever wanted to see it sees the picture, too.
    "saved as a PDF": (
        PYPLOT + WIDE + "plt.savefig('own.pdf')\n" + SHOW,
        {"own.pdf": "", "plot-1.png": "wide"},
    ),
    "Agg": (
        f"import matplotlib\nmatplotlib.use('Agg')\n{PYPLOT}{WIDE}{SHOW}",
        {"plot-1.png": "wide"},
    ),
    "TkAgg": (
        f"import matplotlib\nmatplotlib.use('TkAgg')\n{PYPLOT}{WIDE}{SHOW}",
        {"plot-1.png": "wide"},
    ),
    "another backend in the middle": (
        f"{PYPLOT}{WIDE}plt.switch_backend('QtAgg')\n{TALL}{SHOW}",
        {"plot-1.png": "wide", "plot-2.png": "tall"},
    ),
    "MPLBACKEND": (
        f"import os\nos.environ['MPLBACKEND'] = 'TkAgg'\n{PYPLOT}{WIDE}{SHOW}",
        {"plot-1.png": "wide"},
    ),
    "without show": (PYPLOT + WIDE, {}),
    "saved without show": (
        PYPLOT + WIDE + "plt.savefig('own.png'); plt.close()\n",
        {"own.png": "wide"},
    ),
    "an empty figure": (f"{PYPLOT}plt.figure()\n{SHOW}", {}),
    "not waited for": (
        f"{PYPLOT}{WIDE}plt.show(block=False)\nplt.pause(60)\nplt.close()\n",
        {"plot-1.png": "wide"},
    ),
    "changed while it is shown": (
        f"{PYPLOT}plt.figure(figsize=(6, 3))\nfor i in range(5):\n"
        "    plt.plot([i, 0]); plt.pause(0.01)\n",
        {"plot-1.png": "wide"},
    ),
    "interactive": (f"{PYPLOT}plt.ion()\n{TALL}", {"plot-1.png": "tall"}),
    "the figure's own show": (
        f"{PYPLOT}figure, axes = plt.subplots(figsize=(6, 3)); axes.plot([1])\n"
        "figure.show()\n",
        {"plot-1.png": "wide"},
    ),
    "an animation": (ANIMATION + SHOW, {"plot-1.png": "wide"}),
    "an animation that is saved": (
        ANIMATION + "animation.save('own.gif', writer='pillow')\n" + SHOW,
        {"own.gif": ""},
    ),
    "pandas": (
        "import pandas\n"
        "pandas.DataFrame({'a': [1, 2]}).plot(figsize=(3, 6))\n" + PYPLOT + SHOW,
        {"plot-1.png": "tall"},
    ),
    "an early end": (
        f"{PYPLOT}{WIDE}plt.show(block=False)\nraise SystemExit(0)\n",
        {"plot-1.png": "wide"},
    ),
    "a name that is taken": (
        f"open('plot-1.png', 'w').write('x')\n{PYPLOT}{WIDE}{SHOW}",
        {"plot-1.png": "", "plot-2.png": "wide"},
    ),
}
if importlib.util.find_spec("seaborn"):
    PROGRAMS["seaborn"] = (
        f"import seaborn\n{PYPLOT}plt.figure(figsize=(6, 3))\n"
        "seaborn.barplot(x=['a', 'b'], y=[1, 2])\n" + SHOW,
        {"plot-1.png": "wide"},
    )
WAYS = {
    "py": lambda code: ("py", code),
    "bash": lambda code: ("bash", f"python3 - <<'PY'\n{code}PY\n"),
}


@pytest.fixture(scope="module")
def api(
    start_shared: Callable[..., Service],
    kernels_ahead_e2b: LocalE2B,
    tmp_path_factory: pytest.TempPathFactory,
) -> CodeApi:
    folder = tmp_path_factory.mktemp("files")
    settings = {"FILES_DIR": str(folder), "RUN_TIMEOUT_S": "40"}
    return CodeApi(start_shared(**e2b_at(kernels_ahead_e2b.url), **settings))


def form_of(data: bytes) -> str:
    """Whether a picture is wide or tall; "" of what is no PNG of a figure."""
    if not data.startswith(b"\x89PNG"):
        return ""
    width, height = struct.unpack(">II", data[16:24])
    assert min(width, height) > 200
    return "wide" if width > height else "tall"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_what_a_script_draws_comes_back_once_and_in_order(
    api: CodeApi, name: str, way: str
) -> None:
    program, expected = PROGRAMS[name]
    lang, code = WAYS[way](program)
    reply = api.exec(code, lang)
    assert reply["stderr"] == ""
    drawn = {ref["name"]: form_of(api.download(ref)) for ref in reply["files"]}
    assert list(drawn.items()) == list(expected.items())


def test_an_earlier_plot_is_not_written_over(api: CodeApi) -> None:
    first = api.exec(PYPLOT + WIDE + SHOW, "py")
    second = api.exec(PYPLOT + TALL + SHOW, "py", files=first["files"])
    assert [ref["name"] for ref in second["files"]] == ["plot-2.png"]


def test_the_last_frame_of_an_animation_is_drawn(api: CodeApi) -> None:
    """Of a line that grows, the first frame is empty."""
    reply = api.exec(ANIMATION + SHOW + "print(len(line.get_xdata()))", "py")
    assert reply["stdout"] == "8\n"


def test_a_python_that_leaves_the_environment_alone_runs_as_before(
    api: CodeApi,
) -> None:
    program = PYPLOT + WIDE + "plt.savefig('own.png')"
    reply = api.exec(f'python3 -I -c "{program}"')
    assert [ref["name"] for ref in reply["files"]] == ["own.png"]
    assert reply["stderr"] == ""


def test_a_failure_of_what_draws_harms_no_script(api: CodeApi) -> None:
    code = (
        "for path in sys.path:\n"
        "    if os.path.exists(path + '/exec_plots.py'):\n"
        "        open(path + '/exec_plots.py', 'w').write('1/0')\n"
    )
    code = f"import os, sys\n{code}{PYPLOT}{WIDE}plt.savefig('own.png')\nprint('end')"
    reply = api.exec(code, "py")
    assert (reply["stdout"], reply["stderr"]) == ("end\n", "")
    assert [ref["name"] for ref in reply["files"]] == ["own.png"]


def ink(picture: bytes) -> float:
    """Which part of a picture is black."""
    with Image.open(io.BytesIO(picture)) as image:
        histogram = image.convert("L").histogram()
    return sum(histogram[:64]) / sum(histogram)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "asked",
    ["SimHei", "Microsoft YaHei", "PingFang SC", "monospace", "DejaVu Sans", ""],
)
def test_what_a_font_lacks_comes_from_another(
    api: CodeApi, tmp_path: Path, asked: str, way: str
) -> None:
    """The fonts of this machine have no Chinese: one with the name of E2B's is made."""
    path = tmp_path / "east-asian.ttf"
    make_font(path, "Noto Sans CJK JP", "\u56fe\u8868")
    program = (
        f"{PYPLOT}from matplotlib import font_manager\n"
        f"font_manager.fontManager.addfont({str(path)!r})\n"
        f"plt.rcParams['font.family'] = {asked!r} or plt.rcParams['font.family']\n"
        "plt.figure(figsize=(6, 2)); plt.axis('off')\n"
        "plt.text(0, 0, '\u56fe\u8868', fontsize=100)\n"
    )
    lang, code = WAYS[way](program + SHOW)
    reply = api.exec(code, lang)
    assert reply["stderr"] == ""
    [ref] = reply["files"]
    assert ink(api.download(ref)) > 0.25  # boxes have a tenth of that


def test_what_no_font_has_is_one_line(api: CodeApi) -> None:
    code = f"{PYPLOT}plt.title('\U0001f680 \U0001f4c8 \U0001f680'); plt.plot([1])\n"
    reply = api.exec(code + SHOW * 2, "py")
    assert reply["stderr"] == "No font here has \U0001f680\U0001f4c8\n"


@pytest.mark.skipif(not shutil.which("Rscript"), reason="there is no R")
def test_what_r_plots_is_a_png(api: CodeApi, tmp_path: Path) -> None:
    reply = api.exec("plot(1:9)\nplot(9:1)", "r")
    assert reply["stderr"] == ""
    assert [ref["name"] for ref in reply["files"]] == ["Rplot001.png", "Rplot002.png"]
