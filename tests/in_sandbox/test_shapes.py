"""Code runs in the shapes in which models send it, and near misses stay as they are.

The first tests ask in_sandbox/shapes.py itself, with the parser of IPython's that a
kernel has; the others send what models send to real kernels, and to scripts."""

from __future__ import annotations

import ast
import json
import re
import sysconfig
from collections.abc import Iterator
from html import escape
from pathlib import Path
from types import SimpleNamespace

import pytest
from code_api_client import CodeApi
from IPython.core.inputtransformer2 import TransformerManager
from kernels import CONFIG, Kernel, kernel
from local_e2b import LocalE2B

import in_sandbox.shapes
from conftest import Service, e2b_at, http, text_of
from formatter import format_plain
from in_sandbox.shapes import runnable
from run import Run
from sandboxes.set_up import for_kernel, packed
from texts.cell import Cell, may_be_wrapped

SOURCE = Path(in_sandbox.shapes.__file__).read_text("ascii")
PYTHON = "import math\nprint(math.pi)"
PROGRAM = """\
import math

def f(x):
    return x < 3 and x > 1

print(f(2), 'a\\tb', "it's")"""
PRINTS = "True a\tb it's\n"


def as_cell(code: str) -> str:
    """What runs of the code in a new kernel: the shell's part in it is IPython's."""
    transform = TransformerManager().transform_cell
    names = dict.fromkeys(("get_ipython", "In", "Out", "exit"))
    return runnable(code, SimpleNamespace(transform_cell=transform, user_ns=names))


class TestFences:
    @pytest.mark.parametrize(
        ("sent", "runs"),
        [
            ("```python\nprint(1)\n```", "#\nprint(1)\n"),
            ("```\nprint(1)\n```", "#\nprint(1)\n"),
            ("~~~python\nprint(1)\n~~~\n", "#\nprint(1)\n\n"),
            ("~~~\nprint(1)\n~~~", "#\nprint(1)\n"),
            ("```Python3\r\nprint(1)\r\n```\r\n", "#\nprint(1)\r\n\n"),
            ("```{.python}\nprint(1)\n```", "#\nprint(1)\n"),
            ("```python title='a.py'\nprint(1)\n```", "#\nprint(1)\n"),
            ("```tool_code\nprint(1)\n```", "#\nprint(1)\n"),
            ("  ```py\n  print(1)\n  ```", "  #\n  print(1)\n"),
            ("```python\nprint(1)", "#\nprint(1)"),
            ("\ufeff```python\nprint(1)\n```", "#\nprint(1)\n"),
            ("Here's it:\n\n```python\nprint(1)\n```\nDone!", "#\n\n\nprint(1)\n\n"),
            ("```python\na = 1\n```\nthen\n```python\na\n```", "#\na = 1\n\n\n\na\n"),
            ("**Code:**\n```python\nprint(1)\n```", "#\n\nprint(1)\n"),
            (
                "```bash\npip install x\n```\n```python\nprint(1)\n```",
                "#\n\n\n\nprint(1)\n",
            ),
            ("```python\na = 1\n```\n```text\n1\n```\nDone.", "#\na = 1\n\n\n\n\n"),
            ('```python\ns = \'a\\\nb"""c\'\n```', '#\ns = \'a\\\nb"""c\'\n'),
            ("```python\n%%time\nf()\n```", "\n%%time\nf()\n"),
            ("```python\n# c\n%%time\nf()\n```", "\n\n%%time\nf()\n"),
            ("```python\n  import math\nf()\n```", "#\nimport math\nf()\n"),
            ("```python\n    a = 1\n    a\n```", "    #\n    a = 1\n    a\n"),
            (
                "```python\na = '''\n```js\nx\n```\n'''\n```\nNote",
                "#\na = '''\n```js\nx\n```\n'''\n\n",
            ),
        ],
    )
    def test_fences_and_prose_become_blank_lines(self, sent: str, runs: str) -> None:
        assert as_cell(sent) == runs
        assert may_be_wrapped(sent)
        assert runs.count("\n") == sent.count("\n")

    @pytest.mark.parametrize(
        "code",
        [
            PYTHON,
            'a = """\n```python\nx\n```\n"""\nprint(a)',
            "a = '''\n~~~\nx\n~~~\n'''",
            'f"""\n```\n{x}\n```\n"""',
            "a = '''it\\'''\n```\nx\n```\n'''",
            "# it's \"\"\"\na = '''\n```\nx\n```\n'''",
            "a = '\"\"\"'\nb = '''\n```\nx\n```\n'''",
            "x = (\n~~~\n5)\nf(x,\n~~~\n~~~\n5)",
            "x = (\r\n~~~\r\n5)",
            'a = "\\\n```python\\n\\\nprint(1)\\n\\\n```\\n\\\n"',
            'a = "\\\r\n```python\\n\\\r\nprint(1)\\n\\\r\n```\\n\\\r\n"',
            "%%writefile a.md\n# A\n```python\nx\n```\n",
            "%%markdown\n```\nx\n```",
            "%%bash\ncat <<E\n```\nx\n```\nE",
            "```\n```",
            "```python\n\n```",
            "print('```')\nprint('~~~')",
            "a = 1  # ```python\n# ```\nb = 2",
        ],
    )
    def test_code_that_only_looks_like_it_stays(self, code: str) -> None:
        assert as_cell(code) == code


