"""What models write for people in a chat, on real kernels: what they read then."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from builders import SET_UP, run_cell
from kernels import LIFETIME_S
from local_e2b import LocalE2B

from config import Config
from conftest import E2B_KEY
from formatter import format_run
from run import Run
from sandboxes.sandbox import Sandbox

CONFIG = Config(e2b_api_key=E2B_KEY)
NO_OUTPUT = "Code executed successfully, without output. Use print() to see a value."
PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 3, 2])\n"


@pytest.fixture(scope="module")
def environment(kernel_e2b: LocalE2B) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("E2B_API_URL", kernel_e2b.url)
        patch.setenv("E2B_SANDBOX_URL", kernel_e2b.url)
        yield


def new_sandbox() -> Sandbox:
    sandbox = Sandbox(CONFIG)
    sandbox.create(lifetime_s=LIFETIME_S, budget_s=60)
    return sandbox


@pytest.fixture(scope="module")
def sandbox(environment: None) -> Iterator[Sandbox]:
    """One for all tests, whose first cell has
    run: a kernel and its imports take seconds."""
    sandbox = new_sandbox()
    sandbox.prime(SET_UP, limit_s=60)
    yield sandbox
    sandbox.kill()


def run_in(sandbox: Sandbox, code: str) -> Run:
    return run_cell(sandbox, code, 60)


def shown(sandbox: Sandbox, code: str, outcome: str = "ok") -> str:
    run = run_in(sandbox, code)
    text = format_run(run, CONFIG.max_output_chars)
    assert run.outcome == outcome, text
    return text


def printed(text: str) -> str:
    return f"**Console Output:**\n```\n{text}\n```"


def value(text: str) -> str:
    return f"**Result:**\n```\n{text}\n```"


def error(text: str) -> str:
    return f"**Execution Error:**\n```\n{text}\n```"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("```python\nprint(1)\n```", printed("1")),
        ("Here it is:\n\n~~~\nprint(1)\n~~~\nDone.", printed("1")),
        ("python\nprint(1)", printed("1")),
        ("\ufeffprint(1)", printed("1")),
        (" import math\nprint(math.floor(1.5))", printed("1")),
        ("# list it\n%%bash\necho 1", printed("1")),
        ("import sys\nprint(1)\nsys.exit(0)", printed("1")),
        ("print(1)\nraise SystemExit", printed("1")),
        ("'line1\\nline2'", value("line1\nline2")),
        ("if True:\n    1 + 1", NO_OUTPUT),
        ("import matplotlib.pyplot as plt\nplt.figure()", NO_OUTPUT),
        ("for _ in range(50): print('same')", printed("same (× 50)")),
        (
            "import logging\nfor _ in range(50): logging.warning('x')",
            "**Stderr:**\n```\nWARNING:root:x (× 50)\n```",
        ),
        (
            "import base64\nprint('data:image/png;base64,'"
            "+ base64.b64encode(bytes(3 * 9000)).decode())",
            printed("data:image/png;base64,[36,000 characters of base64]"),
        ),
        (
            "import base64, random\nprint(base64.b64encode(random.randbytes(9000)))",
            printed("b'[12,000 characters of base64]'"),
        ),
        (
            "import pandas as pd\ndf = pd.DataFrame({'a': [1, 2]})\nprint('first')\n"
            "display(df)\nprint('second')\ndisplay(df * 10)",
            printed("first\n   a\n0  1\n1  2\nsecond\n    a\n0  10\n1  20"),
        ),
        (
            "for n in range(3):\n    print(n, end=' ')\n    display(n * n)\n'last'",
            printed("0 \n0\n1 \n1\n2 \n4\nlast"),
        ),
        (
            "import sys\nfor n in range(9): sys.stderr.write('a\\nb\\nc\\n')",
            "**Stderr:**\n```\na\nb\nc\n[the same 3 lines 8 more times]\n```",
        ),
        (
            "import pandas as pd\npd.DataFrame({'a': [1, 2]}).style",
            value("\xa0 | a\n0 | 1\n1 | 2"),
        ),
        (
            "from IPython.display import HTML\n"
            "HTML('<table><tr><th>a</th><th>b</th></tr></table>')",
            value("a | b"),
        ),
        (
            "from IPython.display import HTML\nHTML('<svg></svg>')",
            "Note: 1 figure left out: only png, jpeg and svg can be shown, so draw it"
            " with matplotlib.",
        ),
        (
            "import os\nopen('/mnt/data/x.txt', 'w').write('a')\n"
            "os.listdir('/mnt/data')",
            value("['x.txt']"),
        ),
    ],
)
def test_it_comes_back_right(sandbox: Sandbox, code: str, text: str) -> None:
    assert shown(sandbox, code) == text


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import sys\nsys.exit(1)", "SystemExit: 1"),
        ("import sys\nsys.exit('no such column')", "SystemExit: no such column"),
        ("%nosuch", "UsageError: Line magic function `%nosuch` not found."),
    ],
)
def test_an_error_is_one_line(sandbox: Sandbox, code: str, text: str) -> None:
    assert shown(sandbox, code, "error") == error(text)


def test_a_syntax_error_is_quoted_once(sandbox: Sandbox) -> None:
    text = shown(sandbox, "```python\nx = [1, 2\nprint(x)\n```", "error")
    assert text.count("'[' was never closed") == 1
    assert "line 2\n" in text
    assert text.endswith("SyntaxError: '[' was never closed\n```")


def test_notes_of_an_error_stand_on_a_line_of_their_own(sandbox: Sandbox) -> None:
    code = "e = ValueError('bad')\ne.add_note('hint: use 3')\nraise e"
    assert shown(sandbox, code, "error").endswith("ValueError: bad\nhint: use 3\n```")


def test_endless_recursion_is_short(sandbox: Sandbox) -> None:
    code = (
        "import sys\nsys.setrecursionlimit(300)\ndef f(n):\n    return f(n + 1)\nf(0)"
    )
    text = shown(sandbox, code, "error")
    assert re.search(r"\[the same 3 lines [\d,]+ more times\]", text)
    assert "RecursionError: maximum recursion depth exceeded" in text
    assert len(text) < 1_000


def test_frames_inside_a_library_are_left_out(sandbox: Sandbox) -> None:
    code = "import pandas as pd\npd.DataFrame({'a': [1]}).groupby('b')['c'].sum()"
    text = shown(sandbox, code, "error")
    assert "----> 2 pd.DataFrame({'a': [1]})" in text
    assert text.endswith("KeyError: 'b'\n```")
    code = "import json\njson.dumps({'a': {'b': [{'c': {1, 2}}]}}, indent=1)"
    text = shown(sandbox, code, "error")
    assert "----> 2 json.dumps" in text
    assert re.search(r"\n\[\d+ frames of json left out\]\nFile ", text)
    assert text.endswith("TypeError: Object of type set is not JSON serializable\n```")


@pytest.mark.parametrize(
    ("code", "outcome", "lines"),
    [
        (
            "import warnings\np = '/mnt/data/none'\nwarnings.warn('w')\n\nopen(p)",
            "error",
            ("Cell In[1], line 5\n", "----> 5 open(p)", ".py:3: UserWarning: w"),
        ),
        ("print(1)\nexit()  # /mnt/data", "ok", (printed("1"),)),
        (
            "  p = '/mnt/data'\n  x = [\n",
            "error",
            ("Cell In[1], line 2\n", "    x = [\n"),
        ),
    ],
)
def test_lines_of_a_first_cell_that_names_the_data_folder_keep_their_numbers(
    environment: None, code: str, outcome: str, lines: tuple[str, ...]
) -> None:
    sandbox = new_sandbox()
    text = shown(sandbox, code, outcome)
    sandbox.kill()
    for line in lines:
        assert line in text
    assert "mkdir" not in text


@pytest.mark.parametrize(
    ("code", "pictures"),
    [
        (PLOT + "plt.savefig('x.png')", 1),
        (PLOT + "plt.savefig('x.png', dpi=150)\nplt.show()", 1),
        (PLOT + "plt.savefig('x.png', bbox_inches='tight')\nplt.show()", 1),
        (PLOT + "plt.savefig('x.png')\nplt.close()", 1),
        (PLOT + "plt.figure()\nplt.plot([1, 2])\nplt.show()", 2),
        (
            "import matplotlib.pyplot as plt\nfor n in range(6):\n    plt.figure()\n"
            "    plt.plot([1, n])\n    plt.savefig(f'{n}.png')",
            6,
        ),
        (PLOT + "plt.savefig('x.png')\nplt.close()\nplt.plot([2, 1])\nplt.show()", 2),
    ],
)
def test_each_figure_is_shown_once(sandbox: Sandbox, code: str, pictures: int) -> None:
    run = run_in(sandbox, code)
    assert len(run.pictures) == pictures
    assert format_run(run, CONFIG.max_output_chars) == ""


@pytest.mark.parametrize(
    "code", [PLOT + "plt.title('x')", PLOT + "plt.hist([1, 2])", PLOT + "plt.gca()"]
)
def test_what_a_drawing_function_returns_is_not_shown(
    sandbox: Sandbox, code: str
) -> None:
    assert shown(sandbox, code) == ""


def test_a_figure_of_nothing_is_not_shown(sandbox: Sandbox) -> None:
    text = shown(sandbox, PLOT.partition("\n")[0] + "\nplt.figure()\n1/0", "error")
    assert "<Figure" not in text


def test_a_gif_is_shown_as_a_still_and_it_says_so(sandbox: Sandbox) -> None:
    code = (
        "from PIL import Image\nframes = [Image.new('RGB', (9, 9)) for _ in range(3)]\n"
        "frames[0].save('a.gif', save_all=True, append_images=frames[1:])"
    )
    text = shown(sandbox, code)
    assert "No file or link from here reaches the user: a.gif\n" in text
    assert text.endswith("Note: 1 animation left out: a picture of it is shown.")


PRINTED_PICTURES = [
    (
        "import base64, io\nfrom PIL import Image\nbuffer = io.BytesIO()\n"
        "Image.effect_noise((50, 40), 90).save(buffer, 'PNG')\n"
        "print(base64.b64encode(buffer.getvalue()).decode())",
        1,
    ),
    (
        f"import base64, io\n{PLOT}buffer = io.BytesIO()\nplt.savefig(buffer)\n"
        "plt.close()\nprint(base64.b64encode(buffer.getvalue()).decode())",
        1,
    ),
    (
        f"import base64, io\n{PLOT}buffer = io.BytesIO()\nplt.savefig(buffer)\n"
        "text = base64.b64encode(buffer.getvalue()).decode()\n"
        "print('data:image/png;base64,' + text)\nplt.show()",
        1,
    ),
    (
        f"import base64, io\n{PLOT}buffer = io.BytesIO()\n"
        "plt.savefig(buffer, format='jpg')\nplt.show()\n"
        "base64.b64encode(buffer.getvalue()).decode()",
        1,
    ),
    (
        f"import base64, io\nfrom PIL import Image\n{PLOT}plt.show()\n"
        "buffer = io.BytesIO()\nImage.effect_noise((50, 40), 90).save(buffer, 'PNG')\n"
        "buffer.getvalue().hex()",
        2,
    ),
]


@pytest.mark.parametrize(("code", "count"), PRINTED_PICTURES)
def test_a_picture_that_is_printed_is_shown_once(
    sandbox: Sandbox, code: str, count: int
) -> None:
    run = run_in(sandbox, code)
    assert len(run.pictures) == count
    text = format_run(run, CONFIG.max_output_chars)
    assert re.search(r"\[[\d,]+ characters of (base64|hex): a picture of \d+ x", text)
    assert len(text) < 150
