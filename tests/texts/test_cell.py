"""What models put around code goes, and the code keeps its lines; near misses stay."""

from __future__ import annotations

import pytest

from texts.cell import runnable

PYTHON = "import math\nprint(math.pi)"


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
        assert runnable(sent) == runs
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
        assert runnable(code) == code


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
    assert runnable(sent) == runs


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
    assert runnable(code) == code