@pytest.mark.parametrize(
    ("sent", "runs"),
    [
        ("\ufeffprint(1)", "print(1)"),
        ("python\nprint(1)", "#\nprint(1)"),
        ("\nPython3 \n\nprint(1)", "#\n\n\nprint(1)"),
        (f" {PYTHON}", PYTHON),
        (f"\n\n\t{PYTHON}", f"#\n\n{PYTHON}"),
        ("   x = 1\n\n# c\ny = 2", "x = 1\n\n# c\ny = 2"),
        ("# how long\n%%time\nf()", "\n%%time\nf()"),
        ("\n# a\n\n  # b\n%%bash\nls", "\n\n\n\n%%bash\nls"),
        ("# a\r\n\r\n#\r\n%%bash\r\nls", "\n\n\n%%bash\r\nls"),
        ("\n\n1/0", "#\n\n1/0"),
        ("\n  x = 1\n  x", "  #\n  x = 1\n  x"),
    ],
)
def test_what_stands_before_the_code_goes_and_lines_keep_their_number(
    sent: str, runs: str
) -> None:
    assert as_cell(sent) == runs
    assert may_be_wrapped(sent)


@pytest.mark.parametrize(
    "code",
    [
        "",
        "\n \n",
        "python",
        "python\n \n",
        "python = 3\nprint(python)",
        "pythons\nx",
        "    x = 1\n    print(x)",
        "  for a in b:\n      print(a)",
        " print(1)",
        "# %%\nprint(1)\n# %%time",
        "# c\nx = 5\n%%time",
        "# c\n%time f()",
        "x = 7 \\\n%%y",
        "%%time\nf()",
        "\n\n%%time\nf()",
    ],
)
def test_other_code_stays_as_it_is(code: str) -> None:
    assert as_cell(code) == code


# --- what models send -----------------------------------------------------------------

