"""What shortening leaves as it is: what a source does, and names that others know."""

from __future__ import annotations

import ast

import pytest

from sandboxes.set_up import read_sources
from texts.shortening import shortened


def result_of(source: str) -> object:
    reported: list[object] = []
    exec(source, {"report": reported.append, "__name__": "a_test"})  # noqa: S102
    return reported


SOURCES = {
    "locals and closures": """
def outer(first, second):
    total = first
    def inner(third):
        nonlocal total
        total += third * second
        return total
    return [inner(3), inner(4), total]
report(outer(1, 2))
""",
    "a parameter that is named in a call": """
def scaled(value, factor):
    return value * factor
report(scaled(2, factor=5))
""",
    "a parameter of a function that is given away": """
def made():
    def save(path, quality=3):
        return path, quality
    return save
report(made()(path="a", quality=1))
""",
    "a public method's parameter": """
class Store:
    def put(self, value):
        self._kept = value
        return self
    def _twice(self, amount):
        return self._kept * amount
    def get(self):
        return self._twice(2)
report(Store().put(value=4).get())
""",
    "a name of a builtin, and one of a module": """
import os.path
import json as reader
def length(list):
    return len(list), os.path.join("a", "b"), reader.dumps([1])
report(length([1, 2]))
""",
    "a name in a string": """
def watch():
    return 7
report(globals()["watch"]())
""",
    "an attribute that something else has, too": """
class Pair:
    def __init__(self, value):
        self.real = value
        self.own = value
report((Pair(3).real, (4).real, getattr(Pair(5), "own")))
""",
    "errors, loops and comprehensions": """
def attempt(items):
    found = []
    try:
        for number, item in enumerate(items):
            found.append({name: number for name in item})
        raise ValueError("end")
    except ValueError as problem:
        found.append(str(problem))
    with open("/dev/null") as handle:
        found.append(handle.read())
    return found, [value for value in (lambda count=2: [count])()]
report(attempt(["ab", "c"]))
""",
    "a class in a function's default, and a decorator": """
import functools
LIMIT = 3
def twice(function):
    @functools.wraps(function)
    def call(*args, **options):
        return function(*args, **options) * 2
    return call
@twice
def described(text, limit=LIMIT):
    '''What a function says of itself.'''
    return f"{text!r:>{limit}}{LIMIT=}"
report(described("a"))
""",
    "words that need a space": """
def chosen(a1, b_2):
    return (1 if not a1 else 2) if a1 is not b_2 else "x"if b_2 in[1]else-1
report([chosen(0, 1), chosen(1, 1), chosen(2, 2), "a  b\\n  c", b' d ', '''
  e'''])
""",
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_does_the_same_when_it_is_shorter(name: str) -> None:
    source = SOURCES[name]
    (short,) = shortened([source])
    assert result_of(short) == result_of(source)
    assert len(short) < len(source)


def test_sources_may_use_each_others_names() -> None:
    sources = [
        "LONGEST = 3\ndef more(): return LONGEST + 1",
        "report(more() * LONGEST)",
    ]
    assert result_of("\n".join(shortened(sources))) == [12]


def test_what_is_sent_has_none_of_what_only_people_read() -> None:
    sources = read_sources()
    for source, short in zip(sources, shortened(sources), strict=True):
        ast.parse(short, feature_version=(3, 8))
        assert '"""' not in short
        assert "#" not in short
        assert "(self" not in short
        assert len(short) < len(source) / 2
