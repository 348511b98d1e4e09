"""Every regular expression of the service takes time in proportion to its text."""

from __future__ import annotations

import ast
import random
import re
from types import ModuleType
from typing import Any

import pump_patterns
import pytest
from pump_patterns import Use, has_nested_repetition, pump, uses

SEED = 1  # `make soak` takes another one each time
FOR_S = 0.15  # of CPU, for each pattern


def name_of(use: Use) -> str:
    return f"{use.name} {use.method}"


@pytest.mark.parametrize("use", uses(), ids=name_of)
def test_no_text_keeps_a_pattern_busy(use: Use) -> None:
    print(f"seed {SEED}")
    slow, _ = pump(use, random.Random(SEED), FOR_S)
    assert not slow, str(slow)


@pytest.mark.parametrize("use", uses(), ids=name_of)
def test_nothing_is_repeated_in_a_repetition(use: Use) -> None:
    assert not has_nested_repetition(use.pattern)


@pytest.mark.parametrize(
    ("pattern", "method"),
    [
        (r"\A(?:[ \t]*(?:#[^\n]*)?\r?\n)*(?=[ \t]*%%\w)", "match"),
        (r"(?:a+)+b", "match"),
        (r"(?:\s|\n\n?)*(?=[xy])", "match"),
        (r"\\*\Z", "search"),
        (r"\s+$", "sub"),
        (r"(?s)<a.*b", "search"),
        (r".*a.*b.*\Z", "fullmatch"),
        (rb"\s*<svg", "search"),
    ],
)
def test_a_pattern_that_goes_back_is_found(pattern: Any, method: str) -> None:
    use = Use("here", re.compile(pattern), method)
    slow, _ = pump(use, random.Random(SEED), 20)
    assert slow
    assert repr(pattern) in str(slow)


@pytest.mark.parametrize(
    ("pattern", "is_nested"),
    [
        ("(?:a+b)*", True),
        ("(?:(?:a|b+)c)*+", True),
        ("(?>a*b)+", True),
        ("(?:x(?=a*)y)*", True),
        ("(?:ab)*c+", False),
        (r"(?:\\.|[^\\])*", False),
        (r"\d+(?:\.\d+){3}", False),
        ("(?:a?b)*", False),
    ],
)
def test_a_repetition_in_a_repetition_is_found(pattern: str, is_nested: bool) -> None:
    assert has_nested_repetition(re.compile(pattern)) == is_nested


SOURCE = """
import re
PART = "b+"
TABLE = {"a": r"c+", "d": (r"e+", "f")}
MADE = re.compile(f"g{PART}")
def inline(text): return re.search("a+", text)
def of_parts(text): return re.sub(rf"x{PART}", "", text)
def of_a_table(text): return re.match(TABLE["a"], text)
def compiled(text): return MADE.search(text)
def passed(text, pattern): return re.split(pattern, text)
def passes(text): return passed(text, "i+")
def loops(text):
    for each, _ in [("j+", 1)]: re.findall(each, text)
def text_method(text): return text.split("k+")
"""


def found_in(source: str) -> set[tuple[str, str]]:
    module = ModuleType("made")
    exec(source, vars(module))  # noqa: S102
    tree = ast.parse(source)
    found = pump_patterns._uses_in(tree, module, "made.py")
    return {(str(use.pattern.pattern), use.method) for use in found}


def test_patterns_are_found_wherever_they_are_made() -> None:
    assert found_in(SOURCE) == {
        ("a+", "search"),
        ("xb+", "sub"),
        ("c+", "match"),
        ("e+", "match"),
        ("f", "match"),
        ("gb+", "search"),
        ("i+", "split"),
        ("j+", "findall"),
    }


def test_a_pattern_that_is_not_found_is_said() -> None:
    with pytest.raises(LookupError, match=r"made\.py:3: re\.match\(read\(\), text\)"):
        found_in("import re\ndef read(): ...\ndef f(text): re.match(read(), text)")