ODD_SPACES = PROGRAM.replace("    return", "\u00a0\u00a0\u2003\u00a0return")
# Each is the same program, for a cell and for a script.
SENT = {
    "fence": f"```python\n{PROGRAM}\n```",
    "fence of tildes": f"~~~\n{PROGRAM}\n~~~",
    "fence and prose": f"Here's the code:\n\n```py\n{PROGRAM}\n```\nIt prints True.",
    "fence without an end": f"```python\n{PROGRAM}",
    "fence with CR LF": f"```python\n{PROGRAM}\n```\n".replace("\n", "\r\n"),
    "language": f"python\n{PROGRAM}",
    "string of JSON": json.dumps(PROGRAM),
    "string of JSON in a string of JSON": json.dumps(json.dumps(PROGRAM)),
    "object of JSON": json.dumps({"code": PROGRAM}),
    "all arguments as JSON": json.dumps(
        {"language": "python", "code": PROGRAM, "timeout": None}
    ),
    "object with real newlines": json.dumps({"code": PROGRAM}).replace("\\n", "\n"),
    "dict of Python": repr({"code": PROGRAM}),
    "string of Python": repr(PROGRAM),
    "three double quotes": f'"""\n{PROGRAM}\n"""',
    "three single quotes": f"'''{PROGRAM}'''",
    "JSON in a fence": f"```\n{json.dumps({'code': PROGRAM})}\n```",
    "fence in JSON": json.dumps(f"```python\n{PROGRAM}\n```"),
    "no newlines": PROGRAM.replace("\n", "\\n"),
    "no newlines, and quotes with backslashes": json.dumps(PROGRAM)[1:-1],
    "no newlines, and CR": PROGRAM.replace("\n", "\\r\\n"),
    "no newlines, and a comment": "# Don't round\\n" + PROGRAM.replace("\n", "\\n"),
    "end of a message": f"{PROGRAM}<|im_end|>",
    "end of a message on a line": f"{PROGRAM}\n<|im_end|>\n",
    "start and end of a message": f"<|im_start|>assistant\n{PROGRAM}<|im_end|>",
    "end of a text": f"{PROGRAM}</s>",
    "two ends": f"{PROGRAM}\n</s><|endoftext|>\n",
    "code of HTML": f"<code>\n{PROGRAM}\n</code>",
    "code of HTML with a class": f'<pre><code class="py">{PROGRAM}</code></pre>',
    "end of a message after a fence": f"```python\n{PROGRAM}\n```<|im_end|>",
    "entities": escape(PROGRAM),
    "entities that are Python": ("x = 2\ny = x &lt; 3\nprint(y, 'a\\tb', \"it's\")"),
    "entities in a fence": f"```python\n{escape(PROGRAM)}\n```",
    "entities and no newlines": escape(PROGRAM).replace("\n", "\\n"),
    "code of HTML with entities": f"<code>{escape(PROGRAM)}</code>",
    "odd spaces": ODD_SPACES,
    "odd spaces in a fence": f"```python\n{ODD_SPACES}\n```",
    "zero-width spaces": f"\u200b{PROGRAM}\u200b",
    "BOM": f"\ufeff{PROGRAM}",
    "BOM in the middle": f"x = 1\n\ufeff{PROGRAM}",
    "BOM and a fence": f"\ufeff```python\n{PROGRAM}\n```",
    "prompts of Python": (
        ">>> import math\n>>> def f(x):\n...     return x < 3 and x > 1\n...\n"
        ">>> print(f(2), 'a\\tb', \"it's\")\nTrue a\tb it's\n"
    ),
    "prompts in a fence": (
        "```python\n>>> x = 2\n>>> x\n2\n>>> print(x < 3, 'a\\tb', \"it's\")\n```"
    ),
    "prompts of a notebook": (
        "In [1]: x = 2\n\nIn [2]: x\nOut[2]: 2\n\nIn [3]: if x:\n"
        "   ...:     print(x < 3, 'a\\tb', \"it's\")\n   ...:\n"
    ),
    "prompt on a line of its own": f"In[1]:\n{PROGRAM}",
    "indented": "\n".join(f"    {line}" for line in PROGRAM.split("\n")),
    "first line indented": f"  {PROGRAM}",
}


@pytest.fixture(scope="module")
def shared(real_kernels: None) -> Iterator[Kernel]:
    """A kernel for tests that leave nothing behind: starting one takes a while."""
    with kernel() as started:
        started.run("pass")
        yield started


@pytest.fixture(scope="module")
def service(
    kernel_e2b: LocalE2B, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """With the code interpreter."""
    folder = tmp_path_factory.mktemp("files")
    settings = {"FILES_DIR": str(folder), "RUN_TIMEOUT_S": "40"}
    started = Service(e2b_at(kernel_e2b.url) | settings)
    started.wait_until_ready()
    yield started
    http.close()
    started.stop()


@pytest.mark.parametrize("shape", SENT)
def test_a_cell_runs_in_each_shape(shared: Kernel, shape: str) -> None:
    run = shared.run(SENT[shape])
    text = format_plain(run, CONFIG.max_output_chars)
    assert (run.outcome, run.stdout.text()) == ("ok", PRINTS), text
    assert not run.stderr.text(), text


@pytest.mark.parametrize("shape", SENT)
def test_the_program_of_a_script_is_found_in_each_shape(
    shape: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert may_be_wrapped(SENT[shape])
    exec(runnable(SENT[shape]), {})  # noqa: S102
    assert capsys.readouterr().out == PRINTS


@pytest.mark.parametrize(
    "shape",
    [
        "fence and prose",
        "prompts of Python",
        "prompts of a notebook",
        "string of JSON",
        "no newlines",
        "end of a message",
        "entities",
        "odd spaces",
        "indented",
    ],
)
def test_a_script_of_the_code_interpreter_runs_in_these_shapes(
    service: Service, shape: str
) -> None:
    reply = CodeApi(service).exec(SENT[shape], lang="py")
    assert (reply["stdout"], reply["stderr"]) == (PRINTS, "")


@pytest.mark.parametrize(
    "shape", ["object of JSON", "three double quotes", "no newlines", "entities"]
)
def test_execute_and_mcp_run_what_is_wrapped(service: Service, shape: str) -> None:
    assert f"```\n{PRINTS}```" in text_of(service.execute(SENT[shape]))
    call = {"name": "execute_python", "arguments": {"code": SENT[shape]}}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
    answer = http.post(f"{service.url}/mcp", json=message, timeout=60).json()
    assert answer["result"]["content"] == [{"type": "text", "text": PRINTS.strip()}]


@pytest.mark.parametrize(
    ("sent", "line"),
    [
        ("```python\nx = 1\n\n1/0\n```", "----> 4 1/0"),
        ('"""\nx = 1\n1/0\nprint(x)\n"""', "----> 3 1/0"),
        ("<code>\nx = 1\n1/0\n</code>", "----> 3 1/0"),
        ("\ufeffx = 1\nif x &lt; 2:\n    1/0", "----> 3     1/0"),
        (">>> x = 1\n>>> 1/0\nZeroDivisionError: division by zero", "----> 2 1/0"),
        ("pip install --help\n\n1/0", "----> 3 1/0"),
    ],
)
def test_lines_keep_their_numbers(shared: Kernel, sent: str, line: str) -> None:
    run = shared.run(sent)
    assert run.error_name == "ZeroDivisionError"
    assert line in run.traceback


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        ("```python\nx = [1, 2\nprint(x)\n```", "'[' was never closed"),
        (json.dumps("import math\nx = (1]"), "parenthesis ']' does not match"),
        ("print(\u201chi\u201d)", "invalid character '\u201c' (U+201C)"),
        ("x = 1\nif x &lt; 2\n    print(x)", "invalid syntax"),
        ("x\u00a0= (", "invalid non-printable character U+00A0"),
        ("x = 1\\nprint(x", "unexpected character after line continuation character"),
    ],
)
def test_code_with_an_error_of_its_own_says_so(
    shared: Kernel, sent: str, error: str
) -> None:
    run = shared.run(sent)
    assert run.error_name == "SyntaxError"
    assert error in run.error_value


# --- installing -----------------------------------------------------------------------

PIP = "python3 -m pip install"


@pytest.mark.parametrize(
    ("sent", "cell", "script"),
    [
        ("pip install x", "%pip install x", f"{PIP} x"),
        ("pip3 install -q x y\n", "%pip install -q x y\n", f"{PIP} -q x y"),
        ("python -m pip install x", "%pip install x", f"{PIP} x"),
        ("python3 -m pip install x\r\n", "%pip install x\n", f"{PIP} x"),
        (
            "# a\n\npip install x\nimport x",
            "# a\n\n%pip install x\nimport x",
            f"{PIP} x",
        ),
        ("apt-get install -y x\n1", "!apt-get install -y x\n1", "apt-get install -y x"),
        ("sudo apt install x", "!sudo apt install x", "sudo apt install x"),
        ("```python\npip install x\n```", "#\n%pip install x\n", f"{PIP} x"),
        ("%pip install x\nimport x", "%pip install x\nimport x", f"{PIP} x"),
        ("!pip install x", "!pip install x", f"{PIP} x"),
    ],
)
def test_first_lines_that_install_run(sent: str, cell: str, script: str) -> None:
    assert may_be_wrapped(sent)
    assert as_cell(sent) == cell
    [command] = re.findall(
        r"(?m)^__import__\('os'\)\.system\('(.*)'\)$", runnable(sent)
    )
    assert command == script


def test_pip_runs_in_a_first_cell_and_in_a_script(
    real_kernels: None, service: Service
) -> None:
    sent = "pip install --dry-run --no-index pip\nprint('then')"
    first = "Requirement already satisfied: pip"
    with kernel() as new:
        text = new.run(sent).stdout.text()
        assert text.startswith(first)
        assert text.endswith("then\n")
    with kernel() as new:
        assert first in new.text(sent.partition("\n")[0])
    reply = CodeApi(service).exec(sent, lang="py")
    assert reply["stdout"].startswith(first)
    assert reply["stdout"].endswith("then\n")


# --- near misses ----------------------------------------------------------------------

STAYS = {
    "prints JSON": "import json\nprint(json.dumps({'code': 'print(1)'}))",
    "prints JSON that it holds": 'print(\'{"code": "print(1)"}\')',
    "docstring only": '"""Tools for the analysis of sales."""',
    "docstring of one word": '"""Utilities"""',
    "docstring that is Python": '"""Note: important"""',
    "docstring with an example": '"""Adds.\n\n>>> add(1, 2)\n3\n"""',
    "docstring and code": '"""import math"""\nprint(1)',
    "a word": '"hello"',
    "a sentence": "'Hello, world!'",
    "a number in quotes": '"42"',
    "a formula": '"f(x)"',
    "an expression of names": '"a + b"',
    "a name and a value": '"name = value"',
    "an empty string": '""',
    "lines of names": '"""\nalpha\nbeta\n"""',
    "SQL": '"""\nSELECT name FROM users\n"""',
    "f-string": 'f"print({1 + 1})"',
    "bytes": 'b"print(1)"',
    "an object of two names": '{"code": "US", "language": "en"}',
    "an object of more": '{"code": "print(1)", "id": 7}',
    "a list": '["print(1)"]',
    "a set": '{"print(1)"}',
    "JSON as a value": '{"a": 1, "b": [2, 3]}',
    "a string with \\n": "print('a\\nb')",
    "a line with \\n": "x = 'a\\nb'; print(x.split('\\n'))",
    "regular expression": r"import re; print(re.sub('\n+', '\n', 'a\n\nb'))",
    "path of Windows": r"p = 'C:\new'; print(p)",
    "XML": 'x = """<a>\n  <b>1 &lt; 2</b>\n</a>"""\nprint(x)',
    "HTML at its end": "x = '<p>'\nprint(x)\nx == '</s>'",
    "entities in a string": "print('a &lt; b &amp;&amp; c &quot;')",
    "names of entities": "a = lt = 3\nb = a &lt; a\nprint(b)",
    "entity in a comment": "x = 1  # a &lt; b\nprint(x)",
    "marks in a string": "s = 'x<|im_end|>'\nprint(s, '</s>', '<code>')",
    "comparisons": "a, b, c = 1, 2, 3\nprint(a <b> c)",
    "odd spaces in a string": "print('10\u00a0000', '\u200b', '\ufeff')",
    "odd space in a comment": "x = 1  # a\u00a0b",
    "Persian with a joiner": "print('\u0645\u06cc\u200c\u062e\u0648')",
    "fence in a string": 'print("""\n```python\nprint(1)\n```\n""")',
    "prompts in a string": 'x = """\n>>> print(1)\n1\n"""',
    "pip in a string": '"""\npip install x\n"""\nprint(1)',
    "pip as a name": "pip = 1\npip",
    "pip later": "x = 1\npip install x",
    "python as a name": "python = 3\nprint(python)",
    "an indented block": "if 1:\n    x = 1\n    y = 2",
    "typographic quotes": "print(\u201chi\u201d)",
    "prose": "Here is how you add two numbers in Python.",
    "an error before a fence": "print(1\nx = '''\n```python\nprint(2)\n```\n'''",
}


@pytest.mark.parametrize("name", STAYS)
def test_near_misses_stay_as_they_are(name: str) -> None:
    code = STAYS[name]
    assert as_cell(code) == code
    assert runnable(code) == code


@pytest.mark.parametrize(
    ("sent", "runs"),
    [
        ("x\u00a0= '&lt;'\nprint(x)", "x = '&lt;'\nprint(x)"),
        ("```\nx\u00a0= '&lt;'\nprint(x)\n```", "#\nx = '&lt;'\nprint(x)\n"),
        ("x\u00a0= 'it&#39;s'", "x = 'it&#39;s'"),
        ("print('&lt;', '\\n')</s>", "print('&lt;', '\\n')"),
        ("pip install x\nprint('&amp;')", "%pip install x\nprint('&amp;')"),
        ("x = '</s>'\\nprint(x)</s>", "x = '</s>'\nprint(x)"),
    ],
)
def test_nothing_is_changed_that_need_not_be(sent: str, runs: str) -> None:
    assert as_cell(sent) == runs


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("a word", "hello"),
        ("docstring that is Python", "Note: important"),
        ("lines of names", "\nalpha\nbeta\n"),
        ("an object of two names", "{'code': 'US', 'language': 'en'}"),
        ("an object of more", "{'code': 'print(1)', 'id': 7}"),
        ("f-string", "print(2)"),
    ],
)
def test_a_value_that_is_no_program_is_shown(
    shared: Kernel, name: str, value: str
) -> None:
    assert shared.run(STAYS[name]).values.text() == value


def test_in_a_session_a_string_may_be_a_program_of_names_that_are_known(
    real_kernels: None,
) -> None:
    with kernel() as new:
        assert new.run('"f(x)"').values.text() == "f(x)"
        new.run("def f(x): print('ran', x)\nx = 3")
        assert new.printed('"f(x)"') == "ran 3\n"


@pytest.mark.parametrize(
    "code",
    [
        "%%writefile a.md\n# A\n```python\nx &lt; 1\n```<|im_end|>",
        "%%bash\npip install --help >/dev/null; echo '&lt;'",
        "%pip install x\nimport x",
        "!echo '&lt;'\nx = 1",
        "await f()\nprint('\\n')",
    ],
)
def test_what_is_a_notebooks_stays_as_it_is(code: str) -> None:
    assert as_cell(code) == code


# --- real programs --------------------------------------------------------------------

MOST_BYTES = 20_000
FILES_OF_EACH = 150


def real_programs(folder: str) -> Iterator[str]:
    """Python files, of the standard library or of what is installed ("purelib")."""
    paths = [
        path
        for path in sorted(Path(sysconfig.get_path(folder)).rglob("*.py"))
        if path.stat().st_size < MOST_BYTES
        and ("site-packages" in path.parts) == (folder == "purelib")
    ]
    for path in paths[:: max(1, len(paths) // FILES_OF_EACH)]:
        try:
            code = path.read_text("utf-8")
            is_empty = not ast.parse(code).body
        except (SyntaxError, ValueError):
            continue  # some are no Python, on purpose
        if not is_empty:
            yield code


def tree_of(code: str) -> str:
    return ast.dump(ast.parse(code))


@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("folder", ["stdlib", "purelib"])
def test_no_real_program_is_changed_and_each_is_found_again(folder: str) -> None:
    count = 0
    for code in real_programs(folder):
        count += 1
        tree = tree_of(code)
        assert tree_of(runnable(code)) == tree, code
        assert tree_of(as_cell(code)) == tree, code
        assert tree_of(runnable(f"{code}\n<|im_end|>")) == tree, code
        fenced = f"Here's it:\n```python\n{code}\n```\nIt's done."
        assert tree_of(runnable(fenced)) == tree, code
    assert count > FILES_OF_EACH * 0.8


# --- what is sent, and failures -------------------------------------------------------


def test_it_is_python_3_8() -> None:
    ast.parse(SOURCE, feature_version=(3, 8))


def test_it_is_sent_only_with_what_may_need_it() -> None:
    assert len(for_kernel(Cell(PROGRAM), "", 60)) < len(repr(PROGRAM)) + 60
    assert len(for_kernel(Cell(SENT["fence"]), "", 60)) < len(repr(PROGRAM)) + 6_000


def test_names_of_the_caller_do_not_matter(real_kernels: None) -> None:
    with kernel() as new:
        new.run("c = 1\nexec = compile = ast = json = re = get_ipython = None")
        assert new.printed(SENT["fence"]) == PRINTS
        assert new.printed("print(c, 'p' in globals(), 'n' in globals())") == (
            "1 False False\n"
        )


@pytest.mark.parametrize(
    "function", sorted({*re.findall(r" *def (\w+)\(", SOURCE)} - {"runnable"})
)
def test_a_failure_in_it_harms_no_code(shared: Kernel, function: str) -> None:
    pattern = rf'(?s)(def {function}\(.*?\)(?: -> .*?)?:\n(?: +r?""".*?"""\n+)?)( +)'
    broken = re.sub(pattern, r"\1\2raise OSError('on purpose')\n\2", SOURCE, count=1)
    assert broken != SOURCE
    run = Run.empty(CONFIG.run_limits())
    sent = for_kernel(Cell("\nprint('&lt;')\n"), "", 60, shapes=packed([broken]))
    shared.sandbox.run(sent, 60, run)
    assert run.stdout.text() == "&lt;\n"
